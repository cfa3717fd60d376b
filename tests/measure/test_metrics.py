"""Metrics against closed forms, against torchmetrics, and against pictures whose answer is known."""

import math

import pytest
import torch
from torchvision.ops import box_iou

from ldm_mini.measure import metrics


def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_psnr_closed_form_and_per_image():
    x = torch.zeros(2, 3, 8, 8)
    y = torch.stack([torch.full((3, 8, 8), 0.2), torch.full((3, 8, 8), 0.02)])
    torch.testing.assert_close(metrics.psnr(x, y), torch.tensor([20.0, 40.0], dtype=torch.float64), rtol=0, atol=1e-5)
    assert metrics.psnr(x, x).isinf().all()


def test_psnr_and_ssim_match_torchmetrics():
    reference = pytest.importorskip("torchmetrics.functional.image")
    x = images()
    y = (x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)
    expected = reference.peak_signal_noise_ratio(x, y, data_range=2.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(metrics.psnr(x, y).float(), expected)
    u, v = (x + 1) / 2, (y + 1) / 2
    expected = reference.structural_similarity_index_measure(u, v, data_range=1.0, reduction="none")
    torch.testing.assert_close(metrics.ssim(x, y).float(), expected, rtol=0, atol=1e-4)


def test_frechet_is_a_distance_even_for_few_samples():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(20, 64, generator=generator), torch.randn(30, 64, generator=generator)     # singular covariances
    assert 0 <= metrics.frechet_distance(a, a) < 1e-6
    torch.testing.assert_close(metrics.frechet_distance(a, b), metrics.frechet_distance(b, a))
    assert metrics.frechet_distance(a, a + 2.0).item() == pytest.approx(64 * 4.0, rel=1e-4)


def test_frechet_matches_the_sqrtm_formula():
    module = pytest.importorskip("torchmetrics.image.fid")
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(16, 16, generator=generator)
    a = (torch.randn(400, 16, generator=generator) @ mix).double()
    b = torch.randn(300, 16, generator=generator).double() + 0.5
    expected = module._compute_fid(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
    torch.testing.assert_close(metrics.frechet_distance(a, b), expected, rtol=1e-6, atol=1e-6)


def test_frechet_of_two_points_each_by_hand():
    """Means 1 and 3, variances 2 and 8 along one axis: (1 - 3)^2 + 2 + 8 - 2 sqrt(16); two are the fewest."""
    a, b = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [5.0, 0.0]])
    assert metrics.frechet_distance(a, b).item() == pytest.approx(6.0)


def test_precision_recall_sees_lost_modes_and_bad_samples():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(400, 2, generator=generator) * 0.1
    real[200:, 0] += 5
    lost_mode = torch.randn(400, 2, generator=generator) * 0.1
    scattered = torch.rand(400, 2, generator=generator) * 10 - 2.5
    one = metrics.precision_recall(real, lost_mode)
    assert one["precision"] > 0.9 and 0.4 < one["recall"] < 0.6
    assert metrics.precision_recall(real, scattered)["precision"] < 0.2
    assert metrics.precision_recall(real, real) == {"precision": 1.0, "recall": 1.0}


@pytest.mark.parametrize("k, precision, recall", [(1, 0.25, 0.5), (2, 0.5, 1), (3, 0.75, 1)])
def test_precision_recall_by_hand(k, precision, recall):
    """Points on a line: of 0, 1, 3, 7 the balls cover -1..11 (k = 1), -3..13 (2), -7..14 (3), ends included."""
    real, fake = (torch.tensor(points)[:, None] for points in ([0.0, 1, 3, 7], [-3.0, -1, 14, 14.5]))
    assert metrics.precision_recall(real, fake, k) == {"precision": precision, "recall": recall}
    assert metrics.precision_recall(real, fake) == metrics.precision_recall(real, fake, 3)


def test_box_iou_is_that_of_torchvision():
    corners = torch.rand(2, 50, 2, 2, generator=torch.Generator().manual_seed(0)).sort(dim=2).values
    a, b = corners.flatten(2)                                                            # xyxy, some far apart
    torch.testing.assert_close(metrics.box_iou(a, b[:40]), box_iou(a, b[:40]))


def test_mean_box_iou_matches_labels_once():
    box, other = (0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0)
    assert metrics.mean_box_iou([[(1, box), (2, other)]], [[(2, other), (1, box)]]) == 1.0
    assert metrics.mean_box_iou([[(3, box)]], [[(1, box)]]) == 0.0                               # wrong label
    assert metrics.mean_box_iou([[(1, box)]], [[(1, box), (1, box)]]) == 0.5             # one box answers one wish
    near = (0.0, 0.0, 0.9, 1.0)
    for found in ([(1, box), (1, near)], [(1, near), (1, box)]):                # the better of two is taken
        assert metrics.mean_box_iou([found], [[(1, box)]]) == 1.0
    assert math.isnan(metrics.mean_box_iou([[]], [[]]))


def test_mean_iou_by_hand():
    target = torch.tensor([[[0, 0], [1, 1]]])
    predicted = torch.tensor([[[0, 1], [1, 1]]])
    got = metrics.mean_iou(predicted, target, num_classes=3)                             # IoU 1/2, 2/3, and no class 2
    assert got == pytest.approx({"miou": 7 / 12, "pixel_accuracy": 0.75})


def test_consistency_and_masked_l1():
    image = images()
    low = torch.nn.functional.avg_pool2d(image, 4)
    assert (metrics.low_resolution_consistency(image, low) > 100).all()
    assert torch.equal(metrics.low_resolution_consistency(image, -image), metrics.psnr(image, -image))  # of one size
    mask = torch.zeros(3, 1, 32, 32)
    mask[..., 8:16, 8:16] = 1
    filled = torch.where(mask.bool(), image + 0.5, image)
    torch.testing.assert_close(metrics.masked_l1(filled, image, mask), torch.full((3,), 0.5, dtype=torch.float64))
    assert metrics.masked_l1(filled, image, 1 - mask).eq(0).all()


@pytest.mark.parametrize("call, message", [
    (lambda: metrics.psnr(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9)), "shapes differ"),
    (lambda: metrics.frechet_distance(torch.zeros(5), torch.zeros(5)), r"\(N, D\)"),
    (lambda: metrics.frechet_distance(torch.zeros(1, 2), torch.zeros(5, 2)), "N >= 2"),
    (lambda: metrics.frechet_distance(torch.tensor([[0.0, 1.0], [math.nan, 2.0]]), torch.zeros(2, 2)), "finite"),
])
def test_bad_input_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
