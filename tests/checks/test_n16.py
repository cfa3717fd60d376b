"""Checks of notebook 16: known wrong solutions fail with a message that helps; right ones written another way pass."""

import torch
import torch.nn.functional as F
from einops import rearrange
from solutions import spoiled, try_all, variant
from torch import nn

from ldm_mini import checks
from ldm_mini.attention import Attention
from ldm_mini.blocks import TimeEmbedding
from ldm_mini.cond import Cond
from ldm_mini.dit import DiTBlock, position_code
from ldm_mini.video import TemporalBlock, VideoDiT, as_films, as_images, each_frame, frame_code
from ldm_mini.video_diffusion import FirstFrameConditioner


def told(boxes, *, place=lambda b: (b[:, :2] + b[:, 2:]) / 2, way=lambda p: p[-1] - p[0], still=0.15,
         names=("right", "left", "down", "up"), wide=lambda x, y: abs(x) >= abs(y)):
    x, y = way(place(boxes)).tolist()
    if max(abs(x), abs(y)) < still:
        return "still"
    if wide(x, y):
        return names[0] if x > 0 else names[1]
    return names[2] if y > 0 else names[3]


def told_by_table(boxes):
    way = (boxes[-1] - boxes[0]).unflatten(0, (2, 2)).mean(0)
    axis = way.abs().argmax()
    if way[axis].abs() < 0.15:
        return "still"
    return [["left", "right"], ["up", "down"]][axis][int(way[axis] > 0)]


def flops(frames, places, width, way, *, linear=4, table=2, times=2, ways=None):
    layer = lambda n: times * (linear * n * width**2 + table * n * n * width)
    alone, time, full = frames * layer(places), places * layer(frames), layer(frames * places)
    return (ways or (lambda alone, time, full, layer: {"alone": alone, "both": alone + time, "full": full}))(
        alone, time, full, layer)[way]


def counted(frames, side, f_t, f, p, *, how=lambda frames, side, f_t, f, p: frames // f_t * (side // f // p) ** 2):
    return how(frames, side, f_t, f, p)


def mixed(own, common, share, *, a=lambda s: s**0.5, b=lambda s: (1 - s) ** 0.5, of=lambda own, common: common,
          end=lambda out: out):
    return end(a(share) * of(own, common) + b(share) * own)


def mixed_frame_by_frame(own, common, share):
    frames = [common[:, :, 0] * share**0.5 + x * (1 - share) ** 0.5 for x in own.unbind(2)]
    return torch.stack(frames, 2)


def known_frame(first, known, frames, *, where=0, there=lambda first, known: first * known,
                told=lambda known: known, order=(0, 1), end=lambda maps: maps):
    size, c, h, w = first.shape
    maps, flag = first.new_zeros(size, c + 1, frames, h, w), known.to(first).view(-1, 1, 1, 1)
    parts = [there(first, flag), told(flag).expand(size, 1, h, w)]
    maps[:, :, where] = torch.cat([parts[i] for i in order], 1)
    return end(maps)


def known_by_library(first, known, frames):
    size, c, h, w = first.shape
    conditioner = FirstFrameConditioner(c, 1)
    batch = {"latent": first.new_zeros(size, c, frames, h, w)}
    there = conditioner.null(batch).concat
    there = torch.cat([torch.cat([first, torch.ones_like(first[:, :1])], 1)[:, :, None], there[:, :, 1:]], 2)
    return torch.where(known.view(-1, 1, 1, 1, 1), there, 0)


class OverTime(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.time_attn = Attention(width, num_heads=heads)
        self.begin()

    def begin(self):
        for p in self.time_attn.to_out.parameters():
            nn.init.zeros_(p)

    def forward(self, x):
        h = self.norm1(x) + frame_code(x.shape[1], x.shape[3])[:, None]
        return x + self.time_attn(h.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x), -1)).transpose(1, 2)


class OverTimeByLoops(OverTime):
    def forward(self, x):
        code = frame_code(x.shape[1], x.shape[3])
        return torch.stack([x[:, :, n] + self.time_attn(self.norm1(x[:, :, n]) + code) for n in range(x.shape[2])], 2)


class OverTimeByLibrary(TemporalBlock):
    def __init__(self, width, heads):
        super().__init__(width, heads)


def over(**parts):
    return variant(OverTime, **parts)


def read(body):
    """A forward of (net, x, the code (F,1,D), attention of rows)."""
    def forward(net, x):
        rows = lambda h: net.time_attn(h.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x), -1)).transpose(1, 2)
        return body(net, x, frame_code(x.shape[1], x.shape[3])[:, None], rows)

    return over(forward=forward)


def film(image, blocks, x, t, cond, *, fold=as_images, each=lambda v, n: v.repeat_interleave(n, 0),
         vectors=lambda v, n: v.repeat_interleave(n, 0), tokens="(b f) c h w -> b f (h w) c",
         concat=lambda c: as_images(c), pick=lambda steps, blocks: next(steps), end=as_films, run=True):
    frames, steps = x.shape[2], iter(blocks)

    def between(h):
        block = pick(steps, blocks)
        if not run:
            return h
        out = block(rearrange(h, tokens, f=frames))
        there, _, back = tokens.partition(" -> ")
        return rearrange(out, f"{back} -> {there}", f=frames, h=h.shape[2])

    out = image(fold(x), each(t, frames), Cond(concat(cond.concat), vector=vectors(cond.vector, frames)),
                between=between)
    return end(out, frames)


def film_by_library(image, blocks, x, t, cond):
    steps, frames = iter(blocks), x.shape[2]

    def between(h):
        block = next(steps)
        if isinstance(block, nn.Identity):
            return h
        return as_images(block(as_films(h, frames).permute(0, 2, 3, 4, 1).flatten(2, 3)).unflatten(
            2, h.shape[2:]).permute(0, 4, 1, 2, 3))

    return as_films(image(as_images(x), t.repeat_interleave(frames), each_frame(cond, frames), between=between), frames)


def cut(x, k, p, *, time="(f k)", to="b f (i j) (c k p q)", end=lambda t: t):
    return end(rearrange(x, f"b c {time} (i p) (j q) -> {to}", k=k, p=p, q=p))


def cut_by_loops(x, k, p):
    b, c, f, h, w = x.shape
    frames = [torch.stack([x[:, :, a:a + k, i:i + p, j:j + p].flatten(1) for i in range(0, h, p)
                           for j in range(0, w, p)], 1) for a in range(0, f, k)]
    return torch.stack(frames, 1)


def lay(tokens, k, p, rows, *, of="(i j) (k p q c)", time="(f k)", end=lambda x: x):
    return end(rearrange(tokens, f"b f {of} -> b c {time} (i p) (j q)", k=k, p=p, q=p, i=rows))


def lay_by_reshape(tokens, k, p, rows):
    b, f, n, _ = tokens.shape
    x = tokens.reshape(b, f, rows, n // rows, k, p, p, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


class SmallVideoDiT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = c = config
        patch = (c.patch_frames, c.patch_size, c.patch_size)
        self.patchify = nn.Conv3d(c.in_channels + c.concat_channels, c.width, patch, stride=patch)
        self.time_embedding, self.vector_proj = TimeEmbedding(256, c.width), nn.Linear(c.vector_dim, c.width)
        self.space, self.time = (nn.ModuleList(DiTBlock(c.width, c.num_heads) for _ in range(c.depth)) for _ in "st")
        self.norm = nn.LayerNorm(c.width, elementwise_affine=False, eps=1e-6)
        self.modulation_out = nn.Linear(c.width, 2 * c.width)
        self.proj_out = nn.Linear(c.width, c.patch_frames * c.patch_size**2 * c.in_channels)

    inside, plus, read = "(k p q c)", 0, lambda net, x, concat: torch.cat([x, concat], 1)
    when = where = 1
    many, order = (lambda net, v, n: v.repeat_interleave(n, 0)), lambda net, i: (net.over_space, net.over_time)

    def vector(self, t, cond):
        return self.time_embedding(t) + self.vector_proj(cond.vector)

    def over_space(self, i, h, v):
        return self.space[i](h.flatten(0, 1), self.many(v, h.shape[1])).unflatten(0, h.shape[:2])

    def over_time(self, i, h, v):
        h = h.transpose(1, 2)
        return self.time[i](h.flatten(0, 1), self.many(v, h.shape[1])).unflatten(0, h.shape[:2]).transpose(1, 2)

    def last(self, h, v):
        shift, scale = self.modulation_out(F.silu(v))[:, None, None].chunk(2, -1)
        return self.norm(h) * (1 + scale) + shift

    def forward(self, x, t, cond):
        c, h = self.config, self.patchify(self.read(x, cond.concat))
        frames, rows, columns = h.shape[2:]
        h = h.flatten(3).permute(0, 2, 3, 1) + self.where * position_code(rows, columns, c.width, rows)
        h = h + self.when * frame_code(frames, c.width)[:, None]
        v = self.vector(t, cond)
        for i in range(c.depth):
            for way in self.order(i):
                h = way(i, h, v)
        out = rearrange(self.proj_out(self.last(h, v)), f"b f (r s) {self.inside} -> b c (f k) (r p) (s q)", r=rows,
                        k=c.patch_frames, p=c.patch_size, q=c.patch_size)
        return out + self.plus * x


class ByLibrary(VideoDiT):
    """The package's own."""


def dit(**parts):
    return variant(SmallVideoDiT, **parts)


def last(net, h, v, how):
    shift, scale = net.modulation_out(v if how == "no silu" else F.silu(v))[:, None, None].chunk(2, -1)
    shift, scale = (scale, shift) if how == "swapped" else (shift, scale)
    return (h if how == "no norm" else net.norm(h)) * (1 + scale) + shift


CORRECT = {
    checks.motion_told: [told, told_by_table],
    checks.film_flops: [flops],
    checks.film_tokens: [counted, lambda frames, side, f_t, f, p: (frames / f_t) * (side / f / p) ** 2],
    checks.shared_noise: [mixed, mixed_frame_by_frame],
    checks.first_frame: [known_frame, known_by_library],
    checks.over_time: [OverTime, OverTimeByLoops, OverTimeByLibrary],
    checks.through_frames: [film, film_by_library],
    checks.to_blocks: [cut, cut_by_loops],
    checks.from_blocks: [lay, lay_by_reshape],
    checks.small_video_dit: [SmallVideoDiT, ByLibrary],
}

MUTANTS = {
    checks.motion_told: spoiled(
        told, (dict(names=("right", "left", "up", "down")), "downwards"), (dict(way=lambda p: p[0] - p[-1]), "minus"),
        (dict(place=lambda b: b[:, :2]), "middle of the box"), (dict(way=lambda p: p[1] - p[0]), "\\*last\\*"),
        (dict(still=0.0), "stands still"), (dict(wide=lambda x, y: abs(x) >= 0.15), "longer"),
        (dict(names=("down", "up", "right", "left"), wide=lambda x, y: abs(x) >= abs(y)), "x is the way"),
        (dict(way=lambda p: (p[-1] - p[0]).abs()), "by the sign"), (dict(names=("east",) * 4), "one of left")),
    checks.film_flops: spoiled(
        flops, (dict(times=1), "two FLOPs"), (dict(table=0), "are missing"), (dict(table=1), "\\*two\\* products"),
        (dict(linear=3), "four projections"),
        (dict(ways=lambda a, t, f, layer: {"alone": f, "both": a + t, "full": f}), "no token reads"),
        (dict(ways=lambda a, t, f, layer: {"alone": a, "both": a, "full": f}), "over time is missing"),
        (dict(ways=lambda a, t, f, layer: {"alone": a, "both": t, "full": f}), "over space is missing"),
        (dict(ways=lambda a, t, f, layer: {"alone": a, "both": 2 * a, "full": f}), "F long"),
        (dict(ways=lambda a, t, f, layer: {"alone": a, "both": a + t, "full": a}), "\\*one\\* row"),
        (dict(ways=lambda a, t, f, layer: {"alone": a, "both": a + t, "full": a + t}), "factorised way")),
    checks.film_tokens: spoiled(
        counted, (dict(how=lambda n, s, ft, f, p: n * (s // f // p) ** 2), "frames / f_t"),
        (dict(how=lambda n, s, ft, f, p: n // ft * (s // f) ** 2), "p x p"),
        (dict(how=lambda n, s, ft, f, p: n // ft * (s // p) ** 2), "f times shorter"),
        (dict(how=lambda n, s, ft, f, p: n // ft * (s // f // p)), "squared"),
        (dict(how=lambda n, s, ft, f, p: n // ft * s**2 // (f * p)), "both sides"),
        (dict(how=lambda n, s, ft, f, p: n // ft**2 * (s // f // p) ** 2), "one axis|expected")),
    checks.shared_noise: spoiled(
        mixed, (dict(a=lambda s: s, b=lambda s: 1 - s), "their roots"),
        (dict(a=lambda s: (1 - s) ** 0.5, b=lambda s: s**0.5), "in common"),
        (dict(b=lambda s: 1), "gets less room"), (dict(a=lambda s: 1, b=lambda s: 1), "variance 2"),
        (dict(a=lambda s: s, b=lambda s: (1 - s * s) ** 0.5), "part of the variance"), (dict(a=lambda s: 0,
         b=lambda s: 1), "nothing is in common"), (dict(a=lambda s: 1, b=lambda s: 0), "all is in common"),
        (dict(of=lambda own, common: own[:, :, :1]), "drawn for itself"),
        (dict(end=lambda out: out[:, :, :1]), "one frame only"), (dict(end=lambda out: out.double()), "dtype")),
    checks.first_frame: spoiled(
        known_frame, (dict(told=lambda k: 0 * k), "says where"), (dict(there=lambda f, k: f), "must not see"),
        (dict(there=lambda f, k: f, told=lambda k: 0 * k + 1), "in every channel"),
        (dict(told=lambda k: 0 * k + 1), "too, is 0"), (dict(where=-1), "index 0"), (dict(order=(1, 0)), "\\*last\\*"),
        (dict(told=lambda k: 1 - k), "1 = known"), (dict(end=lambda m: m[:, :-1]), "shape"),
        (dict(end=lambda m: m.transpose(1, 2)), "before frames"), (dict(end=lambda m: m.detach()), "no gradient"),
        (dict(end=lambda m: m.double()), "dtype")),
    checks.over_time: [
        (read(lambda n, x, code, attn: attn(n.norm1(x) + code)), "added to it|is added"),
        (read(lambda n, x, code, attn: x + attn(x + code)), "norm is missing"),
        (read(lambda n, x, code, attn: x + attn(n.norm1(x))), "no order"),
        (read(lambda n, x, code, attn: x + attn(n.norm1(x + code))), "behind"),
        (read(lambda n, x, code, attn: (h := n.norm1(x) + code) + attn(h)), "what goes on is x"),
        (read(lambda n, x, code, attn: x + n.time_attn((n.norm1(x) + code).flatten(0, 1)).view(x.shape)), "one place"),
        (read(lambda n, x, code, attn: x + n.time_attn((n.norm1(x) + code).flatten(1, 2)).view(x.shape)), "rows of F"),
        (read(lambda n, x, code, attn: x + n.time_attn((n.norm1(x) + code).reshape(-1, x.shape[1], x.shape[3])).view(
            x.shape)), "transpose first"),
        (read(lambda n, x, code, attn: x + attn(n.norm1(x) + code).transpose(1, 2).reshape(x.shape)), "way back"),
        (over(begin=lambda n: None), "not silent"),
        (over(begin=lambda n: [nn.init.zeros_(p) for p in n.time_attn.parameters()]), "two\\s+zeros"),
        (over(begin=lambda n: nn.init.zeros_(n.time_attn.to_out.weight)), "not silent"),
        (over(begin=lambda n: (OverTime.begin(n), n.time_attn.requires_grad_(False))), "froze"),
    ],
    checks.through_frames: spoiled(
        film, (dict(run=False), "hand `between`"), (dict(each=lambda t, n: t.repeat(n)), "repeat_interleave"),
        (dict(vectors=lambda v, n: v.repeat(n, 1)), "cond.vector"),
        (dict(fold=lambda x: x.reshape(-1, x.shape[1], *x.shape[3:])), "mixes channels and frames"),
        (dict(concat=lambda c: 0 * as_images(c)), "has frames, too"),
        (dict(tokens="(b f) c h w -> b (h w) f c"), "frames, then places"),
        (dict(end=lambda out, f: out), "these are pictures"),
        (dict(end=lambda out, f: as_films(out, f).transpose(1, 2)), "channels come before|shape"),
        (dict(end=lambda out, f: as_films(out, f).detach()), "no gradient"),
        (dict(end=lambda out, f: as_films(out, f).double()), "dtype")),
    checks.to_blocks: spoiled(
        cut, (dict(to="b f (i j) (k c p q)"), "channel comes first"), (dict(to="b f (i j) (k p q c)"), "channel comes"),
        (dict(to="b f (i j) (c p q k)"), "\\*frame\\*"), (dict(to="b f (j i) (c k p q)"), "reading order"),
        (dict(time="(k f)"), "follow each other"), (dict(to="b (f i j) (c k p q)"), "apart"),
        (dict(end=lambda t: t.detach()), "no gradient"), (dict(end=lambda t: t.double()), "dtype")) + [
        (lambda x, k, p: x.reshape(cut(x, k, p).shape), "reshape alone")],
    checks.from_blocks: spoiled(
        lay, (dict(of="(i j) (c k p q)"), "in this order"), (dict(of="(i j) (p q k c)"), "frame comes before"),
        (dict(of="(i j) (k q p c)"), "rows come before"), (dict(time="(k f)"), "not \\(k f\\)"),
        (dict(end=lambda x: x.transpose(1, 2)), "shape"), (dict(end=lambda x: x.detach()), "no gradient"),
        (dict(end=lambda x: x.double()), "dtype")) + [
        (lambda t, k, p, rows: t.reshape(lay(t, k, p, rows).shape), "reshape alone"),
        (lambda t, k, p, rows: rearrange(t, "b f (j i) (k p q c) -> b c (f k) (i p) (j q)", k=k, p=p, q=p, i=rows),
         "reading order")],
    checks.small_video_dit: [
        (dit(when=0), "frame_code"), (dit(where=0), "position_code"),
        (dit(order=lambda n, i: (n.over_space,)), "over time did not"),
        (dit(order=lambda n, i: (n.over_time,)), "over space did not"),
        (dit(order=lambda n, i: (n.over_time, n.over_space)), "space first"),
        (dit(many=lambda n, v, k: v.repeat(k, 1)), "repeat_interleave|off by"),
        (dit(over_time=lambda n, i, h, v: n.time[i](h.reshape(-1, *h.shape[1::2]), n.many(v, h.shape[2])).view(
            h.shape)), "transpose frames"),
        (dit(read=lambda n, x, c: torch.cat([x, 0 * c], 1)), "joins the channels"),
        (dit(vector=lambda n, t, cond: n.time_embedding(t)), "vector is not used"),
        (dit(vector=lambda n, t, cond: n.vector_proj(cond.vector)), "t is not used"),
        (dit(last=lambda n, h, v: last(n, h, v, "no norm")), "last norm"),
        (dit(last=lambda n, h, v: last(n, h, v, "swapped")), "shift, then scale"),
        (dit(last=lambda n, h, v: last(n, h, v, "no silu")), "SiLU"),
        (dit(inside="(c k p q)"), "frame, row, column"), (dit(plus=1), "x is not added"),
        (lambda config: (net := SmallVideoDiT(config), net.add_module("more", nn.Linear(1, 1)))[0], "keep the layers"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
