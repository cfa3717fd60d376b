"""Checks of notebook 14: known wrong solutions fail with a message that helps; right ones written another way pass."""

import torch
from solutions import spoiled, try_all

from ldm_mini import checks
from ldm_mini.cond import Cond
from ldm_mini.diffusion import diffusion_loss, ideal_denoiser, to_x0_eps
from ldm_mini.samplers import ddim
from ldm_mini.schedule import RectifiedFlow, Schedule


def loss(net, x0, eps, t, T, *, time=lambda t, T: (t + 1) / T, mix=lambda a, x0, eps: (1 - a) * x0 + a * eps,
         target=lambda a, x0, eps: eps - x0, reduce=lambda e: e.square().mean(), use=lambda out: out):
    a = time(t[:, None], T)
    return reduce(use(net(mix(a, x0, eps), t)) - target(a, x0, eps))


def loss_by_library(net, x0, eps, t, T):
    return diffusion_loss(net, RectifiedFlow(T), x0, Cond(), "u", t=t, eps=eps)


def loss_by_functional(net, x0, eps, t, T):
    out = net(torch.lerp(x0, eps, (t.view(-1, 1) + 1) / T), t)
    return torch.nn.functional.mse_loss(out, eps - x0)


def score_velocity(score, x, tau, *, eps=lambda s, tau: -tau * s, below=lambda tau: 1 - tau,
                   join=lambda e, x0, x: e - x0):
    e = eps(score, tau)
    return join(e, (x - tau * e) / below(tau), x)


def flown(denoise, x, timesteps, alphas, sigmas, how="", ends=0.0):
    scale = (alphas**2 + sigmas**2).sqrt() if how == "root" else alphas + sigmas
    tau = {"sigma": sigmas, "t": (torch.arange(len(alphas)) + 1) / len(alphas)}.get(how, sigmas / scale)
    y, path = (x if how == "not divided" else x / scale[timesteps[0]]), []
    for t, s in zip(timesteps, [*timesteps[1:], -1]):
        x0, eps = denoise(y if how == "y asked" else y * scale[t], torch.full((len(y),), t))
        u = {"sign": x0 - eps, "scaled": scale[t] * (eps - x0)}.get(how, eps - x0)
        y = y + ((tau[s] if s >= 0 or how == "wrapped" else ends) - tau[t]) * (-u if how == "up" else u)
        path.append(y * scale[s] if how == "x" else y)
    return path


def flown_yields(denoise, x, timesteps, alphas, sigmas):
    yield from flown(denoise, x, timesteps, alphas, sigmas)


def gradient(x, of_class, points, alpha, sigma, *, over=lambda s: 2 * s**2, shrink=True, rest=None, sign=1, scale=1,
             reduce=torch.logsumexp):
    x = x.clone().requires_grad_()

    def log_p(points):
        centres = alpha[:, None] * points if shrink else points
        return reduce(-(x[:, None] - centres).square().sum(2) / over(sigma), 1)

    other = points if rest is None else rest(of_class, points)
    return sign * scale * torch.autograd.grad((log_p(of_class) - log_p(other)).sum(), x)[0]


def gradient_by_means(x, of_class, points, alpha, sigma):
    """Both scores by the posterior means."""
    means = [torch.softmax(-(x[:, None] - alpha[:, None] * p).square().sum(-1) / (2 * sigma**2), 1) @ p
             for p in (of_class, points)]
    return alpha * (means[0] - means[1]) / sigma**2


def gradient_by_library(x, of_class, points, alpha, sigma):
    """The ideal denoisers' eps, row by row, as each row has a level of its own."""
    rows = []
    for one, a, s in zip(x, alpha, sigma):
        schedule, t = Schedule(a, s), torch.zeros(1, dtype=torch.int64)
        eps = [ideal_denoiser(p, schedule)(one[None], t)[1] for p in (of_class, points)]
        rows.append((eps[1] - eps[0]) / s)
    return torch.cat(rows)


def flown_by_library(denoise, x, timesteps, alphas, sigmas):
    """DDIM, in the view of the flow."""
    for y, s in zip(ddim(denoise, x, Schedule(alphas, sigmas), timesteps), [*timesteps[1:], -1]):
        yield y / (alphas[s] + sigmas[s]) if s >= 0 else y


CORRECT = {
    checks.flow_loss: [loss, loss_by_library, loss_by_functional],
    checks.velocity_from_score: [
        score_velocity, lambda score, x, tau: -(x + tau * score) / (1 - tau),
        lambda score, x, tau: (-tau * score) - to_x0_eps("eps", -tau * score, x, 1 - tau, tau)[0]],
    checks.as_flow: [flown, flown_yields, flown_by_library],
    checks.class_gradient: [gradient, gradient_by_means, gradient_by_library],
}

MUTANTS = {
    checks.flow_loss: [
        *spoiled(loss, (dict(time=lambda t, T: t / T), "\\(t \\+ 1\\) / T"),
                 (dict(time=lambda t, T: t / (T - 1)), "\\(t \\+ 1\\) / T"),
                 (dict(mix=lambda a, x0, eps: a * x0 + (1 - a) * eps), "swapped on the line"),
                 (dict(mix=lambda a, x0, eps: (1 - a**2).sqrt() * x0 + a * eps), "diffusion's circle"),
                 (dict(mix=lambda a, x0, eps: (1 - a).sqrt() * x0 + a.sqrt() * eps), "no roots"),
                 (dict(mix=lambda a, x0, eps: x0), "clean x0"),
                 (dict(target=lambda a, x0, eps: x0 - eps), "from x0 to"),
                 (dict(target=lambda a, x0, eps: eps), "target is eps"),
                 (dict(target=lambda a, x0, eps: x0), "target is x0"),
                 (dict(target=lambda a, x0, eps: (1 - a) * eps - a * x0), "this is v"),
                 (dict(reduce=lambda e: e.square().sum()), "take the mean"),
                 (dict(reduce=lambda e: e.square().sum(1).mean()), "numbers of each row"),
                 (dict(reduce=lambda e: e.square().mean().sqrt()), "no root"),
                 (dict(reduce=lambda e: e.abs().mean()), "absolute value"),
                 (dict(reduce=lambda e: e.square().mean(1)), "one number"),
                 (dict(use=lambda out: out.detach()), "no gradient")),
        (lambda net, x0, eps, t, T: loss(net, x0, eps, t, 50), "\\(t \\+ 1\\) / T|off by"),
        (lambda net, x0, eps, t, T: (eps - x0).square().mean(), "never asked"),
    ],
    checks.velocity_from_score: [
        *spoiled(score_velocity, (dict(eps=lambda s, tau: tau * s), "Tweedie's sign"),
                 (dict(eps=lambda s, tau: -s), "it is missing"), (dict(eps=lambda s, tau: -s / tau), "do not divide"),
                 (dict(eps=lambda s, tau: -s * tau**2), "not its square"),
                 (dict(below=lambda tau: (1 - tau**2).sqrt()), "not sqrt"), (dict(below=lambda tau: 1.0), "tau eps"),
                 (dict(below=lambda tau: tau), "swapped"), (dict(join=lambda e, x0, x: x0 - e), "towards noise"),
                 (dict(join=lambda e, x0, x: e), "this is eps"), (dict(join=lambda e, x0, x: x0), "this is x0"),
                 (dict(join=lambda e, x0, x: e - x), "not x"), (dict(join=lambda e, x0, x: e + x0), "not the sum"),
                 (dict(join=lambda e, x0, x: (e - x0).double()), "dtype")),
    ],
    checks.as_flow: [
        *spoiled(flown, ("sign", "denoise returns x0"), ("wrapped", "tau = 0"), ("y asked", "knows x_t"),
                 ("not divided", "begin with"), ("sigma", "not sigma"), ("t", "not \\(t"),
                 ("root", "without squares"),
                 ("x", "point of the line"), ("up", "denoise returns|tau falls"),
                 ("scaled", "not rescaled"),
                 (dict(ends=0.1), "off by")),
        (lambda *a: flown(*a)[-1], "after \\*every\\* step"), (lambda *a: flown(*a)[:-1], "states"),
        (lambda d, x, t, *a: flown(d, x, t[::-1], *a), "other way round|off by"),
        (lambda d, *a: flown(lambda x, t: (d(x, t)[0], d(x, t)[1]), *a), "once a step"),
    ],
    checks.class_gradient: [
        *spoiled(gradient, (dict(rest=lambda c, p: 0 * p), "off by"), (dict(sign=-1), "the sign"),
                 (dict(rest=lambda c, p: p[len(c):]), "\\*all\\* points"), (dict(shrink=False), "shrinks the points"),
                 (dict(over=lambda s: 2 * s), "variance"), (dict(over=lambda s: s**2), "2 is missing"),
                 (dict(reduce=lambda e, dim: e.exp().sum(dim).log()), "NaN far"),
                 (dict(rest=lambda c, p: c), "off by")),
        (lambda x, c, p, a, s: gradient(x, c, p, a, s, scale=s), "has no sigma"),
        (lambda x, c, p, a, s: gradient(x, p, c, a, s), "the sign"),
        (lambda *a: gradient(*a).double(), "dtype"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
