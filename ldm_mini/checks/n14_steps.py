"""Checks of notebook 14, the steps of a flow: walks, crooked paths, reflow, errors, shortcuts. Time falls: 1 to 0."""

import torch
from torch import Tensor

from .checking import CheckFailed, attempt, compare, number, passed
from .n06_training import TinyDenoiser
from .n06_walks import copied, states
from .properties import fresh, generator, same_dtype

TIMES = ([1.0, 0.7, 0.5, 0.2, 0.0], [1.0, 0.9, 0.45, 0.0])


class _Field:
    """A velocity(x, tau) that nobody knows by heart; `asked` is when it was asked."""

    def __init__(self, draw, dim: int):
        self.mix, self.asked, self.__name__ = draw(dim, dim), [], "velocity"

    def __call__(self, x: Tensor, tau) -> Tensor:
        tau = float(tau)
        self.asked.append(tau)
        if tau <= 0:
            raise ValueError("the velocity at time 0 cannot be asked for: there is no noise to see")
        return torch.tanh(x @ self.mix + tau) - 0.3 * x / tau


def _walked(velocity, x, times, change="", heun=False):
    """A walk with one thing changed."""
    path, start = [], x
    first = velocity(x, times[0])
    for now, then in zip(times, times[1:]):
        at = start if change == "stays" else x
        ask = {"late": then if then > 0 else now}.get(change, now)
        step = {"up": now - then, "even": -1 / (len(times) - 1)}.get(change, then - now)
        u = first if change == "first" else velocity(at, ask)
        if heun and then > 0 and change != "euler":
            there = at if change == "there" else at + step * u
            again = velocity(there, now if change == "same time" else then)
            u = {"sum": u + again, "second": again}.get(change, (u + again) / 2)
            at = there if change == "twice" else at
        x = at + step * u
        path.append(x)
    return path


WRONG = {
    "up": "time falls: the step is (next time) - (this time), which is negative.",
    "stays": "each step starts from the first x: it should go on from the x of the step before.",
    "even": "a step is as long as the gap between its two times; they are not even here.",
    "first": "the velocity of the start was used for all steps: ask anew in each.",
    "late": "Euler asks where it *is*: velocity(x, this time).",
}
WRONG_HEUN = {
    "euler": "this is Euler's walk, of first order: ask again where the step arrives, and take the mean.",
    "there": "the second question is asked at the place where Euler's step *arrives*.",
    "same time": "the second question is asked at the *next* time.",
    "sum": "the *mean* of both velocities, not their sum.",
    "second": "the mean of both velocities, not the second alone.",
    "twice": "step anew from where you were, with the mean: not on from where Euler's step arrived.",
    **{name: WRONG[name] for name in ("up", "stays", "even")},
}


def _hold_walk(function, name: str, wrong: dict, heun: bool):
    draw = fresh()
    for times, shape in zip(TIMES, ((5, 3), (2, 3, 2, 4))):
        x, velocity = draw(*shape), _Field(draw, shape[-1])
        got = states(function, velocity, x, list(times), count=len(times) - 1, name=name)
        asked = list(velocity.asked)
        rows = {change: _walked(velocity, x, times, change, heun) for change in ("", *wrong)}
        for k, want in enumerate(rows[""]):
            compare(got[k], want, f"{name}: x at time {times[k + 1]:g}", rtol=1e-3, atol=1e-3,
                    mistakes=[(rows[change][k], hint) for change, hint in wrong.items()])
            same_dtype(got[k], want, name)
        right = len(times) - 1 + heun * (len(times) - 2)
        if len(asked) > right:
            raise CheckFailed(f"{name} asks for {len(asked)} velocities; {right} are enough: each is a network call.")


def flow_walk(function):
    """`function(velocity, x, times)`: Euler's method, velocity(x, tau) -> like x; -> the x after each step."""
    _hold_walk(function, "flow_walk", WRONG, heun=False)
    passed("flow_walk: from noise to data, along the velocity")


def heun_walk(function):
    """`function(velocity, x, times)`: Heun's method, whose last step is Euler's; -> the x after each step."""
    _hold_walk(function, "heun_walk", WRONG_HEUN, heun=True)
    passed("heun_walk: the mean of two slopes, and no question at time 0")


def crookedness(function):
    """`function(path, times)`: path (K+1,B,D), times (K+1,) from 1 to 0 -> how far its velocity is from the chord's."""
    draw = fresh()
    for times, shape in ((torch.tensor([1.0, 0.9, 0.4, 0.1, 0.0]), (5, 4, 2)), (torch.tensor(TIMES[1]), (4, 3, 5))):
        path = draw(*shape)
        got = number(attempt(function, path, times, name="crookedness"), "crookedness")
        lasts, chord = times.diff(), path[0] - path[-1]
        u = path.diff(dim=0) / lasts[:, None, None]
        error = (u - chord).square()
        over = lambda e, lasts=lasts: (e * lasts.abs()).sum()
        each = error.sum(2).mean(1)
        compare(got, over(each).double(), "crookedness(path, times)", rtol=1e-3, mistakes=[
            (over((u + chord).square().sum(2).mean(1)), "the chord's velocity is x at tau = 1 minus x at tau = 0: mind "
             "its sign."),
            (each.mean(), "the steps do not last equally long here: each weighs |tau_{k+1} - tau_k|."),
            (each.sum(), "each step weighs as long as it lasts: times |tau_{k+1} - tau_k|."),
            (-over(each), "how long a step lasts is positive: times fall, so take the absolute value."),
            (over(error.mean((1, 2))), "the squared *distance*: a sum over the coordinates, a mean over points."),
            (over(error.sum((1, 2))), "the mean over the points, not their sum."),
            (over(error.sum(2).sqrt().mean(1)), "the *squared* distance."), (over(each).sqrt(), "no root at the end."),
            (over((path.diff(dim=0) - chord).square().sum(2).mean(1)), "the velocity is the way divided *by the "
             "time*."),
            (over((path[:-1] - path[1:] - chord).square().sum(2).mean(1)), "the velocity is the way divided *by the "
             "time*."),
            (over(u.square().sum(2).mean(1)), "take the chord's velocity away first."),
        ])
    line = torch.lerp(*draw(2, 1, 6, 3), times[:, None, None])
    if number(attempt(function, line, times, name="crookedness"), "crookedness").abs() > 1e-5:
        raise CheckFailed("crookedness of a straight line is 0, but yours is not.")
    passed("crookedness: 0 for a straight line")


def reflow_step(function):
    """`function(net, optimizer, z, x, T, generator)`: one step on 256 pairs of z, x (N,D) -> loss, a float."""
    draw = fresh()
    for count, dim, T, rate in ((400, 3, 50, 0.1), (90, 2, 20, 0.02)):
        net, z, x, source = TinyDenoiser(draw, dim), draw(count, dim), draw(count, dim), generator()
        again, optimizer = copied(source), torch.optim.SGD(net.parameters(), rate)
        which = torch.randint(count, (256,), generator=again)
        t = torch.randint(T, (256,), generator=again)
        tau = (t[:, None] + 1) / T

        def loss(z, x, net=net, t=t, tau=tau):
            return (net((1 - tau) * x + tau * z, t) - (z - x)).square().mean()

        chance = torch.randn(256, dim, generator=again)
        right, *others = (torch.autograd.grad(value, list(net.parameters())) for value in (
            loss(z[which], x[which]), loss(x[which], z[which]), loss(chance, x[which]),
            loss(z[which], x[which.flip(0)]), loss(z[:256], x[:256]) if count >= 256 else loss(z[which], x[which]) * 0))
        want = loss(z[which], x[which]).item()
        before, stale = [p.detach().clone() for p in net.parameters()], [draw(*p.shape) for p in net.parameters()]
        for p, left in zip(net.parameters(), stale):
            p.grad = left.clone()                               # what the step before left behind
        got = attempt(function, net, optimizer, z, x, T, source, name="reflow_step")
        made = [(b - p.detach()) / rate for b, p in zip(before, net.parameters())]
        close = lambda other, made=made: all(torch.allclose(m, g, rtol=1e-3, atol=1e-3) for m, g in zip(made, other))
        if not any(m.any() for m in made):
            raise CheckFailed("the network has not changed: zero_grad(), then backward(), then step(), in this order.")
        hints = ("z and x are swapped: z is the noise (tau = 1), x where the flow took it.",
                 "new noise was drawn: then the pairs are made by chance again. The noise of x is its own z.",
                 "z and x belong together: use the same rows of both.",
                 "draw the pairs: torch.randint(len(z), (256,), generator=generator).")
        if not close(right):
            for grads, hint in [*zip(others, hints),
                                ([g + s for g, s in zip(right, stale)], "the gradients of the step before were added "
                                 "to yours: optimizer.zero_grad() before backward()."),
                                (stale, "the step was made with the gradients that lay there: zero_grad() first."),
                                ([-g for g in right], "uphill: the sign of the loss.")]:
                if close(grads):
                    raise CheckFailed(f"reflow_step: {hint}")
            raise CheckFailed("reflow_step did not make the step of flow_loss on its pairs. Are 256 of the pairs drawn "
                              "first (torch.randint), and then 256 timesteps from 0 to T - 1, both from `generator`?")
        if not isinstance(got, float):
            raise CheckFailed(f"reflow_step should return the loss as a float, not {type(got).__name__}: loss.item().")
        compare(torch.tensor(got), torch.tensor(want), "the returned loss", rtol=1e-3)
    passed("reflow_step: the pairs that the flow made, and straight lines between them")


def local_errors(function):
    """`function(path, times, count)`: path (K+1,B,D), times (K+1,) from 1 to 0 -> `count` mean distances, floats."""
    draw = fresh()
    for steps, count, shape in ((12, 4, (5, 2)), (6, 2, (3, 4))):
        lasts = 0.2 + draw(steps).abs()
        times = 1 - torch.cat([torch.zeros(1), (lasts / lasts.sum()).cumsum(0)])
        path, every = draw(steps + 1, *shape), steps // count
        missed = lambda how="": _missed(path, times, every, how)  # noqa: B023
        got, what = attempt(function, path, times, count, name="local_errors"), f"local_errors(path, times, {count})"
        if not isinstance(got, (list, tuple, Tensor)):
            raise CheckFailed(f"{what} should return a list of {count} numbers, not {type(got).__name__}.")
        got = torch.stack([number(value, f"each of {what}") for value in got]) if len(got) else torch.zeros(0)
        far = missed().norm(dim=2)
        compare(got, far.mean(1).double(), what, rtol=1e-3, mistakes=[
            *((missed(how).norm(dim=2).mean(1), hint) for how, hint in MISSED.items()),
            (far.sum(1), "the mean over the points, not their sum."),
            (far.square().mean(1), "the distance, not its square."),
            (far.square().mean(1).sqrt(), "the mean of the distances: the root comes before the mean."),
            (missed().abs().mean((1, 2)), "the distance of two points: the root of a sum of squares over coordinates."),
            (far.mean(1).flip(0), "in order: the step that begins at tau = 1 comes first."),
        ], shapes={(steps,): "these are all steps of the fine path; a long one spans K / count of them.",
                   (count + 1,): "the last long step *ends* at tau = 0; none begins there."})
    passed("local_errors: how far each long step misses, for itself")


MISSED = {
    "goes on": "a long step begins *on the path*, not where the one before has landed.",
    "up": "time falls: the step is (next time) - (this time), which is negative.",
    "first": "each long step asks for the velocity where it begins; the first one's was used for all.",
    "chord": "with the mean velocity of the whole long step no error is left but rounding: take that of its first fine "
             "step.",
    "late": "the velocity at the *beginning* of a long step, not at its end.",
    "fine": "a long step lasts until the next long one begins, not until the next time of the fine path.",
    "even": "a step lasts from its time to that of the next long step; the times are not even here.",
    "stays": "the place is compared with the path's at the *end* of the long step.",
}


def _missed(path, times, every: int, how: str = "") -> Tensor:
    """(count, B, D): where each long step lands, less where the path is then."""
    u, x, found = path.diff(dim=0) / times.diff()[:, None, None], path[0], []
    for k in range(0, len(u), every):
        end = k + every
        lasts = {"up": times[k] - times[end], "fine": times[k + 1] - times[k],
                 "even": -every / len(u)}.get(how, times[end] - times[k])
        speed = {"first": u[0], "late": u[end - 1],
                 "chord": (path[end] - path[k]) / (times[end] - times[k])}.get(how, u[k])
        x = (x if how == "goes on" else path[k]) + lasts * speed
        found.append(x - path[k if how == "stays" else end])
    return torch.stack(found)


def shortcut_target(function):
    """`function(field, x, tau, d, told)`: field(x, tau, size) -> like x; tau, d, told (B,) -> the target, (B,D)."""
    draw = fresh()
    for size, dim in ((5, 3), (4, 2)):
        mix, x = draw(dim, dim).requires_grad_(), draw(size, dim)
        d = torch.tensor([1.0, 0.5, 0.25, 0.5, 0.25])[:size]
        tau, told = (d + torch.tensor([0.0, 0.5, 0.5, 0.0, 0.25])[:size]), d / 2 * (d > 0.3)

        def field(x, tau, told, mix=mix):
            if not tau.shape == told.shape == x.shape[:1]:
                raise ValueError("field(x, tau, told) wants a tau and a told for each row, (B,) both")
            return torch.tanh(x @ mix + tau[:, None]) + told[:, None] * x.roll(1, 1)

        first, half = field(x, tau, told), d / 2

        def mean(step, when=tau - half, told=told, field=field, first=first):
            return (first + field(x + step[:, None] * first, when, told)) / 2  # noqa: B023

        got, what = attempt(function, field, x, tau, d, told, name="shortcut_target"), "shortcut_target(...)"
        second = field(x - half[:, None] * first, tau - half, told)
        compare(got, mean(-half), what, rtol=1e-3, atol=1e-4, mistakes=[
            (mean(half), "time falls, so a step goes *against* the velocity: x - d/2 * first."),
            (mean(half, tau + half), "time falls: the second half step begins at tau - d/2, at x - d/2 * first."),
            (mean(-half, tau + half), "time falls: the second half step begins at tau - d/2."),
            (mean(-half, tau), "the second half step begins later: at tau - d/2."),
            (mean(-d), "a half step is d/2 long."), (mean(-d, tau - d), "a half step is d/2 long."),
            (mean(0 * half), "the second question is asked where the first half step arrives."),
            ((field(x, tau, d) + field(x - half[:, None] * field(x, tau, d), tau - half, d)) / 2, "the half steps are "
             "told `told`, not d: the net would learn from itself at the same size."),
            (first + second, "the *mean* of both, not their sum: a step of d with it goes as far as two of d/2."),
            (second, "the mean of both velocities, not the second alone."),
            (first, "this is the first half step alone."),
            (x - half[:, None] * (first + second), "this is where the two steps end; the target is the mean velocity."),
        ])
        if got.requires_grad:
            raise CheckFailed("shortcut_target: a gradient goes into the target. The long step must learn from the two "
                              "short ones, not they from it: torch.no_grad(), or .detach().")
        same_dtype(got, x, what)
    passed("shortcut_target: one long step ends where two short ones end")
