"""The paper's own networks by name: every first stage and every U-Net that was released, and Stable Diffusion v1.

    unet_preset("cin256-v2")                                    a network with fresh weights
    with torch.device("meta"): unet_preset("sd-v1")             to count or to draw it: no memory

Source: the YAML files that came with the weights, as the code builds them, not as they say: `attention_resolutions`
are downsampling factors; those that never occur (semantic synthesis, super-resolution) attend nowhere.
"""

from ..autoencoder import Autoencoder, AutoencoderConfig
from ..unet import UNet, UNetConfig
from .first_stages import published

# name: downsampling factor, latent channels, multipliers, levels with attention, attention in the middle, codes (or KL)
FIRST_STAGES = {
    "vq-f4": (4, 3, (1, 2, 4), (), True, 8192),
    "vq-f4-noattn": (4, 3, (1, 2, 4), (), False, 8192),
    "vq-f8": (8, 4, (1, 2, 2, 4), (3,), True, 16384),
    "vq-f8-n256": (8, 4, (1, 2, 2, 4), (3,), True, 256),
    "vq-f16": (16, 8, (1, 1, 2, 2, 4), (4,), True, 16384),
    "kl-f4": (4, 3, (1, 2, 4), (), True, None),
    "kl-f8": (8, 4, (1, 2, 4, 4), (), True, None),
    "kl-f16": (16, 16, (1, 1, 2, 2, 4), (4,), True, None),
    "kl-f32": (32, 64, (1, 1, 2, 2, 4, 4), (4, 5), True, None),
}

_CELEBA = UNetConfig(3, channels=224, channel_mults=(1, 2, 3, 4), attn_levels=(1, 2, 3), head_dim=32)
_SEMANTIC = UNetConfig(3, concat_channels=3, channels=128, channel_mults=(1, 4, 8), attn_levels=(), num_heads=8)
UNETS = {
    "celeba256": _CELEBA, "ffhq256": _CELEBA, "lsun_beds256": _CELEBA,
    "lsun_churches256": UNetConfig(4, channels=192, channel_mults=(1, 2, 2, 4, 4), attn_levels=(0, 1, 2, 3),
                                   num_heads=8, scale_shift=True, resblock_updown=True),
    "cin256": UNetConfig(4, channels=256, channel_mults=(1, 2, 4), attn_levels=(0, 1, 2), head_dim=32,
                         context_dim=512),
    "cin256-v2": UNetConfig(3, channels=192, channel_mults=(1, 2, 3, 5), attn_levels=(1, 2, 3), num_heads=1,
                            context_dim=512),
    "txt2img-1p4B": UNetConfig(4, channels=320, channel_mults=(1, 2, 4, 4), attn_levels=(0, 1, 2), num_heads=8,
                               context_dim=1280),
    "text2img256": UNetConfig(3, channels=192, channel_mults=(1, 2, 3, 5), attn_levels=(1, 2, 3), head_dim=32,
                              context_dim=640),
    "layout2img-openimages256": UNetConfig(3, channels=128, channel_mults=(1, 2, 3, 4), attn_levels=(1, 2, 3),
                                           head_dim=32, context_dim=512, transformer_depth=3),
    "semantic_synthesis256": _SEMANTIC, "semantic_synthesis512": _SEMANTIC,
    "inpainting_big": UNetConfig(3, concat_channels=4, channels=256, channel_mults=(1, 2, 3, 4),
                                 attn_levels=(1, 2, 3), num_heads=8, resblock_updown=True),
    "bsr_sr": UNetConfig(3, concat_channels=3, channels=160, channel_mults=(1, 2, 2, 4), attn_levels=(3,), head_dim=32),
    "rdm768": UNetConfig(16, channels=448, channel_mults=(1, 2, 3, 4), attn_levels=(0, 1, 2), head_dim=32,
                         context_dim=768),
    "sd-v1": UNetConfig(4, channels=320, channel_mults=(1, 2, 4, 4), attn_levels=(0, 1, 2), num_heads=8,
                        context_dim=768),
}
FIRST_STAGE_OF = {name: "vq-f4" for name in UNETS} | {
    "lsun_churches256": "kl-f8", "cin256": "vq-f8", "txt2img-1p4B": "kl-f8", "inpainting_big": "vq-f4-noattn",
    "rdm768": "kl-f16", "sd-v1": "kl-f8"}
LATENT_SIZE = {name: 64 for name in UNETS} | {                 # the side of the latents it was trained on
    "lsun_churches256": 32, "cin256": 32, "txt2img-1p4B": 32, "semantic_synthesis512": 128, "rdm768": 48}
TOKENS = {name: 77 for name, config in UNETS.items() if config.context_dim} | {  # of the context it was trained with
    "cin256": 1, "cin256-v2": 1, "layout2img-openimages256": 92}


def autoencoder_preset(name: str) -> Autoencoder:
    """A released first stage with fresh weights; a U-Net's name gives the one that U-Net was trained with."""
    factor, channels, mults, levels, mid_attn, codes = _find(FIRST_STAGE_OF.get(name, name), FIRST_STAGES)
    return published(AutoencoderConfig(downsample_factor=factor, latent_channels=channels, channel_mults=mults,
                                       attn_levels=levels, mid_attn=mid_attn), codes)


def unet_preset(name: str) -> UNet:
    """A released U-Net with fresh weights."""
    return UNet(_find(name, UNETS))


def _find(name: str, among: dict):
    if name not in among:
        raise ValueError(f"there is no preset {name!r} here; there are {', '.join(among)}.")
    return among[name]
