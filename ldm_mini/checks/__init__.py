"""Checks for the exercises: each takes *your* function, tries it on small inputs, and names the likely mistake.

    from ldm_mini import checks
    checks.box_iou(my_box_iou)

A check prints one line when all is well and raises `CheckFailed` otherwise, so it works in a notebook cell, under
`pytest --nbval` and as an autograder test alike. One file per notebook. Every check is itself tested: known wrong
solutions must fail it, and correct ones written another way must pass (`tests/checks`).

Who is stuck goes on with the course's version: `checks.solve("box_iou")` puts it in place (`stuck.py`).
"""

from .a1_palette import palette, palette_conditioner, palette_error
from .a2_sampler import eight_evaluations
from .a3_first_stage import first_stage_budget, first_stage_training
from .checking import CheckFailed
from .n00_start import guidance, latent_numbers, to_picture
from .n01_data import alpha_over, box_iou, inpainting_input
from .n01_scenes import box_of, obedience, place
from .n02_attention import attention, masked_attention, multi_head
from .n02_order import attention_macs, is_order_blind, undecided
from .n02_painter import painter, painter_step, spatial_transformer
from .n03_codebook import ema_codebook, restart_dead
from .n03_gradients import descend, pulls
from .n03_quantizer import vector_quantizer
from .n03_training import fold_patches, make_decoder, perplexity, vq_vae_step
from .n03_vq_vae import nearest_code, straight_through, vq_loss
from .n04_descent import learn_to_copy, paint, strength_for
from .n04_lpips import lpips
from .n04_perceptual_loss import best_guess, layer_distance, local_mean, ssim_map, unit_normalise
from .n05_game import forgive, gaussian_sample, measured_pulls, vqgan_step
from .n05_patches import footprint, patch_critic
from .n05_players import adaptive_lambda, discriminator_step, vqgan_loss
from .n05_vqgan import gaussian_kl, hinge_losses, receptive_field
from .n06_diffusion import add_noise, ddpm_letters, diffusion_posterior, ideal_x0, to_x0
from .n06_flow import flow_back, flow_training
from .n06_training import denoiser_step, loss_per_t, v_loss
from .n06_walks import ddpm_sampling, grid_bayes, mixture_score, noising_walk
from .n07_parts import ema_update, res_block, timestep_embedding
from .n07_shape import hourglass, what_it_sees
from .n07_time import group_norm, scale_shift, time_layers
from .n07_training import unet_train_step, unet_training
from .n07_unet import decoder_channels, through_the_u, unet
from .n08_loops import ddim_inversion, ddim_walk, dpm_walk
from .n08_samplers import batched_guidance, ddim_step, ddpm_step, sampling_timesteps
from .n08_solvers import dpm_step, euler_step
from .n08_tools import clipping, forgotten_variance, mixture_x0, slerp, sliced_wasserstein
from .n09_latent_diffusion import compression, freeze, latent_loss, latent_sample, scale_factor
from .n09_training import joint_losses, joint_step, latent_train_step, latent_training, lr_factor
from .n10_guidance import conditional_loss, guided_denoiser
from .n10_meaning import class_tokens, drop_conditions, text_transformer, word_maps
from .n11_pictures import class_shares, inpaint_condition, join_lowres, keep_known, paste, widen
from .n11_sampling import known_latents, noise_again, replace_and_draw, superres_sample
from .n11_training import linear_enlarger, superres_loss, transplant
from .n12_layouts import box_tokens, draw_subsets, join_conditions, shuffle_objects, two_guidances
from .n12_painter import box_painter, decode_boxes, encode_layout, train_painter, with_map
from .n13_corners import corner_step, found_corner, shift_error
from .n13_where import border_reach, coordinates, knows_where, order_error, probe
from .n14_flow import as_flow, class_gradient, flow_loss, velocity_from_score
from .n14_steps import crookedness, flow_walk, heun_walk, local_errors, reflow_step, shortcut_target
from .n15_blocks import dit_block, read_as_tokens, small_dit, start_as_identity
from .n15_scaling import block_flops, frontier, points, power_law
from .n15_tokens import from_tokens, place_code, shuffle_patches, to_tokens
from .n16_blocks import from_blocks, to_blocks
from .n16_films import film_flops, film_tokens, first_frame, motion_told, shared_noise
from .n16_networks import over_time, small_video_dit, through_frames
from .n17_functions import ddim, join_qkv, owned, quantise, released_attention
from .n17_modules import attend, compared, image_attention, small_unet, time_embedding
from .n17_real_thing import block_from_compvis, epsilon, pooled_scale, res_block_parameters, split_qkv
from .n18_conditions import caption_spread, test_condition, test_drop_labels
from .n18_diffusion import ddpm_constants, test_through_u, test_walk, weighted_loss
from .n18_first_stage import test_cache, test_load_heads, test_scale, test_vq_loss
from .n18_mends import mended_condition, mended_drop_labels, mended_through_u, mended_vq_loss, mended_walk
from .n18_training import preview, stopwatch, without_gradient
from .stuck import solve, with_a_way_on

__all__ = [
    "CheckFailed", "adaptive_lambda", "add_noise", "alpha_over", "as_flow", "attend", "attention", "attention_macs",
    "batched_guidance", "best_guess", "block_flops", "block_from_compvis", "border_reach", "box_iou", "box_of",
    "box_painter", "box_tokens", "caption_spread", "class_gradient", "class_shares", "class_tokens", "clipping",
    "compared", "compression", "conditional_loss", "coordinates", "corner_step", "crookedness", "ddim",
    "ddim_inversion", "ddim_step", "ddim_walk", "ddpm_constants", "ddpm_letters", "ddpm_sampling", "ddpm_step",
    "decode_boxes", "decoder_channels", "denoiser_step", "descend", "diffusion_posterior", "discriminator_step",
    "dit_block", "dpm_step", "dpm_walk", "draw_subsets", "drop_conditions", "eight_evaluations", "ema_codebook",
    "ema_update", "encode_layout", "epsilon", "euler_step", "film_flops", "film_tokens", "first_frame",
    "first_stage_budget", "first_stage_training", "flow_back", "flow_loss", "flow_training", "flow_walk",
    "fold_patches", "footprint", "forgive", "forgotten_variance", "found_corner", "freeze", "from_blocks",
    "from_tokens", "frontier", "gaussian_kl", "gaussian_sample", "grid_bayes", "group_norm", "guidance",
    "guided_denoiser", "heun_walk", "hinge_losses", "hourglass", "ideal_x0", "image_attention", "inpaint_condition",
    "inpainting_input", "is_order_blind", "join_conditions", "join_lowres", "join_qkv", "joint_losses", "joint_step",
    "keep_known", "known_latents", "knows_where", "latent_loss", "latent_numbers", "latent_sample", "latent_train_step",
    "latent_training", "layer_distance", "learn_to_copy", "linear_enlarger", "local_errors", "local_mean", "loss_per_t",
    "lpips", "lr_factor", "make_decoder", "masked_attention", "measured_pulls", "mended_condition",
    "mended_drop_labels", "mended_through_u", "mended_vq_loss", "mended_walk", "mixture_score", "mixture_x0",
    "motion_told", "multi_head", "nearest_code", "noise_again", "noising_walk", "obedience", "order_error", "over_time",
    "owned", "paint", "painter", "painter_step", "palette", "palette_conditioner", "palette_error", "paste",
    "patch_critic", "perplexity", "place", "place_code", "points", "pooled_scale", "power_law", "preview", "probe",
    "pulls", "quantise", "read_as_tokens", "receptive_field", "reflow_step", "released_attention", "replace_and_draw",
    "res_block", "res_block_parameters", "restart_dead", "sampling_timesteps", "scale_factor", "scale_shift",
    "shared_noise", "shift_error", "shortcut_target", "shuffle_objects", "shuffle_patches", "slerp",
    "sliced_wasserstein", "small_dit", "small_unet", "small_video_dit", "solve", "spatial_transformer", "split_qkv",
    "ssim_map", "start_as_identity", "stopwatch", "straight_through", "strength_for", "superres_loss",
    "superres_sample", "test_cache", "test_condition", "test_drop_labels", "test_load_heads", "test_scale",
    "test_through_u", "test_vq_loss", "test_walk", "text_transformer", "through_frames", "through_the_u",
    "time_embedding", "time_layers", "timestep_embedding", "to_blocks", "to_picture", "to_tokens", "to_x0",
    "train_painter", "transplant", "two_guidances", "undecided", "unet", "unet_train_step", "unet_training",
    "unit_normalise", "v_loss", "vector_quantizer", "velocity_from_score", "vq_loss", "vq_vae_step", "vqgan_loss",
    "vqgan_step", "weighted_loss", "what_it_sees", "widen", "with_map", "without_gradient", "word_maps",
]

# what a learner meets is the check with its way on
for _name in set(__all__) - {"CheckFailed", "solve"}:
    globals()[_name] = with_a_way_on(globals()[_name])
