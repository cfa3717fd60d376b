"""Checks of notebook 07, group norm, and how the time gets into a block."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import ResBlock
from .checking import CheckFailed, attempt, compare, passed, still_a_stub
from .n07_parts import same_layers, same_learning, wake
from .properties import fresh, learn, own_randomness, same_dtype, same_gradient


def group_norm(function):
    """`function(x, groups, eps)`: x (B,C,h,w) -> each group of channels of each picture with mean 0 and variance 1."""
    draw = fresh()
    # features as small as the eps show where it stands
    for shape, groups, eps, size in (((2, 8, 4, 4), 4, 0.5, 1.0), ((3, 6, 2, 5), 2, 1e-6, 1e-3),
                                     ((1, 4, 3, 3), 1, 1e-2, 0.1)):
        x = size * (draw(*shape) + draw(1, shape[1], 1, 1) + draw(shape[0], 1, 1, 1))
        got, what = attempt(function, x, groups, eps, name="group_norm"), f"group_norm(x {shape}, {groups}, {eps})"
        right = F.group_norm(x, groups, eps=eps)
        compare(got, right, what, rtol=1e-3, mistakes=(
            (_normed(x, groups, eps, change), message) for change, message in NORM_MISTAKES.items()))
        same_dtype(got, x, what)
        [leaf] = learn(x)
        same_gradient(function(leaf, groups, eps), F.group_norm(leaf, groups, eps=eps), {"x": leaf}, what)
    passed("group_norm: each group of each picture by itself")


NORM_MISTAKES = {
    "unbiased": "the variance is the mean of the squared differences: `unbiased=False`.",
    "batch": "the groups' means go over the whole batch: each picture stands alone.",
    "each channel": "each channel was normalised alone; a group has C / groups channels.",
    "all": "all channels were normalised together; each of the `groups` stands alone.",
    "mixed": "channel 0 and its neighbours are one group: split the channels as they stand, not every second one.",
    "variance": "divided by the variance; take its root.",
    "eps outside": "eps belongs under the root: sqrt(variance + eps).",
    "no eps": "eps is not used: sqrt(variance + eps), with the one that is given.",
    "no mean": "the mean was not taken away.",
}


def _normed(x: Tensor, groups: int, eps: float, change: str) -> Tensor:
    """Group norm with one thing changed."""
    count = {"each channel": x.shape[1], "all": 1}.get(change, groups)
    parts = x.unflatten(1, (count, -1))
    parts = x.unflatten(1, (-1, count)).transpose(1, 2) if change == "mixed" else parts
    over = (0, 2, 3, 4) if change == "batch" else (2, 3, 4)
    mean, variance = parts.mean(over, keepdim=True), parts.var(over, keepdim=True, correction=change == "unbiased")
    eps = 0.0 if change == "no eps" else eps
    root = {"variance": variance + eps, "eps outside": variance.sqrt() + eps}.get(change, (variance + eps).sqrt())
    out = (parts - (0 if change == "no mean" else mean)) / root
    return (out.transpose(1, 2) if change == "mixed" else out).reshape(x.shape)


def time_layers(cls):
    """`cls([layers])(h, time)`: one after the other; those that have a `time_proj` are called with the time too."""
    draw = fresh()
    for order in ("tp", "ppt", "t", "", "tptp"):
        with own_randomness():
            layers = [_Timed() if kind == "t" else nn.Conv2d(3, 3, 1) for kind in order]
        try:
            mine = cls(layers)
        except NotImplementedError as error:
            raise still_a_stub(error, "Layers") from None
        h, time, right = draw(2, 3, 4, 4), draw(2, 5), None
        if not isinstance(mine, nn.ModuleList) or len(mine) != len(layers):
            raise CheckFailed("Layers must be an nn.ModuleList of the layers it is given.")
        try:
            got = attempt(lambda h, time: mine(h, time), h, time, name="Layers.forward")  # noqa: B023
        except CheckFailed as failed:
            if "TypeError" in str(failed) and "missing" in str(failed):
                raise CheckFailed(f"{failed} A layer with a `time_proj` did not get it: layer(h, time).") from None
            if "TypeError" in str(failed) and "positional argument" in str(failed):
                raise CheckFailed(f"{failed} Only layers with a `time_proj` (hasattr) take the time.") from None
            raise
        what = f"Layers of {', '.join({'t': 'a block', 'p': 'a convolution'}[k] for k in order) or 'nothing'}"
        right = _through(layers, h, time)
        compare(got, right, what, mistakes=[
            (_through(layers[::-1], h, time), "the layers were called in the wrong order."),
            (h, "h does not move on: h = layer(...)."),
            (_through(layers[-1:], h, time), "each layer got the first h; it must get what the one before returned."),
            (_through(layers[:1], h, time), "only the first layer was called: `return` stands after the loop."),
            (_through(layers, h, 0 * time), "the blocks get another time than the one that is given.")])
        leaves = dict(zip(("h", "time"), learn(h, time)))
        if "t" in order:
            same_gradient(mine(*leaves.values()), _through(layers, *leaves.values()), leaves, what)
    passed("Layers: one after the other, and who wants the time gets it")


class _Timed(nn.Module):
    """A block that adds the time."""

    def __init__(self):
        super().__init__()
        self.time_proj = nn.Linear(5, 3)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        return torch.tanh(h) + self.time_proj(time)[:, :, None, None]


def _through(layers, h, time) -> Tensor:
    for layer in layers:
        h = layer(h, time) if isinstance(layer, _Timed) else layer(h)
    return h


def scale_shift(cls):
    """`cls(in_channels, out_channels, time_dim, groups)`: as ResBlock; the time scales and shifts the second norm."""
    draw = fresh()
    for c_in, c_out, time_dim, groups, size in ((8, 8, 12, 4, (2, 4, 4)), (8, 16, 6, 2, (3, 4, 5))):
        with own_randomness():
            reference = ResBlock(c_in, c_out, time_dim, groups, eps=1e-5, scale_shift=True, zero_init=True)
            mine, call = same_layers(cls, (c_in, c_out, time_dim, groups), reference, "ScaleShift")
        wake(reference)
        mine.load_state_dict(reference.state_dict())
        x, time = draw(size[0], c_in, *size[1:]), draw(size[0], time_dim)
        got, what = attempt(call, x, time, name="ScaleShift.forward"), f"ScaleShift({c_in}, {c_out})(x, time)"
        with torch.no_grad():
            compare(got, reference(x, time), what, rtol=1e-3, atol=1e-4, mistakes=(
                (scale_shift_with(reference, x, time, change), message) for change, message in SHIFT_MISTAKES.items()))
        same_dtype(got, x, what)
        same_learning(mine, reference, (x, time), what)
    passed("ScaleShift: the time turns channels up and down")


SHIFT_MISTAKES = {
    "swapped": "the first half of the numbers is the scale, the second the shift.",
    "every second": "scale and shift are the two halves (chunk), not every second number.",
    "no one": "multiply by 1 + scale: a fresh scale of about 0 would switch the channels off.",
    "before": "scale and shift come after norm2, which would undo them.",
    "no norm": "norm2 is not used.",
    "late": "scale and shift come before the second SiLU.",
    "no silu": "the second SiLU is missing: conv2(silu(norm2(h) * (1 + scale) + shift)).",
    "plain time": "the time vector goes through SiLU first: time_proj(silu(time)).",
    "no shift": "the shift is missing.",
    "no scale": "the scale is missing.",
    "shift first": "first scale, then shift: norm2(h) * (1 + scale) + shift.",
    "no shortcut": "the shortcut is missing: self.shortcut(x) + ...",
}


def scale_shift_with(b: ResBlock, x: Tensor, time: Tensor, change: str) -> Tensor:
    """The forward of such a block with one thing changed."""
    e = b.time_proj(time if change == "plain time" else F.silu(time))[:, :, None, None]
    scale, shift = (e[:, ::2], e[:, 1::2]) if change == "every second" else e.chunk(2, dim=1)
    scale, shift = (shift, scale) if change == "swapped" else (scale, shift)
    scale, shift = scale * (change != "no scale") + (change != "no one"), shift * (change != "no shift")
    h = b.conv1(F.silu(b.norm1(x)))
    if change in ("before", "no norm"):
        h = h * scale + shift
        h = F.silu(h if change == "no norm" else b.norm2(h))
    elif change == "late":
        h = F.silu(b.norm2(h)) * scale + shift
    else:
        h = (b.norm2(h) + shift) * scale if change == "shift first" else b.norm2(h) * scale + shift
        h = h if change == "no silu" else F.silu(h)
    return b.conv2(h) + (0 if change == "no shortcut" else b.shortcut(x))
