"""Weights with CompVis names give what an independent computation gives (compvis_reference.py), or are refused."""

import copy

import compvis_reference as reference
import pytest
import torch
from torch.testing import assert_close

from ldm_mini.cond import Cond
from ldm_mini.released.compvis import autoencoder_from_compvis, unet_from_compvis

CLOSE = dict(atol=5e-5, rtol=0)
T = torch.tensor([0, 37, 999])
BASE = dict(image_size=8, in_channels=3, out_channels=3, model_channels=32, num_res_blocks=1, channel_mult=[1, 2],
            attention_resolutions=[2])
TEXT = dict(use_spatial_transformer=True, context_dim=24)
KINDS = {
    "celeba": {**BASE, "num_head_channels": 16, "num_res_blocks": 2},
    "churches": {**BASE, "num_heads": 4, "attention_resolutions": [1, 2], "use_scale_shift_norm": True,
                 "resblock_updown": True},
    "new order": {**BASE, "num_heads": 4, "use_new_attention_order": True},
    "not legacy": {**BASE, "num_heads": 4, "legacy": False},
    "width wins": {**BASE, "num_heads": 4, "num_head_channels": 32},
    "semantic": {**BASE, "in_channels": 6, "num_heads": 8, "attention_resolutions": [32, 16, 8]},
    "inpainting": {**BASE, "in_channels": 7, "num_heads": 2, "resblock_updown": True},
    "text": {**BASE, **TEXT, "num_heads": 8, "legacy": False, "use_checkpoint": True},
    "one head": {**BASE, **TEXT, "num_heads": 1},
    "text, widths": {**BASE, **TEXT, "num_head_channels": 16, "channel_mult": [1, 2, 3],
                     "attention_resolutions": [4, 1]},
    "layout": {**BASE, **TEXT, "num_head_channels": 32, "transformer_depth": 3},
    "sd2": {**BASE, **TEXT, "num_head_channels": 16, "use_linear_in_transformer": True, "context_dim": [24]},
}


def inputs(p: dict, std=1.0):
    draw = torch.Generator().manual_seed(1)
    x = std * torch.randn(3, p["in_channels"], 8, 8, generator=draw)
    return x, torch.randn(3, 5, 24, generator=draw) if "context_dim" in p else None


@pytest.mark.parametrize("std", [1.0, 1e-3])
@pytest.mark.parametrize("kind", KINDS)
def test_unet_gives_what_the_released_code_gives(kind, std):
    """Inputs of deviation 1e-3 make the epsilons of the norms visible."""
    p = KINDS[kind]
    x, context = inputs(p, std)
    weights = reference.Weights()
    expected = reference.unet(weights, p, x, T, context)
    net = unet_from_compvis(p, weights)
    assert not net.training and {p.dtype for p in net.parameters()} == {torch.float32}
    with torch.no_grad():
        ours = net(x, T, Cond(context=context))
        assert expected.std() > 0.1
        assert_close(ours, expected, **CLOSE)
        if p["in_channels"] > p["out_channels"]:                # joined already, as above, or to be joined
            assert_close(net(x[:, :3], T, Cond(concat=x[:, 3:], context=context)), ours, atol=0, rtol=0)


def test_loading_copies_nothing():
    p, weights = KINDS["text"], reference.Weights()
    reference.unet(weights, p, *inputs(p)[:1], T, inputs(p)[1])
    net = unet_from_compvis(p, weights)
    assert net.down[0][0].weight.data_ptr() == weights["input_blocks.0.0.weight"].data_ptr()
    half = unet_from_compvis(p, weights, dtype=torch.float16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}
    assert weights["input_blocks.0.0.weight"].dtype == torch.float32


@pytest.mark.parametrize("change, message", [
    ({"num_classes": 10}, "num_classes"), ({"dims": 3}, "dims"), ({"conv_resample": False}, "conv_resample"),
    ({"spam": 1}, r"unknown parameters: \['spam'\]"),
    ({"num_head_channels": -1}, "num_heads or num_head_channels"), ({"num_head_channels": 24}, "cannot be split"),
    ({"context_dim": 8}, "use_spatial_transformer"),
    ({"num_head_channels": -1, "num_heads": 4, "num_heads_upsample": 2}, "num_heads_upsample"),
])
def test_unets_that_nobody_released_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        unet_from_compvis({**KINDS["celeba"], **change}, {})


def listed(load, params, weights, *parts):
    with pytest.raises(ValueError) as error:
        load(params, weights)
    assert all(part in str(error.value) for part in parts), error.value


def test_weights_that_do_not_fit_are_listed():
    p, weights = KINDS["celeba"], reference.Weights()
    reference.unet(weights, p, inputs(p)[0], T)
    del weights["out.2.bias"], weights["middle_block.1.qkv.weight"]
    weights["label_emb.weight"] = torch.zeros(3)
    weights["input_blocks.0.0.weight"] = torch.zeros(32, 5, 3, 3)
    weights["middle_block.1.qkv.bias"] = torch.zeros(7)
    listed(unet_from_compvis, p, weights, "missing: ['middle_block.1.qkv.weight', 'out.2.bias']",
           "unknown: ['label_emb.weight']", "input_blocks.0.0.weight: (32, 5, 3, 3) instead of (32, 3, 3, 3)",
           "middle_block.1.qkv.bias: (7,) instead of a multiple of (64,)")


DD = dict(double_z=False, z_channels=3, resolution=32, in_channels=3, out_ch=3, ch=32, ch_mult=[1, 2, 2],
          num_res_blocks=1, attn_resolutions=[], dropout=0.0)
STAGES = {
    "vq-f4": dict(embed_dim=3, n_embed=16, ddconfig=DD, lossconfig={"target": "torch.nn.Identity"}),
    "vq-f4-noattn": dict(embed_dim=3, n_embed=16, ddconfig={**DD, "attn_type": "none", "attn_resolutions": [8]}),
    "vq-f8": dict(embed_dim=4, n_embed=16, ddconfig={**DD, "z_channels": 4, "ch_mult": [1, 1, 2, 2],
                                                     "attn_resolutions": [4, 32]}),
    "vq, narrow codes": dict(embed_dim=2, n_embed=16, ddconfig={**DD, "z_channels": 6}, sane_index_shape=True),
    "kl": dict(embed_dim=4, monitor="val/rec_loss", ddconfig={**DD, "double_z": True, "z_channels": 4,
                                                              "num_res_blocks": 2, "attn_resolutions": [16, 8]}),
    "kl, narrow": dict(embed_dim=2, ddconfig={**DD, "double_z": True, "z_channels": 4}),
}


def stage(kind, std=1.0):
    """Parameters, weights, and the whole computation: x, what quant_conv gives, z, what is decoded, its image."""
    p, weights = STAGES[kind], reference.Weights()
    x = std * torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    h = reference.encode(weights, p, x)
    z = h if "n_embed" in p else h[:, : p["embed_dim"]]
    z_q, indices = reference.nearest_code(weights, p, z) if "n_embed" in p else (z, None)
    return p, weights, x, h, z, z_q, indices, reference.decode(weights, p, z_q)


@pytest.mark.parametrize("std", [1.0, 1e-3])
@pytest.mark.parametrize("kind", STAGES)
def test_first_stages_give_what_the_released_code_gives(kind, std):
    p, weights, x, h, z, z_q, indices, image = stage(kind, std)
    ours = autoencoder_from_compvis(p, {**weights, "loss.discriminator.main.0.weight": torch.zeros(1)})
    assert not ours.training
    with torch.no_grad():
        assert_close(ours.moments(x), h, **CLOSE)
        assert_close(ours.encode(x), z, **CLOSE)
        if "n_embed" not in p:
            assert_close(ours.decode(z), image, **CLOSE)
            draws = [torch.Generator().manual_seed(5) for _ in range(2)]
            mean, logvar = h.chunk(2, dim=1)
            sample = mean + (0.5 * logvar.clamp(-30, 20)).exp() * torch.randn(mean.shape, generator=draws[0])
            assert_close(ours.encode(x, sample=True, generator=draws[1]), sample, **CLOSE)
            return
        found, chosen, loss = ours.quantize(z)
        assert torch.equal(chosen, indices) and loss.ndim == 0
        assert_close(found, z_q, **CLOSE)
        assert_close(ours.decode(z), image, **CLOSE)            # quantises first
        assert_close(ours.decode(z_q, quantize=False), image, **CLOSE)
        assert_close(ours.decode(z, quantize=False), reference.decode(weights, p, z), **CLOSE)
        assert not torch.allclose(ours.decode(z, quantize=False), image, atol=1e-3)


def test_a_loaded_first_stage_is_whole():
    """No tensor is left on the meta device, the codebook counts as trained, and a copy works as well."""
    p, weights, x, *_ = stage("vq-f4")
    ours = autoencoder_from_compvis(p, weights)
    assert not any(v.is_meta for v in ours.state_dict().values())
    assert ours.bottleneck.quantizer.initialised and ours.bottleneck.quantizer.usage.sum() == 0
    twin = copy.deepcopy(ours)
    twin.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert_close(twin(x)[0], ours(x)[0], atol=0, rtol=0)


@pytest.mark.parametrize("change, message", [
    ({"attn_type": "linear"}, "attn_type"), ({"resamp_with_conv": False}, "resamp_with_conv"),
    ({"double_z": True}, "double_z"), ({"out_ch": 1}, "out_ch"), ({"spam": 1}, "spam"),
])
def test_first_stages_that_nobody_released_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        autoencoder_from_compvis({**STAGES["vq-f4"], "ddconfig": {**DD, **change}}, {})


def test_first_stage_weights_that_do_not_fit_are_listed():
    p, weights, *_ = stage("kl")
    del weights["quant_conv.bias"]
    weights |= {"encoder.norm_out.weight": torch.zeros(3), "quantize.embedding.weight": torch.zeros(3, 3)}
    listed(autoencoder_from_compvis, p, weights, "missing: ['quant_conv.bias']",
           "unknown: ['quantize.embedding.weight']", "encoder.norm_out.weight: (3,) instead of (64,)")
