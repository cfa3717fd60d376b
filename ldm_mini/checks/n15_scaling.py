"""Checks of notebook 15: what a block costs, and how the loss falls with compute."""

from copy import deepcopy

import torch
from torch import Tensor

from .checking import CheckFailed, attempt, compare, count, number, passed, several
from .properties import fresh, fresh_whole, generator


def block_flops(function):
    """`function(tokens, width)`: FLOPs of one DiTBlock for one picture; a multiplication and its addition are two."""
    some = fresh_whole()
    for _ in range(3):
        n, d = some(3, 300), 4 * some(4, 200)
        linear, table, steer = 12 * n * d * d, 2 * n * n * d, 6 * d * d     # in pairs of * and +
        total = 2 * (linear + table + steer)
        count(attempt(function, n, d, name="block_flops"), total, f"block_flops({n}, {d})", {
            total // 2: "a multiplication and its addition count as two FLOPs.",
            2 * (linear + table): "the modulation is missing: 6 D^2, once for a picture.",
            2 * (linear + table + n * steer): "the modulation reads the condition, once for a picture, not per token.",
            2 * (linear + steer): "attention's own two products are missing: q k^T and weights v, N^2 D each.",
            2 * (linear + table // 2 + steer): "attention has two products with the N x N table: q k^T, and weights v.",
            2 * (4 * n * d * d + table + steer): "the MLP is missing: D to 4 D and back.",
            2 * (8 * n * d * d + table + steer): "attention's projections are missing: q, k, v and the output, D^2 "
                                                 "each.",
            2 * (11 * n * d * d + table + steer): "four projections, not three: the output has one, too.",
            2 * (6 * n * d * d + table + steer): "the MLP is four times as wide: D to 4 D, and 4 D to D.",
            2 * (linear + n * n * 2 + steer): "each entry of the N x N table costs D multiplications.",
            2 * (12 * d * d + table + steer): "the layers run for every token: times N.",
        })
    passed("block_flops: linear in tokens, and a square")


def frontier(function):
    """`function(flops, losses)`: both (K,) -> bool (K,): where nothing that costs as much or less is better."""
    source = generator(6)
    for k in (6, 9, 12):
        flops, losses = _cloud(k, source)
        right = _best(flops, losses)
        got, what = attempt(function, flops, losses, name="frontier"), f"frontier of {k} points"
        if isinstance(got, (list, tuple)) and len(got) == k and all(isinstance(v, bool) for v in got):
            got = torch.tensor(got)
        if isinstance(got, Tensor) and got.dtype == torch.int64 and got.shape != right.shape:
            raise CheckFailed(f"{what}: these are indices; give a bool for each point.")
        if isinstance(got, Tensor) and got.shape == right.shape and got.dtype != torch.bool:
            raise CheckFailed(f"{what} has dtype {got.dtype}; it should be torch.bool.")
        order = flops.argsort()
        falls = torch.ones(k, dtype=torch.bool)
        falls[order[1:]] = losses[order].diff() < 0
        lowest = losses == losses.min()
        compare(got, right, what, mistakes=[
            (~right, "True where a point is on the frontier; this is the opposite."),
            (_best(-flops, losses), "*cheaper* points must not be better; these are dearer ones."),
            (_best(flops, -losses), "lower loss is better."),
            (falls, "better than the next cheaper one is not enough: better than *all* that are cheaper."),
            (lowest, "this is the one best point; each compute has its own best."),
            (_given_order(losses), "the points are in no order: compare the compute, not the place in the list."),
        ])
    passed("frontier: the best for each price")


def _cloud(k: int, source) -> tuple[Tensor, Tensor]:
    """Points in no order: some on a falling curve, some above it, and not all of one kind."""
    while True:
        flops = 10 ** (3 * torch.rand(k, generator=source)) * 1e6
        losses = (flops / 1e6) ** -0.2 + 0.3 * torch.rand(k, generator=source)
        right = _best(flops, losses)
        others = (_best(-flops, losses), _best(flops, -losses), _given_order(losses), losses == losses.min())
        if 2 <= right.sum() < k and not any(torch.equal(right, other) for other in others):
            return flops, losses


def _best(flops: Tensor, losses: Tensor) -> Tensor:
    """Where no other point is as cheap and as good."""
    beaten = (flops[None] <= flops[:, None]) & (losses[None] <= losses[:, None])
    beaten.fill_diagonal_(False)
    return ~beaten.any(1)


def _given_order(losses: Tensor) -> Tensor:
    """As if the list were sorted by compute."""
    return torch.stack([losses[i] <= losses[:i + 1].min() for i in range(len(losses))])


def power_law(function):
    """`function(flops, losses)`: (K,) each -> a, b of the straight line of the logarithms: loss = a * flops^-b."""
    source = generator(7)
    for k in (5, 8):
        a, b = 1 + 3 * torch.rand((), generator=source), 0.05 + 0.3 * torch.rand((), generator=source)
        x = 1 + 3 * torch.rand(k, generator=source)
        y = a.log10() - b * x + 0.05 * torch.randn(k, generator=source)
        flops, losses = 10**x, 10**y
        got = several(attempt(function, flops, losses, name="power_law"), "power_law", "two numbers: a and b")
        slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
        level, ends = y.mean() - slope * x.mean(), (y[x.argmax()] - y[x.argmin()]) / (x.max() - x.min())
        natural = level * torch.tensor(10.0).log()
        compare(number(got[1], "b of power_law"), -slope.double(), "b of power_law", rtol=1e-3, atol=1e-4, mistakes=[
            (slope, "the sign: loss = a * flops^(-b), so a loss that falls has a positive b."),
            (-ends, "this is the line through the cheapest and the dearest point; let all points count "
                    "(least squares)."),
            (-1 / slope, "x and y are swapped: the logarithm of the *loss* against that of the compute."),
            (-_slope(x, losses), "take the logarithm of the losses, too."),
            (-_slope(flops, losses), "take logarithms of both first: a power law is a line there."),
        ])
        compare(number(got[0], "a of power_law"), (10**level).double(), "a of power_law", rtol=1e-3, atol=1e-3,
                mistakes=[(level, "this is the logarithm of a."), (natural, "this is the logarithm of a."),
                          (level.exp(), "log10 and exp do not undo each other: 10 ** ..., or log and exp."),
                          (losses.mean(), "a is the loss at one FLOP, where the line begins, not the mean."),
                          (10 ** y.mean(), "a is the loss at one FLOP, where the line begins, not the mean.")])
    passed("power_law: a line on log axes")


def _slope(x: Tensor, y: Tensor) -> Tensor:
    return ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()


def points(function):
    """`function(study, kind, seed, price="flops")` -> (2, K), float64: what was spent by each look, and its loss."""
    study, some = _study(), fresh_whole()
    for kind, price in (("DiT", "flops"), ("U-Net", "cpu_s"), ("U-Net", None)):
        seed = some(0, 3)
        what = f"points(study, {kind!r}, {seed}{f', {price!r}' if price else ''})"
        got = attempt(function, deepcopy(study), kind, seed, *([price] if price else []), name="points")
        rows = lambda **other: _points(study, **{"kind": kind, "seed": seed, "price": price} | other)  # noqa: B023
        right = rows()
        if isinstance(got, Tensor) and got.ndim == 2 and got.shape == right.shape:
            got = _by_price(got)  # any order will do
        compare(got, right, what, rtol=1e-5, shapes={
            tuple(right.mT.shape): "first all that was spent, then all losses: (2, K). Is `.T` missing?",
            tuple(rows(seed=None).shape): "these are the looks of all seeds; take those of `seed`.",
            tuple(rows(kind=None).shape): "these are the looks of all kinds; take those of `kind`.",
            tuple(rows(kind=None, seed=None).shape): "these are all looks of all trainings; take `kind` and `seed`.",
            (2, right.shape[1] // LOOKS): "one point for each training: take all its looks.",
            (2, LOOKS): "these are the looks of one training; take all trainings of this kind and seed.",
        }, mistakes=[
            (_by_price(right.flip(0)), "what was spent comes first, then the loss."),
            (rows(price="flops"), 'with price="cpu_s" the price is the look\'s "cpu_s".'),
            (rows(price="cpu_s"), "the price is in FLOPs here, not in seconds."),
            *((_by_price(right * torch.tensor([[factor], [1.0]])), hint) for factor, hint in (
                (1 / 3, "a training step costs three evaluations: one forward, two for the gradients."),
                (2 / 3, "a training step costs three evaluations: one forward, *two* for the gradients."),
                (1 / study["batch"], "each step sees a batch: times study[\"batch\"]."),
                (1 / study["batch"] / 3, "three evaluations for each picture of the batch, in each step."))),
            (rows(steps=False), "by its step, a training has made so many steps: times int(step)."),
        ])
    passed("points: every look, and what it had cost")


LOOKS = 3  # of each training


def _study() -> dict:
    """A study of two transformers and five U-Nets, with three seeds each, as the notebook's is stored."""
    some, draw = fresh_whole(), fresh()
    steps = [str(some(10 * i, 10 * i + 9)) for i in range(1, LOOKS + 1)]
    look = lambda: dict(zip(("loss", "cpu_s"), (0.1 + draw(2).abs()).tolist()))
    runs = [{"kind": kind, "name": f"size {i}", "seed": seed, "flops": some(1000, 9000) * 100,
             "looks": {step: look() for step in steps}}
            for kind, sizes in (("DiT", 2), ("U-Net", 5)) for i in range(sizes) for seed in range(3)]
    return {"batch": some(4, 30), "runs": [runs[i] for i in torch.randperm(len(runs), generator=generator(8))]}


def _points(study, kind, seed, price, steps: bool = True) -> Tensor:
    """The points, cheapest first; None: of all kinds or seeds."""
    rows = [(look["cpu_s"] if price == "cpu_s" else 3 * run["flops"] * study["batch"] * (int(step) if steps else 1),
             look["loss"]) for run in study["runs"] if kind in (None, run["kind"]) and seed in (None, run["seed"])
            for step, look in run["looks"].items()]
    return _by_price(torch.tensor(rows, dtype=torch.float64).T)


def _by_price(points: Tensor) -> Tensor:
    """In the order of what was spent, and where that is equal, of the loss."""
    points = points[:, points[1].argsort(stable=True)]
    return points[:, points[0].argsort(stable=True)]
