"""Checks of notebook 07: known wrong solutions fail with a message that helps; right ones written another way pass."""

import math
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from solutions import spoiled, try_all, variant
from torch import nn

from ldm_mini import blocks, checks
from ldm_mini.attention import AttentionBlock
from ldm_mini.checks.n07_mistakes import unet_with
from ldm_mini.ema import EMA
from ldm_mini.unet import UNet, UNetConfig


def code(t, dim, exponent=lambda i, half: i / half, base=10_000.0, sign=-1, order="cos sin", join=torch.cat):
    half = dim // 2
    angles = t.float()[:, None] * base ** (sign * exponent(torch.arange(half), half))
    return join([getattr(angles, name)() for name in order.split()], -1).flatten(1)


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


class Block(nn.Module):
    """Written from the notebook; variants change one part."""

    eps, joined, start = 1e-5, 1, staticmethod(blocks.zeroed)

    def __init__(self, in_channels, out_channels, time_dim, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=self.eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_proj = nn.Linear(time_dim, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=self.eps)
        self.conv2 = self.start(nn.Conv2d(self.joined * out_channels, out_channels, 3, padding=1))
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def embed(self, time):
        return self.time_proj(F.silu(time))

    def first(self, x, e):
        return self.conv1(F.silu(self.norm1(x)))

    def second(self, h, e):
        return self.conv2(F.silu(self.norm2(h + e)))

    def out(self, x, h):
        return self.shortcut(x) + h

    def forward(self, x, time):
        e = self.embed(time)[:, :, None, None]
        return self.out(x, self.second(self.first(x, e), e))


class OtherBlock(Block):
    """The same with other words: Sequential halves, einsum for the projection, time on the bias."""

    def forward(self, x, time):
        first = nn.Sequential(self.norm1, nn.SiLU(), self.conv1)
        e = torch.einsum("bd,cd->bc", F.silu(time), self.time_proj.weight) + self.time_proj.bias
        h = (first(x).permute(0, 2, 3, 1) + e[:, None, None]).permute(0, 3, 1, 2)
        return nn.Sequential(self.norm2, nn.SiLU(), nn.Dropout(0.0), self.conv2)(h).add(self.shortcut(x))


def through(h, down, middle, up, how="right", pop=list.pop, join=lambda up, h, skip: up(torch.cat([h, skip], 1))):
    hs, x = [], h
    for i, layer in enumerate(down):
        before, h = h, layer(x if how in ("each from x", "h stays") else h)
        hs += {"never": [], "before": [before], "no stem": [h] * (i > 0)}.get(how, [h])
    h = x if how == "h stays" else h
    h = h if how == "no middle" else middle(h)
    hs += [h] * (how == "middle pushed")
    for layer in up:
        h = join(layer, h, pop(hs))
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


def channels_up(channels, mults, num_res_blocks, how="right"):
    widths, skips = [channels * m for m in mults], [channels] * (how != "no stem")
    for level, width in enumerate(widths):
        skips += [width] * num_res_blocks + [width] * (level < len(mults) - 1)
    h, pairs = widths[-1], []
    for width in widths[::-1]:
        for _ in range(num_res_blocks + 1 - (how == "one block less")):
            skip = skips.pop(0 if how == "fifo" else -1)
            pairs.append(({"own": h + width, "doubled": 2 * width, "no skip": h, "skip alone": skip}.get(
                how, h + skip), width))
            h = width
    return pairs[::-1] if how == "from the top" else pairs


def channels_of_the_library(channels, mults, num_res_blocks):
    with torch.device("meta"):
        net = UNet(UNetConfig(3, channels=channels, channel_mults=mults, num_res_blocks=num_res_blocks, attn_levels=(),
                              groups=1, head_dim=1))
    return [[step[0].conv1.in_channels, step[0].conv1.out_channels] for step in net.up]


class Net(nn.Module):
    """Two levels, two blocks, other names than the library's, built by hand."""

    def __init__(self, channels, mults, num_res_blocks, attn_levels, groups, head_dim, how="right"):
        super().__init__()
        self.how = how
        a, b = (channels * m for m in mults)
        res = lambda i, o: Block(i, o, 4 * channels, groups)
        attn = lambda: AttentionBlock(b, head_dim=head_dim, groups=groups, eps=1e-5, zero_init=True)
        self.clock = blocks.TimeEmbedding(channels)
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.d = nn.ModuleList([res(a, a), res(a, a), blocks.Downsample(a), res(a, b), attn(), res(b, b), attn()])
        self.m = nn.ModuleList([res(b, b), attn(), res(b, b)])
        self.u = nn.ModuleList([res(2 * b, b), attn(), res(2 * b, b), attn(), res(b + a, b), attn(), blocks.Upsample(b),
                                res(b + a, a), res(2 * a, a), res(2 * a, a)])
        self.norm, self.out = nn.GroupNorm(groups, a, eps=1e-5), nn.Conv2d(a, 3, 3, padding=1)
        if self.how != "not zero":
            blocks.zeroed(self.out)

    def forward(self, x, t, cond=None):
        d, m, u, how = self.d, self.m, self.u, self.how
        t = {"same t": t[:1].expand(len(t)), "t / T": t / 1000, "no t": 0 * t}.get(how, t)
        time = self.clock(t)
        time = F.silu(time) if how == "silu of time" else time
        h0 = self.stem(x)
        h1 = d[0](h0, time)
        h2 = d[1](h1, time)
        h3 = d[2](h2)
        h4 = d[4](d[3](h3, time))
        h5 = d[6](d[5](h4, time))
        h = h5 if how == "no middle" else m[2](m[1](m[0](h5, time)), time)
        if how == "fifo":
            h5, h4, h3, h2, h1, h0 = h0, h1, h2, h3, h4, h5
        h = u[1](u[0](torch.cat([h, h5], 1), time))
        h = u[3](u[2](torch.cat([h, h4], 1), time))
        h = u[6](u[5](u[4](torch.cat([h, h3], 1), time)))
        h = u[7](h if how == "not joined" else torch.cat([h, h2], 1), time)
        h = u[8](torch.cat([h, h1], 1), time)
        h = u[9](torch.cat([h, h0], 1), time)
        h = h if how in ("no norm", "bare") else self.norm(h)
        h = self.out(h if how in ("no silu", "bare") else F.silu(h))
        return h + x if how == "plus x" else h


def library_with(change):
    """ldm_mini's U-Net with one thing changed in its forward."""
    def make(**kw):
        return variant(UNet, forward=lambda s, x, t, cond=None: unet_with(s, x, t, change))(library_net(**kw).config)
    return make


def library_net(channels, mults, num_res_blocks, attn_levels, groups, head_dim):
    return UNet(UNetConfig(3, channels=channels, channel_mults=mults, num_res_blocks=num_res_blocks,
                           attn_levels=attn_levels, groups=groups, head_dim=head_dim))


class Skeleton(nn.Module):
    """The notebook's __init__, from the library's blocks; its variants build the way up with one thing changed."""

    order, attending, fewer, first_at, enlarged = reversed, True, 0, 1, "last"

    def __init__(self, channels, mults, num_res_blocks, attn_levels, groups, head_dim):
        super().__init__()
        self.time_embedding, widths = blocks.TimeEmbedding(channels), [channels * m for m in mults]
        net = library_net(channels, mults, num_res_blocks, attn_levels, groups, head_dim)
        self.down, self.middle, self.up = net.down, net.middle, nn.ModuleList()
        pairs, count = iter(channels_up(channels, mults, num_res_blocks)), num_res_blocks + 1 - self.fewer
        for level, width in type(self).order(list(enumerate(widths))):
            for i in range(count):
                res = Block(*next(pairs), 4 * channels, groups)
                attn = AttentionBlock(width, head_dim=head_dim, groups=groups, eps=1e-5, zero_init=True)
                enlarge = level >= self.first_at and (self.enlarged == "each" or i == count - 1)
                self.up.append(nn.ModuleList([res, *[attn] * (level in attn_levels and self.attending),
                                              *[blocks.Upsample(width)] * enlarge]))
        self.norm_out, self.conv_out = net.norm_out, net.conv_out

    def forward(self, x, t, cond=None):
        time, hs = self.time_embedding(t), []
        for step in self.down:
            x = step(x, time, None, None)
            hs.append(x)
        x = self.middle(x, time, None, None)
        for step in self.up:
            x = torch.cat([x, hs.pop()], 1)
            for layer in step:
                x = layer(x, time) if isinstance(layer, Block) else layer(x)
        return self.conv_out(F.silu(self.norm_out(x)))


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


CORRECT = {
    checks.timestep_embedding: [
        code, code_by_loop, code_by_complex, blocks.timestep_embedding,
        lambda t, dim: torch.from_numpy(code(t, dim).double().numpy()).float(),
    ],
    checks.res_block: [Block, OtherBlock, partial(blocks.ResBlock, eps=1e-5, zero_init=True)],
    checks.through_the_u: [through, through_recursively, through_by_index],
    checks.decoder_channels: [channels_up, channels_of_the_library, lambda *a: zip(*zip(*channels_up(*a))),
                              lambda *a: (pair for pair in channels_up(*a)), lambda *a: torch.tensor(channels_up(*a)),
                              lambda *a: np.array(channels_up(*a)), lambda *a: tuple(map(list, channels_up(*a)))],
    checks.unet: [Net, library_net, Skeleton],
    checks.ema_update: [
        ema, ema_in_place, ema_of_the_library, partial(ema, rate=lambda n, m: torch.tensor(min(m, (1 + n) / (10 + n)))),
        lambda a, net, n, m: OrderedDict((k, torch.lerp(p.data, a[k], min(m, (1 + n) / (10 + n))))
                                         for k, p in net.named_parameters() if p.requires_grad),
    ],
}

MUTANTS = {
    checks.timestep_embedding: [
        *spoiled(code, (dict(order="sin cos"), "swapped: cosines first"), (dict(join=torch.stack), "take turns"),
                 (dict(order="sin cos", join=torch.stack), "Transformer"), (dict(sign=1), "exponent is negative"),
                 (dict(base=1000.0), "10,000"), (dict(exponent=lambda i, half: i / (half - 1)), r"half - 1"),
                 (dict(exponent=lambda i, half: i / (half - 1), order="sin cos"), "swapped, and"),
                 (dict(exponent=lambda i, half: i / (2 * half)), "i / dim"),
                 (dict(exponent=lambda i, half: i // half), "rounds all exponents")),
        (lambda t, d: code(t.bfloat16(), d), "rounded"),
        (lambda t, d: code(t, d).half(), "too few digits"),
        (lambda t, d: code(t, d).long(), "dtype"),
        (lambda t, d: code(t / 1000, d), "divided"),
        (lambda t, d: code(t, d)[:, :4], "shape"),
        (lambda t, d: code(t, d) * 1.01, "off by up to"),
        (lambda t, d: code(t, d).double(), "dtype torch.float64"),
        (lambda t, d: code(t + 1, d), "off by one"),
        (lambda t, d: torch.cat([code(t, 8), code(t, 8)], 1)[:, :d] if d > 8 else code(t, 8), "shape|off by"),
        (lambda t, d: code(t, d).T, "shape"),
        (lambda t, d: code(t[:1].expand(len(t)), d), "off by up to"),
    ],
    checks.res_block: [
        (variant(Block, first=lambda s, x, e: s.conv1(F.silu(s.norm1(x + e))),
                 second=lambda s, h, e: s.conv2(F.silu(s.norm2(h)))), "before conv1"),
        (variant(Block, second=lambda s, h, e: s.conv2(F.silu(s.norm2(h) + e))), "AFTER norm2"),
        (variant(Block, second=lambda s, h, e: s.conv2(F.silu(s.norm2(h))) + e), "after conv2|return its shortcut"),
        (variant(Block, second=lambda s, h, e: s.conv2(F.silu(s.norm2(h)))), "not used at all"),
        (variant(Block, second=lambda s, h, e: s.conv2(F.silu(s.norm2(h * e)))), "multiplies"),
        (variant(Block, second=lambda s, h, e: s.conv2(F.silu(h + e))), "norm2 is not used"),
        (variant(Block, second=lambda s, h, e: s.conv2(s.norm2(h + e))), "after norm2"),
        (variant(Block, first=lambda s, x, e: s.conv1(s.norm1(x))), "after norm1"),
        (variant(Block, first=lambda s, x, e: s.conv1(s.norm1(x)), second=lambda s, h, e: s.conv2(s.norm2(h + e))),
         "a SiLU is missing"),
        (variant(Block, first=lambda s, x, e: s.conv1(F.relu(s.norm1(x))),
                 second=lambda s, h, e: s.conv2(F.relu(s.norm2(h + e)))), "F.silu"),
        (variant(Block, first=lambda s, x, e: F.silu(s.norm1(s.conv1(x))),
                 second=lambda s, h, e: F.silu(s.norm2(s.conv2(h + e)))), "norm, SiLU, convolution"),
        (variant(Block, joined=2), "concatenated"),
        (variant(Block, out=lambda s, x, h: F.silu(s.shortcut(x) + h)), "of the sum is one too many"),
        (variant(Block, out=lambda s, x, h: s.shortcut(F.silu(x)) + h), "overwritten"),
        (variant(Block, embed=lambda s, time: s.time_proj(F.silu(time[:1])).expand(len(time), -1)), "of the first one"),
        (variant(Block, embed=lambda s, time: s.time_proj(F.silu(time)).detach()), "no gradient reaches input 1"),
        (variant(Block, out=lambda s, x, h: s.shortcut(x).detach() + h), "gradient on|no gradient"),
        (variant(Block, first=lambda s, x, e: s.conv1(F.silu(s.norm1(x))).detach()), "gradient"),
        (variant(Block, forward=torch.no_grad()(Block.forward)), "no gradient"),
        (variant(Block, out=lambda s, x, h: (s.shortcut(x) + h).double()), "dtype"),
        (variant(Block, second=lambda s, h, e: s.conv2(F.dropout(F.silu(s.norm2(h + e)), 0.5))), "off by up to"),
        (variant(Block, embed=lambda s, time: s.time_proj(time)), r"silu\(time\)"),
        (variant(Block, embed=lambda s, time: F.silu(s.time_proj(time))), "comes before time_proj"),
        (variant(Block, out=lambda s, x, h: h), "shortcut is missing"),
        (variant(Block, out=lambda s, x, h: h + s.shortcut(s.norm1(x))), "as it came in"),
        (variant(Block, start=lambda s, conv: conv), "conv2 starts at zero"),
        (variant(Block, eps=1e-6), "eps of both"),
        (lambda *args: nn.Conv2d(8, 8, 3), "other layers"),
        (lambda *args: 3, "nn.Module"),
    ],
    checks.through_the_u: [
        *spoiled(through, ("never", "push after EVERY"), ("no stem", "push after EVERY input block.*stem"),
                 ("before", "push after"), ("middle pushed", "only input blocks"), ("no middle", "middle is not used"),
                 ("each from x", "block before"), ("h stays", "does not move on"),
                 (dict(pop=lambda hs: hs.pop(0)), "first in, first out"), (dict(pop=lambda hs: hs[-1]), "looks"),
                 (dict(join=lambda up, h, skip: up(torch.cat([skip, h], 1))), "skip stands first"),
                 (dict(join=lambda up, h, skip: up(torch.cat([h, skip], -1))), "dim=1"),
                 (dict(join=lambda up, h, skip: torch.cat([up(h), skip], 1)), "before\\* the output block"),
                 (dict(join=lambda up, h, skip: up(h + skip)), "joined"),
                 (dict(join=lambda up, h, skip: up(h)), "get no skips")),
        (lambda h, down, middle, up: hs.pop(), "hs ="),  # noqa: F821 - the reading note's: hs is never made
        (lambda h, d, m, u: None, "return"),
        (lambda h, d, m, u: through(h, [lambda x, b=b: b(x.detach()) for b in d], m, u), "gradient"),
        (lambda h, d, m, u: through(h, d, lambda x: m(x.detach()), u), "gradient"),
        *spoiled(through, (dict(join=lambda up, h, skip: up(torch.cat([h, skip.detach()], 1))), "gradient")),
        (torch.no_grad()(through), "no gradient"),
        (lambda h, d, m, u: through(h, d[:4], m, u[-4:]), "off by up to"),  # four blocks, whatever there are
    ],
    checks.decoder_channels: [
        *spoiled(channels_up, ("one block less", r"num_res_blocks \+ 1"), ("own", "block that made it"),
                 ("doubled", "doubled the width"), ("fifo", "reverse"), ("no skip", "skip's channels are missing"),
                 ("skip alone", "skip alone"), ("from the top", "lowest level"),
                 ("no stem", "stem, residual blocks and downsamplings")),
        (lambda *a: channels_up(*a)[1:], "as many as pushes"),
        (lambda *a: [(1, 1), *channels_up(*a)[1:]], "block 0"),
        (lambda *a: 12, "list of pairs"),
        (lambda *a: [(i / 1.5, o) for i, o in channels_up(*a)], "whole numbers"),
        (lambda *a: [i for i, o in channels_up(*a)], "list of pairs"),
        (lambda *a: channels_up(a[0], (1, 2), 1), "block|blocks"),
        (lambda *a: {i: o for i, o in channels_up(*a)}, "list of pairs"),
        (lambda *a: [(o, i) for i, o in channels_up(*a)], "block 0"),
    ],
    checks.unet: [
        *spoiled(Net, ("not zero", "exactly 0"), ("plus x", "no such shortcut"), ("no silu", "SiLU before the last"),
                 ("no norm", "last norm"), ("bare", "norm and SiLU"), ("no middle", "middle is not used"),
                 ("same t", "first one|one entry per sample"), ("t / T", "divided"), ("no t", "t does not matter"),
                 ("silu of time", "twice"), ("fifo", "last one pushed"), ("not joined", "joined to h")),
        (variant(Net, forward=lambda s, x, t, cond=None: [].pop()), "push after EVERY"),
        (variant(Net, forward=torch.no_grad()(Net.forward)), "no gradient"),
        (variant(Net, forward=lambda s, x, t, cond=None: Net.forward(s, x.detach(), t)), "no gradient reaches input 0"),
        (variant(Net, forward=lambda s, x, t, cond=None: Net.forward(s, x, t.flip(0))), "off by up to"),
        (variant(Net, forward=lambda s, x, t: Net.forward(s, x, t)), "TypeError"),
        (library_with("timeless middle"), "middle gets another time"),
        (library_with("timeless up"), "output blocks get another"),
        (library_with("timeless down"), "input blocks get another"),
        (lambda **kw: library_net(**{**kw, "attn_levels": ()}), "other layers"),
        (variant(Skeleton, attending=False), "attention is missing on the way up"),
        (variant(Skeleton, fewer=1), r"num_res_blocks \+ 1"), (variant(Skeleton, order=iter), "at the lowest level"),
        (variant(Skeleton, first_at=2), "nothing is enlarged"), (variant(Skeleton, first_at=0), "where level > 0"),
        (variant(Skeleton, enlarged="each"), "not after each"),
        (variant(Skeleton, enlarged="each", first_at=0), "other layers"),
    ],
    checks.ema_update: [
        *spoiled(ema, (dict(rate=lambda n, m: 1 - min(m, (1 + n) / (10 + n))), "decay is swapped"),
                 (dict(rate=lambda n, m: 1 - m), "swapped, and the warm-up"),
                 (dict(rate=lambda n, m: m), "warm-up is missing"),
                 (dict(rate=lambda n, m: min(m, n / (9 + n))), "off by one"),
                 (dict(rate=lambda n, m: min(m, (2 + n) / (11 + n))), "off by one"),
                 (dict(rate=lambda n, m: (1 + n) / (10 + n)), "max_decay is not used"),
                 (dict(rate=lambda n, m: 0.0), "own weight"), (dict(detach=False), "gradients")),
        (lambda averages, net, n, m: averages, "nothing has moved"),
        (lambda *a: ema_in_place(*a) and None, "returned None: the training loop"),
        (lambda a, net, n, m: ema(a, net, n, m) if n > 1 else
         {k: p.data.lerp_(a[k], 2 / 11) for k, p in net.named_parameters() if p.requires_grad}, "changed the network"),
        (lambda a, net, n, m: ema(a, net, n, 0.9999 if n == 4 else m), "max_decay is not used"),
        (lambda a, net, n, m: ema(a, net, n if n < 10 else 10**9, m), "warm-up is missing"),
        *spoiled(ema, (dict(rate=lambda n, m: max(m, (1 + n) / (10 + n))), "you took the larger|warm-up is missing")),
        (lambda *a: {k: v.double() for k, v in ema(*a).items()}, "dtype"),
        (lambda a, net, n, m: ema(dict.fromkeys(a, 0.0), net, n, m), "off by up to"),
        (lambda averages, net, n, m: {name: v / 10 for name, v in net.state_dict().items()}, "buffers or frozen"),
        (lambda a, net, n, m: {k: (a[k] + p.detach()) / 2 for k, p in net.named_parameters()}, "frozen"),
        (lambda *a: dict(list(ema(*a).items())[1:]), "missing from the result"),
        (lambda *a: list(ema(*a).values()), "dict of averages"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)


@pytest.mark.parametrize("check, good", [(checks.res_block, Block), (checks.unet, Net)])
def test_a_stub_of_forward_alone_is_named_too(check, good):
    def forward(self, *inputs):
        raise NotImplementedError

    with pytest.raises(checks.CheckFailed, match="still the stub"):
        check(variant(good, forward=forward))


def test_the_time_embedding_is_that_of_diffusers_unet():
    get_timestep_embedding = pytest.importorskip("diffusers.models.embeddings").get_timestep_embedding
    t = torch.arange(0, 1000, 7)
    theirs = get_timestep_embedding(t, 64, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(code(t, 64), theirs, atol=1e-3, rtol=0)
    torch.testing.assert_close(blocks.timestep_embedding(t, 64), theirs, atol=1e-4, rtol=0)
