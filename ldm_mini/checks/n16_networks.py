"""Checks of notebook 16: attention over time that starts at 0, an image network for films, and a transformer."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..cond import Cond
from ..dit import position_code
from ..unet import UNetConfig
from ..video import VideoDiT, VideoDiTConfig, VideoUNet, frame_code
from .checking import CheckFailed, attempt, compare, passed
from .n17_modules import hold, wake
from .properties import fresh, generator, learn, own_randomness, same_dtype, same_gradient


def over_time(cls):
    """`cls(width, heads)` with norm1 and time_attn of `ldm_mini.video.TemporalBlock`: `forward(x)`, (B,F,N,D)."""
    draw = fresh()
    for width, heads, shape in ((16, 2, (2, 4, 5)), (24, 3, (3, 5, 2))):
        x = draw(*shape, width)
        with own_randomness():
            net = attempt(cls, width, heads, name="OverTime")
        _silent(net, x)
        hold(wake(lambda: cls(width, heads), "OverTime"), (x,), _over_time, TIME_MISTAKES,  # noqa: B023
             "OverTime.forward", shapes={(shape[0] * shape[2], shape[1], width): "bring the places back: (B,F,N,D)."})
    passed("OverTime: a place reads itself in all frames; silent at first")


def _silent(net: nn.Module, x: Tensor) -> None:
    """Raise CheckFailed unless a fresh one is the identity, by its last layer, and can learn."""
    if not isinstance(net, nn.Module):
        raise CheckFailed("OverTime should be a class, an nn.Module.")
    zeros = {name for name, p in net.named_parameters() if not p.any()} - {"norm1.bias"}
    last = {"time_attn.to_out.weight", "time_attn.to_out.bias"}
    out = attempt(net, x, name="a fresh OverTime")
    if not isinstance(out, Tensor) or out.shape != x.shape:
        return  # the comparison to come says it
    if frozen := [name for name, p in net.named_parameters() if not p.requires_grad]:
        raise CheckFailed(f"OverTime froze {frozen[0]}: it must be able to learn.")
    if others := sorted(name for name in zeros - last):
        raise CheckFailed(f"OverTime: {others[0]} is 0, too. Only the last layer, time_attn.to_out, has to be: behind "
                          "two zeros in a row no gradient ever arrives.")
    if not last <= zeros:
        raise CheckFailed(f"a fresh OverTime is not silent: {min(last - zeros)} is not 0.")


TIME_MISTAKES = {
    "no skip": "x itself is missing: what was read is added to it.",
    "no norm": "the norm is missing: attention reads norm1(x).",
    "no code": "frames have no order without frame_code.",
    "code first": "the code is added *behind* the norm; and x itself goes on without it.",
    "code stays": "what goes on is x, without norm and code: only attention reads them.",
    "over space": "these tokens read the other places of their frame: the row must be one place in all frames.",
    "all": "a token reads the same place in all frames, not all places: (B N) rows of F tokens.",
    "mixed": "a view or reshape to (B N, F, D) mixes places and frames: transpose first.",
    "not back": "on the way back transpose again: (B N, F, D) -> (B, N, F, D) -> (B, F, N, D).",
    "code of places": "the code counts frames, not places.",
}


def _over_time(net, x, how=""):
    """The forward with one thing changed."""
    frames, places, width = x.shape[1:]
    code = (frame_code(places, width) if how == "code of places" else frame_code(frames, width)[:, None]).to(x)
    h = net.norm1(x + code) if how == "code first" else net.norm1(x) + code
    h = {"no norm": x + code, "no code": net.norm1(x)}.get(how, h)
    read = h
    if how == "over space":
        h = net.time_attn(h.flatten(0, 1)).view(x.shape)
    elif how == "all":
        h = net.time_attn(h.flatten(1, 2)).view(x.shape)
    elif how == "mixed":
        h = net.time_attn(h.reshape(-1, frames, width)).view(x.shape)
    else:
        rows = net.time_attn(rearrange(h, "b f n d -> (b n) f d"))
        h = rows.reshape(x.shape) if how == "not back" else rearrange(rows, "(b n) f d -> b f n d", n=places)
    return {"no skip": h, "code stays": read + h}.get(how, x + h)


def through_frames(function):
    """`function(image, blocks, x, t, cond)`: an image U-Net and a block for each of its steps, as VideoUNet runs."""
    draw, source = fresh(), generator(4)
    for size, frames, side in ((2, 3, 4), (3, 4, 8)):
        config = UNetConfig(2, channels=8, channel_mults=(1, 2), num_res_blocks=1, attn_levels=(1,), head_dim=8,
                            groups=2, vector_dim=5, concat_channels=3)
        net = wake(lambda: VideoUNet(config), "VideoUNet").eval()  # noqa: B023
        x, concat = draw(size, 2, frames, side, side), draw(size, 3, frames, side, side)
        t = torch.randint(1000, (size,), generator=source)
        cond = Cond(vector=draw(size, 5), concat=concat)
        of = lambda how="", x=x, net=net: _frames(net.image, net.temporal, x, t, cond, how)  # noqa: B023
        got = attempt(function, net.image, net.temporal, x, t, cond, name="through_frames")
        what = f"through_frames of x {tuple(x.shape)}"
        compare(got, net(x, t, cond), what, rtol=1e-3, atol=1e-3, shapes={
            (size * frames, 2, side, side): "these are pictures; make films of them: (B,C,F,h,w).",
            (size, frames, 2, side, side): "channels come before frames: (B,C,F,h,w).",
        }, mistakes=((of(how), hint) for how, hint in FRAME_MISTAKES.items()))
        same_dtype(got, x, what)
        leaf, = learn(x)
        right = of(x=leaf)
        same_gradient(function(net.image, net.temporal, leaf, t, cond), right, {
            "x": leaf, **{name: p for name, p in net.temporal.named_parameters() if name.endswith("to_v.weight")}},
            what, rtol=1e-2)
    passed("through_frames: frames as pictures, and time between the steps")


FRAME_MISTAKES = {
    "no time": "the blocks are missing: hand `between` to the image network.",
    "one block": "each step of the network has a block of its own: next(steps).",
    "t repeat": "repeat puts the films one after the other; frames of a film follow each other: repeat_interleave.",
    "vector repeat": "cond.vector, too, is for all frames of its film: repeat_interleave.",
    "reshape": "a reshape alone mixes channels and frames: (B,C,F,h,w) -> (B,F,C,h,w) -> (B F,C,h,w).",
    "no concat": "cond.concat has frames, too: as_images(cond.concat).",
    "frames first": "the frames of one film follow each other: (B F), not (F B).",
    "swapped": "the block takes (B,F,N,C): frames, then places.",
    "places mixed": "tokens are (B,F,N,C): the channels go last by a transpose, not by a reshape.",
    "one film": "each film by itself: these frames heard those of other films.",
}


def _frames(image, blocks, x, t, cond, how=""):
    """The way through with one thing changed."""
    size, frames = len(x), x.shape[2]
    steps = iter(blocks)
    fold = "b c f h w -> (f b) c h w" if how == "frames first" else "b c f h w -> (b f) c h w"
    alike = lambda v: v.repeat(frames, *[1] * (v.ndim - 1))
    each = lambda v: alike(v) if how == "frames first" else v.repeat_interleave(frames, 0)
    pictures = x.reshape(size * frames, *x.shape[1:2], *x.shape[3:]) if how == "reshape" else rearrange(x, fold)
    concat = rearrange(cond.concat, fold)
    inner = Cond(vector=(alike if how == "vector repeat" else each)(cond.vector),
                 concat=0 * concat if how == "no concat" else concat)

    def between(h):
        block = blocks[1] if how == "one block" else next(steps)
        if how == "no time" or isinstance(block, nn.Identity):
            return h
        if how == "one block" and h.shape[1] != block.norm1.normalized_shape[0]:
            return h
        if how == "one film":
            return rearrange(block(rearrange(h, "k c h w -> 1 k (h w) c")), "1 k (h w) c -> k c h w", h=h.shape[2])
        if how == "swapped":
            out = block(rearrange(h, "(b f) c h w -> b (h w) f c", f=frames))
            return rearrange(out, "b (h w) f c -> (b f) c h w", h=h.shape[2])
        if how == "places mixed":
            return block(h.reshape(-1, frames, h.shape[2] * h.shape[3], h.shape[1])).reshape(h.shape)
        out = block(rearrange(h, "(b f) c h w -> b f (h w) c", f=frames))
        return rearrange(out, "b f (h w) c -> (b f) c h w", h=h.shape[2])

    out = image(pictures, (alike if how == "t repeat" else each)(t), inner, between=between)
    back = "(f b) c h w -> b c f h w" if how == "frames first" else "(b f) c h w -> b c f h w"
    return rearrange(out, back, f=frames)


def small_video_dit(cls):
    """`cls(config)` with the layers of `ldm_mini.video.VideoDiT`: `forward(x, t, cond)`, (B,C,F,h,w) -> the same."""
    draw = fresh()
    for c, k, p, width, frames, side, size in ((3, 1, 2, 16, 3, 4, 2), (2, 2, 1, 8, 4, 3, 3)):
        config = VideoDiTConfig(c, p, k, width, 2, 2, side, vector_dim=5, concat_channels=2)
        net = wake(lambda: cls(config), "SmallVideoDiT", like=VideoDiT(config))  # noqa: B023
        t = torch.randint(1000, (size,), generator=generator())
        cond = Cond(vector=draw(size, 5), concat=draw(size, 2, frames, side, side))
        hold(net, (draw(size, c, frames, side, side), t, cond), _video_dit, DIT_MISTAKES, "SmallVideoDiT.forward",
             shapes={(size, frames // k, (side // p) ** 2, k * p * p * c): "these are tokens: from_blocks."})
    passed("SmallVideoDiT: blocks of space and time, and a film again")


DIT_MISTAKES = {
    "no frames": "frame_code is missing: tokens must know when they are.",
    "no places": "position_code is missing: tokens must know where they are.",
    "space only": "the blocks over time did not run.",
    "time only": "the blocks over space did not run.",
    "time first": "space first, then time.",
    "all space": "in turn: a block over space, a block over time, the next over space.",
    "repeat space": "the condition of a film goes to all its frames: repeat_interleave(frames, 0), not repeat.",
    "repeat time": "the condition of a film goes to all its places: repeat_interleave(places, 0), not repeat.",
    "not transposed": "the blocks over time read one place in all frames: transpose frames and places first.",
    "no concat": "cond.concat joins the channels of x before the patches are cut.",
    "no vector": "cond.vector is not used: vector_proj.",
    "no time": "t is not used: time_embedding(t).",
    "no norm": "the last norm is missing: norm(h) * (1 + scale) + shift.",
    "scale first": "modulation_out gives shift, then scale.",
    "no silu": "the condition goes through SiLU before modulation_out.",
    "channels": "proj_out's numbers are frame, row, column, channel: from_blocks lays them out.",
    "skip": "the network predicts: x is not added.",
}


def _video_dit(net, x, t, cond, how=""):
    """The forward with one thing changed."""
    c = net.config
    h = net.patchify(torch.cat([x, 0 * cond.concat if how == "no concat" else cond.concat], 1))
    frames, rows, columns = h.shape[2:]
    h = rearrange(h, "b d f r c -> b f (r c) d")
    h = h if how == "no places" else h + position_code(rows, columns, c.width, rows)
    h = h if how == "no frames" else h + frame_code(frames, c.width)[:, None]
    v = {"no vector": lambda: net.time_embedding(t), "no time": lambda: net.vector_proj(cond.vector)}.get(
        how, lambda: net.time_embedding(t) + net.vector_proj(cond.vector))()
    places = rows * columns
    many = lambda n, alike: v.repeat(n, 1) if alike else v.repeat_interleave(n, 0)

    def space(block, h):
        return block(h.flatten(0, 1), many(frames, how == "repeat space")).unflatten(0, (-1, frames))

    def time(block, h):
        if how == "not transposed":
            return block(h.reshape(-1, frames, c.width), many(places, False)).reshape(h.shape)
        h = block(h.transpose(1, 2).flatten(0, 1), many(places, how == "repeat time"))
        return h.unflatten(0, (-1, places)).transpose(1, 2)

    ways = [[(space, a), (time, b)] for a, b in zip(net.space, net.time)]
    if how == "all space":
        ways = [[pair[0] for pair in ways], [pair[1] for pair in ways]]
    for pair in ways:
        for run, block in pair[::-1] if how == "time first" else pair:
            if (run, how) not in ((time, "space only"), (space, "time only")):
                h = run(block, h)
    shift, scale = net.modulation_out(v if how == "no silu" else F.silu(v))[:, None, None].chunk(2, -1)
    shift, scale = (scale, shift) if how == "scale first" else (shift, scale)
    h = net.proj_out((h if how == "no norm" else net.norm(h)) * (1 + scale) + shift)
    inside = "(c k p q)" if how == "channels" else "(k p q c)"
    out = rearrange(h, f"b f (r w) {inside} -> b c (f k) (r p) (w q)", r=rows, k=c.patch_frames, p=c.patch_size,
                    q=c.patch_size)
    return out + x if how == "skip" else out
