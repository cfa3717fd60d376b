"""Checks of notebook 04, continued: a strength found by halving, a network trained, a picture painted."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from .checking import CheckFailed, attempt, compare, number, passed
from .properties import fresh, own_randomness, same_dtype

LOW, HIGH = 1e-3, 8.0  # between them lies every strength


def strength_for(function):
    """`function(damage, x, error)`: how strong must `damage` be for this squared error, after a clamp to [-1, 1]?"""
    draw = fresh()
    for shape, part in (((1, 3, 6, 6), 0.2), ((2, 1, 5, 8), 0.6)):
        x, grain = draw(*shape).tanh(), draw(*shape)
        for name, damage in (("noise", lambda x, s, grain=grain: x + s * grain),
                             ("fading", lambda x, s: x * torch.exp(torch.tensor(-s)))):
            far = _error(x, damage(x, HIGH).clamp(-1, 1))
            right, free = (_halved(damage, x, part * far, clamp) for clamp in (True, False))
            what = f"strength_for(damage, x, error) of {name}"
            got = number(attempt(function, damage, x, part * far, name="strength_for"), what)
            compare(got, right, what, rtol=1e-3, mistakes=[
                (HIGH, "it ran to the upper end. While the damage is too weak, the *lower* end moves to the middle; "
                       "else the upper one does."),
                (LOW, "it ran to the lower end. While the damage is too weak, the *lower* end moves to the middle; "
                      "else the upper one does."),
                ((LOW + HIGH) / 2, "this is the first middle: halve again and again, in a loop."),
                (part * far, "this is the error. Return the strength that makes it."),
                (free, "the error was measured before the clamp to [-1, 1]."),
                (_halved(damage, x, (part * far)**2, True), "error is the *squared* error: no root, and no square."),
                (_halved(damage, x, (part * far)**0.5, True), "error is the *squared* error: no root, and no square."),
            ])
    passed("strength_for: every halving makes the answer twice as sharp")


def _error(x, y) -> float:
    return (x - y).square().mean().item()


def _halved(damage, x, error: float, clamp: bool) -> float:
    low, high = LOW, HIGH
    for _ in range(40):
        middle = (low + high) / 2
        y = damage(x, middle)
        weak = _error(x, y.clamp(-1, 1) if clamp else y) < error
        low, high = (middle, high) if weak else (low, middle)
    return middle


def learn_to_copy(function):
    """`function(net, distance, batches, optimizer, schedule)`: a step per batch x, down distance(net(x), x) -> losses.

    batches: anything to loop over, once. The losses: a list of Python numbers, each as it was before its step.
    """
    draw = fresh()
    # it is not symmetric, so who copies whom shows
    distance = lambda y, x: (y - x).abs().mean() + 0.3 * (x * y).mean() + 0.2 * x.mean() * y.square().mean()
    for width, count, momentum in ((6, 4, 0.0), (3, 5, 0.9)):
        with own_randomness():
            net = nn.Linear(width, width)
        for p in net.parameters():
            p.data = draw(*p.shape) / 2
        batches = [draw(4, width) for _ in range(count)]
        start, runs = deepcopy(net), {}
        for how in ("right", "kept", "constant", "reversed", "last"):
            other = deepcopy(net)
            runs[how] = _trained(other, distance, batches, *_stepper(other, momentum), how), other.weight.detach()
        got = attempt(function, net, distance, iter(batches), *_stepper(net, momentum), name="learn_to_copy")
        _losses(got, runs["right"][0], runs["reversed"][0])
        compare(net.weight, runs["right"][1], f"the network's weights after {count} batches", mistakes=[
            (start.weight, "they did not change. For each batch: zero_grad, backward, step."),
            (runs["kept"][1], "old gradients were added: zero_grad is missing."),
            (runs["constant"][1], "the learning rate never changed: schedule.step() after each batch."),
            (runs["last"][1], "only one step was made. Everything for a batch stands inside the loop."),
        ])
    passed("learn_to_copy: a loss, its gradients, a step, for each batch")


def _stepper(net, momentum: float):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.4, momentum=momentum)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.6)


def _trained(net, distance, batches, optimizer, schedule, how: str) -> list[float]:
    """The right training; `how` else changes one thing."""
    losses = []
    for x in batches if how != "last" else batches[-1:]:
        loss = distance(x, net(x)) if how == "reversed" else distance(net(x), x)
        if how != "kept":
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if how != "constant":
            schedule.step()
        losses.append(loss.item())
    return losses


def _losses(got, right: list, swapped: list):
    if not isinstance(got, (list, tuple)) or len(got) != len(right):
        found = f"a list of {len(got)}" if isinstance(got, (list, tuple)) else type(got).__name__
        raise CheckFailed(f"learn_to_copy should return a list of {len(right)} losses, one for each batch, not "
                          f"{found}.")
    if any(isinstance(loss, Tensor) for loss in got):
        raise CheckFailed("learn_to_copy: the list holds tensors, and perhaps with each the memory of its whole step. "
                          "Append numbers, loss.item().")
    values = torch.stack([number(loss, "each loss of learn_to_copy") for loss in got])
    compare(values[0], torch.tensor(right[0]).double(), "the first loss of learn_to_copy", rtol=1e-3, mistakes=[
        (swapped[0], "the two are in the wrong order: distance(net(x), x)."),
        (right[-1], "the losses are in the wrong order: as the batches came."),
    ])


def paint(function):
    """`function(loss, start, steps)`: from `start`, `steps` steps down loss(picture) -> the picture in [-1, 1].

    Adam with lr 0.04, betas (0.9, 0.99) and a cosine to 0 over all steps, as given; a clamp after every step.
    """
    draw = fresh()
    for shape, steps in (((2, 3, 4, 5), 9), ((1, 1, 6, 3), 14)):
        start, target = (1.5 * draw(*shape)).tanh(), 1.5 * draw(*shape)
        asked = []

        def loss(y, target=target, asked=asked, steps=steps):
            # what it wants turns round half way: who lets pixels run off is late
            asked.append(y)
            want = target if len(asked) <= steps // 2 else -target
            return ((y - want).square() * (1 + want.square())).mean()

        runs = {}
        for how in ("right", "kept", "constant", "free", "up"):
            runs[how] = _painted(loss, start, steps, how)
            asked.clear()
        name = "paint(loss, start, steps)"
        got = attempt(function, loss, start, steps, name=name)
        if isinstance(got, Tensor) and got.requires_grad:
            raise CheckFailed(f"{name}: the picture still wants gradients: return y.detach().")
        if len(asked) != steps:
            raise CheckFailed(f"{name} asked the loss {len(asked)} times; with steps = {steps} it takes as many steps.")
        compare(got, runs["right"], name, rtol=1e-3, atol=1e-4, mistakes=[
            (start, "the picture did not change: for each step zero_grad, loss(y).backward(), step."),
            (runs["kept"], "old gradients were added: zero_grad is missing."),
            (runs["constant"], "the learning rate never changed: schedule.step() after each step."),
            (runs["free"], "pixels left [-1, 1]: y.data.clamp_(-1, 1) after each step."),
            (runs["free"].clamp(-1, 1), "pixels were clamped only at the end: do it after each step."),
            (runs["up"], "the loss went up."),
        ])
        same_dtype(got, start, name)
    passed("paint: the pixels go where the loss wants them")


def _painted(loss, start, steps: int, how: str) -> Tensor:
    y = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([y], lr=0.04, betas=(0.9, 0.99), maximize=how == "up")
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        if how != "kept":
            optimizer.zero_grad()
        loss(y).backward()
        optimizer.step()
        if how != "constant":
            schedule.step()
        if how != "free":
            y.data.clamp_(-1, 1)
    return y.detach()
