"""The first stage: shapes, gradients, learning, errors. Published sizes and diffusers: see tests/released."""

from dataclasses import FrozenInstanceError, asdict

import pytest
import torch
from torch.testing import assert_close

from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.kl import KLBottleneck
from ldm_mini.quantizer import VectorQuantizer, VQBottleneck
from ldm_mini.released.presets import FIRST_STAGES


def small(bottleneck="vq", **options):
    torch.manual_seed(0)
    config = AutoencoderConfig(**{"channels": 16, "groups": 4, "num_res_blocks": 1, **options})
    c = config.latent_channels
    return Autoencoder(config, VQBottleneck(VectorQuantizer(32, c)) if bottleneck == "vq" else KLBottleneck(c))


def images(b=2, size=32, seed=0):
    """Smooth pictures in [-1, 1]: random 4x4 grids, enlarged."""
    coarse = torch.rand(b, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-1, 1)


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
    assert_close(z_q, ae.bottleneck.quantizer.codebook[indices].permute(0, 3, 1, 2))
    assert_close(ae.decode(z), ae.decode(z_q, quantize=False))                # decode quantises first
    assert not torch.allclose(ae.decode(z), ae.decode(z, quantize=False))
    x_rec, total = ae(x)
    assert_close(x_rec, ae.decode(z))
    assert_close(total, loss)


def test_the_decoder_gets_the_codes_that_were_chosen_not_those_that_have_moved_since():
    ae = small("vq")
    ae.bottleneck = VQBottleneck(VectorQuantizer(16, 3, ema_decay=0.5, restart_after=None, init="uniform"))
    x, before = images(), ae.bottleneck.quantizer.codebook.normal_().clone()
    chosen = ae.quantize(ae.moments(x))[0]
    x_rec, _ = ae.train()(x)
    assert not torch.allclose(ae.bottleneck.quantizer.codebook, before)
    assert_close(x_rec, ae.decode(chosen, quantize=False))


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


def test_config_is_frozen_and_fills_in_the_papers_multipliers():
    for f, _, mults, *_ in (FIRST_STAGES[name] for name in ("kl-f4", "kl-f8", "kl-f16", "kl-f32")):
        assert AutoencoderConfig(downsample_factor=f).channel_mults == mults
        assert AutoencoderConfig(downsample_factor=4 * f, patch_size=4).channel_mults == mults
    deeper = AutoencoderConfig(downsample_factor=4, num_res_blocks=1, decoder_channels=(32, 64, 128))
    assert deeper.decoder_blocks == (2, 2, 2)
    config = AutoencoderConfig(downsample_factor=16)
    assert config.widths == [128, 128, 256, 256, 512]
    assert AutoencoderConfig(**asdict(config)) == config
    assert hash(config) == hash(AutoencoderConfig(downsample_factor=16))
    with pytest.raises(FrozenInstanceError):
        config.channels = 64


@pytest.mark.parametrize("mistake, words", [
    (lambda: AutoencoderConfig(downsample_factor=2, patch_size=4), "patch_size=4 doubled"),
    (lambda: AutoencoderConfig(attn_levels=(32,)), "indices below 3"),
    (lambda: AutoencoderConfig(attn_levels=(-1,)), "level indices"),
    (lambda: AutoencoderConfig(channels=48), "groups=16"),
    (lambda: small()(torch.zeros(2, 3, 32, 30)), "multiples of 4"),
    (lambda: small()(images() + 255), "From 0..255: x / 127.5 - 1"),
])
def test_more_mistakes_than_in_test_bad_inputs(mistake, words):
    with pytest.raises(ValueError, match=words):
        mistake()


def test_bfloat16_autocast_trains():
    ae = small("vq", mid_attn=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_rec, loss = ae(images())
    assert loss.dtype == torch.float32
    (x_rec.float().abs().mean() + loss).backward()
    assert all(p.grad.isfinite().all() for p in ae.parameters() if p.grad is not None)
