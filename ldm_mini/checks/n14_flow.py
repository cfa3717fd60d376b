"""Checks of notebook 14, flow matching: its loss, and what is a velocity. Time tau = 1 is noise, 0 the clean image."""

import torch
from torch import Tensor

from .checking import CheckFailed, attempt, compare, passed
from .n06_training import TinyDenoiser
from .n06_walks import asked_at, states
from .properties import fresh, same_dtype, same_gradient

LINE = "x = (1 - tau) x0 + tau eps"


def flow_loss(function):
    """`function(net, x0, eps, t, T)`: net(x, t) -> (B,D); x0, eps (B,D); t (B,) -> the velocity's squared error, ()."""
    draw = fresh()
    for T, times, dim in ((50, [0, 9, 48, 49, 20], 3), (20, [16, 0, 7], 2)):
        net, t, x0, eps = TinyDenoiser(draw, dim), torch.tensor(times), draw(len(times), dim), draw(len(times), dim)
        got, seen = attempt(function, net, x0, eps, t, T, name="flow_loss"), net.seen
        if seen is None:
            raise CheckFailed("flow_loss never asked the network: net(x, t).")
        tau, u = (t[:, None] + 1) / T, eps - x0
        out = lambda x, t=t, net=net: net(x, t)
        right, mean = (1 - tau) * x0 + tau * eps, lambda error: error.square().mean()
        off = lambda tau, x0=x0, eps=eps: (1 - tau) * x0 + tau * eps
        loss, what = mean(out(right) - u), "flow_loss(net, x0, eps, t, T)"
        compare(got, loss, what, mistakes=[
            (mean(out(right) + u), "the velocity points from x0 to eps, as tau grows: u = eps - x0."),
            (mean(out(right) - eps), "the target is eps; flow matching asks for u = eps - x0."),
            (mean(out(right) - x0), "the target is x0; flow matching asks for u = eps - x0."),
            (mean(out(off(1 - tau)) - u), f"x0 and eps are swapped on the line: {LINE}."),
            (mean(out(off(t[:, None] / T)) - u), "the time of timestep t is (t + 1) / T: so t = T - 1 is pure noise."),
            (mean(out(off(t[:, None] / (T - 1))) - u), "the time of timestep t is (t + 1) / T."),
            (mean(out((1 - tau**2).sqrt() * x0 + tau * eps) - u), f"this is diffusion's circle; the line is {LINE}."),
            (mean(out((1 - tau).sqrt() * x0 + tau.sqrt() * eps) - u), f"no roots: {LINE}."),
            (mean(out(x0) - u), f"the network saw the clean x0: show it {LINE}."),
            (mean(out(right) - (1 - tau) * eps + tau * x0), "this is v, of a circle; on the line u = eps - x0."),
            ((out(right) - u).square().sum(), "this is the sum: take the mean."),
            ((out(right) - u).square().sum(1).mean(), "the mean is over the numbers of each row, too."),
            (mean(out(right) - u).sqrt(), "no root: the *squared* error."),
            ((out(right) - u).abs().mean(), "the error is squared: this is its absolute value."),
        ], shapes={(len(t),): "one number: the mean over all rows and numbers."})
        compare(seen, right, "what flow_loss showed to the network", atol=1e-4)
        net.zero_grad()
        same_gradient(got, loss, dict(net.named_parameters()), what)
        same_dtype(got, x0, what)
    passed("flow_loss: on the straight line, the velocity")


def velocity_from_score(function):
    """`function(score, x, tau)`: score, x (B,D), tau (B,1) in (0,1) -> u = eps - x0, (B,D)."""
    draw = fresh()
    for size, dim in ((5, 3), (7, 2)):
        score, x, tau = draw(size, dim), draw(size, dim), 0.1 + 0.8 * torch.sigmoid(draw(size, 1))
        got, what = attempt(function, score, x, tau, name="velocity_from_score"), "velocity_from_score(score, x, tau)"

        def u(eps, x=x, tau=tau, below=None):
            return eps - (x - tau * eps) / ((1 - tau) if below is None else below)

        eps = -tau * score
        compare(got, u(eps), what, rtol=1e-3, atol=1e-4, mistakes=[
            (u(-eps), "Tweedie's sign: the score points *away* from the noise, eps = -sigma score."),
            (-u(eps), "the velocity points towards noise, where tau grows: u = eps - x0."),
            (u(-score), "eps = -sigma score, and sigma is tau here: it is missing."),
            (u(-score / tau), "score = -eps / sigma: multiply by sigma to get eps, do not divide."),
            (u(-(tau**2) * score), "eps = -sigma score: sigma, not its square."),
            (u(eps, below=(1 - tau**2).sqrt()), "on the straight line alpha is 1 - tau, not sqrt(1 - tau^2)."),
            (u(eps, below=1.0), "x = alpha x0 + sigma eps: x0 is (x - tau eps) / (1 - tau)."),
            (u(eps, below=tau), "alpha and sigma are swapped: alpha = 1 - tau goes with x0."),
            (eps, "this is eps. The velocity is eps - x0."),
            ((x - tau * eps) / (1 - tau), "this is x0. The velocity is eps - x0."),
            (eps - x, "the second is x0, not x."),
            (eps + (x - tau * eps) / (1 - tau), "the difference eps - x0, not the sum."),
        ])
        same_dtype(got, x, what)
    passed("velocity_from_score: Tweedie's formula, on a straight line")


# amplitudes (T,): of a circle, of a line, and of noise that explodes; sigma is never 0
PHI = torch.linspace(0.05, 1.55, 30)
LEVELS = ((PHI.cos(), PHI.sin()), (1 - PHI / 1.55, PHI / 1.55), (torch.ones(30), PHI.exp() - 1))


class _Asked:
    """A denoise(x_t, t) -> (x0, eps) that nobody knows by heart; it keeps x_t = alpha x0 + sigma eps."""

    def __init__(self, draw, dim: int, alphas: Tensor, sigmas: Tensor):
        self.mix, self.levels, self.asked, self.__name__ = draw(dim, dim), (alphas, sigmas), [], "denoise"

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(t, Tensor) or t.dtype != torch.int64 or t.shape != x.shape[:1]:
            raise ValueError("denoise(x, t) wants an int64 t for each row of x, torch.full((len(x),), t)")
        self.asked.append(t.tolist())
        late, alpha, sigma = (v.view(-1, *[1] * (x.ndim - 1)) for v in (0.05 * t, *(level[t] for level in self.levels)))
        x0 = torch.tanh(x @ self.mix + late)
        return x0, (x - alpha * x0) / sigma


WRONG = {
    "sign": "u = eps - x0; denoise returns x0, then eps.",
    "wrapped": "tau[-1] is the *last* entry, the noise; after the last timestep comes the clean image, tau = 0.",
    "y asked": "the network knows x_t, not y: multiply y by alpha + sigma *of this t* before you ask.",
    "not divided": "begin with y = x / (alpha + sigma), at the first timestep.",
    "sigma": "the time is tau = sigma / (alpha + sigma), not sigma.",
    "t": "the time is tau = sigma / (alpha + sigma), not (t + 1) / T: this schedule need not be a line.",
    "root": "the scale is alpha + sigma, without squares and root.",
    "x": "this is x_t after each step; give y, the point of the line.",
    "stays": "each step starts from the first y: it should go on from the y of the step before.",
    "up": "tau falls: the step is tau of the *next* timestep, minus tau of this one.",
    "v": "this is v, the velocity on the circle; on the line it is eps - x0.",
    "scaled": "dy / dtau is eps - x0 itself: it is not rescaled.",
}


def _flown(denoise, x, timesteps, alphas, sigmas, change=""):
    """The walk with one thing changed."""
    scale = (alphas**2 + sigmas**2).sqrt() if change == "root" else alphas + sigmas
    steps = (torch.arange(len(alphas)) + 1) / len(alphas)
    tau = {"sigma": sigmas, "t": steps}.get(change, sigmas / scale)
    y, path = x if change == "not divided" else x / scale[timesteps[0]], []
    start = y
    for t, s in zip(timesteps, [*timesteps[1:], -1]):
        at = start if change == "stays" else y
        x0, eps = denoise(at if change == "y asked" else scale[t] * at, torch.full((len(x),), t))
        u = {"sign": x0 - eps, "v": alphas[t] * eps - sigmas[t] * x0, "scaled": scale[t] * (eps - x0)}.get(
            change, eps - x0)
        then = tau[s] if s >= 0 or change == "wrapped" else 0.0
        y = at + (tau[t] - then if change == "up" else then - tau[t]) * u
        path.append(y * scale[s] if change == "x" and s >= 0 else y)
    return path


def as_flow(function):
    """`function(denoise, x, timesteps, alphas, sigmas)`: a diffusion model's flow -> y (B,...) after each step."""
    draw = fresh()
    for (alphas, sigmas), shape, timesteps in zip(
            LEVELS, ((5, 3), (2, 3, 2, 4), (4, 2)), ([29, 20, 11, 2], [28, 13, 7, 0], [25, 24, 9])):
        denoise, x = _Asked(draw, shape[-1], alphas, sigmas), draw(*shape)
        got = states(function, denoise, x, list(timesteps), alphas, sigmas, count=len(timesteps), name="as_flow")
        asked_at(denoise, timesteps, "as_flow")
        rows = {change: _flown(denoise, x, timesteps, alphas, sigmas, change) for change in ("", *WRONG)}
        for k, want in enumerate(rows[""]):
            what = f"as_flow: y after the step from t = {timesteps[k]}"
            compare(got[k], want, what, rtol=1e-3, atol=1e-3,
                    mistakes=[(rows[change][k], hint) for change, hint in WRONG.items()])
            same_dtype(got[k], want, what)
    passed("as_flow: any diffusion model, on a straight line")


def class_gradient(function):
    """`function(x, of_class, points, alpha, sigma)`: x (B,D), (M,D), (N,D) -> gradient of log p(class | x), (B,D)."""
    draw = fresh()
    for size, mine, others, dim in ((6, 3, 5, 2), (4, 2, 4, 3)):
        x, of_class, rest = draw(size, dim), draw(mine, dim), draw(others, dim)
        points, sigma = torch.cat([of_class, rest]), 0.4 + 0.5 * torch.sigmoid(draw(size, 1))
        alpha = 0.9 * torch.sigmoid(draw(size, 1))

        def score(points, shrink=alpha, v=sigma**2, x=x):
            near = -(x[:, None] - shrink[:, None] * points).square().sum(-1) / (2 * v)
            return (shrink * (torch.softmax(near, 1) @ points) - x) / v

        got, what = attempt(function, x, of_class, points, alpha, sigma, name="class_gradient"), "class_gradient(...)"
        one, v = torch.ones_like(alpha), sigma**2
        compare(got, score(of_class) - score(points), what, rtol=1e-3, atol=1e-3, mistakes=[
            (score(of_class), "this is the score of the class, log p(x | c): take log p(x) away."),
            (score(points), "this is the score of all points. By Bayes: log p(x | c) - log p(x)."),
            (score(points) - score(of_class), "the sign: log p(x | c) - log p(x)."),
            (score(of_class) - score(rest), "log p(x) is over *all* points, those of the class included."),
            (score(of_class) + score(points), "the difference, not the sum."),
            (score(of_class, one) - score(points, one), "noising shrinks the points: alpha * point."),
            (score(of_class, v=sigma) - score(points, v=sigma), "divide by the *variance*, 2 sigma^2."),
            (score(of_class, v=v / 2) - score(points, v=v / 2), "a Gaussian's exponent is -distance^2 / (2 sigma^2); "
             "the 2 is missing."),
            (sigma * (score(of_class) - score(points)), "this is the step of eps; the gradient itself has no sigma."),
        ])
        same_dtype(got, x, what)
    got = attempt(function, 60 + draw(3, 2), draw(2, 2), draw(5, 2), torch.ones(3, 1), torch.full((3, 1), 0.1),
                  name="class_gradient")
    if isinstance(got, Tensor) and not got.isfinite().all():
        raise CheckFailed("class_gradient is NaN far from all points: each exp becomes 0, and log 0 follows. "
                          "torch.logsumexp takes the largest exponent out first.")
    passed("class_gradient: what a perfect classifier says")
