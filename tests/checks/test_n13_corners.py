"""Checks of notebook 13's shifts and corners: wrong solutions fail with a hint; right ones written another way pass."""

import torch
import torch.nn.functional as F
from solutions import spoiled, try_all

from ldm_mini import checks
from ldm_mini.cond import Cond
from ldm_mini.diffusion import diffusion_loss


def shifted(layer, x, shift, *, dims=(2, 3), back=lambda shift, s: [n // s for n in shift], size=torch.max, over="out",
            move=True, reduce=lambda e: e, absolute=True):
    with torch.no_grad():
        out = layer(x)
        expected = out.roll(back(shift, x.shape[-1] // out.shape[-1]), (2, 3))
        moved = layer(x.roll(shift, dims) if move else x)
        by = {"out": out.abs().max() if absolute else out.max(), "x": x.abs().max(), "none": 1}[over]
        return reduce(size((moved - expected).abs()) / by)


def shifted_by_index(layer, x, shift):
    """Rows and columns by their numbers; a Python number comes out."""
    def move(a, rows, columns):
        return a[:, :, (torch.arange(a.shape[2]) - rows) % a.shape[2]][..., (torch.arange(a.shape[3]) - columns)]

    out = layer(x)
    s = x.shape[2] // out.shape[2]
    error = (layer(move(x, *shift)) - move(out, shift[0] // s, shift[1] // s)).abs().amax() / out.abs().amax()
    return error.item()


def corner_of(pictures, background=0.8, *, row=lambda y: y > 0, column=lambda x: x > 0,
              number=lambda r, c: r.long() * 2 + c.long(),
              dark=lambda grey, background: (background - 0.4 - grey).clamp(min=0)):
    weight = dark(pictures.mean(1), background)
    y, x = (torch.linspace(-1, 1, n) for n in pictures.shape[2:])
    total = weight.sum((1, 2)).clamp(min=1e-6)
    return number(row(weight.sum(2) @ y / total), column(weight.sum(1) @ x / total))


def by_quarters(pictures, background):
    """Which quarter is the darkest?"""
    grey = F.adaptive_avg_pool2d(pictures.mean(1, keepdim=True), 2)
    return grey.flatten(1).argmin(1)


def by_loop(pictures, background):
    found = []
    for picture in pictures:
        rows, columns = torch.where(picture.mean(0) < background - 0.4)
        below, right = (float(a.float().mean()) > n / 2 - 0.5 for a, n in zip((rows, columns), picture.shape[1:]))
        found.append(2 * below + right)
    return torch.tensor(found)


def step(net, schedule, optimizer, pictures, corner, generator, *, kind="v", told=lambda corner: Cond(vector=corner),
         zero="early", steps=1, first=0, result=lambda loss: loss.item(), use=lambda g: g):
    for _ in range(first):
        optimizer.step()
    loss = diffusion_loss(net, schedule, pictures, told(corner), kind, generator=use(generator))
    if zero == "early":
        optimizer.zero_grad()
    loss.backward()
    if zero == "late":
        optimizer.zero_grad()
    for _ in range(steps):
        optimizer.step()
    return result(loss)


def step_by_hand(net, schedule, optimizer, pictures, corner, generator):
    t = torch.randint(schedule.num_steps, (len(pictures),), generator=generator)
    eps = torch.randn(pictures.shape, generator=generator)
    v = schedule.alpha(t, 4) * eps - schedule.sigma(t, 4) * pictures
    loss = (net(schedule.add_noise(pictures, eps, t), t, Cond(vector=corner)) - v).square().mean()
    for p, gradient in zip(net.parameters(), torch.autograd.grad(loss, [*net.parameters()])):
        p.grad = gradient
    optimizer.step()
    return float(loss.detach())


CORRECT = {
    checks.shift_error: [shifted, shifted_by_index, lambda *a: shifted(*a).reshape(1)],
    checks.found_corner: [corner_of, by_quarters, by_loop],
    checks.corner_step: [step, step_by_hand],
}

MUTANTS = {
    checks.shift_error: spoiled(
        shifted, (dict(over="none"), "relative"), (dict(over="x"), "not in x"), (dict(size=torch.mean), "mean one"),
        (dict(back=lambda shift, s: (0, 0)), "both shifted"),
        (dict(back=lambda shift, s: list(shift)), "as much smaller"),
        (dict(back=lambda shift, s: [-n // s for n in shift]), "opposite|off by"),
        (dict(move=False), "both shifted|Is x"),
        (dict(dims=(3, 2)), "rows, columns|off by"), (dict(absolute=False), "absolute"),
        (dict(reduce=lambda e: 0 * e), "Is x shifted"), (dict(reduce=lambda e: e + 0.01), "off by"),
        (dict(reduce=lambda e: e > 1e-4), "off by"), (dict(size=lambda e: e), "one number")),
    checks.found_corner: spoiled(
        corner_of, (dict(number=lambda r, c: c.long() * 2 + r.long()), "rows and columns"),
        (dict(column=lambda x: x < 0), "left and right"), (dict(row=lambda y: y < 0), "top and bottom"),
        (dict(row=lambda y: y < 0, column=lambda x: x < 0), "other side"),
        (dict(number=lambda r, c: r.long() * 2 + c.long() + 1), "from 0"),
        (dict(number=lambda r, c: r.long()), "bottom alone"),
        (dict(number=lambda r, c: c.long()), "right alone"), (dict(number=lambda r, c: r * 2.0 + c), "whole numbers"),
        (dict(dark=lambda grey, background: (grey - background + 0.4).clamp(min=0)), "other side|off by"),
        (dict(number=lambda r, c: torch.stack([r, c], 1)), "shape"),
        (dict(number=lambda r, c: (r.long() * 2 + c.long()).tolist()), "Tensor")) + [
        (lambda pictures, b: corner_of(pictures, b)[:1].expand(len(pictures)), "its own"),
        (lambda pictures, b: corner_of(pictures[..., :16], b), "off by|alone|swapped"),
        (lambda pictures, b: corner_of(pictures, dark=lambda grey, background: grey + 1), "other side|off by")],
    checks.corner_step: spoiled(
        step, (dict(kind="eps"), "learns the noise"), (dict(told=lambda corner: Cond()), "not told the corner"),
        (dict(told=lambda corner: Cond(vector=corner.flip(0))), "other pictures"),
        (dict(told=lambda corner: Cond(vector=corner[:1].expand(len(corner)))), "first one's"),
        (dict(told=lambda corner: Cond(vector=0 * corner)), "always 0"), (dict(zero="never"), "still there"),
        (dict(zero="late"), "nothing has moved"), (dict(steps=0), "nothing has moved"), (dict(steps=2), "two steps"),
        (dict(steps=0, first=1), "before the loss"), (dict(result=lambda loss: loss), "loss.item"),
        (dict(use=lambda g: None), "off by"), (dict(result=lambda loss: 2 * loss.item()), "off by")),
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
