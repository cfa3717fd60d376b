"""The likely mistakes of notebook 07: each forward with one thing changed, and what to tell who made the change."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import ResBlock, Upsample
from ..unet import UNet


def way_through(h, down, middle, up, change: str):
    """The way through the U with one thing changed."""
    hs, x = [], h
    for block in down:
        if change == "before":
            hs.append(h)
        h = block(x if change in ("each from x", "h stays") else h)
        if change != "before":
            hs.append(h)
    h = x if change == "h stays" else h
    h = h if change == "no middle" else middle(h)
    if change == "middle pushed":
        hs.append(h)
    for block in up:
        skip = hs[-1] if change == "peek" else hs.pop(0 if change == "fifo" else -1)
        h = {"added": lambda: h + skip, "no skips": lambda: h, "skip first": lambda: torch.cat([skip, h], 1)}.get(
            change, lambda: torch.cat([h, skip], 1))()
        h = block(h)
    return h


U_MISTAKES = {
    "before": "you push h before an input block; its *output* is what the other side needs: push after.",
    "fifo": "first in, first out: you popped the oldest skip. `hs.pop()` takes the newest.",
    "peek": "every output block got the same skip: `hs[-1]` looks, `hs.pop()` takes.",
    "skip first": "the skip stands first; join as [h, skip]. (Both can learn; the published weights want h first.)",
    "added": "the skip is added; it is *joined* on the channels: torch.cat([h, skip], dim=1).",
    "middle pushed": "the middle's output was pushed too; only input blocks are.",
    "no middle": "the middle is not used.",
    "no skips": "the output blocks get no skips: join h with `hs.pop()` before each of them.",
    "h stays": "the blocks' outputs are pushed, but h itself does not move on: `h = block(h)`, then push h.",
    "each from x": "each input block got the first h; it must get the output of the block before.",
}


RES_MISTAKES = {
    "no silu on time": "the time vector goes through SiLU first: time_proj(silu(time)).",
    "silu after": "the SiLU comes before time_proj, not after it.",
    "relu": "the activation is SiLU here: F.silu.",
    "after norm": "time is added AFTER norm2. There it still works, but the published weights want it before: "
                  "norm2(h + time).",
    "first": "time is added before conv1; it belongs between the two halves, after conv1.",
    "late": "time is added after conv2, so nothing in this block can use it; add it before norm2.",
    "no time": "time is not used at all.",
    "multiplied": "time multiplies the features; here it is added.",
    "first time": "all samples got the time of the first one; each has its own row.",
    "silu at last": "the SiLU of the sum is one too many: return self.shortcut(x) + h as it is.",
    "silu of x": "the shortcut takes x as it came in. Was x overwritten on the way?",
    "no shortcut": "the shortcut is missing: return self.shortcut(x) + h.",
    "shortcut of norm": "the shortcut takes x itself, not the normalised x.",
    "post": "the order is norm, SiLU, convolution; yours is convolution, norm, SiLU.",
    "no silu": "a SiLU is missing: each half is norm, SiLU, convolution.",
    "no first silu": "the SiLU after norm1 is missing.",
    "no second silu": "the SiLU after norm2 is missing.",
    "no norm2": "norm2 is not used.",
    "eps": "right for features of size 1, wrong for tiny ones: the eps of both GroupNorms must be 1e-5 here.",
}


def res_block_with(b: ResBlock, x: Tensor, time: Tensor, change: str) -> Tensor:
    """The forward of a residual block with one thing changed."""
    eps = 1e-6 if change == "eps" else b.norm1.eps
    norm = lambda layer, h: F.group_norm(h, layer.num_groups, layer.weight, layer.bias, eps)
    no_silu = {"no silu": (1, 2), "no first silu": (1,), "no second silu": (2,)}.get(change, ())
    silu = F.relu if change == "relu" else F.silu
    act = lambda h, place: h if place in no_silu else silu(h)
    time = time[:1].expand(len(time), -1) if change == "first time" else time
    e = b.time_proj(time if change in ("no silu on time", "silu after") else F.silu(time))[:, :, None, None]
    e = F.silu(e) if change == "silu after" else e
    if change == "post":
        h = F.silu(norm(b.norm1, b.conv1(x))) + e
        return b.shortcut(x) + F.silu(norm(b.norm2, b.conv2(h)))
    h = b.conv1(act(norm(b.norm1, x + e if change == "first" else x), 1))
    if change in ("after norm", "first", "late", "no time"):
        h = norm(b.norm2, h) + (e if change == "after norm" else 0)
    else:
        h = h * e if change == "multiplied" else h + e
        h = h if change == "no norm2" else norm(b.norm2, h)
    h = b.conv2(act(h, 2)) + (e if change == "late" else 0)
    x = norm(b.norm1, x) if change == "shortcut of norm" else F.silu(x) if change == "silu of x" else x
    h = h + (0 if change == "no shortcut" else b.shortcut(x))
    return F.silu(h) if change == "silu at last" else h


DECODER_MISTAKES = {
    "blocks": "the way up has num_res_blocks + 1 blocks per level: the downsampling (or the stem) left a skip too.",
    "doubled": "you doubled the width. A skip is as wide as the block that *made* it: the stem's and each "
               "downsampling's is that of the level above, and h arrives from the level below.",
    "own": "each skip has the width of the block that made it. The last of a level comes from a downsampling or the "
           "stem, which still have the width of the level above (or `channels`).",
    "fifo": "the skips come back in reverse: `skips.pop()`, not `skips.pop(0)`.",
    "no skip": "the skip's channels are missing: in = width of h + width of the skip.",
    "no h": "in is the width of h plus that of the skip; you have the skip alone.",
    "upwards": "the blocks are in the wrong order: the way up begins at the lowest level.",
}


def channels_with(channels, mults, num_res_blocks, change=""):
    widths = [channels * m for m in mults]
    skips = [channels]
    for level, width in enumerate(widths):
        skips += [width] * (num_res_blocks + (level < len(widths) - 1))
    pairs, h, per_level = [], widths[-1], num_res_blocks + (change != "blocks")
    for width in reversed(widths):
        for _ in range(per_level):
            skip = width if change == "own" else skips.pop(0 if change == "fifo" else -1)
            joined = {"doubled": 2 * width, "no skip": h, "no h": skip}.get(change, h + skip)
            pairs.append((joined, width))
            h = width
    return pairs[::-1] if change == "upwards" else pairs


WAY_UP_MISTAKES = {
    "no attention": "attention is missing on the way up: *attn(level, width) after each residual block, as on the way "
                    "down.",
    "a block less": "the way up has num_res_blocks + 1 residual blocks on each level, one for each skip.",
    "top first": "the way up begins at the lowest level: go through the levels in reverse.",
    "no upsampling": "nothing is enlarged: the last step of each level, but of level 0, ends with p[\"up\"](width).",
    "too far": "level 0 has the picture's size already: enlarge where level > 0.",
    "each step": "a level is enlarged once, after its last residual block, not after each.",
}


def layers_with(net: UNet, change: str) -> list[nn.Module]:
    """All layers of a U-Net of two levels, the lower one with attention, its way up built with one thing changed."""
    blocks, (_, attention, up) = (step[0] for step in net.up), net.up[len(net.up) // 2 - 1]
    per_level, layers = len(net.up) // 2 - (change == "a block less"), []
    for level in (0, 1) if change == "top first" else (1, 0):
        for i in range(per_level):
            layers += [next(blocks)] + [attention] * (level == 1 and change != "no attention")
            if level == 1 and change != "no upsampling" and (change == "each step" or i == per_level - 1):
                layers.append(up)
    layers += [Upsample(net.config.channels)] * (change == "too far")
    return [net.time_embedding, net.down, net.middle, *layers, net.norm_out, net.conv_out]


UNET_MISTAKES = {
    "no silu": "the SiLU before the last convolution is missing: conv_out(silu(norm_out(h))).",
    "no norm": "the last norm is missing: conv_out(silu(norm_out(h))).",
    "bare": "norm and SiLU before the last convolution are missing: conv_out(silu(norm_out(h))).",
    "no middle": "the middle is not used.",
    "same t": "all samples got the time of the first one; t has one entry per sample.",
    "t / T": "t was divided by 1000; the embedding takes the steps 0 to 999 as they are.",
    "silu of time": "SiLU is applied to the time vector twice: the blocks do it themselves.",
    "timeless down": "the input blocks get another time than time_embedding(t).",
    "timeless middle": "the middle gets another time than time_embedding(t).",
    "timeless up": "the output blocks get another time than time_embedding(t).",
}


def unet_with(net: UNet, x: Tensor, t: Tensor, change: str = "") -> Tensor:
    t = t[:1].expand(len(t)) if change == "same t" else t / 1000 if change == "t / T" else t
    time = net.time_embedding(t)
    time = F.silu(time) if change == "silu of time" else time
    with_time = lambda step, part: lambda h: step(h, 0 * time if change == f"timeless {part}" else time, None, None)
    down, up = ([with_time(step, part) for step in way] for way, part in ((net.down, "down"), (net.up, "up")))
    h = way_through(x, down, with_time(net.middle, "middle"), up, "no middle" if change == "no middle" else "")
    h = h if change in ("no norm", "bare") else net.norm_out(h)
    return net.conv_out(h if change in ("no silu", "bare") else F.silu(h))
