"""The paper's own models, and other programs': published shapes (presets, first_stages), their conditions, weights
read without running code (reading), other programs' words for our parts (names; CompVis': compvis, compvis_model;
diffusers': diffusers_unet, diffusers_parts, diffusers_pipeline), MiniLM (language), what a model is made of (sizes).
"""

from .compvis import autoencoder_from_compvis, unet_from_compvis
from .compvis_model import from_compvis
from .conditioners import TextEncoder
from .diffusers_parts import autoencoder_from_diffusers, unet_from_diffusers
from .diffusers_pipeline import from_diffusers, to_diffusers
from .diffusers_unet import unet_from_diffusers_state, unet_to_diffusers_state
from .presets import FIRST_STAGE_OF, FIRST_STAGES, LATENT_SIZE, TOKENS, UNETS, autoencoder_preset, unet_preset
from .reading import on_meta, read_weights
from .sizes import measure

__all__ = [
    "FIRST_STAGES", "FIRST_STAGE_OF", "LATENT_SIZE", "TOKENS", "TextEncoder", "UNETS", "autoencoder_from_compvis",
    "autoencoder_from_diffusers", "autoencoder_preset", "from_compvis", "from_diffusers", "measure", "on_meta",
    "read_weights", "to_diffusers", "unet_from_compvis", "unet_from_diffusers", "unet_from_diffusers_state",
    "unet_preset", "unet_to_diffusers_state",
]
