"""Checks of notebook 06, the normalising flow: the way back through its couplings, and its training."""

import copy
import math
from functools import cache, partial

import torch
from torch import Tensor, nn

from .checking import CheckFailed, attempt, compare, passed
from .properties import fresh, fresh_whole, same_dtype, same_gradient

BATCH = 256  # of the flow's training


def flow_back(function):
    """`function(couplings, z)`: undo affine couplings, each a (B,) -> scale, shift (B,), last first; z, x (B,2)."""
    draw, name = fresh(), "flow_back(couplings, z)"
    for count, size in ((3, 5), (4, 2)):
        couplings, x = [_coupling(draw) for _ in range(count)], draw(size, 2)
        z = x
        for coupling in couplings:
            a, b = z.unbind(1)
            scale, shift = coupling(a)
            z = torch.stack([scale.exp() * b + shift, a], dim=1)
        z = z.requires_grad_()
        got = attempt(function, couplings, z, name="flow_back")
        undo = partial(_undone, couplings, z)
        right = undo()
        compare(got, x, name, rtol=1e-3, atol=1e-3, mistakes=[(undo(**options), hint) for options, hint in (
            (dict(order=1), "the couplings are undone in the order in which they were made: the last one comes first."),
            (dict(swap=False), "after each coupling the two numbers have changed places: the second one of z is the a "
                               "that was asked, the first one is what became of b."),
            (dict(back=lambda b, s, t: b / s.exp() - t), "undo the last thing first: take the shift away, then "
                                                         "divide by the scale."),
            (dict(back=lambda b, s, t: b * s.exp() + t), "this goes forward again: subtract, and divide."),
            (dict(back=lambda b, s, t: (b - t) * s.exp()), "divide by exp(scale), or multiply by exp(-scale)."),
            (dict(back=lambda b, s, t: (b - t) / s), "the factor is exp(scale): it is never 0, nor negative."),
            (dict(back=lambda b, s, t: (b + t) / s.exp()), "the shift was added: subtract it."),
            (dict(places=False), "the answer's two numbers are in the wrong order: a was the first one."),
            (dict(only=1), "only one coupling was undone."))])
        same_dtype(got, z, name)
        same_gradient(got, right, {"z": z}, name)
    passed("flow_back: every coupling undone, the last one first")


def _coupling(draw):
    """A function a (B,) -> scale, shift (B,) that nobody knows by heart."""
    mix = draw(4)
    return lambda a: (torch.tanh(mix[0] * a + mix[1]), torch.sin(mix[2] * a) + mix[3])


def _undone(couplings, z, order=-1, swap=True, places=True, only=None,
            back=lambda b, scale, shift: (b - shift) / scale.exp()):
    for coupling in couplings[::order][:only]:
        b, a = z.unbind(1) if swap else z.flip(1).unbind(1)
        b = back(b, *coupling(a))
        z = torch.stack([a, b] if places else [b, a], dim=1)
    return z


def flow_training(function):
    """`function(couplings, sample, steps, seed, every, watch)`: maximum likelihood -> what watch said, a list."""
    draw, some = fresh(), fresh_whole()
    for count, steps, every in ((2, 6, 2), (3, 4, 1)):
        start, middle, seed = nn.ModuleList(_Coupling(draw) for _ in range(count)), draw(2), some(0, 1000)

        def run(train, start=start, middle=middle, options=(steps, seed, every)):
            couplings, seen = copy.deepcopy(start), []

            def sample(batch, generator):
                if batch != BATCH or not isinstance(generator, torch.Generator):
                    raise CheckFailed(f"train_flow: each step draws sample({BATCH}, g), with the generator g.")
                return middle + 0.5 * torch.randn(batch, 2, generator=generator)

            def watch(learner):
                seen.append(_weights(learner))
                return len(seen)

            return train(couplings, sample, *options, watch), _weights(couplings), seen

        said, weights, seen = attempt(run, function, name="train_flow")
        right_said, right, right_seen = run(_trained)
        known = cache(lambda change, run=run: run(partial(_trained, change=change)))  # asked if something is wrong
        compare(weights, right, "the weights after train_flow", rtol=1e-3, mistakes=(
            (known(change)[1], message) for change, message in TRAINING_MISTAKES.items()))  # noqa: B023
        if len(seen) != len(right_seen):
            raise CheckFailed(f"train_flow asked watch {len(seen)} times in {steps} steps; it should be once after "
                              f"every {every}, {len(right_seen)} times: where (step + 1) % every is 0.")
        compare(torch.stack(seen), torch.stack(right_seen), "the weights that watch saw", rtol=1e-3, mistakes=(
            (torch.stack(known(change)[2]), "watch was asked before the step: it belongs after it, where "  # noqa: B023
             "(step + 1) % every is 0.") for change in ["early"]))
        if said != right_said:
            raise CheckFailed("train_flow should return a list of all that watch returned, in order.")
    passed("train_flow: the data made likelier, step by step")


TRAINING_MISTAKES = {
    "uphill": "the sign: the loss is *minus* the mean of log_p, so that its fall makes the data likelier.",
    "no zero": "the gradients of the steps before were added: optimizer.zero_grad() before backward().",
    "no step": "nothing has moved. In order: zero_grad, backward, step.",
    "same rate": "the learning rate never fell: slower.step() after each step.",
    "same batch": "every step saw the same batch: draw anew in each.",
    "volume": "log_p counts the change of volume, too: take it as it is, and not z alone.",
}


class _Coupling(nn.Module):
    """a (B,) -> scale, shift (B,), with four weights."""

    def __init__(self, draw):
        super().__init__()
        self.mix = nn.Parameter(0.5 * draw(4))

    def forward(self, a: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.mix[0] * a + self.mix[1]), torch.sin(self.mix[2] * a) + self.mix[3]


def _weights(couplings) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in couplings.parameters()])


def _trained(couplings, sample, steps, seed, every, watch, change=""):
    """The flow's training with one thing changed."""
    g, said = torch.Generator().manual_seed(seed), []
    optimizer = torch.optim.Adam(couplings.parameters(), 5e-3)
    first = sample(BATCH, g) if change == "same batch" else None
    for step in range(steps):
        if change == "early" and (step + 1) % every == 0:
            said.append(watch(couplings))
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 if change == "same rate" else 1 - step / steps)
        z, volume = sample(BATCH, g) if first is None else first, 0
        for coupling in couplings:
            a, b = z.unbind(1)
            scale, shift = coupling(a)
            z, volume = torch.stack([scale.exp() * b + shift, a], dim=1), volume + scale
        log_p = (0 if change == "volume" else volume) - z.square().sum(1) / 2 - math.log(2 * math.pi)
        if change != "no zero":
            optimizer.zero_grad()
        (log_p if change == "uphill" else -log_p).mean().backward()
        if change != "no step":
            optimizer.step()
        if change != "early" and (step + 1) % every == 0:
            said.append(watch(couplings))
    return said
