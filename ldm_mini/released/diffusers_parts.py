"""First stages, U-Nets and DiTs as diffusers' `save_pretrained` writes them: folders of config.json and weights."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from ..autoencoder import Autoencoder, AutoencoderConfig
from ..dit import DiT, DiTConfig
from ..files import FileError, save_safetensors, write_json
from ..quantizer import VQBottleneck
from ..unet import UNet
from .diffusers_unet import multiples, unet_config_to_diffusers, unet_from_diffusers_state, unet_to_diffusers_state
from .first_stages import first_stage_names, fit_first_stage, published
from .names import ATTENTION_WORDS, require, reworded
from .reading import fit, on_meta, read_folder

DIFFUSERS = "0.31.0"                            # the version that reads what is written here
# What leaves no trace in the weights but changes the output: only these values are ours, the first of them by default.
STAGE_FIXED = {"act_fn": ("silu", "swish"), "norm_type": ("group",), "use_quant_conv": (True,), "shift_factor": (None,),
               "use_post_quant_conv": (True,), "latents_mean": (None,), "latents_std": (None,)}
DIT_FIXED = {"activation_fn": ("gelu-approximate",), "norm_type": ("ada_norm_zero",), "attention_bias": (True,),
             "norm_elementwise_affine": (False,), "cross_attention_dim": (None,), "double_self_attention": (False,)}
STAGE_WORDS = ATTENTION_WORDS | {
    "shortcut": "conv_shortcut", "norm_out": "conv_norm_out", "middle.block1": "mid_block.resnets.0",
    "middle.attn": "mid_block.attentions.0", "middle.block2": "mid_block.resnets.1", "levels": "WAY_blocks",
    "blocks": "resnets", "attns": "attentions", "resize": "WAYsamplers.0"}
DIT_WORDS = {"embeddings": "transformer_blocks", "blocks": "transformer_blocks", "attn.to_out": "attn1.to_out.0",
             "attn": "attn1", "mlp.0": "ff.net.0.proj", "mlp.2": "ff.net.2", "modulation": "norm1.linear",
             "time.linear1": "norm1.emb.timestep_embedder.linear_1", "patchify": "pos_embed.proj",
             "time.linear2": "norm1.emb.timestep_embedder.linear_2", "modulation_out": "proj_out_1",
             "classes": "norm1.emb.class_embedder.embedding_table", "proj_out": "proj_out_2"}
OLD_WORDS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before diffusers 0.17


def unet_from_diffusers(folder, dtype: torch.dtype | None = None) -> nn.Module:
    """The network of a folder: a UNet2DConditionModel, UNet2DModel (-> UNet) or DiTTransformer2DModel (-> DiT).

    A pipeline's folder will do: its part "unet" or "transformer" is taken. dtype: of the weights; None = as stored.
    Raises FileError, a ValueError, that lists what is unknown, missing or of another shape.
    """
    return _load(folder, ("unet", "transformer"), dtype, {
        "UNet2DConditionModel": unet_from_diffusers_state, "UNet2DModel": unet_from_diffusers_state,
        "DiTTransformer2DModel": dit_from_diffusers_state, "Transformer2DModel": dit_from_diffusers_state})


def autoencoder_from_diffusers(folder, dtype: torch.dtype | None = None) -> Autoencoder:
    """The first stage of a folder: an AutoencoderKL or VQModel. A pipeline's folder will do: "vae" or "vqvae" is taken.

    Raises FileError, a ValueError, that lists what is unknown, missing or of another shape.
    """
    return _load(folder, ("vae", "vqvae"), dtype, {
        "AutoencoderKL": autoencoder_from_diffusers_state, "VQModel": autoencoder_from_diffusers_state})


def _load(folder, parts: tuple, dtype, known: dict) -> nn.Module:
    """What a folder, or the part of a pipeline in it, holds. known: {class of diffusers: what loads its weights}."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        folder = next((folder / part for part in parts if (folder / part).is_dir()), folder)
    config, state = read_folder(folder)
    if (name := config.get("_class_name")) not in known:
        raise FileError(f"{folder} holds a {name}; known are {', '.join(known)}.")
    # attention's names in files of older versions, as they are today
    state = {reworded(name, OLD_WORDS) if ".attentions." in name else name: value for name, value in state.items()}
    return known[name](config, state, dtype)


def save_diffusers(model: nn.Module, folder, sample_size: int | None = None, scaling_factor: float = 1.0) -> Path:
    """Write a UNet, a DiT or an Autoencoder as the class of diffusers that computes the same, or raise ValueError."""
    config, state = diffusers_form(model, sample_size, scaling_factor)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_safetensors(folder / "diffusion_pytorch_model.safetensors", state)
    write_json(folder / "config.json", config)
    return folder


def diffusers_form(model: nn.Module, sample_size: int | None = None, scaling_factor: float = 1.0) -> tuple[dict, dict]:
    """(config, weights) of the class of diffusers that computes what this model does; ValueError if there is none."""
    if isinstance(model, UNet):
        name = "UNet2DModel" if model.config.context_dim is None else "UNet2DConditionModel"
        config, state = unet_config_to_diffusers(model.config, sample_size), unet_to_diffusers_state(model)
    elif isinstance(model, DiT):
        name, config, own = "DiTTransformer2DModel", dit_config_to_diffusers(model.config), model.state_dict()
        state = {theirs: own[ours] for ours, names in dit_diffusers_keys(model).items() for theirs in names}
    elif isinstance(model, Autoencoder):
        name = "VQModel" if isinstance(model.bottleneck, VQBottleneck) else "AutoencoderKL"
        config = autoencoder_config_to_diffusers(model, sample_size) | {"scaling_factor": scaling_factor}
        own = model.state_dict()
        state = {theirs: own[ours] for ours, theirs in first_stage_names(model, STAGE_WORDS).items()}
    else:
        raise ValueError(f"to_diffusers: diffusers has no class for a {type(model).__name__}.")
    return {"_class_name": name, "_diffusers_version": DIFFUSERS, **config}, state


def autoencoder_from_diffusers_state(config: dict, state: dict[str, Tensor], dtype=None) -> Autoencoder:
    """An Autoencoder with the weights of an AutoencoderKL or VQModel: its `config` and its `state_dict()`."""
    autoencoder = on_meta(autoencoder_of_diffusers, config)
    return fit_first_stage(autoencoder, first_stage_names(autoencoder, STAGE_WORDS), state, dtype)


def autoencoder_of_diffusers(config: dict) -> Autoencoder:
    """The first stage that diffusers builds from a config, with fresh weights."""
    # the levels of the decoder mirror the encoder's, and pictures go in and out
    attended = ["Attn" in kind for kind in config["down_block_types"]]
    mirrored = {name: (kinds, tuple(kinds)) for name, kinds in _stage_types(attended).items()}
    require("first stage", config, STAGE_FIXED | mirrored | {"out_channels": (config["in_channels"],)})
    z, codes, widths = config["latent_channels"], config.get("num_vq_embeddings"), list(config["block_out_channels"])
    dim = z if codes is None else config.get("vq_embed_dim") or z
    return published(AutoencoderConfig(
        in_channels=config["in_channels"], downsample_factor=2 ** (len(widths) - 1), latent_channels=dim,
        channels=widths[0], channel_mults=multiples(widths), num_res_blocks=config["layers_per_block"],
        attn_levels=tuple(i for i, yes in enumerate(attended) if yes), groups=config["norm_num_groups"],
        mid_attn=config.get("mid_block_add_attention", True), z_channels=None if z == dim else z), codes)


def autoencoder_config_to_diffusers(autoencoder: Autoencoder, sample_size: int | None = None) -> dict:
    """Keyword arguments of the VQModel or AutoencoderKL that computes what this first stage does."""
    c, vq = autoencoder.config, isinstance(autoencoder.bottleneck, VQBottleneck)
    if c.patch_size != 1 or c.channel_mults[0] != 1 or not vq and c.z_channels not in (None, c.latent_channels):
        raise ValueError("to_diffusers: first stages of diffusers have patch_size=1, channel_mults that begin with 1, "
                         f"and, if KL, no z_channels of their own; got {c}.")
    config = dict(
        in_channels=c.in_channels, out_channels=c.in_channels, block_out_channels=c.widths,
        **_stage_types([level in c.attn_levels for level in range(len(c.widths))]),
        layers_per_block=c.num_res_blocks, latent_channels=c.z_channels or c.latent_channels, norm_num_groups=c.groups,
        mid_block_add_attention=c.mid_attn, sample_size=sample_size or 8 * c.downsample_factor)
    if vq:
        config |= dict(num_vq_embeddings=autoencoder.bottleneck.quantizer.codebook_size, vq_embed_dim=c.latent_channels)
    return config


def _stage_types(attended: list[bool]) -> dict[str, list[str]]:
    """Of the encoder's levels, and of the decoder's."""
    down = ["AttnDownEncoderBlock2D" if yes else "DownEncoderBlock2D" for yes in attended]
    up = [kind.replace("DownEncoder", "UpDecoder") for kind in reversed(down)]
    return {"down_block_types": down, "up_block_types": up}


def dit_from_diffusers_state(config: dict, state: dict[str, Tensor], dtype=None) -> DiT:
    """A DiT with the weights of a DiTTransformer2DModel: its `config` and its `state_dict()`.

    Its class table comes along: cond.vector holds classes (B,), the number of classes meaning none. There each block
    keeps an embedding of time and class; in all published weights they are copies, and then only one is kept.
    """
    state = {name: value for name, value in state.items() if name != "pos_embed.pos_embed"}     # a constant
    # under the name that it has in the first block, what every block has for itself
    first = {name: re.sub(r"(?<=^transformer_blocks\.)\d+(?=\.norm1\.emb\.)", "0", name) for name in state}
    copies = all(name == one or one in state and torch.equal(state[one], state[name]) for name, one in first.items())
    if copies:
        state = {name: value for name, value in state.items() if name == first[name]}
    net = on_meta(DiT, dit_config_from_diffusers(config, own_embeddings=not copies))
    return fit(net, {key: names[0] for key, names in dit_diffusers_keys(net).items()}, state, dtype=dtype)


def dit_config_from_diffusers(config: dict, own_embeddings: bool = False) -> DiTConfig:
    """Our config for that of a DiTTransformer2DModel. own_embeddings: whether its weights have one for each block."""
    require("DiT", config, DIT_FIXED)
    return DiTConfig(
        in_channels=config["in_channels"], out_channels=config.get("out_channels"), patch_size=config["patch_size"],
        width=config["attention_head_dim"] * config["num_attention_heads"], depth=config["num_layers"],
        num_heads=config["num_attention_heads"], input_size=config["sample_size"],
        num_classes=config["num_embeds_ada_norm"], mlp_norm_eps=config.get("norm_eps", 1e-5),
        time_code_to_the_end=True, own_embeddings=own_embeddings)


def dit_config_to_diffusers(config: DiTConfig) -> dict:
    """Keyword arguments of the DiTTransformer2DModel that computes what DiT(config) does."""
    c = config
    if c.num_classes is None or not c.time_code_to_the_end or c.context_dim is not None or not c.positions:
        raise ValueError("to_diffusers: DiTTransformer2DModel has num_classes, positions, time_code_to_the_end=True "
                         f"and no context; got {c}.")
    return dict(num_attention_heads=c.num_heads, attention_head_dim=c.width // c.num_heads,
                in_channels=c.in_channels + c.concat_channels, out_channels=c.out_channels or c.in_channels,
                num_layers=c.depth, sample_size=c.input_size, patch_size=c.patch_size,
                num_embeds_ada_norm=c.num_classes, norm_eps=c.mlp_norm_eps)


def dit_diffusers_keys(net: DiT) -> dict[str, list[str]]:
    """{our key: diffusers' names} of every weight; several where each block there has its own copy."""
    keys = {key: [reworded(key, DIT_WORDS)] for key in net.state_dict()}
    if not net.config.own_embeddings:
        for key, (name,) in keys.items():
            if key.startswith("embeddings."):
                keys[key] = [name.replace(".0.", f".{i}.", 1) for i in range(net.config.depth)]
    return keys
