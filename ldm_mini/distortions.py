"""Damage that leaves a picture's content alone: blur, lost resolution, JPEG-like rounding. Met in notebooks 04, 11."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def degrade(images: Tensor, generator: torch.Generator | None = None, exposure: float = 0.15,
            blur: tuple[float, float] = (0.4, 1.4)) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1], each with none, one or several flaws that leave its content alone, clamped.

    Brightness and contrast within `exposure` (common to the channels, so colours stay), a blur of so many pixels, a
    detour over a lower resolution, coarse cosine coefficients as JPEG leaves them, fine noise.
    """
    def draw(low, high, n=1):
        return torch.rand(n, generator=generator).mul(high - low).add(low).to(images)

    # only the chosen images pay for a flaw
    def spoil(p, function):
        chosen = (torch.rand(len(x), generator=generator) < p).nonzero().flatten().to(x.device)
        if len(chosen):
            x[chosen] = function(x[chosen]).to(x.dtype)                                     # autocast blurs in bfloat16

    contrast, brightness = (draw(at - exposure, at + exposure, len(images)).view(-1, 1, 1, 1) for at in (1, 0))
    x = images * contrast + brightness
    spoil(0.35, lambda v: gaussian_blur(v, float(draw(*blur))))
    spoil(0.3, lambda v: resample(v, max(8, int(float(draw(0.4, 0.9)) * v.shape[-1]))))
    spoil(0.2, lambda v: coarse_cosines(v, float(draw(0.05, 0.3))))
    spoil(0.4, lambda v: v + torch.randn(v.shape, generator=generator).to(v) * draw(0, 0.15, len(v)).view(-1, 1, 1, 1))
    return x.clamp(-1, 1)


def resample(x: Tensor, side: int) -> Tensor:
    """Down to side x side and back up, smoothly."""
    small = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
    return F.interpolate(small, size=x.shape[-2:], mode="bilinear")


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """(B, C, H, W) blurred by a Gaussian of `sigma` pixels, borders repeated."""
    half = math.ceil(2.5 * sigma)
    kernel = torch.softmax(-torch.arange(-half, half + 1).to(x).square() / (2 * sigma**2), dim=0)
    flat = F.pad(x, (half,) * 4, mode="replicate").flatten(0, 1).unsqueeze(1)
    return F.conv2d(F.conv2d(flat, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).view_as(x)


def coarse_cosines(x: Tensor, step: float) -> Tensor:
    """(B, C, H, W) with the cosine coefficients of its 8x8 blocks rounded to multiples of `step`, or more if fine."""
    height, width = x.shape[-2:]
    # the last blocks are filled up, as JPEG does
    x = F.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
    # the discrete cosine transform (DCT-II), orthonormal
    n = torch.arange(8).to(x)
    basis = torch.cos(math.pi / 8 * (n + 0.5) * n[:, None]) / 2
    basis[0] /= math.sqrt(2)
    # fine waves are rounded more coarsely than broad ones
    steps = step * (1 + 0.5 * (n[:, None] + n))
    blocks = x.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2)              # (B, C, ., ., 8, 8)
    rounded = basis.mT @ ((basis @ blocks @ basis.mT / steps).round() * steps) @ basis
    return rounded.transpose(-3, -2).flatten(-2).flatten(-3, -2)[..., :height, :width]
