"""Checks of notebook 00, start here."""

import torch

from .checking import CheckFailed, attempt, compare, passed, several
from .properties import fresh, plain, same_dtype


def to_picture(function):
    """`function(x)`: network output (B,3,H,W), nominally in [-1,1] -> uint8 picture (B,H,W,3) in 0..255."""
    draw = fresh()
    row = torch.tensor([-1.5, -1.0, -0.25, 0.0, 0.25, 1.0, 1.5])
    for b, h in ((1, 4), (2, 9)):
        x = torch.cat([draw(b, 3, h, 7), row.expand(1, 3, h, 7)])
        _one_picture(attempt(function, x, name="to_picture"), x)
    # an untrained network says little: nothing may depend on the darkest and the brightest pixel
    x = 0.3 * draw(1, 3, 5, 6).tanh()
    _one_picture(attempt(function, x, name="to_picture"), x)
    passed("to_picture: right range, right axes, nothing wraps around")


def _one_picture(got, x):
    real = (x.clamp(-1, 1) + 1) * 127.5
    last = lambda t: t.round().permute(0, 2, 3, 1)
    byte = last(real).to(torch.uint8)
    b, _, h, w = x.shape
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    shapes = {
        (b, w, h, 3): "height and width have changed places: the order is batch, height, width, colours, "
                      "permute(0, 2, 3, 1).",
        (b, 3, h, w): "the colours come last in a picture: permute(0, 2, 3, 1).",
        (h, w, 3): "the batch axis is lost: convert all pictures of the batch.",
    }
    scaled = "each picture was stretched to its own darkest and brightest value. The range is fixed: -1 is 0, 1 is 255."
    compare(got, byte, "to_picture(x)", shapes=shapes, atol=1.01, rtol=0, mistakes=[
        (last((x + 1) * 127.5).to(torch.int64).to(torch.uint8),
         "values outside [-1, 1] wrapped around to the other end. Clamp before converting to uint8."),
        (((x + 1) * 127.5).to(torch.int64).to(torch.uint8).permute(0, 2, 3, 1),
         "values outside [-1, 1] wrapped around to the other end. Clamp before converting to uint8."),
        (last(x.clamp(0, 1) * 255), "the input lives in [-1, 1], not [0, 1]: shift it."),
        (last(x.clamp(-1, 1).abs() * 255), "the input lives in [-1, 1], not [0, 1]: shift it, do not fold it."),
        (real.round().reshape(b, h, w, 3),
         "reshape scrambles the pixels; moving an axis needs permute (or einops.rearrange)."),
        (last(255 - real), "the brightness is inverted: -1 is black (0), 1 is white (255)."),
        (byte.flip(-1), "red and blue have changed places: keep the order of the colours."),
        (last((x - low) / (high - low) * 255), scaled),
        (last((x - x.min()) / (x.max() - x.min()) * 255), scaled),
    ])
    # rounded or cut off makes no visible difference, but the ends of the range must be met
    for value, level in ((-1, 0), (1, 255)):
        there = (x.clamp(-1, 1) == value).permute(0, 2, 3, 1)
        if (got[there] != level).any():
            raise CheckFailed(f"to_picture(x) turns {value} into {got[there][0]}; it should be {level}: "
                              "(x + 1) * 127.5 after clamping.")


def guidance(function):
    """`function(uncond, cond, scale)`: classifier-free guidance, u + s (c - u)."""
    draw = fresh()
    backwards = "the arrow points the wrong way: move from the unconditional prediction towards the conditional one."
    for s, shape in ((4.0, (2, 4, 3, 3)), (1.0, (1, 3, 5, 2)), (0.0, (1, 3, 5, 2)), (7.5, (3, 2, 4, 6)), (2, (5,))):
        u, c = draw(*shape), draw(*shape)
        name = f"guide(u, c, {s:g})"
        got = attempt(function, u, c, s, name="guide")
        compare(got, u + s * (c - u), name, mistakes=[
            (c + s * (c - u), "the other convention (Ho & Salimans' w = s - 1). Here a scale of 1 means: no guidance."),
            (u + (s - 1) * (c - u), "one step short: a scale of 1 must arrive at c."),
            (c + s * (u - c), backwards),
            (u + s * (u - c), backwards),
            (u + s * c, "add the *difference* c - u, not c itself."),
            (s * (c - u), "this is the arrow alone: it starts at u, so add u."),
            (u + 4 * (c - u), "the scale stays at 4: use the argument as it is."),
            (u + s * (c - u).abs(), "the difference has a sign: no absolute value."),
            ((u + s * (c - u)).clamp(-1, 1), "these are predictions of noise, not pictures: do not clamp them."),
        ])
        same_dtype(got, u, name)
    passed("guide: 0 ignores the caption, 1 follows it, more than 1 exaggerates it")


def latent_numbers(function):
    """`function(height, width, f, channels)`: (numbers in an RGB picture, numbers in its latent)."""
    drawn = [int(n) for n in 1 + 9 * fresh()(4).sigmoid()]
    other = (drawn[0] * 2 ** (drawn[3] % 4), drawn[1] * 2 ** (drawn[3] % 4), 2 ** (drawn[3] % 4), drawn[2])
    for h, w, f, c in ((64, 64, 4, 3), (256, 256, 8, 4), (512, 256, 16, 16), other):
        right, call = (h * w * 3, (h // f) * (w // f) * c), f"latent_numbers({h}, {w}, {f}, {c})"
        got = several(attempt(function, h, w, f, c, name="latent_numbers"), call, "two numbers (picture, latent)")
        got = tuple(map(plain, got))
        if got == right:
            continue
        for value, message in (
            ((right[0], h * w // f * c), "f divides the height *and* the width, so the area shrinks by f squared."),
            ((h * w, right[1]), "a picture has three numbers per pixel (red, green, blue)."),
            (right[::-1], "first the picture, then the latent."),
            ((right[0], right[1] // c), "each place of the latent holds `channels` numbers."),
            ((right[0], right[1] // c * 3), "a latent has `channels` numbers at each place, not three."),
            ((right[0], h * w * c), "a latent is smaller than its picture: f divides the height and the width."),
            ((h * w * c, right[1]), "the picture has 3 numbers per pixel; `channels` is the latent's."),
            (((3, h, w), (c, h // f, w // f)), "these are the shapes; multiply them out."),
        ):
            if got == value:
                raise CheckFailed(f"{call}: {message}")
        raise CheckFailed(f"{call} returned {got}; it should be {right}.")
    passed("latent_numbers: the diffusion model sees that many times fewer numbers")
