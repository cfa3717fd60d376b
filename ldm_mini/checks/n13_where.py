"""Checks of notebook 13, does attention know where?"""

import torch
from torch import nn
from torch.nn import functional as F

from .checking import CheckFailed, attempt, compare, number, passed, truth, whole
from .properties import fresh, fresh_whole, generator, own_randomness, plain, same_dtype


def order_error(function):
    """`function(layer, x, order)`: layer (B,C,h,w) -> (B,C',h,w), order (h*w,) -> relative error, 0 = order-blind."""
    draw = fresh()
    for shape, out_channels, loud in (((2, 3, 4, 4), 5, 1.0), ((3, 2, 3, 5), 1, 100.0)):
        x = draw(*shape) * torch.arange(1, shape[0] + 1).view(-1, 1, 1, 1)  # the last sample has the largest error
        order = torch.randperm(shape[2] * shape[3], generator=generator())
        weight = loud * draw(out_channels, shape[1], 3, 3)
        conv = lambda image: F.conv2d(image, weight, padding=1)  # noqa: B023
        permute = lambda image: image.flatten(2)[:, :, order].view_as(image)  # noqa: B023
        for layer in (lambda image: image.relu() * 3, lambda image: image - image.mean((2, 3), keepdim=True)):
            blind = number(attempt(function, layer, x, order, name="order_error"), "order_error")
            if not blind <= 1e-4:
                raise CheckFailed("order_error: a layer that treats each pixel alike must get 0. Compare layer(P x) "
                                  "with P layer(x): put the output in the same order, and only the pixels, not the "
                                  "channels.")
        out, moved = conv(x), permute(conv(x)) - conv(permute(x))
        size, worst = out.abs().max(), moved.abs().max()
        got = number(attempt(function, conv, x, order, name="order_error"), "order_error")
        compare(got, worst.double() / size, "order_error of a 3x3 convolution", mistakes=[
            (worst, "divide by the largest number in layer(x): a *relative* error."),
            (worst / out.max(), "take absolute values before the largest of layer(x)."),
            (worst / x.abs().max(), "divide by the largest number in layer(x), not in x."),
            (worst / out.norm(), "divide by the *largest* number in layer(x), not by its norm."),
            (moved.norm() / out.norm(), "the *largest* difference over the largest number, not norms."),
            (moved.max() / size, "differences can be negative: take absolute values."),
            (-moved.min() / size, "differences can be negative: take absolute values."),
            (moved[0].abs().max() / size, "the largest difference in the whole batch, not in its first sample."),
            (moved.abs().mean() / out.abs().mean(), "the *largest* difference, not the mean one."),
            (moved.abs().mean() / size, "the *largest* difference, not the mean one."),
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
             ["conv", "down", "conv", "up", "conv"], ["down", "down", "up", "conv", "up", "conv"], [],
             ["down"] * 4 + ["conv"] * 3 + ["up"] * 3 + ["conv", "up", "conv"])
    some, drawn = fresh_whole(), []
    for _ in range(9):
        lower = drawn.count("down") > drawn.count("up")
        drawn.append(("conv", "down", "up")[some(0, 3 if lower else 2)])
    cases += (drawn,)
    answers = [plain(attempt(function, list(case), name="border_reach")) for case in cases]  # a learner may pop
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
    draw = fresh()
    for rows, test_rows, features, targets in ((60, 40, 4, 2), (30, 50, 2, 3), (25, 20, 5, 1)):
        x, v = draw(rows, features).double(), draw(test_rows, features).double() + 0.5
        # the columns differ in size, or a mean of their R^2 would be nearly the same
        mix, size = draw(features, targets).double(), 3.0 ** torch.arange(targets)
        y, w = ((a @ mix + 3 + 2 * draw(len(a), targets)) * size for a in (x, v))
        got = number(attempt(function, x, y, v, w, name="probe"), "probe")
        compare(got, _r2(_one(v) @ _fit(_one(x), y), w), "probe", rtol=1e-5, mistakes=_wrong_r2(x, y, v, w))
    passed("probe: what a linear reader can see, on rows it never saw")


def _fit(x, y):
    return torch.linalg.lstsq(x, y).solution


def _one(a):
    return torch.cat([a, torch.ones_like(a[:, :1])], dim=1)


def _r2(guess, truth, mean=None):
    mean = truth.mean(0) if mean is None else mean
    return 1 - (truth - guess).square().sum() / (truth - mean).square().sum()


def _wrong_r2(x, y, v, w):
    guess = _one(v) @ _fit(_one(x), y)
    return [
        (_r2(_one(x) @ _fit(_one(x), y), y), "this is R^2 on the *training* rows; judge on the test rows."),
        (_r2(v @ _fit(x, y), w), "the constant is missing: add a column of ones to the features."),
        (_r2(_one(v) @ _fit(_one(v), w), w), "you fitted on the test rows; fit on the training rows only."),
        (_r2(guess, w, y.mean(0)), "the mean of the *test* rows is meant: y-bar is that of the y in the sums."),
        (torch.stack([_r2(a, b) for a, b in zip(guess.T, w.T)]).mean(), "a mean of the columns' R^2; here all columns "
         "go into the sums together."),
        (_r2(guess, w, w.mean()), "the mean of each column is meant, `mean(0)`, not of all numbers."),
        (_r2(guess, w, torch.zeros(1).double()), "take the mean away: R^2 compares with guessing the mean."),
        (1 - _r2(guess, w), "this is 1 - R^2, the part that is *not* explained."),
        ((w - guess).square().mean(), "this is the squared error; R^2 compares it with guessing the mean."),
    ]


def coordinates(function):
    """`function(height, width)` -> (2, height, width): rows, then columns, of pixel centres in (-1, 1)."""
    some = fresh_whole()
    for height, width in ((4, 4), (3, 6), (1, 5), (some(2, 20), some(2, 20))):
        rows, columns = ((torch.arange(n) + 0.5) / n * 2 - 1 for n in (height, width))
        want = torch.stack([rows[:, None].expand(height, width), columns[None].expand(height, width)])
        edge = torch.stack([torch.linspace(-1, 1, height)[:, None].expand(height, width),
                            torch.linspace(-1, 1, width)[None].expand(height, width)])
        left = torch.stack([rows[:, None].expand(height, width) - 1 / height,
                            columns[None].expand(height, width) - 1 / width])
        got = attempt(function, height, width, name="coordinates")
        compare(got, want, f"coordinates({height}, {width})", mistakes=[
            (want.flip(0), "the first channel is the row, the second the column."),
            (want.flip(1), "rows count downwards: the first row has the smallest number."),
            (edge, "-1 and 1 are the *borders* of the picture; the centre of the first of 4 pixels is at -0.75."),
            (left, "these are the pixels' upper left corners; their centres lie half a pixel further."),
            ((want + 1) / 2, "this runs from 0 to 1; make it -1 to 1."),
        ])
        same_dtype(got, want, f"coordinates({height}, {width})")
    passed("coordinates: every pixel has its own address")


def knows_where(function):
    """`function(net, channels, size, factor)` -> bool: is some shift by a multiple of factor not passed on?"""
    weight = fresh()(2, 2, 3, 3)

    def zeros(x):
        return F.conv2d(x, weight, padding=1)

    def ring(x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight)

    def lower(x):
        return F.interpolate(F.max_pool2d(ring(x), 4), scale_factor=4.0)

    def by(code):
        return lambda x: x + code.to(x)

    down, place = torch.linspace(0, 1, 8), torch.arange(8)
    cases = [
        (zeros, 1, True, "a convolution with zero padding knows where the border is."),
        (ring, 1, False, "a convolution on a ring is equivariant to every shift, up to rounding: allow a tolerance."),
        (lambda x: x.relu(), 1, False, "a layer that treats each pixel alike is equivariant to every shift."),
        (lambda x: 5 * ring(x) + x.mean((2, 3), keepdim=True), 1, False, "a mean over all pixels knows no place; "
         "rounding: allow a tolerance."),
        (by(down[:, None].expand(8, 8)), 1, True, "this one adds the row to each pixel: try shifts of rows too."),
        (by(down[None].expand(8, 8)), 1, True, "this one adds the column to each pixel: try shifts of columns too."),
        (by(down[(place[:, None] - place) % 8]), 1, True, "this one cannot be told from its shifts along the "
         "diagonal: try shifts of rows alone and of columns alone too."),
        (by(down[(place[:, None] + place) % 8]), 1, True, "this one cannot be told from its shifts along the other "
         "diagonal: try shifts of rows alone and of columns alone too."),
        (lambda x: x.flip(2), 1, True, "this one turns the picture upside down, and pictures of one colour do not show "
         "it: test with noise."),
        (lambda x: torch.cat([x[:, :1], x[:, 1:].flip(3)], 1), 1, True, "the second channel is mirrored: look at all "
         "channels."),
        (by((place % 2)[:, None].expand(8, 8)), 1, True, "every second row is another: a shift by one row shows it."),
        (by((place % 2)[:, None].expand(8, 8)), 2, False, "every second row is another, but only shifts by multiples "
         "of `factor` = 2 are asked for."),
        (lower, 4, False, "it works at a quarter of the resolution: shift by multiples of `factor` only."),
        (lambda x: 1e-6 * zeros(x), 1, True, "numbers can be small: judge the difference as a fraction of the output."),
        (lambda x: 1e4 * ring(x), 1, False, "rounding: compare with a tolerance, relative to the output."),
    ]
    for net, factor, want, message in cases:
        got = truth(attempt(function, net, 2, 8, factor, name="knows_where"), "knows_where")
        if got != want:
            raise CheckFailed(f"knows_where returned {got}: {message}")
    # other numbers of channels and sizes, and a network with weights and a mode
    for channels, size, factor in ((3, 9, 3), (1, 12, 4)):
        def mirror(x, want=(channels, size, size)):
            if x.shape[1:] != want:
                raise ValueError(f"net got {tuple(x.shape)}, not (2, channels, size, size)")
            return x.flip(3)

        if not truth(attempt(function, mirror, channels, size, factor, name="knows_where"), "knows_where"):
            raise CheckFailed(f"knows_where missed a mirror of {channels} channels, size {size}, factor {factor}.")
    with own_randomness():
        stateful = nn.Conv2d(2, 2, 3, padding=1)
    before = {name: value.clone() for name, value in stateful.state_dict().items()}
    attempt(function, stateful, 2, 8, 1, name="knows_where")
    if any(not torch.equal(before[name], value) for name, value in stateful.state_dict().items()) or \
            not stateful.training:
        raise CheckFailed("knows_where changed the network it was given, or its mode.")
    passed("knows_where: a question one can put to any network")
