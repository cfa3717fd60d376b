"""The other bottleneck: a Gaussian per latent value, kept near N(0, 1) by a very small KL term (LDM sec. 3.1).

Built in notebook 05.
"""

from math import prod

import torch
from torch import Tensor, nn

from .asked import at_least


class DiagonalGaussian:
    """Independent normals, one per latent value: `mean`, `logvar`, `std`, each (B,C,h,w), float32 or finer.

    moments (B,2C,h,w): the first half of the channels are means, the second log variances, clamped to [-30, 20].
    """

    def __init__(self, moments: Tensor):
        # half precision is too coarse for exponentials
        moments = moments.to(torch.promote_types(moments.dtype, torch.float32))
        self.mean, logvar = moments.unflatten(1, (2, -1)).unbind(1)
        # a network that goes astray would make them infinite (the bounds are those of LDM's code)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std = torch.exp(0.5 * self.logvar)

    def mode(self) -> Tensor:
        """The most likely value, (B,C,h,w)."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """mean + std * noise, (B,C,h,w): the gradient passes through both (VAE, arXiv 1312.6114 sec. 2.4).

        The noise is drawn where the generator is: a CPU generator gives the same sample on every device.
        """
        where = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=where, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)

    def kl(self) -> Tensor:
        """KL divergence from N(0, 1) in nats, per latent value: (B,C,h,w)."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar)


class KLBottleneck(nn.Module):
    """The bottleneck contract with a Gaussian inside: the encoder outputs its moments, the decoder reads a sample.

    reduction says what `weight` multiplies, and it has to match the reconstruction loss beside it:
    "mean": the mean over all latent values; goes with a mean over pixels.
    "sum":  the sum over each latent, mean over the batch; goes with a sum over pixels. The released models use
            1e-6 this way, which is `weight_for_means(1e-6, ...)` = 2.1e-8 with means at f=8. The default is thus
            stronger than the paper's, and still so weak that the latent's scale is free: measure it (appendix G).
    """

    moments_per_channel = 2

    def __init__(self, latent_channels: int = 4, weight: float = 1e-6, reduction: str = "mean"):
        super().__init__()
        at_least(1, "KLBottleneck", latent_channels=latent_channels)
        at_least(0, "KLBottleneck", weight=weight)
        if reduction not in ("mean", "sum"):
            raise ValueError(f'KLBottleneck: reduction must be "mean" or "sum", got {reduction!r}.')
        self.latent_channels, self.weight, self.reduction = latent_channels, weight, reduction

    def distribution(self, h: Tensor) -> DiagonalGaussian:
        """h (B,2C,h,w) -> the posterior q(z | x)."""
        return DiagonalGaussian(h)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """h (B,2C,h,w) -> z (B,C,h,w), loss (). z is a sample in training, the mode in evaluation."""
        posterior = self.distribution(h)
        # L_reg of LDM eq. 25
        kl = posterior.kl()
        loss = kl.mean() if self.reduction == "mean" else kl.sum() / len(kl)
        # the decoder practises on noise as large as std: near latents then mean near pictures
        z = posterior.sample() if self.training else posterior.mode()
        return z.to(h.dtype), self.weight * loss

    def latent(self, h: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """h (B,2C,h,w) -> z (B,C,h,w): the mode (for images that are conditions) or a sample (to train on)."""
        posterior = self.distribution(h)
        return (posterior.sample(generator) if sample else posterior.mode()).to(h.dtype)

    def to_decoder(self, z: Tensor) -> Tensor:
        """z (B,C,h,w) -> itself: the decoder is used to noisy latents."""
        return z


def weight_for_means(weight_for_sums: float, latent_shape, image_shape) -> float:
    """The `weight` that makes the same compromise when both losses are means: times latent values over image values.

    >>> round(weight_for_means(1e-6, (4, 32, 32), (3, 256, 256)), 10)
    2.08e-08
    """
    return weight_for_sums * prod(latent_shape) / prod(image_shape)


@torch.no_grad()
def standardize_latents(autoencoder, images) -> None:
    """Give each latent channel mean 0 and variance 1 over `images`, an iterable of (B,C,H,W); in place.

    The variance is that of samples: a channel that the KL term has silenced, all noise, stays silent in its modes. One
    scale factor for all channels (LDM app. G) leaves some of them quiet and others loud. Here the 1x1 convolutions
    beside the bottleneck take up a shift and a scale per channel, one the reverse of the other: reconstructions stay
    as they were.
    """
    posteriors = [autoencoder.bottleneck.distribution(autoencoder.moments(x)) for x in images]
    modes, spreads = (torch.cat([getattr(p, part).transpose(0, 1).flatten(1) for p in posteriors], dim=1)
                      for part in ("mean", "std"))                              # (c, values)
    mean, std = modes.mean(dim=1), (modes.var(dim=1) + spreads.square().mean(dim=1)).sqrt()
    before, after, c = autoencoder.quant_conv, autoencoder.post_quant_conv, len(mean)
    # the first half of the moments are means, which move and shrink; of the log variances, only the size changes
    before.bias[:c] -= mean
    before.bias[c:] -= 2 * std.log()
    before.weight[:c] /= std[:, None, None, None]
    before.bias[:c] /= std
    # the other way round for the decoder
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std[None, :, None, None]
