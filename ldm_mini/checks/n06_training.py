"""Checks of notebook 06, how a denoiser learns: the loss, one step of training, and the loss at each t."""

import torch
from torch import Tensor, nn

from ..schedule import NoiseSchedule
from .checking import CheckFailed, attempt, compare, passed
from .n06_diffusion import SCHEDULES
from .n06_walks import Oracle
from .properties import fresh, generator, same_dtype, same_gradient


class TinyDenoiser(nn.Module):
    """x_t (B, D), t (B,) int64 -> (B, D). `seen` is what it was last asked."""

    def __init__(self, draw, dim: int):
        super().__init__()
        self.first, self.second = (nn.Parameter(draw(dim, dim)) for _ in range(2))
        self.seen = None

    def forward(self, x_t: Tensor, t: Tensor, cond=None) -> Tensor:
        if not isinstance(t, Tensor) or t.dtype != torch.int64 or t.shape != x_t.shape[:1]:
            raise ValueError("net(x_t, t) wants t as it came: int64, one for each row of x_t")
        self.seen = x_t.detach().clone()
        return torch.tanh(x_t @ self.first + 0.05 * t[:, None]) @ self.second


def v_loss(function):
    """`function(net, schedule, x0, t, eps)`: x0, eps (B,D), t (B,) -> the mean squared error of v, ()."""
    draw = fresh()
    for made, t, dim in zip(SCHEDULES, ([0, 9, 38, 39, 20], [16, 0, 7]), (3, 2)):
        schedule, t, net = NoiseSchedule(made.betas), torch.tensor(t), TinyDenoiser(draw, dim)
        x0, eps = draw(len(t), dim), draw(len(t), dim)
        got = attempt(function, net, schedule, x0, t, eps, name="v_loss")
        if net.seen is None:
            raise CheckFailed("v_loss never asked the network: net(x_t, t).")
        seen, (right, wrong) = net.seen, _losses(net, schedule, x0, t, eps)
        if isinstance(got, Tensor) and got.numel() > 1:
            raise CheckFailed(f"v_loss returned {got.numel()} numbers; it is one: the mean over all rows and numbers.")
        what, alpha = "v_loss(net, schedule, x0, t, eps)", schedule.alpha(t, 2)
        compare(got, right, what, rtol=1e-4, atol=1e-6, mistakes=wrong)
        compare(seen, alpha * x0 + schedule.sigma(t, 2) * eps, "what v_loss showed to the network", atol=1e-4)
        net.zero_grad()
        same_gradient(got, right, dict(net.named_parameters()), what)
        same_dtype(got, x0, what)
    passed("v_loss: noise it, ask, and compare with what should have been said")


def _losses(net, schedule, x0, t, eps):
    """The loss, and pairs (what a known mistake gives, what to tell)."""
    a, s = schedule.alpha(t, 2), schedule.sigma(t, 2)
    x_t, v = a * x0 + s * eps, a * eps - s * x0
    out = net(x_t, t)
    mean = lambda other, out=out: (out - other).square().mean()
    swapped = s * x0 + a * eps
    return mean(v), [
        (mean(eps), "the target is eps; this network says v = alpha eps - sigma x0."),
        (mean(x0), "the target is x0; this network says v = alpha eps - sigma x0."),
        (mean(a * eps + s * x0), "the sign of v: v = alpha eps - sigma x0."),
        (mean(-v), "v points the other way: v = alpha eps - sigma x0."),
        (mean(a * x0 - s * eps), "alpha and sigma are swapped in v: v = alpha eps - sigma x0."),
        (mean(s * eps - a * x0), "alpha and sigma are swapped in v: v = alpha eps - sigma x0."),
        (mean(v, net(swapped, t)), "the network saw signal and noise swapped: x_t = alpha x0 + sigma eps."),
        (mean(v, net(x0, t)), "the network saw the clean x0: show it x_t."),
        (mean(v, net(a * x0 + eps, t)), "the network saw noise of full size: x_t = alpha x0 + sigma eps."),
        (mean(v, net(x0 + s * eps, t)), "the network saw a signal of full size: x_t = alpha x0 + sigma eps."),
        (mean(v, net(x_t, t * 0)), "the network got another t than its x_t has."),
        ((out - v).square().sum(), "this is the sum: take the mean, so that it does not grow with the batch."),
        ((out - v).square().sum(1).mean(), "the mean is over the numbers of each row, too."),
        (mean(v).sqrt(), "no root: the *squared* error."),
        ((out - v).abs().mean(), "the error is squared: this is its absolute value."),
    ]


def denoiser_step(function):
    """`function(net, optimizer, schedule, x0, generator)`: one step on x0 (B,D); draws t, then eps -> loss, a float."""
    draw = fresh()
    for made, size, dim, rate in zip(SCHEDULES, (12, 7), (3, 2), (0.1, 0.02)):
        _hold_step(function, draw, NoiseSchedule(made.betas), draw(size, dim), rate)
    _all_times(function, draw)
    passed("training_step: a new t and new noise for each row, and one step downhill")


def _hold_step(function, draw, schedule, x0, rate):
    net, source = TinyDenoiser(draw, x0.shape[1]), generator()
    optimizer, seed, T = torch.optim.SGD(net.parameters(), rate), source.initial_seed(), schedule.num_steps
    g = torch.Generator().manual_seed(seed)
    t, eps = torch.randint(T, (len(x0),), generator=g), torch.randn(x0.shape, generator=g)
    loss, wrong = _losses(net, schedule, x0, t, eps)
    grads = lambda loss: torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
    right = grads(loss)
    others = [(grads(value), hint) for value, hint in wrong + _other_draws(net, schedule, x0, seed)]
    before, stale = [p.detach().clone() for p in net.parameters()], [draw(*p.shape) for p in net.parameters()]
    for p, left in zip(net.parameters(), stale):
        p.grad = left.clone()  # what the step before left behind

    got = attempt(function, net, optimizer, schedule, x0, source, name="training_step")
    moved = [b - p.detach() for b, p in zip(before, net.parameters())]
    if not any(m.any() for m in moved):
        raise CheckFailed("the network has not changed: zero_grad(), then backward(), then step(), in this order.")
    if torch.equal(source.get_state(), torch.Generator().manual_seed(seed).get_state()):
        raise CheckFailed("nothing was drawn from `generator`: give it to torch.randint and to torch.randn.")
    _name_the_step([m / rate for m in moved], right, stale, others)
    if not isinstance(got, float):
        raise CheckFailed(f"training_step should return the loss as a float, not {type(got).__name__}: loss.item(). A "
                          "tensor would keep all that the step has computed.")
    compare(torch.tensor(got), loss.detach(), "the returned loss", rtol=1e-3, mistakes=[
        (_losses(net, schedule, x0, t, eps)[0], "this is the loss *after* the step.")])


def _name_the_step(made, right, stale, others):
    """Hold the gradients with which a step was made against the right ones and those of known mistakes."""
    was = lambda grads: all(torch.allclose(m, g, rtol=1e-3, atol=1e-3) for m, g in zip(made, grads))
    if was(right):
        return
    for grads, hint in [
        ([g + s for g, s in zip(right, stale)], "the gradients of the step before were added to yours: "
         "optimizer.zero_grad() before backward()."),
        (stale, "the step was made with the gradients that lay there: zero_grad(), then backward(), then step(), in "
         "this order."),
        ([-g for g in right], "uphill: the sign of the loss."),
        ([2 * g for g in right], "twice as far as it should go: two backward() or two step()."),
        *others,
    ]:
        if was(grads):
            raise CheckFailed(f"training_step: {hint}")
    raise CheckFailed("training_step did not make the step of v_loss. Are t (whole numbers 0 to T - 1, one for each "
                      "row) and then eps (like x0) drawn from `generator`, once each, before one step?")


def _other_draws(net, schedule, x0, seed: int):
    """The losses of who draws t and eps in another way, and what to tell."""
    T, size = schedule.num_steps, (len(x0),)
    first, second = (torch.Generator().manual_seed(seed) for _ in range(2))
    eps, t = torch.randn(x0.shape, generator=first), torch.randint(T, size, generator=first)
    one, its = torch.randint(T, (1,), generator=second).expand(size), torch.randn(x0.shape, generator=second)
    return [(_losses(net, schedule, x0, t, eps)[0], "the order of the draws: first t, then eps."),
            (_losses(net, schedule, x0, one, its)[0], "all rows got the same t: draw len(x0) of them.")]


def _all_times(function, draw):
    """Whether every t from 0 to T - 1 comes, and no other."""
    schedule, met = NoiseSchedule(torch.full((4,), 0.2)), set()

    class Noting(TinyDenoiser):
        def forward(self, x_t, t, cond=None):
            met.update(t.tolist())
            return super().forward(x_t, t)

    net = Noting(draw, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.001)
    attempt(function, net, optimizer, schedule, draw(200, 2), generator(), name="training_step")
    if met != {0, 1, 2, 3}:
        raise CheckFailed(f"training_step draws the timesteps {sorted(met)} where the schedule has 0, 1, 2, 3.")


def loss_per_t(function):
    """`function(denoise, schedule, x0, eps, times)`: x0, eps (B,D), times (K,) -> mean error of eps at each, (K,)."""
    draw = fresh()
    for made, times, shape in zip(SCHEDULES, ([0, 3, 20, 39], [16, 2, 9]), ((6, 3), (5, 2))):
        _hold_losses(function, NoiseSchedule(made.betas), torch.tensor(times), *draw(2, *shape),
                     Oracle(draw, shape, made.abar))
    passed("loss_per_t: where in time denoising is hard")


def _hold_losses(function, schedule, times, x0, eps, denoise):
    def row(error, noise_it=True, times=times):
        """error(x0, eps), as denoise says them, at each time."""
        every = [t.expand(len(x0)) for t in times]
        return torch.stack([error(*denoise(schedule.add_noise(x0, eps, t) if noise_it else x0, t)) for t in every])

    square = lambda _, said: (said - eps).square().mean()
    right = row(square)
    got, what = attempt(function, denoise, schedule, x0, eps, times, name="loss_per_t"), "loss_per_t(...)"
    if isinstance(got, (list, tuple)):
        raise CheckFailed("loss_per_t returned a list: make it one tensor with torch.stack.")
    compare(got, right, what, rtol=1e-3, atol=1e-5, mistakes=[
        (row(lambda guess, _: (guess - x0).square().mean()), "this is the error of x0, the first of the two things "
         "that denoise returns; eps is the second."),
        (row(lambda guess, _: (guess - eps).square().mean()), "denoise returns x0 *and* eps, in this order: compare "
         "the second."),
        (row(lambda _, said: (said - x0).square().mean()), "eps is compared with eps, not with x0."),
        (row(lambda _, said: (said - eps).square().sum()), "the *mean* over all rows and numbers."),
        (row(lambda _, said: (said - eps).square().sum(1).mean()), "the mean is over the numbers of each row, too."),
        (row(square).sqrt(), "no root: the squared error."),
        (row(lambda _, said: (said - eps).abs().mean()), "the error is squared."),
        (row(square).cumsum(0), "the errors are added up: each t has its own."),
        (row(square).cumsum(0) / torch.arange(1, len(times) + 1), "each t has its own mean."),
        (row(square).flip(0), "the order is that of `times`."),
        (row(square, times=torch.arange(len(times))), "this is t = 0, 1, 2, ...; take times[k]."),
        (row(square, noise_it=False), "the network saw the clean x0: noise it first."),
    ], shapes={(): "one number for *each* of `times`.", (len(times), len(x0)): "take the mean over the rows."})
    same_dtype(got, x0, what)
