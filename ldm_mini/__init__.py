"""ldm_mini: latent diffusion models, small and finished. The names below are in the order of the paper.

`import ldm_mini` loads nothing but this list; a name brings its file when it is first used:
`ldm_mini.VectorQuantizer` is `from ldm_mini.quantizer import VectorQuantizer`.
"""

import importlib

__version__ = "0.1.0"

CONTENTS = {
    # the pictures
    "scenes": ("SceneConfig",),
    "data": ("EmojiScenes", "scene_stream"),
    # first stage: perceptual compression (LDM sec. 3.1)
    "blocks": ("ResBlock", "Downsample", "Upsample", "TimeEmbedding", "timestep_embedding"),
    "quantizer": ("VectorQuantizer", "VQBottleneck"),
    "kl": ("DiagonalGaussian", "KLBottleneck"),
    "autoencoder": ("AutoencoderConfig", "Encoder", "Decoder", "Autoencoder"),
    "perceptual": ("PerceptualLoss",),
    "discriminator": ("PatchDiscriminator", "hinge_d_loss", "hinge_g_loss", "adaptive_weight"),
    # second stage: diffusion (sec. 3.2)
    "schedule": ("NoiseSchedule", "linear_betas", "scaled_linear_betas", "cosine_betas"),
    "diffusion": ("prediction_target", "to_x0_eps", "diffusion_loss", "make_denoiser", "ideal_denoiser"),
    "samplers": ("ddpm", "ddim", "dpm_solver", "euler", "SAMPLERS"),
    "attention": ("Attention", "FeedForward", "TransformerBlock", "SpatialTransformer", "AttentionBlock"),
    "unet": ("UNetConfig", "UNet"),
    "dit": ("DiTConfig", "DiT"),
    # conditioning (sec. 3.3)
    "cond": ("Cond",),
    "text": ("TextTransformer", "load_tokenizer"),
    "conditioning": ("Conditioner",),
    "layout_conditioner": ("LayoutConditioner",),
    "concat_conditioners": ("LowResConditioner", "SemanticConditioner", "InpaintConditioner"),
    "conditioners": ("ClassConditioner", "TextConditioner", "CombinedConditioner"),
    "latent_diffusion": ("LatentDiffusion", "latent_scale"),
    "tasks": ("TASKS", "sample_task"),
    # training, and what came of it (sec. 4, appendix E)
    "ema": ("EMA",),
    "latents": ("LatentCache", "cache_latents"),
    "train": ("TrainState", "train_autoencoder", "train_diffusion"),
    "presets": ("autoencoder_preset", "unet_preset"),
    "pretrained": ("from_compvis", "from_diffusers", "to_diffusers"),
    "recipes": ("AUTOENCODERS", "DIFFUSIONS", "find_recipe"),
}
_FILE_OF = {name: file for file, names in CONTENTS.items() for name in names}
__all__ = list(_FILE_OF)


def __getattr__(name: str):
    if name not in _FILE_OF:
        raise AttributeError(f"module 'ldm_mini' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_FILE_OF[name]}", __name__), name)


def __dir__():
    return sorted([*globals(), *__all__])
