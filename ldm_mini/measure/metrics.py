"""How good are the pictures: fidelity to one original, distance between two sets, agreement with boxes and maps.

All count in float64 on the CPU, wherever the pictures are; so are their results.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def _pictures(a: Tensor, b: Tensor) -> None:
    """Raise ValueError unless both are pictures of one shape in [-1, 1]: a measure of anything else would flatter."""
    if a.shape != b.shape:  # or they would be broadcast
        raise ValueError(f"shapes differ, {tuple(a.shape)} and {tuple(b.shape)}; compare image with image.")
    if a.ndim != 4:
        raise ValueError(f"images are (B, C, H, W), got {tuple(a.shape)}: put a single one into a batch, x[None].")
    for x in (a, b):
        if not x.is_floating_point() or x.numel() and not x.abs().max() < 16:
            most = f" up to {_exact(x).abs().max().item():.3g}." if x.numel() else "."
            raise ValueError(f"images are floats from -1 to 1 (bytes: x / 127.5 - 1); got {x.dtype}{most}")


def _exact(x: Tensor) -> Tensor:
    """In float64, on the CPU: not every device has that (MPS)."""
    return x.cpu().double()


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of images (B, C, H, W) in [-1, 1]; higher is better, inf if equal.

    Papers average the dB over images.
    """
    _pictures(x, y)
    mse = (_exact(x) - _exact(y)).square().flatten(1).mean(1)
    return 10 * torch.log10(2**2 / mse)  # the values range over 2


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity (B,) of images (B, C, H, W) in [-1, 1]: 1 equal, near 0 unrelated (Wang 2004, eq. 13).

    Means, variances and the covariance are taken under a Gaussian window (11 x 11, sigma 1.5), borders reflected, on
    values moved to [0, 1]: the index is not invariant to an offset, grey in [-1, 1], of mean 0, would compare as noise.
    """
    _pictures(x, y)
    if min(x.shape[2:]) < 6:
        raise ValueError(f"ssim: the window of 11 x 11 needs images of 6 x 6 or more, got {tuple(x.shape)}.")
    x, y = (_exact(x) + 1) / 2, (_exact(y) + 1) / 2
    offsets = torch.arange(-5, 6, dtype=x.dtype)
    kernel = torch.softmax(-offsets.square() / (2 * 1.5**2), dim=0)

    def blur(image):
        image = F.pad(image, (5,) * 4, mode="reflect").flatten(0, 1).unsqueeze(1)   # (B*C, 1, H', W')
        return F.conv2d(F.conv2d(image, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    index = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return index.view(len(x), -1).mean(1)


def frechet_distance(features_a: Tensor, features_b: Tensor) -> Tensor:
    """Squared Frechet distance of the Gaussians of two sets of features (N, D) and (M, D), as FID; 0 is equal.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of their means and covariances. Biased upwards for few samples:
    always state N, and report the distance between two sets of real data as floor.
    """
    def root(cov):
        values, vectors = torch.linalg.eigh(cov)
        return vectors * values.clamp_min(0).sqrt() @ vectors.mT

    for features in (features_a, features_b):
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"features (N, D) with N >= 2 are needed, got shape {tuple(features.shape)}.")
        if features.shape[1] != features_b.shape[1] or not features.isfinite().all():
            raise ValueError("features of both sets must be finite, and of one width D; got widths "
                             f"{features_a.shape[1]} and {features_b.shape[1]}.")
    a, b = _exact(features_a), _exact(features_b)
    cov_a, cov_b = a.mT.cov(), b.mT.cov()
    # the trace of the root is the nuclear norm of C_a^(1/2) C_b^(1/2): real by construction, where the textbook
    # `sqrtm(C_a @ C_b)` turns complex for the singular C of a small sample
    cross = torch.linalg.svdvals(root(cov_a) @ root(cov_b)).sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross).clamp_min(0)


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> dict:
    """Improved precision and recall of generated features, both in [0, 1] (Kynkaanniemi et al. 2019, alg. 1).

    real (N, D), fake (M, D). A set's manifold is the union of balls around its points that reach their k-th neighbour.
    precision: share of fakes inside the real manifold (quality); recall: share of reals inside the fake one (variety).
    """
    def inside(points, manifold):
        radius = torch.cdist(manifold, manifold).kthvalue(k + 1, dim=1).values       # + 1: a point is its own neighbour
        return (torch.cdist(points, manifold) <= radius).any(1).double().mean().item()

    for features in (real, fake):
        if features.ndim != 2 or features.shape[1] != real.shape[1] or not features.isfinite().all() or not (
                1 <= k < len(features)):
            raise ValueError(f"precision_recall: both sets are finite features (N, D) of one width, more than k = {k} "
                             f"of them, k >= 1; got {tuple(real.shape)} and {tuple(fake.shape)}.")
    real, fake = _exact(real), _exact(fake)
    return {"precision": inside(fake, real), "recall": inside(real, fake)}


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (..., N, M) in [0, 1] of all pairs of xyxy boxes (..., N, 4) and (..., M, 4)."""
    a, b = a.unsqueeze(-2), b.unsqueeze(-3)
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0)
    overlap = size.prod(-1)
    area_a, area_b = ((v[..., 2:] - v[..., :2]).clamp_min(0).prod(-1) for v in (a, b))
    return overlap / (area_a + area_b - overlap).clamp_min(1e-12)


def first_come(pairs) -> dict:
    """From (score, i, j), best first: for each j the first (score, i) whose i no other j has taken."""
    chosen, used = {}, set()
    for score, i, j in pairs:
        if j not in chosen and i not in used:
            chosen[j] = score, i
            used.add(i)
    return chosen


def mean_box_iou(found: list, wanted: list) -> float:
    """Mean IoU in [0, 1] of wanted objects: `found` and `wanted` are, per image, lists of (label, xyxy box).

    Every wanted object takes its best unused found box of the same label, best pairs first; a missing one counts 0.
    """
    if len(found) != len(wanted):
        raise ValueError(f"found and wanted are lists of the same images; got {len(found)} and {len(wanted)}.")
    scores = []
    for have, want in zip(found, wanted, strict=True):
        pairs = sorted(((float(box_iou(torch.as_tensor(h[1])[None], torch.as_tensor(w[1])[None])), i, j)
                        for i, h in enumerate(have) for j, w in enumerate(want) if h[0] == w[0]), reverse=True)
        best = first_come(pairs)
        scores += [best[j][0] if j in best else 0.0 for j in range(len(want))]
    return sum(scores) / len(scores) if scores else float("nan")


def mean_iou(predicted: Tensor, target: Tensor, num_classes: int) -> dict:
    """Agreement of integer maps (B, H, W) with classes 0 .. num_classes - 1: {"miou", "pixel_accuracy"} in [0, 1].

    Counts are pooled over the whole set; classes that occur in neither map stay outside the mean.
    """
    for name, labels in (("predicted", predicted), ("target", target)):
        if not labels.numel():
            raise ValueError("mean_iou: there are no maps.")
        if labels.is_floating_point() or labels.shape != target.shape or not (
                0 <= labels.min() and labels.max() < num_classes):
            raise ValueError(f"mean_iou: {name} must hold whole numbers from 0 to {num_classes - 1} in the shape of "
                             f"both; got {labels.dtype} {tuple(labels.shape)}, {labels.min()} to {labels.max()}.")
    pairs = target.long() * num_classes + predicted.long()                           # bytes would overflow
    counts = _exact(torch.bincount(pairs.flatten(), minlength=num_classes**2))
    counts = counts.view(num_classes, num_classes)                                   # rows: target, columns: predicted
    hit, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    per_class = hit / union                                                          # 0 / 0 = nan: the class is absent
    return {"miou": per_class.nanmean().item(), "pixel_accuracy": (hit.sum() / counts.sum()).item()}


def low_resolution_consistency(output: Tensor, lowres: Tensor) -> Tensor:
    """Super-resolution: PSNR (B,) in dB between the area-downsampled output and the image it was made from."""
    _pictures(lowres, lowres)
    if not output.is_floating_point() or output.ndim != 4 or output.shape[:2] != lowres.shape[:2] or any(
            large < small for large, small in zip(output.shape[2:], lowres.shape[2:])):
        raise ValueError(f"the output is floats from -1 to 1, larger than the image that it was made from; got "
                         f"{output.dtype} {tuple(output.shape)} and {tuple(lowres.shape)}.")
    return psnr(F.adaptive_avg_pool2d(output, lowres.shape[-2:]), lowres)


def masked_l1(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference (B,), in [0, 2], where `mask` (B, 1, H, W) is 1; nan for an empty mask.

    Inpainting: with the hole it is the distance inside, with `1 - mask` the (wanted: zero) change outside.
    """
    _pictures(x, y)
    if mask.shape != (len(x), 1, *x.shape[2:]) or not ((mask >= 0) & (mask <= 1)).all():
        raise ValueError(f"masked_l1: the mask is (B, 1, H, W) from 0 to 1 for images {tuple(x.shape)}; got "
                         f"{tuple(mask.shape)} from {mask.min()} to {mask.max()}.")
    weight = _exact(mask.expand_as(x))
    return (_exact((x - y).abs()) * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)
