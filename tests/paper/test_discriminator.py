"""The patch discriminator's shape, sight and start; hinge losses; the adaptive weight against its definition."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ldm_mini.discriminator import PatchDiscriminator, adaptive_weight, hinge_d_loss, hinge_g_loss


@pytest.mark.parametrize("num_layers, field, logits", [(1, 16, 126), (2, 34, 62), (3, 70, 30)])
def test_published_shapes_and_receptive_fields(num_layers, field, logits):
    disc = PatchDiscriminator(channels=2, num_layers=num_layers).eval()
    x = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = disc(x)
    assert out.shape == (1, 1, logits, logits)
    nn.init.uniform_(disc.main[0].weight, 0.5, 1)                 # no weight may hide a pixel by being near 0
    disc(x)[0, 0, logits // 2, logits // 2].backward()
    seen = x.grad.abs().sum(dim=(0, 1)) > 0
    rows, columns = seen.any(dim=1).nonzero(), seen.any(dim=0).nonzero()
    assert rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == field == disc.receptive_field


def test_layers_are_those_of_pix2pix():
    disc = PatchDiscriminator()
    convs = [m for m in disc.main if isinstance(m, nn.Conv2d)]
    assert [(c.out_channels, c.stride[0], c.bias is None) for c in convs] == [
        (64, 2, False), (128, 2, True), (256, 2, True), (512, 1, True), (1, 1, False)]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in disc.main) == 3
    assert all(m.negative_slope == 0.2 for m in disc.main if isinstance(m, nn.LeakyReLU))
    convolutions = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) + 64 + 1
    assert sum(p.numel() for p in disc.parameters()) == convolutions + 2 * (128 + 256 + 512) == 2_765_633
    assert [n for n, _ in disc.named_parameters()][:3] == ["main.0.weight", "main.0.bias", "main.2.weight"]


def test_starts_from_small_normals():
    torch.manual_seed(0)
    disc = PatchDiscriminator()
    for module in disc.main:
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.mean().item() == pytest.approx(1, abs=0.01) and not module.bias.any()
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.3)


def test_running_statistics_serve_in_evaluation():
    disc = PatchDiscriminator(channels=4, num_layers=2)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 3
    disc(x)
    disc.eval()
    assert_close(disc(x), torch.cat([disc(one) for one in x.split(1)]))      # no peeking at the rest of the batch


def test_smallest_image_is_the_one_it_promises():
    for num_layers in (1, 2, 3):
        disc, side = PatchDiscriminator(channels=2, num_layers=num_layers).eval(), 3 * 2**num_layers
        assert disc(torch.zeros(1, 3, side, side)).shape == (1, 1, 1, 1)
        with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
            disc(torch.zeros(1, 3, side, side - 1))


def test_hinge_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert_close(hinge_d_loss(real, fake), torch.tensor(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3)))
    assert_close(hinge_g_loss(fake), torch.tensor(2 / 3))
    logits = torch.tensor([-2.0, 0.0, 2.0], requires_grad=True)
    hinge_d_loss(logits, torch.full((3,), -9.0)).backward()
    assert_close(logits.grad, torch.tensor([-1 / 6, -1 / 6, 0.0]))            # a sure verdict is left alone


def tiny_game():
    torch.manual_seed(0)
    last, disc = nn.Conv2d(4, 3, 3, padding=1), PatchDiscriminator(channels=2, num_layers=1)
    nn.init.normal_(disc.main[0].weight, 0, 0.5)
    h, x = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8, 8)
    return last, disc, h, x


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    last, disc, h, x = tiny_game()
    x_rec = last(h)
    nll, g = (x - x_rec).abs().mean(), hinge_g_loss(disc(x_rec))
    weight = adaptive_weight(nll, g, last.weight)
    grads = []
    for loss in (nll, g):
        last.zero_grad()
        loss.backward(retain_graph=True)
        grads.append(last.weight.grad.clone())
    assert_close(weight, grads[0].norm() / (grads[1].norm() + 1e-4))
    assert not weight.requires_grad and weight.ndim == 0
    (nll + weight * g).backward()                                             # both graphs are still there


def test_adaptive_weight_limits():
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    big, zero, one = (w * 1e6).sum(), (w * 0).sum(), w[0] * 1.0
    assert adaptive_weight(big, zero, w).item() == 1e4                        # clamped, not infinite
    assert adaptive_weight(zero, one, w).item() == 0
    assert_close(adaptive_weight(one, zero, w), torch.tensor(1e4))            # 1 / delta


def test_validation_without_gradients_gets_weight_zero():
    last, disc, h, x = tiny_game()
    with torch.no_grad():
        x_rec = last(h)
        weight = adaptive_weight((x - x_rec).abs().mean(), hinge_g_loss(disc(x_rec)), last.weight)
    assert weight.item() == 0


def test_bfloat16_autocast():
    last, disc, h, x = tiny_game()
    x_rec = last(h)
    exact = adaptive_weight((x - x_rec).abs().mean(), hinge_g_loss(disc(x_rec)), last.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_rec = last(h)
        nll, g = (x - x_rec.float()).abs().mean(), hinge_g_loss(disc(x_rec))
        weight, d_loss = adaptive_weight(nll, g, last.weight), hinge_d_loss(disc(x), disc(x_rec.detach()))
    assert g.dtype == d_loss.dtype == weight.dtype == torch.float32
    assert_close(weight, exact, rtol=0.1, atol=0)
