"""First stages, U-Nets and DiTs as diffusers' `save_pretrained` writes them: folders of config.json and weights."""

from pathlib import Path

import torch
from torch import Tensor, nn

from ..attention import AttentionBlock
from ..autoencoder import Autoencoder, AutoencoderConfig
from ..blocks import ResBlock
from ..dit import DiT, DiTConfig
from ..files import FileError, save_safetensors, write_json
from ..kl import KLBottleneck
from ..quantizer import VectorQuantizer, VQBottleneck
from ..unet import UNet
from .compvis import autoencoder_constants
from .diffusers_unet import (
    diffusers_class,
    multiples,
    unet_config_to_diffusers,
    unet_from_diffusers_state,
    unet_to_diffusers_state,
)
from .reading import fit, on_meta, read_folder, translate

# What leaves no trace in the weights but changes the output: only these values are ours, the first of them by default.
STAGE_FIXED = {"act_fn": ("silu", "swish"), "norm_type": ("group",), "use_quant_conv": (True,), "shift_factor": (None,),
               "use_post_quant_conv": (True,), "latents_mean": (None,), "latents_std": (None,)}
DIT_FIXED = {"activation_fn": ("gelu-approximate",), "norm_type": ("ada_norm_zero",), "attention_bias": (True,),
             "norm_elementwise_affine": (False,), "cross_attention_dim": (None,), "double_self_attention": (False,)}
STAGE_WORDS = {ResBlock: {"shortcut": "conv_shortcut"},
               AttentionBlock: {"norm": "group_norm", "attn.to_out": "to_out.0", "attn.to_q": "to_q",
                                "attn.to_k": "to_k", "attn.to_v": "to_v"}}
DIT_WORDS = {"attn.to_out": "attn1.to_out.0", "attn": "attn1", "mlp.0": "ff.net.0.proj", "mlp.2": "ff.net.2",
             "modulation": "norm1.linear"}
OLD_WORDS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before diffusers 0.17


def unet_from_diffusers(folder, dtype: torch.dtype | None = None) -> nn.Module:
    """The network of a folder: a UNet2DConditionModel, UNet2DModel (-> UNet) or DiTTransformer2DModel (-> DiT).

    A pipeline's folder will do: its part "unet" or "transformer" is taken. dtype: of the weights; None = as stored.
    Raises FileError, a ValueError, that lists what is unknown, missing or of another shape.
    """
    config, state = _read(folder, ("unet", "transformer"))
    name = config.get("_class_name")
    if name not in ("UNet2DConditionModel", "UNet2DModel", "DiTTransformer2DModel", "Transformer2DModel"):
        raise FileError(f"{folder} holds a {name}; known are UNet2DConditionModel, UNet2DModel and "
                              "DiTTransformer2DModel.")
    load = unet_from_diffusers_state if name.startswith("UNet") else dit_from_diffusers_state
    return load(config, state, dtype)


def autoencoder_from_diffusers(folder, dtype: torch.dtype | None = None) -> Autoencoder:
    """The first stage of a folder: an AutoencoderKL or VQModel. A pipeline's folder will do: "vae" or "vqvae" is taken.

    Raises FileError, a ValueError, that lists what is unknown, missing or of another shape.
    """
    config, state = _read(folder, ("vae", "vqvae"))
    if config.get("_class_name") not in ("AutoencoderKL", "VQModel"):
        raise FileError(f"{folder} holds a {config.get('_class_name')}; known are AutoencoderKL and VQModel.")
    return autoencoder_from_diffusers_state(config, state, dtype)


def save_diffusers(model: nn.Module, folder, sample_size: int | None = None, scaling_factor: float = 1.0) -> Path:
    """Write a UNet, a DiT or an Autoencoder as the class of diffusers that computes the same, or raise ValueError."""
    config, state = describe(model, sample_size, scaling_factor)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_safetensors(folder / "diffusion_pytorch_model.safetensors", state)
    write_json(folder / "config.json", config)
    return folder


def describe(model: nn.Module, sample_size: int | None = None, scaling_factor: float = 1.0) -> tuple[dict, dict]:
    """(config, weights) of the class of diffusers that computes what this model does; ValueError if there is none."""
    if isinstance(model, UNet):
        name, config = diffusers_class(model.config), unet_config_to_diffusers(model.config, sample_size)
        state = unet_to_diffusers_state(model)
    elif isinstance(model, DiT):
        name, config, state = "DiTTransformer2DModel", dit_config_to_diffusers(model.config), dit_to_state(model)
    elif isinstance(model, Autoencoder):
        name = "VQModel" if isinstance(model.bottleneck, VQBottleneck) else "AutoencoderKL"
        config = autoencoder_config_to_diffusers(model, sample_size) | {"scaling_factor": scaling_factor}
        names, own = autoencoder_diffusers_keys(model), model.state_dict()
        state = {theirs: own[ours] for ours, theirs in names.items()}
    else:
        raise ValueError(f"to_diffusers: diffusers has no class for a {type(model).__name__}.")
    return {"_class_name": name, "_diffusers_version": "0.31.0", **config}, state


def _read(folder, parts) -> tuple[dict, dict[str, Tensor]]:
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        folder = next((folder / part for part in parts if (folder / part).is_dir()), folder)
    config, tensors = read_folder(folder)
    return config, {_modern(name): value for name, value in tensors.items()}


def _modern(name: str) -> str:
    """Attention's names in files of older versions, as they are today."""
    layer, dot, kind = name.rpartition(".")
    where, _, word = layer.rpartition(".")
    return f"{where}.{OLD_WORDS[word]}{dot}{kind}" if ".attentions." in name and word in OLD_WORDS else name


def _check(what: str, config: dict, fixed: dict) -> None:
    if bad := {name: config[name] for name, values in fixed.items() if config.get(name, values[0]) not in values}:
        raise FileError(f"{bad} of this {what} differ from what ours computes: "
                              f"{ {name: fixed[name] for name in bad} }.")


# -------------------------------------------------------------------------------------------------------- first stages


def autoencoder_from_diffusers_state(config: dict, state: dict[str, Tensor], dtype=None) -> Autoencoder:
    """An Autoencoder with the weights of an AutoencoderKL or VQModel: its `config` and its `state_dict()`."""
    autoencoder = on_meta(autoencoder_of_diffusers, config)
    return fit(autoencoder, autoencoder_diffusers_keys(autoencoder), state, autoencoder_constants(autoencoder), dtype)


def autoencoder_of_diffusers(config: dict) -> Autoencoder:
    """The first stage that diffusers builds from a config, with fresh weights."""
    _check("first stage", config, STAGE_FIXED)
    down, up = list(config["down_block_types"]), list(config["up_block_types"])
    attended = [kind == "AttnDownEncoderBlock2D" for kind in down]
    mirror = ["AttnUpDecoderBlock2D" if yes else "UpDecoderBlock2D" for yes in reversed(attended)]
    if not set(down) <= {"DownEncoderBlock2D", "AttnDownEncoderBlock2D"} or up != mirror:
        raise FileError(f"ours has no first stage of the block types {down} and {up}.")
    if config["in_channels"] != config["out_channels"]:
        raise FileError(f"in_channels={config['in_channels']}, out_channels={config['out_channels']}: ours gives "
                              "back what it takes.")
    z, codes, widths = config["latent_channels"], config.get("num_vq_embeddings"), list(config["block_out_channels"])
    dim = z if codes is None else config.get("vq_embed_dim") or z
    ours = AutoencoderConfig(
        in_channels=config["in_channels"], downsample_factor=2 ** (len(widths) - 1), latent_channels=dim,
        channels=widths[0], channel_mults=multiples(widths), num_res_blocks=config["layers_per_block"],
        attn_levels=tuple(i for i, yes in enumerate(attended) if yes),
        mid_attn=config.get("mid_block_add_attention", True), groups=config["norm_num_groups"],
        z_channels=None if z == dim else z)
    if codes is None:
        return Autoencoder(ours, KLBottleneck(dim))
    return Autoencoder(ours, VQBottleneck(VectorQuantizer(codes, dim, restart_after=None, init="uniform")))


def autoencoder_config_to_diffusers(autoencoder: Autoencoder, sample_size: int | None = None) -> dict:
    """Keyword arguments of the VQModel or AutoencoderKL that computes what this first stage does."""
    c = autoencoder.config
    if c.patch_size != 1 or c.channel_mults[0] != 1:
        raise ValueError(f"to_diffusers: first stages of diffusers have patch_size=1 and channel_mults that begin with "
                         f"1, this one has {c.patch_size} and {c.channel_mults}.")
    attended = [level in c.attn_levels for level in range(len(c.widths))]
    config = dict(
        in_channels=c.in_channels, out_channels=c.in_channels, block_out_channels=c.widths,
        down_block_types=["AttnDownEncoderBlock2D" if yes else "DownEncoderBlock2D" for yes in attended],
        up_block_types=["AttnUpDecoderBlock2D" if yes else "UpDecoderBlock2D" for yes in reversed(attended)],
        layers_per_block=c.num_res_blocks, latent_channels=c.z_channels or c.latent_channels,
        norm_num_groups=c.groups, mid_block_add_attention=c.mid_attn,
        sample_size=sample_size or 8 * c.downsample_factor)
    if isinstance(autoencoder.bottleneck, VQBottleneck):
        codes = autoencoder.bottleneck.quantizer.codebook_size
        return config | dict(num_vq_embeddings=codes, vq_embed_dim=c.latent_channels)
    if c.z_channels not in (None, c.latent_channels):
        raise ValueError(f"to_diffusers: AutoencoderKL has z_channels={c.z_channels} = latent_channels.")
    return config


def autoencoder_diffusers_keys(autoencoder: Autoencoder) -> dict[str, str]:
    """{our key: diffusers' name} of every weight."""
    places = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    middle = {"block1": "resnets.0", "attn": "attentions.0", "block2": "resnets.1"}
    for half, direction in (("encoder", "down"), ("decoder", "up")):
        places |= {f"{half}.conv_in": f"{half}.conv_in", f"{half}.norm_out": f"{half}.conv_norm_out",
                   f"{half}.conv_out": f"{half}.conv_out"}
        places |= {f"{half}.middle.{ours}": f"{half}.mid_block.{theirs}" for ours, theirs in middle.items()}
        for i, level in enumerate(autoencoder.get_submodule(half).levels):
            here, there = f"{half}.levels.{i}", f"{half}.{direction}_blocks.{i}"
            places |= {f"{here}.blocks.{j}": f"{there}.resnets.{j}" for j in range(len(level.blocks))}
            places |= {f"{here}.attns.{j}": f"{there}.attentions.{j}" for j in range(len(level.attns))}
            places[f"{here}.resize"] = f"{there}.{direction}samplers.0"
    names = translate(autoencoder, places, STAGE_WORDS)
    if isinstance(autoencoder.bottleneck, VQBottleneck):
        names["bottleneck.quantizer.codebook"] = "quantize.embedding.weight"
    return names


# ---------------------------------------------------------------------------------------------------------------- DiTs


def dit_from_diffusers_state(config: dict, state: dict[str, Tensor], dtype=None) -> DiT:
    """A DiT with the weights of a DiTTransformer2DModel: its `config` and its `state_dict()`.

    Its class table comes along: cond.vector holds classes (B,), the number of classes meaning none. There each block
    keeps an embedding of time and class; in all published weights they are copies, and then only one is kept.
    """
    _check("DiT", config, DIT_FIXED)
    state = {name: value for name, value in state.items() if name != "pos_embed.pos_embed"}     # a constant
    first, inside = "transformer_blocks.0.norm1.emb.", ".norm1.emb."
    groups = {name: [n for n in state if n.endswith(name[name.index(inside):])] for name in state
              if name.startswith(first)}
    copies = all(torch.equal(state[one], state[other]) for one, others in groups.items() for other in others)
    if copies:
        state = {name: value for name, value in state.items() if inside not in name or name.startswith(first)}
    dim = config["attention_head_dim"] * config["num_attention_heads"]
    net = on_meta(DiT, DiTConfig(
        in_channels=config["in_channels"], out_channels=config.get("out_channels"), patch_size=config["patch_size"],
        width=dim, depth=config["num_layers"], num_heads=config["num_attention_heads"],
        input_size=config["sample_size"], num_classes=config["num_embeds_ada_norm"],
        mlp_norm_eps=config.get("norm_eps", 1e-5), time_code_to_the_end=True, own_embeddings=not copies))
    return fit(net, {key: names[0] for key, names in dit_diffusers_keys(net).items()}, state, dtype=dtype)


def dit_config_to_diffusers(config: DiTConfig) -> dict:
    """Keyword arguments of the DiTTransformer2DModel that computes what DiT(config) does."""
    c = config
    if c.num_classes is None or not c.time_code_to_the_end:
        raise ValueError("to_diffusers: DiTTransformer2DModel has num_classes and time_code_to_the_end=True; got "
                         f"{c.num_classes} and {c.time_code_to_the_end}.")
    return dict(num_attention_heads=c.num_heads, attention_head_dim=c.width // c.num_heads,
                in_channels=c.in_channels + c.concat_channels, out_channels=c.out_channels or c.in_channels,
                num_layers=c.depth, sample_size=c.input_size, patch_size=c.patch_size,
                num_embeds_ada_norm=c.num_classes, norm_eps=c.mlp_norm_eps)


def dit_to_state(net: DiT) -> dict[str, Tensor]:
    """The weights of a DiT for DiTTransformer2DModel."""
    own = net.state_dict()
    return {name: own[key] for key, names in dit_diffusers_keys(net).items() for name in names}


def dit_diffusers_keys(net: DiT) -> dict[str, list[str]]:
    """{our key: diffusers' names} of every weight; several where each block there has its own copy."""
    keys = {}
    for key in net.state_dict():
        place, _, rest = key.partition(".")
        if place == "embeddings":
            i, _, rest = rest.partition(".")
            rest = rest.replace("time.linear1", "timestep_embedder.linear_1").replace("time.linear2",
                                                                                      "timestep_embedder.linear_2")
            rest = rest.replace("classes", "class_embedder.embedding_table")
            blocks = [int(i)] if net.config.own_embeddings else range(net.config.depth)
            keys[key] = [f"transformer_blocks.{block}.norm1.emb.{rest}" for block in blocks]
        elif place == "blocks":
            name = f".{rest}"
            for ours, theirs in DIT_WORDS.items():
                name = name.replace(f".{ours}.", f".{theirs}.")
            keys[key] = [f"transformer_blocks{name}"]
        else:
            there = {"patchify": "pos_embed.proj", "modulation_out": "proj_out_1", "proj_out": "proj_out_2"}[place]
            keys[key] = [f"{there}.{rest}"]
    return keys
