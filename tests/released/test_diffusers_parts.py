"""Folders that diffusers wrote give the same numbers here, and folders written here open there."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.cond import Cond
from ldm_mini.dit import DiT, DiTConfig
from ldm_mini.kl import KLBottleneck
from ldm_mini.quantizer import VectorQuantizer, VQBottleneck
from ldm_mini.released.diffusers_parts import autoencoder_from_diffusers, save_diffusers, unet_from_diffusers
from ldm_mini.unet import UNet, UNetConfig

diffusers = pytest.importorskip("diffusers")
CLOSE = dict(atol=5e-5, rtol=0)
T = torch.tensor([0, 999])
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def awake(model: nn.Module) -> nn.Module:
    """Random weights everywhere, zero layers and norms too."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=parameter.detach().mean().item(), std=0.1)
        elif not parameter.any() or parameter.ndim == 4:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model.eval()


def refused(load, folder, *changes):
    """Every (change of the folder's config, message) makes `load` refuse the folder."""
    config = json.loads((folder / "config.json").read_text())
    for change, message in changes:
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=message):
            load(folder)


SMALL = dict(sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
             norm_num_groups=8)
CROSS = dict(cross_attention_dim=24, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
             up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))
CONDITIONAL = {
    "sd1": dict(CROSS, attention_head_dim=8),
    "sd2": dict(CROSS, attention_head_dim=[2, 4], use_linear_projection=True, upcast_attention=True),
    "sd1, four levels": dict(
        CROSS, attention_head_dim=8, block_out_channels=(32, 64, 64, 64), layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3),
    "lists of heads that nothing explains": dict(CROSS, attention_head_dim=[4, 2, 8], block_out_channels=(32, 48, 64),
                                                 down_block_types=("CrossAttnDownBlock2D",) * 3,
                                                 up_block_types=("CrossAttnUpBlock2D",) * 3),
    "inpainting": dict(CROSS, attention_head_dim=8, in_channels=9),
    "vector": dict(CROSS, attention_head_dim=8, class_embed_type="simple_projection",
                   projection_class_embeddings_input_dim=20),
    "deep, scale and shift": dict(CROSS, attention_head_dim=4, transformer_layers_per_block=2,
                                  resnet_time_scale_shift="scale_shift"),
    "attention in the middle only": dict(CROSS, attention_head_dim=8, down_block_types=("DownBlock2D",) * 2,
                                         up_block_types=("UpBlock2D",) * 2),
    "resized by residual blocks": dict(CROSS, attention_head_dim=8, down_block_types=("ResnetDownsampleBlock2D",) * 2,
                                       up_block_types=("ResnetUpsampleBlock2D",) * 2),
}
ATTN = dict(down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
UNCONDITIONAL = {
    "celeba": dict(ATTN, attention_head_dim=16),
    "default heads of 8": dict(ATTN),
    "one head": dict(ATTN, attention_head_dim=None),
    "super-resolution": dict(ATTN, in_channels=7, attention_head_dim=32, layers_per_block=2),
    "resized by residual blocks": dict(
        attention_head_dim=8, downsample_type="resnet", upsample_type="resnet", block_out_channels=(32, 64, 64),
        down_block_types=("AttnDownBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D")),
    "scale and shift": dict(ATTN, attention_head_dim=8, resnet_time_scale_shift="scale_shift", attn_norm_num_groups=8),
    "attention in the middle only": dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2),
}


@pytest.mark.parametrize("std", [1.0, 1e-3])
@pytest.mark.parametrize("kind, conditional", [*((kind, True) for kind in CONDITIONAL),
                                               *((kind, False) for kind in UNCONDITIONAL)])
def test_unets(kind, conditional, std, tmp_path):
    """Every block type and way of conditioning; inputs of deviation 1e-3 make the epsilons of the norms visible."""
    options = {**SMALL, **(CONDITIONAL if conditional else UNCONDITIONAL)[kind]}
    theirs = awake((diffusers.UNet2DConditionModel if conditional else diffusers.UNet2DModel)(**options))
    theirs.save_pretrained(tmp_path)
    ours, x = unet_from_diffusers(tmp_path), std * torch.randn(2, options["in_channels"], 8, 8)
    context = torch.randn(2, 5, 24) if conditional else None
    vector = torch.randn(2, 20) if kind == "vector" else None
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    with torch.no_grad():
        for m in (None, mask) if conditional else (None,):
            more = dict(encoder_hidden_states=context, encoder_attention_mask=m) if conditional else {}
            expected = theirs(x, T, class_labels=vector, **more).sample
            assert expected.std() > 0.05
            assert_close(ours(x, T, Cond(context=context, mask=m, vector=vector)), expected, **CLOSE)
        if conditional and options["in_channels"] > 4:
            joined = ours(x[:, :4], T, Cond(concat=x[:, 4:], context=context, mask=mask))
            assert_close(joined, expected, **CLOSE)


BACK = {
    "text": UNetConfig(4, channels=32, channel_mults=(1, 2), num_res_blocks=1, attn_levels=(1,), head_dim=16, groups=4,
                       context_dim=24, concat_channels=3),
    "celeba": UNetConfig(3, channels=32, channel_mults=(1, 2, 3), attn_levels=(1, 2), head_dim=16, groups=4),
    "biggan": UNetConfig(3, channels=32, channel_mults=(1, 2, 2), attn_levels=(2,), head_dim=16, groups=4,
                         resblock_updown=True, scale_shift=True),
    "one head": UNetConfig(3, channels=32, channel_mults=(1, 2), attn_levels=(0, 1), num_heads=1, groups=4),
}


@pytest.mark.parametrize("kind", BACK)
def test_our_unets_open_there_and_come_back(kind, tmp_path):
    config = BACK[kind]
    ours = awake(UNet(config))
    save_diffusers(ours, tmp_path, sample_size=8)
    there = diffusers.UNet2DModel if config.context_dim is None else diffusers.UNet2DConditionModel
    theirs, info = there.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    x = torch.randn(2, config.in_channels + config.concat_channels, 8, 8)
    context = None if config.context_dim is None else torch.randn(2, 5, config.context_dim)
    with torch.no_grad():
        mine = ours(x, T, Cond(context=context))
        assert_close(theirs(x, T, *([] if context is None else [context])).sample, mine, **CLOSE)
        back = unet_from_diffusers(tmp_path)
        assert replace(back.config, out_channels=None) == config
        assert_close(back(x, T, Cond(context=context)), mine, atol=0, rtol=0)


@pytest.mark.parametrize("change, message", [
    (dict(context_dim=8, resblock_updown=True), "resblock_updown"), (dict(vector_dim=8), "vector_dim"),
    (dict(num_heads=2), "one width of heads"), (dict(channel_mults=(2, 2, 3)), "begin with 1")])
def test_unets_that_diffusers_has_not_are_refused(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_diffusers(UNet(replace(BACK["celeba"], **change)), tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_other_ways_to_store_the_same_net(tmp_path):
    """Sharded, pickled, in half precision, as a part of a pipeline, with the attention names of older versions."""
    theirs = awake(diffusers.UNet2DModel(**SMALL, **UNCONDITIONAL["celeba"]))
    x = torch.randn(1, 4, 8, 8)
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    theirs.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    theirs.save_pretrained(tmp_path / "pipeline" / "unet")
    theirs.save_pretrained(tmp_path / "variant", variant="fp16")
    theirs.save_pretrained(tmp_path / "old")
    words = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    old = load_file(tmp_path / "old" / WEIGHTS)
    for new, word in words.items():
        old = {name.replace(new, word): value for name, value in old.items()}
    save_file(old, tmp_path / "old" / WEIGHTS)
    with torch.no_grad():
        expected = theirs(x, 7).sample
        for folder in ("sharded", "pickled", "pipeline", "variant", "old"):
            assert_close(unet_from_diffusers(tmp_path / folder)(x, torch.tensor([7])), expected, **CLOSE)
        half = unet_from_diffusers(tmp_path / "sharded", dtype=torch.float16)
        assert {p.dtype for p in half.parameters()} == {torch.float16}
        assert_close(half.float()(x, torch.tensor([7])), expected, atol=0.02, rtol=0.02)


def test_unets_beyond_ours_are_refused(tmp_path):
    diffusers.UNet2DModel(**SMALL, **UNCONDITIONAL["celeba"]).save_pretrained(tmp_path)
    refused(unet_from_diffusers, tmp_path, ({"_class_name": "Flux"}, "Flux"), ({"norm_eps": 1e-6}, "norm_eps"),
            ({"add_attention": False}, "add_attention"), ({"upsample_type": "resnet"}, "partly"),
            ({"out_channels": 9}, r"conv_out.bias: \(4,\) instead of \(9,\)"))
    (tmp_path / WEIGHTS).write_bytes(b"12")
    with pytest.raises(ValueError, match="damaged"):
        unet_from_diffusers(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="no diffusion_pytorch_model.safetensors"):
        unet_from_diffusers(tmp_path)


STAGE = dict(block_out_channels=(16, 32, 32), layers_per_block=1, norm_num_groups=8, latent_channels=4,
             down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
             up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"))
PLAIN = dict(down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3)
STAGES = {
    "kl": ("AutoencoderKL", {}), "kl, plain": ("AutoencoderKL", PLAIN),
    "kl, no attention": ("AutoencoderKL", {**PLAIN, "mid_block_add_attention": False, "layers_per_block": 2}),
    "vq": ("VQModel", dict(num_vq_embeddings=32)),
    "vq, narrow codes": ("VQModel", dict(num_vq_embeddings=32, vq_embed_dim=2, block_out_channels=(16, 24, 32))),
    "vq, no attention": ("VQModel", {**PLAIN, "num_vq_embeddings": 32, "mid_block_add_attention": False}),
}


@pytest.mark.parametrize("std", [1.0, 1e-3])
@pytest.mark.parametrize("kind", STAGES)
def test_first_stages(kind, std, tmp_path):
    name, options = STAGES[kind]
    theirs = awake(getattr(diffusers, name)(**{**STAGE, **options}))
    if name == "VQModel":
        nn.init.normal_(theirs.quantize.embedding.weight)
    theirs.save_pretrained(tmp_path)
    ours, x = autoencoder_from_diffusers(tmp_path), std * torch.randn(2, 3, 16, 16)
    z = std * torch.randn(2, ours.config.latent_channels, 4, 4)
    with torch.no_grad():
        if name == "AutoencoderKL":
            posterior = theirs.encode(x).latent_dist
            assert_close(ours.encode(x), posterior.mode(), **CLOSE)
            draws = [torch.Generator().manual_seed(3) for _ in range(2)]
            assert_close(ours.encode(x, sample=True, generator=draws[0]), posterior.sample(draws[1]), **CLOSE)
            assert_close(ours.decode(z), theirs.decode(z).sample, **CLOSE)
            return
        assert_close(ours.encode(x), theirs.encode(x).latents, **CLOSE)
        z_q, _, (_, _, indices) = theirs.quantize(z)
        found, chosen, _ = ours.quantize(z)
        assert torch.equal(chosen.flatten(), indices.flatten())
        assert_close(found, z_q, **CLOSE)
        assert_close(ours.decode(z), theirs.decode(z).sample, **CLOSE)
        assert_close(ours.decode(z, quantize=False), theirs.decode(z, force_not_quantize=True).sample, **CLOSE)


@pytest.mark.parametrize("kind", ["kl", "vq", "vq, wide z"])
def test_our_first_stages_open_there_and_come_back(kind, tmp_path):
    config = AutoencoderConfig(latent_channels=4, channels=16, groups=4, num_res_blocks=1, attn_levels=(2,),
                               z_channels=6 if kind == "vq, wide z" else None)
    bottleneck = KLBottleneck(4) if kind == "kl" else VQBottleneck(VectorQuantizer(16, 4))
    ours = awake(Autoencoder(config, bottleneck))
    save_diffusers(ours, tmp_path, scaling_factor=0.3)
    there = diffusers.AutoencoderKL if kind == "kl" else diffusers.VQModel
    theirs, info = there.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and theirs.config.scaling_factor == 0.3
    x, z = torch.randn(1, 3, 16, 16), torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        encoded = theirs.encode(x).latent_dist.mode() if kind == "kl" else theirs.encode(x).latents
        assert_close(encoded, ours.encode(x), **CLOSE)
        assert_close(theirs.decode(z).sample, ours.decode(z), **CLOSE)
        assert_close(autoencoder_from_diffusers(tmp_path).decode(z), ours.decode(z), atol=0, rtol=0)
    with pytest.raises(ValueError, match="patch_size"):
        save_diffusers(Autoencoder(AutoencoderConfig(patch_size=4, channels=16, groups=4), KLBottleneck(3)), tmp_path)


def test_first_stages_beyond_ours_are_refused(tmp_path):
    diffusers.AutoencoderKL(**STAGE).save_pretrained(tmp_path)
    refused(autoencoder_from_diffusers, tmp_path, ({"use_quant_conv": False}, "use_quant_conv"),
            ({"shift_factor": 0.1}, "shift_factor"), ({"out_channels": 4}, "out_channels"),
            ({"up_block_types": ["Up"] * 3}, "up_block_types"), ({"_class_name": "AutoencoderDC"}, "AutoencoderDC"),
            ({"latent_channels": 5}, "wrong shape"))


DIT = dict(num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=3, sample_size=8, patch_size=2,
           num_embeds_ada_norm=10)


def dit(shared: bool, **options):
    theirs = awake(diffusers.DiTTransformer2DModel(**{**DIT, **options}))
    for block in theirs.transformer_blocks if shared else ():
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    return theirs


@pytest.mark.parametrize("std", [1.0, 1e-3])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("options", [{}, {"out_channels": 8}, {"norm_eps": 1e-6, "patch_size": 4}])
def test_dits(options, shared, std, tmp_path):
    """Published weights give every block the same embedding, fresh ones do not; out_channels 8: learned variance."""
    theirs = dit(shared, **options)
    theirs.save_pretrained(tmp_path)
    ours, x, classes = unet_from_diffusers(tmp_path), std * torch.randn(2, 4, 8, 8), torch.tensor([3, 10])  # 10: none
    assert len(ours.embeddings) == (1 if shared else 3)
    with torch.no_grad():
        expected = theirs(x, T, classes).sample
        assert expected.std() > 0.05 and expected.shape[1] == options.get("out_channels", 4)
        assert_close(ours(x, T, Cond(vector=classes)), expected, **CLOSE)
        larger = std * torch.randn(2, 4, 16, 16)
        assert_close(ours(larger, T, Cond(vector=classes)), theirs(larger, T, classes).sample, **CLOSE)


@pytest.mark.parametrize("own", [False, True])
def test_our_dits_open_there_and_come_back(own, tmp_path):
    config = DiTConfig(width=16, depth=2, num_heads=2, input_size=8, num_classes=5, time_code_to_the_end=True,
                       own_embeddings=own)
    ours = awake(DiT(config))
    save_diffusers(ours, tmp_path)
    theirs, info = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    x, classes = torch.randn(2, 4, 8, 8), torch.tensor([0, 4])
    with torch.no_grad():
        assert_close(theirs(x, T, classes).sample, ours(x, T, Cond(vector=classes)), **CLOSE)
    assert replace(unet_from_diffusers(tmp_path).config, out_channels=None) == config
    for change in ({"num_classes": None}, {"context_dim": 8}, {"positions": False}):
        with pytest.raises(ValueError, match="num_classes, positions"):
            save_diffusers(DiT(replace(config, **change)), tmp_path)
    with pytest.raises(ValueError, match="no class"):
        save_diffusers(nn.Linear(1, 1), tmp_path)


def test_dits_beyond_ours_are_refused(tmp_path):
    dit(True).save_pretrained(tmp_path)
    refused(unet_from_diffusers, tmp_path, ({"activation_fn": "geglu"}, "activation_fn"),
            ({"norm_type": "ada_norm"}, "norm_type"), ({"num_layers": 2}, "unknown: .*transformer_blocks.2"))
