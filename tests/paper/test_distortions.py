"""Flaws against their formulas, and how often each of them happens."""

import math

import pytest
import torch
from torch.testing import assert_close

from ldm_mini import distortions
from ldm_mini.distortions import coarse_cosines, degrade, gaussian_blur, resample


@pytest.mark.parametrize("sigma, half", [(0.4, 1), (1.2, 3), (1.4, 4)])
def test_a_blurred_point_is_a_gaussian_as_far_as_two_and_a_half_sigma(sigma, half):
    x = torch.zeros(1, 2, 15, 21, dtype=torch.float64)
    x[0, 1, 7, 10] = 1.0
    weights = torch.tensor([math.exp(-0.5 * (i / sigma) ** 2) for i in range(-half, half + 1)], dtype=torch.float64)
    expected = torch.zeros_like(x)
    expected[0, 1, 7 - half:8 + half, 10 - half:11 + half] = torch.outer(weights, weights) / weights.sum() ** 2
    assert_close(gaussian_blur(x, sigma), expected)
    assert_close(gaussian_blur(torch.full_like(x, 0.3), sigma), torch.full_like(x, 0.3))        # borders are repeated


def test_a_detour_over_half_the_size_weighs_four_pixels():
    """Down by the triangle 1 3 3 1 over 8; up again, each pixel is 3/4 of the nearest small one and 1/4 of the next."""
    line = torch.rand(16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    small = {i: (line[2 * i - 1:2 * i + 3] * torch.tensor([1, 3, 3, 1])).sum() / 8 for i in range(1, 7)}
    by_hand = torch.stack([(3 * small[i // 2] + small[i // 2 + (1 if i % 2 else -1)]) / 4 for i in range(4, 12)])
    for x in (line.view(1, 1, 1, 16).expand(1, 2, 16, 16), line.view(1, 1, 16, 1).expand(1, 2, 16, 16).mT):
        assert_close(resample(x, 8)[0, 1, 3, 4:12], by_hand)


def test_cosines_are_rounded_to_multiples_that_grow_with_their_frequency():
    x = 2 * torch.rand(1, 2, 16, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    norm = [math.sqrt(1 / 8)] + [math.sqrt(2 / 8)] * 7
    waves = torch.tensor([[norm[k] * math.cos(math.pi * (2 * i + 1) * k / 16) for i in range(8)] for k in range(8)],
                         dtype=torch.float64)                   # the orthonormal DCT-II of JPEG
    steps = torch.tensor([[0.3 * (1 + (i + j) / 2) for j in range(8)] for i in range(8)], dtype=torch.float64)
    for channel in range(2):
        for block in (slice(0, 8), slice(8, 16)):
            coefficients = torch.einsum("ki,lj,ij->kl", waves, waves, x[0, channel, block])
            by_hand = torch.einsum("ki,lj,kl->ij", waves, waves, (coefficients / steps).round() * steps)
            assert_close(coarse_cosines(x, 0.3)[0, channel, block], by_hand)


def test_the_last_blocks_repeat_the_border():
    x = torch.rand(1, 1, 12, 21, generator=torch.Generator().manual_seed(0))
    filled = torch.cat([x, x[..., -1:].expand(-1, -1, -1, 3)], dim=3)
    filled = torch.cat([filled, filled[:, :, -1:].expand(-1, -1, 4, -1)], dim=2)
    assert_close(coarse_cosines(x, 0.3), coarse_cosines(filled, 0.3)[:, :, :12, :21])


def test_each_flaw_comes_as_often_and_as_strong_as_it_should(monkeypatch):
    seen, g = {}, torch.Generator().manual_seed(0)
    for name in ("gaussian_blur", "resample", "coarse_cosines"):
        monkeypatch.setattr(distortions, name, lambda x, how, name=name: seen.setdefault(name, []).append(
            (len(x), how)) or x)
    x = torch.zeros(100, 1, 1, 100)
    noisy = torch.stack([degrade(x, g, exposure=0.0, blur=(0.4, 1.4)) for _ in range(100)]).flatten(0, 1)
    for name, share, low, high in (("gaussian_blur", 0.35, 0.4, 1.4), ("resample", 0.3, 40, 90),
                                   ("coarse_cosines", 0.2, 0.05, 0.3)):
        many, how = torch.tensor(seen[name], dtype=torch.float64).T
        assert many.sum().item() / 10_000 == pytest.approx(share, abs=0.02)     # four standard errors
        assert low - 1 * (high > 2) <= how.min() < low + 0.1 * (high - low)     # a side is rounded down
        assert high - 0.1 * (high - low) < how.max() <= high
    spread = noisy.std(dim=(1, 2, 3))
    assert (spread > 0).double().mean().item() == pytest.approx(0.4, abs=0.02)
    assert spread[spread > 0].mean().item() == pytest.approx(0.075, abs=0.004) and 0.13 < spread.max() < 0.2


def test_exposure_moves_brightness_and_contrast_of_whole_pictures(monkeypatch):
    monkeypatch.setattr(torch, "randn", lambda shape, generator: torch.zeros(shape))            # no noise
    for name in ("gaussian_blur", "resample", "coarse_cosines"):
        monkeypatch.setattr(distortions, name, lambda x, how: x)
    x = torch.tensor([0.0, 0.4]).view(1, 1, 1, 2).expand(4000, 3, 1, 2)
    out = degrade(x, torch.Generator().manual_seed(0), exposure=0.15)
    brightness, contrast = out[..., 0], (out[..., 1] - out[..., 0]) / 0.4
    for value, middle in ((brightness, 0.0), (contrast, 1.0)):
        assert_close(value, value[:, :1].expand_as(value), atol=1e-6, rtol=0)                   # colours stay
        assert abs(value.mean() - middle) < 0.01 and value.std() == pytest.approx(0.3 / math.sqrt(12), rel=0.05)
        assert (value - middle).abs().max() <= 0.15 + 1e-6
    assert degrade(10 * x, torch.Generator().manual_seed(0)).max() == 1
    assert degrade(-10 * x, torch.Generator().manual_seed(0)).min() == -1


def test_under_autocast_pictures_stay_in_float32():
    """The second stage damages its small pictures inside the loss, where a blur comes back in bfloat16."""
    images = torch.rand(64, 3, 16, 16) * 2 - 1
    calm = degrade(images, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        rough = degrade(images, torch.Generator().manual_seed(0))
    assert rough.dtype == torch.float32 and (rough - calm).abs().max() < 0.3 and (rough - calm).abs().mean() < 2e-3
