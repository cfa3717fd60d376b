"""Checks of notebook 08, samplers. Here s < t is the timestep a step goes to; s = -1 is the clean image, abar = 1."""

import torch

from .checking import CheckFailed, attempt, compare, noise, passed

T = 50
ABAR = torch.cumprod(1 - torch.linspace(0.002, 0.18, T, dtype=torch.float64), dim=0)  # alphas_cumprod
WRAPPED = "s = -1 is the clean image, but abar[-1] is the *last* entry of abar: there, use abar = 1."
LATE = "t is off by one: `abar[s]` belongs to s, `abar[t]` to t."


def _abar(s: int):
    return ABAR[s] if s >= 0 else torch.ones((), dtype=torch.float64)


def ddpm_step(function):
    """`function(x_t, x0, t, s, abar, noise)`: a draw from q(x_s | x_t, x0); x_t, x0, noise (B,D), ints t > s >= -1."""
    x_t, x0, eta = noise(5, 3), noise(5, 3, seed=1), noise(5, 3, seed=2)
    # next door, far, the last noisy step, and twice to the clean image
    for t, s in ((30, 29), (30, 12), (49, 0), (0, -1), (6, -1)):
        a, b = ABAR[t], _abar(s)
        step = a / b

        def draw(a=a, b=b, step=None, x0=x0, x_t=x_t, spread=torch.sqrt, root=torch.sqrt):
            step = a / b if step is None else step
            mean = (root(b) * (1 - step) * x0 + root(step) * (1 - b) * x_t) / (1 - a)
            return mean + spread((1 - step) * (1 - b) / (1 - a)) * eta

        nothing = lambda v: v * 0
        plain = lambda v: v
        forward = lambda v: (1 - step).sqrt()
        got = attempt(function, x_t, x0, t, s, ABAR, eta, name="ddpm_step")
        wrapped = draw(b=ABAR[s]) if s >= 0 else draw(b=ABAR[s], spread=lambda v: v.clamp(min=0).sqrt())
        compare(got, draw(), f"ddpm_step(x_t, x0, {t}, {s}, abar, noise)", rtol=1e-3, atol=1e-4, mistakes=[
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
            (draw(b=ABAR[max(t - 1, 0)]), "this is a step to t - 1, however far s is: use abar[s]."),
            (draw(b=_abar(min(s + 1, t - 1))), LATE),
            (draw(b=_abar(max(s - 1, -1))), LATE),
            (draw(a=ABAR[min(t + 1, T - 1)]), LATE),
            (draw(a=ABAR[max(t - 1, 0)]), LATE),
            (_abar(s).sqrt() * x0 + (1 - b).sqrt() * eta, "this forgets x_t: it noises x0 anew. Use the posterior."),
        ])
    passed("ddpm_step: a draw from the posterior, over a step of any length, and none at the end")


def sampling_timesteps(function):
    """`function(steps, T, spacing)`: "leading" or "trailing" -> int64 tensor (steps,), descending, within 0..T-1."""
    for steps, length, spacing in ((10, 1000, "leading"), (10, 1000, "trailing"), (20, 1000, "trailing"),
                                   (300, 1000, "leading"), (300, 1000, "trailing"), (7, 50, "leading"),
                                   (7, 50, "trailing"), (1000, 1000, "leading"), (1000, 1000, "trailing"),
                                   (1, 50, "leading"), (1, 50, "trailing")):
        call = f"timesteps({steps}, {length}, {spacing!r})"
        got = attempt(function, steps, length, spacing, name="timesteps")
        if not isinstance(got, torch.Tensor):
            raise CheckFailed(f"{call} should return a torch.Tensor, not {type(got).__name__}.")
        if got.is_floating_point():
            raise CheckFailed(f"{call} has dtype {got.dtype}. Timesteps are indices: round, then `.long()`.")
        values = got.tolist()
        if len(values) != steps:
            raise CheckFailed(f"{call} has {len(values)} timesteps. A stride of T // steps gives too many wherever "
                              "steps does not divide T: multiply before you divide, i * T / steps.")
        if values and max(values) >= length:
            raise CheckFailed(f"{call} contains {max(values)}, but the last timestep is {length - 1}: abar[{length}] "
                              "is an IndexError.")
        if values and min(values) < 0:
            raise CheckFailed(f"{call} contains {min(values)}, below the first timestep 0.")
        if values == sorted(values) and len(values) > 1:
            raise CheckFailed(f"{call} ascends. A sampler walks from noise to data: descending, please.")
        if len(set(values)) != steps or values != sorted(values, reverse=True):
            raise CheckFailed(f"{call} repeats timesteps or jumps back: {values[:6]} ...")
        both = {values[0] == length - 1, values[-1] == 0}
        if both == {True} and 1 < steps < length:
            raise CheckFailed(f'{call} visits both ends: that is "linspace". "leading" begins each of the parts (so it '
                              'visits 0), "trailing" ends each of them (so it visits T - 1).')
        if spacing == "leading" and values[-1] != 0:
            raise CheckFailed(f"{call} must contain 0: each of the {steps} parts is entered at its *beginning*, "
                              "i * T / steps.")
        if spacing == "trailing" and values[0] != length - 1:
            raise CheckFailed(f"{call} must begin at {length - 1}, where there is nothing but noise: each of the parts "
                              "is entered at its *end*, T - i * T / steps - 1.")
        gaps = [a - b for a, b in zip(values, values[1:])]
        if gaps and max(gaps) > length / steps + 1.01:
            raise CheckFailed(f"{call} leaves a gap of {max(gaps)}; the parts are {length / steps:.1f} long.")
        edge = length - 1 - values[0] if spacing == "leading" else values[-1]
        if edge > length / steps + 1.01:
            raise CheckFailed(f"{call} stops {edge} away from the other end; the parts are {length / steps:.1f} long.")
    passed("timesteps: as many as asked for, inside the schedule, and trailing begins where the noise does")


def ddim_step(function):
    """`function(x0, eps, t, s, abar, eta, noise)`: one DDIM step t -> s; x0, eps, noise (B,D), ints t > s >= -1."""
    x0, eps, fresh = noise(5, 3), noise(5, 3, seed=1), noise(5, 3, seed=2)
    for t, s, eta in ((30, 29, 0.0), (30, 12, 0.0), (6, -1, 0.0), (30, 12, 1.0), (41, 20, 0.5), (6, -1, 1.0)):

        def step(eta=eta, a=ABAR[t], b=_abar(s), signal=None, direction=None, x0=x0, eps=eps, extra=0.0):
            f2 = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
            signal = b.sqrt() if signal is None else signal
            direction = (1 - b - f2).clamp(min=0).sqrt() if direction is None else direction(f2)
            return signal * x0 + direction * eps + (f2.sqrt() + extra) * fresh

        a, b = ABAR[t], _abar(s)
        got = attempt(function, x0, eps, t, s, ABAR, eta, fresh, name="ddim_step")
        ended = "noise was added at the last step: the clean image has none."
        compare(got, step(), f"ddim_step(x0, eps, {t}, {s}, abar, eta={eta:g}, noise)", rtol=1e-3, atol=1e-4,
                mistakes=[
            (step(b=ABAR[s]), WRAPPED if s < 0 else LATE),
            (step(direction=lambda f2: (1 - b).sqrt()), "the fresh noise must be *taken out* of the direction term: "
             "sqrt(1 - abar_s - f^2), or x_s gets more noise than the level of s has."),
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
            (step(b=ABAR[max(t - 1, 0)]), "this is a step to t - 1, however far s is: use abar[s]."),
            (step(b=_abar(min(s + 1, t - 1))), LATE),
            (step(b=_abar(max(s - 1, -1))), LATE),
            (step(eta=eta**2), "f is eta times a root, so f^2 has eta^2; one of your terms has another power."),
            (step(eta=eta**0.5), "f is eta times a root, so f^2 has eta^2; one of your terms has another power."),
            (step(eta=0.0) + eta * (1 - a / b).sqrt() * fresh, ended if s < 0 else
             "the fresh noise must be *taken out* of the direction term, and it is scaled by "
             "sqrt((1 - abar_s) / (1 - abar_t))."),
            (step() + (eta - (eta**2 * (1 - b) / (1 - a) * (1 - a / b)).sqrt()) * fresh,
             ended if s < 0 else "the fresh noise has the amplitude f, not eta."),
            (step(eta=0.0) + eta * fresh, ended if s < 0 else "the fresh noise has the amplitude f, not eta."),
            (step(extra=1.0), ended if s < 0 else "the fresh noise has the amplitude f."),
            (step(eta=0.0), "eta is not used: f = eta * sqrt((1 - abar_s)/(1 - abar_t)) * sqrt(1 - abar_t/abar_s)."),
            (step(eta=1.0), "eta is not used: with eta = 0 nothing is drawn."),
        ])
    passed("ddim_step: the same x0 at the next noise level; eta says how much of the noise is new")


def euler_step(function):
    """`function(x_t, eps, t, s, abar)`: Euler's step for y = x / alpha along sigma / alpha; -> x_s (B,D)."""
    x_t, eps = noise(5, 3), noise(5, 3, seed=1)
    for t, s in ((30, 29), (44, 12), (6, -1)):
        a, b = ABAR[t], _abar(s)
        alpha_t, sigma_t, alpha_s, sigma_s = a.sqrt(), (1 - a).sqrt(), b.sqrt(), (1 - b).sqrt()
        length = sigma_s / alpha_s - sigma_t / alpha_t
        y = x_t / alpha_t + length * eps
        wrapped = ABAR[s].sqrt() * (x_t / alpha_t + (((1 - ABAR[s]) / ABAR[s]).sqrt() - sigma_t / alpha_t) * eps)
        got = attempt(function, x_t, eps, t, s, ABAR, name="euler_step")
        compare(got, alpha_s * y, f"euler_step(x_t, eps, {t}, {s}, abar)", rtol=1e-3, atol=1e-4, mistakes=[
            (wrapped, WRAPPED if s < 0 else LATE),
            (alpha_s * (x_t / alpha_t - length * eps), "the sign: the step is sigma_hat_s - sigma_hat_t, which is "
             "negative. Noise gets less."),
            (y, "this is y at s. Go back to x: multiply by alpha_s."),
            (alpha_t * y, "go back with the amplitude of *s*: x_s = alpha_s * y."),
            (alpha_s * (x_t + length * eps), "the slope is that of y = x / alpha: divide x_t by alpha_t first."),
            (x_t + length * eps, "the slope is that of y = x / alpha: divide x_t by alpha_t first, and go back."),
            (alpha_s * (x_t / alpha_t + (sigma_s - sigma_t) * eps), "y moves along sigma / alpha, not along sigma."),
            (alpha_s * (x_t / alpha_t + length * (x_t - sigma_t * eps) / alpha_t), "the slope dy/dsigma_hat is eps, "
             "not x0."),
            (x_t + (sigma_s - sigma_t) * eps, "x itself has no such simple slope: step y = x / alpha along "
             "sigma / alpha."),
        ])
    passed("euler_step: one straight piece of the flow")


def dpm_step(function):
    """`function(x_t, x0, x0_before, before, t, s, abar)`: DPM-Solver++(2M), timesteps before > t > s >= -1 -> x_s.

    The first step has x0_before = before = None and is of first order, as is the step to the clean image, s = -1.
    """
    x_t, x0, old = noise(5, 3), noise(5, 3, seed=1), noise(5, 3, seed=2)
    lam = (ABAR / (1 - ABAR)).sqrt().log()
    cases = (("the first step", None, None, 40, 33), ("a step in the middle", old, 40, 33, 20),
             ("a longer step", old, 36, 33, 8), ("the last step", old, 9, 4, -1))
    for name, x0_before, before, t, s in cases:
        got = attempt(function, x_t, x0, x0_before, before, t, s, ABAR, name="dpm_step")
        call = f"dpm_step, {name} ({t} -> {s})"
        if s < 0:
            if isinstance(got, torch.Tensor) and not got.isfinite().all():
                raise CheckFailed(f"{call} is not finite. At the clean image lambda, and so h, is infinite: a line "
                                  "cannot be drawn that far. Take first order there; its limit is x0 itself.")
            end, sigma = ABAR[-1], (1 - ABAR[t]).sqrt()
            wrapped = end.sqrt() * -torch.expm1(lam[t] - lam[-1]) * x0 + (1 - end).sqrt() / sigma * x_t
            compare(got, x0, call, rtol=1e-3, atol=1e-4, mistakes=[(wrapped, WRAPPED)])
            continue
        sigma_t, alpha_s, sigma_s = (1 - ABAR[t]).sqrt(), ABAR[s].sqrt(), (1 - ABAR[s]).sqrt()
        h, D = lam[s] - lam[t], x0
        if before is not None:
            D = x0 + h / (2 * (lam[t] - lam[before])) * (x0 - old)
        right = sigma_s / sigma_t * x_t + alpha_s * -torch.expm1(-h) * D
        mistakes = _wrong_dpm_factors(x_t, D, t, s, h)
        if before is not None:
            mistakes += _wrong_dpm_lines(x_t, x0, old, lam, before, t, s)
        compare(got, right, call, rtol=1e-3, atol=1e-4, mistakes=mistakes)
    passed("dpm_step: exact but for x0, and x0 is a straight line; first order at both ends")


def _wrong_dpm_factors(x_t, D, t, s, h):
    """Mistakes in sigma_s / sigma_t x_t + alpha_s (1 - exp(-h)) D, whatever D is."""
    alpha_t, sigma_t, alpha_s, sigma_s = ABAR[t].sqrt(), (1 - ABAR[t]).sqrt(), ABAR[s].sqrt(), (1 - ABAR[s]).sqrt()
    kept, factor, no_log = sigma_s / sigma_t, alpha_s * -torch.expm1(-h), alpha_s / sigma_s - alpha_t / sigma_t
    sign = "the sign of h: lambda = log(alpha / sigma) grows towards the data, so h = lambda_s - lambda_t is positive."
    keep = "x_t is kept in the proportion sigma_s / sigma_t: its noise shrinks."
    return [
        (kept * x_t - factor * D, "the sign: the factor of x0 is alpha_s (1 - exp(-h))."),
        (kept * x_t + alpha_s * torch.expm1(h) * D, sign),
        (kept * x_t - alpha_s * torch.expm1(h) * D, sign),
        (kept * x_t - alpha_s * torch.expm1(-2 * h) * D, "log(alpha^2 / sigma^2) is twice log(alpha / sigma)."),
        (kept * x_t - alpha_s * torch.expm1(-no_log) * D, "the log is missing: lambda = log(alpha / sigma)."),
        (kept * x_t - alpha_t * torch.expm1(-h) * D, "x0 arrives at the level of *s*: alpha_s (1 - exp(-h))."),
        (kept * x_t - torch.expm1(-h) * D, "the amplitude alpha_s is missing in front of x0."),
        (alpha_s / alpha_t * x_t + factor * D, keep),
        (x_t + factor * D, keep),
        (x_t / kept + factor * D, "upside down: x_t keeps sigma_s / sigma_t."),
    ]


def _wrong_dpm_lines(x_t, x0, old, lam, before, t, s):
    """Mistakes in D, the x0 extrapolated from its last two values."""
    h, h_old, snr = lam[s] - lam[t], lam[t] - lam[before], (ABAR / (1 - ABAR)).sqrt()
    no_log = (snr[s] - snr[t]) / (snr[t] - snr[before]) / 2
    factor, kept = ABAR[s].sqrt() * -torch.expm1(-h), ((1 - ABAR[s]) / (1 - ABAR[t])).sqrt()
    wrong = [
        (x0, "this is first order: x0_before is not used. Extrapolate x0 by half a step."),
        (x0 + h_old / (2 * h) * (x0 - old), "r is upside down: x0 moved by x0 - x0_before over the step h_before, so "
         "over h / 2 it moves by h / (2 h_before) of it."),
        (x0 + h / h_old * (x0 - old), "only *half* a step ahead: the line is taken at the middle of the step."),
        (x0 - h / (2 * h_old) * (x0 - old), "the wrong way: go from x0_before through x0 and beyond."),
        (old + h / (2 * h_old) * (x0 - old), "start from the newer value, x0."),
        (x0 + 0.5 * (x0 - old), "the steps are not equally long in lambda: weigh with h / (2 h_before)."),
        (x0 + (t - s) / (before - t) / 2 * (x0 - old), "the steps are measured in lambda, not in t."),
        (x0 + no_log * (x0 - old), "the log is missing: lambda = log(alpha / sigma)."),
        ((x0 + old) / 2, "an average looks back; a second order step looks *ahead*."),
    ]
    no_log_factor = ABAR[s].sqrt() * -torch.expm1(snr[t] - snr[s])
    return [(kept * x_t + factor * D, message) for D, message in wrong] + [
        (kept * x_t + no_log_factor * (x0 + no_log * (x0 - old)), "the log is missing: lambda = log(alpha / sigma).")]


def batched_guidance(function):
    """`function(net, x_t, t, cond, null, scale)`: u + s (c - u) in one call of net(x, t, cond) on 2B rows."""
    x_t, t = noise(3, 4, 2, 2), torch.tensor([5, 20, 40])
    cond, null = noise(3, 6, seed=1), noise(3, 6, seed=2)
    mix = noise(6, 4, seed=3)
    calls = []

    def net(x, t, c):
        if not len(x) == len(t) == len(c):
            raise ValueError(f"net got {len(x)} pictures, {len(t)} timesteps and {len(c)} conditions")
        calls.append(len(x))
        return torch.tanh(x.roll(1, 3) + (c @ mix)[:, :, None, None] + 0.02 * t[:, None, None, None])

    u, c = net(x_t, t, null), net(x_t, t, cond)
    for scale in (3.0, 0.0, 1.0):
        calls.clear()
        got = attempt(function, net, x_t, t, cond, null, scale, name="guided")
        compare(got, u + scale * (c - u), f"guided(..., scale={scale:g})", rtol=1e-3, atol=1e-4, mistakes=[
            (c + scale * (c - u), "the other convention (Ho & Salimans' w = s - 1). Here 1 means: no guidance."),
            (c + scale * (u - c), "null and condition are swapped: start at the *unconditional* prediction and go "
             "towards the conditional one."),
            (u + scale * c, "add the *difference* c - u, not c itself."),
            (u + scale * (u - c), "the arrow points the wrong way: from u towards c."),
            (torch.cat([u + scale * (c - u)] * 2)[:3].roll(1, 0), "the rows got mixed up."),
        ])
        if calls != [6]:
            if calls == [3, 3]:
                raise CheckFailed("guided calls the network twice. Stack both halves and call it once: on a GPU one "
                                  "batch of 2B is faster than two of B.")
            raise CheckFailed(f"guided should call the network once, on 2B = 6 rows; it called it on {calls} rows.")
    passed("guided: both predictions from one call, and 1 means no guidance")
