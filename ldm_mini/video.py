"""Networks for video: 2D + time. After the paper: attention over time between the layers of a trained image network
(Video Diffusion Models, Ho et al. 2022, arXiv 2204.03458; Align your Latents, Blattmann et al. 2023, arXiv 2304.08818),
and a transformer on patches of space and time. Built in notebook 16.

Both are called as all networks, net(x, t, cond), with x (B,C,F,h,w): F frames of C x h x w. cond.concat is
(B,c,F,h,w); all other parts of a condition are for the whole film.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .asked import at_least
from .attention import Attention
from .blocks import ResBlock, TimeEmbedding, timestep_embedding, zeroed
from .cond import Cond, check_net_inputs
from .dit import EPS, TIME_CODE, DiTBlock, check_width, position_code
from .unet import UNet, UNetConfig


def as_images(x: Tensor) -> Tensor:
    """(B,C,F,h,w) -> (B F,C,h,w): every frame a sample of its own."""
    return rearrange(x, "b c f h w -> (b f) c h w")


def as_films(x: Tensor, frames: int) -> Tensor:
    """(B F,C,h,w) -> (B,C,F,h,w): the way back."""
    return rearrange(x, "(b f) c h w -> b c f h w", f=frames)


def each_frame(cond: Cond, frames: int) -> Cond:
    """The condition of B films for their B F frames, as an image network takes it."""
    def repeat(part):
        return None if part is None else part.repeat_interleave(frames, dim=0)

    return Cond(None if cond.concat is None else as_images(cond.concat), repeat(cond.context), repeat(cond.mask),
                repeat(cond.vector))


def frame_code(count: int, dim: int, device=None) -> Tensor:
    """(count, dim): sines and cosines of each frame's number, without which attention could not tell before from
    after."""
    return timestep_embedding(torch.arange(count, device=device), dim)


class TemporalBlock(nn.Module):
    """Each place of a film reads itself in all frames; then all read the condition, if there is one.

    Both begin at 0, so that a new block is the identity. Space is mixed elsewhere: in the image network's layers.
    """

    def __init__(self, channels: int, num_heads: int | None = None, head_dim: int | None = None,
                 context_dim: int | None = None):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.time_attn = Attention(channels, None, num_heads, head_dim)
        zeroed(self.time_attn.to_out)
        self.cross_attn = None
        if context_dim is not None:
            self.norm2 = nn.LayerNorm(channels)
            self.cross_attn = Attention(channels, context_dim, num_heads, head_dim)
            zeroed(self.cross_attn.to_out)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x (B,F,N,C): N places in F frames; context (B,M,D), mask (B,M) -> (B,F,N,C)"""
        frames, places = x.shape[1:3]
        # 1. a place in all frames is one sequence, and a frame knows when it is
        h = self.norm1(x) + frame_code(frames, x.shape[3], x.device).to(x)[:, None]
        h = self.time_attn(rearrange(h, "b f n c -> (b n) f c"))
        x = x + rearrange(h, "(b n) f c -> b f n c", n=places)
        # 2. what moves, and how, stands in the caption: all places of all frames read it
        if self.cross_attn is not None:
            h = self.cross_attn(self.norm2(x).flatten(1, 2), context, mask)
            x = x + h.unflatten(1, (frames, places))
        return x


class VideoUNet(nn.Module):
    """An image U-Net, `image`, with a TemporalBlock after each of its steps that has a residual block.

    Fresh temporal blocks change nothing: the frames are then what the image network makes of each by itself. A film of
    a single frame has no time, and passes them by, always: so pictures can be trained on, too.

    config: of the image network. frozen: keep its weights as they are; only time is learned, as in Align your Latents.
    """

    def __init__(self, config: UNetConfig, frozen: bool = False):
        super().__init__()
        self.config, self.frozen = config, frozen
        self.image = UNet(config).requires_grad_(not frozen)
        self.temporal = nn.ModuleList()
        for step in (*self.image.down, self.image.middle, *self.image.up):
            widths = [layer.norm2.num_channels for layer in step if isinstance(layer, ResBlock) and not layer.resample]
            # heads as wide as in space, where the level's width allows
            self.temporal.append(TemporalBlock(widths[-1], head_dim=math.gcd(config.head_dim, widths[-1]),
                                               context_dim=config.context_dim) if widths else nn.Identity())

    def forward(self, x: Tensor, t: Tensor, cond: Cond = Cond()) -> Tensor:
        """x (B,C,F,h,w), t (B,) int64, cond -> (B,out_channels,F,h,w)"""
        frames = _frames(x)
        # all frames of a film are as noisy, and of one caption
        steps, inputs = iter(self.temporal), (as_images(x), t.repeat_interleave(frames), each_frame(cond, frames))

        def over_time(h: Tensor) -> Tensor:
            block = next(steps)
            if frames == 1 or isinstance(block, nn.Identity):
                return h
            tokens = rearrange(h, "(b f) c h w -> b f (h w) c", f=frames)
            return rearrange(block(tokens, cond.context, cond.mask), "b f (h w) c -> (b f) c h w", h=h.shape[2])

        return as_films(self.image(*inputs, between=over_time), frames)


@dataclass(frozen=True)
class VideoDiTConfig:
    """One VideoDiT."""

    in_channels: int                            # of the noisy latent
    patch_size: int = 1                         # a token is a block of patch_frames x patch_size x patch_size
    patch_frames: int = 1                       # above 1: fewer tokens, and the number of frames is a multiple of it
    width: int = 192                            # a multiple of 4 (position code) and of num_heads
    depth: int = 4                              # of pairs of blocks: one over space, one over time
    num_heads: int = 6
    input_size: int = 8                         # side of the latents; other sizes stretch the position code to theirs
    context_dim: int | None = None              # width of context tokens
    vector_dim: int | None = None               # of a vector that is added to the time
    concat_channels: int = 0                    # channels of cond.concat

    def __post_init__(self):
        at_least(1, "VideoDiTConfig", in_channels=self.in_channels, patch_size=self.patch_size,
                 patch_frames=self.patch_frames, width=self.width, depth=self.depth, num_heads=self.num_heads,
                 input_size=self.input_size, context_dim=self.context_dim, vector_dim=self.vector_dim)
        check_width("VideoDiTConfig", self.width)

    @property
    def min_factor(self) -> int:
        """Height and width of the input must be multiples of this."""
        return self.patch_size


class VideoDiT(nn.Module):
    """A Diffusion Transformer on patches of space and time, its attention factorised: first the tokens of a frame read
    each other, then those of a place, as in Latte (Ma et al. 2024, arXiv 2401.03048, variant 1). A fresh one returns 0.
    """

    def __init__(self, config: VideoDiTConfig):
        super().__init__()
        self.config = c = config
        patch = (c.patch_frames, c.patch_size, c.patch_size)
        self.patchify = nn.Conv3d(c.in_channels + c.concat_channels, c.width, patch, stride=patch)
        self.time_embedding = TimeEmbedding(TIME_CODE, c.width)
        self.vector_proj = None if c.vector_dim is None else nn.Linear(c.vector_dim, c.width)
        self.space, self.time = (nn.ModuleList(DiTBlock(c.width, c.num_heads) for _ in range(c.depth)) for _ in "st")
        self.read = nn.ModuleList()                             # cross attention, between the two; 0 at first
        for _ in range(0 if c.context_dim is None else c.depth):
            self.read.append(Attention(c.width, c.context_dim, c.num_heads))
            zeroed(self.read[-1].to_out)
        self.norm = nn.LayerNorm(c.width, elementwise_affine=False, eps=EPS)
        self.modulation_out = zeroed(nn.Linear(c.width, 2 * c.width))
        self.proj_out = zeroed(nn.Linear(c.width, c.patch_frames * c.patch_size**2 * c.in_channels))

    def forward(self, x: Tensor, t: Tensor, cond: Cond = Cond()) -> Tensor:
        """x (B,C,F,h,w), t (B,) int64, cond -> (B,C,F,h,w)"""
        c, given = self.config, _frames(x)
        check_net_inputs(c, as_images(x), t.repeat_interleave(given), each_frame(cond, given),
                         context=c.context_dim is not None, vector=c.vector_dim is not None)
        if given % c.patch_frames:
            raise ValueError(f"{given} frames: this network takes multiples of {c.patch_frames}, its patch_frames.")
        # 1. each block of pixels is a token, and knows where and when it is
        h = self.patchify(x if cond.concat is None else torch.cat([x, cond.concat], dim=1))     # (B,D,F',h',w')
        frames, rows, columns = h.shape[2:]
        h = rearrange(h, "b d f r c -> b f (r c) d")                                            # (B,F',N,D)
        h = h + position_code(rows, columns, c.width, c.input_size // c.patch_size).to(h)
        h = h + frame_code(frames, c.width, h.device).to(h)[:, None]
        # 2. how noisy it is, for all blocks
        condition = self.time_embedding(t)                                                      # (B,D)
        if self.vector_proj is not None:
            condition = condition + self.vector_proj(cond.vector)
        # 3. space, the condition, time; over and over
        for i in range(c.depth):
            h = self.space[i](h.flatten(0, 1), condition.repeat_interleave(frames, 0)).unflatten(0, (-1, frames))
            if self.read:
                read = self.read[i](self.norm(h).flatten(1, 2), cond.context, cond.mask)
                h = h + read.unflatten(1, h.shape[1:3])
            places = h.shape[2]
            h = h.transpose(1, 2).flatten(0, 1)                                                 # (B N,F',D)
            h = self.time[i](h, condition.repeat_interleave(places, 0)).unflatten(0, (-1, places)).transpose(1, 2)
        # 4. from tokens back to pixels; 0 at first
        shift, scale = self.modulation_out(F.silu(condition))[:, None, None].chunk(2, dim=-1)   # (B,1,1,D) each
        h = self.proj_out(self.norm(h) * (1 + scale) + shift)
        return rearrange(h, "b f (r w) (k p q c) -> b c (f k) (r p) (w q)", r=rows, k=c.patch_frames, p=c.patch_size,
                         q=c.patch_size)


def _frames(x: Tensor) -> int:
    """How many there are. Raises ValueError if x is no batch of films."""
    if x.ndim != 5:
        raise ValueError(f"a video network takes films (B,C,F,h,w); got {tuple(x.shape)}. A picture is a film of one "
                         "frame: x[:, :, None].")
    return x.shape[2]
