"""The checks of notebook 04, continued: strengths, windows, trainings and paintings that are wrong, or right."""

import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from solutions import spoiled, try_all

from ldm_mini import checks


@pytest.fixture(autouse=True)
def no_warnings_of_schedules():
    """A mutant that makes no step lets the schedule go first, which PyTorch warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*lr_scheduler.step.*")
        yield


def squared_error(x, y):
    return (x - y).square().mean().item()


def strength(damage, x, error, low=1e-3, high=8.0, steps=22, clamp=True, turned=False, told=lambda s: s):
    for _ in range(steps):
        middle = (low + high) / 2
        y = damage(x, middle)
        weak = squared_error(x, y.clamp(-1, 1) if clamp else y) < error
        low, high = (middle, high) if weak != turned else (low, middle)
    return told(middle)


def strength_by_false_position(damage, x, error):
    """Another way: a bracket that shrinks by the secant, and by halves where that is slow."""
    def f(s):
        return squared_error(x, damage(x, s).clamp(-1, 1)) - error

    low, high = 0.0, 8.0
    for turn in range(60):
        s = (low + high) / 2 if turn % 2 else low - f(low) * (high - low) / (f(high) - f(low))
        low, high = (s, high) if f(s) < 0 else (low, s)
    return torch.tensor((low + high) / 2)


def strength_recursive(damage, x, error, low=1e-3, high=8.0):
    middle = (low + high) / 2
    if high - low < 1e-6:
        return middle
    ends = (middle, high) if squared_error(x, damage(x, middle).clamp(-1, 1)) < error else (low, middle)
    return strength_recursive(damage, x, error, *ends)


def train(net, distance, batches, optimizer, schedule, clear=True, move=True, cool=True, turned=False,
          told=torch.Tensor.item, back=lambda losses: losses):
    losses = []
    for x in batches:
        loss = distance(x, net(x)) if turned else distance(net(x), x)
        optimizer.zero_grad() if clear else None
        loss.backward()
        optimizer.step() if move else None
        schedule.step() if cool else None
        losses.append(told(loss))
    return back(losses)


def train_tidying_up_after(net, distance, batches, optimizer, schedule):
    def one(x):
        loss = distance(net(x), x)
        loss.backward()
        optimizer.step(), schedule.step()
        for p in net.parameters():
            p.grad = None
        return float(loss.detach())

    return tuple(map(one, batches))


def train_once(net, distance, batches, optimizer, schedule):
    """The step stands behind the loop."""
    losses = []
    for x in batches:
        loss = distance(net(x), x)
        losses.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step(), schedule.step()
    return losses


def bell_of(size, sigma, power=2, two=2):
    bell = torch.exp(-(torch.arange(size) - size // 2).square() / (two * sigma**power))
    return bell / bell.sum()


def mean(x, size=11, sigma=1.5, mode="reflect", across=None, down=None, **bell):
    r, c = size // 2, x.shape[1]
    across = bell_of(size, sigma, **bell) if across is None else across
    down = bell_of(size, sigma, **bell) if down is None else down
    window = (down[:, None] * across).to(x).expand(c, 1, size, size)
    return F.conv2d(F.pad(x, (r,) * 4, mode=mode) if mode else x, window, groups=c)


def mean_in_two_passes(x, size=11, sigma=1.5):
    """First along rows, then along columns; channels as pictures of their own."""
    r, bell = size // 2, bell_of(size, sigma).to(x)
    y = F.pad(x.flatten(0, 1)[:, None], (r,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(y, bell.view(1, 1, 1, -1)), bell.view(1, 1, -1, 1)).view(x.shape)


def mean_by_shifts(x, size=11, sigma=1.5):
    (h, w), bell = x.shape[2:], bell_of(size, sigma)
    y = F.pad(x, (size // 2,) * 4, mode="reflect")
    return sum(bell[i] * bell[j] * y[..., i:i + h, j:j + w] for i in range(size) for j in range(size)).to(x)


def descend(loss, start, steps=60, clear=True, cool=True, clamp=True, sign=1, after=lambda y: y.detach(), more=0,
            move=True):
    y = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([y], lr=0.04, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps + more):
        optimizer.zero_grad() if clear else None
        (sign * loss(y)).backward()
        optimizer.step() if move else None
        schedule.step() if cool else None
        y.data.clamp_(-1, 1) if clamp else None
    return after(y)


def descend_with_copies(loss, start, steps=60):
    y = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([y], lr=0.04, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        y.grad, = torch.autograd.grad(loss(y), y)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            y.copy_(torch.minimum(torch.maximum(y, -torch.ones(())), torch.ones(())))
    return y.data


CORRECT = {
    checks.strength_for: [strength, strength_by_false_position, strength_recursive],
    checks.learn_to_copy: [train, train_tidying_up_after, partial(train, told=lambda loss: loss.tolist())],
    checks.local_mean: [mean, mean_in_two_passes, mean_by_shifts],
    checks.paint: [descend, descend_with_copies, partial(descend, after=lambda y: y.detach().clone())],
}

MUTANTS = {
    checks.strength_for: [
        *spoiled(strength, (dict(turned=True), "to the upper end|to the lower end"), (dict(steps=1), "first middle"),
                 (dict(clamp=False), "before the clamp"), (dict(steps=6), "off by"), (dict(high=0.01), "off by"),
                 (dict(told=lambda s: None), "return"), (dict(told=lambda s: (s, s)), "one number"),
                 (dict(told=lambda s: 2 * s), "off by")),
        (lambda damage, x, error: strength(damage, x, error**0.5), "no root"),
        (lambda damage, x, error: strength(damage, x, error**2), "no square"),
        (lambda damage, x, error: error, "this is the error"), (lambda damage, x, error: 8.0, "upper end"),
        (lambda damage, x, error: damage(x, strength(damage, x, error)), "one number"),
    ],
    checks.learn_to_copy: [
        *spoiled(train, (dict(clear=False), "zero_grad is missing"), (dict(move=False), "did not change"),
                 (dict(cool=False), "learning rate never changed"), (dict(turned=True), "wrong order"),
                 (dict(told=lambda loss: loss), "holds tensors"), (dict(told=torch.detach), "holds tensors"),
                 (dict(back=lambda losses: losses[-1]), "a list of"),
                 (dict(back=lambda losses: None), "a list of"), (dict(back=lambda losses: losses[::-1]), "as the"),
                 (dict(back=lambda losses: losses[1:]), "a list of"), (dict(back=sum), "a list of")),
        (train_once, "only one step"), (torch.no_grad()(train), "raised RuntimeError"),
        (lambda net, distance, batches, *rest: train(net, distance, [b for b in batches for _ in "ab"], *rest), "list"),
        (lambda net, distance, batches, *rest: train(net, distance, [batches[0]], *rest), "raised TypeError"),
    ],
    checks.local_mean: [
        *spoiled(mean, (dict(power=1), "not squared"), (dict(two=1), "2 is missing"),
                 (dict(mode=None), "border is lost"),
                 (dict(mode="constant"), "you put zeros"), (dict(mode="replicate"), "a mirror"),
                 (dict(mode="circular"), "off by")),
        (lambda x, size, sigma: mean(x, 11, 1.5), "off by|raised"), (lambda x, size, sigma: x, "off by"),
        (lambda x, size, sigma: F.avg_pool2d(F.pad(x, (size // 2,) * 4, mode="reflect"), size, 1), "count alike"),
        (lambda x, size, sigma: mean(x, size, sigma, across=F.one_hot(torch.tensor(size // 2), size)), "one axis"),
        (lambda x, size, sigma: mean(x, size, sigma, down=F.one_hot(torch.tensor(size // 2), size)), "one axis"),
        (lambda x, size, sigma: mean(x.mean(1, keepdim=True), size, sigma), "mixed"),
        (lambda x, size, sigma: mean(x.mean(1, keepdim=True).expand_as(x), size, sigma), "mixed"),
        (lambda x, size, sigma: mean(x, size, sigma) / bell_of(size, sigma)[size // 2]**2, "add up to 1"),
        (lambda x, size, sigma: mean(x.float(), size, sigma), "dtype"),
        (lambda x, size, sigma: mean(x, size, sigma).double(), "dtype"),
        (lambda x, size, sigma: mean(x, size, sigma).mean((2, 3), keepdim=True), "shape"),
    ],
    checks.paint: [
        *spoiled(descend, (dict(clear=False), "zero_grad is missing"), (dict(cool=False), "learning rate never"),
                 (dict(clamp=False), r"left \[-1, 1\]"), (dict(sign=-1), "went up"),
                 (dict(after=lambda y: y), "wants grad"),
                 (dict(clamp=False, after=lambda y: y.detach().clamp(-1, 1)), "only at the end"),
                 (dict(more=1), "asked the loss"), (dict(more=-1), "asked the loss"),
                 (dict(move=False), "did not change"),
                 (dict(after=lambda y: None), "return"), (dict(after=lambda y: y.detach().double()), "dtype"),
                 (dict(after=lambda y: y.detach()[0]), "shape")),
        (lambda loss, start, steps: descend(loss, start, 60), "asked the loss"),
        (lambda loss, start, steps: start, "asked the loss"), (torch.no_grad()(descend), "raised RuntimeError"),
        (lambda loss, start, steps: start.copy_(descend(loss, start, steps)), "in place"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
