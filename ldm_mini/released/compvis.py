"""The released networks as their authors keep them: YAML parameters and weights with CompVis names.

`params` is what stands under `unet_config.params` or `first_stage_config.params` of a released YAML file. What our
networks do not compute, because no released model has it, is refused by name.
"""

from torch import Tensor

from ..attention import AttentionBlock, SpatialTransformer
from ..autoencoder import Autoencoder, AutoencoderConfig
from ..blocks import Downsample, ResBlock
from ..files import FileError
from ..unet import UNet, UNetConfig
from .first_stages import first_stage_names, fit_first_stage, published
from .names import TRANSFORMER_WORDS, require, translate
from .reading import fit, on_meta

# Other values of these change what is computed, and not all of it shows in the weights. (Class embeddings,
# `num_classes`, occur in no released model.)
UNET_FIXED = {"dims": (2,), "conv_resample": (True,), "num_classes": (None,), "n_embed": (None,),
              "disable_self_attentions": (None,), "disable_middle_self_attn": (False,), "num_attention_blocks": (None,)}
UNET_KNOWN = {"in_channels", "out_channels", "model_channels", "channel_mult", "num_res_blocks",
              "attention_resolutions", "num_heads", "num_head_channels", "num_heads_upsample", "legacy",
              "use_new_attention_order", "context_dim", "use_spatial_transformer", "transformer_depth",
              "use_scale_shift_norm", "resblock_updown", "dropout", "image_size", "use_checkpoint", "use_fp16",
              "use_bf16", "use_linear_in_transformer", "ckpt_path", "ignore_keys"}
STAGE_FIXED = {"resamp_with_conv": (True,), "use_linear_attn": (False,), "tanh_out": (False,),
               "give_pre_end": (False,), "attn_type": ("vanilla", "none"), "remap": (None,)}
STAGE_KNOWN = {"ch", "ch_mult", "num_res_blocks", "attn_resolutions", "resolution", "in_channels", "z_channels",
               "dropout"}

UNET_WORDS = {
    ResBlock: {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_proj": "emb_layers.1", "norm2": "out_layers.0",
               "conv2": "out_layers.3", "shortcut": "skip_connection"},
    AttentionBlock: {"attn.to_out": "proj_out"},                # q, k and v are one layer there: see unet_names
    SpatialTransformer: TRANSFORMER_WORDS,
    Downsample: {"conv": "op"},
}
STAGE_WORDS = {"attn.to_q": "q", "attn.to_k": "k", "attn.to_v": "v", "attn.to_out": "proj_out",
               "shortcut": "nin_shortcut", "middle.block1": "mid.block_1", "middle.attn": "mid.attn_1",
               "middle.block2": "mid.block_2", "levels": "WAY", "blocks": "block", "attns": "attn",
               "resize": "WAYsample"}


def unet_from_compvis(params: dict, state_dict: dict[str, Tensor], dtype=None, averages: dict | None = None) -> UNet:
    """A released U-Net. state_dict: plain tensors, named "input_blocks.0.0.weight" and so on; they are not copied.

    averages: of an EMA, as LitEma names them; of two versions of a weight they are taken.
    Its `net(x, t, cond)` takes concatenated channels in cond.concat, or already joined to x.
    Raises FileError, a ValueError, that lists parameters or names that do not fit.
    """
    net = on_meta(UNet, unet_config_from_compvis(params))
    names = unet_names(net, params.get("use_new_attention_order", False))
    return fit(net, names, state_dict | _averaged(names, averages or {}, "diffusion_model"), dtype=dtype)


def _averaged(names: dict, averages: dict, prefix: str = "") -> dict:
    """An EMA's tensors under the names of their weights; there they lack the dots."""
    known = [name if isinstance(name, str) else name[0] for name in names.values()]
    undotted = {prefix + name.replace(".", ""): name for name in known}
    return {undotted.get(name, name): value for name, value in averages.items()
            if name not in ("decay", "num_updates") and not name.startswith("loss")}


def unet_config_from_compvis(params: dict) -> UNetConfig:
    """Our config of the U-Net that the released code builds from these parameters."""
    context, transformers = params.get("context_dim"), bool(params.get("use_spatial_transformer", False))
    # num_head_channels fixes the heads' width and, if both are given, wins; num_heads fixes their number. `legacy` only
    # tells how to round where the one does not divide the width, which no model needs
    count, width = params.get("num_heads", -1), params.get("num_head_channels", -1)
    same_heads = {"num_heads_upsample": (-1, count)} if width == -1 and not transformers else {}
    require("U-Net", params, UNET_FIXED | same_heads, UNET_KNOWN)
    if (context is not None) != transformers or count == width == -1:
        raise FileError(f"num_heads or num_head_channels, and context_dim where use_spatial_transformer: {params}.")
    if isinstance(context, (list, tuple)):                      # Stable Diffusion 2 writes a list of one
        context, = set(context)
    # attention_resolutions are downsampling factors; one that never occurs attends nowhere
    mults = tuple(params.get("channel_mult", (1, 2, 4, 8)))
    levels = tuple(i for i in range(len(mults)) if 2**i in params["attention_resolutions"])
    # more inputs than outputs: a condition is joined to the noisy latent
    inputs, outputs = params["in_channels"], params["out_channels"]
    return UNetConfig(
        in_channels=min(inputs, outputs), out_channels=None if outputs <= inputs else outputs,
        concat_channels=max(inputs - outputs, 0), channels=params["model_channels"], channel_mults=mults,
        num_res_blocks=params["num_res_blocks"], attn_levels=levels, context_dim=context,
        transformer_depth=params.get("transformer_depth", 1), dropout=params.get("dropout", 0.0),
        scale_shift=params.get("use_scale_shift_norm", False), resblock_updown=params.get("resblock_updown", False),
        **({"num_heads": count} if width == -1 else {"num_heads": None, "head_dim": width}))


def unet_names(net: UNet, new_attention_order: bool = False) -> dict:
    """{our key: CompVis' name, or (name, part of it)} of every weight."""
    places = {"time_embedding.linear1": "time_embed.0", "time_embedding.linear2": "time_embed.2",
              "norm_out": "out.0", "conv_out": "out.2"}
    places |= {f"middle.{k}": f"middle_block.{k}" for k in range(len(net.middle))}
    for ours, theirs in (("down", "input_blocks"), ("up", "output_blocks")):
        places |= {f"{ours}.{i}.{k}": f"{theirs}.{i}.{k}" for i, step in enumerate(net.get_submodule(ours))
                   for k in range(len(step))}
    names = translate(net, places, UNET_WORDS)
    # q, k and v of an AttentionBlock are parts of one layer
    for here, there in places.items():
        layer = net.get_submodule(here)
        if isinstance(layer, AttentionBlock):
            heads = None if new_attention_order else layer.attn.num_heads
            names |= {f"{here}.attn.to_{letter}.{kind}": (f"{there}.qkv.{kind}", _third(i, heads))
                      for i, letter in enumerate("qkv") for kind in ("weight", "bias")}
    return names


def _third(i: int, num_heads: int | None):
    """Cuts q, k or v out of one layer for all: by heads, then q, k, v ("legacy" order, all released models), or for
    num_heads None q, k, v, then by heads."""
    if num_heads is None:
        return lambda value: value.unflatten(0, (3, -1))[i]
    return lambda value: value.unflatten(0, (num_heads, 3, -1))[:, i].flatten(0, 1)


def autoencoder_from_compvis(params: dict, state_dict: dict[str, Tensor], dtype=None) -> Autoencoder:
    """A released first stage, VQ where params has n_embed, else KL.

    state_dict: plain tensors, named "encoder.conv_in.weight" and so on; they are not copied. What only trained it
    ("loss.discriminator...") is passed over; averages ("model_ema...") are taken where there are any.
    Raises FileError, a ValueError, that lists parameters or names that do not fit.
    """
    autoencoder = on_meta(autoencoder_of_compvis, params)
    names, ema = autoencoder_names(autoencoder), "model_ema."
    weights = {name: value for name, value in state_dict.items() if not name.startswith(("loss.", ema))}
    averages = {name[len(ema):]: value for name, value in state_dict.items() if name.startswith(ema)}
    return fit_first_stage(autoencoder, names, weights | _averaged(names, averages), dtype)


def autoencoder_of_compvis(params: dict) -> Autoencoder:
    """The first stage that the released code builds from these parameters, with fresh weights."""
    dd, codes, dim = params["ddconfig"], params.get("n_embed"), params["embed_dim"]
    # KL doubles z and VQ does not; pictures go in and out
    ours = {"double_z": (codes is None,), "out_ch": (dd["in_channels"],)}
    require("first stage", dd | {"remap": params.get("remap")}, STAGE_FIXED | ours, STAGE_KNOWN)
    levels, attn = len(dd["ch_mult"]), dd.get("attn_type", "vanilla") != "none"
    # attn_resolutions are true sizes, counted from `resolution`
    attended = tuple(i for i in range(levels) if dd["resolution"] // 2**i in dd["attn_resolutions"] and attn)
    return published(AutoencoderConfig(
        in_channels=dd["in_channels"], downsample_factor=2 ** (levels - 1), latent_channels=dim, channels=dd["ch"],
        channel_mults=tuple(dd["ch_mult"]), num_res_blocks=dd["num_res_blocks"], attn_levels=attended, mid_attn=attn,
        dropout=dd.get("dropout", 0.0), z_channels=None if dd["z_channels"] == dim else dd["z_channels"]), codes)


def autoencoder_names(autoencoder: Autoencoder) -> dict[str, str]:
    """{our key: CompVis' name} of every weight."""
    return first_stage_names(autoencoder, STAGE_WORDS, by_size=True)
