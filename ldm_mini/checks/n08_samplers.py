"""Checks of notebook 08, samplers. Here s < t is the timestep a step goes to; s = -1 is the clean image, abar = 1."""

import torch

from .checking import CheckFailed, attempt, compare, passed
from .properties import fresh, fresh_whole, same_dtype

# alphas_cumprod, (T,): whoever knows one of them by heart fails the other
ABARS = tuple(torch.cumprod(1 - torch.linspace(0.002, last, T, dtype=torch.float64), dim=0)
              for T, last in ((50, 0.18), (64, 0.12)))
SHAPES = ((5, 3), (2, 3, 2, 4))  # points and pictures
WRAPPED = "s = -1 is the clean image, but abar[-1] is the *last* entry of abar: there, use abar = 1."
RELEASED = ("the last step stops at the noise of t = 0, as the released code's does; s = -1 is the clean image, with "
            "abar = 1.")
LATE = "t is off by one: `abar[s]` belongs to s, `abar[t]` to t."


def _level(abar, s: int):
    return abar[s] if s >= 0 else torch.ones((), dtype=torch.float64)


def _not_wrapped(got, s: int):
    """A root of something negative: abar[-1] is smaller than abar[t]."""
    if s < 0 and isinstance(got, torch.Tensor) and got.isnan().any():
        raise CheckFailed(f"the step to s = -1 gives NaN. {WRAPPED}")


def ddpm_step(function):
    """`function(x_t, x0, t, s, abar, noise)`: a draw from q(x_s | x_t, x0); x_t, x0, noise (B,...), t > s >= -1."""
    # next door, far, the last noisy step, and twice to the clean image
    for t, s in ((30, 29), (30, 12), (49, 0), (0, -1), (6, -1)):
        for abar, shape in zip(ABARS, SHAPES):
            _hold_ddpm(function, t, s, abar, shape)
    passed("ddpm_step: a draw from the posterior, over a step of any length, and none at the end")


def _hold_ddpm(function, t, s, abar, shape):
    normal = fresh()
    x_t, x0, eta = (normal(*shape) for _ in range(3))
    a, b = abar[t], _level(abar, s)
    step = a / b

    def draw(a=a, b=b, step=None, x0=x0, x_t=x_t, spread=torch.sqrt, root=torch.sqrt):
        step = a / b if step is None else step
        mean = (root(b) * (1 - step) * x0 + root(step) * (1 - b) * x_t) / (1 - a)
        return mean + spread((1 - step) * (1 - b) / (1 - a)) * eta

    nothing, plain, forward = (lambda v: v * 0), (lambda v: v), (lambda v: (1 - step).sqrt())
    what = f"ddpm_step(x_t, x0, {t}, {s}, abar, noise)"
    got = attempt(function, x_t, x0, t, s, abar, eta, name="ddpm_step")
    _not_wrapped(got, s)
    wrapped = draw(b=abar[s]) if s >= 0 else draw(b=abar[s], spread=lambda v: v.clamp(min=0).sqrt())
    compare(got, draw(), what, rtol=1e-3, atol=1e-4, mistakes=[
        (wrapped, WRAPPED if s < 0 else LATE),
        (draw(spread=forward), "noise was added at the last step: the clean image has none." if s < 0 else
         "1 - abar_t / abar_s is the noise of a step *forward*. Knowing x0, less is left: multiply it by "
         "(1 - abar_s) / (1 - abar_t)."),
        (draw() + eta, "noise was added at the last step: the clean image has none." if s < 0 else
         "the noise must be scaled by the posterior's standard deviation."),
        (draw(spread=plain), "noise is multiplied by the standard *deviation*: take the root of the variance."),
        (draw(spread=nothing), "the fresh noise is missing: this is the mean of q(x_s | x_t, x0), not a draw."),
        (draw(x0=x_t, x_t=x0), "x0 and x_t have swapped their coefficients. At s = -1 the mean must be x0 itself."),
        (draw(root=plain), "the coefficients of x0 and x_t carry *roots*: sqrt(abar_s) and sqrt(abar_t / abar_s)."),
        (x0, "s = 0 is a noisy step like others; only s = -1 is the clean image."),
        (draw(b=abar[0], spread=lambda v: v.clamp(min=0).sqrt()) if s < 0 < t else 0 * x0, RELEASED),
        (draw(b=abar[max(t - 1, 0)]), "this is a step to t - 1, however far s is: use abar[s]."),
        (draw(b=_level(abar, min(s + 1, t - 1))), LATE),
        (draw(b=_level(abar, max(s - 1, -1))), LATE),
        (draw(a=abar[min(t + 1, len(abar) - 1)]), LATE),
        (draw(a=abar[max(t - 1, 0)]), LATE),
        (b.sqrt() * x0 + (1 - b).sqrt() * eta, "this forgets x_t: it noises x0 anew. Use the posterior."),
    ])
    same_dtype(got, x_t, what)


def sampling_timesteps(function):
    """`function(steps, T, spacing)`: "leading" or "trailing" -> int64 tensor (steps,), descending, within 0..T-1."""
    cases = [(10, 1000), (20, 1000), (300, 1000), (7, 50), (1000, 1000), (1, 50)]
    some = fresh_whole()
    # a step added up in floats gives one too many here and there: at 61, 103, 121 of 1000
    cases += [(steps, 1000) for steps in (*range(2, 160, 3), 103, 121, 999)] + [(steps, 50) for steps in range(1, 51)]
    cases += [(some(1, 200), some(200, 3000)) for _ in range(3)]
    for steps, length in cases:
        for spacing in ("leading", "trailing"):
            _hold_timesteps(function, steps, length, spacing)
    passed("timesteps: as many as asked for, inside the schedule, and trailing begins where the noise does")


def _hold_timesteps(function, steps, length, spacing):
    call = f"timesteps({steps}, {length}, {spacing!r})"
    got = attempt(function, steps, length, spacing, name="timesteps")
    if got is None:
        raise CheckFailed("timesteps returned None. Did you forget the `return`?")
    if not isinstance(got, torch.Tensor):
        raise CheckFailed(f"{call} should return a torch.Tensor, not {type(got).__name__}.")
    if got.dtype != torch.int64:
        raise CheckFailed(f"{call} has dtype {got.dtype}. Timesteps are indices, int64: round, then `.long()`.")
    values = got.tolist()
    if got.ndim != 1 or len(values) != steps:
        raise CheckFailed(f"{call} has {len(values) if got.ndim == 1 else tuple(got.shape)} timesteps. A stride of "
                          "T // steps gives too many wherever steps does not divide T, and a stride of T / steps, "
                          "added up, now and then: count 0, 1, ..., steps - 1, then i * T / steps.")
    if max(values) >= length:
        raise CheckFailed(f"{call} contains {max(values)}, but the last timestep is {length - 1}: abar[{length}] "
                          "is an IndexError.")
    if min(values) < 0:
        raise CheckFailed(f"{call} contains {min(values)}, below the first timestep 0.")
    if values == sorted(values) and len(values) > 1:
        raise CheckFailed(f"{call} ascends. A sampler walks from noise to data: descending, please.")
    if len(set(values)) != steps or values != sorted(values, reverse=True):
        raise CheckFailed(f"{call} repeats timesteps or jumps back: {values[:6]} ...")
    if 1 < steps <= length / 2 and values[0] == length - 1 and values[-1] == 0:
        raise CheckFailed(f'{call} visits both ends: that is "linspace". "leading" begins each of the parts (so it '
                          'visits 0), "trailing" ends each of them (so it visits T - 1).')
    if spacing == "leading" and values[-1] != 0:
        raise CheckFailed(f"{call} must contain 0: each of the {steps} parts is entered at its *beginning*, "
                          "i * T / steps.")
    if spacing == "trailing" and values[0] != length - 1:
        raise CheckFailed(f"{call} must begin at {length - 1}, where there is nothing but noise: each of the parts "
                          "is entered at its *end*, T - i * T / steps - 1.")
    # any rounding will do, so less than 1 away from the edge of a part
    for i, value in enumerate(values if spacing == "trailing" else values[::-1]):
        edge = length - i * length / steps - 1 if spacing == "trailing" else i * length / steps
        if abs(value - edge) >= 1 + 1e-6:
            raise CheckFailed(f"{call} has {value}, where the part's edge is {edge:.1f}: {abs(value - edge):.1f} away. "
                              "Equal parts, each entered at the same end.")


def ddim_step(function):
    """`function(x0, eps, t, s, abar, eta, noise)`: one DDIM step t -> s; x0, eps, noise (B,...), ints t > s >= -1."""
    for t, s, eta in ((30, 29, 0.0), (30, 12, 0.0), (6, -1, 0.0), (9, 0, 0.0), (30, 12, 1.0), (41, 20, 0.5),
                      (49, 0, 0.7), (6, -1, 1.0), (0, -1, 0.5)):
        for abar, shape in zip(ABARS, SHAPES):
            _hold_ddim(function, t, s, eta, abar, shape)
    passed("ddim_step: the same x0 at the next noise level; eta says how much of the noise is new")


def _hold_ddim(function, t, s, eta, abar, shape):
    draw = fresh()
    x0, eps, fresh_noise = (draw(*shape) for _ in range(3))
    a, b = abar[t], _level(abar, s)

    def step(eta=eta, a=a, b=b, signal=None, direction=None, x0=x0, eps=eps, extra=0.0):
        f2 = (eta**2 * (1 - b) / (1 - a) * (1 - a / b)).clamp(min=0)
        signal = b.sqrt() if signal is None else signal
        direction = (1 - b - f2).clamp(min=0).sqrt() if direction is None else direction(f2)
        return signal * x0 + direction * eps + (f2.sqrt() + extra) * fresh_noise

    what = f"ddim_step(x0, eps, {t}, {s}, abar, eta={eta:g}, noise)"
    got = attempt(function, x0, eps, t, s, abar, eta, fresh_noise, name="ddim_step")
    _not_wrapped(got, s)
    ended = "noise was added at the last step: the clean image has none."
    taken = "the fresh noise must be *taken out* of the direction term"
    compare(got, step(), what, rtol=1e-3, atol=1e-4, mistakes=[
        (step(b=abar[s]), WRAPPED if s < 0 else LATE),
        (step(b=abar[0]) if s < 0 < t else 0 * x0, RELEASED),
        (x0, "s = 0 is a noisy step like others; only s = -1 is the clean image."),
        (step(direction=lambda f2: (1 - b).sqrt()), f"{taken}: sqrt(1 - abar_s - f^2), or x_s gets more noise than the "
         "level of s has."),
        (step(direction=lambda f2: (1 - b).sqrt() - f2.sqrt()), "variances subtract, amplitudes do not: "
         "sqrt(1 - abar_s - f^2), not sqrt(1 - abar_s) - f."),
        (step(x0=eps, eps=x0), "x0 and eps are swapped: sqrt(abar_s) goes with x0."),
        (step(signal=b, direction=lambda f2: 1 - b - f2), "the amplitudes are square *roots*: abar_s and "
         "1 - abar_s are variances."),
        (step(signal=b), "x0 carries sqrt(abar_s), the amplitude, not abar_s."),
        (step(direction=lambda f2: 1 - b - f2), "eps carries the *root* of 1 - abar_s - f^2."),
        (step(b=a, eta=0.0), "this is x_t again: the new picture is at the level of *s*."),
        (step(signal=a.sqrt()), "x0 goes to the level of *s*: sqrt(abar_s), not sqrt(abar_t)."),
        (step(direction=lambda f2: (1 - a - f2).clamp(min=0).sqrt()), "eps goes to the level of *s*: 1 - abar_s."),
        (step(b=abar[max(t - 1, 0)]), "this is a step to t - 1, however far s is: use abar[s]."),
        (step(b=_level(abar, min(s + 1, t - 1))), LATE),
        (step(b=_level(abar, max(s - 1, -1))), LATE),
        (step(eta=eta**2), "f is eta times a root, so f^2 has eta^2; one of your terms has another power."),
        (step(eta=eta**0.5), "f is eta times a root, so f^2 has eta^2; one of your terms has another power."),
        (step(eta=0.0) + eta * (1 - a / b).sqrt() * fresh_noise, ended if s < 0 else f"{taken}, and it is scaled by "
         "sqrt((1 - abar_s) / (1 - abar_t))."),
        (step() + (eta - (eta**2 * (1 - b) / (1 - a) * (1 - a / b)).sqrt()) * fresh_noise,
         ended if s < 0 else "the fresh noise has the amplitude f, not eta."),
        (step(eta=0.0) + eta * fresh_noise, ended if s < 0 else "the fresh noise has the amplitude f, not eta."),
        (step(extra=1.0), ended if s < 0 else "the fresh noise has the amplitude f."),
        (step(eta=0.0), "eta is not used: f = eta * sqrt((1 - abar_s)/(1 - abar_t)) * sqrt(1 - abar_t/abar_s)."),
        (step(eta=1.0), "eta is not used: with eta = 0 nothing is drawn."),
    ])
    same_dtype(got, x0, what)


def batched_guidance(function):
    """`function(net, x_t, t, cond, null, scale)`: u + s (c - u) in one call of net(x, t, cond) on 2B rows."""
    draw = fresh()
    for size, shape, width in ((3, (4, 2, 2), 6), (2, (3, 4, 5), 4)):
        x_t, t = draw(size, *shape), torch.tensor([5, 20, 40])[:size]
        cond, null, mix = draw(size, width), draw(size, width), draw(width, shape[0])
        calls = []

        def net(x, t, c, mix=mix, calls=calls):
            if not len(x) == len(t) == len(c):
                raise ValueError(f"net got {len(x)} pictures, {len(t)} timesteps and {len(c)} conditions")
            calls.append(len(x))
            return torch.tanh(x.roll(1, 3) + (c @ mix)[:, :, None, None] + 0.02 * t[:, None, None, None])

        u, c = net(x_t, t, null), net(x_t, t, cond)
        between = net(x_t.repeat(2, 1, 1, 1), t.repeat_interleave(2), torch.cat([null, cond])).chunk(2)
        for scale in (3.0, 0.5, 0.0, 1.0):
            calls.clear()
            got = attempt(function, net, x_t, t, cond, null, scale, name="guided")
            what = f"guided(..., scale={scale:g})"
            compare(got, u + scale * (c - u), what, rtol=1e-3, atol=1e-4, mistakes=[
                (c + scale * (c - u), "the other convention (Ho & Salimans' w = s - 1). Here 1 means: no guidance."),
                (c + scale * (u - c), "null and condition are swapped: start at the *unconditional* prediction and go "
                 "towards the conditional one."),
                (u + scale * c, "add the *difference* c - u, not c itself."),
                (u + scale * (u - c), "the arrow points the wrong way: from u towards c."),
                (between[0] + scale * (between[1] - between[0]), "t got into another order than x_t: repeat_interleave "
                 "doubles each entry, `repeat` and `cat` the whole row."),
                ((u + scale * (c - u)).roll(1, 0), "the rows got mixed up."),
                (c, "scale is not used: this is the conditional prediction."),
            ])
            same_dtype(got, x_t, what)
            # without guidance (1), or without condition (0), one half is enough: many programs do it so
            if calls != [2 * size] and not (scale in (0, 1) and calls == [size]):
                if calls == [size, size]:
                    raise CheckFailed("guided calls the network twice. Stack both halves and call it once: on a GPU "
                                      "one batch of 2B is faster than two of B.")
                raise CheckFailed(f"guided should call the network once, on 2B = {2 * size} rows; it called it on "
                                  f"{calls} rows.")
    passed("guided: both predictions from one call, and 1 means no guidance")
