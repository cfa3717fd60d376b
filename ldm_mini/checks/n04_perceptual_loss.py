"""Checks of notebook 04, perceptual loss."""

import torch
import torch.nn.functional as F

from .checking import CheckFailed, attempt, compare, passed
from .properties import fresh, learn, same_dtype, same_gradient


def best_guess(function):
    """`function(candidates, loss)`: candidates (K,...), loss "l2" or "l1" -> the picture of least mean loss to them."""
    draw = fresh()
    for count, *shape in ((5, 3, 4), (4, 2, 3, 5), (7, 6)):
        candidates = draw(count, *shape).sign() + draw(count, *shape)
        mean, median = candidates.mean(0), candidates.median(0).values
        got = attempt(function, candidates, "l2", name="best_guess")
        compare(got, mean, 'best_guess(candidates, "l2")', mistakes=[
            (median, "this is the median. Set the derivative of the mean squared error to zero: what remains?"),
            ((candidates.amax(0) + candidates.amin(0)) / 2, "this is the middle between the extremes. Set the "
             "derivative of the mean squared error to zero: what remains?"),
            (candidates.sum(0), "this is the sum: divide by the number of candidates."),
            (candidates.mean().expand_as(mean), "one number for all pixels. Each pixel has its own best value."),
        ])
        same_dtype(got, candidates, 'best_guess(candidates, "l2")')
        got = attempt(function, candidates, "l1", name="best_guess")
        name = 'best_guess(candidates, "l1")'
        if isinstance(got, torch.Tensor) and got.shape == median.shape:
            cost = lambda guess: (candidates - guess).abs().mean(0)
            if torch.allclose(cost(got), cost(median), rtol=1e-4, atol=1e-5):
                continue                                # with 4 candidates all between the middle two are equally good
        compare(got, median, name, mistakes=[
            (mean, "this is the mean, the best under L2. For L1, moving a little up helps all candidates above and "
                   "hurts all below: when do these balance?"),
            (candidates.median().expand_as(mean), "one number for the whole picture. Every pixel has its own median: "
                                                  "use dim=0 (which returns values *and* indices)."),
        ])
    passed("best_guess: L2 asks for the mean, L1 for the median")


def local_mean(function):
    """`function(x, size, sigma)`: x (B,C,H,W) -> the same shape, Gaussian-weighted means of size x size pixels."""
    draw = fresh()
    for shape, size, sigma in (((2, 3, 14, 12), 11, 1.5), ((1, 5, 9, 7), 5, 0.8), ((2, 1, 8, 8), 3, 2.0)):
        x, r, name = draw(*shape), size // 2, f"local_mean(x, {size}, {sigma})"
        at = torch.arange(size) - r
        bell = lambda width, at=at: torch.softmax(-at.square() / width, dim=0)
        around = lambda x, mode, r=r: F.pad(x, (r,) * 4, mode=mode)

        def mean(a, b, x=around(x, "reflect"), size=size):
            return F.conv2d(x, (a[:, None] * b).expand(x.shape[1], 1, size, size), groups=x.shape[1])

        once, flat = bell(2 * sigma**2), torch.full((size,), 1 / size)
        one = F.one_hot(torch.tensor(r), size).float()
        shrunk = (*shape[:2], shape[2] - 2 * r, shape[3] - 2 * r)
        shapes = {shrunk: "the border is lost: pad by size // 2 on all sides first, with mode=\"reflect\"."}
        if shape[1] > 1:
            shapes[(shape[0], 1, *shape[2:])] = "the channels were mixed: each has its own mean: groups=C."
        got = attempt(function, x, size, sigma, name="local_mean")
        compare(got, mean(once, once), name, rtol=1e-3, atol=1e-4, shapes=shapes, mistakes=[
            (mean(flat, flat), "all pixels of the window count alike: weigh them by a Gaussian of width sigma."),
            (mean(bell(2 * sigma), bell(2 * sigma)), "sigma is not squared: exp(-x**2 / (2 sigma**2))."),
            (mean(bell(sigma**2), bell(sigma**2)), "the 2 is missing: exp(-x**2 / (2 sigma**2))."),
            *[(mean(*pair), "the mean runs along one axis only: the window is bell[:, None] * bell.")
              for pair in ((once, one), (one, once))],
            (mean(once, once) * (-at.square() / (2 * sigma**2)).exp().sum()**2, "the weights must add up to 1: divide "
                                                                                "them by their sum."),
            (mean(once, once, around(x, "constant")), "outside of the picture you put zeros, so the border gets "
                                                      "darker: mode=\"reflect\"."),
            (mean(once, once, around(x, "replicate")), "outside of the picture you repeat its border: here it is a "
                                                       "mirror, mode=\"reflect\"."),
            (mean(once, once, around(x.mean(1, keepdim=True).expand_as(x), "reflect")), "the channels were mixed: each "
                                                                                        "has its own mean."),
        ])
        same_dtype(got, x, name)
        same_dtype(attempt(function, x.double(), size, sigma, name="local_mean"), x.double(), name)
    passed("local_mean: every pixel asks its neighbourhood, the near ones more")


def ssim_map(function):
    """`function(x, y, local_mean)`: x, y (B,C,H,W) in [0,1], local_mean a function of images -> index (B,C,H,W)."""
    draw, name = fresh(), "ssim_map(x, y, local_mean)"
    # pictures that are alike, then opposite: of unrelated ones the covariance is about 0, and hides its mistakes
    for shape, sign, r in (((2, 3, 12, 12), 1, 1), ((1, 2, 9, 14), -1, 2)):
        x, y = draw(*shape).sigmoid(), draw(*shape).sigmoid()
        y = 0.5 + sign * 0.6 * (x - 0.5) + 0.4 * (y - 0.5)
        average = lambda t, r=r: F.avg_pool2d(F.pad(t, (r,) * 4, mode="reflect"), 2 * r + 1, 1)
        got = attempt(function, x, y, average, name="ssim_map")
        _judge_map(got, x, y, average, name)
        same_dtype(got, x, name)
    dark, light = torch.full((1, 1, 8, 8), 0.3), torch.full((1, 1, 8, 8), 0.6)
    for one, other in ((dark, dark), (dark, light)):
        index = (2 * one * other + 1e-4) / (one**2 + other**2 + 1e-4)
        compare(attempt(function, one, other, average, name="ssim_map"), index, name + " of flat pictures", rtol=1e-3)
    passed("ssim_map: means, variances and a covariance, in every neighbourhood")


def _judge_map(got, x, y, average, name: str):
    m, n, xx, yy, xy = average(x), average(y), average(x * x), average(y * y), average(x * y)
    v, w, c = xx - m * m, yy - n * n, xy - m * n

    def index(v=v, w=w, c=c, c1=0.01**2, c2=0.03**2, two=2):
        return (two * m * n + c1) * (two * c + c2) / ((m * m + n * n + c1) * (v + w + c2))

    mean = f"return the whole map {tuple(x.shape)}; whoever calls it takes the mean."
    shown = (2 * c + 0.03**2) / (v + w + 0.03**2)
    compare(got, index(), name, shapes=dict.fromkeys([(), (1,), (len(x),), (len(x), 1, 1, 1)], mean), mistakes=[
        (index(xx, yy, xy), "variance and covariance are not centred: the mean of x*x, *minus* the square of the mean; "
                            "the mean of x*y, minus the product of the means."),
        (index(c=xy), "the covariance is not centred: subtract the product of the local means."),
        (index(xx, yy), "the variances are not centred: subtract the square of the local mean."),
        (index(v.clamp(min=0).sqrt(), w.clamp(min=0).sqrt()), "the second factor has *variances* below."),
        (index(c1=0.03**2, c2=0.01**2), "the two constants are swapped: 0.01**2 with the means."),
        (index(c1=0.01, c2=0.03), "the constants are 0.01**2 and 0.03**2."),
        (index(c1=2.55**2, c2=7.65**2), "the constants are those of pictures in [0, 255]; here L = 1."),
        (index(c=c.clamp(min=0)), "a covariance may be negative: do not clamp it."),
        (index(c=c.abs()), "a covariance may be negative: no absolute value."),
        (index(c1=0, c2=0), "the constants are missing: on a flat picture this divides 0 by 0."),
        (index(two=1), "the 2 above is missing: SSIM of a picture with itself must be 1."),
        (shown, "the first factor, which compares the means, is missing."),
        (index() / shown, "the second factor, which compares the structure, is missing."),
        (1 - index(), "this is 1 - SSIM. The index itself is 1 for equal pictures."),
        (index(average((x - m)**2), average((y - n)**2), average((x - m) * (y - n))), "each pixel's deviation is taken "
         "from its own window's mean, but a window has *one* mean: take the mean of x*x minus the square of the mean."),
        (index(v * v, w * w), "sigma^2 is the variance already: it is not squared again."),
        (index(-v, -w, -c), "variance and covariance have the wrong sign: mean of the square *minus* square of the "
                            "mean."),
        (index() / shown + shown, "the two factors are multiplied, not added."),
    ], rtol=1e-3, atol=1e-4)


def unit_normalise(function):
    """`function(features)`: (B,C,h,w) -> the same, each position's vector of C numbers with length 1, or zero."""
    draw, name = fresh(), "unit_normalise(features)"
    # the last map whispers: a number that keeps lengths from 0 must be far below them
    for shape, loudness in (((2, 5, 3, 4), 1.0), ((3, 8, 2, 2), 20.0), ((1, 4, 5, 3), 0.01)):
        x, = learn(loudness * draw(*shape))
        got = attempt(function, x, name="unit_normalise")
        _judge_units(got, x, name)
        same_dtype(got, x, name)
        same_gradient(got, x / x.square().sum(1, keepdim=True).sqrt(), {"features": x}, name)
    _judge_silence(function, draw, name)
    passed("unit_normalise: directions are left, lengths are gone")


def _judge_units(got, x, name: str):
    length = lambda axes: x.square().sum(axes, keepdim=True).sqrt()
    wrong_axis = "normalised over the wrong axis: the vector of a position runs over the *channels*, axis 1."
    compare(got, x / length(1), name, mistakes=[
        *[(x / length(axis), wrong_axis) for axis in (0, 2, 3, (2, 3))],
        *[(x / length(axes), "one length for the whole map: every position has its own (axis 1 only).")
          for axes in ((1, 2, 3), (0, 1, 2, 3))],
        (x / length(1).square(), "divided by the squared length: the square root is missing."),
        (x / x.abs().sum(1, keepdim=True), "divided by the sum of absolute values: length is the root of the sum of "
                                           "squares."),
        (x / x.sum(1, keepdim=True), "divided by the sum of the entries: length is the root of the sum of squares."),
        (x / length(1) * x.shape[1]**0.5, "divided by the root *mean* square: take the sum over channels."),
        (x.softmax(1), "this is a softmax. Divide each vector by its length."),
        ((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True), "this standardises. Subtract no mean, only divide by "
                                                                 "the length."),
    ], rtol=1e-3)


def _judge_silence(function, draw, name: str):
    """Positions where no channel speaks: ReLU networks have many, and one NaN spoils a training."""
    silent = draw(1, 5, 2, 3)
    silent[..., 0] = 0
    silent, = learn(silent)
    out = attempt(function, silent, name="unit_normalise")
    if not out.isfinite().all():
        raise CheckFailed(f"{name}: where all channels are 0 the result is 0 / 0 = NaN. Keep the length from being 0: "
                          "`.clamp(min=1e-10)`, or add 1e-10.")
    if out[..., 0].any():
        raise CheckFailed(f"{name}: where all channels are 0 the result must be 0 too; there is no direction.")
    if not torch.autograd.grad(out.sum(), silent)[0].isfinite().all():
        raise CheckFailed(f"{name}: where all channels are 0 the *gradient* is NaN, because a square root is "
                          "infinitely steep at 0, or because `where` or `nan_to_num` after the division hides 0 / 0 "
                          "from the value but not from the gradient. Keep the length away from 0 *before* you divide: "
                          "`features.norm(dim=1, keepdim=True).clamp(min=1e-10)`.")


def unit(x):
    """(B,C,h,w) -> the same with vectors of length 1 at every position."""
    return F.normalize(x, dim=1)


def layer_distance(function):
    """`function(a, b, head)`: maps a, b (B,C,h,w), head (C,) >= 0 -> distances (B,)."""
    draw, name = fresh(), "layer_distance(a, b, head)"
    for shape in ((3, 6, 4, 5), (2, 9, 3, 2)):
        a, b = learn(draw(*shape) + 0.5, draw(*shape) + 0.5)
        head = draw(shape[1]).abs()
        got = attempt(function, a, b, head, name="layer_distance")
        same_gradient(got, _judge_distance(got, a, b, head, name), {"a": a, "b": b}, name)
        same_dtype(got, a, name)
    passed("layer_distance: unit vectors, squared difference, weighted sum over channels, mean over positions")


def _judge_distance(got, a, b, head, name: str):
    """Compare with the right distances, which are returned with their graph."""
    h = head[:, None, None]
    square = (unit(a) - unit(b)).square()
    want = (h * square).sum(1).mean((1, 2))
    shapes = {(len(a), *a.shape[2:]): "the positions are still there: take the mean over height and width.",
              **dict.fromkeys([(), (1,)], "this is one number for the batch. Give one for each pair, shape (B,).")}
    compare(got, want, name, shapes=shapes, mistakes=[
        ((h * (a - b).square()).sum(1).mean((1, 2)), "the maps are not unit-normalised."),
        ((h * unit(a - b).square()).sum(1).mean((1, 2)), "normalise the two maps first, then subtract."),
        (square.sum(1).mean((1, 2)), "the head has no effect: each channel's squared difference times its weight."),
        (square.mean((1, 2, 3)), "the head has no effect: each channel's squared difference times its weight."),
        ((h * square).mean((1, 2, 3)), "the mean over channels: a 1x1 convolution *sums* over them."),
        ((h * square).sum((1, 2, 3)), "the sum over positions: a larger picture would be farther. Take the mean."),
        ((h * (unit(a) - unit(b)).abs()).sum(1).mean((1, 2)), "absolute differences: square them."),
        ((h * (unit(a) - unit(b))).square().sum(1).mean((1, 2)), "the head was squared too: weigh *after* squaring."),
        ((h * (unit(a) - unit(b))).sum(1).square().mean((1, 2)), "first square, then weigh and sum over channels: "
                                                                   "differences of either sign must not cancel."),
        ((h * square).sum(1).sqrt().mean((1, 2)), "no square root: LPIPS adds squared differences."),
        (want.sqrt(), "no square root: LPIPS adds squared differences."),
        ((h.sqrt() * square).sum(1).mean((1, 2)), "the root of the weight stands inside the norm: squared, it is the "
                                                  "weight itself."),
        ((unit(h * a) - unit(h * b)).square().sum(1).mean((1, 2)), "the head weighs squared differences, not the "
                                                                    "features."),
    ], rtol=1e-3)
    return want
