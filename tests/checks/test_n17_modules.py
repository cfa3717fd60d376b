"""Checks of notebook 17's modules: right ones in several styles pass, and known mistakes fail with a hint."""

import math

import pytest
import torch
from solutions import spoiled, try_all, variant
from torch import nn
from torch.nn import functional as F

from ldm_mini import checks


def attended(q, k, v, heads, how="right"):
    size, n, c = q.shape
    parts = 1 if how == "one head" else heads
    cut = {"reshape": lambda t: t.reshape(size, parts, -1, c // parts),
           "heads last": lambda t: t.unflatten(2, (-1, parts)).permute(0, 3, 1, 2)}.get(
               how, lambda t: t.unflatten(2, (parts, -1)).transpose(1, 2))
    q, k, v = map(cut, (q, k, v))
    d = {"no scale": 1, "scale": (c // heads) ** 2, "whole width": c}.get(how, c // parts)
    scores = q @ k.mT / d**0.5
    weights = scores if how == "no softmax" else scores.softmax(2 if how == "over queries" else 3)
    if how == "cut":
        weights = weights.detach()
    out = weights @ v
    return {"weights": weights, "apart": out, "not back": out.reshape(size, n, c),
            "double": out.transpose(1, 2).flatten(2).double(),
            "heads last": out.permute(0, 2, 3, 1).flatten(2)}.get(how, out.transpose(1, 2).flatten(2))


def attended_in_a_loop(q, k, v, heads):
    parts = zip(*(t.chunk(heads, dim=2) for t in (q, k, v)))
    return torch.cat([F.scaled_dot_product_attention(*part) for part in parts], dim=2)


class Time(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width = width
        self.linear_1, self.linear_2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, 4 * width)

    def forward(self, t, how="right"):
        half = self.width // 2
        steps = torch.arange(half) / {"to the end": half - 1, "whole": 2 * half}.get(how, half)
        angles = t[:, None] * ((1000 if how == "thousand" else 10_000) ** (steps if how == "upwards" else -steps))
        cos, sin = angles.cos(), angles.sin()
        waves = torch.cat([sin, cos] if how == "sine first" else [cos, sin], 1)
        h = self.linear_1(torch.stack([cos, sin], 2).flatten(1) if how == "pairs" else waves)
        h = {"no silu": h, "relu": F.relu(h), "silu last": h}.get(how, F.silu(h))
        out = h if how == "one layer" else self.linear_2(h)
        return F.silu(out) if how == "silu last" else out.detach() if how == "cut" else out


class TimeByCosines(Time):
    """Sines are shifted cosines."""

    def forward(self, t):
        w = torch.exp(-math.log(10_000) * torch.arange(self.width // 2) / (self.width // 2)).repeat(2)
        shift = torch.zeros(self.width)
        shift[self.width // 2:] = math.pi / 2
        return self.linear_2(nn.functional.silu(self.linear_1((t.unsqueeze(1) * w - shift).cos())))


class Image(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.heads, self.group_norm = heads, nn.GroupNorm(8, channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x, how="right"):
        norm = x if how in ("no norm", "normed out") else self.group_norm(x)
        tokens = norm.flatten(2).reshape(len(x), -1, x.shape[1]) if how == "channels" else norm.flatten(2).mT
        q, k = self.to_q(tokens), self.to_k(tokens)
        q, k = (k, q) if how == "swapped" else (q, k)
        h = attended(q, k, self.to_v(x.flatten(2).mT if how == "v from x" else tokens), self.heads)
        h = h if how == "no out" else self.to_out[0](h)
        if how == "tokens":
            return h
        h = h.reshape(x.shape) if how == "mixed" else h.mT.reshape(x.shape)
        h = self.group_norm(h) if how == "normed out" else h.detach() if how == "cut" else h
        return {"no skip": h, "skip of norm": norm + h}.get(how, x + h)


class ImageByConvolutions(Image):
    """Linear layers on pixels are 1 x 1 convolutions."""

    def forward(self, x):
        one = lambda layer, y: F.conv2d(y, layer.weight[:, :, None, None], layer.bias).flatten(2).mT
        norm = self.group_norm(x)
        h = attended_in_a_loop(one(self.to_q, norm), one(self.to_k, norm), one(self.to_v, norm), self.heads)
        return self.to_out[0](h).permute(0, 2, 1).view(x.shape) + x


class Block(nn.Module):
    """A step of a level: width and time; small, since only the way through the net is held."""

    def __init__(self, inputs, width, time):
        super().__init__()
        self.conv, self.time = nn.Conv2d(inputs, width, 1), nn.Linear(time, width)

    def forward(self, h, time):
        return torch.tanh(self.conv(h) + self.time(time)[:, :, None, None]) + 0.1 * h.mean((1, 2, 3), keepdim=True)


class Level(nn.Module):
    def __init__(self, inputs, width, time, resize=None):
        super().__init__()
        self.resnets = nn.ModuleList(Block(w, width, time) for w in inputs)
        if resize:
            self.add_module(resize, nn.ModuleList([nn.ModuleDict({"conv": nn.Conv2d(
                width, width, 3, padding=1, stride=2 if resize == "downsamplers" else 1)})]))
            self.get_submodule(resize)[0].__dict__["conv"] = self.get_submodule(resize)[0]["conv"]

    def step(self, i, h, time):
        return self.resnets[i](h, time)


class Small(nn.Module):
    def __init__(self, channels=4, w=32):
        super().__init__()
        self.conv_in, self.time_embedding = nn.Conv2d(channels, w, 3, padding=1), Time(w)
        self.down_blocks = nn.ModuleList([Level([w], w, 4 * w, "downsamplers"), Level([w], 2 * w, 4 * w)])
        self.mid_block = Level([2 * w, 2 * w], 2 * w, 4 * w)
        self.up_blocks = nn.ModuleList([Level([4 * w, 3 * w], 2 * w, 4 * w, "upsamplers"),
                                        Level([3 * w, 2 * w], w, 4 * w)])
        self.conv_norm_out, self.conv_out = nn.GroupNorm(8, w), nn.Conv2d(w, channels, 3, padding=1)

    def forward(self, x, t, how="right"):
        time, h = self.time_embedding(t), self.conv_in(x)
        time = time[:1].expand_as(time) if how == "first time" else time * (how != "no time")
        high, low = self.down_blocks
        hs = [h, h := high.step(0, h, time), h := high.downsamplers[0].conv(h), h := low.step(0, h, time)]
        for i in {"half a middle": [0], "no middle": [], "middle turned": [1, 0]}.get(how, [0, 1]):
            h = self.mid_block.step(i, h, time)
        low, high = self.up_blocks
        pop = lambda: hs.pop(0) if how == "fifo" else hs[-1] if how == "peek" else hs.pop()
        join = lambda h: torch.cat([pop(), h] if how == "skip first" else [h, pop()], dim=1)
        for i in range(2):
            h = low.step(i, join(h), time)
        up = lambda h: F.interpolate(h, scale_factor=2.0, mode="bilinear" if how == "smooth" else "nearest")
        conv = low.upsamplers[0].conv
        h = up(conv(h)) if how == "conv before" else conv(up(h))
        for i in range(2):
            h = high.step(i, join(h), time)
        h = h if how == "no norm" else self.conv_norm_out(h)
        out = self.conv_out(h if how == "no silu" else F.silu(h))
        return out.detach() if how == "cut" else out


class SmallByHand(Small):
    """The skips in variables."""

    def forward(self, x, t):
        time, (a, b), (c, d), m = self.time_embedding(t), self.down_blocks, self.up_blocks, self.mid_block
        h0 = self.conv_in(x)
        h1 = a.step(0, h0, time)
        h2 = a.downsamplers[0].conv(h1)
        h3 = b.step(0, h2, time)
        h = m.step(1, m.step(0, h3, time), time)
        h = c.step(1, torch.cat((c.step(0, torch.cat((h, h3), 1), time), h2), 1), time)
        h = c.upsamplers[0].conv(h.repeat_interleave(2, 2).repeat_interleave(2, 3))
        h = d.step(1, torch.cat((d.step(0, torch.cat((h, h1), 1), time), h0), 1), time)
        return self.conv_out(nn.SiLU()(self.conv_norm_out(h)))


def with_how(cls, *rows):
    return [(variant(cls, forward=lambda self, *x, how=how: cls.forward(self, *x, how=how)), hint)
            for how, hint in rows]


def difference(mine, theirs):
    return ((mine - theirs).abs().max() / theirs.std()).item()


@torch.no_grad()
def compared(mine, theirs, *inputs, sizes=(1, 1e-3),
             load=lambda mine, theirs: mine.load_state_dict(theirs.state_dict()),
             ask=lambda size, x, *others: (size * x, *others), measure=difference, end=list):
    load(mine, theirs)
    found = []
    for size in sizes:
        scaled = ask(size, *inputs)
        out = theirs(*scaled)
        found.append(measure(mine(*scaled), getattr(out, "sample", out)))
    return end(found)


@torch.no_grad()
def compared_in_tensors(mine, theirs, x, *others, sizes=(1, 1e-3)):
    mine.load_state_dict(theirs.state_dict(), assign=True)
    outs = [(mine(x * size, *others), theirs(x * size, *others)) for size in sizes]
    outs = [(a, b if torch.is_tensor(b) else b.sample) for a, b in outs]
    return torch.stack([(a - b).abs().max() / b.std() for a, b in outs])


CORRECT = {
    checks.compared: [compared, compared_in_tensors],
    checks.attend: [attended, attended_in_a_loop],
    checks.time_embedding: [Time, TimeByCosines],
    checks.image_attention: [Image, ImageByConvolutions],
    checks.small_unet: [Small, SmallByHand],
}

MUTANTS = {
    checks.compared: [
        *spoiled(compared, (dict(load=lambda mine, theirs: None), "has other weights"),
                 (dict(load=lambda mine, theirs: theirs.load_state_dict(mine.state_dict())), "loads those of"),
                 (dict(load=lambda mine, theirs: mine.load_state_dict(theirs.state_dict(), strict=False)), "strictly"),
                 (dict(ask=lambda size, *inputs: [size * x for x in inputs]), "others stay"),
                 (dict(ask=lambda size, x, other: (x, size * other)), "not the second"),
                 (dict(ask=lambda size, *inputs: inputs), "by each size"),
                 (dict(measure=lambda a, b: (a - b).abs().max()), "standard deviations"),
                 (dict(measure=lambda a, b: difference(b, a)), "it comes second"),
                 (dict(measure=lambda a, b: (a - b).abs().mean() / b.std()), "not the mean"),
                 (dict(measure=lambda a, b: difference(a, b) / 2), "off by"),
                 (dict(end=lambda found: found[::-1]), "order of the sizes"), (dict(end=max), "each of the 2 sizes"),
                 (dict(end=lambda found: found[:1]), "each of the 2 sizes")),
        (lambda *a, sizes: compared(*a), "each of the 3 sizes|off by"),
    ],
    checks.attend: spoiled(
        attended, ("one head", "all heads are one"), ("reshape", "mixes places"), ("heads last", "neighbouring"),
        ("no scale", "scale is missing"), ("scale", r"\*root\*"), ("whole width", r"width of a \*head\*"),
        ("no softmax", "softmax is missing"), ("over queries", "over the keys"), ("cut", "gradient"),
        ("weights", "mix v"), ("apart", "still apart"), ("not back", "transpose back"), ("double", "dtype")),
    checks.time_embedding: with_how(
        Time, ("to the end", "half - 1"), ("whole", "width / 2 frequencies"), ("thousand", "10,000"),
        ("upwards", r"\*minus\*|off by"), ("sine first", "cosines first"), ("pairs", "not in pairs"),
        ("no silu", "SiLU between"), ("relu", "off by"), ("silu last", "not behind"), ("one layer", "linear_2"),
        ("cut", "no gradient")),
    checks.image_attention: with_how(
        Image, ("no norm", "group_norm first"), ("normed out", "at the entrance"), ("channels", "a token is a pixel"),
        ("swapped", "changed places"), ("v from x", "normalised tokens"), ("no out", "to_out"), ("tokens", "a picture"),
        ("mixed", "transpose"), ("no skip", "x itself"), ("skip of norm", r"\*input\*"), ("cut", "gradient")),
    checks.small_unet: with_how(
        Small, ("first time", "time of the first"), ("no time", "time embedding is not used"),
        ("half a middle", "two residual"), ("no middle", "not used"), ("middle turned", "wrong order"),
        ("fifo", "raised"), ("peek", "raised"), ("skip first", "h comes first"), ("smooth", "by nearest"),
        ("conv before", "enlarge first"), ("no norm", "last norm"), ("no silu", "SiLU before"), ("cut", "gradient")),
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)


@pytest.mark.parametrize("check, good", [(checks.time_embedding, Time), (checks.image_attention, Image),
                                         (checks.small_unet, Small)])
def test_a_stub_of_forward_alone_is_named_too(check, good):
    def forward(self, *inputs):
        raise NotImplementedError

    with pytest.raises(checks.CheckFailed, match="still the stub"):
        check(variant(good, forward=forward))
