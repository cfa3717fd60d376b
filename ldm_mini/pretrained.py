"""Weights from outside: our U-Net and diffusers' UNet2DConditionModel are the same network under other names."""

from torch import Tensor

from .attention import SpatialTransformer
from .blocks import ResBlock
from .unet import UNet, UNetConfig

# What leaves no trace in the keys of a UNet2DConditionModel but changes its output: only these values are ours.
FIXED = {"act_fn": "silu", "norm_eps": 1e-5, "flip_sin_to_cos": True, "freq_shift": 0, "center_input_sample": False,
         "downsample_padding": 1, "mid_block_scale_factor": 1, "only_cross_attention": False,
         "dual_cross_attention": False, "timestep_post_act": None, "time_embedding_type": "positional"}

# Names inside the layers, ours -> theirs, for what differs.
LAYER_NAMES = {"time_proj": "time_emb_proj", "shortcut": "conv_shortcut", "blocks": "transformer_blocks",
               "self_attn": "attn1", "cross_attn": "attn2", "to_out": "to_out.0", "ff.proj": "ff.net.0.proj",
               "ff.out": "ff.net.2"}


def unet_config_from_diffusers(config: dict) -> UNetConfig:
    """Our config for that of a UNet2DConditionModel. Raises ValueError for what our U-Net does not express."""
    if bad := {name: config[name] for name, value in FIXED.items() if config.get(name, value) != value}:
        raise ValueError(f"unet_config_from_diffusers: {bad} differ from what our U-Net computes: {FIXED}.")
    kinds = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
    if bad := set(config["down_block_types"]) - set(kinds):
        raise ValueError(f"unet_config_from_diffusers: block types {sorted(bad)} are unknown; not {sorted(kinds)}.")
    widths, heads = config["block_out_channels"], config.get("num_attention_heads") or config["attention_head_dim"]
    heads = [heads] * len(widths) if isinstance(heads, int) else list(heads)    # its "attention_head_dim" is a count
    same_count, head_dims = len(set(heads)) == 1, {width / count for width, count in zip(widths, heads)}
    if not same_count and len(head_dims) > 1:
        raise ValueError(f"unet_config_from_diffusers: {heads} heads at widths {list(widths)} share neither their "
                         "number nor their width.")
    if bad := [width for width in widths if width % widths[0]]:
        raise ValueError(f"unet_config_from_diffusers: widths {bad} are not multiples of the first, {widths[0]}.")
    return UNetConfig(
        in_channels=config["in_channels"], out_channels=config["out_channels"], channels=widths[0],
        channel_mults=tuple(width // widths[0] for width in widths), num_res_blocks=config["layers_per_block"],
        attn_levels=tuple(level for level, kind in enumerate(config["down_block_types"]) if kinds[kind]),
        num_heads=heads[0] if same_count else None, head_dim=int(min(head_dims)),
        context_dim=config["cross_attention_dim"], transformer_depth=config.get("transformer_layers_per_block", 1),
        vector_dim=config.get("projection_class_embeddings_input_dim"), groups=config["norm_num_groups"],
        scale_shift=config.get("resnet_time_scale_shift") == "scale_shift", dropout=config.get("dropout", 0.0))


def unet_config_to_diffusers(config: UNetConfig, sample_size: int | None = None) -> dict:
    """Keyword arguments of the UNet2DConditionModel that computes what UNet(config) does."""
    c = config
    if c.context_dim is None or c.resblock_updown or c.channel_mults[0] != 1:
        raise ValueError("unet_config_to_diffusers: UNet2DConditionModel needs context_dim, resblock_updown=False and "
                         f"channel_mults that begin with 1, got {c}.")
    attended = [level in c.attn_levels for level in range(len(c.channel_mults))]
    return dict(
        sample_size=sample_size, in_channels=c.in_channels + c.concat_channels,
        out_channels=c.out_channels or c.in_channels, block_out_channels=tuple(c.widths),
        layers_per_block=c.num_res_blocks, cross_attention_dim=c.context_dim, norm_num_groups=c.groups,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attended),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)),
        attention_head_dim=tuple(c.num_heads or width // c.head_dim for width in c.widths),
        transformer_layers_per_block=c.transformer_depth, use_linear_projection=True, dropout=c.dropout,
        resnet_time_scale_shift="scale_shift" if c.scale_shift else "default",
        class_embed_type=None if c.vector_dim is None else "simple_projection",
        projection_class_embeddings_input_dim=c.vector_dim)


def unet_from_diffusers_state(config: dict, state: dict[str, Tensor]) -> UNet:
    """A UNet with the weights of a UNet2DConditionModel: its `config` and `state_dict()`.

    Raises ValueError that lists every missing, unknown or ill-shaped key.
    """
    net = UNet(unet_config_from_diffusers(config))
    own, names = net.state_dict(), diffusers_keys(net)
    missing = sorted(theirs for theirs in names.values() if theirs not in state)
    unknown = sorted(set(state) - set(names.values()))
    shapes = [f"{theirs}: {tuple(state[theirs].shape)} instead of {tuple(own[ours].shape)}"
              for ours, theirs in names.items()
              if theirs in state and _trim(state[theirs], own[ours]).shape != own[ours].shape]
    if missing or unknown or shapes:
        raise ValueError("unet_from_diffusers_state: the weights do not fit.\n"
                         f"missing: {missing}\nunknown: {unknown}\nwrong shape: {shapes}")
    net.load_state_dict({ours: _trim(state[theirs], own[ours]) for ours, theirs in names.items()})
    return net


def unet_to_diffusers_state(net: UNet) -> dict[str, Tensor]:
    """The weights of `net` for UNet2DConditionModel(**unet_config_to_diffusers(net.config))."""
    names = diffusers_keys(net)
    return {names[ours]: value for ours, value in net.state_dict().items()}


def diffusers_keys(net: UNet) -> dict[str, str]:
    """{our key: the UNet2DConditionModel's key} for every weight of `net`."""
    prefixes = {"time_embedding.linear1": "time_embedding.linear_1",
                "time_embedding.linear2": "time_embedding.linear_2",
                "vector_proj": "class_embedding", "norm_out": "conv_norm_out", "conv_out": "conv_out",
                "down.0.0": "conv_in", "middle.0": "mid_block.resnets.0", "middle.1": "mid_block.attentions.0",
                "middle.2": "mid_block.resnets.1"}
    for path, steps, stem in (("down", net.down, 1), ("up", net.up, 0)):
        for i, step in list(enumerate(steps))[stem:]:
            level, j = divmod(i - stem, net.config.num_res_blocks + 1)
            for k, layer in enumerate(step):
                kind = (f"resnets.{j}" if isinstance(layer, ResBlock) else
                        f"attentions.{j}" if isinstance(layer, SpatialTransformer) else f"{path}samplers.0")
                prefixes[f"{path}.{i}.{k}"] = f"{path}_blocks.{level}.{kind}"
    keys = {}
    for key in net.state_dict():
        prefix = next(p for p in prefixes if key.startswith(p + "."))
        rest = key[len(prefix):]
        for ours, theirs in LAYER_NAMES.items():
            rest = rest.replace(f".{ours}.", f".{theirs}.")
        keys[key] = prefixes[prefix] + rest
    return keys


def _trim(value: Tensor, like: Tensor) -> Tensor:
    """A 1x1 convolution's weight as the weight of a linear layer, where ours is one."""
    return value[:, :, 0, 0] if value.ndim == 4 and like.ndim == 2 and value.shape[2:] == (1, 1) else value
