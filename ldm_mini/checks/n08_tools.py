"""Checks of notebook 08, around samplers: an arc of noises, clipping, a distance of clouds, what a step forgets."""

import math

import torch

from ..schedule import NoiseSchedule
from .checking import CheckFailed, attempt, compare, number, passed, several
from .n06_walks import Oracle
from .n08_samplers import SHAPES
from .properties import fresh, fresh_whole, same_dtype


def slerp(function):
    """`function(a, b, u)`: a, b (C,h,w), 0 <= u <= 1 -> the point of the arc from a to b, of the same shape."""
    draw = fresh()
    for shape, scale in (((4, 3, 3), 1.0), ((12,), 2.5), ((2, 5), 0.3)):
        a, b = draw(*shape), scale * draw(*shape)
        for u in (0.0, 0.3, 0.5, 0.9, 1.0):
            what, dot = f"slerp(a, b, {u:g})", (a * b).sum()
            arc = lambda angle, u=u, a=a, b=b: (
                torch.sin((1 - u) * angle) * a + torch.sin(u * angle) * b) / torch.sin(angle)
            angle, line = torch.acos(dot / (a.norm() * b.norm())), torch.lerp(a, b, u)
            got, right = attempt(function, a, b, u, name="slerp"), arc(angle)
            if isinstance(got, torch.Tensor) and got.shape == a.shape and got.isnan().any():
                raise CheckFailed(f"{what} is NaN: the cosine of the angle is a . b over *both* lengths: it lies "
                                  "within -1 and 1.")
            per_row = arc(torch.acos((a * b).sum(-1, keepdim=True) / (
                a.norm(dim=-1, keepdim=True) * b.norm(dim=-1, keepdim=True))))
            compare(got, right, what, rtol=1e-3, atol=1e-4, mistakes=[
                (arc(angle, 1 - u), "backwards: u = 0 is a, and u = 1 is b."),
                (line, "this is the straight line: it cuts through the inside."),
                (line * (a.norm() + u * (b.norm() - a.norm())) / line.norm(), "a stretched line has the right length, "
                 "but it does not go along the arc evenly."),
                (line * a.norm() / line.norm(), "a stretched line has the right length, but it does not go along the "
                 "arc evenly."),
                (line / line.norm(), "the length is lost: only the *angle* wants normalised vectors."),
                (right / right.norm(), "the length is lost: only the *angle* wants normalised vectors."),
                (right * torch.sin(angle), "the division by sin(angle) is missing."),
                (arc(dot / (a.norm() * b.norm())), "this is the cosine: the angle is its arccosine."),
                (per_row, "one angle for the whole noise, not one for each row: sum over everything."),
                (math.cos(u * math.pi / 2) * a + math.sin(u * math.pi / 2) * b, "the angle between two noises is near "
                 "90 degrees, but not exactly that: compute it."),
            ])
            same_dtype(got, a, what)
    passed("slerp: along the shell, not through the inside")


def clipping(function):
    """`function(x0, x_t, alpha, sigma, bound)`: x0, x_t (B,...) -> x0 within the bounds, and its eps."""
    draw = fresh()
    for shape, bound in (((4, 3), 1.0), ((2, 3, 4, 4), 0.6)):
        x0, x_t = 1.5 * draw(*shape), draw(*shape)
        alpha = (0.2 + 0.7 * torch.sigmoid(draw(shape[0]))).view(-1, *[1] * (len(shape) - 1))
        sigma = (1 - alpha**2).sqrt()
        got = attempt(function, x0, x_t, alpha, sigma, bound, name="clip_belief")
        got = several(got, "clip_belief", "two things: the clipped x0, and the eps that agrees with it")
        clipped, told = x0.clamp(-bound, bound), "clip_belief(x0, x_t, alpha, sigma, bound)"
        compare(got[0], clipped, f"the x0 of {told}", mistakes=[
            (x0, "it was not clipped."), (x0.clamp(-1, 1), "the bound is an argument."),
            (x0.clamp(max=bound), "a pixel has a lower bound, too."), (x0.clamp(min=-bound), "a pixel has an upper "
             "bound, too."),
            (x0.clamp(0, bound), "pixels here go from -bound to bound."),
            (bound * x0.tanh(), "clip it: what lies within the bounds stays as it is."),
            (x0 / x0.abs().max() * bound, "clip it: what lies within the bounds stays as it is."),
            ((x_t - alpha * clipped) / sigma, "first x0, then eps."),
        ])
        same_dtype(got[0], x0, f"the x0 of {told}")
        compare(got[1], (x_t - alpha * clipped) / sigma, f"the eps of {told}", rtol=1e-3, atol=1e-4, mistakes=[
            ((x_t - alpha * x0) / sigma, "it belongs to the x0 from before: then x_t = alpha x0 + sigma eps no longer "
             "holds. Compute it from the *clipped* x0."),
            (((x_t - alpha * x0) / sigma).clamp(-bound, bound), "eps is noise: it has no bounds."),
            (((x_t - alpha * clipped) / sigma).clamp(-bound, bound), "eps is noise: it has no bounds."),
            (x_t - alpha * clipped, "this is sigma eps: divide by sigma."),
            ((x_t - clipped) / sigma, "the signal enters as alpha x0."),
            ((x_t - sigma * clipped) / alpha, "alpha and sigma are swapped: x_t = alpha x0 + sigma eps."),
            ((x_t + alpha * clipped) / sigma, "the sign: what is not signal is noise."),
        ])
        same_dtype(got[1], x0, f"the eps of {told}")
    passed("clip_belief: x0 within its bounds, and a noise that agrees")


def sliced_wasserstein(function):
    """`function(a, b, lines)`: a, b (N,2), lines (2,L) unit vectors -> sliced Wasserstein-2 distance, a number."""
    draw = fresh()
    for count, width in ((9, 5), (4, 7)):
        a, b = draw(count, 2), 0.5 * draw(count, 2) + 1
        lines = torch.nn.functional.normalize(draw(2, width), dim=0)
        p, q = a @ lines, b @ lines
        gap = p.sort(0)[0] - q.sort(0)[0]
        got = number(attempt(function, a, b, lines, name="wasserstein"), "wasserstein")
        compare(got, gap.square().mean().sqrt(), "wasserstein(a, b, lines)", mistakes=[
            ((p - q).square().mean().sqrt(), "the points are not sorted: on each line, the smallest goes to the "
             "smallest, and so on."),
            (gap.square().mean(), "the root is missing."),
            (gap.square().sum().sqrt(), "the mean over points and lines, not the sum."),
            (gap.square().sum(), "the root of the *mean* over points and lines."),
            (gap.abs().mean(), "this is Wasserstein-1: square, take the mean, then the root."),
            (gap.square().mean(0).sqrt().mean(), "the mean over the lines is taken of the squares, before the root."),
            (gap.mean().abs(), "pluses and minuses cancel: square first."),
            ((p.sort(1)[0] - q.sort(1)[0]).square().mean().sqrt(), "sort the points along each line (dim 0), not the "
             "lines."),
            (((a.sort(0)[0] - b.sort(0)[0]) @ lines).square().mean().sqrt(), "first project, then sort."),
            ((a.sort(0)[0] - b.sort(0)[0]).square().mean().sqrt(), "project on the lines first: a @ lines."),
            ((p.mean(0) - q.mean(0)).square().mean().sqrt(), "this compares the means alone."),
        ])
    passed("wasserstein: how far two clouds are apart, line by line")


def mixture_x0(function):
    """`function(centres, width, x_t, alpha, sigma)`: E[x0 | x_t] (B,D) where x0 ~ N(c, width^2), c one of (N,D)."""
    draw = fresh()
    for width, count, size, dim in ((0.4, 3, 6, 2), (0.15, 5, 4, 3), (0.0, 4, 5, 2)):
        alpha = 0.2 + 0.7 * torch.sigmoid(draw(size, 1))
        _hold_mixture(function, width, draw(count, dim), draw(size, dim), alpha)
    # far from all centres, nearly no noise: each exp underflows to 0, and 0 / 0 follows
    centres, far = draw(3, 2), 40 + draw(4, 2)
    got = attempt(function, centres, 0.1, far, *torch.tensor([[[0.999]] * 4, [[0.0447]] * 4]), name="mixture_x0")
    if isinstance(got, torch.Tensor) and not got.isfinite().all():
        raise CheckFailed("mixture_x0 is NaN far from all centres: each exp becomes 0, and 0 / 0 follows. "
                          "torch.softmax subtracts the largest exponent first.")
    passed("mixture_x0: which cluster, and where in it")


def _hold_mixture(function, width, centres, x_t, alpha):
    sigma = (1 - alpha**2).sqrt()

    def mean(variance, shrink=alpha, over=2.0):
        d = (x_t[:, None] - (shrink[:, None] if shrink is not None else 1) * centres).square().sum(-1)
        return torch.softmax(-d / (over * variance), dim=1) @ centres

    variance = alpha**2 * width**2 + sigma**2
    inside = lambda m, v=variance: m + alpha * width**2 / v * (x_t - alpha * m)
    got, what = attempt(function, centres, width, x_t, alpha, sigma, name="mixture_x0"), f"mixture_x0(width={width:g})"
    compare(got, inside(mean(variance)), what, rtol=1e-3, atol=1e-4, mistakes=[
        (mean(variance), "this is the mean of the clusters' centres: *inside* a cluster x_t says more."),
        (inside(mean(sigma**2)), "a cluster's x_t varies by alpha^2 width^2 + sigma^2: the width is missing in the "
         "weights."),
        (inside(mean(width**2 + sigma**2)), "alpha shrinks the width, too: alpha^2 width^2 + sigma^2."),
        (inside(mean(variance), sigma**2), "the share in the second term has the whole variance below: alpha^2 width^2 "
         "+ sigma^2."),
        (inside(mean(variance.sqrt())), "divide by the *variance*."),
        (inside(mean(variance, over=1.0)), "a Gaussian's exponent is -distance^2 / (2 variance); the 2 is missing."),
        (inside(mean(variance, shrink=None)), "noising shrinks the centres: alpha * centre."),
        (inside(mean(-variance)), "the sign: near clusters weigh more."),
        (mean(variance) + alpha * width**2 / variance * (x_t - mean(variance)), "x_t is compared with alpha * centre."),
        (mean(variance) + width**2 / variance * (x_t - alpha * mean(variance)), "the second term carries alpha."),
        (mean(variance) + alpha * width / variance * (x_t - alpha * mean(variance)), "the second term has width^2."),
        (alpha * inside(mean(variance)), "this is the mean of alpha x0; the clean x0 has no alpha."),
        (inside(centres[(x_t[:, None] - alpha[:, None] * centres).square().sum(-1).argmin(1)]), "this takes the "
         "nearest cluster for sure: weigh them all."),
    ])
    same_dtype(got, x_t, what)


def forgotten_variance(function):
    """`function(denoise, schedule, x0, t, s, eps, more)` -> the variance that DDPM's step draws, and the true one."""
    draw, some = fresh(), fresh_whole()
    for last, T, shape in ((0.18, 50, (5, 3)), (0.12, 64, SHAPES[1])):
        schedule = NoiseSchedule(torch.linspace(0.002, last, T, dtype=torch.float64))
        oracle = Oracle(draw, shape, schedule.alphas_cumprod)
        for t, s in ((40, 12), (30, 29 - some(5, 20))):
            x0, eps, more = (draw(*shape) for _ in range(3))
            got = attempt(function, oracle, schedule, x0, t, s, eps, more, name="step_variances")
            got = several(got, "step_variances", "two things: the variance that is drawn, and the true one")
            known = lambda change: _variances(oracle, schedule, x0, t, s, eps, more, change)  # noqa: B023
            right, a = known(""), schedule.alphas_cumprod
            compare(number(got[0], "what is drawn"), right[0], "the variance that is drawn", rtol=1e-3, mistakes=[
                (right[1], "the two have changed places: first what is drawn, then the true one."),
                (right[0].sqrt(), "this is the standard deviation: no root."),
                (1 - a[t] / a[s], "this is the variance of the step up; what is drawn comes second from "
                 "schedule.posterior."),
                (known("next door")[0], "this is a step to t - 1: hand s to schedule.posterior, too."),
            ])
            compare(number(got[1], "the true one"), right[1], "the true variance", rtol=1e-3, mistakes=(
                (known(change)[1], message) for change, message in VARIANCE_MISTAKES.items()))
    passed("step_variances: a long step forgets the doubt about x0")


VARIANCE_MISTAKES = {
    "known x0": "the sampler does not know x0: the step's mean is made from what `denoise` believes.",
    "eps": "the posterior wants x0, the first of the two things that denoise returns.",
    "asked at s": "ask `denoise` about x_t at t.",
    "own mean": "how far x_s lies from the *step's* mean, not from its own.",
    "believed": "x_s is compared with the mean that schedule.posterior gives, not with the believed x0.",
    "x_t": "it is x_s that one wants to know: how far *it* lies from the mean.",
    "same noise": "x_t is made from x_s: one step up, with noise of its own (`more`).",
    "from x0": "x_t is made from x_s, not from x0: one step up.",
    "no roots": "a is a variance: the step up is sqrt(a) x_s + sqrt(1 - a) more.",
    "whole noise": "the step up starts at x_s: a is abar_t / abar_s.",
    "root": "this is the standard deviation: no root.",
    "sum": "the mean over all rows and numbers, not the sum.",
    "absolute": "a variance is a mean of *squares*.",
    "next door": "this is a step to t - 1: hand s to schedule.posterior, too.",
}


def _variances(denoise, schedule, x0, t, s, eps, more, change=""):
    """What notebook 08 measures of one long step, with one thing changed."""
    now, then = (torch.full((len(x0),), k) for k in (t, s))
    abar = schedule.alphas_cumprod
    a = abar[t] / (1 if change == "whole noise" else abar[s])
    x_s, root = schedule.add_noise(x0, eps, then), (lambda v: v) if change == "no roots" else torch.sqrt
    x_t = {"same noise": lambda: schedule.add_noise(x0, eps, now), "from x0": lambda: schedule.add_noise(x0, more, now)
           }.get(change, lambda: root(a) * x_s + root(1 - a) * more)()
    believed, noise = denoise(x_t, then if change == "asked at s" else now)
    guess = {"known x0": x0, "eps": noise}.get(change, believed)
    mean, variance = schedule.posterior(guess, x_t, now, None if change == "next door" else then)
    middle = {"own mean": x_s.mean(), "believed": believed}.get(change, mean)
    off = (x_t if change == "x_t" else x_s) - middle
    off = off.abs() if change == "absolute" else off.square()
    true = off.sum() if change == "sum" else off.mean()
    return variance.flatten()[0], true.sqrt() if change == "root" else true
