"""Checks of notebook 08: known wrong solutions fail with a message that helps; right ones written another way pass."""

from operator import getitem

import numpy as np
import pytest
import torch
from solutions import spoiled, try_all

from ldm_mini import checks
from ldm_mini.samplers import ddim, dpm_solver, euler
from ldm_mini.schedule import NoiseSchedule


def at(abar, t):
    return abar[t] if t >= 0 else torch.ones_like(abar[0])


def library(abar):
    return NoiseSchedule(1 - abar / torch.cat([torch.ones_like(abar[:1]), abar[:-1]]))


def ddpm(x_t, x0, t, s, abar, noise, level=at, root=torch.sqrt, spread="tilde", power=0.5):
    a, b = level(abar, t), level(abar, s)
    step = a / b
    mean = (root(b) * (1 - step) * x0 + root(step) * (1 - b) * x_t) / (1 - a)
    variance = (1 - step) * (1 - b) / (1 - a) if spread == "tilde" else 1 - step
    return mean + variance.clamp(min=0) ** power * noise


def ddpm_by_precision(x_t, x0, t, s, abar, noise):
    """Bayes' rule: precisions add; the clean image has none to add."""
    if s < 0:
        return x0 + 0 * noise
    a, b = abar[t], abar[s]
    prior, seen = 1 / (1 - b), (a / b) / (1 - a / b)
    variance = 1 / (prior + seen)
    return variance * (prior * b.sqrt() * x0 + seen * x_t / (a / b).sqrt()) + variance.sqrt() * noise


def ddpm_by_library(x_t, x0, t, s, abar, noise):
    t, s = (torch.full((len(x_t),), v) for v in (t, s))
    mean, variance = library(abar).posterior(x0, x_t, t, s)
    return mean + variance.sqrt() * noise


def ddpm_as_ddim(x_t, x0, t, s, abar, noise):
    eps = (x_t - abar[t].sqrt() * x0) / (1 - abar[t]).sqrt()
    return ddim_(x0, eps, t, s, abar, 1.0, noise)


def good_steps(steps, T, spacing):
    count = torch.arange(steps, dtype=torch.float64)
    if spacing == "trailing":
        return (T - count * T / steps).round().long() - 1
    return (count * T / steps).long().flip(0)


def list_steps(steps, T, spacing):
    edges = [round(i * T / steps) for i in range(steps + 1)]
    return torch.tensor([e - 1 for e in edges[:0:-1]] if spacing == "trailing" else edges[-2::-1])


def strided(steps, T, first=0):
    """first=1 is make_ddim_timesteps' formula, which the released code has."""
    return torch.arange(0, T, T // steps).flip(0) + first


def ddim_(x0, eps, t, s, abar, eta, noise, level=at, direction=lambda v, f: (v - f**2).clamp(min=0).sqrt(),
          root=torch.sqrt, power=1, fresh=lambda eta, f: f):
    a, b = level(abar, t), level(abar, s)
    f = eta**power * ((1 - b) / (1 - a)).sqrt() * (1 - a / b).clamp(min=0).sqrt()
    return root(b) * x0 + direction(1 - b, f) * eps + fresh(eta, f) * noise


def ddim_by_library(x0, eps, t, s, abar, eta, noise):
    """The library's own sampler, with a denoiser that says what it is told, and our noise in its generator's place."""
    x_t = abar[t].sqrt() * x0 + (1 - abar[t]).sqrt() * eps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ldm_mini.samplers.draw_noise", lambda like, generator: noise)
        return next(ddim(lambda x, t: (x0, eps), x_t, library(abar), [t] if s < 0 else [t, s], eta=eta))


def euler_by_ddim(x_t, eps, t, s, abar):
    x0 = (x_t - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
    return ddim_(x0, eps, t, s, abar, 0.0, 0 * eps)


def euler_(x_t, eps, t, s, abar, level=at, sign=1, scale=True, back="s", hat=True, slope=None):
    a, b = level(abar, t), level(abar, s)
    hats = [((1 - v) / v).sqrt() if hat else (1 - v).sqrt() for v in (a, b)]
    y = x_t / a.sqrt() if scale else x_t
    slope = eps if slope is None else (x_t - (1 - a).sqrt() * eps) / a.sqrt()
    return {"s": b.sqrt(), "t": a.sqrt(), None: 1.0}[back] * (y + sign * (hats[1] - hats[0]) * slope)


def dpm(x_t, x0, x0_before, before, t, s, abar, line=lambda x, y, h, g: x + h / (2 * g) * (x - y), level=at,
        lam=lambda v: (v / (1 - v)).sqrt().log(), keep=lambda p, q: ((1 - q) / (1 - p)).sqrt(), ends=True, sign=1,
        exp_sign=-1, arrive="s"):
    """DPM-Solver++(2M) with one thing changed."""
    if s < 0 and ends:
        return x0.clone()
    a, b = level(abar, t), level(abar, s)
    h = sign * (lam(b) - lam(a))
    if x0_before is not None:
        x0 = line(x0, x0_before, h, sign * (lam(a) - lam(abar[before])))
    amplitude = {"s": b.sqrt(), "t": a.sqrt(), None: 1.0}[arrive]
    return keep(a, b) * x_t + amplitude * (1 - torch.exp(exp_sign * h)) * x0


def dpm_with_r(x_t, x0, x0_before, before, t, s, abar):
    """The paper's r = h_before / h and its D = (1 + 1/(2r)) x0 - 1/(2r) x0_before."""
    if s < 0:
        return 0 * x_t + x0
    lam = 0.5 * (abar.log() - (1 - abar).log())
    h, D = lam[s] - lam[t], x0
    if before is not None:
        r = (lam[t] - lam[before]) / h
        D = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_before
    return (1 - abar[s]).sqrt() / (1 - abar[t]).sqrt() * x_t - abar[s].sqrt() * torch.expm1(-h) * D


def dpm_by_library(x_t, x0, x0_before, before, t, s, abar):
    """The library's own sampler, started one step earlier, at the x that its first step takes to x_t."""
    steps = [t] if s < 0 else [t, s]
    if before is None:
        return next(iter(dpm_solver(lambda x, t: (x0, None), x_t, library(abar), steps)))
    a, b, sigma = abar[before].sqrt(), abar[t].sqrt(), ((1 - abar[t]) / (1 - abar[before])).sqrt()
    start, said = (x_t - (b - a * sigma) * x0_before) / sigma, iter([x0_before, x0])
    path = dpm_solver(lambda x, t: (next(said), None), start, library(abar), [before, *steps])
    return [next(path) for _ in range(2)][1]


def guided(net, x_t, t, cond, null, scale, swap=False, w=False, difference=True, times=2):
    u, c = net(torch.cat([x_t, x_t]), t.repeat(times), torch.cat([null, cond])).chunk(2)
    if swap:
        u, c = c, u
    return (c if w else u) + scale * (c - u if difference else c)


def guided_unless_needless(net, x_t, t, cond, null, scale):
    """As many programs have it: one half alone where the other has no weight."""
    if scale in (0, 1):
        return net(x_t, t, cond if scale else null)
    return guided(net, x_t, t, cond, null, scale)


def strided_floats(n, T):
    """Right for most n: the rounding errors of an added stride."""
    return torch.from_numpy(np.round(np.arange(T, 0, -T / n)).astype(int) - 1)


def as_released(step, at_s):
    """Stops at the noise of t = 0."""
    return lambda *a: step(*a[:at_s], max(a[at_s], 0), *a[at_s + 1:]) if a[at_s - 1] > 0 else step(*a)


def ends_early(step, at_s, x0):
    return lambda *a: a[x0] if a[at_s] <= 0 else step(*a)


def guided_other_order(net, x_t, t, cond, null, scale):
    both = net(x_t.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([cond, null]))
    return scale * both[:len(t)] + (1 - scale) * both[len(t):]


def shifted(step, where, by):
    """`step` with t or s replaced by its neighbour, where the neighbour exists."""
    def mutant(*args):
        args = list(args)
        args[where] += by if -1 <= args[where] + by else 0
        return step(*args)
    return mutant


CORRECT = {
    checks.ddpm_step: [ddpm, ddpm_by_precision, ddpm_by_library, ddpm_as_ddim],
    checks.sampling_timesteps: [
        good_steps, list_steps, lambda n, T, spacing: NoiseSchedule(torch.full((T,), 0.01)).timesteps(n, spacing),
        lambda n, T, spacing: torch.tensor([-(-i * T // n) + (-1 if spacing == "trailing" else 0) for i in (
            range(n, 0, -1) if spacing == "trailing" else range(n - 1, -1, -1))]),  # the ceiling
        lambda n, T, spacing: torch.tensor([T * (i + (spacing == "trailing")) // n - (spacing == "trailing")
                                            for i in reversed(range(n))]),  # the floor
    ],
    checks.ddim_step: [
        ddim_, ddim_by_library,
        lambda x0, eps, t, s, abar, eta, n: ddim_(x0, eps, t, s, abar, eta, n) if s >= 0 else x0,
    ],
    checks.euler_step: [
        euler_, euler_by_ddim,
        lambda x, eps, t, s, abar: next(euler(lambda x, t: (0, eps), x, library(abar), [t] if s < 0 else [t, s],
                                                view="exploding")),
    ],
    checks.dpm_step: [dpm, dpm_with_r, dpm_by_library],
    checks.batched_guidance: [
        guided, guided_other_order, guided_unless_needless,
        lambda net, x, t, c, n, s: torch.lerp(*net(x.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([n, c])).chunk(2), s),
    ],
}

MUTANTS = {
    checks.ddpm_step: [
        *spoiled(ddpm, (dict(level=getitem), r"abar\[-1\]"), (dict(spread="beta"), "step \\*forward\\*"),
                 (dict(power=1), "standard \\*deviation"), (dict(root=lambda v: v), "\\*roots")),
        (lambda x, x0, *a: ddpm(x0, x, *a), "swapped"),
        (lambda *a: ddpm(*a, spread="beta" if a[3] < 0 else "tilde"), "noise was added at the last step"),
        (lambda *a: ddpm(*a) + (a[3] < 0) * a[5], "noise was added at the last step"),
        (lambda *a: ddpm(*a[:5], 0 * a[5]), "fresh noise is missing"),
        (lambda x, x0, t, s, *a: ddpm(x, x0, t, t - 1, *a), "however far s is"),
        (shifted(ddpm, 3, -1), "off by one"),
        (shifted(ddpm, 2, 1), "off by one"),
        (lambda x, x0, t, s, abar, n: at(abar, s).sqrt() * x0 + (1 - at(abar, s)).sqrt() * n, "forgets x_t"),
        (lambda *a: 1.01 * ddpm(*a), "off by up to"),
        (lambda x, x0, t, s, a, n: ddpm(x, x0, t, s, a, n) if s >= 0 else x0 + (a[s] - a[t]).sqrt() * n, r"abar\[-1\]"),
        (as_released(ddpm, 3), "stops at the noise of t = 0"),
        (ends_early(ddpm, 3, 1), "s = 0 is a noisy step"),
        (lambda *a: ddpm(*a).double(), "dtype"),
        (lambda *a: ddpm(*a[:5], torch.randn_like(a[0])), "off by up to"),
        (lambda x, x0, t, s, abar, n: ddpm(x, x0, t, s, torch.cumprod(1 - torch.linspace(0.002, 0.18, 50), 0), n),
         "off by up to"),  # knows the schedule
        (lambda *a: ddpm(*a) if a[0].ndim == 2 else ddpm(*a[:5], a[5][:1]), "off by up to"),
    ],
    checks.sampling_timesteps: [
        (lambda n, T, p: strided(n, T, first=1), "must contain 0"),
        (lambda n, T, p: strided(n, T, first=1) if n == 300 else good_steps(n, T, p), "too many"),
        (lambda n, T, p: strided(n, T) if p == "leading" else good_steps(n, T, p), "334 timesteps.*too many"),
        (lambda n, T, p: good_steps(n, T, p) + int(p == "trailing"), "last timestep is 999"),
        (lambda n, T, p: good_steps(n, T, p) + int(p == "leading"), "must contain 0"),
        (lambda n, T, p: good_steps(n, T, p) - int(p == "leading"), "below the first"),
        (lambda n, T, p: good_steps(n, T, p).flip(0), "ascends"),
        (lambda n, T, p: strided_floats(n, T) if p == "trailing" else good_steps(n, T, p), "too many"),
        (lambda n, T, p: good_steps(n, T, p).int(), "int64"),
        (lambda n, T, p: good_steps(n, T, p)[None], "timesteps"),
        (lambda n, T, p: (torch.linspace(0, 1, n) ** 2 * (T - T / n)).round().long().flip(0) if p == "leading"
         else good_steps(n, T, p), "equal parts|Equal parts|repeats"),
        (lambda n, T, p: T - 1 - good_steps(n, T, "leading" if p == "trailing" else "trailing").flip(0)
         if n != 7 else good_steps(n, T, p) + (p == "leading"), "must contain 0|nothing but noise"),
        (lambda n, T, p: good_steps(n, T, p).float(), "indices"),
        (lambda n, T, p: good_steps(n, T, p).tolist(), "not list"),
        (lambda n, T, p: torch.linspace(T - 1, 0, n).round().long(), "linspace"),
        (lambda n, T, p: good_steps(n, T, "leading"), "nothing but noise"),
        (lambda n, T, p: good_steps(n, T, "trailing"), "must contain 0"),
        (lambda n, T, p: torch.arange(n).flip(0) if p == "leading" else good_steps(n, T, p), "Equal parts"),
        (lambda n, T, p: good_steps(n, T, p).clamp(max=T // 2) if p == "leading" else good_steps(n, T, p), "repeats"),
    ],
    checks.ddim_step: [
        *spoiled(ddim_, (dict(level=getitem), r"abar\[-1\]"), (dict(direction=lambda v, f: v.sqrt()), "taken out"),
                 (dict(direction=lambda v, f: v.sqrt() - f), "variances subtract"),
                 (dict(root=lambda v: v), "not abar_s"),
                 (dict(root=lambda v: v, direction=lambda v, f: v - f**2), "square \\*roots"),
                 (dict(direction=lambda v, f: v - f**2), "eps carries the \\*root"), (dict(power=2), "another power"),
                 (dict(fresh=lambda eta, f: eta), "amplitude f")),
        (lambda x0, eps, *a: ddim_(eps, x0, *a), "x0 and eps are swapped"),
        (lambda x0, e, t, s, *a: ddim_(x0, e, t, t, *a), "x_t again"),
        (lambda x0, e, t, s, *a: ddim_(x0, e, t, t - 1, *a), "however far s is|off by one"),
        (lambda x0, e, t, s, abar, *a: ddim_(x0, e, t, s, abar, *a) + (at(abar, t).sqrt() - at(abar, s).sqrt()) * x0,
         "level of \\*s"),
        (shifted(ddim_, 3, 1), "however far s is|off by one|x_t again"),
        (shifted(ddim_, 3, -1), "off by one"),
        (lambda *a: ddim_(*a[:5], 0.0, a[6]), "eta is not used"),
        (lambda *a: ddim_(*a[:5], 1.0, a[6]), "eta is not used"),
        (lambda *a: ddim_(*a) + (a[3] < 0) * a[5] * a[6], "noise was added at the last step"),
        (lambda *a: 1.01 * ddim_(*a), "off by up to"),
        (lambda x0, e, t, s, a, *z: ddim_(x0, e, t, s, a, *z) + (0 if s >= 0 else 0 * (1 - a[t] / a[s]).sqrt()),
         r"abar\[-1\]"),
        (as_released(ddim_, 3), "stops at the noise of t = 0"),
        (ends_early(ddim_, 3, 0), "s = 0 is a noisy step"),
        (lambda *a: ddim_(*a).double(), "dtype"),
        (lambda *a: ddim_(*a[:6], torch.randn_like(a[0])), "off by up to"),
        (lambda *a: ddim_(*a[:6], a[6][:1]), "off by up to"),
        (lambda *a: ddim_(*a[:5], round(a[5]), a[6]), "off by up to|eta is not used"),
    ],
    checks.euler_step: spoiled(
        euler_, (dict(level=getitem), r"abar\[-1\]"), (dict(sign=-1), "the sign"), (dict(back=None), "this is y at s"),
        (dict(back="t"), "amplitude of \\*s"), (dict(scale=False), "divide x_t by alpha_t"),
        (dict(scale=False, back=None), "divide x_t by alpha_t"), (dict(hat=False), "not along sigma"),
        (dict(slope="x0"), "not x0"), (dict(hat=False, scale=False, back=None), "no such simple slope")) + [
        (as_released(euler_, 3), "stops at the noise of t = 0"),
        (lambda x, e, t, s, a: (x - (1 - a[t]).sqrt() * e) / a[t].sqrt() if s <= 0 else euler_(x, e, t, s, a),
         "s = 0 is a noisy step"),
        (lambda *a: euler_(*a).double(), "dtype"),
        (lambda x, e, t, s, a: euler_(x, e, t, max(t - 1, -1), a), "however far s is"),
        (lambda x, e, t, s, a: euler_(x, e[:1], t, s, a), "off by up to"),
    ],
    checks.dpm_step: [
        *spoiled(dpm, (dict(sign=-1), "sign of h"), (dict(exp_sign=1), "sign of h"),
                 (dict(lam=lambda v: (v / (1 - v)).sqrt()), "log is missing"),
                 (dict(lam=lambda v: (v / (1 - v)).log()), "is twice"), (dict(arrive="t"), "level of \\*s"),
                 (dict(arrive=None), "alpha_s is missing"),
                 (dict(keep=lambda p, q: (q / p).sqrt()), "sigma_s / sigma_t"),
                 (dict(keep=lambda p, q: ((1 - p) / (1 - q)).sqrt()), "upside down: x_t"),
                 (dict(line=lambda x, y, h, g: x), "first order"),
                 (dict(line=lambda x, y, h, g: x + g / (2 * h) * (x - y)), "r is upside down"),
                 (dict(line=lambda x, y, h, g: x + h / g * (x - y)), "half"),
                 (dict(line=lambda x, y, h, g: x - h / (2 * g) * (x - y)), "wrong way"),
                 (dict(line=lambda x, y, h, g: y + h / (2 * g) * (x - y)), "newer value"),
                 (dict(line=lambda x, y, h, g: x + 0.5 * (x - y)), "equally long"),
                 (dict(line=lambda x, y, h, g: (x + y) / 2), "looks back"), (dict(ends=False), "first order there"),
                 (dict(ends=False, level=getitem), r"abar\[-1\]|off by up to")),
        (lambda *a: dpm(*a, line=lambda x, y, h, g: x + (a[4] - a[5]) / (a[3] - a[4]) / 2 * (x - y)), "not in t"),
        (lambda *a: dpm(*a[:2], None, None, *a[4:], ends=False, level=getitem) if a[5] < 0 else dpm(*a),
         r"abar\[-1\]"),
        (lambda *a: dpm(*a) if a[5] >= 0 else dpm(*a, ends=False, level=getitem), r"abar\[-1\].*"),
        (lambda *a: dpm(*a[:5], max(a[5], 0), a[6]), "stops at the noise of t = 0"),
        (ends_early(dpm, 5, 1), "s = 0 is a noisy step"),
        (lambda *a: a[0].clone() if a[5] < 0 else dpm(*a), "not x_t"),
        (lambda *a: dpm(*a).double(), "dtype"),
    ],
    checks.batched_guidance: [
        *spoiled(guided, (dict(w=True), "other convention"), (dict(swap=True), "swapped"),
                 (dict(difference=False), "difference"), (dict(times=1), "3 timesteps")),
        (lambda *a: guided(*a[:5], -a[5]), "wrong way"),
        (lambda net, x, t, c, n, s: (u := net(x, t, n)) + s * (net(x, t, c) - u), "calls the network twice"),
        (lambda net, x, t, c, n, s: net(x, t, c), "scale is not used"),
        (lambda net, x, t, c, n, s: (b := net(torch.cat([x, x]), t.repeat_interleave(2), torch.cat([n, c])).chunk(2))[0]
         + s * (b[1] - b[0]), "another order"),
        (lambda net, x, t, c, n, s: (u := torch.cat([net(*[v[None] for v in row]) for row in zip(x, t, n)]))
         + s * (torch.cat([net(*[v[None] for v in row]) for row in zip(x, t, c)]) - u), "should call the network once"),
        (lambda net, x, t, c, n, s: guided(net, x, t[:1].expand(len(t)), c, n, s), "off by up to"),
        (lambda net, x, t, c, n, s: net(x, t, c) if s == 3 else guided(net, x, t, c, n, s), "scale is not used"),
        (lambda net, x, t, c, n, s: guided(net, x, t, c, 0 * n, s), "off by up to"),  # a null of zeros
        (lambda net, x, t, c, n, s: guided(net, x, t, c, n[:1].expand_as(n), s), "off by up to"),
        (lambda *a: guided(*a).double(), "dtype"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
