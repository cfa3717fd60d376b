"""Checks of notebook 07: known wrong solutions fail with a message that helps; right ones written another way pass."""

import importlib.util
import math

import pytest
import torch
import torch.nn.functional as F
from solutions import try_all
from torch import nn

from ldm_mini import blocks, checks
from ldm_mini.attention import AttentionBlock
from ldm_mini.ema import EMA
from ldm_mini.unet import UNet, UNetConfig

# --- the time embedding


def code(t, dim, exponent=lambda i, half: i / half, order="cos sin", base=10_000.0, sign=-1):
    half = dim // 2
    angles = t.float()[:, None] * base ** (sign * exponent(torch.arange(half), half))
    cos, sin = angles.cos(), angles.sin()
    return {"cos sin": lambda: torch.cat([cos, sin], 1), "sin cos": lambda: torch.cat([sin, cos], 1),
            "turns": lambda: torch.stack([cos, sin], 2).flatten(1),
            "transformer": lambda: torch.stack([sin, cos], 2).flatten(1)}[order]()


def code_by_loop(t, dim):
    rows = []
    for step in t.tolist():
        angles = [step / 10_000 ** (i / (dim // 2)) for i in range(dim // 2)]
        rows.append([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    return torch.tensor(rows)


def code_by_complex(t, dim):
    w = torch.exp(-math.log(10_000) * torch.linspace(0, 1, dim // 2 + 1)[:-1])
    z = torch.polar(torch.ones(len(t), dim // 2), torch.outer(t.float(), w))
    return torch.cat([z.real, z.imag], -1)


# --- residual blocks


class Block(nn.Module):
    """Written from the notebook; `change` spoils it."""

    change = ""

    def __init__(self, in_channels, out_channels, time_dim, groups):
        super().__init__()
        eps = 1e-6 if self.change == "eps" else 1e-5
        joined = out_channels * (2 if self.change == "concatenated" else 1)
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_proj = nn.Linear(time_dim, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(joined, out_channels, 3, padding=1)
        if self.change != "not zero":
            blocks.zeroed(self.conv2)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x, time):
        change = self.change
        if change == "post":
            h = F.silu(self.norm1(self.conv1(x)))
            return self.shortcut(x) + F.silu(self.norm2(self.conv2(h + self.embed(time))))
        e = self.embed(time)
        h = self.norm1(x + e if change == "first" else x)
        h = self.conv1(h if change in ("no silu", "no first silu") else (F.relu if change == "relu" else F.silu)(h))
        if change == "after norm":
            h = self.norm2(h) + e
        elif change in ("first", "late", "no time"):
            h = self.norm2(h)
        elif change == "concatenated":
            h = torch.cat([self.norm2(h), e.expand_as(h)], 1)
        elif change == "no norm2":
            h = h + e
        else:
            h = self.norm2(h * e if change == "multiplied" else h + e)
        act = F.relu if change == "relu" else F.silu
        h = self.conv2(h if change in ("no silu", "no second silu") else act(h)) + (e if change == "late" else 0)
        return {"no shortcut": lambda: h, "shortcut of norm": lambda: h + self.shortcut(self.norm1(x))}.get(
            change, lambda: h + self.shortcut(x))()

    def embed(self, time):
        if self.change == "silu after":
            return F.silu(self.time_proj(time))[:, :, None, None]
        return self.time_proj(time if self.change == "no silu on time" else F.silu(time))[:, :, None, None]


def block(change):
    return type("Block", (Block,), {"change": change})


class OtherBlock(Block):
    """The same with other words: Sequential halves, einsum for the projection, time on the bias."""

    def forward(self, x, time):
        first = nn.Sequential(self.norm1, nn.SiLU(), self.conv1)
        e = torch.einsum("bd,cd->bc", F.silu(time), self.time_proj.weight) + self.time_proj.bias
        h = (first(x).permute(0, 2, 3, 1) + e[:, None, None]).permute(0, 3, 1, 2)
        return nn.Sequential(self.norm2, nn.SiLU(), nn.Dropout(0.0), self.conv2)(h).add(self.shortcut(x))


def library_block(in_channels, out_channels, time_dim, groups):
    return blocks.ResBlock(in_channels, out_channels, time_dim, groups, eps=1e-5, zero_init=True)


# --- the skips


def through(h, down, middle, up, change=""):
    hs, x = [], h
    for i, layer in enumerate(down):
        if change == "before":
            hs.append(h)
        h = layer(x if change in ("each from x", "h stays") else h)
        if change not in ("before", "never") and not (change == "no stem" and i == 0):
            hs.append(h)
    h = x if change == "h stays" else h
    h = h if change == "no middle" else middle(h)
    if change == "middle pushed":
        hs.append(h)
    for layer in up:
        if change == "no skips":
            h = layer(h)
            continue
        skip = hs.pop(0) if change == "fifo" else hs[-1] if change == "peek" else hs.pop()
        pair = [skip, h] if change == "skip first" else [h, skip]
        if change == "joined late":
            h = torch.cat([layer(h), skip], 1)
            continue
        h = layer(h + skip if change == "added" else torch.cat(pair, -1 if change == "along the width" else 1))
    return h


def through_recursively(h, down, middle, up):
    if not down:
        return middle(h)
    h = down[0](h)
    return up[-1](torch.cat([through_recursively(h, down[1:], middle, up[:-1]), h], dim=1))


def through_by_index(h, down, middle, up):
    hs = [h]
    for layer in down:
        hs += [layer(hs[-1])]
    h = middle(hs[-1])
    for k, layer in enumerate(up):
        h = layer(torch.cat((h, hs[len(hs) - 1 - k]), 1))
    return h


def note(h, down, middle, up):
    """The reading note's: hs is never filled, nor made."""
    for layer in down:
        h = layer(h)
    h = middle(h)
    for layer in up:
        h = layer(torch.cat([h, hs.pop()], dim=1))  # noqa: F821
    return h


# --- channels on the way up


def channels_up(channels, mults, num_res_blocks, change=""):
    widths, skips = [channels * m for m in mults], [channels] * (change != "no stem")
    for level, width in enumerate(widths):
        skips += [width] * num_res_blocks + [width] * (level < len(mults) - 1)
    h, pairs = widths[-1], []
    for width in widths[::-1]:
        for _ in range(num_res_blocks + 1 - (change == "one block less")):
            skip = skips.pop(0 if change == "fifo" else -1)
            pairs.append(({"own": h + width, "doubled": 2 * width, "no skip": h, "skip alone": skip}.get(
                change, h + skip), width))
            h = width
    return pairs[::-1] if change == "from the top" else pairs


def channels_of_the_library(channels, mults, num_res_blocks):
    with torch.device("meta"):
        net = UNet(UNetConfig(3, channels=channels, channel_mults=mults, num_res_blocks=num_res_blocks, attn_levels=(),
                              groups=1, head_dim=1))
    return [[step[0].conv1.in_channels, step[0].conv1.out_channels] for step in net.up]


# --- the whole net


class Net(nn.Module):
    """Two levels, two blocks, other names than the library's, built by hand."""

    change = ""

    def __init__(self, channels, mults, num_res_blocks, attn_levels, groups, head_dim):
        super().__init__()
        a, b = (channels * m for m in mults)
        res = lambda i, o: Block(i, o, 4 * channels, groups)  # noqa: E731
        attn = lambda: AttentionBlock(b, head_dim=head_dim, groups=groups, eps=1e-5, zero_init=True)  # noqa: E731
        self.clock = blocks.TimeEmbedding(channels)
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.d = nn.ModuleList([res(a, a), res(a, a), blocks.Downsample(a), res(a, b), attn(), res(b, b), attn()])
        self.m = nn.ModuleList([res(b, b), attn(), res(b, b)])
        self.u = nn.ModuleList([res(2 * b, b), attn(), res(2 * b, b), attn(), res(b + a, b), attn(), blocks.Upsample(b),
                                res(b + a, a), res(2 * a, a), res(2 * a, a)])
        self.norm, self.out = nn.GroupNorm(groups, a, eps=1e-5), nn.Conv2d(a, 3, 3, padding=1)
        if self.change != "not zero":
            blocks.zeroed(self.out)

    def forward(self, x, t, cond=None):
        d, m, u, change = self.d, self.m, self.u, self.change
        t = {"same t": t[:1].expand(len(t)), "t / T": t / 1000, "no t": 0 * t}.get(change, t)
        time = self.clock(t)
        time = F.silu(time) if change == "silu of time" else time
        h0 = self.stem(x)
        h1 = d[0](h0, time)
        h2 = d[1](h1, time)
        h3 = d[2](h2)
        h4 = d[4](d[3](h3, time))
        h5 = d[6](d[5](h4, time))
        h = h5 if change == "no middle" else m[2](m[1](m[0](h5, time)), time)
        if change == "fifo":
            h5, h4, h3, h2, h1, h0 = h0, h1, h2, h3, h4, h5
        if change == "never pushed":
            [].pop()
        h = u[1](u[0](torch.cat([h, h5], 1), time))
        h = u[3](u[2](torch.cat([h, h4], 1), time))
        h = u[6](u[5](u[4](torch.cat([h, h3], 1), time)))
        h = u[7](h if change == "not joined" else torch.cat([h, h2], 1), time)
        h = u[8](torch.cat([h, h1], 1), time)
        h = u[9](torch.cat([h, h0], 1), time)
        h = h if change in ("no norm", "bare") else self.norm(h)
        h = self.out(h if change in ("no silu", "bare") else F.silu(h))
        return h + x if change == "plus x" else h


def net(change):
    return type("Net", (Net,), {"change": change})


def library_net(channels, mults, num_res_blocks, attn_levels, groups, head_dim):
    return UNet(UNetConfig(3, channels=channels, channel_mults=mults, num_res_blocks=num_res_blocks,
                           attn_levels=attn_levels, groups=groups, head_dim=head_dim))


# --- averages


def ema(averages, net, n, max_decay=0.9999, rate=lambda n, m: min(m, (1 + n) / (10 + n)), detach=True):
    d = rate(n, max_decay)
    weights = {name: p.detach() if detach else p for name, p in net.named_parameters() if p.requires_grad}
    return {name: d * averages[name] + (1 - d) * p for name, p in weights.items()}


def ema_in_place(averages, net, n, max_decay=0.9999):
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name in averages:
                averages[name].lerp_(p, 1 - min(max_decay, (n + 1) / (n + 10)))
    return averages


def ema_of_the_library(averages, net, n, max_decay=0.9999):
    other = EMA(net, max_decay)
    other.load_state_dict(averages, n - 1)
    other.update(net)
    return other.state_dict()


def ema_of_buffers(averages, net, n, max_decay=0.9999):
    d = min(max_decay, (1 + n) / (10 + n))
    return {name: d * averages.get(name, v) + (1 - d) * v for name, v in net.state_dict().items()}


CORRECT = [
    (checks.timestep_embedding, code),
    (checks.timestep_embedding, code_by_loop),
    (checks.timestep_embedding, code_by_complex),
    (checks.timestep_embedding, blocks.timestep_embedding),
    (checks.res_block, Block),
    (checks.res_block, OtherBlock),
    (checks.res_block, library_block),
    (checks.through_the_u, through),
    (checks.through_the_u, through_recursively),
    (checks.through_the_u, through_by_index),
    (checks.decoder_channels, channels_up),
    (checks.decoder_channels, channels_of_the_library),
    (checks.decoder_channels, lambda *a: zip(*zip(*channels_up(*a)))),
    (checks.unet, Net),
    (checks.unet, library_net),
    (checks.ema_update, ema),
    (checks.ema_update, ema_in_place),
    (checks.ema_update, ema_of_the_library),
]

MUTANTS = [
    (checks.timestep_embedding, lambda t, d: code(t, d, order="sin cos"), "swapped: cosines first"),
    (checks.timestep_embedding, lambda t, d: code(t, d, lambda i, half: i / (half - 1)), r"half - 1"),
    (checks.timestep_embedding, lambda t, d: code(t, d, lambda i, half: i / (half - 1), "sin cos"), "swapped, and"),
    (checks.timestep_embedding, lambda t, d: code(t, d, lambda i, half: i / (2 * half)), "i / dim"),
    (checks.timestep_embedding, lambda t, d: code(t, d, lambda i, half: i // half), "rounds all exponents"),
    (checks.timestep_embedding, lambda t, d: code(t, d, order="turns"), "take turns"),
    (checks.timestep_embedding, lambda t, d: code(t, d, order="transformer"), "Transformer"),
    (checks.timestep_embedding, lambda t, d: code(t, d, sign=1), "exponent is negative"),
    (checks.timestep_embedding, lambda t, d: code(t, d, base=1000.0), "10,000"),
    (checks.timestep_embedding, lambda t, d: code(t.bfloat16(), d), "rounded"),
    (checks.timestep_embedding, lambda t, d: code(t, d).half(), "too few digits"),
    (checks.timestep_embedding, lambda t, d: code(t, d).long(), "dtype"),
    (checks.timestep_embedding, lambda t, d: code(t / 1000, d), "divided"),
    (checks.timestep_embedding, lambda t, d: code(t, d)[:, :4], "shape"),
    (checks.timestep_embedding, lambda t, d: code(t, d) * 1.01, "off by up to"),
    (checks.res_block, block("first"), "before conv1"),
    (checks.res_block, block("after norm"), "AFTER norm2"),
    (checks.res_block, block("late"), "after conv2|return its shortcut"),
    (checks.res_block, block("no silu on time"), r"silu\(time\)"),
    (checks.res_block, block("concatenated"), "concatenated"),
    (checks.res_block, block("no time"), "not used at all"),
    (checks.res_block, block("multiplied"), "multiplies"),
    (checks.res_block, block("no shortcut"), "shortcut is missing"),
    (checks.res_block, block("shortcut of norm"), "as it came in"),
    (checks.res_block, block("relu"), "F.silu"),
    (checks.res_block, block("silu after"), "comes before time_proj"),
    (checks.res_block, block("not zero"), "conv2 starts at zero"),
    (checks.res_block, block("post"), "norm, SiLU, convolution"),
    (checks.res_block, block("no silu"), "a SiLU is missing"),
    (checks.res_block, block("no first silu"), "after norm1"),
    (checks.res_block, block("no second silu"), "after norm2"),
    (checks.res_block, block("no norm2"), "norm2 is not used"),
    (checks.res_block, block("eps"), "eps of both"),
    (checks.res_block, lambda *args: nn.Conv2d(8, 8, 3), "other layers"),
    (checks.res_block, lambda *args: 3, "nn.Module"),
    (checks.through_the_u, note, "hs = "),
    (checks.through_the_u, lambda *a: through(*a, "never"), "push after EVERY"),
    (checks.through_the_u, lambda *a: through(*a, "no stem"), "push after EVERY input block.*stem"),
    (checks.through_the_u, lambda *a: through(*a, "before"), "push after"),
    (checks.through_the_u, lambda *a: through(*a, "fifo"), "first in, first out"),
    (checks.through_the_u, lambda *a: through(*a, "peek"), "looks"),
    (checks.through_the_u, lambda *a: through(*a, "skip first"), "skip stands first"),
    (checks.through_the_u, lambda *a: through(*a, "added"), "joined"),
    (checks.through_the_u, lambda *a: through(*a, "middle pushed"), "only input blocks"),
    (checks.through_the_u, lambda *a: through(*a, "no middle"), "middle is not used"),
    (checks.through_the_u, lambda *a: through(*a, "no skips"), "get no skips"),
    (checks.through_the_u, lambda *a: through(*a, "each from x"), "block before"),
    (checks.through_the_u, lambda *a: through(*a, "h stays"), "does not move on"),
    (checks.through_the_u, lambda *a: through(*a, "joined late"), "before\\* the output block"),
    (checks.through_the_u, lambda *a: through(*a, "along the width"), "dim=1"),
    (checks.through_the_u, lambda h, d, m, u: None, "return"),
    (checks.decoder_channels, lambda *a: channels_up(*a, "one block less"), r"num_res_blocks \+ 1"),
    (checks.decoder_channels, lambda *a: channels_up(*a, "own"), "block that made it"),
    (checks.decoder_channels, lambda *a: channels_up(*a, "doubled"), "doubled the width"),
    (checks.decoder_channels, lambda *a: channels_up(*a, "fifo"), "reverse"),
    (checks.decoder_channels, lambda *a: channels_up(*a, "no skip"), "skip's channels are missing"),
    (checks.decoder_channels, lambda *a: channels_up(*a, "skip alone"), "skip alone"),
    (checks.decoder_channels, lambda *a: channels_up(*a, "from the top"), "lowest level"),
    (checks.decoder_channels, lambda *a: channels_up(*a)[1:], "as many as pushes"),
    (checks.decoder_channels, lambda *a: [(1, 1), *channels_up(*a)[1:]], "block 0"),
    (checks.decoder_channels, lambda *a: channels_up(*a, "no stem"), "stem, residual blocks and downsamplings"),
    (checks.decoder_channels, lambda *a: 12, "list of pairs"),
    (checks.unet, net("not zero"), "exactly 0"),
    (checks.unet, net("plus x"), "no such shortcut"),
    (checks.unet, net("no silu"), "SiLU before the last"),
    (checks.unet, net("no norm"), "last norm"),
    (checks.unet, net("bare"), "norm and SiLU"),
    (checks.unet, net("no middle"), "middle is not used"),
    (checks.unet, net("same t"), "first one|one entry per sample"),
    (checks.unet, net("t / T"), "divided"),
    (checks.unet, net("no t"), "t does not matter"),
    (checks.unet, net("silu of time"), "twice"),
    (checks.unet, net("fifo"), "last one pushed"),
    (checks.unet, net("never pushed"), "push after EVERY"),
    (checks.unet, net("not joined"), "joined to h"),
    (checks.unet, lambda **kw: library_net(**{**kw, "attn_levels": ()}), "other layers"),
    (checks.ema_update, lambda *a: ema(*a, rate=lambda n, m: 1 - min(m, (1 + n) / (10 + n))), "decay is swapped"),
    (checks.ema_update, lambda *a: ema(*a, rate=lambda n, m: 1 - m), "swapped, and the warm-up"),
    (checks.ema_update, lambda *a: ema(*a, rate=lambda n, m: m), "warm-up is missing"),
    (checks.ema_update, lambda *a: ema(*a, rate=lambda n, m: min(m, n / (9 + n))), "off by one"),
    (checks.ema_update, lambda *a: ema(*a, rate=lambda n, m: min(m, (2 + n) / (11 + n))), "off by one"),
    (checks.ema_update, lambda *a: ema(*a, rate=lambda n, m: (1 + n) / (10 + n)), "max_decay is not used"),
    (checks.ema_update, lambda *a: ema(*a, rate=lambda n, m: 0.0), "own weight"),
    (checks.ema_update, lambda averages, net, n, m: averages, "nothing has moved"),
    (checks.ema_update, ema_of_buffers, "buffers or frozen"),
    (checks.ema_update, lambda a, net, n, m: {k: (a[k] + p.detach()) / 2 for k, p in net.named_parameters()}, "frozen"),
    (checks.ema_update, lambda *a: dict(list(ema(*a).items())[1:]), "missing from the result"),
    (checks.ema_update, lambda *a: ema(*a, detach=False), "gradients"),
    (checks.ema_update, lambda *a: list(ema(*a).values()), "dict of averages"),
]


test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)


@pytest.mark.parametrize("check, good", [(checks.res_block, Block), (checks.unet, Net)])
def test_a_stub_of_forward_alone_is_named_too(check, good):
    def forward(self, *inputs):
        raise NotImplementedError

    with pytest.raises(checks.CheckFailed, match="still the stub"):
        check(type("Stub", (good,), {"forward": forward}))


@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is a test-only dependency")
def test_the_time_embedding_is_that_of_diffusers_unet():
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.arange(0, 1000, 7)
    theirs = get_timestep_embedding(t, 64, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(code(t, 64), theirs, atol=1e-3, rtol=0)
    torch.testing.assert_close(blocks.timestep_embedding(t, 64), theirs, atol=1e-4, rtol=0)
