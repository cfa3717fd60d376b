"""Checks of notebook 06, diffusion mathematics."""

import torch

from .checking import CheckFailed, attempt, compare, noise, number, passed, several

T = 40
BETAS = torch.linspace(0.002, 0.2, T, dtype=torch.float64)
ABAR = torch.cumprod(1 - BETAS, dim=0)  # alphas_cumprod
BEFORE = torch.cat([torch.ones(1, dtype=torch.float64), ABAR[:-1]])  # the same, one step earlier; nothing is 1


def add_noise(function):
    """`function(x0, eps, t, betas)`: x0, eps (B,D), t int64 (B,), betas (T,) -> x_t (B,D), DDPM eq. 4."""
    x0, eps, t = noise(6, 3), noise(6, 3, seed=1), torch.tensor([0, 1, 7, 20, 38, 39])
    jump = lambda a: a.sqrt()[:, None] * x0 + (1 - a).sqrt()[:, None] * eps
    a = ABAR[t]
    sums = (1 - BETAS.cumsum(0)[t]).clamp(min=0)
    forgotten = "the amplitudes are square *roots*: variances add up to 1, amplitudes do not."
    got = attempt(function, x0, eps, t, BETAS.float(), name="add_noise")
    compare(got, jump(a), "add_noise(x0, eps, t, betas)", atol=1e-4, mistakes=[
        (a[:, None] * x0 + (1 - a)[:, None] * eps, forgotten),
        (a.sqrt()[:, None] * x0 + (1 - a)[:, None] * eps, forgotten),
        (a[:, None] * x0 + (1 - a).sqrt()[:, None] * eps, forgotten),
        (a.sqrt()[:, None] * x0 + (1 - a.sqrt())[:, None] * eps,
         "the noise's amplitude is sqrt(1 - abar), not 1 - sqrt(abar): variances add up to 1, amplitudes do not."),
        (jump(BEFORE[t]), "t is off by one. Here t = 0 is the first noisy step: its product has one factor already."),
        (jump(ABAR[t - 1]), "t is off by one (and t = 0 took the *last* entry: index -1 wraps around)."),
        (jump(ABAR[(t + 1).clamp(max=T - 1)]), "t is off by one: you used the noise level of t + 1."),
        (jump(1 - BETAS[t]), "this is one small step. From x0 to x_t there are t + 1 of them: multiply (cumprod)."),
        (jump(sums), "you added the betas; each step shrinks the signal by a *factor*, so multiply them: cumprod."),
        (jump(ABAR[-1:].expand(6)), "every sample got the noise of the last step: multiply up to each one's own t."),
        (jump(1 - a), "signal and noise are swapped: x0 is multiplied by the large one when t is small."),
    ])
    passed("add_noise: any number of small steps in one jump")


def ddpm_letters(function):
    """`function(abar)`: alphas_cumprod (T,) -> DDPM's alpha, beta, beta_tilde, each (T,)."""
    got = attempt(function, ABAR, name="ddpm_letters")
    got = several(got, "ddpm_letters", "three tensors: alpha, beta, beta_tilde")
    alpha, beta, tilde = ABAR / BEFORE, 1 - ABAR / BEFORE, BETAS * (1 - BEFORE) / (1 - ABAR)
    wrapped = ABAR / ABAR.roll(1)
    slip = (1 - ABAR[1:]) / (1 - ABAR[:-1])  # whatever t = 0 holds
    if isinstance(got[0], torch.Tensor) and got[0].shape == (T,) and torch.allclose(got[0][1:].double(), slip):
        raise CheckFailed("alpha: the slip of the note. abar is a product of alphas, so the ratio of neighbours "
                          "is the last factor: alpha_t = abar_t / abar_{t-1}. (Yours is above 1!)")
    compare(got[0], alpha, "alpha", mistakes=[
        ((1 - BEFORE) / (1 - ABAR), "this is the factor of beta_tilde; alpha_t is abar_t / abar_{t-1}."),
        (wrapped, "at t = 0 index -1 took the *last* entry. Before the first step there is no noise: abar = 1."),
        (BEFORE / ABAR, "upside down: each step makes abar smaller, so alpha_t < 1."),
        (alpha.sqrt(), "no square root: DDPM's alpha_t = 1 - beta_t is a variance factor, not an amplitude."),
        (ABAR.sqrt(), "this is LDM's alpha, the amplitude. DDPM's alpha_t = 1 - beta_t is one step's factor."),
        (ABAR, "this is abar itself, the product over all steps; alpha_t is its last factor."),
    ])
    compare(got[1], beta, "beta", mistakes=[
        (1 - ABAR, "1 - abar is the noise of all steps so far; beta_t is that of one step, 1 - alpha_t."),
        (1 - alpha.sqrt(), "no square root here: beta_t = 1 - alpha_t."),
    ])
    compare(got[2], tilde, "beta_tilde", mistakes=[
        (beta, "this is beta. Knowing x0 leaves less to guess: multiply by (1 - abar_{t-1}) / (1 - abar_t)."),
        (beta * (1 - ABAR) / (1 - BEFORE).clamp(min=1e-12), "upside down: beta_tilde is *smaller* than beta."),
        (beta * (1 - ABAR.roll(1)) / (1 - ABAR), "at t = 0 index -1 took the last entry; abar there is 1."),
        (tilde.sqrt(), "beta_tilde is a variance: no square root."),
    ])
    passed("ddpm_letters: alpha_t = abar_t / abar_{t-1}, and beta_tilde < beta")


def diffusion_posterior(function):
    """`function(x0, x_t, t, abar)`: x0, x_t (B,D), t one int, abar (T,) -> mean (B,D), variance (number)."""
    x0, x_t = noise(5, 3), noise(5, 3, seed=1)
    # t = 0 comes last: who gets only that wrong should be told so
    for t in (25, 1, T - 1, 0):
        got = attempt(function, x0, x_t, t, ABAR, name="posterior")
        call = f"posterior(x0, x_t, {t}, abar)"
        got = several(got, "posterior", "two things: the mean and the variance")
        a, b, beta = ABAR[t], BEFORE[t], BETAS[t]
        mean = lambda a, b, u=x0, v=x_t: (
            b.sqrt() * (1 - a / b) * u + (a / b).sqrt() * (1 - b) * v) / (1 - a)
        wraps = "at t = 0 index -1 took the *last* entry of abar; before the first step there is no noise: abar = 1."
        compare(got[0], mean(a, b), f"the mean of {call}", mistakes=[
            (mean(a, ABAR[t - 1]), wraps if t == 0 else ""),
            ((b * beta * x0 + (1 - beta) * (1 - b) * x_t) / (1 - a), "both carry square *roots*."),
            ((b.sqrt() * beta * x0 + (1 - beta) * (1 - b) * x_t) / (1 - a), "x_t carries the *root* of alpha."),
            ((b * beta * x0 + (1 - beta).sqrt() * (1 - b) * x_t) / (1 - a), "x0 carries the *root* of abar."),
            (mean(a, b, x_t, x0), "x0 and x_t have swapped their coefficients. At t = 0 the mean must be x0 itself."),
            ((a.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - b) * x_t) / (1 - a), "the signal of x0 is that of the "
             "step you go *to*: sqrt(abar_{t-1}), not sqrt(abar_t). t is off by one."),
            ((b.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - a) * x_t) / (1 - a), "x_t's coefficient has the noise of "
             "the step you go *to*: 1 - abar_{t-1}, not 1 - abar_t. t is off by one."),
            (mean(ABAR[min(t + 1, T - 1)], a) if t + 1 < T else x0 * 0, "t is off by one: a step from t + 1."),
            (mean(b, BEFORE[t - 1]) if t else x0 * 0, "t is off by one: this is the step from t - 1."),
        ])
        tilde = beta * (1 - b) / (1 - a)
        variance = got[1].flatten()[0] if isinstance(got[1], torch.Tensor) else got[1]  # some give one per sample
        compare(number(variance, "posterior's variance"), tilde, f"the variance of {call}", mistakes=[
            (beta, "this is beta, the variance of a step forward. Knowing x0, less is left: beta_tilde."),
            (tilde.sqrt(), "this is the standard deviation; return its square."),
            (beta.sqrt(), "this is sqrt(beta); the variance is beta * (1 - abar_{t-1}) / (1 - abar_t)."),
            (1 - b, "1 - abar_{t-1} is what is unknown about x_{t-1} *before* you see x_t."),
            (beta * (1 - ABAR[t - 1]) / (1 - a), wraps),
        ])
    passed("posterior: Bayes' rule in closed form, and at t = 0 it is certain")


def to_x0(function):
    """`function(prediction, out, x_t, alpha, sigma)`: a network's output -> the clean x0 (B,D) that it means."""
    x0, eps = noise(4, 3), noise(4, 3, seed=1)
    alpha = torch.tensor([0.95, 0.8, 0.45, 0.1])[:, None]
    sigma = (1 - alpha**2).sqrt()
    x_t = alpha * x0 + sigma * eps
    outs = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}
    for prediction, out in outs.items():
        got = attempt(function, prediction, out, x_t, alpha, sigma, name="to_x0")
        compare(got, x0, f"to_x0({prediction!r}, ...)", rtol=1e-3, atol=1e-3, mistakes={
            "eps": [
                (eps, "you returned eps, the network's own output. Solve x_t = alpha x0 + sigma eps for x0."),
                (x_t - sigma * eps, "one division is missing: x_t - sigma eps is alpha x0."),
                ((x_t - alpha * eps) / sigma, "alpha and sigma are swapped: alpha goes with x0, sigma with eps."),
                ((x_t + sigma * eps) / alpha, "the sign: noise is taken away, not added."),
                (x_t - eps, "the noise enters as sigma eps, and the signal as alpha x0."),
            ],
            "x0": [
                ((x_t - sigma * x0) / alpha, "you treated an x0 prediction as if it were eps. It *is* x0: return it."),
                ((x_t - alpha * x0) / sigma, "this is the eps it implies; x0 is the output itself."),
            ],
            "v": [
                (alpha * x_t + sigma * out, "the sign of v: v = alpha eps - sigma x0, so x0 = alpha x_t - sigma v."),
                (sigma * x_t - alpha * out, "alpha and sigma are swapped: x0 = alpha x_t - sigma v."),
                (eps, "this is eps = sigma x_t + alpha v; x0 is alpha x_t - sigma v."),
                (out, "v is neither x0 nor eps: v = alpha eps - sigma x0. Solve it together with x_t."),
                ((x_t - sigma * out) / alpha, "you treated v as if it were eps: v = alpha eps - sigma x0."),
            ],
        }[prediction])
    passed("to_x0: three languages, one belief")


def ideal_x0(function):
    """`function(points, x_t, alpha, sigma)`: points (N,D), x_t (B,D), alpha and sigma numbers -> E[x0 | x_t] (B,D)."""
    points, x_t = noise(7, 2), noise(4, 2, seed=1)
    square = lambda a: (x_t[:, None] - a * points[None]).square().sum(-1)
    mix = lambda logits, dim=1: torch.softmax(logits, dim) @ points
    for alpha, sigma in ((0.8, 0.6), (0.28, 0.96), (0.6, 0.8)):
        d = square(alpha)
        got = attempt(function, points, x_t, alpha, sigma, name="ideal_x0")
        compare(got, mix(-d / (2 * sigma**2)), f"ideal_x0(points, x_t, {alpha}, {sigma})", mistakes=[
            (mix(-square(1.0) / (2 * sigma**2)), "compare x_t with alpha * point: noising shrinks the points too."),
            (mix(-d / sigma**2), "a Gaussian's exponent is -distance^2 / (2 sigma^2); the 2 is missing."),
            (mix(-d / (2 * sigma)), "divide by the *variance*, 2 sigma^2, not by sigma."),
            (mix(-d.sqrt() / (2 * sigma**2)), "the distance in the exponent is squared."),
            (mix(d / (2 * sigma**2)), "the sign: near points should weigh more, far ones less."),
            (mix(-d / (2 * sigma**2), dim=0), "the weights must sum to 1 over the points, not over the batch."),
            (alpha * mix(-d / (2 * sigma**2)), "this is the mean of alpha x0; the clean x0 has no alpha."),
            (torch.exp(-d / (2 * sigma**2)) @ points, "the weights do not add up to 1: divide each row by its sum "
             "(softmax does)."),
            (points[d.argmin(1)], "this is the nearest point. The mean weighs *all* points by how likely they are."),
            (points.mean(0).expand_as(x_t), "this is the plain mean: weigh each point by how likely it led to x_t."),
        ])
    # far from all points each exp underflows to 0, and 0 / 0 follows
    got = attempt(function, points, x_t + 30, 0.999, 0.02, name="ideal_x0")
    if isinstance(got, torch.Tensor) and not got.isfinite().all():
        raise CheckFailed("ideal_x0 is NaN when sigma is small: each exp(-distance^2 / (2 sigma^2)) becomes 0, and 0/0 "
                          "follows. Use torch.softmax, which subtracts the largest exponent first.")
    near = points[(x_t + 30)[:, None].sub(0.999 * points[None]).square().sum(-1).argmin(1)]
    compare(got, near, "ideal_x0 with nearly no noise", atol=1e-3)
    passed("ideal_x0: the best possible denoiser, without training")
