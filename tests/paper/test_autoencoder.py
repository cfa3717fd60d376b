"""The first stage against diffusers and the published sizes; shapes, gradients, learning, errors."""

import copy
import json
from dataclasses import FrozenInstanceError, asdict

import pytest
import torch
from torch.testing import assert_close

from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.hub import build, describe
from ldm_mini.kl import KLBottleneck
from ldm_mini.quantizer import VectorQuantizer, VQBottleneck


def small(bottleneck="vq", seed=0, **options):
    torch.manual_seed(seed)
    config = AutoencoderConfig(**{"channels": 16, "groups": 4, "num_res_blocks": 1, **options})
    c = config.latent_channels
    return Autoencoder(config, VQBottleneck(VectorQuantizer(32, c)) if bottleneck == "vq" else KLBottleneck(c))


def images(b=2, size=32, channels=3, seed=0):
    """Smooth pictures in [-1, 1]: random 4x4 grids, enlarged."""
    coarse = torch.rand(b, channels, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-1, 1)


# ------------------------------------------------------------------ the published models


def count(config, bottleneck):
    return sum(p.numel() for p in Autoencoder(config, bottleneck).parameters())


def test_published_parameter_counts():
    """On the meta device: nothing is allocated. 83,653,863 is Stable Diffusion's first stage."""
    with torch.device("meta"):
        assert count(AutoencoderConfig(downsample_factor=8, latent_channels=4), KLBottleneck(4)) == 83_653_863
        vq_f4 = count(AutoencoderConfig(), VQBottleneck(VectorQuantizer(8192, 3)))
        assert vq_f4 == 55_322_782
        middle = 2 * (2 * 512 + 4 * (512 * 512 + 512))            # two attentions: a norm, and q, k, v, out
        assert count(AutoencoderConfig(mid_attn=False), VQBottleneck(VectorQuantizer(8192, 3))) == vq_f4 - middle


# name: f, c, multipliers, attended levels, codes (None: KL); paper_facts table 1.1, i.e. the released configurations
PUBLISHED = {
    "vq-f4": (4, 3, (1, 2, 4), (), 8192), "vq-f8": (8, 4, (1, 2, 2, 4), (3,), 16384),
    "vq-f16": (16, 8, (1, 1, 2, 2, 4), (4,), 16384), "kl-f4": (4, 3, (1, 2, 4), (), None),
    "kl-f8": (8, 4, (1, 2, 4, 4), (), None), "kl-f16": (16, 16, (1, 1, 2, 2, 4), (4,), None),
    "kl-f32": (32, 64, (1, 1, 2, 2, 4, 4), (4, 5), None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_have_the_size_and_latent_that_diffusers_gives_them(name):
    diffusers = pytest.importorskip("diffusers")
    f, c, mults, attn, codes = PUBLISHED[name]
    down = tuple("AttnDownEncoderBlock2D" if i in attn else "DownEncoderBlock2D" for i in range(len(mults)))
    up = tuple(block.replace("DownEn", "UpDe") for block in down[::-1])
    options = {"down_block_types": down, "up_block_types": up,
               "block_out_channels": tuple(128 * m for m in mults), "layers_per_block": 2, "latent_channels": c}
    with torch.device("meta"):
        config = AutoencoderConfig(downsample_factor=f, latent_channels=c, channel_mults=mults, attn_levels=attn)
        ours = Autoencoder(config, VQBottleneck(VectorQuantizer(codes, c)) if codes else KLBottleneck(c))
        theirs = diffusers.VQModel(**options, num_vq_embeddings=codes) if codes else diffusers.AutoencoderKL(**options)
        assert ours.eval().encode(torch.zeros(1, 3, 256, 256)).shape == (1, c, 256 // f, 256 // f)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def diffusers_names(autoencoder):
    """{our weight name: diffusers' name}. The same table, with other words, serves the CompVis checkpoints."""
    levels, names = len(autoencoder.config.channel_mults), {}
    for name in autoencoder.state_dict():
        other = name
        for part, direction, word in (("encoder", "down", "downsamplers"), ("decoder", "up", "upsamplers")):
            for i in range(levels):
                other = other.replace(f"{part}.levels.{i}.", f"{part}.{direction}_blocks.{i}.")
            if other.startswith(part):
                other = other.replace(".resize.", f".{word}.0.")
        for ours, theirs in (("middle.block1", "mid_block.resnets.0"), ("middle.block2", "mid_block.resnets.1"),
                             ("middle.attn", "mid_block.attentions.0"), (".blocks.", ".resnets."),
                             (".attns.", ".attentions."), ("shortcut", "conv_shortcut"), ("norm_out", "conv_norm_out"),
                             (".attn.to_out", ".to_out.0"), (".attn.to_", ".to_"),
                             ("attentions.0.norm", "attentions.0.group_norm"),
                             ("attentions.1.norm", "attentions.1.group_norm"),
                             ("bottleneck.quantizer.codebook", "quantize.embedding.weight")):
            other = other.replace(ours, theirs)
        names[name] = other
    return names


def twins(kind, mid_attn=True):
    """Our autoencoder and diffusers', with one set of random weights: attention inside a level, shortcuts, 3 levels."""
    diffusers = pytest.importorskip("diffusers")
    options = {"down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
               "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
               "block_out_channels": (16, 32, 32), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 8,
               "mid_block_add_attention": mid_attn}
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(**options) if kind == "kl" else diffusers.VQModel(**options, num_vq_embeddings=64)
    with torch.no_grad():
        for parameter in theirs.parameters():  # biases and norms too, that a fresh model has at 0 and 1
            parameter.add_(0.05 * torch.randn_like(parameter))
        if kind == "vq":
            theirs.quantize.embedding.weight.normal_()
    config = AutoencoderConfig(latent_channels=4, channels=16, channel_mults=(1, 2, 2), num_res_blocks=1,
                               attn_levels=(2,), mid_attn=mid_attn, groups=8)
    vq = VectorQuantizer(64, 4, init="uniform")
    ours = Autoencoder(config, KLBottleneck(4) if kind == "kl" else VQBottleneck(vq))
    names, weights = diffusers_names(ours), theirs.state_dict()
    state = {ours_name: weights.pop(names[ours_name], value) for ours_name, value in ours.state_dict().items()}
    assert not weights, f"no place for {list(weights)}"
    left = {n for n in names if names[n] not in theirs.state_dict()}
    assert left <= {f"bottleneck.quantizer.{b}" for b in ("initialised", "idle", "usage")}, left
    ours.load_state_dict(state)
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize("std", [1.0, 1e-3])
@pytest.mark.parametrize("kind, mid_attn", [("kl", True), ("kl", False), ("vq", True)])
def test_same_weights_same_outputs_as_diffusers(kind, mid_attn, std):
    """Inputs of standard deviation 1e-3 make the epsilon of the norms visible; the next test shows that."""
    ours, theirs = twins(kind, mid_attn)
    x = std * torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    z = std * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        if kind == "kl":
            assert_close(ours.moments(x), theirs.encode(x).latent_dist.parameters, rtol=0, atol=5e-5)
            assert_close(ours.encode(x), theirs.encode(x).latent_dist.mode(), rtol=0, atol=5e-5)
            assert_close(ours.encode(x, sample=True, generator=torch.Generator().manual_seed(2)),
                         theirs.encode(x).latent_dist.sample(torch.Generator().manual_seed(2)), rtol=0, atol=5e-5)
            assert_close(ours.decode(z), theirs.decode(z).sample, rtol=0, atol=5e-5)
        else:
            assert_close(ours.encode(x), theirs.encode(x).latents, rtol=0, atol=5e-5)
            assert_close(ours.decode(z), theirs.decode(z).sample, rtol=0, atol=5e-5)
            unquantised = theirs.decode(z, force_not_quantize=True).sample
            assert_close(ours.decode(z, quantize=False), unquantised, rtol=0, atol=5e-5)
            assert not torch.allclose(ours.decode(z), unquantised, atol=1e-2)


def test_the_epsilon_test_can_fail():
    ours, theirs = twins("kl")
    for module in ours.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.eps = 1e-5
    z = 1e-3 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    x = 1e-3 * torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = max((ours.moments(x) - theirs.encode(x).latent_dist.parameters).abs().max(),
                         (ours.decode(z) - theirs.decode(z).sample).abs().max())
    assert difference > 5e-4


# ------------------------------------------------------------------ shapes and contract


@pytest.mark.parametrize("kind", ["vq", "kl"])
@pytest.mark.parametrize("f, patch_size", [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (8, 1), (8, 4), (16, 1)])
def test_shapes(f, patch_size, kind):
    ae = small(kind, downsample_factor=f, patch_size=patch_size, latent_channels=5)
    x = images(2, 32)[..., :16]                                   # not square
    z = ae.encode(x)
    assert z.shape == (2, 5, 32 // f, 16 // f)
    x_rec, loss = ae(x)
    assert x_rec.shape == x.shape == ae.decode(z).shape and loss.ndim == 0
    assert ae.last_layer is ae.decoder.conv_out.weight and ae.last_layer.shape[0] == 3 * patch_size**2


def test_patches_keep_pixels_in_their_place():
    """Stripped of norms, blocks and attention, one pixel of the latent is one patch of the image and its neighbours."""
    ae = small("kl", downsample_factor=4, patch_size=4, mid_attn=False).eval()
    for level in (*ae.encoder.levels, *ae.decoder.levels):
        level.blocks = torch.nn.ModuleList()
    for middle in (ae.encoder.middle, ae.decoder.middle):
        middle.block1 = middle.block2 = torch.nn.Identity()
    ae.encoder.norm_out = ae.decoder.norm_out = torch.nn.Identity()
    z = torch.zeros(1, 3, 8, 8)
    other = z.clone()
    other[0, 0, 2, 5] = 1
    changed = (ae.decode(z) != ae.decode(other)).any(dim=1)[0].nonzero()      # two 3x3 convolutions: 2 patches around
    assert changed.amin(dim=0).tolist() == [0, 12] and changed.amax(dim=0).tolist() == [19, 31]
    x = images(1)
    y = x.clone()
    y[:, :, 8:12, 20:24] += 1
    moved = (ae.moments(x) != ae.moments(y)).any(dim=1)[0].nonzero()
    assert moved.amin(dim=0).tolist() == [0, 3] and moved.amax(dim=0).tolist() == [4, 7]


def test_vq_contract():
    ae = small("vq").eval()
    x = images()
    z = ae.encode(x)
    z_q, indices, loss = ae.quantize(z)
    assert indices.shape == (2, 8, 8) and torch.equal(z, ae.moments(x))  # stage 2 sees the vectors before quantisation
    assert_close(z_q, ae.bottleneck.quantizer.lookup(indices))
    assert_close(ae.decode(z), ae.decode(z_q, quantize=False))                # decode quantises first
    assert not torch.allclose(ae.decode(z), ae.decode(z, quantize=False))
    x_rec, total = ae(x)
    assert_close(x_rec, ae.decode(z))
    assert_close(total, loss)


def test_kl_contract():
    ae = small("kl", latent_channels=4).eval()
    x = images()
    mean, logvar = ae.moments(x).chunk(2, dim=1)
    assert_close(ae.encode(x), mean)
    z = ae.encode(x, sample=True, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    assert_close(z, mean + (0.5 * logvar).exp() * noise)
    assert torch.equal(ae.decode(z), ae.decode(z, quantize=False))
    assert_close(ae(x)[0], ae.decode(mean))                                   # evaluation reconstructs from the mode
    assert not torch.allclose(ae.train()(x)[0], ae.decode(mean), atol=1e-3)   # training from a sample


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_every_parameter_gets_a_gradient(kind):
    """Through the quantiser too: without the straight-through step the encoder would get only the commitment's."""
    ae = small(kind, attn_levels=(1,))
    x = images()
    x_rec, loss = ae(x)
    (x - x_rec).abs().mean().backward(retain_graph=True)
    from_image = ae.encoder.conv_in.weight.grad.clone()
    assert from_image.abs().max() > 0
    loss.backward()
    missing = [name for name, p in ae.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [name for name in missing if not name.endswith("to_k.bias")] == []   # softmax ignores a shift of all keys
    assert not torch.equal(from_image, ae.encoder.conv_in.weight.grad)


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_learns_one_batch(kind):
    """150 steps on four pictures: the error falls at least fivefold (seen: ninefold, 3 s)."""
    ae = small(kind, channels=32, groups=2, patch_size=4, mid_attn=False)
    x, first = images(4, seed=1), None
    optimizer = torch.optim.Adam(ae.parameters(), 1e-3, betas=(0.5, 0.9))
    for _ in range(150):
        x_rec, loss = ae(x)
        error = (x - x_rec).abs().mean()
        first = error.item() if first is None else first
        optimizer.zero_grad()
        (error + loss).backward()
        optimizer.step()
    assert error.item() < first / 5


# ------------------------------------------------------------------ configuration and errors


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_config_survives_json_and_rebuilds_the_same_autoencoder(kind):
    ae = small(kind, attn_levels=(1,), patch_size=2).eval()
    again = build(json.loads(json.dumps(describe(ae))))
    assert again.config == ae.config and describe(again) == describe(ae)
    again.load_state_dict(copy.deepcopy(ae.state_dict()))
    x = images()
    assert torch.equal(again.eval()(x)[0], ae(x)[0])
    assert type(again.bottleneck) is type(ae.bottleneck)


def test_config_is_frozen_and_fills_in_the_papers_multipliers():
    config = AutoencoderConfig(downsample_factor=16)
    assert config.channel_mults == (1, 1, 2, 2, 4) and config.widths == [128, 128, 256, 256, 512]
    assert AutoencoderConfig(**asdict(config)) == config
    assert hash(config) == hash(AutoencoderConfig(downsample_factor=16))
    with pytest.raises(FrozenInstanceError):
        config.channels = 64


@pytest.mark.parametrize("options, words", [
    ({"downsample_factor": 3}, "patch_size"), ({"downsample_factor": 2, "patch_size": 4}, "patch_size"),
    ({"channel_mults": (1, 2)}, "has 2 levels"), ({"attn_levels": (32,)}, "indices below 3"),
    ({"attn_levels": (-1,)}, "level indices"), ({"channels": 48}, "groups=16"),
])
def test_bad_configurations_say_what_to_do(options, words):
    with pytest.raises(ValueError, match=words):
        AutoencoderConfig(**options)


@pytest.mark.parametrize("bad, words", [
    (torch.zeros(3, 32, 32), r"\(B, C, H, W\)"), (torch.zeros(2, 3, 32, 30), "multiples of 4"),
    (torch.zeros(2, 3, 30, 32), "multiples of 4"), (torch.full((2, 3, 32, 32), 255.0), "From 0..255: x / 127.5 - 1"),
    (torch.full((2, 3, 32, 32), 255, dtype=torch.uint8), "127.5"),
])
def test_bad_pictures_say_what_to_do(bad, words):
    for function in (small(), small().encode):
        with pytest.raises(ValueError, match=words):
            function(bad)


def test_bad_parts_say_what_to_do():
    with pytest.raises(ValueError, match="latent_channels=3"):
        Autoencoder(AutoencoderConfig(), KLBottleneck(4))


def test_bfloat16_autocast_trains():
    ae = small("vq", mid_attn=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_rec, loss = ae(images())
    assert loss.dtype == torch.float32
    (x_rec.float().abs().mean() + loss).backward()
    assert all(p.grad.isfinite().all() for p in ae.parameters() if p.grad is not None)
