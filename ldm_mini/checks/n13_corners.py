"""Checks of notebook 13, shifts, and the four models that draw in corners."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cond import Cond
from ..diffusion import diffusion_loss
from .checking import CheckFailed, attempt, compare, number, passed
from .n07_training import SCHEDULE, hold_step, one_step, step_mistakes
from .properties import fresh, generator, own_randomness


def shift_error(function):
    """`function(layer, x, shift)`: layer (B,C,h,w) -> (B,C',h/s,w/s); shift: rows, columns, multiples of s -> error."""
    draw = fresh()
    for shape, stride, shift, loud in (((2, 3, 6, 6), 1, (2, 1), 1.0), ((2, 2, 8, 12), 2, (2, 4), 50.0),
                                       ((1, 3, 12, 8), 4, (4, 8), 0.01), ((2, 3, 4, 8), 1, (0, 3), 1.0)):
        x, weight = draw(*shape), loud * draw(4, shape[1], 3, 3)
        ring = lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), "circular"), weight, stride=stride)  # noqa: B023
        zeros = lambda x: F.conv2d(x, weight, padding=1, stride=stride)  # noqa: B023
        what = f"shift_error with shift {shift} of a convolution of stride {stride}"
        # with zeros first: on a ring several mistakes look alike
        for kind, layer in (("zeros", zeros), ("ring", ring)):
            got = number(attempt(function, layer, x, shift, name="shift_error"), "shift_error")
            out, moved = layer(x), layer(x.roll(shift, (2, 3)))
            back = [s // stride for s in shift]
            difference = (moved - out.roll(back, (2, 3))).abs()
            if kind == "ring" and got <= 1e-4:
                continue
            compare(got, (difference.max() / out.abs().max()).double() * (kind == "zeros"), f"{what}, {kind} outside",
                    rtol=1e-3, atol=1e-4, mistakes=[
                (difference.max(), "divide by the largest number in layer(x): a *relative* error."),
                (difference.max() / x.abs().max(), "divide by the largest number in layer(x), not in x."),
                (difference.mean() / out.abs().max(), "the *largest* difference, not the mean one."),
                (difference.max() / out.max(), "take absolute values before the largest of layer(x)."),
                *[((moved - other).abs().max() / out.abs().max(), message) for other, message in (
                    (out, "x and the output are both shifted: compare layer(shifted x) with shifted layer(x)."),
                    (out.roll(shift, (2, 3)), "the output is smaller than the input: its shift is as much smaller."),
                    (out.roll([-s for s in back], (2, 3)), "x and the output were shifted in opposite directions."),
                    (out.roll(back[::-1], (2, 3)), "a shift is (rows, columns): dims (2, 3)."))],
                ((out - out.roll(back, (2, 3))).abs().max() / out.abs().max(), "the output is shifted. Is x shifted?"),
                (0, "zeros outside break the symmetry, but you found no difference. Is x shifted at all?")])
    passed("shift_error: 0 for layers that know no place")


def found_corner(function):
    """`function(pictures, background)`: (B,3,h,w), its value -> (B,) int64: 0 top left, 1 top right, 2 and 3 below."""
    draw = fresh()
    for height, width, count, background in ((16, 16, 12, 0.8), (16, 32, 9, 0.8), (12, 10, 5, 0.3)):
        corner = torch.randint(4, (count,), generator=generator())
        corner[:4] = torch.arange(4)
        at = torch.stack([corner // 2, corner % 2], 1)
        centre = at * torch.tensor([height - 6, width - 6]) + torch.randint(1, 4, (count, 2), generator=generator())
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        inside = (rows - centre[:, 0, None, None]).square() + (columns - centre[:, 1, None, None]).square() <= 5
        color = draw(count, 3, 1, 1).clamp(-1, 1) * 0.3 - 0.7  # never brighter than -0.4
        pictures = torch.where(inside[:, None], color, background + 0.05 * draw(count, 3, height, width))
        got = attempt(function, pictures, background, name="found_corner")
        if isinstance(got, Tensor) and got.is_floating_point():
            raise CheckFailed(f"found_corner: corners are whole numbers (int64), not {got.dtype}.")
        compare(got, corner, f"found_corner of pictures {height} x {width}", mistakes=[
            (corner % 2 * 2 + corner // 2, "rows and columns are swapped: 1 is top *right*, 2 is *bottom* left."),
            (corner // 2 * 2 + (1 - corner % 2), "left and right are swapped."),
            ((1 - corner // 2) * 2 + corner % 2, "top and bottom are swapped: rows count downwards."),
            (3 - corner, "this is the corner on the other side. Look for what is *darker* than the background."),
            (corner + 1, "corners count from 0."), (corner // 2, "this tells top from bottom alone."),
            (corner % 2, "this tells left from right alone."), (corner[:1].expand(count), "each picture has its own.")])
    attempt(function, torch.full((2, 3, 16, 16), 0.8), 0.8, name="found_corner")
    passed("found_corner: the darkest quarter, whatever the colours")


class _Told(nn.Module):
    """A network that adds a number of its own for each corner."""

    def __init__(self):
        super().__init__()
        self.mix, self.corner = nn.Conv2d(3, 3, 3, padding=1), nn.Embedding(4, 3)

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """x (B,3,h,w), t (B,), cond.vector int64 (B,) -> like x"""
        if not isinstance(cond, Cond) or cond.vector is None:
            raise CheckFailed("the network was not told the corner: Cond(vector=corner) is the condition.")
        return 0.2 * self.mix(x) * (1 + t.view(-1, 1, 1, 1) / 500) + self.corner(cond.vector)[:, :, None, None]


def corner_step(function):
    """`function(net, schedule, optimizer, pictures, corner, generator)` -> the loss before the step, a float."""
    draw = fresh()
    for size in (4, 3):
        with own_randomness():
            start = _Told()
        pictures, corner = 5 * draw(size, 3, 6, 6), torch.tensor([3, 1, 0, 2])[:size]
        seed, left = int(generator().initial_seed() % 1000) + size, [draw(*p.shape) for p in start.parameters()]

        def run(step, start=start, pictures=pictures, corner=corner, seed=seed, left=left):
            net = copy.deepcopy(start)
            for p, gradient in zip(net.parameters(), left):
                p.grad = gradient.clone()
            optimizer = torch.optim.SGD(net.parameters(), 0.1)
            return step(net, SCHEDULE, optimizer, pictures, corner, torch.Generator().manual_seed(seed)), net

        mistakes = step_mistakes(_step, flipped="the corners belong to other pictures: hand them on in their order.",
                                 first="all pictures got the first one's corner.", none="the corner is always 0.",
                                 eps="the network learns the noise here; this one predicts v.")
        hold_step(function, run, "corner_step", {k: v for k, v in mistakes.items() if "clip" not in k})
    passed("corner_step: the noise, the step, and the corner that was asked for")


def _step(net, schedule, optimizer, pictures, corner, generator, change=""):
    """The step of notebook 13 with one thing changed."""
    state = generator.get_state()
    told = {"flipped": corner.flip(0), "first": corner[:1].expand(len(corner)), "none": 0 * corner}.get(change, corner)

    def compute():
        generator.set_state(state)
        return diffusion_loss(net, schedule, pictures, Cond(vector=told), "eps" if change == "eps" else "v",
                              generator=generator)

    return one_step(compute, [*net.parameters()], optimizer, change=change)
