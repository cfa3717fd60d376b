"""The U-Net: silent when fresh, skips in place, all conditions heard, its weights kept.

That it computes what diffusers' networks compute is tested in released/test_diffusers_parts.py.
"""

from dataclasses import replace

import pytest
import torch
from random_nets import all_heard, awake, learns
from torch.testing import assert_close

from ldm_mini.attention import AttentionBlock, SpatialTransformer
from ldm_mini.blocks import Downsample, ResBlock, Upsample
from ldm_mini.cond import Cond
from ldm_mini.released.diffusers_unet import (
    unet_config_from_diffusers,
    unet_config_to_diffusers,
    unet_from_diffusers_state,
    unet_to_diffusers_state,
)
from ldm_mini.show.attention_maps import record_attention
from ldm_mini.unet import UNet, UNetConfig

LEAN = UNetConfig(in_channels=3, out_channels=3, channels=32, channel_mults=(1, 2), num_res_blocks=1, attn_levels=(1,),
                  head_dim=16, groups=2, context_dim=24, vector_dim=20, concat_channels=2)
T = torch.tensor([0, 999])


def full_cond(config=LEAN, batch=2) -> Cond:
    mask = torch.ones(batch, 5, dtype=torch.bool)
    mask[0, 3:] = False
    concat = torch.randn(batch, config.concat_channels, 8, 8) if config.concat_channels else None
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
    assert all_heard(net, awake(net)(x, T, cond).square().mean())


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
        down, up = ([m.norm.num_channels for m in half.modules() if isinstance(m, AttentionBlock)]
                    for half in (net.down, net.up))
        assert down == [16 * (1, 2, 4)[level] for level in levels for _ in range(2)]
        assert up == [16 * (1, 2, 4)[level] for level in reversed(levels) for _ in range(3)]
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
    churches = list(UNet(VARIANTS["churches"]).modules())
    assert not {type(m) for m in churches} & {Downsample, Upsample}
    assert {m.resample for m in churches if isinstance(m, ResBlock)} == {None, "down", "up"}
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


def test_a_vector_is_added_to_what_is_heard_of_the_time():
    net, x, cond = awake(UNet(LEAN)).eval(), torch.randn(2, 3, 8, 8), full_cond()
    out = net(x, T, cond)
    vector = net.vector_proj(cond.vector) - net.vector_proj(torch.zeros_like(cond.vector))
    net.time_embedding.register_forward_hook(lambda module, args, time: time + vector)
    assert_close(net(x, T, replace(cond, vector=torch.zeros_like(cond.vector))), out)


def test_attention_without_a_condition_begins_as_the_identity():
    blocks = [m for m in UNet(VARIANTS["unconditional"]).modules() if isinstance(m, AttentionBlock)]
    x = torch.randn(1, blocks[0].norm.num_channels, 4, 4)
    assert len(blocks) > 3 and torch.equal(blocks[0](x), x)


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
    assert learns(UNet(LEAN), 25, full_cond(batch=4))


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


def test_weights_go_to_diffusers_and_back():
    diffusers = pytest.importorskip("diffusers")
    net = awake(UNet(replace(LEAN, concat_channels=0)))
    theirs = diffusers.UNet2DConditionModel(**unet_config_to_diffusers(net.config))
    theirs.load_state_dict(unet_to_diffusers_state(net))                        # strict: every key fits
    back = unet_from_diffusers_state(dict(theirs.config), theirs.state_dict())
    assert back.config == net.config
    assert_close(back.state_dict(), net.state_dict(), atol=0, rtol=0)


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
