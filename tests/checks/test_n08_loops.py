"""Checks of notebook 08, loops and tools: known wrong solutions fail with a message that helps; right ones pass."""

import torch
from solutions import spoiled, try_all
from torch import nn

from ldm_mini import checks
from ldm_mini.diffusion import to_x0_eps
from ldm_mini.samplers import ddim, dpm_solver
from ldm_mini.schedule import NoiseSchedule


def library(abar):
    abar = abar.double()
    return NoiseSchedule(1 - abar / torch.cat([torch.ones_like(abar[:1]), abar[:-1]]))


def at(abar, t):
    return abar[t] if t >= 0 else torch.ones_like(abar[0])


def ddim_loop(denoise, x, timesteps, abar, eta=0.0, generator=None, how="", end=-1):
    path, start, first = [], x, None
    pairs = [*zip(timesteps, [*timesteps[1:], end])]
    for t, s in pairs[:-1] if how == "short" else pairs[::-1] if how == "up" else pairs:
        s = t - 1 if how == "next door" else s
        x0, eps = denoise(start if how == "stays" else x, torch.full((len(x),), t))
        x0, eps = (eps, x0) if how == "swapped" else (x0, eps)
        a, b = abar[t], at(abar, s)
        f = eta * ((1 - b) / (1 - a)).sqrt() * (1 - a / b).clamp(min=0).sqrt()
        noise = torch.randn(x.shape, generator=None if how == "global" else generator)
        first = noise if first is None else first
        x = b.sqrt() * x0 + (1 - b - f**2).clamp(min=0).sqrt() * eps + f * (first if how == "same" else noise)
        path.append(x)
    return path


def ddim_yields(denoise, x, timesteps, abar, eta=0.0, generator=None):
    yield from ddim(denoise, x, library(abar), timesteps, generator, eta=eta)


def ddim_by_index(denoise, x, timesteps, abar, eta=0.0, generator=None):
    """With an index, noise only where it is wanted, and a tensor in the end."""
    path = torch.empty(len(timesteps), *x.shape)
    for i, t in enumerate(timesteps):
        last = i == len(timesteps) - 1
        x0, eps = denoise(x, torch.tensor([t] * len(x)))
        b = torch.tensor(1.0) if last else abar[timesteps[i + 1]]
        f = eta * torch.sqrt((1 - b) / (1 - abar[t]) * (1 - abar[t] / b))
        x = b**0.5 * x0 + (1 - b - f**2) ** 0.5 * eps
        if eta > 0 and not last:
            x = x + f * torch.randn(x.shape, generator=generator)
        path[i] = x
    return path


def dpm_loop(denoise, x, timesteps, abar, how="", end=-1):
    path, start, before, lam = [], x, None, (abar / (1 - abar)).sqrt().log()
    for t, s in zip(timesteps, [*timesteps[1:], end]):
        s = t - 1 if how == "next door" else s
        now = start if how == "stays" else x
        x0, _ = denoise(now, torch.full((len(x),), t))
        if how == "early":
            before = before and (t, x0)
        x = x0
        if 0 <= s != t:
            h, D = lam[s] - lam[t], x0
            if before is not None and how != "forgets":
                D = x0 + h / (2 * (lam[t] - lam[before[0]])) * (x0 - before[1])
            x = ((1 - abar[s]) / (1 - abar[t])).sqrt() * now - abar[s].sqrt() * torch.expm1(-h) * D
        if before is None or how != "old":
            before = t, x if how == "x" else x0
        path.append(x)
    return path


def dpm_yields(denoise, x, timesteps, abar):
    yield from dpm_solver(denoise, x, library(abar), timesteps)


def inversion(denoise, x, up, abar, how="", pairs=lambda up: zip(up, up[1:]), root=torch.sqrt):
    start = x
    for t, s in pairs(up):
        x0, eps = denoise(start if how == "stays" else x, torch.full((len(x),), s if how == "asks above" else t))
        b = at(abar, t if how == "one level" else s)
        x0, eps = (eps, x0) if how == "swapped" else (x0, eps)
        x = root(b) * x0 + root(1 - b) * eps
    return x


def inversion_by_euler(denoise, x, up, abar):
    """In y = x / alpha, along sigma / alpha."""
    y, hat = x / abar[up[0]].sqrt(), ((1 - abar) / abar).sqrt()
    for t, s in zip(up[:-1], up[1:]):
        _, eps = denoise(y * abar[t].sqrt(), torch.full((len(x),), t))
        y = y + (hat[s] - hat[t]) * eps
    return y * abar[up[-1]].sqrt()


def arc(a, b, u, angle=lambda a, b: torch.acos((a * b).sum() / (a.norm() * b.norm())), over=True):
    w = angle(a, b)
    return (torch.sin((1 - u) * w) * a + torch.sin(u * w) * b) / (torch.sin(w) if over else 1)


def arc_by_gram_schmidt(a, b, u):
    """In the plane of the two directions; lengths are mixed as the arc's formula does."""
    p, q = a / a.norm(), b / b.norm()
    w = torch.arccos(torch.dot(p.flatten(), q.flatten()))
    return (w * (1 - u)).sin() / w.sin() * a + (w * u).sin() / w.sin() * b


def clip(x0, x_t, alpha, sigma, bound, low=-1, high=1, eps=lambda x0, c, x_t, a, s: (x_t - a * c) / s):
    clipped = x0.clamp(low * bound if low is not None else None, high * bound if high is not None else None)
    return clipped, eps(x0, clipped, x_t, alpha, sigma)


def clip_in_place(x0, x_t, alpha, sigma, bound):
    return x0.clamp_(-bound, bound), (x_t - alpha * x0) / sigma


def distance(a, b, lines, order=0, power=2, mean=torch.mean, root=True):
    gap = (a @ lines).sort(order)[0] - (b @ lines).sort(order)[0]
    value = mean(gap.abs() ** power)
    return value.sqrt() if root else value


def distance_by_loop(a, b, lines):
    return (sum(((a @ v).sort()[0] - (b @ v).sort()[0]).pow(2).mean() for v in lines.T) / lines.shape[1]).item() ** 0.5


def mixture(centres, width, x_t, alpha, sigma, variance=lambda a, s, w: a**2 * w**2 + s**2, shrink=True, over=2,
            inside=lambda m, x, a, w, v: m + a * w**2 / v * (x - a * m), below=None, mix=torch.softmax):
    v = variance(alpha, sigma, width)
    d = (x_t[:, None] - (alpha[:, None] if shrink else 1) * centres).square().sum(-1)
    m = mix(-d / (over * v), 1) @ centres
    return inside(m, x_t, alpha, width, v if below is None else below(sigma))


def mixture_by_clusters(centres, width, x_t, alpha, sigma):
    """The mean in each cluster by precisions, then weighed by the clusters' likelihoods."""
    v, rows = (alpha * width) ** 2 + sigma**2, []
    for c in centres:
        both = 1 / width**2 + (alpha / sigma) ** 2 if width else 1
        own = (c / width**2 + alpha * x_t / sigma**2) / both if width else c + 0 * x_t
        rows.append((-((x_t - alpha * c) ** 2).sum(1, keepdim=True) / (2 * v), own))
    weights = torch.stack([logit for logit, _ in rows]).softmax(0)
    return sum(w * own for w, (_, own) in zip(weights, rows))


def variances(denoise, schedule, x0, t, s, eps, more, up=lambda a, x, more: a.sqrt() * x + (1 - a).sqrt() * more,
              guess=lambda x0, believed, eps: believed, ask=lambda t, s: t, to=lambda s: s,
              size=lambda e: e.square().mean(),
              result=lambda drawn, true: (drawn, true), off=lambda x_s, x_t, x0, mean: x_s - mean, start=None):
    """What a step draws, and what it should, with one thing changed."""
    at_t, at_s, at_ask = (torch.full((len(x0),), k) for k in (t, s, ask(t, s)))
    a = schedule.alphas_cumprod[t] / schedule.alphas_cumprod[s]
    x_s = schedule.add_noise(x0, eps, at_s)
    x_t = up(a, x_s, more) if start is None else schedule.add_noise(x0, start(eps, more), at_t)
    x0_, eps_ = denoise(x_t, at_ask)
    mean, variance = schedule.posterior(guess(x0, x0_, eps_), x_t, at_t, to(at_s))
    return result(variance[0].item(), size(off(x_s, x_t, x0_, mean)))


def variances_by_levels(denoise, schedule, x0, t, s, eps, more):
    """DDPM's formulas by hand, and floats."""
    now, then = schedule.alphas_cumprod[[t, s]].float()
    a = now / then
    x_s = then**0.5 * x0 + (1 - then) ** 0.5 * eps
    x_t = a**0.5 * x_s + (1 - a) ** 0.5 * more
    x0_ = denoise(x_t, torch.tensor([t] * len(x0)))[0]
    mean = (then**0.5 * (1 - a) * x0_ + a**0.5 * (1 - then) * x_t) / (1 - now)
    return [((1 - a) * (1 - then) / (1 - now)).item(), nn.functional.mse_loss(x_s, mean).item()]


CORRECT = {
    checks.forgotten_variance: [variances, variances_by_levels],
    checks.ddim_walk: [ddim_loop, ddim_yields, ddim_by_index],
    checks.dpm_walk: [dpm_loop, dpm_yields, lambda *a: torch.stack(dpm_loop(*a))],
    checks.ddim_inversion: [inversion, inversion_by_euler, torch.no_grad()(inversion)],
    checks.slerp: [arc, arc_by_gram_schmidt],
    checks.clipping: [clip, lambda x0, x_t, a, s, c: list(to_x0_eps("x0", x0.clamp(-c, c), x_t, a, s)),
                      lambda x0, x_t, a, s, c: (y := x0.maximum(torch.tensor(-c)).minimum(torch.tensor(c)),
                                                x_t / s - y * a / s)],
    checks.sliced_wasserstein: [distance, distance_by_loop],
    checks.mixture_x0: [mixture, mixture_by_clusters],
}

MUTANTS = {
    checks.forgotten_variance: spoiled(
        variances, (dict(guess=lambda x0, believed, eps: x0), "does not know x0"),
        (dict(guess=lambda x0, believed, eps: eps), "the first of the two"), (dict(ask=lambda t, s: s), "x_t at t"),
        (dict(to=lambda s: None), "to t - 1"), (dict(up=lambda a, x, more: a * x + (1 - a) * more), r"sqrt\(a\)"),
        (dict(start=lambda eps, more: eps), "noise of its own"), (dict(start=lambda eps, more: more), "not from x0"),
        (dict(off=lambda x_s, x_t, x0, mean: x_s - x_s.mean()), "not from its own"),
        (dict(off=lambda x_s, x_t, x0, mean: x_t - mean), "one wants to know"),
        (dict(off=lambda x_s, x_t, x0, mean: x_s - x0), "believed x0"),
        (dict(size=lambda e: e.square().sum()), "not the sum"), (dict(size=lambda e: e.abs().mean()), "squares"),
        (dict(size=lambda e: e.square().mean().sqrt()), "no root"), (dict(size=lambda e: e.square()), "one number"),
        (dict(result=lambda drawn, true: (true, drawn)), "changed places"),
        (dict(result=lambda drawn, true: (drawn**0.5, true)), "no root"),
        (dict(result=lambda drawn, true: (drawn, 1.01 * true)), "off by"),
        (dict(result=lambda drawn, true: (1.01 * drawn, true)), "off by"),
        (dict(result=lambda drawn, true: true), "two things")) + [
        (lambda d, sch, x0, t, s, e, m: (1 - sch.alphas_cumprod[t] / sch.alphas_cumprod[s],
                                         variances(d, sch, x0, t, s, e, m)[1]), "the step up"),
        (lambda d, sch, x0, t, s, e, m: variances(d, sch, x0, t, s, e, m, up=lambda a, x, more: (
            sch.alphas_cumprod[t].sqrt() * x + (1 - sch.alphas_cumprod[t]).sqrt() * more)), "abar_t / abar_s")],
    checks.ddim_walk: [
        *spoiled(ddim_loop, ("short", "states; it should be"), ("stays", "starts from the first x"),
                 ("next door", "not to t - 1"), ("swapped", "x0, then eps"), ("global", "nothing was drawn"),
                 ("same", "same noise"), ("up", "the other way round"), (dict(end=0), "stops at the noise of t = 0")),
        (lambda d, x, t, a, e=0, g=None: ddim_loop(d, x, t, a, 0.0, g), "eta is not used|nothing was drawn"),
        (lambda d, x, t, a, e=0, g=None: ddim_loop(d, x, t, a, 1.0, g), "eta is not used"),
        (lambda d, x, t, a, e=0, g=None: ddim_loop(d, x, t, a, float(e > 0), g), "eta is not used"),
        (lambda d, x, t, *a: [x, *ddim_loop(d, x, t, *a)], "begins with the noise"),
        (lambda *a: ddim_loop(*a)[-1], "after \\*every\\* step"),
        (lambda *a: [v.double() for v in ddim_loop(*a)], "dtype"),
        (lambda d, *a: ddim_loop(lambda x, t: d(x, t[0]), *a), "int64 t for each row"),
        (lambda d, *a: ddim_loop(lambda x, t: (d(x, t)[0], d(x, t)[1]), *a), "once a step"),
        (lambda d, x, t, *a: ddim_loop(lambda y, u: d(y, (u - 1).clamp(min=0)), x, t, *a), "where x is"),
        (lambda d, x, t, a, e=0, g=None: ddim_loop(d, x, t, torch.cumprod(1 - torch.linspace(0.002, 0.18, 50), 0)[
            torch.arange(len(a)).clamp(max=49)], e, g), "off by"),
    ],
    checks.dpm_walk: [
        *spoiled(dpm_loop, ("forgets", "first order everywhere"), ("old", "anew after"), ("early", "remember \\*after"),
                 ("stays", "starts from the first x"), ("next door", "not to t - 1"), ("x", "not x"),
                 (dict(end=0), "stops at the noise of t = 0")),
        (lambda *a: dpm_loop(*a)[:-1], "4 states"), (lambda *a: dpm_loop(*a)[-1], "after \\*every\\* step"),
        (lambda d, *a: dpm_loop(lambda x, t: (d(x, t)[0], d(x, t)[1]), *a), "once a step"),
        (lambda d, x, t, a: ddim_loop(d, x, t, a), "first order everywhere"),
        (lambda *a: [v.double() for v in dpm_loop(*a)], "dtype"),
        (lambda *a: [1.01 * v for v in dpm_loop(*a)], "off by"),
        (lambda *a: None, "returned None"),
    ],
    checks.ddim_inversion: [
        *spoiled(inversion, ("stays", "starts from the first x"), ("asks above", "ask about t"),
                 ("one level", "at the level of s"), ("swapped", "goes with"), (dict(root=lambda v: v), "square roots"),
                 (dict(pairs=lambda up: zip(up[:0:-1], up[-2::-1])), "goes down"),
                 (dict(pairs=lambda up: zip(up, [*up[1:], -1])), "no step follows"),
                 (dict(pairs=lambda up: zip(up, up[1:-1])), "last step is missing"),
                 (dict(pairs=lambda up: zip([0, *up], up)), "leaves from there|off by")),
        (lambda *a: inversion(*a).double(), "dtype"), (lambda *a: [inversion(*a)], "not list"),
        (lambda d, x, up, a: x, "as it went in"),
        (lambda d, *a: inversion(lambda x, t: d(x, t[:1]), *a), "int64 t for each row"),
    ],
    checks.slerp: [
        *spoiled(arc, (dict(over=False), "division"), (dict(angle=lambda a, b: (a * b).sum() / (a.norm() * b.norm())),
                                                       "arccosine"),
                 (dict(angle=lambda a, b: torch.acos((a * b).sum())), "NaN|off by"),
                 (dict(angle=lambda a, b: torch.acos((a * b).sum(-1, keepdim=True) / (
                     a.norm(dim=-1, keepdim=True) * b.norm(dim=-1, keepdim=True)))), "one angle"),
                 (dict(angle=lambda a, b: torch.tensor(torch.pi / 2)), "near 90")),
        (lambda a, b, u: arc(b, a, u), "backwards"), (torch.lerp, "straight line"),
        (lambda a, b, u: (y := torch.lerp(a, b, u)) * a.norm() / y.norm(), "stretched"),
        (lambda a, b, u: (y := torch.lerp(a, b, u)) / y.norm(), "length is lost"),
        (lambda a, b, u: (y := arc(a, b, u)) / y.norm(), "length is lost"),
        (lambda a, b, u: arc(a / a.norm(), b / b.norm(), u), "off by|length is lost"),
        (lambda a, b, u: arc(a, b, 0.5), "off by"), (lambda *a: arc(*a).double(), "dtype"),
    ],
    checks.clipping: [
        *spoiled(clip, (dict(low=None), "lower bound"), (dict(high=None), "upper bound"), (dict(low=0), "from -bound"),
                 (dict(eps=lambda x0, c, x, a, s: (x - a * x0) / s), "from before"),
                 (dict(eps=lambda x0, c, x, a, s: x - a * c), "divide by sigma"),
                 (dict(eps=lambda x0, c, x, a, s: (x - c) / s), "as alpha x0"),
                 (dict(eps=lambda x0, c, x, a, s: (x - s * c) / a), "swapped"),
                 (dict(eps=lambda x0, c, x, a, s: (x + a * c) / s), "sign"),
                 (dict(eps=lambda x0, c, x, a, s: ((x - a * c) / s).clamp(-1, 1)), "no bounds"),
                 (dict(eps=lambda x0, c, x, a, s: ((x - a * c) / s).double()), "dtype")),
        (lambda *a: clip(*a[:4], 1.0), "argument"), (lambda *a: clip(*a)[0], "two things"),
        (lambda *a: clip(*a)[::-1], "first x0"), (lambda *a: (a[0], clip(*a)[1]), "not clipped"),
        (lambda *a: (a[4] * a[0].tanh(), clip(*a)[1]), "stays as it is"), (clip_in_place, "in place"),
    ],
    checks.sliced_wasserstein: [
        *spoiled(distance, (dict(order=1), "dim 0"), (dict(root=False), "root is missing"),
                 (dict(power=1, root=False), "Wasserstein-1"), (dict(mean=torch.sum), "not the sum")),
        (lambda a, b, v: ((a - b) @ v).square().mean().sqrt(), "not sorted"),
        (lambda a, b, v: ((a.sort(0)[0] - b.sort(0)[0]) @ v).square().mean().sqrt(), "first project"),
        (lambda a, b, v: (a.sort(0)[0] - b.sort(0)[0]).square().mean().sqrt(), "project on the lines"),
        (lambda a, b, v: ((a.mean(0) - b.mean(0)) @ v).square().mean().sqrt(), "means alone"),
        (lambda a, b, v: ((a @ v).sort(0)[0] - (b @ v).sort(0)[0]).square().mean(0), "one number"),
        (lambda a, b, v: ((a @ v).sort(0)[0] - (b @ v).sort(0)[0]).square().mean(0).sqrt().mean(), "before the root"),
        (lambda a, b, v: ((a @ v).sort(0)[0] - (b @ v).sort(0)[0]).mean().abs(), "cancel"),
        (lambda a, b, v: 1.01 * distance(a, b, v), "off by"),
    ],
    checks.mixture_x0: [
        *spoiled(mixture, (dict(inside=lambda m, x, a, w, v: m), "inside"),
                 (dict(variance=lambda a, s, w: s**2, below=lambda s: 1e9), "off by|inside"),
                 (dict(over=1), "2 is missing"),
                 (dict(variance=lambda a, s, w: w**2 + s**2), "alpha shrinks the width|off by"),
                 (dict(below=lambda s: s**2), "whole variance"), (dict(shrink=False), "shrinks the centres"),
                 (dict(over=-2), "near clusters"),
                 (dict(inside=lambda m, x, a, w, v: m + a * w**2 / v * (x - m)), "compared with alpha"),
                 (dict(inside=lambda m, x, a, w, v: m + w**2 / v * (x - a * m)), "carries alpha"),
                 (dict(inside=lambda m, x, a, w, v: m + a * w / v * (x - a * m)), "has width"),
                 (dict(mix=lambda d, dim: d.exp() / d.exp().sum(dim, keepdim=True)), "underflow|exp becomes 0"),
                 (dict(mix=lambda d, dim: nn.functional.one_hot(d.argmax(dim), d.shape[dim]).float()), "for sure")),
        (lambda c, w, x, a, s: a * mixture(c, w, x, a, s), "no alpha"),
        (lambda c, w, x, a, s: mixture(c, w, x, a, s).double(), "dtype"),
        (lambda c, w, x, a, s: mixture(c, 0.0, x, a, s), "off by|inside"),
        (lambda c, w, x, a, s: mixture(c, w, x, a[:1], s[:1]), "off by"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
