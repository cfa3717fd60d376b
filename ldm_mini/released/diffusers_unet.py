"""Our U-Net is diffusers' UNet2DConditionModel, or without a context its UNet2DModel: other names, the same network."""

from torch import Tensor

from ..attention import AttentionBlock, SpatialTransformer
from ..blocks import ResBlock
from ..unet import UNet, UNetConfig
from .reading import fit, heads_of, on_meta, translate

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
ATTENDED = {"DownBlock2D": False, "ResnetDownsampleBlock2D": False, "AttnDownBlock2D": True,
            "CrossAttnDownBlock2D": True}
UPWARD = {"DownBlock2D": "UpBlock2D", "ResnetDownsampleBlock2D": "ResnetUpsampleBlock2D",
          "AttnDownBlock2D": "AttnUpBlock2D", "CrossAttnDownBlock2D": "CrossAttnUpBlock2D"}
WORDS = {
    ResBlock: {"time_proj": "time_emb_proj", "shortcut": "conv_shortcut"},
    AttentionBlock: {"norm": "group_norm", "attn.to_out": "to_out.0", "attn.to_q": "to_q", "attn.to_k": "to_k",
                     "attn.to_v": "to_v"},
    SpatialTransformer: {"blocks": "transformer_blocks", "self_attn": "attn1", "cross_attn": "attn2",
                         "to_out": "to_out.0", "ff.proj": "ff.net.0.proj", "ff.out": "ff.net.2"},
}


def unet_from_diffusers_state(config: dict, state: dict[str, Tensor], dtype=None) -> UNet:
    """A U-Net with the weights of a UNet2DConditionModel or UNet2DModel: its `config` and its `state_dict()`.

    Raises ValueError that lists every missing, unknown or ill-shaped name.
    """
    net = on_meta(UNet, unet_config_from_diffusers(config))
    return fit(net, diffusers_keys(net), state, dtype=dtype)


def unet_to_diffusers_state(net: UNet) -> dict[str, Tensor]:
    """The weights of `net` for the class `diffusers_class(net.config)` of diffusers."""
    names = diffusers_keys(net)
    return {names[ours]: value for ours, value in net.state_dict().items()}


def unet_config_from_diffusers(config: dict) -> UNetConfig:
    """Our config for that of diffusers. Raises ValueError for what our U-Net does not express."""
    if bad := {name: config[name] for name, values in FIXED.items() if config.get(name, values[0]) not in values}:
        raise ValueError(f"unet_config_from_diffusers: {bad} differ from what our U-Net computes: "
                         f"{ {name: FIXED[name] for name in bad} }.")
    widths, attended = list(config["block_out_channels"]), _attended(config)
    levels = tuple(level for level, yes in enumerate(attended) if yes)
    context, groups = _one(config, "cross_attention_dim", None), config.get("norm_num_groups", 32)
    scale_shift = config.get("resnet_time_scale_shift") == "scale_shift"
    if context is None and config.get("attn_norm_num_groups") not in (groups, None):
        raise ValueError(f"unet_config_from_diffusers: attn_norm_num_groups={config['attn_norm_num_groups']}, "
                         f"norm_num_groups={groups}: our U-Net has the same groups everywhere.")
    inputs, outputs = config["in_channels"], config["out_channels"]
    return UNetConfig(
        in_channels=min(inputs, outputs), out_channels=outputs, concat_channels=max(inputs - outputs, 0),
        channels=widths[0], channel_mults=multiples(widths),
        num_res_blocks=_one(config, "layers_per_block", 2), attn_levels=levels, context_dim=context,
        transformer_depth=_one(config, "transformer_layers_per_block", 1), groups=groups,
        vector_dim=config.get("projection_class_embeddings_input_dim"), scale_shift=scale_shift,
        resblock_updown=_resized_by_blocks(config), dropout=config.get("dropout", 0.0),
        **_heads(config, widths, {*levels, len(widths) - 1}))


def multiples(widths: list[int]) -> tuple:
    """Widths as multiples of the first: whole numbers where they are."""
    return tuple(width / widths[0] if width % widths[0] else width // widths[0] for width in widths)


def _attended(config: dict) -> list[bool]:
    """Per level, whether it has attention; the way up must be the mirror of the way down."""
    down = config["down_block_types"]
    if bad := sorted(set(down) - set(ATTENDED)):
        raise ValueError(f"unet_config_from_diffusers: block types {bad} are unknown; not {sorted(ATTENDED)}.")
    mirrored = [UPWARD[kind] for kind in reversed(down)]
    resnet = ("ResnetUpsampleBlock2D", "UpBlock2D")             # the same where nothing is resized
    for theirs, ours in zip(config.get("up_block_types", mirrored), mirrored, strict=True):
        if theirs != ours and not {theirs, ours} <= set(resnet):
            raise ValueError(f"unet_config_from_diffusers: up_block_types {list(config['up_block_types'])} are not the "
                             f"mirror of the way down, {mirrored}.")
    kinds = {kind for kind in down if ATTENDED[kind]}
    if len(kinds) > 1 or (kinds == {"AttnDownBlock2D"}) and config.get("cross_attention_dim") is not None:
        raise ValueError(f"unet_config_from_diffusers: attention of the kinds {sorted(kinds)} with cross_attention_dim="
                         f"{config.get('cross_attention_dim')}: ours all read the context, or there is none.")
    return [ATTENDED[kind] for kind in down]


def _resized_by_blocks(config: dict) -> bool:
    """Whether residual blocks change the size (BigGAN style); all of them must, or none."""
    down, up = config["down_block_types"][:-1], config.get("up_block_types", [])[:-1]
    by_type = {"ResnetDownsampleBlock2D": True, "ResnetUpsampleBlock2D": True,
               "AttnDownBlock2D": config.get("downsample_type", "conv") == "resnet",
               "AttnUpBlock2D": config.get("upsample_type", "conv") == "resnet"}
    kinds = {by_type.get(kind, False) for kind in (*down, *up)}
    if len(kinds) > 1:
        raise ValueError(f"unet_config_from_diffusers: {list(down)} and {list(up)} change the size partly by residual "
                         "blocks, partly by convolutions; ours all do the same.")
    return kinds == {True}


def _heads(config: dict, widths: list[int], levels) -> dict:
    """num_heads and head_dim. "attention_head_dim" is a number of heads in one class, their width in the other."""
    given = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    if "cross_attention_dim" in config:
        counts = [given] * len(widths) if isinstance(given, int) else list(given)
        if bad := [widths[i] for i in levels if widths[i] % counts[i]]:
            raise ValueError(f"unet_config_from_diffusers: widths {bad} cannot be split into {counts} heads.")
    else:
        if bad := [widths[i] for i in levels if given is not None and widths[i] % given]:
            raise ValueError(f"unet_config_from_diffusers: widths {bad} cannot be split into heads of {given}.")
        if given is not None:
            return {"num_heads": None, "head_dim": given}
        counts = [1] * len(widths)
    attended = sorted(levels)                                   # what is said of other levels matters only to be brief
    brief = heads_of(counts, widths), heads_of([counts[i] for i in attended], [widths[i] for i in attended])
    return next((said for said in brief if not isinstance(said["num_heads"], tuple)), brief[0])


def _one(config: dict, name: str, default):
    """A value that may be given once for all levels, or once per level."""
    value = config.get(name, default)
    if isinstance(value, (list, tuple)):
        if len(set(value)) > 1 or isinstance(value[0], (list, tuple)):
            raise ValueError(f"unet_config_from_diffusers: {name}={value} differs between levels; ours does not.")
        return value[0]
    return value


# ------------------------------------------------------------------------------------------------------------ and back


def diffusers_class(config: UNetConfig) -> str:
    """Which class of diffusers is the same network."""
    return "UNet2DModel" if config.context_dim is None else "UNet2DConditionModel"


def unet_config_to_diffusers(config: UNetConfig, sample_size: int | None = None) -> dict:
    """Keyword arguments of the `diffusers_class(config)` that computes what UNet(config) does."""
    c, conditional = config, config.context_dim is not None
    if c.channel_mults[0] != 1 or (conditional and c.resblock_updown) or (not conditional and c.vector_dim is not None):
        raise ValueError("unet_config_to_diffusers: channel_mults must begin with 1, and diffusers has no network with "
                         f"context_dim and resblock_updown, nor one with vector_dim and no context_dim; got {c}.")
    attended = [level in c.attn_levels for level in range(len(c.channel_mults))]
    plain = "ResnetDownsampleBlock2D" if c.resblock_updown else "DownBlock2D"
    down = [("CrossAttnDownBlock2D" if conditional else "AttnDownBlock2D") if a else plain for a in attended]
    common = dict(
        sample_size=sample_size, in_channels=c.in_channels + c.concat_channels,
        out_channels=c.out_channels or c.in_channels, block_out_channels=tuple(c.widths),
        layers_per_block=c.num_res_blocks, norm_num_groups=c.groups, dropout=c.dropout,
        down_block_types=tuple(down), up_block_types=tuple(UPWARD[kind] for kind in reversed(down)),
        resnet_time_scale_shift="scale_shift" if c.scale_shift else "default")
    counts = [c.heads(i)["num_heads"] or width // c.head_dim for i, width in enumerate(c.widths)]
    if conditional:
        return common | dict(
            cross_attention_dim=c.context_dim, attention_head_dim=tuple(counts), use_linear_projection=True,
            transformer_layers_per_block=c.transformer_depth,
            class_embed_type=None if c.vector_dim is None else "simple_projection",
            projection_class_embeddings_input_dim=c.vector_dim)
    levels = sorted({*c.attn_levels, len(c.widths) - 1})
    head_dims = {c.widths[i] // counts[i] for i in levels}
    if len(head_dims) > 1 and {counts[i] for i in levels} != {1}:
        raise ValueError(f"unet_config_to_diffusers: UNet2DModel has one width of heads at all levels (or one head), "
                         f"not {[counts[i] for i in levels]} heads at the widths {[c.widths[i] for i in levels]}.")
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
    for path, steps, stem in (("down", net.down, 1), ("up", net.up, 0)):
        for i, step in list(enumerate(steps))[stem:]:
            level, j = divmod(i - stem, net.config.num_res_blocks + 1)
            for k, layer in enumerate(step):
                kind = (f"resnets.{j}" if isinstance(layer, ResBlock) and layer.resample is None else
                        f"attentions.{j}" if isinstance(layer, (AttentionBlock, SpatialTransformer)) else
                        f"{path}samplers.0")
                places[f"{path}.{i}.{k}"] = f"{path}_blocks.{level}.{kind}"
    return translate(net, places, WORDS)
