"""Checks of notebook 06, diffusion mathematics."""

from itertools import chain

import torch

from .checking import CheckFailed, attempt, compare, number, passed, several
from .properties import fresh, fresh_whole, same_dtype


class Schedule:
    """`length` betas from `first` to `last`, bent by `power`, with alphas_cumprod and the same one step earlier.

    All float64, (T,). Before the first step nothing has happened: `before[0]` is 1.
    """

    def __init__(self, length: int = 40, first: float = 0.002, last: float = 0.2, power: float = 1.0):
        self.betas = first + (last - first) * torch.linspace(0, 1, length, dtype=torch.float64) ** power
        self.abar = torch.cumprod(1 - self.betas, dim=0)
        self.before = torch.cat([torch.ones(1, dtype=torch.float64), self.abar[:-1]])


SCHEDULES = (Schedule(), Schedule(17, 0.01, 0.3, power=2.0))  # whoever knows one of them by heart fails the other


def add_noise(function):
    """`function(x0, eps, t, betas)`: x0, eps (B,D), t int64 (B,), betas (T,) -> x_t (B,D), DDPM eq. 4."""
    draw = fresh()
    for schedule, t, dim in zip(SCHEDULES, ([0, 1, 7, 20, 38, 39], [16, 3, 0, 3]), (3, 2)):
        t = torch.tensor(t)
        x0, eps = draw(len(t), dim), draw(len(t), dim)
        got = attempt(function, x0, eps, t, schedule.betas.float(), name="add_noise")
        what = "add_noise(x0, eps, t, betas)"
        compare(got, _jump(x0, eps, schedule.abar[t]), what, atol=1e-4,
                mistakes=chain(_wrong_jumps(schedule, x0, eps, t), _one_factor_wrong(got, x0, eps, schedule.abar[t])))
        same_dtype(got, x0, what)
    passed("add_noise: any number of small steps in one jump")


def _jump(x0, eps, a):
    """From x0 to the noise level whose alphas_cumprod, one for each sample, are a."""
    return a.sqrt()[:, None] * x0 + (1 - a).sqrt()[:, None] * eps


def _one_factor_wrong(got, x0, eps, a):
    """What has the right factor at x0 or at eps, and at the other one whatever factor comes nearest."""
    signal, noise = a.sqrt()[:, None] * x0, (1 - a).sqrt()[:, None] * eps
    for right, other, names in ((signal, eps, "x0 has the right factor, eps has not"),
                                (noise, x0, "eps has the right factor, x0 has not")):
        factor = ((got.detach() - right) * other).sum(1, keepdim=True) / other.square().sum(1, keepdim=True)
        yield right + factor * other, f"{names}. Variances add up to 1: so do the squares of the two factors."


def _wrong_jumps(schedule, x0, eps, t):
    abar, betas, last = schedule.abar, schedule.betas, len(schedule.betas) - 1
    a, jump = abar[t], lambda a: _jump(x0, eps, a)
    column = a[:, None]
    forgotten = "the amplitudes are square *roots*: variances add up to 1, amplitudes do not."
    sums = (1 - betas.cumsum(0)[t]).clamp(min=0)
    return [
        (column * x0 + (1 - column) * eps, forgotten),
        (column.sqrt() * x0 + (1 - column) * eps, forgotten),
        (column * x0 + (1 - column).sqrt() * eps, forgotten),
        (column.sqrt() * x0 + (1 - column.sqrt()) * eps,
         "the noise's amplitude is sqrt(1 - abar), not 1 - sqrt(abar): variances add up to 1, amplitudes do not."),
        (column**0.25 * x0 + (1 - column.sqrt()).sqrt() * eps, "one root too many: abar is a variance, and its root "
                                                               "is the amplitude already."),
        (jump(schedule.before[t]), "t is off by one. Here t = 0 is the first noisy step: its product has one factor "
                                   "already."),
        (jump(abar[t - 1]), "t is off by one (and t = 0 took the *last* entry: index -1 wraps around)."),
        (jump(abar[(t + 1).clamp(max=last)]), "t is off by one: you used the noise level of t + 1."),
        (jump(1 - betas[t]), "this is one small step. From x0 to x_t there are t + 1 of them: multiply (cumprod)."),
        (jump(sums), "you added the betas; each step shrinks the signal by a *factor*, so multiply them: cumprod."),
        (jump(betas.cumprod(0)[t]), "a step keeps 1 - beta of the signal: the product is over 1 - beta, not over "
                                    "beta."),
        (jump(1 - betas.cumprod(0)[t]), "a step keeps 1 - beta of the signal: the product is over 1 - beta, not over "
                                        "beta."),
        (jump(abar[-1:].expand(len(t))), "every sample got the noise of the last step: multiply up to each one's own "
                                         "t."),
        (jump(a[:1].expand(len(t))), "every sample got the t of the first one; each has its own."),
        (jump(1 - a), "signal and noise are swapped: x0 is multiplied by the large one when t is small."),
    ]


def ddpm_letters(function):
    """`function(abar)`: alphas_cumprod (T,) -> DDPM's alpha, beta, beta_tilde, each (T,)."""
    some = fresh_whole()
    for schedule in (*SCHEDULES, Schedule(some(9, 40), 0.01, some(10, 40) / 100, some(5, 25) / 10)):
        abar, before = schedule.abar, schedule.before
        got = attempt(function, abar, name="ddpm_letters")
        got = several(list(got) if isinstance(got, torch.Tensor) and got.ndim == 2 else got, "ddpm_letters",
                      "three tensors: alpha, beta, beta_tilde")
        alpha, beta = abar / before, 1 - abar / before
        tilde = schedule.betas * (1 - before) / (1 - abar)
        slip = (1 - abar[1:]) / (1 - abar[:-1])  # whatever t = 0 holds
        if (isinstance(got[0], torch.Tensor) and got[0].shape == abar.shape
                and torch.allclose(got[0][1:].double(), slip)):
            raise CheckFailed("alpha: the slip of the note. abar is a product of alphas, so the ratio of neighbours "
                              "is the last factor: alpha_t = abar_t / abar_{t-1}. (Yours is above 1!)")
        begins = torch.cat([torch.ones_like(abar[:1]), alpha[1:]])
        compare(got[0], alpha, "alpha", mistakes=[
            ((1 - before) / (1 - abar), "this is the factor of beta_tilde; alpha_t is abar_t / abar_{t-1}."),
            (abar / abar.roll(1), "at t = 0 index -1 took the *last* entry. Before the first step there is no noise: "
                                  "abar = 1."),
            (begins, "at t = 0 alpha is abar_0 / 1: before the first step abar is 1, not abar_0."),
            (before / abar, "upside down: each step makes abar smaller, so alpha_t < 1."),
            (alpha.sqrt(), "no square root: DDPM's alpha_t = 1 - beta_t is a variance factor, not an amplitude."),
            (abar.sqrt(), "this is LDM's alpha, the amplitude. DDPM's alpha_t = 1 - beta_t is one step's factor."),
            (abar, "this is abar itself, the product over all steps; alpha_t is its last factor."),
        ])
        compare(got[1], beta, "beta", mistakes=[
            (1 - abar, "1 - abar is the noise of all steps so far; beta_t is that of one step, 1 - alpha_t."),
            (1 - alpha.sqrt(), "no square root here: beta_t = 1 - alpha_t."),
        ])
        compare(got[2], tilde, "beta_tilde", mistakes=[
            (beta, "this is beta. Knowing x0 leaves less to guess: multiply by (1 - abar_{t-1}) / (1 - abar_t)."),
            (beta * (1 - abar) / (1 - before).clamp(min=1e-12), "upside down: beta_tilde is *smaller* than beta."),
            (beta * (1 - abar.roll(1)) / (1 - abar), "at t = 0 index -1 took the last entry; abar there is 1."),
            (torch.cat([tilde[1:2], tilde[1:]]), "at t = 0 it is 0: nothing is left to guess. (The released code puts "
             "the next one there, before it takes a logarithm.)"),
            (torch.cat([beta[:1], tilde[1:]]), "at t = 0 it is 0: who knows x0 has nothing left to guess."),
            (tilde.sqrt(), "beta_tilde is a variance: no square root."),
        ])
        for letter, value in zip(("alpha", "beta", "beta_tilde"), got):
            same_dtype(value, abar, letter)
    passed("ddpm_letters: alpha_t = abar_t / abar_{t-1}, and beta_tilde < beta")


def diffusion_posterior(function):
    """`function(x0, x_t, t, abar)`: x0, x_t (B,D), t one int, abar (T,) -> mean (B,D), variance (one number)."""
    draw = fresh()
    for schedule, shape in zip(SCHEDULES, ((5, 3), (2, 4))):
        last = len(schedule.abar) - 1
        # t = 0 comes last: who gets only that wrong should be told so
        for t in (last * 5 // 8, 1, last, 0):
            x0, x_t = draw(*shape), draw(*shape)
            got = attempt(function, x0, x_t, t, schedule.abar, name="posterior")
            _hold_posterior(got, schedule, x0, x_t, t)
    passed("posterior: Bayes' rule in closed form, and at t = 0 it is certain")


def _hold_posterior(got, schedule, x0, x_t, t):
    """Compare with mean and variance, and with those of known mistakes."""
    abar, before, last, call = schedule.abar, schedule.before, len(schedule.abar) - 1, f"posterior(x0, x_t, {t}, abar)"
    got = several(got, "posterior", "two things: the mean and the variance")
    a, b, beta = abar[t], before[t], schedule.betas[t]
    mean = lambda a, b, u=x0, v=x_t: (
        b.sqrt() * (1 - a / b) * u + (a / b).sqrt() * (1 - b) * v) / (1 - a)
    wraps = "at t = 0 index -1 took the *last* entry of abar; before the first step there is no noise: abar = 1."
    compare(got[0], mean(a, b), f"the mean of {call}", mistakes=[
        (mean(a, abar[t - 1]), wraps if t == 0 else ""),
        ((b * beta * x0 + (1 - beta) * (1 - b) * x_t) / (1 - a), "both carry square *roots*."),
        ((b.sqrt() * beta * x0 + (1 - beta) * (1 - b) * x_t) / (1 - a), "x_t carries the *root* of alpha."),
        ((b * beta * x0 + (1 - beta).sqrt() * (1 - b) * x_t) / (1 - a), "x0 carries the *root* of abar."),
        (mean(a, b, x_t, x0), "x0 and x_t have swapped their coefficients. At t = 0 the mean must be x0 itself."),
        ((a.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - b) * x_t) / (1 - a), "the signal of x0 is that of the "
         "step you go *to*: sqrt(abar_{t-1}), not sqrt(abar_t). t is off by one."),
        ((b.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - a) * x_t) / (1 - a), "x_t's coefficient has the noise of "
         "the step you go *to*: 1 - abar_{t-1}, not 1 - abar_t. t is off by one."),
        (mean(a, b) * (1 - a), "the division by 1 - abar_t is missing."),
        (mean(abar[min(t + 1, last)], a) if t < last else x0 * 0, "t is off by one: a step from t + 1."),
        (mean(b, before[t - 1]) if t else x0 * 0, "t is off by one: this is the step from t - 1."),
    ])
    same_dtype(got[0], x0, f"the mean of {call}")
    variance, tilde = got[1], beta * (1 - b) / (1 - a)
    if isinstance(variance, torch.Tensor) and variance.ndim:
        raise CheckFailed(f"posterior's variance has shape {tuple(variance.shape)}; it is one number, the same for all "
                          "samples and dimensions.")
    compare(number(variance, "posterior's variance"), tilde, f"the variance of {call}", rtol=1e-3, atol=1e-7, mistakes=[
        (beta, "this is beta, the variance of a step forward. Knowing x0, less is left: beta_tilde."),
        (tilde.sqrt(), "this is the standard deviation; return its square."),
        (beta.sqrt(), "this is sqrt(beta); the variance is beta * (1 - abar_{t-1}) / (1 - abar_t)."),
        (1 - b, "1 - abar_{t-1} is what is unknown about x_{t-1} *before* you see x_t."),
        (beta * (1 - abar[t - 1]) / (1 - a), wraps),
    ])


def to_x0(function):
    """`function(prediction, out, x_t, alpha, sigma)`: a network's output -> the clean x0 (B,D) that it means."""
    draw = fresh()
    for alpha, dim in (([0.95, 0.8, 0.45, 0.1], 3), ([0.3, 0.6], 5)):
        x0, eps = draw(len(alpha), dim), draw(len(alpha), dim)
        alpha = torch.tensor(alpha)[:, None]
        sigma = (1 - alpha**2).sqrt()
        x_t = alpha * x0 + sigma * eps
        for prediction, out in {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}.items():
            got = attempt(function, prediction, out, x_t, alpha, sigma, name="to_x0")
            what = f"to_x0({prediction!r}, ...)"
            compare(got, x0, what, rtol=1e-3, atol=1e-3, mistakes=_wrong_x0(x0, eps, out, x_t, alpha, sigma)[
                prediction] + [(x0.clamp(-1, 1), "it was clipped to [-1, 1]. The released code can do that for "
                                                 "pictures; here points may lie anywhere.")])
            same_dtype(got, x0, what)
    passed("to_x0: three languages, one belief")


def _wrong_x0(x0, eps, out, x_t, alpha, sigma):
    """{prediction: mistakes}"""
    return {
        "eps": [
            (eps, "you returned eps, the network's own output. Solve x_t = alpha x0 + sigma eps for x0."),
            (x_t - sigma * eps, "one division is missing: x_t - sigma eps is alpha x0."),
            ((x_t - alpha * eps) / sigma, "alpha and sigma are swapped: alpha goes with x0, sigma with eps."),
            ((x_t + sigma * eps) / alpha, "the sign: noise is taken away, not added."),
            (x_t - eps, "the noise enters as sigma eps, and the signal as alpha x0."),
            ((x_t - sigma**2 * eps) / alpha, "sigma is the noise's amplitude already: it is not squared."),
            (alpha * x_t - sigma * eps, "you treated eps as if it were v: here divide by alpha."),
        ],
        "x0": [
            ((x_t - sigma * x0) / alpha, "you treated an x0 prediction as if it were eps. It *is* x0: return it."),
            ((x_t - alpha * x0) / sigma, "this is the eps it implies; x0 is the output itself."),
            (alpha * x_t - sigma * x0, "you treated an x0 prediction as if it were v. It *is* x0: return it."),
        ],
        "v": [
            (alpha * x_t + sigma * out, "the sign of v: v = alpha eps - sigma x0, so x0 = alpha x_t - sigma v."),
            (sigma * x_t - alpha * out, "alpha and sigma are swapped: x0 = alpha x_t - sigma v."),
            (eps, "this is eps = sigma x_t + alpha v; x0 is alpha x_t - sigma v."),
            (out, "v is neither x0 nor eps: v = alpha eps - sigma x0. Solve it together with x_t."),
            ((x_t - sigma * out) / alpha, "you treated v as if it were eps: v = alpha eps - sigma x0."),
            (x_t - sigma * out, "x_t carries alpha: x0 = alpha x_t - sigma v."),
        ],
    }


def ideal_x0(function):
    """`function(points, x_t, alpha, sigma)`: points (N,D), x_t (B,D), alpha and sigma numbers -> E[x0 | x_t] (B,D)."""
    draw = fresh()
    for count, size, dim, alpha, sigma in ((7, 4, 2, 0.8, 0.6), (3, 5, 4, 0.28, 0.96), (9, 3, 3, 0.6, 0.8)):
        points, x_t = draw(count, dim), draw(size, dim)
        square = lambda a: (x_t[:, None] - a * points[None]).square().sum(-1)  # noqa: B023
        mix = lambda logits, dim=1: torch.softmax(logits, dim) @ points  # noqa: B023
        d = square(alpha)
        got = attempt(function, points, x_t, alpha, sigma, name="ideal_x0")
        what = f"ideal_x0(points, x_t, {alpha}, {sigma})"
        compare(got, mix(-d / (2 * sigma**2)), what, mistakes=[
            (mix(-square(1.0) / (2 * sigma**2)), "compare x_t with alpha * point: noising shrinks the points too."),
            (mix(-d / sigma**2), "a Gaussian's exponent is -distance^2 / (2 sigma^2); the 2 is missing."),
            (mix(-d / (2 * sigma)), "divide by the *variance*, 2 sigma^2, not by sigma."),
            (mix(-d / 2), "divide by the *variance*, 2 sigma^2: sigma is not used."),
            (mix(-d.sqrt() / (2 * sigma**2)), "the distance in the exponent is squared."),
            (mix(-d / dim / (2 * sigma**2)), "the squared distance is the *sum* over the dimensions, not their mean."),
            (mix(d / (2 * sigma**2)), "the sign: near points should weigh more, far ones less."),
            (torch.softmax(-d / (2 * sigma**2), 0) @ points,
             "the weights must sum to 1 over the points, not over the batch."),
            (alpha * mix(-d / (2 * sigma**2)), "this is the mean of alpha x0; the clean x0 has no alpha."),
            (torch.exp(-d / (2 * sigma**2)) @ points, "the weights do not add up to 1: divide each row by its sum "
             "(softmax does)."),
            (points[d.argmin(1)], "this is the nearest point. The mean weighs *all* points by how likely they are."),
            (points.mean(0).expand_as(x_t), "this is the plain mean: weigh each point by how likely it led to x_t."),
        ])
        same_dtype(got, x_t, what)
    # far from all points each exp underflows to 0, and 0 / 0 follows; alpha and sigma as a schedule gives them
    far = x_t + 30
    got = attempt(function, points, far, torch.tensor([0.999]), torch.tensor([0.02]), name="ideal_x0")
    if isinstance(got, torch.Tensor) and not got.isfinite().all():
        raise CheckFailed("ideal_x0 is NaN when sigma is small: each exp(-distance^2 / (2 sigma^2)) becomes 0, and 0/0 "
                          "follows. Use torch.softmax, which subtracts the largest exponent first.")
    near = points[far[:, None].sub(0.999 * points[None]).square().sum(-1).argmin(1)]
    compare(got, near, "ideal_x0 with nearly no noise", atol=1e-3, mistakes=[
        (0 * near, "all weights became 0: exp underflows. Use torch.softmax, which subtracts the largest exponent "
                   "first.")])
    passed("ideal_x0: the best possible denoiser, without training")
