"""Checks of notebook 18, training: who gets no gradient, a preview that leaves no trace, a fair stopwatch."""

import torch
from torch import nn

from ..ema import EMA
from .checking import CheckFailed, attempt, compare, number, passed
from .properties import fresh, own_randomness


class _Parts(nn.Module):
    """Parameters that a loss reaches, that it reaches with zero, that it does not reach, and frozen ones."""

    def __init__(self, draw):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)
        self.cut, self.zero = nn.Linear(3, 3), nn.Linear(3, 3)
        self.unused = nn.Parameter(draw(2))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def loss(self, x):
        z = self.zero(x)
        h = self.a(x) + self.cut(x).detach() + (z - z) + self.frozen(x)
        return self.b(torch.tanh(h)).square().mean() + 0 * z.sum()


def without_gradient(function):
    """`function(loss, module)`: the names of its trainable parameters to which the loss sends nothing, in order."""
    draw = fresh()
    with own_randomness():
        module = _Parts(draw)
        cases = [(module, module.loss(draw(4, 3)), ["unused", "cut.weight", "cut.bias", "zero.weight", "zero.bias"]),
                 (module.b, module.loss(draw(4, 3)), []), (module.cut, module.loss(draw(4, 3)), ["weight", "bias"])]
    stale = [draw(*p.shape) for p in module.parameters()]
    for p, old in zip(module.parameters(), stale):
        if p.requires_grad:
            p.grad = old.clone()                               # what a step before left behind
    for part, loss, want in cases:
        names = [name for name, _ in part.named_parameters()]
        got = attempt(function, loss, part, name="without_gradient")
        if not isinstance(got, (list, tuple, set)) or not all(isinstance(name, str) for name in got):
            raise CheckFailed(f"without_gradient should return a list of names; got {got!r:.60}.")
        got, right = set(got), set(want)
        zeros = {name for name in right if name.startswith("zero")}
        for wrong, hint in (
                ({name for name in names if name.startswith("frozen")} & got, "frozen parameters (requires_grad is "
                 "False) are not meant to learn: leave them out."),
                (zeros - got if zeros else set(), "a gradient may be there and yet be 0 everywhere: that is none."),
                ((right - zeros) - got, "where the loss does not reach, autograd gives None: allow_unused=True. Or did "
                 "you look at gradients of an earlier step?"),
                (got - right, "to these a gradient does flow.")):
            if wrong:
                raise CheckFailed(f"without_gradient: {', '.join(sorted(wrong))}: {hint}")
    if any(p.requires_grad and (p.grad is None or not torch.equal(p.grad, old))
           for p, old in zip(module.parameters(), stale)):
        raise CheckFailed("without_gradient changed the .grad of the parameters: a gauge must leave no trace. Use "
                          "torch.autograd.grad instead of backward().")
    passed("without_gradient: None, or nothing but zeros")


class _Net(nn.Module):
    """A net with dropout, and a frozen part that is in evaluation mode for good."""

    def __init__(self, draw):
        super().__init__()
        self.layer, self.drop, self.norm = nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)
        self.frozen = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).requires_grad_(False).eval()

    def forward(self, x):
        return self.norm(self.drop(self.layer(x))) + self.frozen(x)


def preview(function):
    """`function(net, ema, sample, z)`: sample(net, z) with averages and without dropout; afterwards all as before."""
    draw = fresh()
    with own_randomness():
        nets = [_Net(draw).train(), _Net(draw).train()]
    nets[1].drop.eval()                                        # someone wants it so
    for net in nets:
        ema, z = EMA(net, 0.5), draw(6, 4)
        for p in net.layer.parameters():
            p.data.add_(draw(*p.shape))
        ema.update(net)
        modes = {name: part.training for name, part in net.named_modules()}
        before = {name: value.clone() for name, value in net.state_dict().items()}
        seen = {}

        def sample(net, z, seen=seen):
            seen.update(modes=[part.training for part in net.modules()], weight=net.layer.weight.detach().clone(),
                        grad=torch.is_grad_enabled(), calls=seen.get("calls", 0) + 1)
            return net(z)

        with own_randomness():
            got = attempt(function, net, ema, sample, z, name="preview")
        if not seen:
            raise CheckFailed("preview never called sample(net, z).")
        if any(seen["modes"]):
            raise CheckFailed("preview: while sampling, the net was in training mode: dropout drops, batch norm looks "
                              "at the batch. net.eval() first.")
        if torch.equal(seen["weight"], before["layer.weight"]):
            raise CheckFailed("preview: sampled with the trained weights; the averages are better: "
                              "`with ema.applied(net):`.")
        if seen["grad"]:
            raise CheckFailed("preview: gradients were recorded while sampling: torch.no_grad().")
        if seen["calls"] > 1:
            raise CheckFailed("preview: once is enough; sample was called more often.")
        after = net.state_dict()
        if not all(torch.equal(after[name], value) for name, value in before.items()):
            raise CheckFailed("preview: the net has other weights (or statistics) than before: training would go on "
                              "from the averages.")
        now = {name: part.training for name, part in net.named_modules()}
        if not now[""]:
            raise CheckFailed("preview: the net stays in evaluation mode: from the first preview on it trains without "
                              "dropout.")
        if now != modes:
            name = next(name for name in modes if now[name] != modes[name])
            raise CheckFailed(f"preview: {name} was in {'training' if modes[name] else 'evaluation'} mode before and "
                              "is not now: net.train() switches *every* part. Remember each part's own mode.")
        with torch.no_grad(), ema.applied(net):
            modes = [(part, part.training) for part in net.modules()]
            net.eval()
            want = net(z)
            for part, mode in modes:
                part.training = mode
        compare(got, want, "what preview returned")
    passed("preview: averages, no dropout, and no trace left")


def stopwatch(function):
    """`function(run, clock, warmup, repeats)`: the median time of a run, by clock(), after `warmup` runs."""
    for warmup, lasts in ((2, (90.0, 40.0, 3.0, 2.5, 50.0, 2.0, 4.0)),
                          (1, (70.0, 5.0, 9.0, 1.0)), (0, (3.0, 8.0, 1.0))):
        state = {"now": 17.0, "runs": 0}

        def run(state=state, lasts=lasts):
            state["now"] += lasts[state["runs"]] if state["runs"] < len(lasts) else 1e3
            state["runs"] += 1

        clock = lambda state=state: state["now"]
        times = torch.tensor(lasts[warmup:])
        got = number(attempt(function, run, clock, warmup, len(times), name="stopwatch"), "stopwatch")
        if state["runs"] != len(lasts):
            raise CheckFailed(f"stopwatch ran {state['runs']} times; asked for: {warmup} to warm up and {len(times)} "
                              "timed.")
        compare(got, times.median().double(), "stopwatch(...)", mistakes=[
            (times.mean(), "the mean hears every interruption; the median does not."),
            (times.sum(), "this is the time of all runs: the median of them, please."),
            (times.min(), "this is the fastest run; the median."), (times.max(), "this is the slowest; the median."),
            (torch.tensor(lasts).median(), "the first runs are slow, so they should not count: warm up first."),
            (torch.tensor(lasts).mean(), "the first runs are slow, so they should not count: warm up first."),
            (-times.median(), "its sign: the clock afterwards, minus the clock before."),
        ])
    passed("stopwatch: warm, repeated, and the median")
