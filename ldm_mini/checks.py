"""Checks for the exercises: each takes *your* function, tries it on small inputs, and names the likely mistake.

A check prints one line when all is well and raises `CheckFailed` otherwise, so it works in a notebook cell, under
`pytest --nbval` and as an autograder test alike. Every check is itself tested: known wrong solutions must fail it, and
correct ones written another way must pass (`tests/test_checks.py`).
"""

import torch
from torch import Tensor


class CheckFailed(AssertionError):
    """Your solution differs from what the exercise asks; the message says how, and what to look at."""

    def _render_traceback_(self):
        """Jupyter shows this instead of a stack trace through our files: the message is what helps."""
        return [f"CheckFailed: {self}"]


def compare(got, want: Tensor, what: str, mistakes=(), rtol=1e-4, atol=1e-5):
    """Hold a learner's result against the right one.

    mistakes: pairs (value a known mistake would give, what to tell the learner about it).
    Raises CheckFailed naming the first difference: type, shape, dtype kind, a known mistake, or the largest error.
    """
    if got is None:
        raise CheckFailed(f"{what} returned None. Did you forget the `return`, or is the stub still in place?")
    if not isinstance(got, Tensor):
        raise CheckFailed(f"{what} should return a torch.Tensor, not {type(got).__name__}.")
    if got.shape != want.shape:
        raise CheckFailed(f"{what} has shape {tuple(got.shape)}; it should be {tuple(want.shape)}.")
    if got.dtype.is_floating_point != want.dtype.is_floating_point or (got.dtype == torch.uint8) != (want.dtype == torch.uint8):
        raise CheckFailed(f"{what} has dtype {got.dtype}; it should be {want.dtype}.")
    got, want = got.detach().double(), want.detach().double()
    if torch.allclose(got, want, rtol=rtol, atol=atol):
        return
    if not got.isfinite().all():
        raise CheckFailed(f"{what} contains NaN or infinity. Look for a division by zero.")
    for value, message in mistakes:
        if value.shape == got.shape and torch.allclose(got, value.detach().double(), rtol=rtol, atol=atol):
            raise CheckFailed(f"{what}: {message}")
    error = (got - want).abs()
    where = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    raise CheckFailed(f"{what} is off by up to {error.max():.3g} (at index {where}: got {got[where]:.4g}, "
                      f"expected {want[where]:.4g}).")


def passed(message: str):
    """The one line a learner wants to see."""
    print(f"✓ {message}")


def attempt(function, *inputs, name: str):
    """Call a learner's function; an exception inside it becomes a message that says where it came from."""
    copies = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
    try:
        result = function(*copies)
    except NotImplementedError:
        raise CheckFailed(f"{name} is still the stub: replace `raise NotImplementedError` by your code.") from None
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else repr(x) for x in inputs)
        raise CheckFailed(f"{name} raised {type(error).__name__}: {error} (called with {shapes}).") from error
    for before, after in zip(inputs, copies):
        if isinstance(before, Tensor) and not torch.equal(before, after):
            raise CheckFailed(f"{name} changed its input in place. Write into a new tensor (for example `x = x * 2`, not `x *= 2`).")
    return result


def _noise(*shape, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------ 00 start here


def to_picture(function):
    """`function(x)`: network output (B,3,H,W), nominally in [-1,1] -> uint8 picture (B,H,W,3) in 0..255."""
    x = torch.cat([_noise(1, 3, 4, 6), torch.tensor([-1.5, -1.0, -0.25, 0.0, 0.25, 1.5]).expand(1, 3, 4, 6)])
    right = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    scaled = (x + 1) * 127.5
    got = attempt(function, x, name="to_picture")
    compare(got, right, "to_picture(x)", atol=1.01, mistakes=[
        (scaled.round().to(torch.int64).to(torch.uint8).permute(0, 2, 3, 1),
         "values outside [-1, 1] wrapped around to the other end. Clamp before converting to uint8."),
        ((x.clamp(0, 1) * 255).round().permute(0, 2, 3, 1), "the input lives in [-1, 1], not in [0, 1]: shift it first."),
        (((x.clamp(-1, 1) + 1) * 127.5).round().reshape(2, 4, 6, 3),
         "reshape scrambles the pixels; moving an axis needs permute (or einops.rearrange)."),
    ])
    passed("to_picture: right range, right axes, nothing wraps around")


def guidance(function):
    """`function(uncond, cond, scale)`: classifier-free guidance, u + s (c - u)."""
    u, c = _noise(2, 4, 3, 3), _noise(2, 4, 3, 3, seed=1)
    for s in (4.0, 1.0, 0.0):
        got = attempt(function, u, c, s, name="guide")
        compare(got, u + s * (c - u), f"guide(u, c, {s:g})", mistakes=[
            (c + s * (c - u), "this is the other convention (Ho & Salimans' w = s - 1). Here a scale of 1 means: no guidance."),
            (c + s * (u - c), "the arrow points the wrong way: move from the unconditional prediction towards the conditional one."),
            (u + s * (u - c), "the arrow points the wrong way: move from the unconditional prediction towards the conditional one."),
            (u + s * c, "add the *difference* c - u, not c itself."),
        ])
    passed("guide: 0 ignores the caption, 1 follows it, more than 1 exaggerates it")


def latent_numbers(function):
    """`function(height, width, f, channels)`: (numbers in an RGB picture, numbers in its latent)."""
    for h, w, f, c, name in ((64, 64, 4, 3, ""), (256, 256, 8, 4, " (Stable Diffusion's first stage)"), (512, 256, 16, 16, "")):
        got, right = attempt(function, h, w, f, c, name="latent_numbers"), (h * w * 3, (h // f) * (w // f) * c)
        call = f"latent_numbers({h}, {w}, {f}, {c}){name}"
        if not isinstance(got, tuple) or len(got) != 2:
            raise CheckFailed(f"{call} should return two numbers (picture, latent), not {got!r}.")
        if got == (right[0], h * w // f * c):
            raise CheckFailed(f"{call}: f divides the height *and* the width, so the area shrinks by f squared.")
        if got == (h * w, right[1]):
            raise CheckFailed(f"{call}: a picture has three numbers per pixel (red, green, blue).")
        if tuple(got) != right:
            raise CheckFailed(f"{call} returned {got}; it should be {right}.")
    passed("latent_numbers: the diffusion model sees that many times fewer numbers")


# ------------------------------------------------------------------ 01 one data set, seven tasks


def alpha_over(function):
    """`function(sprite, alpha, canvas)`: colour (3,h,w), opacity (1,h,w), canvas (3,h,w) -> composed (3,h,w)."""
    sprite, canvas = _noise(3, 5, 5).sigmoid(), _noise(3, 5, 5, seed=1).sigmoid()
    alpha = torch.linspace(0, 1, 25).view(1, 5, 5)
    right = alpha * sprite + (1 - alpha) * canvas
    compare(attempt(function, sprite, alpha, canvas, name="alpha_over"), right, "alpha_over(sprite, alpha, canvas)", mistakes=[
        (sprite + (1 - alpha) * canvas, "the sprite's colour is not premultiplied here: weigh it by alpha too."),
        ((1 - alpha) * sprite + alpha * canvas, "sprite and canvas are swapped: alpha = 1 means the sprite is opaque."),
        (torch.where(alpha > 0.5, sprite, canvas), "a hard threshold makes jagged edges: mix in proportion to alpha."),
        (alpha * sprite + canvas, "the canvas must fade where the sprite is opaque: weigh it by 1 - alpha."),
    ])
    passed("alpha_over: soft edges, opaque middle")


def box_iou(function):
    """`function(a, b)`: boxes (N,4) and (M,4) as x0, y0, x1, y1 -> (N,M) intersection over union."""
    a = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.2, 0.1, 0.6, 0.9], [0.7, 0.7, 0.9, 0.8]])
    b = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75], [0.0, 0.6, 0.1, 0.9], [0.1, 0.1, 0.2, 0.2]])
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    inter, raw = (high - low).clamp(min=0).prod(-1), (high - low).prod(-1)
    area = lambda box: (box[:, 2:] - box[:, :2]).prod(-1)  # noqa: E731
    total = area(a)[:, None] + area(b)[None]
    compare(attempt(function, a, b, name="box_iou"), inter / (total - inter), "box_iou(a, b)", mistakes=[
        (raw / (total - raw), "boxes that do not touch have a negative side: clamp width and height at 0 before multiplying."),
        (inter / total, "the union counts the overlap once: area(a) + area(b) - intersection."),
        (inter, "this is the intersection; divide it by the union."),
    ])
    passed("box_iou: 1 for the same box, 0 for boxes apart")


def inpainting_input(function):
    """`function(image, mask)`: image (B,3,H,W) in [-1,1], mask (B,1,H,W) with 1 = hole -> (masked image, mask in [-1,1])."""
    image = _noise(2, 3, 6, 6).clamp(-1, 1)
    mask = (_noise(2, 1, 6, 6, seed=2) > 0).float()
    got = attempt(function, image, mask, name="inpainting_input")
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        raise CheckFailed("inpainting_input should return two tensors: the masked image and the mask.")
    hidden = torch.where(mask.bool(), torch.tensor(-1.0), image)
    compare(got[0], hidden, "the masked image", mistakes=[
        (image * (1 - mask), "the hole is 0, which is mid-grey in [-1, 1]. The released model has black (-1) there: "
                             "go to [0, 1], multiply, come back."),
        (torch.where(mask.bool(), image, torch.tensor(-1.0)), "you kept the hole and hid the rest: here mask = 1 means *hole*."),
        (image, "the hole still shows the answer: a model trained on this learns to copy."),
    ])
    compare(got[1], mask * 2 - 1, "the mask", mistakes=[
        (mask, "it goes to the network in [-1, 1] like everything else: +1 in the hole, -1 outside."),
        (1 - mask * 2, "the sign is flipped: +1 belongs in the hole."),
    ])
    passed("inpainting_input: what the network sees, and nothing more")
