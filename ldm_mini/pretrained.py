"""Weights from outside: the paper's own models under their own names, and ours under other names.

    unet_preset("cin256-v2"), autoencoder_preset("vq-f4")       the published networks, fresh             presets
    unet_from_compvis(params, state_dict), ...                  released parameters and weights           compvis
    from_compvis(yaml_path, ckpt_path)                          a whole released model                    compvis_models
    unet_from_diffusers(folder), autoencoder_from_diffusers     what `save_pretrained` wrote              diffusers_io
    from_diffusers(folder)                                      a whole Stable Diffusion pipeline         pipelines
    to_diffusers(model, folder)                                 what was trained here, for diffusers      pipelines

All come in evaluation mode, hold one copy of their weights (views of the file, as far as it can be mapped), and refuse
what they do not know by name.
"""

from .compvis import autoencoder_from_compvis, unet_from_compvis
from .compvis_models import from_compvis
from .diffusers_io import autoencoder_from_diffusers, unet_from_diffusers
from .diffusers_unet import (
    diffusers_keys,
    unet_config_from_diffusers,
    unet_config_to_diffusers,
    unet_from_diffusers_state,
    unet_to_diffusers_state,
)
from .pipelines import from_diffusers, to_diffusers
from .presets import autoencoder_preset, unet_preset

__all__ = [
    "autoencoder_from_compvis", "autoencoder_from_diffusers", "autoencoder_preset", "diffusers_keys", "from_compvis",
    "from_diffusers", "to_diffusers", "unet_config_from_diffusers", "unet_config_to_diffusers", "unet_from_compvis",
    "unet_from_diffusers", "unet_from_diffusers_state", "unet_preset", "unet_to_diffusers_state",
]
