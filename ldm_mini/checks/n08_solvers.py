"""Checks of notebook 08, solvers of the flow. Here s < t is the timestep a step goes to; s = -1 is the clean image."""

import torch

from .checking import CheckFailed, attempt, compare, passed
from .n08_samplers import ABARS, LATE, RELEASED, SHAPES, WRAPPED, _level
from .properties import fresh, same_dtype


def euler_step(function):
    """`function(x_t, eps, t, s, abar)`: Euler's step for y = x / alpha along sigma / alpha; -> x_s, as x_t."""
    draw = fresh()
    for t, s in ((30, 29), (44, 12), (20, 0), (6, -1)):
        for abar, shape in zip(ABARS, SHAPES):
            x_t, eps = draw(*shape), draw(*shape)
            a, b = abar[t], _level(abar, s)
            alpha_t, sigma_t, alpha_s, sigma_s = a.sqrt(), (1 - a).sqrt(), b.sqrt(), (1 - b).sqrt()
            length = sigma_s / alpha_s - sigma_t / alpha_t
            y, what = x_t / alpha_t + length * eps, f"euler_step(x_t, eps, {t}, {s}, abar)"
            to = lambda b, x=x_t, e=eps, a=a: b.sqrt() * (  # noqa: B023
                x / a.sqrt() + (((1 - b) / b).sqrt() - ((1 - a) / a).sqrt()) * e)
            got = attempt(function, x_t, eps, t, s, abar, name="euler_step")
            compare(got, alpha_s * y, what, rtol=1e-3, atol=1e-4, mistakes=[
                (to(abar[s]), WRAPPED if s < 0 else LATE),
                (to(abar[0]), RELEASED if s < 0 else LATE),
                (to(abar[max(t - 1, 0)]), "this is a step to t - 1, however far s is: use abar[s]."),
                ((x_t - sigma_t * eps) / alpha_t, "s = 0 is a noisy step like others; only s = -1 is the clean image."),
                (alpha_s * (x_t / alpha_t - length * eps), "the sign: the step is sigma_hat_s - sigma_hat_t, which is "
                 "negative. Noise gets less."),
                (y, "this is y at s. Go back to x: multiply by alpha_s."),
                (alpha_t * y, "go back with the amplitude of *s*: x_s = alpha_s * y."),
                (alpha_s * (x_t + length * eps), "the slope is that of y = x / alpha: divide x_t by alpha_t first."),
                (x_t + length * eps, "the slope is that of y = x / alpha: divide x_t by alpha_t first, and go back."),
                (alpha_s * (x_t / alpha_t + (sigma_s - sigma_t) * eps), "y moves along sigma / alpha, not along "
                 "sigma."),
                (alpha_s * (x_t / alpha_t + length * (x_t - sigma_t * eps) / alpha_t), "the slope dy/dsigma_hat is "
                 "eps, not x0."),
                (x_t + (sigma_s - sigma_t) * eps, "x itself has no such simple slope: step y = x / alpha along "
                 "sigma / alpha."),
            ])
            same_dtype(got, x_t, what)
    passed("euler_step: one straight piece of the flow")


def dpm_step(function):
    """`function(x_t, x0, x0_before, before, t, s, abar)`: DPM-Solver++(2M), timesteps before > t > s >= -1 -> x_s.

    The first step has x0_before = before = None and is of first order, as is the step to the clean image, s = -1.
    """
    cases = (("the first step", None, 40, 33), ("a step in the middle", 40, 33, 20), ("a longer step", 36, 33, 8),
             ("a step to s = 0", 20, 12, 0), ("the last step", 9, 4, -1), ("the only step", None, 49, -1))
    for case in cases:
        for abar, shape in zip(ABARS, SHAPES):
            _hold_dpm(function, *case, abar, shape)
    passed("dpm_step: exact but for x0, and x0 is a straight line; first order at both ends")


def _hold_dpm(function, name, before, t, s, abar, shape):
    draw = fresh()
    x_t, x0, old = (draw(*shape) for _ in range(3))
    lam = (abar / (1 - abar)).sqrt().log()
    got = attempt(function, x_t, x0, None if before is None else old, before, t, s, abar, name="dpm_step")
    call = f"dpm_step, {name} ({t} -> {s})"

    def step(s, line=True):
        h, D = lam[s] - lam[t], x0
        if before is not None and line:
            D = x0 + h / (2 * (lam[t] - lam[before])) * (x0 - old)
        kept = ((1 - abar[s]) / (1 - abar[t])).sqrt()
        return kept * x_t + abar[s].sqrt() * -torch.expm1(-h) * D, D, h

    if s < 0:
        if isinstance(got, torch.Tensor) and not got.isfinite().all():
            raise CheckFailed(f"{call} is not finite. At the clean image lambda, and so h, is infinite: a line "
                              "cannot be drawn that far. Take first order there; its limit is x0 itself.")
        compare(got, x0, call, rtol=1e-3, atol=1e-4, mistakes=[
            (step(-1, line=False)[0], WRAPPED), (step(-1)[0], f"{WRAPPED} For s = -1, return x0."),
            (step(0, line=False)[0], RELEASED), (step(0)[0], RELEASED),
            (x_t, "s = -1 is the clean image: the limit is x0, not x_t.")])
    else:
        right, D, h = step(s)
        mistakes = [(x0, "s = 0 is a noisy step like others; only s = -1 is the clean image.")]
        mistakes += _wrong_dpm_factors(abar, x_t, D, t, s, h)
        if before is not None:
            mistakes += _wrong_dpm_lines(abar, x_t, x0, old, lam, before, t, s)
        compare(got, right, call, rtol=1e-3, atol=1e-4, mistakes=mistakes)
    same_dtype(got, x_t, call)


def _wrong_dpm_factors(abar, x_t, D, t, s, h):
    """Mistakes in sigma_s / sigma_t x_t + alpha_s (1 - exp(-h)) D, whatever D is."""
    alpha_t, sigma_t, alpha_s, sigma_s = abar[t].sqrt(), (1 - abar[t]).sqrt(), abar[s].sqrt(), (1 - abar[s]).sqrt()
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


def _wrong_dpm_lines(abar, x_t, x0, old, lam, before, t, s):
    """Mistakes in D, the x0 extrapolated from its last two values."""
    h, h_old, snr = lam[s] - lam[t], lam[t] - lam[before], (abar / (1 - abar)).sqrt()
    no_log = (snr[s] - snr[t]) / (snr[t] - snr[before]) / 2
    factor, kept = abar[s].sqrt() * -torch.expm1(-h), ((1 - abar[s]) / (1 - abar[t])).sqrt()
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
    no_log_factor = abar[s].sqrt() * -torch.expm1(snr[t] - snr[s])
    return [(kept * x_t + factor * D, message) for D, message in wrong] + [
        (kept * x_t + no_log_factor * (x0 + no_log * (x0 - old)), "the log is missing: lambda = log(alpha / sigma).")]
