"""Checks for the exercises: each takes *your* function, tries it on small inputs, and names the likely mistake.

    from ldm_mini import checks
    checks.box_iou(my_box_iou)

A check prints one line when all is well and raises `CheckFailed` otherwise, so it works in a notebook cell, under
`pytest --nbval` and as an autograder test alike. One file per notebook. Every check is itself tested: known wrong
solutions must fail it, and correct ones written another way must pass (`tests/checks`).

Who is stuck goes on with the course's version: `checks.solve("box_iou")` puts it in place (`stuck.py`).
"""

from .checking import CheckFailed
from .n00_start import guidance, latent_numbers, to_picture
from .n01_data import alpha_over, box_iou, inpainting_input
from .n02_attention import attention, masked_attention, multi_head
from .n02_order import attention_macs, is_order_blind
from .n03_codebook import ema_codebook, restart_dead
from .n03_quantizer import vector_quantizer
from .n03_vq_vae import nearest_code, straight_through, vq_loss
from .n04_lpips import lpips
from .n04_perceptual_loss import best_guess, layer_distance, ssim_map, unit_normalise
from .n05_players import adaptive_lambda, discriminator_step, vqgan_loss
from .n05_vqgan import gaussian_kl, hinge_losses, receptive_field
from .n06_diffusion import add_noise, ddpm_letters, diffusion_posterior, ideal_x0, to_x0
from .n07_parts import ema_update, res_block, timestep_embedding
from .n07_shape import hourglass, what_it_sees
from .n07_time import group_norm, scale_shift, time_layers
from .n07_training import unet_train_step, unet_training
from .n07_unet import decoder_channels, through_the_u, unet
from .n08_samplers import batched_guidance, ddim_step, ddpm_step, sampling_timesteps
from .n08_solvers import dpm_step, euler_step
from .n09_latent_diffusion import compression, freeze, latent_loss, latent_sample, scale_factor
from .n09_training import joint_losses, latent_train_step, latent_training, lr_factor
from .n10_meaning import class_tokens, drop_conditions, text_transformer, word_maps
from .n11_pictures import class_shares, inpaint_condition, join_lowres, keep_known, paste, widen
from .n12_layouts import box_tokens, draw_subsets, join_conditions, shuffle_objects, two_guidances
from .n13_corners import corner_step, found_corner, shift_error
from .n13_where import border_reach, coordinates, knows_where, order_error, probe
from .n17_real_thing import block_from_compvis, epsilon, pooled_scale, res_block_parameters, split_qkv
from .stuck import solve, with_a_way_on

__all__ = [
    "CheckFailed", "adaptive_lambda", "add_noise", "alpha_over", "attention", "attention_macs", "batched_guidance",
    "best_guess", "block_from_compvis", "border_reach", "box_iou", "box_tokens", "class_shares", "class_tokens",
    "compression", "coordinates", "corner_step", "ddim_step", "ddpm_letters", "ddpm_step", "decoder_channels",
    "diffusion_posterior", "discriminator_step", "dpm_step", "draw_subsets", "drop_conditions", "ema_codebook",
    "ema_update", "epsilon", "euler_step", "found_corner", "freeze", "gaussian_kl", "group_norm", "guidance",
    "hinge_losses", "hourglass", "ideal_x0", "inpaint_condition", "inpainting_input", "is_order_blind",
    "join_conditions", "join_lowres", "joint_losses", "keep_known", "knows_where", "latent_loss", "latent_numbers",
    "latent_sample", "latent_train_step", "latent_training", "layer_distance", "lpips", "lr_factor",
    "masked_attention", "multi_head", "nearest_code", "order_error", "paste", "pooled_scale", "probe",
    "receptive_field", "res_block", "res_block_parameters", "restart_dead", "sampling_timesteps", "scale_factor",
    "scale_shift", "shift_error", "shuffle_objects", "solve", "split_qkv", "ssim_map", "straight_through",
    "text_transformer", "through_the_u", "time_layers", "timestep_embedding", "to_picture", "to_x0", "two_guidances",
    "unet", "unet_train_step", "unet_training", "unit_normalise", "vector_quantizer", "vq_loss", "vqgan_loss",
    "what_it_sees", "widen", "word_maps",
]

# what a learner meets is the check with its way on
for _name in set(__all__) - {"CheckFailed", "solve"}:
    globals()[_name] = with_a_way_on(globals()[_name])
