"""The U-Net that predicts noise (LDM sec. 3.2, 3.3, Tab. 12-16): down, middle, up; each block skips to its mirror.
Built in notebook 07.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .asked import at_least
from .attention import AttentionBlock, SpatialTransformer
from .blocks import Downsample, ResBlock, TimeEmbedding, Upsample, group_norm, zeroed
from .cond import Cond, check_net_inputs

EPS = 1e-5                      # of all its GroupNorms but the spatial transformers' (1e-6)


@dataclass(frozen=True)
class UNetConfig:
    """One U-Net. Levels count from 0 (the latent's own size); each next level has half the height and width."""

    in_channels: int                            # of the noisy latent
    out_channels: int | None = None             # None: as many as in_channels
    channels: int = 128                         # width of level 0 is channels * channel_mults[0]
    channel_mults: tuple[float, ...] = (1, 2, 4)
    num_res_blocks: int = 2                     # per level; the way up has one more
    attn_levels: tuple[int, ...] = (1, 2)       # LEVEL INDICES with attention; the middle always has it
    num_heads: int | tuple[int, ...] | None = None  # fixes the number of heads (Churches: 8; cin256-v2: 1), or that of
                                                # each level, for diffusers' lists that neither number nor width explain
    head_dim: int = 32                          # None above: heads have this width (CelebA, cin256, text)
    context_dim: int | None = None              # width of context tokens; None: plain self-attention, no transformers
    transformer_depth: int = 1                  # blocks per spatial transformer; 3 for layouts
    vector_dim: int | None = None               # width of a vector added to the time embedding (none in the paper)
    concat_channels: int = 0                    # channels of cond.concat: super-resolution 3, inpainting 4
    groups: int = 32                            # of every GroupNorm; small nets: about 16 channels per group
    scale_shift: bool = False                   # time scales and shifts the norm instead of being added (Churches)
    resblock_updown: bool = False               # residual blocks resize, not convolutions (Churches, inpainting)
    dropout: float = 0.0                        # inside residual blocks

    def __post_init__(self):
        at_least(1, "UNetConfig", in_channels=self.in_channels, out_channels=self.out_channels, channels=self.channels,
                 num_res_blocks=self.num_res_blocks, num_heads=self.num_heads, head_dim=self.head_dim,
                 transformer_depth=self.transformer_depth, groups=self.groups, context_dim=self.context_dim)
        # a level that does not exist would go unnoticed: no attention, and no error
        if bad := [level for level in self.attn_levels if level not in range(len(self.widths))]:
            raise ValueError(f"UNetConfig: attn_levels {bad} do not exist. They are level indices 0 to "
                             f"{len(self.widths) - 1}, one per entry of channel_mults, not sizes or factors.")

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [round(self.channels * mult) for mult in self.channel_mults]

    def heads(self, level: int) -> dict:
        """num_heads and head_dim of the attention at a level, as its block takes them; the middle has the last's."""
        count = self.num_heads[level] if isinstance(self.num_heads, tuple) else self.num_heads
        return {"num_heads": count, "head_dim": None if count else self.head_dim}

    @property
    def min_factor(self) -> int:
        """Height and width of the input must be multiples of this."""
        return 2 ** (len(self.channel_mults) - 1)


class Step(nn.ModuleList):
    """A few layers in order, each given what it understands: h; and the time, or the context."""

    def forward(self, h: Tensor, time: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """h (B,C,h,w), time (B,D), context (B,M,Dc), mask (B,M) -> (B,C',h',w')"""
        for layer in self:
            if isinstance(layer, ResBlock):
                h = layer(h, time)
            elif isinstance(layer, SpatialTransformer):
                h = layer(h, context, mask)
            else:
                h = layer(h)
        return h


class UNet(nn.Module):
    """The paper's U-Net: net(x, t, cond) -> prediction of x's shape. A fresh one returns exactly 0.

    `down` and `up` hold one Step per entry of the skip stack: the stem, each residual block, each downsampling.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = c = config
        self.time_dim = 4 * c.channels
        self.time_embedding = TimeEmbedding(c.channels, self.time_dim)
        self.vector_proj = None if c.vector_dim is None else nn.Linear(c.vector_dim, self.time_dim)

        # down: what each step hands on is noted in `skips`, for its mirror on the way up
        stem = nn.Conv2d(c.in_channels + c.concat_channels, c.channels, 3, padding=1)
        self.down, width, skips = nn.ModuleList([Step([stem])]), c.channels, [c.channels]
        for level, level_width in enumerate(c.widths):
            for _ in range(c.num_res_blocks):
                self.down.append(self._step(width, level))
                width = level_width
                skips.append(width)
            if level < len(c.widths) - 1:
                self.down.append(Step([self._resize(width, "down")]))
                skips.append(width)

        # the middle always attends, in the released code; the paper's tables are silent about it
        self.middle = Step([self._res(width, width), self._attn(len(c.widths) - 1), self._res(width, width)])

        # up: one block more at each level than down, since the stem and each downsampling left a skip too
        self.up = nn.ModuleList()
        for level, level_width in reversed(list(enumerate(c.widths))):
            for i in range(c.num_res_blocks + 1):
                self.up.append(self._step(width + skips.pop(), level))
                width = level_width
                if level > 0 and i == c.num_res_blocks:
                    self.up[-1].append(self._resize(width, "up"))

        self.norm_out = group_norm(width, c.groups, EPS)
        self.conv_out = zeroed(nn.Conv2d(width, c.out_channels or c.in_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, cond: Cond = Cond(), between=lambda h: h) -> Tensor:
        """x (B,C,h,w), t (B,) int64, cond -> (B,out_channels,h,w)

        between: what is done to the features (B,C',h',w') after each step of down, middle and up (`video`: time).
        """
        c = self.config
        check_net_inputs(c, x, t, cond, context=c.context_dim is not None, vector=c.vector_dim is not None)
        # 1. what every residual block hears: the step, and a vector if there is one
        time = self.time_embedding(t)                                           # (B, 4*channels)
        if self.vector_proj is not None:
            time = time + self.vector_proj(cond.vector)
        # 2. conditions that are pictures are further channels of the input (LDM sec. 4.3.2)
        h = x if cond.concat is None else torch.cat([x, cond.concat], dim=1)
        # 3. down; each step leaves its output behind
        hs = []
        for step in self.down:
            h = between(step(h, time, cond.context, cond.mask))
            hs.append(h)
        # 4. the middle, where a pixel has seen most of the picture
        h = between(self.middle(h, time, cond.context, cond.mask))
        # 5. up; each step takes the last output that is left: last in, first out, so sizes match
        for step in self.up:
            h = between(step(torch.cat([h, hs.pop()], dim=1), time, cond.context, cond.mask))
        return self.conv_out(F.silu(self.norm_out(h)))

    def _step(self, width_in: int, level: int) -> Step:
        attention = [self._attn(level)] if level in self.config.attn_levels else []
        return Step([self._res(width_in, self.config.widths[level]), *attention])

    def _res(self, width_in: int, width: int, resample: str | None = None) -> ResBlock:
        c = self.config
        return ResBlock(width_in, width, self.time_dim, c.groups, EPS, c.dropout, c.scale_shift, zero_init=True,
                        resample=resample)

    def _attn(self, level: int) -> nn.Module:
        c = self.config
        options = {**c.heads(level), "groups": c.groups}
        if c.context_dim is None:
            return AttentionBlock(c.widths[level], eps=EPS, zero_init=True, **options)
        return SpatialTransformer(c.widths[level], depth=c.transformer_depth, context_dim=c.context_dim, **options)

    def _resize(self, width: int, direction: str) -> nn.Module:
        if self.config.resblock_updown:
            return self._res(width, width, resample=direction)
        return Downsample(width) if direction == "down" else Upsample(width)
