"""Our U-Net is diffusers' UNet2DConditionModel, or without a context its UNet2DModel: other names, the same network."""

from torch import Tensor

from ..attention import AttentionBlock, SpatialTransformer, head_layout
from ..blocks import ResBlock
from ..files import FileError
from ..unet import UNet, UNetConfig
from .names import ATTENTION_WORDS, TRANSFORMER_WORDS, require, translate
from .reading import fit, on_meta

# What leaves no trace in the weights but changes the output: only these values are ours, the first of them by default.
FIXED = {"act_fn": ("silu", "swish"), "norm_eps": (1e-5,), "flip_sin_to_cos": (True,), "freq_shift": (0,),
         "center_input_sample": (False,), "downsample_padding": (1,), "mid_block_scale_factor": (1,),
         "only_cross_attention": (False,), "mid_block_only_cross_attention": (None, False),
         "dual_cross_attention": (False,), "timestep_post_act": (None,), "time_embedding_act_fn": (None,),
         "time_embedding_type": ("positional",), "resnet_skip_time_act": (False,), "resnet_out_scale_factor": (1.0,),
         "attention_type": ("default",), "cross_attention_norm": (None,), "class_embeddings_concat": (False,),
         "add_attention": (True,), "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"),
         "class_embed_type": (None, "simple_projection"), "num_class_embeds": (None,),
         "resnet_time_scale_shift": ("default", "scale_shift"), "conv_in_kernel": (3,), "conv_out_kernel": (3,)}
WORDS = {ResBlock: {"time_proj": "time_emb_proj", "shortcut": "conv_shortcut"}, AttentionBlock: ATTENTION_WORDS,
         SpatialTransformer: TRANSFORMER_WORDS}


def unet_from_diffusers_state(config: dict, state: dict[str, Tensor], dtype=None) -> UNet:
    """A U-Net with the weights of a UNet2DConditionModel or UNet2DModel: its `config` and its `state_dict()`.

    Raises FileError, a ValueError, that lists what is unknown, missing or of another shape.
    """
    net = on_meta(UNet, unet_config_from_diffusers(config))
    return fit(net, diffusers_keys(net), state, dtype=dtype)


def unet_to_diffusers_state(net: UNet) -> dict[str, Tensor]:
    """The weights of `net` for diffusers' UNet2DConditionModel, or without a context for its UNet2DModel."""
    names = diffusers_keys(net)
    return {names[ours]: value for ours, value in net.state_dict().items()}


def unet_config_from_diffusers(config: dict) -> UNetConfig:
    """Our config for that of diffusers. Raises FileError, a ValueError, for what our U-Net does not express."""
    context, groups = _one(config, "cross_attention_dim", None), config.get("norm_num_groups", 32)
    same_groups = {"attn_norm_num_groups": (groups, None)} if context is None else {}
    require("U-Net", config, FIXED | same_groups)
    widths, (attended, by_blocks) = list(config["block_out_channels"]), _levels(config)
    levels = tuple(level for level, yes in enumerate(attended) if yes)
    # more inputs than outputs: a condition is joined to the noisy latent
    inputs, outputs = config["in_channels"], config["out_channels"]
    return UNetConfig(
        in_channels=min(inputs, outputs), out_channels=outputs, concat_channels=max(inputs - outputs, 0),
        channels=widths[0], channel_mults=multiples(widths), num_res_blocks=_one(config, "layers_per_block", 2),
        attn_levels=levels, context_dim=context, transformer_depth=_one(config, "transformer_layers_per_block", 1),
        vector_dim=config.get("projection_class_embeddings_input_dim"), dropout=config.get("dropout", 0.0),
        groups=groups, scale_shift=config.get("resnet_time_scale_shift") == "scale_shift", resblock_updown=by_blocks,
        **_heads(config, widths, sorted({*levels, len(widths) - 1})))


def multiples(widths: list[int]) -> tuple:
    """Widths as multiples of the first: whole numbers where they are."""
    return tuple(width / widths[0] if width % widths[0] else width // widths[0] for width in widths)


def _levels(config: dict) -> tuple[list[bool], bool]:
    """Per level, whether it has attention; and whether residual blocks change the size (BigGAN style), or convolutions.

    "ResnetDownsampleBlock2D" says so by itself, "AttnDownBlock2D" by the config's downsample_type.
    """
    down = list(config["down_block_types"])
    types = down + list(config["up_block_types"])
    by_config = {"AttnDownBlock2D": config.get("downsample_type"), "AttnUpBlock2D": config.get("upsample_type")}
    # the last level of either way has nothing to resize
    resized = {(by_config.get(kind) or kind).lower().startswith("resnet")
               for kind in types[:len(down) - 1] + types[len(down):-1]}
    # but for that, the block types follow from where there is attention
    attended = ["Attn" in kind for kind in down]
    ours = sum(_block_types(attended, config.get("cross_attention_dim") is not None), [])
    plain = [kind.replace("ResnetDownsample", "Down").replace("ResnetUpsample", "Up") for kind in types]
    if plain != ours or len(resized) > 1:
        raise FileError(f"ours has no U-Net of the block types {types}: with this attention it would be {ours}, the "
                        "way up a mirror of the way down; or the size changes partly by residual blocks.")
    return attended, resized == {True}


def _block_types(attended: list[bool], conditional: bool, resblock_updown: bool = False) -> tuple[list, list]:
    """Of the levels on the way down, and on the way up."""
    attention = "CrossAttn{}Block2D" if conditional else "Attn{}Block2D"
    kinds = [attention if yes else "Resnet{}sampleBlock2D" if resblock_updown else "{}Block2D" for yes in attended]
    return [kind.format("Down") for kind in kinds], [kind.format("Up") for kind in reversed(kinds)]


def _heads(config: dict, widths: list[int], attended: list[int]) -> dict:
    """num_heads and head_dim. "attention_head_dim" is a number of heads in one class, their width in the other."""
    given = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    if "cross_attention_dim" not in config and given is not None:
        return {"num_heads": None, "head_dim": given}
    counts = list(given) if isinstance(given, (list, tuple)) else [given or 1] * len(widths)
    for i in attended:
        head_layout(widths[i], counts[i])                       # refuses what cannot be split
    # one number or one width for all says it most briefly; levels without attention need not agree
    for levels in (range(len(widths)), attended):
        numbers, head_dims = {counts[i] for i in levels}, {widths[i] / counts[i] for i in levels}
        if len(numbers) == 1:
            return {"num_heads": numbers.pop()}
        if len(head_dims) == 1 and min(head_dims).is_integer():
            return {"num_heads": None, "head_dim": int(head_dims.pop())}
    return {"num_heads": tuple(counts)}


def _one(config: dict, name: str, default):
    """A value that may be given once for all levels, or once per level."""
    value = config.get(name, default)
    if not isinstance(value, (list, tuple)):
        return value
    if len(set(value)) > 1 or isinstance(value[0], (list, tuple)):
        raise FileError(f"{name}={value} differs between the levels of this U-Net; ours does not.")
    return value[0]


def unet_config_to_diffusers(config: UNetConfig, sample_size: int | None = None) -> dict:
    """Keyword arguments of the UNet2DConditionModel, or UNet2DModel, that computes what UNet(config) does."""
    c, conditional = config, config.context_dim is not None
    if c.channel_mults[0] != 1 or (conditional and c.resblock_updown) or (not conditional and c.vector_dim is not None):
        raise ValueError("to_diffusers: channel_mults must begin with 1; no U-Net of diffusers has context_dim and "
                         f"resblock_updown, or vector_dim without context_dim; got {c}.")
    down, up = _block_types([i in c.attn_levels for i in range(len(c.widths))], conditional, c.resblock_updown)
    common = dict(
        sample_size=sample_size, in_channels=c.in_channels + c.concat_channels,
        out_channels=c.out_channels or c.in_channels, block_out_channels=tuple(c.widths),
        layers_per_block=c.num_res_blocks, norm_num_groups=c.groups, dropout=c.dropout, down_block_types=tuple(down),
        up_block_types=tuple(up), resnet_time_scale_shift="scale_shift" if c.scale_shift else "default")
    # the one class has a number of heads per level, the other one width of heads for all
    counts = [c.heads(i)["num_heads"] or width // c.head_dim for i, width in enumerate(c.widths)]
    if conditional:
        return common | dict(
            cross_attention_dim=c.context_dim, attention_head_dim=tuple(counts), use_linear_projection=True,
            transformer_layers_per_block=c.transformer_depth, projection_class_embeddings_input_dim=c.vector_dim,
            class_embed_type=None if c.vector_dim is None else "simple_projection")
    levels = sorted({*c.attn_levels, len(c.widths) - 1})
    head_dims = {c.widths[i] // counts[i] for i in levels}
    if len(head_dims) > 1 and {counts[i] for i in levels} != {1}:
        raise ValueError(f"to_diffusers: UNet2DModel has one width of heads at all levels (or one head), not {counts} "
                         f"heads at the widths {c.widths}.")
    resize = "resnet" if c.resblock_updown else "conv"
    return common | dict(attention_head_dim=min(head_dims) if len(head_dims) == 1 else None, downsample_type=resize,
                         upsample_type=resize, attn_norm_num_groups=c.groups)


def diffusers_keys(net: UNet) -> dict[str, str]:
    """{our key: diffusers' name} of every weight."""
    places = {"time_embedding.linear1": "time_embedding.linear_1", "time_embedding.linear2": "time_embedding.linear_2",
              "norm_out": "conv_norm_out", "conv_out": "conv_out", "down.0.0": "conv_in",
              "middle.0": "mid_block.resnets.0", "middle.1": "mid_block.attentions.0",
              "middle.2": "mid_block.resnets.1"}
    if net.vector_proj is not None:
        places["vector_proj"] = "class_embedding"
    # both ways are one list of steps here, and levels of lists there; the way down begins with the stem
    for path, steps, stem in (("down", net.down, 1), ("up", net.up, 0)):
        for i, step in list(enumerate(steps))[stem:]:
            level, j = divmod(i - stem, net.config.num_res_blocks + 1)
            for k, layer in enumerate(step):
                kind = (f"resnets.{j}" if isinstance(layer, ResBlock) and layer.resample is None else
                        f"attentions.{j}" if isinstance(layer, (AttentionBlock, SpatialTransformer)) else
                        f"{path}samplers.0")
                places[f"{path}.{i}.{k}"] = f"{path}_blocks.{level}.{kind}"
    return translate(net, places, WORDS)
