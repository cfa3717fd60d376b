"""Checks of notebook 13, does attention know where?"""

import torch
from torch import nn
from torch.nn import functional as F

from .checking import CheckFailed, attempt, compare, noise, number, passed, truth, whole


def order_error(function):
    """`function(layer, x, order)`: layer (B,C,h,w) -> (B,C',h,w), order (h*w,) -> relative error, 0 = order-blind."""
    x, order = noise(2, 3, 4, 4), torch.randperm(16, generator=torch.Generator().manual_seed(1))
    weight = noise(5, 3, 3, 3, seed=2)

    def conv(image):
        return F.conv2d(image, weight, padding=1)

    def permute(image, order=order):
        return image.flatten(2)[:, :, order].view_as(image)

    blind = number(attempt(function, lambda image: image.relu() * 3, x, order, name="order_error"), "order_error")
    if blind > 1e-4:
        raise CheckFailed("order_error: a layer that treats each pixel alike must get 0. Compare layer(P x) with "
                          "P layer(x): put the output in the same order, and only the pixels, not the channels.")
    out, moved = conv(x), conv(permute(x))
    size = out.abs().max()
    got = number(attempt(function, conv, x, order, name="order_error"), "order_error")
    compare(got, (moved - permute(out)).abs().max().double() / size, "order_error of a 3x3 convolution", mistakes=[
        ((moved - permute(out)).abs().max(), "divide by the largest number in layer(x): a *relative* error."),
        ((moved - permute(out)).abs().max() / out.max(), "take absolute values before the largest of layer(x)."),
        ((moved - permute(out)).max() / size, "differences can be negative: take absolute values."),
        ((moved - permute(out)).abs().mean() / out.abs().mean(), "the *largest* difference, not the mean one."),
        ((moved - permute(out)).abs().mean() / size, "the *largest* difference, not the mean one."),
        (0, "a 3x3 convolution sees the order, but you found no difference. Is x shuffled at all?"),
    ])
    passed("order_error: 0 for layers that see a set, not a picture")


def border_reach(function):
    """`function(layers)`: list of "conv", "down", "up" -> input pixels that the border's signal travels."""
    def right(layers, down_step=1, late=False, up_moves=False, up=True):
        reach, pixel = 0, 1
        for layer in layers:
            if layer == "up":
                pixel = pixel // 2 if up else pixel
                reach += pixel * up_moves
            elif layer == "down":
                pixel *= 2 if late else 1
                reach += pixel * down_step
                pixel *= 1 if late else 2
            else:
                reach += pixel
        return reach

    cases = (["conv"], ["conv", "conv", "conv"], ["down"], ["conv", "down", "conv"], ["down", "down", "conv", "conv"],
             ["conv", "down", "conv", "up", "conv"], ["down", "down", "up", "conv", "up", "conv"], [])
    answers = [attempt(function, case, name="border_reach") for case in cases]
    mistakes = [
        ({"down_step": 0}, '"down" is a 3x3 convolution too: the news moves one pixel before the resolution changes.'),
        ({"late": True}, '"down" looks around at the resolution *before* it: add first, then double.'),
        ({"up_moves": True}, '"up" repeats pixels and looks at no neighbour: it moves nothing.'),
        ({"up": False}, 'after "up" a pixel is half as large again.'),
    ]
    for case, got in zip(cases, answers):
        if whole(got, f"border_reach({case})") != right(case):
            # one wrong answer proves nothing; a rule that explains all of them does
            why = [message for options, message in mistakes if all(
                right(case, **options) == got for case, got in zip(cases, answers))]
            if all(got == sum(layer != "up" for layer in case) for case, got in zip(cases, answers)):
                why = ["at a lower resolution one pixel is several pixels of the input: keep track of its size."]
            raise CheckFailed(f"border_reach({case}) gave {got}; it should be {right(case)}. " + "".join(why[:1]))
    passed("border_reach: lower levels carry the news faster")


def probe(function):
    """`function(train_x, train_y, test_x, test_y)`: linear regression with a constant -> R^2 on the test rows."""
    x, v = noise(60, 4).double(), noise(40, 4, seed=1).double() + 0.5
    mix = noise(4, 2, seed=2).double()
    y = x @ mix + 3 + 0.7 * noise(60, 2, seed=3)
    w = v @ mix + 3 + 0.7 * noise(40, 2, seed=4)

    def fit(x, y):
        return torch.linalg.lstsq(x, y).solution

    def one(a):
        return torch.cat([a, torch.ones_like(a[:, :1])], dim=1)

    def r2(guess, truth, mean=None):
        mean = truth.mean(0) if mean is None else mean
        return 1 - (truth - guess).square().sum() / (truth - mean).square().sum()

    beta, flat = fit(one(x), y), fit(x, y)
    got = number(attempt(function, x, y, v, w, name="probe"), "probe")
    compare(got, r2(one(v) @ beta, w), "probe", rtol=1e-3, mistakes=[
        (r2(one(x) @ beta, y), "this is R^2 on the *training* rows; judge on the test rows."),
        (r2(v @ flat, w), "the constant is missing: add a column of ones to the features."),
        (r2(one(v) @ fit(one(v), w), w), "you fitted on the test rows; fit on the training rows only."),
        (r2(one(v) @ beta, w, w.mean()), "the mean of each column is meant, `mean(0)`, not of all numbers."),
        (r2(one(v) @ beta, w, torch.zeros(2).double()), "take the mean away: R^2 compares with guessing the mean."),
        (1 - r2(one(v) @ beta, w), "this is 1 - R^2, the part that is *not* explained."),
        ((w - one(v) @ beta).square().mean(), "this is the squared error; R^2 compares it with guessing the mean."),
    ])
    passed("probe: what a linear reader can see, on rows it never saw")


def coordinates(function):
    """`function(height, width)` -> (2, height, width): rows, then columns, of pixel centres in (-1, 1)."""
    for height, width in ((4, 4), (3, 6)):
        rows, columns = ((torch.arange(n) + 0.5) / n * 2 - 1 for n in (height, width))
        want = torch.stack([rows[:, None].expand(height, width), columns[None].expand(height, width)])
        edge = torch.stack([torch.linspace(-1, 1, height)[:, None].expand(height, width),
                            torch.linspace(-1, 1, width)[None].expand(height, width)])
        left = torch.stack([rows[:, None].expand(height, width) - 1 / height,
                            columns[None].expand(height, width) - 1 / width])
        got = attempt(function, height, width, name="coordinates")
        compare(got, want, f"coordinates({height}, {width})", mistakes=[
            (want.flip(0), "the first channel is the row, the second the column."),
            (edge, "-1 and 1 are the *borders* of the picture; the centre of the first of 4 pixels is at -0.75."),
            (left, "these are the pixels' upper left corners; their centres lie half a pixel further."),
            ((want + 1) / 2, "this runs from 0 to 1; make it -1 to 1."),
        ])
    passed("coordinates: every pixel has its own address")


def knows_where(function):
    """`function(net, channels, size, factor)` -> bool: is some shift by a multiple of factor not passed on?"""
    weight = noise(2, 2, 3, 3, seed=1)

    def zeros(x):
        return F.conv2d(x, weight, padding=1)

    def ring(x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight)

    def lower(x):
        return F.interpolate(F.max_pool2d(ring(x), 4), scale_factor=4.0)

    def by(code):
        return lambda x: x + code.to(x)

    down = torch.linspace(0, 1, 8)
    cases = [
        (zeros, 1, True, "a convolution with zero padding knows where the border is."),
        (ring, 1, False, "a convolution on a ring is equivariant to every shift, up to rounding: allow a tolerance."),
        (lambda x: x.relu(), 1, False, "a layer that treats each pixel alike is equivariant to every shift."),
        (lambda x: 5 * ring(x) + x.mean((2, 3), keepdim=True), 1, False, "a mean over all pixels knows no place; "
         "rounding: allow a tolerance."),
        (by(down[:, None].expand(8, 8)), 1, True, "this one adds the row to each pixel: try shifts of rows too."),
        (by(down[None].expand(8, 8)), 1, True, "this one adds the column to each pixel: try shifts of columns too."),
        (lower, 4, False, "it works at a quarter of the resolution: shift by multiples of `factor` only."),
        (lambda x: 1e-6 * zeros(x), 1, True, "numbers can be small: judge the difference as a fraction of the output."),
        (lambda x: 1e4 * ring(x), 1, False, "rounding: compare with a tolerance, relative to the output."),
    ]
    for net, factor, want, message in cases:
        got = truth(attempt(function, net, 2, 8, factor, name="knows_where"), "knows_where")
        if got != want:
            raise CheckFailed(f"knows_where returned {got}: {message}")
    stateful = nn.Conv2d(2, 2, 3, padding=1)
    before = {name: value.clone() for name, value in stateful.state_dict().items()}
    attempt(function, stateful, 2, 8, 1, name="knows_where")
    if any(not torch.equal(before[name], value) for name, value in stateful.state_dict().items()):
        raise CheckFailed("knows_where changed the network it was given.")
    passed("knows_where: a question one can put to any network")
