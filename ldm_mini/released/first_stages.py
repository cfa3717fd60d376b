"""What all published first stages share: their bottlenecks, and one way to name and to load them."""

import re

import torch
from torch import Tensor

from ..autoencoder import Autoencoder, AutoencoderConfig
from ..kl import KLBottleneck
from ..quantizer import VectorQuantizer, VQBottleneck
from .names import reworded
from .reading import fit


def published(config: AutoencoderConfig, codes: int | None = None) -> Autoencoder:
    """A first stage with fresh weights: KL, or VQ where there are codes; none of them was ever started again."""
    dim = config.latent_channels
    if codes is None:
        return Autoencoder(config, KLBottleneck(dim))
    return Autoencoder(config, VQBottleneck(VectorQuantizer(codes, dim, restart_after=None, init="uniform")))


def first_stage_names(autoencoder: Autoencoder, words: dict[str, str], by_size: bool = False) -> dict[str, str]:
    """{our key: the name elsewhere} of every weight.

    words: {ours: theirs} (see `reworded`), where WAY stands for "down" in the encoder and "up" in the decoder.
    by_size: count the decoder's levels from the largest, not in the order they run.
    """
    names, last = {}, len(autoencoder.config.widths) - 1
    for key in autoencoder.state_dict():
        if not key.startswith("bottleneck."):
            name = re.sub(r"(?<=decoder\.levels\.)\d+", lambda i: str(last - int(i[0])), key) if by_size else key
            names[key] = reworded(name, words).replace("WAY", "down" if key.startswith("encoder.") else "up")
    if isinstance(autoencoder.bottleneck, VQBottleneck):
        names["bottleneck.quantizer.codebook"] = "quantize.embedding.weight"
    return names


def fit_first_stage(autoencoder: Autoencoder, names: dict, weights: dict[str, Tensor],
                    dtype: torch.dtype | None = None) -> Autoencoder:
    """`fit`, and the buffers of our quantiser, which no file has: as of a trained one, nothing counted yet."""
    constants = {}
    if isinstance(autoencoder.bottleneck, VQBottleneck):
        trained = VectorQuantizer(autoencoder.bottleneck.quantizer.codebook_size, 1, init="uniform")
        constants = {f"bottleneck.quantizer.{name}": value for name, value in trained.named_buffers()}
    return fit(autoencoder, names, weights, constants, dtype)
