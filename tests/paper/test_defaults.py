"""What nobody says is what the paper, or the table that the docstring names, says."""

import inspect

import pytest

from ldm_mini.attention import Attention, AttentionBlock, SpatialTransformer
from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.blocks import Downsample, ResBlock, TimeEmbedding, group_norm, timestep_embedding
from ldm_mini.concat_conditioners import InpaintConditioner, LowResConditioner, SemanticConditioner
from ldm_mini.conditioners import CombinedConditioner, LayoutConditioner, TextConditioner
from ldm_mini.diffusion import diffusion_loss, draw_timesteps, make_denoiser
from ldm_mini.discriminator import PatchDiscriminator
from ldm_mini.distortions import degrade
from ldm_mini.dit import DiTConfig
from ldm_mini.ema import EMA, ema_decay
from ldm_mini.kl import KLBottleneck
from ldm_mini.latent_diffusion import LatentDiffusion, latent_scale
from ldm_mini.measure.metrics import precision_recall
from ldm_mini.muon import hidden_weights
from ldm_mini.quantizer import VectorQuantizer, VQBottleneck
from ldm_mini.samplers import ddim, ddpm, dpm_solver, euler, heun, repaint
from ldm_mini.schedule import NoiseSchedule, cosine_betas, linear_betas, scaled_linear_betas
from ldm_mini.tasks import TEXT_GUIDANCE
from ldm_mini.text import TextTransformer
from ldm_mini.train import FirstStageLoss, TrainState, lr_factor, train_autoencoder, train_diffusion
from ldm_mini.unet import UNetConfig
from ldm_mini.video import VideoDiTConfig
from ldm_mini.video_diffusion import LatentVideoDiffusion

WALK = dict(generator=None, spacing="trailing", offset=0)
DEFAULTS = [
    (linear_betas, dict(steps=1000, start=1e-4, end=2e-2)),                     # DDPM, sec. 4
    (scaled_linear_betas, dict(steps=1000, start=0.0015, end=0.0195)),          # LDM, Tab. 12 to 15
    (cosine_betas, dict(steps=1000)),
    (NoiseSchedule.timesteps, dict(spacing="leading", offset=0)),
    (NoiseSchedule.alpha, dict(ndim=4)), (NoiseSchedule.sigma, dict(ndim=4)),
    (diffusion_loss, dict(prediction="eps", t=None, eps=None, generator=None, weight=None, reduce=True)),
    (make_denoiser, dict(null=None, guidance_scale=1.0, prediction="eps", clip_x0=None)),
    (draw_timesteps, dict(generator=None, power=1.0)),
    (ddpm, dict(WALK, steps=50)), (euler, dict(WALK, steps=50, view="flow")),
    (heun, dict(WALK, steps=20, view="flow")),
    (ddim, dict(WALK, steps=50, eta=0.0, clean_end=True)),                      # deterministic
    (dpm_solver, dict(WALK, steps=20, order=2)),                                # "2M"
    (repaint, dict(WALK, steps=50, repeats=1)),
    (VectorQuantizer, dict(codebook_size=512, dim=3, commitment_weight=0.25, ema_decay=None, restart_after=100,
                           init="data")),                                       # VQ-VAE: beta = 0.25; Jukebox: restarts
    (KLBottleneck, dict(latent_channels=4, weight=1e-6, reduction="mean")),
    (PatchDiscriminator, dict(in_channels=3, channels=64, num_layers=3)),       # pix2pix: 70 pixels
    (FirstStageLoss, dict(perceptual_weight=1.0, perceptual_start=0, mse_weight=0.0, disc_weight=0.75, disc_start=0)),
    (group_norm, dict(groups=32, eps=1e-6)),
    (timestep_embedding, dict(to_the_end=False)),
    (ResBlock, dict(time_dim=None, groups=32, eps=1e-6, dropout=0.0, scale_shift=False, zero_init=False,
                    resample=None)),
    (SpatialTransformer, dict(num_heads=None, head_dim=None, depth=1, groups=32)),
    (AttentionBlock, dict(num_heads=None, head_dim=None, groups=32, eps=1e-6, zero_init=False)),
    (UNetConfig, dict(out_channels=None, channels=128, channel_mults=(1, 2, 4), num_res_blocks=2, attn_levels=(1, 2),
                      num_heads=None, head_dim=32, context_dim=None, transformer_depth=1, vector_dim=None,
                      concat_channels=0, groups=32, scale_shift=False, resblock_updown=False, dropout=0.0)),
    (DiTConfig, dict(in_channels=4, out_channels=None, patch_size=2, width=384, depth=12, num_heads=6, input_size=32,
                     num_classes=None, vector_dim=None, context_dim=None, context="cross", positions=True,
                     concat_channels=0, mlp_norm_eps=1e-6, time_code_to_the_end=False,
                     own_embeddings=False)),                                    # DiT-S/2
    (TextTransformer, dict(width=256, layers=4, heads=4, max_length=24, tokenizer=None, known=None, vocabulary=None)),
    (AutoencoderConfig, dict(in_channels=3, downsample_factor=4, latent_channels=3, channels=128, channel_mults=None,
                             num_res_blocks=2, attn_levels=(), mid_attn=True, groups=32, patch_size=1, dropout=0.0,
                             decoder_channels=None, decoder_blocks=None, z_channels=None)),
    (Autoencoder.encode, dict(sample=False, generator=None)), (Autoencoder.decode, dict(quantize=True)),
    (KLBottleneck.latent, dict(sample=False, generator=None)),
    (VQBottleneck.latent, dict(sample=False, generator=None)),
    (LatentDiffusion.encode, dict(sample=False)),
    (Attention, dict(context_dim=None, num_heads=None, head_dim=None, qkv_bias=False)),
    (TimeEmbedding, dict(time_dim=None, to_the_end=False)), (Downsample, dict(asymmetric=False)),
    (LowResConditioner, dict(presence=False, lowres_factor=4, p_degrade=0.5)),
    (SemanticConditioner, dict(presence=False, channels=8, width=16)),
    (InpaintConditioner, dict(presence=False, mask_fold=1)),                    # the paper's mask: one channel
    (TextConditioner, dict(vector=True)),
    (LayoutConditioner, dict(max_objects=3, grid=16, layers=2, heads=4, vector=True)),
    (CombinedConditioner, dict(p_drop_each=0.0, p_single=0.0, weights=None)),
    (degrade, dict(generator=None, exposure=0.15, blur=(0.4, 1.4))),
    (hidden_weights, dict(smallest=48, largest=384)),
    (LatentDiffusion.sample, dict(batch=None, num=None, steps=20, guidance_scale=TEXT_GUIDANCE, sampler="dpm",
                                  generator=None, seed=None, size=None, negative=None)),
    (precision_recall, dict(k=3)),                                              # as Kynkaanniemi et al.
    (EMA, dict(max_decay=0.9999)), (ema_decay, dict(max_decay=0.9999)),         # LDM, app. E
    (LatentDiffusion, dict(conditioner=None, prediction="eps", p_uncond=0.1, scale_factor=1.0, image_size=None)),
    (LatentVideoDiffusion, dict(conditioner=None, prediction="eps", p_uncond=0.1, scale_factor=1.0, image_size=None,
                                frames=8, noise_share=0.0)),
    (VideoDiTConfig, dict(patch_size=1, patch_frames=1, width=192, depth=4, num_heads=6, input_size=8,
                          context_dim=None, vector_dim=None, concat_channels=0)),
    (LatentDiffusion.loss, dict(t_power=1.0)),
    (LatentDiffusion.denoiser, dict(batch=None, guidance_scale=1.0, negative=None, clip_x0=None, size=None)),
    (latent_scale, dict(limit=64)),
    (TrainState, dict(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01, grad_clip=1.0, ema_decay=None, seed=None,
                      bf16=False, accelerator=None, adversary=None, muon_lr=None, slower=None)),
    (TrainState.update, dict(factor=1.0)),
    (lr_factor, dict(warmup=0, decay="cosine")),
    (train_autoencoder, dict(perceptual=None, warmup=0, decay="constant")),
    (train_diffusion, dict(warmup=0, decay="constant", t_power=1.0)),
]


@pytest.mark.parametrize("function, defaults", DEFAULTS, ids=lambda v: getattr(v, "__qualname__", ""))
def test_defaults_are_the_papers(function, defaults):
    given = inspect.signature(function).parameters.items()
    assert {name: p.default for name, p in given if p.default is not p.empty} == defaults
