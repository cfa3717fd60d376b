"""The U-Net: silent when fresh, skips in place, all conditions heard, and the same numbers as diffusers' network."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ldm_mini.attention import AttentionBlock, SpatialTransformer
from ldm_mini.blocks import Downsample, ResBlock, Upsample
from ldm_mini.cond import Cond
from ldm_mini.hub import build, describe
from ldm_mini.released.diffusers_unet import (
    diffusers_keys,
    unet_config_from_diffusers,
    unet_config_to_diffusers,
    unet_from_diffusers_state,
    unet_to_diffusers_state,
)
from ldm_mini.show.attention_maps import record_attention
from ldm_mini.unet import Step, UNet, UNetConfig

LEAN = UNetConfig(in_channels=3, out_channels=3, channels=32, channel_mults=(1, 2), num_res_blocks=1, attn_levels=(1,),
                  head_dim=16, groups=2, context_dim=24, vector_dim=20, concat_channels=2)
T = torch.tensor([0, 999])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def awake(net: UNet) -> UNet:
    """The same net with all its zero layers, and all norms, made random."""
    for parameter in net.parameters():
        if parameter.ndim == 1 or not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return net


def full_cond(config=LEAN, size=8, batch=2) -> Cond:
    mask = torch.ones(batch, 5, dtype=torch.bool)
    mask[0, 3:] = False
    concat = torch.randn(batch, config.concat_channels, size, size) if config.concat_channels else None
    vector = None if config.vector_dim is None else torch.randn(batch, config.vector_dim)
    return Cond(concat=concat, context=torch.randn(batch, 5, config.context_dim), mask=mask, vector=vector)


VARIANTS = {
    "lean": LEAN,
    "unconditional": UNetConfig(in_channels=3, channels=32, channel_mults=(1, 2, 3), attn_levels=(1, 2), groups=4),
    "churches": UNetConfig(in_channels=4, channels=32, channel_mults=(1, 2), attn_levels=(0, 1), num_heads=8,
                           scale_shift=True, resblock_updown=True, groups=8),
    "layout": UNetConfig(in_channels=3, channels=32, channel_mults=(1, 2), transformer_depth=3, context_dim=12,
                         groups=4, attn_levels=(1,)),
    "only the middle attends": UNetConfig(in_channels=3, channels=32, channel_mults=(1, 4), attn_levels=(), groups=4),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_fresh_net_returns_zero_and_after_the_first_steps_every_weight_learns(name):
    config = VARIANTS[name]
    net, x = UNet(config), torch.randn(2, config.in_channels, 8, 8)
    cond = Cond() if config.context_dim is None else full_cond(config)
    out = net(x, T, cond)
    assert out.shape == x.shape and out.abs().max() == 0
    awake(net)(x, T, cond).square().mean().backward()
    silent = {key for key, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0}
    assert all(key.endswith("to_k.bias") for key in silent)                     # to shift all scores changes no softmax


def test_skips_are_pushed_after_every_block_and_popped_in_reverse():
    """4 levels x 2 blocks: 12 entries with the stem and 3 downsamplings; each goes into one block on the way up."""
    net = UNet(UNetConfig(in_channels=3, channels=16, channel_mults=(1, 2, 3, 4), attn_levels=(3,), groups=4))
    assert len(net.down) == len(net.up) == 12
    kinds = [type(step[0]).__name__ for step in net.down]
    assert kinds == ["Conv2d"] + (["ResBlock"] * 2 + ["Downsample"]) * 3 + ["ResBlock"] * 2
    seen = []
    for step in (*net.down, *net.up):
        step.register_forward_hook(lambda step, args, out: seen.append((args[0], out)))
    net(torch.randn(1, 3, 8, 8), torch.tensor([5]))
    for i in range(12):
        pushed, joined = seen[11 - i][1], seen[12 + i][0]
        assert_close(joined[:, -pushed.shape[1]:], pushed, atol=0, rtol=0)


def test_attention_sits_at_the_levels_named_and_in_the_middle():
    for levels in ((), (0,), (0, 2)):
        net = UNet(UNetConfig(3, channels=16, channel_mults=(1, 2, 4), attn_levels=levels, groups=4, head_dim=8))
        widths = [m.norm.num_channels for m in net.down.modules() if isinstance(m, AttentionBlock)]
        assert widths == [16 * (1, 2, 4)[level] for level in levels for _ in range(2)]
        widths = [m.norm.num_channels for m in net.up.modules() if isinstance(m, AttentionBlock)]
        assert widths == [16 * (1, 2, 4)[level] for level in reversed(levels) for _ in range(3)]
        assert [type(layer) for layer in net.middle] == [ResBlock, AttentionBlock, ResBlock]


def test_heads_are_counted_or_measured():
    for num_heads, expected in ((None, {2, 4}), (8, {8})):
        net = UNet(replace(LEAN, attn_levels=(0, 1), num_heads=num_heads))
        transformers = [m for m in net.modules() if isinstance(m, SpatialTransformer)]
        assert {m.blocks[0].cross_attn.num_heads for m in transformers} == expected


def test_epsilons_are_those_of_the_paper():
    for module in UNet(LEAN).modules():
        if isinstance(module, SpatialTransformer):
            assert module.norm.eps == 1e-6 and module.blocks[0].norm1.eps == 1e-5
        if isinstance(module, ResBlock):
            assert module.norm1.eps == module.norm2.eps == 1e-5
    assert UNet(LEAN).norm_out.eps == 1e-5
    assert next(m for m in UNet(VARIANTS["churches"]).modules() if isinstance(m, AttentionBlock)).norm.eps == 1e-5


def test_resizing_is_a_convolution_or_a_residual_block():
    kinds = {type(m) for m in UNet(VARIANTS["churches"]).modules()}
    assert not kinds & {Downsample, Upsample}
    assert {m.resample for m in UNet(VARIANTS["churches"]).modules() if isinstance(m, ResBlock)} == {None, "down", "up"}
    assert all(not m.asymmetric for m in UNet(LEAN).modules() if isinstance(m, Downsample))


def test_every_condition_is_heard_and_masked_tokens_are_not():
    net, x, cond = awake(UNet(LEAN)).eval(), torch.randn(2, 3, 8, 8), full_cond()
    out = net(x, T, cond)
    for part in ("concat", "context", "vector"):
        assert not torch.allclose(net(x, T, replace(cond, **{part: getattr(cond, part) + 1})), out, atol=1e-4)
    assert not torch.allclose(net(x, T.flip(0), cond), out, atol=1e-4)
    garbage = cond.context.clone()
    garbage[~cond.mask] = 1e3
    assert_close(net(x, T, replace(cond, context=garbage)), out)
    unmasked = net(x, T, replace(cond, mask=None))
    assert_close(unmasked[1], out[1])
    assert not torch.allclose(unmasked[0], out[0], atol=1e-4)


def test_samples_do_not_mix_and_an_input_may_bring_its_concat_along():
    net, x, cond = awake(UNet(LEAN)).eval(), torch.randn(2, 3, 8, 8), full_cond()
    out = net(x, T, cond)
    assert_close(net(x[1:], T[1:], cond[1:]), out[1:], atol=1e-5, rtol=1e-4)
    assert_close(net(torch.cat([x, cond.concat], dim=1), T, replace(cond, concat=None)), out)


def test_other_sizes_and_channels_last_work():
    net = awake(UNet(LEAN)).eval()
    x, cond = torch.randn(2, 3, 12, 8), replace(full_cond(), concat=torch.randn(2, 2, 12, 8))
    out = net(x, T, cond)
    assert out.shape == x.shape
    assert_close(net.to(memory_format=torch.channels_last)(x, T, cond), out, atol=1e-5, rtol=1e-4)
    assert UNet(replace(LEAN, out_channels=7))(x, T, cond).shape == (2, 7, 12, 8)


def test_it_learns():
    net, x, cond = UNet(LEAN), torch.randn(4, 3, 8, 8), full_cond(batch=4)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = (net(x, torch.arange(4) * 200, cond) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_attention_maps_of_a_whole_net():
    net, x, cond = awake(UNet(LEAN)), torch.randn(2, 3, 8, 8), full_cond()
    with record_attention(net) as maps:
        net(x, T, cond)
    assert list(maps) == [f"{place}.blocks.0.cross_attn" for place in ("down.3.1", "middle.1", "up.0.1", "up.1.1")]
    assert all(m[0].shape == (2, 4, 16, 5) for m in maps.values())


@pytest.mark.parametrize("change, message", [
    ({"attn_levels": (2,)}, "level indices 0 to 1"),
    ({"groups": 6}, "32 channels cannot be split into 6 equal groups"),
    ({"head_dim": 20}, "a width of 64 cannot be split into heads with head_dim = 20"),
    ({"num_heads": 5}, "num_heads = 5"),
])
def test_what_cannot_be_built_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        UNet(replace(LEAN, **change))


@pytest.mark.parametrize("change, message", [
    ({"x": torch.randn(2, 3, 9, 8)}, "multiples of 2"),
    ({"x": torch.randn(2, 3, 8, 9)}, "multiples of 2"),
    ({"x": torch.randn(3, 8, 8)}, r"must be \(B,C,h,w\)"),
    ({"x": torch.randn(2, 4, 8, 8)}, "in_channels=3"),
    ({"concat": None}, "concat_channels=2"),
    ({"context": None, "mask": None}, "with context, but was given no cond.context"),
    ({"vector": None}, "with vector, but was given no cond.vector"),
])
def test_inputs_that_do_not_fit_are_explained(change, message):
    x = change.pop("x", torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match=message):
        UNet(LEAN)(x, T, replace(full_cond(), **change))


@pytest.mark.parametrize("part", ["context", "vector"])
def test_a_condition_that_nobody_reads_is_an_error(part):
    net = UNet(VARIANTS["unconditional"])
    with pytest.raises(ValueError, match=f"without {part}, but was given a cond.{part}"):
        net(torch.randn(2, 3, 8, 8), T, Cond(**{part: torch.randn(2, 3, 4)}))


def test_config_survives_json():
    assert build(json.loads(json.dumps(describe(LEAN)))) == LEAN


@pytest.mark.parametrize("config, millions", [
    (UNetConfig(4, channels=320, channel_mults=(1, 2, 4, 4), attn_levels=(0, 1, 2), num_heads=8, context_dim=768),
     859.520964),
    (UNetConfig(3, channels=224, channel_mults=(1, 2, 3, 4), attn_levels=(1, 2, 3)), 274.056163),
])
def test_published_sizes(config, millions):
    """Stable Diffusion v1; CelebA-256, FFHQ-256 and LSUN-Bedrooms (LDM Tab. 12)."""
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet(config).parameters()) == round(millions * 1e6)


PARITY = {
    "head width": replace(LEAN, concat_channels=0, channel_mults=(1, 2, 4), attn_levels=(1, 2)),
    "head count": replace(LEAN, num_heads=4, scale_shift=True, transformer_depth=2, vector_dim=None, attn_levels=(0,),
                          num_res_blocks=2),
}


@pytest.mark.parametrize("name", PARITY)
@pytest.mark.parametrize("deviation", [1.0, 1e-3])
def test_same_outputs_as_diffusers(name, deviation):
    """Inputs of deviation 1e-3 make the epsilons of the norms visible."""
    diffusers = pytest.importorskip("diffusers")
    config = PARITY[name]
    theirs = diffusers.UNet2DConditionModel(**unet_config_to_diffusers(config)).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.05)
    ours = unet_from_diffusers_state(dict(theirs.config), theirs.state_dict()).eval()
    x = deviation * torch.randn(2, config.in_channels + config.concat_channels, 8, 8)
    cond = replace(full_cond(config), concat=None, vector=None if config.vector_dim is None else torch.randn(2, 20))
    with torch.no_grad():
        expected = theirs(x, T, cond.context, class_labels=cond.vector, encoder_attention_mask=cond.mask).sample
        assert expected.std() > 1e-3
        assert_close(ours(x, T, cond), expected, atol=5e-5, rtol=0)


def test_weights_go_to_diffusers_and_back():
    diffusers = pytest.importorskip("diffusers")
    net = awake(UNet(replace(LEAN, concat_channels=0)))
    theirs = diffusers.UNet2DConditionModel(**unet_config_to_diffusers(net.config))
    theirs.load_state_dict(unet_to_diffusers_state(net))                        # strict: every key fits
    back = unet_from_diffusers_state(dict(theirs.config), theirs.state_dict())
    assert back.state_dict().keys() == net.state_dict().keys()
    for key, value in net.state_dict().items():
        assert_close(back.state_dict()[key], value, atol=0, rtol=0)
    # Stable Diffusion 1 writes these projections as 1x1 convolutions
    convolutional = {k: v[:, :, None, None] if k.endswith(("proj_in.weight", "proj_out.weight")) else v
                     for k, v in theirs.state_dict().items()}
    again = unet_from_diffusers_state(dict(theirs.config), convolutional)
    assert_close(again.middle[1].proj_in.weight, net.middle[1].proj_in.weight, atol=0, rtol=0)


def test_weights_that_do_not_fit_are_listed():
    net = UNet(replace(LEAN, concat_channels=0))
    config = {**unet_config_to_diffusers(net.config)}
    state = unet_to_diffusers_state(net)
    assert set(state) == set(diffusers_keys(net).values())
    del state["conv_in.bias"]
    state |= {"extra.weight": torch.zeros(1), "conv_out.bias": torch.zeros(9)}
    with pytest.raises(ValueError) as error:
        unet_from_diffusers_state(config, state)
    for named in ("missing: ['conv_in.bias']", "unknown: ['extra.weight']", "conv_out.bias: (9,) instead of (3,)"):
        assert named in str(error.value)


@pytest.mark.parametrize("change, message", [
    ({"norm_eps": 1e-6}, "norm_eps"),
    ({"down_block_types": ("SimpleCrossAttnDownBlock2D",) * 2}, "SimpleCrossAttnDownBlock2D"),
    ({"down_block_types": ("ResnetDownsampleBlock2D",) * 2}, "mirror"),
    ({"attention_head_dim": (4, 3)}, "cannot be split"),
    ({"layers_per_block": (1, 2)}, "layers_per_block"),
    ({"class_embed_type": "timestep"}, "class_embed_type"),
])
def test_diffusers_configs_beyond_ours_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        unet_config_from_diffusers({**unet_config_to_diffusers(LEAN), **change})
    assert unet_config_from_diffusers(unet_config_to_diffusers(replace(LEAN, concat_channels=0))) == replace(
        LEAN, concat_channels=0)


def test_step_gives_each_layer_what_it_reads():
    layers = ResBlock(8, 8, time_dim=6, groups=2), SpatialTransformer(8, 2, context_dim=5, groups=2), Downsample(8)
    step = Step(layers)
    assert step(torch.randn(1, 8, 4, 4), torch.randn(1, 6), torch.randn(1, 3, 5), None).shape == (1, 8, 2, 2)
