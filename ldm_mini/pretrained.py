"""Weights from outside: the paper's own models under their own names, and ours under other names.

    unet_preset("cin256-v2"), autoencoder_preset("vq-f4")       the published networks, fresh (presets.py)
    unet_from_compvis(params, state_dict), ...                  released YAML parameters and weights (compvis.py)
    unet_from_diffusers(folder), autoencoder_from_diffusers     as `save_pretrained` writes them (diffusers_io.py)
"""

from .compvis import autoencoder_from_compvis, unet_from_compvis
from .diffusers_io import autoencoder_from_diffusers, unet_from_diffusers
from .diffusers_unet import (
    diffusers_keys,
    unet_config_from_diffusers,
    unet_config_to_diffusers,
    unet_from_diffusers_state,
    unet_to_diffusers_state,
)
from .presets import autoencoder_preset, unet_preset

__all__ = [
    "autoencoder_from_compvis", "autoencoder_from_diffusers", "autoencoder_preset", "diffusers_keys",
    "unet_config_from_diffusers", "unet_config_to_diffusers", "unet_from_compvis", "unet_from_diffusers",
    "unet_from_diffusers_state", "unet_preset", "unet_to_diffusers_state",
]
