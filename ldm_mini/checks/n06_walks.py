"""Checks of notebook 06, the ways between data and noise: there, back, and what Bayes' rule knows of the way back."""

from itertools import chain

import torch
from torch import Tensor

from .checking import CheckFailed, attempt, compare, number, passed, several
from .n06_diffusion import SCHEDULES
from .properties import fresh, generator, same_dtype

DRAWS = "nothing was drawn from `generator`: torch.randn(x.shape, generator=generator)."


def copied(source: torch.Generator) -> torch.Generator:
    """Another generator, about to give the same numbers."""
    return torch.Generator().set_state(source.get_state())


class Oracle:
    """A `denoise(x_t, t) -> (x0, eps)` that nobody knows by heart; `asked` is what it was asked, one list of t a call.

    It keeps the contract x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps, for points and pictures.
    """

    def __init__(self, draw, shape, abar: Tensor):
        self.mix, self.abar, self.asked, self.__name__ = draw(shape[-1], shape[-1]), abar.float(), [], "denoise"

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(t, Tensor) or t.dtype != torch.int64 or t.shape != x.shape[:1]:
            raise ValueError("denoise(x, t) wants an int64 t for each row of x, torch.full((len(x),), t)")
        self.asked.append(t.tolist())
        a, late = (v.view(-1, *[1] * (x.ndim - 1)) for v in (self.abar[t], 0.03 * t))
        x0 = torch.tanh(x @ self.mix + late)
        return x0, (x - a.sqrt() * x0) / (1 - a).sqrt()


def states(function, *inputs, count: int, name: str) -> list[Tensor]:
    """What a learner's sampler passes on its way: `count` tensors, each as its second input. It may be a generator."""
    start = inputs[1]

    def listed(*inputs):
        got = function(*inputs)
        alone = got is None or isinstance(got, Tensor) and got.shape == start.shape
        return got if alone else list(got)

    got = attempt(listed, *inputs, name=name)
    if not isinstance(got, list):
        raise CheckFailed(f"{name} returned None. Did you forget the `return`?" if got is None else
                          f"{name} returned one tensor: give the x after *every* step, as a list (or `yield` them).")
    if len(got) == count + 1 and isinstance(got[0], Tensor) and torch.equal(got[0], start):
        raise CheckFailed(f"{name} begins with the noise that it was given: only what comes *after* each step counts.")
    if len(got) != count:
        raise CheckFailed(f"{name} gave {len(got)} states; it should be {count}, one after each step. The last of them "
                          "is the clean end.")
    if any(x is got[0] for x in got[1:]):
        raise CheckFailed(f"all states of {name} are one and the same tensor, changed in place: `x = x + ...`, not "
                          "`x += ...`.")
    return got


def asked_at(oracle: Oracle, right: list[int], name: str):
    """Which timesteps a sampler asked the network about, in order."""
    wrong = [t for t in oracle.asked if len(set(t)) > 1]
    if wrong:
        raise CheckFailed(f"{name} asks about the timesteps {wrong[0]} in one call: a step has one t for all rows.")
    asked = [t[0] for t in oracle.asked]
    if asked == right:
        return
    hint = ("the other way round" if asked == right[::-1] else "once a step, please" if len(asked) > len(right) else
            f"{len(right)} steps, one call each" if len(asked) < len(right) else "t is the level where x is *now*")
    raise CheckFailed(f"{name} asks the network at t = {asked[:4]} ..., and it should be {right[:4]} ...: {hint}.")


def noising_walk(function):
    """`function(x0, betas, generator)`: x0 (N,), betas (T,) -> (T + 1, N): x0, and x after each step of DDPM eq. 2."""
    draw = fresh()
    for schedule, size in zip(SCHEDULES, (5, 24)):
        _hold_walk(function, draw(size), schedule.betas.float(), generator())
    passed("noising_walk: each step shrinks a little, and adds a little noise")


def _hold_walk(function, x0, betas, source):
    what, size, again = "noising_walk(x0, betas, generator)", len(x0), copied(source)
    got = attempt(function, x0, betas, source, name="noising_walk")
    unused = torch.equal(source.get_state(), again.get_state())
    at_once = _walked(x0, betas, torch.randn(len(betas), size, generator=copied(again)))
    each = [torch.randn(size, generator=again) for _ in betas]
    right = _walked(x0, betas, each)
    if isinstance(got, Tensor) and got.shape == right.shape and torch.allclose(got.to(x0), at_once, atol=1e-4):
        right = at_once
    compare(got, right, what, atol=1e-4, mistakes=_wrong_walks(x0, betas, each) + [(got, DRAWS)] * unused, shapes={
        (len(betas), size): "the start is missing: x0, then the x after each of the T steps.",
        (size,): "this is the end alone; keep every x on the way, and torch.stack them.",
        (size, len(betas) + 1): "time comes first: torch.stack(path)."})
    same_dtype(got, x0, what)


def _walked(x0, betas, noises, keep=lambda b: (1 - b).sqrt(), add=lambda b: b.sqrt(), from_start=False):
    path = [x0]
    for beta, noise in zip(betas, noises):
        path.append(keep(beta) * (x0 if from_start else path[-1]) + add(beta) * noise)
    return torch.stack(path)


def _wrong_walks(x0, betas, noises):
    root = lambda b: (1 - b).sqrt()
    return [
        (_walked(x0, betas, noises, keep=lambda b: 1), "the signal does not shrink: then the variance grows and grows. "
         "Multiply x by sqrt(1 - beta)."),
        (_walked(x0, betas, noises, keep=lambda b: 1 - b), "x is multiplied by the *root* of 1 - beta."),
        (_walked(x0, betas, noises, add=lambda b: b), "the noise is multiplied by the *root* of beta: beta is a "
                                                       "variance."),
        (_walked(x0, betas, noises, keep=lambda b: 1 - b, add=lambda b: b), "both factors are square *roots*."),
        (_walked(x0, betas, noises, keep=lambda b: b.sqrt(), add=root), "the two factors are swapped: the signal keeps "
         "nearly all, the noise is small."),
        (_walked(x0, betas, noises, add=lambda b: 1 - root(b)), "variances add up to 1, amplitudes do not: "
         "sqrt(beta)."),
        (_walked(x0, betas, noises, add=lambda b: 0), "no noise was added."),
        (_walked(x0, betas, [noises[0]] * len(betas)), "every step got the same noise: draw anew in each."),
        (_walked(x0, betas.flip(0), noises), "the betas came in the wrong order: the first step takes betas[0]."),
        (_walked(x0, betas, noises, from_start=True), "each step starts at x0: it should go on from the x before."),
    ]


def ddpm_sampling(function):
    """`function(denoise, z_T, abar, generator)`: DDPM's algorithm 2 -> the x (B,D) after each of its T steps."""
    draw = fresh()
    for schedule, shape in zip(SCHEDULES, ((4, 3), (6, 2))):
        abar, z_T, source = schedule.abar.float(), draw(*shape), generator()
        oracle, again, T = Oracle(draw, shape, abar), copied(source), len(abar)
        got = states(function, oracle, z_T, abar, source, count=T, name="sample_ddpm")
        asked_at(oracle, list(range(T - 1, -1, -1)), "sample_ddpm")
        unused = torch.equal(source.get_state(), again.get_state())
        walk = lambda change: _ddpm(oracle, z_T, schedule, copied(again), change)  # noqa: B023
        for k, want in enumerate(walk("")):
            what = f"sample_ddpm: x after the step from t = {T - 1 - k}"
            mistakes = ((walk(change)[k], hint) for change, hint in WRONG_DDPM.items())  # noqa: B023
            compare(got[k], want, what, rtol=1e-3, atol=1e-3, mistakes=chain(mistakes, [(got[k], DRAWS)] * unused))
            same_dtype(got[k], z_T, what)
    passed("sample_ddpm: from noise to data, one posterior after the other")


WRONG_DDPM = {
    "no noise": "this is the mean alone: add sqrt(variance) times fresh noise.",
    "noise at the end": "noise was added at the last step: at t = 0 there is nothing left to draw.",
    "variance": "noise is multiplied by the *root* of the variance.",
    "beta": "this draws with beta, the variance of a step forward; the posterior's is beta_tilde.",
    "unit": "noise is multiplied by the root of the posterior's variance.",
    "same noise": "every step got the same noise: draw anew in each.",
    "stays": "each step starts from z_T: it should go on from the x of the step before.",
    "jumps": "this is x0 noised anew: the step is a draw from the posterior of x_{t-1}, given x0 *and* x_t.",
    "x0": "this is the network's guess x0, not the x of one step back.",
    "eps": "the posterior wants x0, the first of the two things that denoise returns.",
}


def _ddpm(denoise, x, schedule, source, change=""):
    """DDPM's loop with one thing changed."""
    path, z_T = [], x
    first = torch.randn(x.shape, generator=copied(source))
    for t in reversed(range(len(schedule.abar))):
        a, b, beta = (v[t].float() for v in (schedule.abar, schedule.before, schedule.betas))
        x = z_T if change == "stays" else x
        x0, eps = denoise(x, torch.full((len(x),), t))
        guess = eps if change == "eps" else x0
        mean = (b.sqrt() * beta * guess + (1 - beta).sqrt() * (1 - b) * x) / (1 - a)
        tilde = beta * (1 - b) / (1 - a)
        spread = {"no noise": 0 * beta, "variance": tilde, "beta": beta.sqrt(), "unit": beta**0,
                  "noise at the end": tilde.sqrt() if t else beta.sqrt()}.get(change, tilde.sqrt())
        noise = torch.randn(x.shape, generator=source)
        noise = first if change == "same noise" else noise
        x = {"jumps": b.sqrt() * x0 + (1 - b).sqrt() * noise, "x0": x0}.get(change, mean + spread * noise)
        path.append(x)
    return path


def grid_bayes(function):
    """`function(grid, prior, likelihood)`: each (N,), the grid even -> density (N,), its mean and its variance."""
    draw = fresh()
    for low, high, count in ((-3.0, 2.0, 400), (-1.0, 4.0, 173)):
        grid = torch.linspace(low, high, count, dtype=torch.float64)
        centres = low + (high - low) * (0.3 + 0.4 * torch.sigmoid(draw(3).double()))
        bumps = torch.exp(-(grid - centres[:, None]) ** 2 / (2 * torch.tensor([[0.2], [0.3], [0.4]]) ** 2))
        _hold_bayes(function, grid, bumps[0] + 0.5 * bumps[1], 1.7 * bumps[2])
    passed("bayes: prior times likelihood, and what is left to doubt")


def _hold_bayes(function, grid, prior, likelihood):
    dx = grid[1] - grid[0]
    p = prior * likelihood
    p = p / (p.sum() * dx)
    mean = (p * grid).sum() * dx
    variance = (p * (grid - mean) ** 2).sum() * dx
    name, got = "bayes(grid, prior, likelihood)", attempt(function, grid, prior, likelihood, name="bayes")
    got = several(got, name, "three things: the density, its mean and its variance")
    whole = lambda v: v / (v.sum() * dx)
    compare(got[0], p, "the density", rtol=1e-3, mistakes=[
        (prior * likelihood, "it is not normalised: divide by its sum times the width of a cell."),
        (p * dx, "the entries add up to 1; a *density* times the width of a cell does: divide by that width too."),
        (p * dx**2, "divide by the width of a cell, not multiply."),
        (whole(prior), "this is the prior alone: multiply by the likelihood."),
        (whole(likelihood), "this is the likelihood alone: multiply by the prior."),
        (whole(prior + likelihood), "Bayes' rule multiplies the two."),
        (p / p.max(), "divide by the sum (times the width), not by the largest."),
    ])
    same_dtype(got[0], grid, "the density")
    compare(number(got[1], "the mean"), mean, "the mean", rtol=1e-3, atol=1e-4, mistakes=[
        (mean / dx, "a sum over the grid is an integral only times the width of a cell."),
        (grid.mean(), "this is the middle of the grid: weigh each place by the density."),
        (grid[p.argmax()], "this is the most likely place; the mean weighs all places."),
    ])
    compare(number(got[2], "the variance"), variance, "the variance", rtol=1e-3, atol=1e-5, mistakes=[
        (variance.sqrt(), "this is the standard deviation: no root."),
        (variance / dx, "a sum over the grid is an integral only times the width of a cell."),
        ((p * grid**2).sum() * dx, "take the mean away before you square."),
        (p.var(), "this is how much the *density* varies; the place does, weighed by the density."),
        (grid.var(), "weigh each place by the density."),
    ])


def mixture_score(function):
    """`function(x, points, alpha, sigma)`: x (B,D), points (N,D), alpha, sigma (B,1) -> the score of p_t (B,D)."""
    draw = fresh()
    for size, count, dim in ((5, 4, 1), (3, 6, 2)):
        x, points = draw(size, dim), draw(count, dim)
        alpha = (0.3 + 0.5 * torch.sigmoid(draw(size, 1)))
        sigma = (1 - alpha**2).sqrt()
        away = x[:, None] - alpha[:, None] * points  # B N D
        scored = lambda away, over: -2 / over * (torch.softmax(  # noqa: B023
            -away.square().sum(-1) / (over * sigma**2), dim=1)[..., None] * away).sum(1) / sigma**2  # noqa: B023
        score, density = scored(away, 2), (-away.square().sum(-1) / (2 * sigma**2)).exp()
        got, what = attempt(function, x, points, alpha, sigma, name="score"), "score(x, points, alpha, sigma)"
        compare(got, score, what, rtol=1e-3, atol=1e-4, mistakes=[
            (-score, "the sign: the score points to where data are *denser*."),
            (score * density.sum(1, keepdim=True), "this is the gradient of the density: take its *logarithm* first."),
            (score * density.mean(1, keepdim=True), "this is the gradient of the density: take its *logarithm* "
             "first."),
            (-away.sum(1) / sigma**2, "these are the gradients of all logarithms, added up. Add up the *densities*, "
             "then take the logarithm: logsumexp."),
            (-away.mean(1) / sigma**2, "the mean of the logarithms is not the logarithm of the mean: logsumexp."),
            (score * sigma, "this is -eps: the score is -eps / sigma."),
            (score * sigma**2, "divide by sigma^2, the variance."),
            (scored(away, 1), "a Gaussian's exponent is -distance^2 / (2 sigma^2); the 2 is missing."),
            (scored(away, 4), "a Gaussian's exponent has no other factor than 1 / (2 sigma^2)."),
            (score.sum(0).expand_as(score), "the gradients of all rows were mixed."),
            (scored(x[:, None] - points, 2), "noising shrinks the points too: alpha * point."),
        ], shapes={(size, 1): "one number for each row: the gradient has as many as x."} if dim > 1 else {})
        same_dtype(got, x, what)
    passed("score: the direction in which data get denser")
