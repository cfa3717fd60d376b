"""The blocks that every convolutional network of the paper is made of: residual block, down, up, time embedding.

The same ResBlock serves the first stage (no time, eps 1e-6) and the U-Net (time added, eps 1e-5, last conv zero).
Built in notebook 07.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(channels: int, groups: int = 32, eps: float = 1e-6) -> nn.GroupNorm:
    """GroupNorm; `groups` must divide `channels` (the paper's 32; about 16 channels per group is faster on a CPU)."""
    if channels % groups:
        raise ValueError(f"group_norm: {channels} channels cannot be split into {groups} equal groups. "
                         f"Choose `groups` as a divisor, for instance {math.gcd(channels, groups)}.")
    return nn.GroupNorm(groups, channels, eps=eps)


def zeroed(module: nn.Module) -> nn.Module:
    """The same module with all parameters set to 0: a residual branch that starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def timestep_embedding(t: Tensor, dim: int, to_the_end: bool = False) -> Tensor:
    """t (B,) -> (B, dim) float32: [cos | sin] of t at dim/2 frequencies from 1 down to nearly 1/10,000; dim even.

    The two halves are joined to make the code of t; the code itself is later added to features, not joined to them.
    to_the_end: down to 1/10,000 itself, as diffusers' DiT has it.
    """
    half = dim // 2
    exponents = -math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(exponents / (half - to_the_end))
    # fast angles tell neighbouring steps apart, slow ones early from late, like the hands of a clock
    angles = t.float()[:, None] * frequencies                                   # (B, dim/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)                      # (B, dim)


class TimeEmbedding(nn.Module):
    """A time step as a learned vector: sinusoid, then Linear - SiLU - Linear. `time_dim` is 4 * dim in the paper."""

    def __init__(self, dim: int, time_dim: int | None = None, to_the_end: bool = False):
        super().__init__()
        self.dim, self.to_the_end = dim, to_the_end
        time_dim = time_dim or 4 * dim
        self.linear1 = nn.Linear(dim, time_dim)
        self.linear2 = nn.Linear(time_dim, time_dim)

    def forward(self, t: Tensor) -> Tensor:
        """t (B,) -> (B, time_dim)"""
        code = timestep_embedding(t, self.dim, self.to_the_end).to(self.linear1.weight.dtype)
        return self.linear2(F.silu(self.linear1(code)))


class Downsample(nn.Module):
    """Half the height and width by a 3x3 convolution of stride 2.

    asymmetric: the first stage pads only right and bottom, the U-Net all sides. Their weights are not interchangeable.
    """

    def __init__(self, channels: int, asymmetric: bool = False):
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,C,h/2,w/2)"""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Twice the height and width: pixels repeated, then a 3x3 convolution (a transposed one makes checkerboards)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,C,2h,2w)"""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with the time embedding put in between the two halves.

    time_dim:    width of the time embedding; None in the first stage, which knows no time.
    scale_shift: the embedding scales and shifts the second norm instead of being added (Churches model).
    resample:    "down" or "up" inside the block, both branches, without weights (BigGAN style: Churches, inpainting).
    zero_init:   last convolution starts at 0, so the block starts as its skip connection (U-Net; not the first stage).
    """

    def __init__(self, in_channels: int, out_channels: int, time_dim: int | None = None, groups: int = 32,
                 eps: float = 1e-6, dropout: float = 0.0, scale_shift: bool = False, zero_init: bool = False,
                 resample: str | None = None):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.norm1 = group_norm(in_channels, groups, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_proj = None if time_dim is None else nn.Linear(time_dim, out_channels * (2 if scale_shift else 1))
        self.norm2 = group_norm(out_channels, groups, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        if zero_init:
            zeroed(self.conv2)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x (B,C,h,w), time (B,time_dim) -> (B,out_channels,h,w); h and w halved or doubled if `resample` says so."""
        # 1. the first half; a change of size comes between SiLU and convolution
        h = self.conv1(self._resize(F.silu(self.norm1(x))))
        # 2. the time speaks to whole channels: added before the second norm, or as that norm's scale and shift
        if self.time_proj is None:
            h = self.norm2(h)
        elif self.scale_shift:
            scale, shift = self.time_proj(F.silu(time))[:, :, None, None].chunk(2, dim=1)       # (B,out,1,1) each
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + self.time_proj(F.silu(time))[:, :, None, None])
        # 3. the second half, added to the input
        return self.shortcut(self._resize(x)) + self.conv2(self.dropout(F.silu(h)))

    def _resize(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample == "up" else x
