"""The released networks as their authors keep them: YAML parameters and weights with CompVis names.

`params` is what stands under `unet_config.params` or `first_stage_config.params` of a released YAML file. What our
networks do not compute, because no released model has it, is refused by name.
"""

from torch import Tensor

from ..attention import AttentionBlock, SpatialTransformer
from ..autoencoder import Autoencoder, AutoencoderConfig
from ..blocks import Downsample, ResBlock
from ..files import FileError
from ..kl import KLBottleneck
from ..quantizer import VectorQuantizer, VQBottleneck
from ..unet import UNet, UNetConfig
from .reading import fit, on_meta, translate

# Other values of these change what is computed. (Class embeddings, `num_classes`, occur in no released model.)
UNET_FIXED = {"dims": 2, "conv_resample": True, "num_classes": None, "n_embed": None, "disable_self_attentions": None,
              "disable_middle_self_attn": False, "num_attention_blocks": None}
UNET_READ = {"in_channels", "out_channels", "model_channels", "attention_resolutions", "num_res_blocks", "channel_mult",
             "num_heads", "num_head_channels", "num_heads_upsample", "legacy", "use_spatial_transformer", "context_dim",
             "transformer_depth", "use_scale_shift_norm", "resblock_updown", "use_new_attention_order", "dropout"}
UNET_FREE = {"image_size", "use_checkpoint", "use_fp16", "use_bf16", "use_linear_in_transformer", "ckpt_path",
             "ignore_keys"}
STAGE_FIXED = {"resamp_with_conv": True, "use_linear_attn": False, "tanh_out": False, "give_pre_end": False}
STAGE_READ = {"ch", "ch_mult", "num_res_blocks", "attn_resolutions", "resolution", "in_channels", "out_ch",
              "z_channels", "double_z", "dropout", "attn_type"}

UNET_WORDS = {
    ResBlock: {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_proj": "emb_layers.1", "norm2": "out_layers.0",
               "conv2": "out_layers.3", "shortcut": "skip_connection"},
    AttentionBlock: {"attn.to_out": "proj_out"},                # q, k and v are one layer there: see unet_names
    SpatialTransformer: {"blocks": "transformer_blocks", "self_attn": "attn1", "cross_attn": "attn2",
                         "to_out": "to_out.0", "ff.proj": "ff.net.0.proj", "ff.out": "ff.net.2"},
    Downsample: {"conv": "op"},
}
STAGE_WORDS = {ResBlock: {"shortcut": "nin_shortcut"},
               AttentionBlock: {"attn.to_q": "q", "attn.to_k": "k", "attn.to_v": "v", "attn.to_out": "proj_out"}}


# -------------------------------------------------------------------------------------------------------------- U-Nets


def unet_from_compvis(params: dict, state_dict: dict[str, Tensor], dtype=None) -> UNet:
    """A released U-Net. state_dict: plain tensors, named "input_blocks.0.0.weight" and so on; they are not copied.

    Its `net(x, t, cond)` takes concatenated channels in cond.concat, or already joined to x.
    Raises FileError, a ValueError, that lists parameters or names that do not fit.
    """
    net = on_meta(UNet, unet_config_from_compvis(params))
    return fit(net, unet_names(net, params.get("use_new_attention_order", False)), state_dict, dtype=dtype)


def unet_config_from_compvis(params: dict) -> UNetConfig:
    """Our config of the U-Net that the released code builds from these parameters."""
    _check("U-Net", params, UNET_FIXED, UNET_READ | UNET_FREE)
    channels, mults = params["model_channels"], tuple(params.get("channel_mult", (1, 2, 4, 8)))
    widths = [channels * mult for mult in mults]
    # attention_resolutions are downsampling factors; one that never occurs attends nowhere
    levels = tuple(i for i in range(len(mults)) if 2**i in params["attention_resolutions"])
    context = params.get("context_dim")
    if (context is not None) != bool(params.get("use_spatial_transformer", False)):
        raise FileError("a U-Net with use_spatial_transformer needs context_dim, and only that has one.")
    if isinstance(context, (list, tuple)):                      # Stable Diffusion 2 writes a list of one
        context, = set(context)
    inputs, outputs = params["in_channels"], params["out_channels"]
    return UNetConfig(
        in_channels=min(inputs, outputs), out_channels=None if outputs <= inputs else outputs,
        concat_channels=max(inputs - outputs, 0), channels=channels, channel_mults=mults,
        num_res_blocks=params["num_res_blocks"], attn_levels=levels, context_dim=context,
        transformer_depth=params.get("transformer_depth", 1), dropout=params.get("dropout", 0.0),
        scale_shift=params.get("use_scale_shift_norm", False), resblock_updown=params.get("resblock_updown", False),
        **_heads(params, [widths[i] for i in sorted({*levels, len(mults) - 1})]))


def _heads(params: dict, attended: list[int]) -> dict:
    """num_head_channels fixes the heads' width and, if both are given, wins; num_heads fixes their number.

    `legacy` (the default) only tells how to round where the one does not divide the width, which no model needs.
    """
    count, width = params.get("num_heads", -1), params.get("num_head_channels", -1)
    if count == width == -1:
        raise FileError("a U-Net needs num_heads or num_head_channels.")
    split = count if width == -1 else width
    if bad := [w for w in attended if w % split]:
        raise FileError(f"widths {bad} cannot be split by num_{'heads' if width == -1 else 'head_channels'} = "
                              f"{split}.")
    on_the_way_up = params.get("num_heads_upsample", -1)
    if width == -1 and on_the_way_up not in (-1, count) and not params.get("use_spatial_transformer", False):
        raise FileError(f"num_heads_upsample={on_the_way_up} other than num_heads={count} occurs in no released "
                              "model, and our U-Net has the same heads on both ways.")
    return {"num_heads": count} if width == -1 else {"num_heads": None, "head_dim": width}


def unet_names(net: UNet, new_attention_order: bool = False) -> dict:
    """{our key: CompVis' name, or (name, part of it)} of every weight."""
    places = {"time_embedding.linear1": "time_embed.0", "time_embedding.linear2": "time_embed.2",
              "norm_out": "out.0", "conv_out": "out.2"}
    for ours, theirs in (("down", "input_blocks"), ("up", "output_blocks")):
        places |= {f"{ours}.{i}.{k}": f"{theirs}.{i}.{k}" for i, step in enumerate(net.get_submodule(ours))
                   for k in range(len(step))}
    places |= {f"middle.{k}": f"middle_block.{k}" for k in range(len(net.middle))}
    names = translate(net, places, UNET_WORDS)
    for here, there in places.items():
        layer = net.get_submodule(here)
        if isinstance(layer, AttentionBlock):
            for i, letter in enumerate("qkv"):
                part = _third(i, None if new_attention_order else layer.attn.num_heads)
                for kind in ("weight", "bias"):
                    names[f"{here}.attn.to_{letter}.{kind}"] = f"{there}.qkv.{kind}", part
    return names


def _third(i: int, num_heads: int | None):
    """Cuts q, k or v out of one layer for all: by heads, then q, k, v ("legacy" order, all released models), or for
    num_heads None q, k, v, then by heads."""
    if num_heads is None:
        return lambda value: value.unflatten(0, (3, -1))[i]
    return lambda value: value.unflatten(0, (num_heads, 3, -1))[:, i].flatten(0, 1)


# -------------------------------------------------------------------------------------------------------- first stages


def autoencoder_from_compvis(params: dict, state_dict: dict[str, Tensor], dtype=None) -> Autoencoder:
    """A released first stage, VQ where params has n_embed, else KL.

    state_dict: plain tensors, named "encoder.conv_in.weight" and so on; they are not copied. What only trained it
    ("loss.discriminator...") is passed over.
    Raises FileError, a ValueError, that lists parameters or names that do not fit.
    """
    autoencoder = on_meta(autoencoder_of_compvis, params)
    weights = {name: value for name, value in state_dict.items() if not name.startswith("loss.")}
    return fit(autoencoder, autoencoder_names(autoencoder), weights, autoencoder_constants(autoencoder), dtype)


def autoencoder_of_compvis(params: dict) -> Autoencoder:
    """The first stage that the released code builds from these parameters, with fresh weights."""
    dd, codes = params["ddconfig"], params.get("n_embed")
    _check("first stage", dd, STAGE_FIXED, STAGE_READ)
    _check("first stage", {"remap": params.get("remap")}, {"remap": None}, set())
    levels, attn_type = len(dd["ch_mult"]), dd.get("attn_type", "vanilla")
    factor, resolution = 2 ** (levels - 1), dd["resolution"]
    if attn_type not in ("vanilla", "none"):
        raise FileError(f"attn_type {attn_type!r} occurs in no released model; known are vanilla and none.")
    if resolution % factor:
        raise FileError(f"resolution {resolution} cannot be halved {levels - 1} times.")
    if dd.get("double_z", True) != (codes is None) or dd["out_ch"] != dd["in_channels"]:
        raise FileError(f"double_z={dd.get('double_z', True)} with n_embed={codes}, out_ch={dd['out_ch']} with "
                              f"in_channels={dd['in_channels']}: KL doubles z and VQ does not, pictures go in and out.")
    # attn_resolutions are true sizes, counted from `resolution`
    attended = tuple(i for i in range(levels) if resolution // 2**i in dd["attn_resolutions"] and attn_type != "none")
    dim, z = params["embed_dim"], dd["z_channels"]
    config = AutoencoderConfig(
        in_channels=dd["in_channels"], downsample_factor=factor, latent_channels=dim, channels=dd["ch"],
        channel_mults=tuple(dd["ch_mult"]), num_res_blocks=dd["num_res_blocks"], attn_levels=attended,
        mid_attn=attn_type != "none", dropout=dd.get("dropout", 0.0), z_channels=None if z == dim else z)
    if codes is None:
        return Autoencoder(config, KLBottleneck(dim))
    return Autoencoder(config, VQBottleneck(VectorQuantizer(codes, dim, restart_after=None, init="uniform")))


def autoencoder_names(autoencoder: Autoencoder) -> dict:
    """{our key: CompVis' name} of every weight."""
    places = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half, direction in (("encoder", "down"), ("decoder", "up")):
        levels = autoencoder.get_submodule(half).levels
        places |= {f"{half}.{name}": f"{half}.{name}" for name in ("conv_in", "norm_out", "conv_out")}
        places |= {f"{half}.middle.{ours}": f"{half}.mid.{theirs}" for ours, theirs in
                   (("block1", "block_1"), ("attn", "attn_1"), ("block2", "block_2"))}
        for i, level in enumerate(levels):                      # the decoder's in the order they run; theirs by size
            here = f"{half}.levels.{i}"
            there = f"{half}.{direction}.{i if half == 'encoder' else len(levels) - 1 - i}"
            places |= {f"{here}.blocks.{j}": f"{there}.block.{j}" for j in range(len(level.blocks))}
            places |= {f"{here}.attns.{j}": f"{there}.attn.{j}" for j in range(len(level.attns))}
            places[f"{here}.resize"] = f"{there}.{direction}sample"
    names = translate(autoencoder, places, STAGE_WORDS)
    if isinstance(autoencoder.bottleneck, VQBottleneck):
        names["bottleneck.quantizer.codebook"] = "quantize.embedding.weight"
    return names


def autoencoder_constants(autoencoder: Autoencoder) -> dict:
    """The buffers of our quantiser, which a published model has not: as of a trained one, nothing counted yet."""
    if not isinstance(autoencoder.bottleneck, VQBottleneck):
        return {}
    with_weights = VectorQuantizer(autoencoder.bottleneck.quantizer.codebook_size, 1, init="uniform")
    return {f"bottleneck.quantizer.{name}": value for name, value in with_weights.named_buffers()}


def _check(what: str, params: dict, fixed: dict, known: set) -> None:
    different = {name: params[name] for name, value in fixed.items() if params.get(name, value) != value}
    unknown = sorted(set(params) - known - set(fixed))
    if different or unknown:
        raise FileError(f"this {what} is none of the released kinds: {different} should be "
                              f"{ {name: fixed[name] for name in different} }, unknown parameters: {unknown}.")
