"""Checks of notebook 17: the modules that read diffusers' weights. What is held is how the parts work together."""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from .checking import CheckFailed, attempt, compare, number, passed
from .properties import fresh, generator, learn, own_randomness, same_dtype, same_gradient


def wake(make, name, like: nn.Module | None = None):
    """An instance with random weights everywhere, so that every parameter takes part; with the layers of `like`."""
    with own_randomness():
        net = attempt(make, name=name)
        if not isinstance(net, nn.Module):
            raise CheckFailed(f"{name} should be a class, an nn.Module.")
        if like is not None and (differ := like.state_dict().keys() ^ net.state_dict().keys()):
            raise CheckFailed(f"{name}: keep the layers of __init__ as they are ({min(differ)} differs).")
        for p in net.parameters():
            nn.init.normal_(p, mean=p.detach().mean().item(), std=0.2)
    return net


def hold(net, inputs, reference, mistakes, what, shapes=None):
    """The class's forward against `reference(net, *inputs, how=)`, and what it teaches every weight."""
    got = attempt(net, *inputs, name=what)
    right = reference(net, *inputs)
    compare(got, right, what, shapes=shapes, mistakes=(
        (reference(net, *inputs, how=how), message) for how, message in mistakes.items()))
    same_dtype(got, right, what)
    # a bias of k moves all scores of a query alike, and softmax does not see it: its gradient is rounding
    learned = {name: p for name, p in net.named_parameters() if not name.endswith("to_k.bias")}
    same_gradient(got, right, learned, what, rtol=1e-2)


def attend(function):
    """`function(q, k, v, heads)`: q (B,N,C), k and v (B,M,C) -> (B,N,C)."""
    draw = fresh()
    for (size, n, m, c), heads in (((2, 5, 3, 8), 2), ((1, 4, 6, 12), 3), ((2, 3, 3, 4), 1)):
        q, k, v = 2 * draw(size, n, c), draw(size, m, c), draw(size, m, c)
        got = attempt(function, q, k, v, heads, name="attend")
        what, of = f"attend with {heads} heads", lambda how="", qkv=(q, k, v): _attended(*qkv, heads, how)  # noqa: B023
        compare(got, of(), what, shapes={
            (size, heads, n, c // heads): "the heads are still apart: bring them back side by side, (B,N,C).",
            (size, heads, n, m): "these are the weights; they still have to mix v."}, mistakes=(
            (of(how), message) for how, message in ATTEND_MISTAKES.items()))
        same_dtype(got, q, what)
        leaves = learn(q, k, v)
        same_gradient(function(*leaves, heads), of(qkv=leaves), dict(zip("qkv", leaves)), what)
    passed("attend: each head by itself, side by side again")


ATTEND_MISTAKES = {
    "one head": "all heads are one: the channels must be cut into `heads` parts, each with weights of its own.",
    "whole width": "scale by the width of a *head*, C / heads.",
    "no scale": "the scale is missing: divide by the root of a head's width.",
    "scale": "divide by the *root* of a head's width.",
    "over queries": "softmax over the keys, the last axis: the weights of one query sum to 1.",
    "no softmax": "the softmax is missing.",
    "reshape": "view or reshape to (B,heads,N,d) mixes places and channels: unflatten the channels, then transpose.",
    "not back": "transpose back before you flatten: (B,heads,N,d) -> (B,N,heads,d) -> (B,N,C).",
    "heads last": "a head is a block of neighbouring channels: unflatten(2, (heads, -1)), not (-1, heads).",
}


def _attended(q, k, v, heads, how=""):
    size, n, c = q.shape
    heads = 1 if how == "one head" else heads
    cut = lambda t: t.unflatten(2, (heads, -1)).transpose(1, 2)
    if how == "reshape":
        cut = lambda t: t.reshape(size, heads, -1, c // heads)
    elif how == "heads last":
        cut = lambda t: t.unflatten(2, (-1, heads)).permute(0, 3, 1, 2)
    q, k, v = cut(q), cut(k), cut(v)
    width = c if how == "whole width" or how == "one head" else q.shape[-1]
    scores = q @ k.mT / {"no scale": 1.0, "scale": float(width)}.get(how, width**0.5)
    weights = scores if how == "no softmax" else scores.softmax(-2 if how == "over queries" else -1)
    out = weights @ v
    if how == "heads last":
        return out.permute(0, 2, 3, 1).flatten(2)
    return out.reshape(size, n, c) if how == "not back" else out.transpose(1, 2).flatten(2)


def time_embedding(cls):
    """`cls(width)` with linear_1 and linear_2: `forward(t)`, t (B,) -> (B, 4 * width), as diffusers' default."""
    for width in (16, 6):
        net = wake(lambda: cls(width), "TimeEmbedding")  # noqa: B023
        hold(net, (torch.tensor([0, 3, 500, 998]),), _time, TIME_MISTAKES, "TimeEmbedding.forward")
    passed("TimeEmbedding: cosines, sines, and two layers")


TIME_MISTAKES = {
    "sine first": "the sines come first; Stable Diffusion has the cosines first.",
    "no silu": "the SiLU between the two layers is missing.",
    "silu last": "the SiLU is between the two layers, not behind them.",
    "to the end": "the exponent is i / half with half = width / 2, not i / (half - 1).",
    "whole": "there are width / 2 frequencies: i / half with half = width / 2.",
    "upwards": "the frequencies fall, from 1 on: exp(*minus* log(10000) i / half).",
    "one layer": "linear_2 is missing.",
    "thousand": "the longest wave is 10,000.",
    "pairs": "first all cosines, then all sines; not in pairs.",
}


def _time(net, t, how=""):
    half = net.linear_1.in_features // 2
    over = {"to the end": max(half - 1, 1), "whole": 2 * half}.get(how, half)
    base = math.log(1000 if how == "thousand" else 10_000) * (1 if how == "upwards" else -1)
    angles = t[:, None] * torch.exp(base * torch.arange(half) / over)
    waves = [angles.sin(), angles.cos()] if how == "sine first" else [angles.cos(), angles.sin()]
    h = net.linear_1(torch.stack(waves, -1).flatten(1) if how == "pairs" else torch.cat(waves, 1))
    if how == "one layer":
        return F.silu(h)
    out = net.linear_2(h if how in ("no silu", "silu last") else F.silu(h))
    return F.silu(out) if how == "silu last" else out


def image_attention(cls):
    """`cls(channels, heads)` with group_norm, to_q, to_k, to_v, to_out[0]: `forward(x)`, (B,C,h,w) -> (B,C,h,w)."""
    draw = fresh()
    for channels, heads, shape in ((16, 2, (3, 5)), (32, 4, (4, 4))):
        net, x = wake(lambda: cls(channels, heads), "ImageAttention"), draw(2, channels, *shape)  # noqa: B023
        hold(net, (x,), _image, IMAGE_MISTAKES, "ImageAttention.forward", shapes={
            (2, shape[0] * shape[1], channels): "tokens; make them a picture again: (B,C,h,w)."})
    passed("ImageAttention: pixels as tokens, and back")


IMAGE_MISTAKES = {
    "no skip": "x itself is missing: what was read is added to it.",
    "skip of norm": "the *input* is added, not the normalised one.",
    "no norm": "the input goes through group_norm first.",
    "no out": "to_out[0] is missing.",
    "normed out": "the norm is at the entrance, not at the end.",
    "channels": "a token is a pixel: (B, h w, C). Without the transpose, rows of tokens are channels.",
    "mixed": "reshape mixes pixels and channels on the way back: transpose(1, 2) first.",
    "v from x": "q, k and v all read the normalised tokens.",
    "swapped": "k and q have changed places.",
}


def _image(net, x, how=""):
    norm = net.group_norm(x)
    flat = (x if how in ("no norm", "normed out") else norm).flatten(2)
    tokens = flat.reshape(len(x), -1, x.shape[1]) if how == "channels" else flat.mT
    q, k = net.to_q(tokens), net.to_k(tokens)
    q, k = (k, q) if how == "swapped" else (q, k)
    v = net.to_v(x.flatten(2).mT if how == "v from x" else tokens)
    h = _attended(q, k, v, net.heads)
    h = h if how == "no out" else net.to_out[0](h)
    h = h.reshape(x.shape) if how == "mixed" else h.mT.reshape(x.shape)
    h = net.group_norm(h) if how == "normed out" else h
    return h + {"no skip": 0, "skip of norm": norm}.get(how, x)


def small_unet(cls):
    """`cls(channels, w)` with the notebook's parts: `forward(x, t)`, (B,C,h,w) and (B,) -> (B,C,h,w)."""
    net, draw = wake(lambda: cls(3, 16), "SmallUNet"), fresh()
    for size, (h, w) in ((2, (4, 6)), (3, (2, 2))):
        t = torch.randint(1000, (size,), generator=generator())
        hold(net, (draw(size, 3, h, w), t), _small, SMALL_MISTAKES, "SmallUNet.forward")
    passed("SmallUNet: down, the middle, and up with the newest skip first")


SMALL_MISTAKES = {
    "skip first": "h comes first, the skip after it: torch.cat([h, skip], dim=1).",
    "no silu": "the SiLU before the last convolution is missing: conv_out(silu(conv_norm_out(h))).",
    "no norm": "the last norm is missing: conv_out(silu(conv_norm_out(h))).",
    "half a middle": "the middle has two residual blocks: step(0, ...), then step(1, ...).",
    "no middle": "the middle is not used.",
    "middle turned": "the middle's steps are in the wrong order: 0 has the attention, then 1.",
    "smooth": "enlarge by nearest, F.interpolate's default.",
    "conv before": "enlarge first, then the upsampler's convolution.",
    "first time": "all samples got the time of the first.",
    "no time": "the time embedding is not used.",
}


def _small(net, x, t, how=""):
    time, h = net.time_embedding(t), net.conv_in(x)
    time = {"first time": time[:1].expand_as(time), "no time": torch.zeros_like(time)}.get(how, time)
    high, low = net.down_blocks
    hs = [h]
    for block in (lambda h: high.step(0, h, time), lambda h: high.downsamplers[0].conv(h),
                  lambda h: low.step(0, h, time)):
        h = block(h)
        hs.append(h)
    for i in {"half a middle": (0,), "no middle": (), "middle turned": (1, 0)}.get(how, (0, 1)):
        h = net.mid_block.step(i, h, time)
    join = lambda h: torch.cat([hs.pop(), h] if how == "skip first" else [h, hs.pop()], dim=1)
    low, high = net.up_blocks
    for i in range(2):
        h = low.step(i, join(h), time)
    up = lambda h: F.interpolate(h, scale_factor=2.0, mode="bilinear" if how == "smooth" else "nearest")
    h = up(low.upsamplers[0].conv(h)) if how == "conv before" else low.upsamplers[0].conv(up(h))
    for i in range(2):
        h = high.step(i, join(h), time)
    h = h if how == "no norm" else net.conv_norm_out(h)
    return net.conv_out(h if how == "no silu" else F.silu(h))


class _Module(nn.Module):
    """A small module of two inputs; `handed` wraps its output as some of diffusers do."""

    def __init__(self, width, gain=1.0, handed=lambda out: out):
        super().__init__()
        self.layer, self.gain, self.handed = nn.Linear(width, width), gain, handed

    def forward(self, x, other):
        return self.handed(self.gain * torch.tanh(self.layer(x)) + 0.1 * torch.tanh(other))


def compared(function):
    """`function(mine, theirs, *inputs, sizes=(1, 1e-3))`, weights loaded strictly -> [difference, one for each size].

    A difference is the largest of two outputs, in standard deviations of theirs.
    """
    draw = fresh()
    with own_randomness():
        for width, rows, sizes, handed in ((3, 5, (1, 1e-3), lambda out: out),
                                           (6, 4, (2.0, 0.5, 0.01), lambda out: SimpleNamespace(sample=out))):
            mine, theirs = _Module(width, gain=1.3), _Module(width, handed=handed)
            state = {name: value.clone() for name, value in theirs.state_dict().items()}
            x, other = draw(rows, width), draw(rows, width)
            got = attempt(lambda *inputs: function(*inputs, sizes=sizes), mine, theirs, x, other,  # noqa: B023
                          name="compare")
            if any(not torch.equal(value, state[name]) for name, value in theirs.state_dict().items()):
                raise CheckFailed("compare changed the weights of the trusted module: `mine` loads those of `theirs`.")
            if any(not torch.equal(value, state[name]) for name, value in mine.state_dict().items()):
                raise CheckFailed("compare: yours has other weights than the trusted module: "
                                  "mine.load_state_dict(theirs.state_dict()).")
            if not isinstance(got, (list, tuple, torch.Tensor)) or len(got) != len(sizes):
                raise CheckFailed(f"compare should return a list with a difference for each of the {len(sizes)} sizes.")
            got = torch.stack([number(value, "each of compare's differences") for value in got])
            _hold_differences(got, mine, theirs, x, other, sizes)
        _is_strict(function, draw)
    passed("compared: the same weights, the same questions")


@torch.no_grad()
def _hold_differences(got, mine, theirs, x, other, sizes):
    def asked(measure=lambda a, b: (a - b).abs().max() / b.std(), first=lambda size: size, second=lambda size: 1):
        pairs = [[net(first(size) * x, second(size) * other) for net in (mine, theirs)] for size in sizes]
        return torch.stack([measure(a, getattr(b, "sample", b)) for a, b in pairs])

    ones, size = (lambda size: 1), (lambda size: size)
    compare(got, asked().double(), "compare(mine, theirs, x, other)", rtol=1e-3, mistakes=[
        (asked(second=size), "only the *first* input is multiplied by the size; the others stay."),
        (asked(first=ones, second=size), "the *first* input is multiplied by the size, not the second."),
        (asked(first=ones), "the first input is to be multiplied by each size."),
        (asked(first=lambda size: size if size == sizes[0] else size * sizes[0]), "each size is applied to the input "
                                                                                 "that was given, not to the last."),
        (asked(lambda a, b: (a - b).abs().max()), "in standard deviations of the trusted output: difference(...)."),
        (asked(lambda a, b: (a - b).abs().max() / a.std()), "the deviation is that of the trusted output: it comes "
                                                            "second in difference(mine, theirs)."),
        (asked(lambda a, b: (a - b).abs().mean() / b.std()), "the *largest* difference, not the mean."),
        (asked().flip(0), "in the order of the sizes."),
    ])


def _is_strict(function, draw):
    """A weight that is left over, or missing, is to stop the comparison."""
    for extra in ("mine", "theirs"):
        nets = {"mine": _Module(3), "theirs": _Module(3)}
        nets[extra].register_parameter("gain_of_a_norm", nn.Parameter(torch.ones(3)))
        try:
            function(*nets.values(), draw(2, 3), draw(2, 3))
        except RuntimeError:
            continue
        raise CheckFailed(f"compare: `{extra}` has a weight that the other lacks, and nobody noticed. Load strictly, "
                          "as load_state_dict does by itself.")
