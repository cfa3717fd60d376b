"""Checks of notebook 10, continued: the loss of a model that reads, and guidance as a denoiser made of two."""

import torch

from ..schedule import NoiseSchedule, cosine_betas
from .checking import CheckFailed, attempt, compare, passed, several
from .properties import fresh, generator, learn, same_dtype, same_gradient

SCHEDULE = NoiseSchedule(cosine_betas(20))


def guided_denoiser(function):
    """`function(given, anything, schedule, scale)`: `denoise(x_t, t) -> (x0, eps)`, eps = u + scale (c - u).

    given, anything: denoisers of the same kind, with and without the condition; x_t (B, ...), t (B,).
    """
    draw = fresh()
    for shape, scale in (((4, 2), 3.0), ((2, 3, 4, 5), 0.5), ((3, 2), 0.0), ((3, 7), 1.0)):
        x_t, t = draw(*shape), torch.randint(1, 18, shape[:1], generator=generator())
        alpha, sigma = SCHEDULE.alpha(t, x_t.ndim), SCHEDULE.sigma(t, x_t.ndim)
        given, anything = _denoiser(draw), _denoiser(draw)
        name = f"guided_denoiser(..., scale={scale:g})"
        denoise = attempt(function, given, anything, SCHEDULE, scale, name="guided_denoiser")
        if not callable(denoise):
            raise CheckFailed("guided_denoiser should return a function, denoise(x_t, t): end with `return denoise`, "
                              "without brackets.")
        x0, eps = several(attempt(denoise, x_t, t, name="denoise"), name, "two things: x0 and eps")
        (x0_c, c), (x0_u, u) = given(x_t, t), anything(x_t, t)
        right = u + scale * (c - u)
        compare(eps, right, f"eps of {name}", rtol=1e-3, atol=1e-4, mistakes=[
            (u + scale * (u - c), "the arrow points the wrong way: from what is predicted without the condition "
                                  "towards what is predicted with it."),
            (c + scale * (u - c), "given and anything have changed places."),
            (c + scale * (c - u), "Ho & Salimans' way to count, w = s - 1. Here s = 1 means: no guidance."),
            (u + scale * c, "add the *difference* of the two, scale times."),
            (scale * (c - u), "this is the pull alone: it starts at the prediction without condition."),
            (c, "the scale plays no part."), (u, "the condition plays no part."),
            (x0_u + scale * (x0_c - x0_u), "this is x0. Return x0 first, then eps."),
            (u + 3 * (c - u), "the scale is a fixed number: use the argument."),
        ])
        good = (x_t - sigma * right) / alpha
        compare(x0, good, f"x0 of {name}", rtol=1e-3, atol=1e-4, mistakes=[
            (x0_c, "this is the x0 of `given`, before guidance: make it of the new eps."),
            (x0_u, "this is the x0 of `anything`, before guidance: make it of the new eps."),
            (x_t - sigma * right, "divide by alpha: x_t = alpha x0 + sigma eps."),
            ((x_t + sigma * right) / alpha, "the sign: x_t = alpha x0 + sigma eps, so the noise is subtracted."),
            ((x_t - sigma**2 * right) / alpha, "sigma stands there once, not squared."),
            ((x_t - sigma * right) / alpha**2, "alpha stands there once, not squared."),
            ((x_t - alpha * right) / sigma, "alpha and sigma have changed places."),
            (x_t - right, "x_t = alpha x0 + sigma eps: take both from the schedule, at t."),
        ])
        same_dtype(x0, x_t, f"x0 of {name}")
        same_dtype(eps, x_t, f"eps of {name}")
    passed("guided_denoiser: from what anything would be, through what is given, and on")


def _denoiser(draw):
    """Some denoiser whose two answers belong together: x_t = alpha x0 + sigma eps."""
    a, b = draw(2).tolist()

    def denoise(x_t, t):
        alpha, sigma = SCHEDULE.alpha(t, x_t.ndim), SCHEDULE.sigma(t, x_t.ndim)
        eps = torch.tanh(a * x_t + b + 0.1 * sigma)
        return (x_t - sigma * eps) / alpha, eps

    return denoise


def conditional_loss(function):
    """`function(net, schedule, z, t, eps, cond, null, p, generator)` -> the loss, a scalar with a gradient.

    net(z_t, t, cond) predicts eps; cond, null: dicts of (B, ...), as in drop_conditions.
    """
    draw = fresh()
    for shape, p in (((40, 6), 0.5), ((5, 3, 4, 4), 0.0), ((6, 4), 1.0)):
        size, width = shape[0], shape[1]
        z, eps, t = draw(*shape), draw(*shape), torch.randint(1, 18, (size,), generator=generator())
        word, empty, weight = learn(draw(size, 3, width), draw(size, 3, width), draw(width, width))
        mask = draw(size, 3) > 0
        cond, null = {"context": word, "mask": mask}, {"context": empty, "mask": ~mask}
        calls = []

        def net(z_t, t, cond, weight=weight, calls=calls):
            if not isinstance(cond, dict):
                raise TypeError("the network needs the dict that drop_conditions makes")
            calls.append((z_t, t, cond))
            told = (cond["context"] * cond["mask"][:, :, None]).sum(1) @ weight
            return torch.tanh(z_t + 0.1 * told.view(*told.shape, *[1] * (z_t.ndim - 2)) + 0.02 * t.view(
                -1, *[1] * (z_t.ndim - 1)))

        source, name = torch.Generator().manual_seed(size), f"conditional_loss(..., p={p:g})"
        got = attempt(function, net, SCHEDULE, z, t, eps, cond, null, p, source, name="conditional_loss")
        if len(calls) != 1:
            raise CheckFailed(f"{name} called the network {len(calls)} times; once for the whole batch is enough.")
        z_t, said, heard = calls[0]
        alpha, sigma = SCHEDULE.alpha(t, z.ndim), SCHEDULE.sigma(t, z.ndim)
        compare(z_t, alpha * z + sigma * eps, f"the noisy latent in {name}", rtol=1e-3, mistakes=[
            (z, "no noise was added: z_t = alpha z + sigma eps."), (eps, "this is the noise alone."),
            (z + eps, "alpha and sigma are missing: z_t = alpha z + sigma eps."),
            (z + sigma * eps, "alpha is missing: z_t = alpha z + sigma eps."),
            (sigma * z + alpha * eps, "alpha and sigma have changed places."),
            (alpha**2 * z + sigma**2 * eps, "alpha and sigma stand there once, not squared."),
        ])
        if not isinstance(said, torch.Tensor) or not torch.equal(said, t):
            raise CheckFailed(f"{name}: the network was not told t. Call net(z_t, t, cond).")
        dropped = _heard(heard, cond, null, p, name)
        right = (net(z_t, t, heard) - eps).square().mean()
        _hold_loss(got, right, net(z_t, t, heard), z, z_t, eps, name)
        rows = dropped.view(-1, 1, 1)
        again = net(z_t.detach(), t, {"context": torch.where(rows, empty, word), "mask": heard["mask"]})
        same_gradient(got, (again - eps).square().mean(), {"the words": word, "no words": empty, "the network": weight},
                      name)
    passed("conditional_loss: some hear nothing, all hear noise; words and network learn together")


def _heard(heard, cond: dict, null: dict, p: float, name: str):
    """Which samples the network was told nothing about, (B,) bool."""
    if heard.keys() != cond.keys():
        raise CheckFailed(f"{name}: the network should get all parts, {list(cond)}.")
    from_null = torch.stack([(heard[k] == null[k]).flatten(1).all(1) for k in cond])
    from_cond = torch.stack([(heard[k] == cond[k]).flatten(1).all(1) for k in cond])
    share = from_null.all(0).double().mean().item()
    if not (from_null.all(0) | from_cond.all(0)).all() or (share > 0) != (p > 0) or (share < 1) != (p < 1):
        raise CheckFailed(f"{name}: {share:.0%} of the samples had their condition replaced by the null one. "
                          "Is drop_conditions(cond, null, p, generator) what the network gets?")
    return from_null.all(0)


def _hold_loss(got, right, predicted, z, z_t, eps, name: str):
    compare(got, right, name, rtol=1e-3, mistakes=[
        (right.sqrt(), "the mean *squared* error has no root."),
        ((predicted - eps).square().sum(), "take the mean, not the sum."),
        ((predicted - eps).abs().mean(), "squared differences, not absolute ones."),
        ((predicted - z).square().mean(), "the network predicts the noise: compare with eps, not with z."),
        ((predicted - z_t).square().mean(), "the network predicts the noise: compare with eps, not with z_t."),
        (-right, "the sign: a good prediction has a small loss."),
    ])
