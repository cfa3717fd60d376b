"""Checks of notebook 13: known wrong solutions fail with a message that helps; right ones written another way pass."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from solutions import spoiled, try_all

from ldm_mini import checks
from ldm_mini.blocks import Downsample, Upsample


def permuted(x, order):
    return x.flatten(2)[:, :, order].view_as(x)


def error(layer, x, order, back=True, relative=True, mean=False, shuffle=True, own_order=False, rows=None):
    order = torch.arange(len(order)).flip(0) if own_order else order
    x = x[:rows]
    out = layer(x)
    moved = layer(permuted(x, order) if shuffle else x)
    difference = (moved - (permuted(out, order) if back and shuffle else out)).abs()
    return (difference.mean() if mean else difference.max()) / (out.abs().max() if relative else 1)


def by_norms(layer, x, order):
    return (layer(permuted(x, order)) - permuted(layer(x), order)).norm() / layer(x).norm()


def by_inverse(layer, x, order):
    """Undoes the shuffling instead of repeating it; a Python number comes out."""
    out = layer(x)
    back = permuted(layer(permuted(x, order)), torch.argsort(order))
    return ((back - out).abs().amax() / out.abs().amax()).item()


def channels_too(layer, x, order):
    def mix(image):
        return image.flatten(1)[:, torch.randperm(image[0].numel(), generator=torch.Generator().manual_seed(0))]

    out = layer(x)
    return (mix(layer(mix(x).view_as(x))) - mix(out)).abs().max() / out.abs().max()


def reach_by_popping(layers):
    far, pixel = 0, 1
    while layers:
        layer = layers.pop(0)
        far, pixel = far + pixel * (layer != "up"), {"down": pixel * 2, "up": pixel // 2}.get(layer, pixel)
    return far


def reach(layers, down=True, first=True, up=True, up_conv=False, pixels=True):
    far, pixel = 0, 1
    for layer in layers:
        if layer == "conv":
            far += pixel
        elif layer == "down":
            pixel *= 1 if first else 2
            far += pixel * down
            pixel *= 2 if first else 1
        else:
            pixel = pixel // 2 if up else pixel
            far += pixel * up_conv
        pixel = pixel if pixels else 1
    return far


def measured(layers):
    """The definition: run real layers on a ring and on zeros, and see how far from the border they differ."""
    torch.manual_seed(0)
    plain = ring = torch.rand(1, 1, 64, 64, dtype=torch.float64) + 1
    for layer in layers:
        weight, stride = torch.rand(1, 1, 3, 3, dtype=torch.float64) + 0.1, 2 if layer == "down" else 1
        plain = F.conv2d(plain, weight, stride=stride, padding=1)
        ring = F.conv2d(F.pad(ring, (1, 1, 1, 1), "circular"), weight, stride=stride)
    differs = ((plain - ring).abs()[0, 0, plain.shape[-1] // 2] > 1e-9).tolist()
    return differs.index(False) * 64 // plain.shape[-1]


@pytest.mark.parametrize("layers", [["conv"] * 3, ["conv", "down", "conv"], ["conv", "conv", "down", "conv", "conv"]])
def test_border_reach_is_what_real_layers_do(layers):
    """Left border: a stride-2 convolution of padding 1 reads pixels -1, 0, 1; whole coarse pixels are reached."""
    pixel = 2 ** layers.count("down")
    assert abs(measured(layers) - reach(layers)) < pixel


def r2(train_x, train_y, test_x, test_y, one=True, judge="test", fit="train", mean="columns", part="explained"):
    def design(x):
        return np.concatenate([x, np.ones((len(x), 1))], 1) if one else x

    train_x, train_y, test_x, test_y = (np.asarray(a) for a in (train_x, train_y, test_x, test_y))
    x, y = (train_x, train_y) if fit == "train" else (test_x, test_y)
    beta = np.linalg.pinv(design(x)) @ y
    x, y = (test_x, test_y) if judge == "test" else (train_x, train_y)
    wrong = np.square(y - design(x) @ beta)
    middle = {"columns": y.mean(0), "all": y.mean(), "none": 0, "training": train_y.mean(0)}[mean]
    return float({"explained": 1 - wrong.sum() / np.square(y - middle).sum(),
                  "rest": wrong.sum() / np.square(y - middle).sum(), "mse": wrong.mean(),
                  "each": (1 - wrong.sum(0) / np.square(y - middle).sum(0)).mean()}[part])


def centred(train_x, train_y, test_x, test_y):
    """The constant by means instead of a column of ones, the fit by the normal equations."""
    mx, my = train_x.mean(0), train_y.mean(0)
    x = train_x - mx
    weights = torch.linalg.solve(x.T @ x, x.T @ (train_y - my))
    rest = test_y - my - (test_x - mx) @ weights
    return 1 - rest.square().sum() / (test_y - test_y.mean(0)).square().sum()


def grid(height, width, how="right"):
    y, x = torch.meshgrid(torch.arange(height) / 1.0, torch.arange(width) / 1.0, indexing="ij")
    if how == "edges":
        return torch.stack([y / (height - 1), x / (width - 1)]) * 2 - 1
    half = 0.0 if how == "corners" else 0.5
    place = torch.stack([(y + half) / height, (x + half) / width])
    return {"swapped": place.flip(0) * 2 - 1, "unit": place, "up": (place * 2 - 1).flip(1),
            "double": place.double() * 2 - 1, "columns only": (place * 2 - 1)[1:].expand(2, -1, -1)}.get(
                how, place * 2 - 1)


def grid_by_linspace(h, w):
    lines = torch.linspace(1 / h - 1, 1 - 1 / h, h), torch.linspace(1 / w - 1, 1 - 1 / w, w)
    return torch.stack(torch.meshgrid(*lines, indexing="ij"))


def knows(net, channels, size, factor=1, shifts=((1, 0), (0, 1), (1, 1)), relative=True, tolerance=1e-3,
          in_factor=True, noise=torch.randn, first=None, train=None):
    x = noise(2, channels, size, size)
    if train is not None and isinstance(net, torch.nn.Module):
        net.train(train)
    whole, net = net, lambda x: whole(x)[:, :first]
    out = net(x)
    step = factor if in_factor else 1
    for rows, columns in shifts:
        moved = net(torch.roll(x, (rows * step, columns * step), (-2, -1)))
        difference = (moved - torch.roll(out, (rows * step, columns * step), (-2, -1))).abs().max()
        if difference > tolerance * (out.abs().max() if relative else 1):
            return True
    return False


def every_shift(net, channels, size, factor=1):
    """All shifts there are; the result is a tensor."""
    x = torch.rand(2, channels, size, size)
    out = net(x)
    errors = [(net(torch.roll(x, (i, j), (2, 3))) - torch.roll(out, (i, j), (2, 3))).norm() / out.norm()
              for i in range(0, size, factor) for j in range(0, size, factor)]
    return torch.stack(errors).max() > 1e-4


def test_the_premise_holds_for_the_library():
    """Downsample and Upsample pass on shifts of the ring, and zero padding alone breaks that."""
    torch.manual_seed(0)
    for padding, expected in (("circular", False), ("zeros", True)):
        layers = torch.nn.Sequential(Downsample(2), Upsample(2))
        for layer in layers:
            layer.conv = torch.nn.Conv2d(2, 2, 3, stride=layer.conv.stride, padding=1, padding_mode=padding)
        with torch.no_grad():
            assert knows(layers, 2, 8, factor=2) is expected


CORRECT = {
    checks.order_error: [error, by_inverse, lambda layer, x, order: error(layer, x, order).reshape(1)],
    checks.border_reach: [reach, lambda layers: float(reach(layers)), reach_by_popping,
                          lambda layers: torch.tensor(reach(layers))],
    checks.probe: [r2, centred, lambda *rows: torch.tensor(r2(*rows)), lambda *rows: np.float64(r2(*rows))],
    checks.coordinates: [grid, grid_by_linspace],
    checks.knows_where: [knows, every_shift],
}

MUTANTS = {
    checks.order_error: [(channels_too, "pixels")] + spoiled(
        error, (dict(back=False), "put the output in the same order"), (dict(relative=False), "relative"),
        (dict(mean=True), "largest"), (dict(shuffle=False), "Is x shuffled"), (dict(own_order=True), "off by up to"),
        (dict(rows=1), "off by up to|first sample")) + [
        (by_norms, "norms"), (lambda layer, x, order: error(layer, x, order) * layer(x).abs().max() / x.abs().max(),
                              "not in x"),
        (lambda layer, x, order: error(layer, x, order) if x.shape[2] == x.shape[3] else 0.0, "Is x shuffled"),
        (lambda layer, x, order: (layer(permuted(x, order)) - permuted(layer(x), order)).abs(), "one number"),
    ],
    checks.border_reach: spoiled(
        reach, (dict(down=False), "is a 3x3 convolution too"), (dict(first=False), "before"),
        (dict(up=False), "half as large again"), (dict(up_conv=True), "repeats pixels"),
        (dict(pixels=False), "several pixels of the input")) + [
        (lambda layers: min(reach(layers), 7), "it should be"), (lambda layers: reach(layers) + 0.5, "whole number"),
        (lambda layers: reach(layers[::-1]), "it should be"), (lambda layers: reach(layers) or 1, "it should be"),
        (lambda layers: reach([layer for layer in layers if layer != "up"]), "half as large|it should be"),
    ],
    checks.probe: spoiled(
        r2, (dict(one=False), "constant is missing"), (dict(judge="train"), "training"),
        (dict(fit="test"), "fitted on the test"), (dict(mean="all"), "each column"),
        (dict(mean="none"), "take the mean away"), (dict(part="rest"), "not. explained"),
        (dict(part="mse"), "squared error"), (dict(mean="training"), "of the \\*test\\* rows"),
        (dict(part="each"), "columns' R")) + [
        (lambda *rows: abs(r2(*rows)) ** 0.5, "off by up to"),
        (lambda a, b, c, d: r2(a[:25], b[:25], c, d), "off by up to"),
        (lambda a, b, c, d: r2(a, b, c[:20], d[:20]), "off by up to")],
    checks.coordinates: [(lambda h, w: grid(h, w).permute(1, 2, 0), "shape")] + spoiled(
        grid, ("edges", "borders"), ("corners", "half a pixel"), ("unit", "0 to 1"),
        ("swapped", "first channel is the row"), ("up", "downwards"), ("double", "dtype"),
        ("columns only", "off by up to")) + [
        (lambda h, w: grid(h, h), "shape"), (lambda h, w: grid(w, h).mT, "first channel"),
        (lambda h, w: grid(h, w)[None], "shape")],
    checks.knows_where: spoiled(
        knows, (dict(shifts=((1, 0),)), "shifts of columns"), (dict(shifts=((0, 1),)), "shifts of rows"),
        (dict(in_factor=False), "multiples of `factor`"), (dict(relative=False), "fraction of the output"),
        (dict(tolerance=0.0), "tolerance"), (dict(tolerance=10.0), "knows where the border is"),
        (dict(shifts=((1, 1),)), "diagonal"), (dict(shifts=((1, -1),)), "diagonal|knows where"),
        (dict(noise=torch.ones), "noise"), (dict(noise=torch.zeros), "knows where"), (dict(first=1), "all channels"),
        (dict(shifts=((2, 0), (0, 2))), "a shift by one row|knows where"), (dict(train=False), "or its mode")) + [
        (lambda net, channels, size, factor=1: knows(net, 2, 8, factor), "net got"),
        (lambda net, channels, size, factor=1: True, "equivariant"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
