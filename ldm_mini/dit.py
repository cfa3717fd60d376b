"""The Diffusion Transformer (Peebles & Xie 2022, arXiv 2212.09748): patches are tokens, conditions steer the norms.
After the paper: it takes the U-Net's place, and nothing else of latent diffusion changes. Built in notebook 15.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from .asked import at_least
from .attention import Attention
from .blocks import TimeEmbedding, zeroed
from .cond import Cond, check_net_inputs

EPS = 1e-6                      # of its LayerNorms, which have no weights: adaLN is their scale and shift
TIME_CODE = 256                 # width of the sinusoid of t


@dataclass(frozen=True)
class DiTConfig:
    """One DiT. The defaults are DiT-S/2; depth, width and heads are 12, 768, 12 for B, 24, 1024, 16 for L, and
    28, 1152, 16 for XL. Published weights have num_classes=1000 and out_channels = 2 * in_channels."""

    in_channels: int = 4                        # of the noisy latent
    out_channels: int | None = None             # None: as many. Twice as many also say how much variance a step adds
    patch_size: int = 2                         # a token is a square of so many latent pixels
    width: int = 384                            # a multiple of 4 (position code) and of num_heads
    depth: int = 12
    num_heads: int = 6
    input_size: int = 32                        # side of the latents; other sizes stretch the position code to theirs
    num_classes: int | None = None              # own table of classes, and a last row for none: cond.vector (B,) int64
    vector_dim: int | None = None               # or a vector of this width, as the U-Net takes it
    context_dim: int | None = None              # width of context tokens; None: no context
    context: str = "cross"                      # how they are read: "cross" attention in each block, or as further
                                                # "tokens" of the sequence (Peebles & Xie's "in-context")
    positions: bool = True                      # False: the network cannot tell places apart (notebook 15)
    concat_channels: int = 0                    # channels of cond.concat
    # The rest serves one purpose: to run published weights exactly as diffusers does
    mlp_norm_eps: float = EPS                   # 1e-5 there
    time_code_to_the_end: bool = False          # True there: the sinusoid's last frequency is 1/10000 itself
    own_embeddings: bool = False                # each block has its own embedding of time and class. Diffusers stores
                                                # one per block; the loader reads equal ones as a single one

    def __post_init__(self):
        at_least(1, "DiTConfig", in_channels=self.in_channels, out_channels=self.out_channels, width=self.width,
                 patch_size=self.patch_size, depth=self.depth, num_heads=self.num_heads, input_size=self.input_size,
                 num_classes=self.num_classes, vector_dim=self.vector_dim, context_dim=self.context_dim)
        if self.context not in ("cross", "tokens"):
            raise ValueError(f'DiTConfig: context is "cross" or "tokens", got {self.context!r}.')
        if self.positions:
            check_width("DiTConfig", self.width)

    @property
    def min_factor(self) -> int:
        """Height and width of the input must be multiples of this."""
        return self.patch_size


def check_width(who: str, width: int) -> None:
    """Raise ValueError for a width that `position_code` cannot have."""
    if width % 4:
        raise ValueError(f"{who}: the position code is sine and cosine of row and column, so width is a multiple of 4; "
                         f"got {width}.")


class DiT(nn.Module):
    """net(x, t, cond) -> prediction of x's size, like the U-Net. A fresh one returns exactly 0.

    With out_channels = 2 * in_channels the first half is the prediction, which is all that `make_denoiser` takes; the
    second is for the learned variance of ancestral sampling, which no sampler here uses.
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = c = config
        self.patchify = nn.Conv2d(c.in_channels + c.concat_channels, c.width, c.patch_size, stride=c.patch_size)
        self.embeddings = nn.ModuleList(ConditionEmbedding(c) for _ in range(c.depth if c.own_embeddings else 1))
        joins = c.context_dim is not None and c.context == "tokens"
        self.context_in = nn.Linear(c.context_dim, c.width) if joins else None
        read = None if joins else c.context_dim
        self.blocks = nn.ModuleList(DiTBlock(c.width, c.num_heads, c.mlp_norm_eps, read) for _ in range(c.depth))
        self.norm_out = nn.LayerNorm(c.width, elementwise_affine=False, eps=EPS)
        self.modulation_out = zeroed(nn.Linear(c.width, 2 * c.width))
        self.proj_out = zeroed(nn.Linear(c.width, c.patch_size**2 * (c.out_channels or c.in_channels)))

    def forward(self, x: Tensor, t: Tensor, cond: Cond = Cond()) -> Tensor:
        """x (B,C,h,w), t (B,) int64, cond -> (B,out_channels,h,w)"""
        c = self.config
        check_net_inputs(c, x, t, cond, context=c.context_dim is not None,
                         vector=c.num_classes is not None or c.vector_dim is not None)
        # 1. each patch is a token, and knows its place
        h = self.patchify(x if cond.concat is None else torch.cat([x, cond.concat], dim=1))     # (B,D,h/p,w/p)
        rows, columns = h.shape[2:]
        h = rearrange(h, "b d rows columns -> b (rows columns) d")                              # (B,N,D)
        if c.positions:
            h = h + position_code(rows, columns, c.width, c.input_size // c.patch_size).to(h)
        # 2. time and vector as one vector, for all blocks or for each its own
        conditions = [embed(t, cond.vector) for embed in self.embeddings]                       # one or depth of (B,D)
        # 3. tokens read each other, in every block as that vector wants it; a context is read there, or joins them
        h, context, own_mask = (h, cond.context, None) if self.context_in is None else self._join(h, cond)
        for i, block in enumerate(self.blocks):
            h = block(h, conditions[i % len(conditions)], context, cond.mask, own_mask)
        h = h[:, :rows * columns]
        # 4. from tokens back to patches; 0 at first
        shift, scale = self.modulation_out(F.silu(conditions[0]))[:, None].chunk(2, dim=-1)     # (B,1,D) each
        h = self.proj_out(self.norm_out(h) * (1 + scale) + shift)
        return rearrange(h, "b (rows columns) (p q c) -> b c (rows p) (columns q)", rows=rows, p=c.patch_size,
                         q=c.patch_size)

    def _join(self, h: Tensor, cond: Cond) -> tuple[Tensor, None, Tensor | None]:
        """The picture's tokens (B,N,D), then those of the context: (B,N+M,D), no context, mask (B,N+M) or None."""
        joined = torch.cat([h, self.context_in(cond.context)], dim=1)
        if cond.mask is None:
            return joined, None, None
        # patches may always be read, words as their mask says
        return joined, None, torch.cat([torch.ones_like(h[..., 0], dtype=torch.bool), cond.mask], dim=1)


class ConditionEmbedding(nn.Module):
    """Time and class as one vector: both are embedded, and added."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        c = config
        self.time = TimeEmbedding(TIME_CODE, c.width, c.time_code_to_the_end)
        self.classes = None if c.num_classes is None else nn.Embedding(c.num_classes + 1, c.width)
        self.vector = None if c.vector_dim is None else nn.Linear(c.vector_dim, c.width)

    def forward(self, t: Tensor, vector: Tensor | None) -> Tensor:
        """t (B,), vector (B,) int64 or (B,vector_dim) -> (B,width)"""
        if vector is None:
            return self.time(t)
        return self.time(t) + (self.classes(vector) if self.vector is None else self.vector(vector))


class DiTBlock(nn.Module):
    """Self-attention and an MLP, each behind a norm that the condition scales and shifts (adaLN), and before a gate
    that the condition opens from 0 (adaLN-Zero). With a context_dim, cross attention between them, silent at first."""

    def __init__(self, width: int, num_heads: int, mlp_norm_eps: float = EPS, context_dim: int | None = None):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=EPS)
        self.attn = Attention(width, num_heads=num_heads, qkv_bias=True)
        self.cross_attn = None
        if context_dim is not None:
            self.norm_cross = nn.LayerNorm(width, elementwise_affine=False, eps=EPS)
            self.cross_attn = Attention(width, context_dim, num_heads)
            zeroed(self.cross_attn.to_out)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=mlp_norm_eps)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = zeroed(nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor, context: Tensor | None = None, mask: Tensor | None = None,
                own_mask: Tensor | None = None) -> Tensor:
        """x (B,N,D), condition (B,D), context (B,M,Dc) with its mask (B,M), own_mask (B,N) of x -> (B,N,D)"""
        # all six are 0 at first: both gates are shut, and the block is the identity
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition))[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, mask=own_mask)
        if self.cross_attn is not None:
            x = x + self.cross_attn(self.norm_cross(x), context, mask)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


def position_code(rows: int, columns: int, dim: int, trained: int) -> Tensor:
    """(rows * columns, dim): of each token, in reading order, sines and cosines of its column, then of its row.

    A grid of another size than trained x trained is stretched to it.
    """
    frequencies = 10_000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))

    def code(count: int) -> Tensor:
        place = torch.arange(count, dtype=torch.float64) * trained / count
        angles = place[:, None] * frequencies                                                   # (count, dim/4)
        return torch.cat([angles.sin(), angles.cos()], dim=1)                                   # (count, dim/2)

    return torch.cat([repeat(code(columns), "columns d -> (rows columns) d", rows=rows),
                      repeat(code(rows), "rows d -> (rows columns) d", columns=columns)], dim=1).float()
