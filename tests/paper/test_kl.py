"""The KL bottleneck against torch.distributions, and the two conventions of its weight."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.kl import DiagonalGaussian, KLBottleneck, standardize_latents, weight_for_means


def moments(b=2, c=3, size=4, seed=0):
    return torch.randn(b, 2 * c, size, size, generator=torch.Generator().manual_seed(seed))


def test_kl_and_std_equal_torch_distributions():
    h = moments().requires_grad_()
    posterior = DiagonalGaussian(h)
    reference = Normal(h[:, :3], (0.5 * h[:, 3:]).exp())
    assert_close(posterior.std, reference.stddev)
    ours, theirs = posterior.kl(), kl_divergence(reference, Normal(0.0, 1.0))
    assert_close(ours, theirs)
    assert_close(torch.autograd.grad(ours.sum(), h), torch.autograd.grad(theirs.sum(), h))
    assert torch.equal(posterior.mode(), h[:, :3])
    assert DiagonalGaussian(torch.zeros(1, 2, 1, 1)).kl().item() == 0


def test_log_variance_is_clamped_before_everything():
    h = torch.tensor([0.0, 0.0, -1000.0, 1000.0]).view(1, 4, 1, 1)
    posterior = DiagonalGaussian(h)
    assert posterior.logvar.flatten().tolist() == [-30.0, 20.0]
    assert_close(posterior.std.flatten(), torch.tensor([-15.0, 10.0]).exp())
    assert posterior.kl().isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_moments_are_counted_in_float32(dtype):
    """exp(20) is 5e8, beyond float16; and 1 + 1e-3, whose divergence from 1 is all there is, has no bfloat16."""
    h = torch.tensor([3.0, 0.001, 20.0, 0.001]).view(1, 4, 1, 1).to(dtype)
    posterior, exact = DiagonalGaussian(h), DiagonalGaussian(h.double())
    assert posterior.mean.dtype == posterior.kl().dtype == posterior.sample().dtype == torch.float32
    assert exact.mean.dtype == torch.float64
    assert_close(posterior.kl().double(), exact.kl(), rtol=1e-5, atol=1e-7)
    assert_close(posterior.std.double(), exact.std, rtol=1e-5, atol=0)


def test_reparametrised_gradient_reaches_mean_and_variance():
    h = moments().requires_grad_()
    z = DiagonalGaussian(h).sample(torch.Generator().manual_seed(0))
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    z.sum().backward()
    std = (0.5 * h.detach()[:, 3:]).exp()
    assert_close(h.grad, torch.cat([torch.ones_like(z), 0.5 * std * noise], dim=1))


def test_equals_diffusers():
    vae = pytest.importorskip("diffusers.models.autoencoders.vae")
    h = moments(seed=3) * 20
    ours, theirs = DiagonalGaussian(h), vae.DiagonalGaussianDistribution(h)
    assert_close(ours.kl().sum(dim=(1, 2, 3)), theirs.kl())
    assert_close(ours.sample(torch.Generator().manual_seed(5)), theirs.sample(torch.Generator().manual_seed(5)))


def test_bottleneck_contract():
    bottleneck, h = KLBottleneck(3, weight=0.5), moments()
    torch.manual_seed(0)
    z, loss = bottleneck(h)
    torch.manual_seed(0)
    assert_close(z, bottleneck.latent(h, sample=True))
    assert not torch.allclose(z, h[:, :3])
    assert_close(loss, 0.5 * DiagonalGaussian(h).kl().mean())
    assert torch.equal(bottleneck.latent(h), h[:, :3]) and torch.equal(bottleneck.to_decoder(z), z)
    assert torch.equal(bottleneck.eval()(h)[0], h[:, :3])
    assert bottleneck.latent_channels == 3 and bottleneck.moments_per_channel == 2
    assert bottleneck(h.bfloat16())[0].dtype == torch.bfloat16 and bottleneck(h.bfloat16())[1].dtype == torch.float32


def test_paper_weight_on_sums_is_its_converted_weight_on_means():
    assert weight_for_means(1e-6, (4, 32, 32), (3, 256, 256)) == pytest.approx(2.08e-8, rel=2e-3)
    h, error = moments(2, 4, 8), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    gradients = []
    for mean in (False, True):
        x, y = h.clone().requires_grad_(), error.clone().requires_grad_()
        weight = weight_for_means(1e-6, (4, 8, 8), (3, 64, 64)) if mean else 1e-6
        _, loss = KLBottleneck(4, weight, "mean" if mean else "sum")(x)
        (loss + (y.square().mean() if mean else y.square().sum() / 2)).backward()
        gradients.append((x.grad, y.grad))
    (sum_x, sum_y), (mean_x, mean_y) = gradients
    values = 3 * 64 * 64                                         # one common factor, so the compromise is the same
    assert_close(sum_x, mean_x * values)
    assert_close(sum_y, mean_y * values)


def test_errors():
    with pytest.raises(RuntimeError, match="3"):                 # means and log variances cannot be as many
        DiagonalGaussian(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match="mean"):
        KLBottleneck(4, reduction="none")
    with pytest.raises(ValueError, match="latent_channels must be at least 1"):
        KLBottleneck(0)
    assert KLBottleneck(1).latent_channels == 1


def test_standardized_latents_have_unit_channels_and_the_same_reconstructions():
    torch.manual_seed(0)
    config = AutoencoderConfig(downsample_factor=4, latent_channels=3, channels=8, num_res_blocks=1, groups=2,
                               patch_size=4)
    ae = Autoencoder(config, KLBottleneck(3)).eval()
    images = [torch.rand(4, 3, 16, 24, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in range(3)]
    with torch.no_grad():
        before = [ae.decode(ae.encode(x)) for x in images]
        every = ae.bottleneck.distribution(ae.moments(torch.cat(images)))
        std = (every.mean.var((0, 2, 3)) + every.std.square().mean((0, 2, 3))).sqrt()
        spread = every.std[:4]
    standardize_latents(ae, images)
    with torch.no_grad():
        z = torch.cat([ae.encode(x) for x in images])
        noisy = torch.cat([ae.encode(torch.cat(images), sample=True) for _ in range(400)])
        assert_close(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        assert_close(noisy.var((0, 2, 3)), torch.ones(3), atol=1e-2, rtol=0)
        for x, old in zip(images, before, strict=True):
            assert_close(ae.decode(ae.encode(x)), old, atol=1e-5, rtol=1e-4)
        # the noise that the decoder learned to forgive is scaled with its channel
        assert_close(ae.bottleneck.distribution(ae.moments(images[0])).std, spread / std[:, None, None])
