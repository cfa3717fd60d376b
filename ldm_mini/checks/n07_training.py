"""Checks of notebook 07, a training step and the loop around it."""

import copy
import math
from functools import cache, partial

import torch
from torch import Tensor, nn

from ..cond import Cond
from ..diffusion import diffusion_loss
from ..ema import EMA
from ..schedule import NoiseSchedule, cosine_betas
from .checking import CheckFailed, attempt, compare, number, passed, several
from .properties import fresh, generator, own_randomness

SCHEDULE = NoiseSchedule(cosine_betas())

STEP_MISTAKES = {
    "nothing": "nothing has moved. In order: zero_grad, backward, clip, step.",
    "no clip": "the gradient was not clipped before the step: nn.utils.clip_grad_norm_(parameters, clip).",
    "clip 1": "the gradient was clipped to length 1: `clip` says how long it may be.",
    "clip value": "each value was clipped alone (clip_grad_value_), which turns the gradient; clip its length.",
    "no zero": "the last step's gradient was still there and was added: optimizer.zero_grad() before backward.",
    "twice": "two steps were made.",
}


def one_step(compute, parameters, optimizer, clip=None, change="") -> float:
    """A training step with one thing changed: `compute()` -> loss (); returns it as a float."""
    if change == "step first":
        optimizer.step()
    loss = compute()
    if change != "no zero":
        optimizer.zero_grad()
    loss.backward()
    if change == "clip value":
        nn.utils.clip_grad_value_(parameters, clip or math.inf)
    else:
        nn.utils.clip_grad_norm_(parameters, {"no clip": math.inf, "clip 1": 1.0}.get(change, clip or math.inf))
    for _ in range({"nothing": 0, "step first": 0, "twice": 2}.get(change, 1)):
        optimizer.step()
    return compute().item() if change == "after" else loss.item()


def flat(model: nn.Module) -> Tensor:
    """All trainable weights in a row."""
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def hold_step(function, run, name: str, mistakes: dict):
    """Hold a learner's training step against `one_step`.

    run(step) -> (what step returned, the model after it): makes a model whose last step left a gradient, and lets
    `step` make the next. mistakes: {a change: (the step with it, what to tell the learner)}.
    """
    loss, learner = attempt(run, function, name=name)
    right, reference = run(mistakes[""][0])
    if isinstance(loss, Tensor):
        raise CheckFailed(f"{name} returned a tensor. Return loss.item(), a float: tensors kept in a list would hold "
                          "on to every step's memory.")
    # gone through only if something is wrong
    compare(number(loss, name), right, f"{name}'s loss", mistakes=(
        (run(step)[0], message) for change, (step, message) in mistakes.items() if change))
    compare(flat(learner), flat(reference), f"the weights after {name}", rtol=1e-4, atol=1e-6, mistakes=(
        (flat(run(step)[1]), message) for change, (step, message) in mistakes.items() if change))


def step_mistakes(step, **more) -> dict:
    """What `hold_step` wants: `step(..., change=)` right, with each known mistake, and with `more`."""
    known = STEP_MISTAKES | more | {
        "after": "this is the loss after the step; return the one that was computed before.",
        "step first": "optimizer.step() came before the loss, with the last step's gradient. In order: loss, "
                      "zero_grad, backward, clip, step."}
    return {"": (step, "")} | {change: (partial(step, change=change), message) for change, message in known.items()}


class Tiny(nn.Module):
    """A network small enough to train in a check; it counts its calls and remembers in which mode they were."""

    def __init__(self):
        super().__init__()
        self.mix, self.modes = nn.Conv2d(3, 3, 3, padding=1), []

    def forward(self, x: Tensor, t: Tensor, cond=None) -> Tensor:
        """x (B,3,h,w), t (B,), an empty condition -> like x"""
        if not isinstance(cond, Cond):
            raise CheckFailed("the network was not called with a condition: diffusion_loss does that.")
        self.modes.append(self.training)
        return 0.2 * self.mix(x) * (1 + t.view(-1, 1, 1, 1) / 500)


def unet_train_step(function):
    """`function(net, schedule, optimizer, x0, generator, clip)` -> loss before the step, a float; predicts v."""
    draw = fresh()
    for size, clip in ((3, 0.4), (2, None), (4, 3.0)):
        schedule = NoiseSchedule(cosine_betas(500) if size == 2 else cosine_betas())
        with own_randomness():
            start = Tiny()
        x0, seed = 20 * draw(size, 3, 6, 6), int(generator().initial_seed() % 1000) + size
        left = [draw(*p.shape) for p in start.parameters()]

        def run(step, start=start, x0=x0, seed=seed, clip=clip, left=left, schedule=schedule):
            net = copy.deepcopy(start)
            for p, gradient in zip(net.parameters(), left):
                p.grad = gradient.clone()
            # plain gradient descent shows how long a gradient was, which Adam divides away
            optimizer = torch.optim.SGD(net.parameters(), 0.1)
            return step(net, schedule, optimizer, x0, torch.Generator().manual_seed(seed), clip), net

        hold_step(function, run, "v_step", step_mistakes(
            _v_step, eps="the network learns the noise here; this one predicts v.", x0="the network learns x0 here; "
            "this one predicts v.", drawn="the generator is not used: hand it to diffusion_loss."))
    passed("v_step: forward, backward, one step")


def _v_step(net, schedule, optimizer, x0, generator, clip=None, change=""):
    """The step of notebook 07 with one thing changed."""
    kind = change if change in ("eps", "x0") else "v"
    state = generator.get_state()  # a loss that is computed again is that of the same noise

    def compute():
        generator.set_state(state)
        return diffusion_loss(net, schedule, x0, Cond(), kind, generator=None if change == "drawn" else generator)

    return one_step(compute, [*net.parameters()], optimizer, clip, change)


def unet_training(function):
    """`function(net, schedule, draw, steps, generator, watch, lr, max_decay)` -> (averages, losses)."""
    fresh_numbers = fresh()
    for steps, lr, max_decay in ((5, 0.3, 0.99), (3, 0.1, 0.2)):
        with own_randomness():
            start = Tiny()
        first = fresh_numbers(steps, 2, 3, 4, 4)
        scale = torch.tensor([10.0, 0.1, 1.0, 3.0, 0.3])  # gradients longer than 1 and shorter ones

        def run(train, start=start, first=first, scale=scale, options=(lr, max_decay)):
            net, batches, seen = copy.deepcopy(start), iter([x * s for x, s in zip(first, scale)]), []
            # a batch too much is no mistake of numbers
            draw = lambda: next(batches, first[0])
            watch = lambda n, averages: seen.append((n, {k: v.clone() for k, v in averages.items()}))
            got = train(net, SCHEDULE, draw, len(first), torch.Generator().manual_seed(7), watch, *options)
            return got, net, seen

        got, learner, seen = attempt(run, function, name="train_unet")
        averages, losses = several(got, "train_unet", "two things: the averages {name: tensor}, and the losses")
        (right, right_losses), reference, right_seen = run(_loop)
        known = cache(lambda change, run=run: run(partial(_loop, change=change)))
        told = LOOP_MISTAKES.items()  # gone through only if something is wrong
        listed = isinstance(losses, (list, tuple)) and all(isinstance(loss, float) for loss in losses)
        if not listed or len(losses) != steps:
            raise CheckFailed(f"train_unet should return {steps} losses, one float for each: what v_step returned.")
        compare(torch.tensor(losses), torch.tensor(right_losses), "the losses", mistakes=(
            (torch.tensor(known(change)[0][1]), message) for change, message in told))  # noqa: B023
        compare(flat(learner), flat(reference), "the weights after the last step", atol=1e-6, mistakes=(
            (flat(known(change)[1]), message) for change, message in told))  # noqa: B023
        if not isinstance(averages, dict) or averages.keys() != right.keys():
            raise CheckFailed("train_unet: the averages should be the dict that ema_update returns.")
        row = lambda values: torch.cat([values[name].flatten() for name in right])  # noqa: B023
        compare(row(averages), row(right), "the averages", atol=1e-6, mistakes=(
            (row(known(change)[0][0]), message) for change, message in told))  # noqa: B023
        if [n for n, _ in seen] != [n for n, _ in right_seen]:
            raise CheckFailed(f"train_unet: watch was called with n = {[n for n, _ in seen]}; it should be once "
                              f"after each step, with {[n for n, _ in right_seen]}.")
        compare(row(seen[-1][1]), row(right), "what watch saw last", atol=1e-6, mistakes=[
            (row(seen[0][1]), "it should see the newest averages: hand it what ema_update has just returned.")])
    passed("train_unet: draw, step, average, again")


LOOP_MISTAKES = {
    "no warm-up": "the learning rate never grew: warmup.step() after each step.",
    "warm-up first": "warmup.step() came before the training step; it sets the rate of the next one.",
    "no clip": "v_step was not told to clip: clip=1.0.",
    "from 0": "n starts at 1: `range(1, steps + 1)`.",
    "average first": "ema_update came before the step; it belongs after it.",
    "not kept": "the averages did not move: averages = ema_update(...).",
    "default decay": "`max_decay` is not handed to ema_update.",
    "same batch": "every step saw the same pictures: call draw() in each.",
}


def _loop(net, schedule, draw, steps, generator, watch, lr=2e-3, max_decay=0.99, change=""):
    """The loop of notebook 07 with one thing changed."""
    optimizer, losses = torch.optim.AdamW(net.parameters(), lr, betas=(0.9, 0.99)), []
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 30))
    ema = EMA(net, 0.9999 if change == "default decay" else max_decay)
    ema.updates -= change == "from 0"
    first = draw() if change == "same batch" else None
    optimizer.zero_grad(), optimizer.step()  # nothing to do; it keeps the scheduler from warning
    for n in range(1, steps + 1):
        if change == "warm-up first":
            warmup.step()
        if change == "average first":
            ema.update(net)
        x0 = draw() if first is None else first
        losses.append(_v_step(net, schedule, optimizer, x0, generator, None if change == "no clip" else 1.0))
        if change not in ("no warm-up", "warm-up first"):
            warmup.step()
        if change not in ("average first", "not kept"):
            ema.update(net)
        watch(n, ema.state_dict())
    return ema.state_dict(), losses
