"""Checks of notebook 18: patients that were mended, against the healthy ones."""

import torch

from .checking import CheckFailed, attempt, compare, passed
from .n18_conditions import _condition
from .n18_diffusion import _through, _walk
from .n18_first_stage import _vq
from .properties import fresh, learn, own_randomness, same_dtype, same_gradient


def mended_vq_loss(function):
    """`function(z, codes, beta)`: z, codes (N,D) -> beta |z - sg(codes)|^2 + |sg(z) - codes|^2, means over all, ()."""
    draw = fresh()
    to_z, to_codes = (lambda z, e: (z, e.detach())), (lambda z, e: (z.detach(), e))
    right = _vq(to_z, to_codes)
    for shape, beta in (((6, 3), 0.3), ((4, 5), 2.0)):
        z, codes = learn(draw(*shape), draw(*shape))
        got, what = attempt(function, z, codes, beta, name="mended_vq_loss"), "mended_vq_loss(z, codes, beta)"
        want = right(z, codes, beta)
        error = (z - codes).square()
        compare(got, want, what, mistakes=[
            (error.mean() * 2, "beta is not used."), ((1 + beta) * error.sum(1).mean(), "means over all numbers here."),
            (1.25 * error.mean(), "beta is always 0.25."), (beta * error.mean(), "one of the two terms is missing."),
        ])
        wrong = ((_vq(to_z, to_codes, lambda b: 1.0, lambda b: b), "The patient is as sick as before: beta weighs what "
                  "moves the codes. It belongs to the term in which the *codes* are detached."),
                 (_vq(), "Nothing is detached: each term moves one side alone."))
        same_gradient(got, want, {"z": z, "codes": codes}, what, mistakes=[
            (dict(zip(("z", "codes"), torch.autograd.grad(loss(z, codes, beta), (z, codes)))), hint)
            for loss, hint in wrong])
        same_dtype(got, z, what)
    passed("mended_vq_loss: beta holds the encoder, the codes follow with weight 1")


def mended_walk(function):
    """`function(denoise, x, timesteps, alphas, sigmas)`: DDIM -> the clean x, like x."""
    draw = fresh()
    phi = torch.linspace(0.1, 1.5, 20)
    for timesteps, shape in (([19, 12, 6, 2], (4, 3)), ([15, 9, 0], (2, 3, 2, 2)), ([7], (3, 2))):
        mix, asked = draw(shape[-1], shape[-1]), []

        def denoise(x, t, mix=mix, asked=asked):
            if t.dtype != torch.int64 or t.shape != x.shape[:1]:
                raise ValueError("denoise(x, t) wants an int64 t for each row of x: torch.full((len(x),), t)")
            asked.append(t.tolist())
            late = t.view(-1, *[1] * (x.ndim - 1)) / 10
            return torch.tanh(x @ mix + late), torch.cos(x @ mix.T - late)

        x, rest = draw(*shape), (timesteps, phi.cos(), phi.sin())
        got = attempt(function, denoise, x, *rest, name="mended_walk")
        if len(asked) != len(timesteps):
            raise CheckFailed(f"mended_walk asked {len(asked)} times at {len(timesteps)} timesteps: once at each.")
        compare(got, _walk()(denoise, x, *rest), "mended_walk(...)", mistakes=(
            (_walk(how)(denoise, x, *rest), hint) for how, hint in {
                "asks at s": "as sick as before: x is at t, and the network is asked about where the step goes.",
                "stops at 0": "the last step goes to the clean picture: alpha 1, sigma 0.",
                "wraps": "alphas[-1] is the last entry, the noise; the last step goes to the clean picture.",
                "one too late": "the network is asked about t - 1.", "asks at first": "ask anew at each t.",
                "no noise": "alpha x0 + sigma eps: the noise is missing."}.items()))
        same_dtype(got, x, "mended_walk(...)")
    passed("mended_walk: it asks where it is")


def mended_through_u(function):
    """`function(h, down, smaller, middle, larger, up)`: the way through the U, parts of any number of levels."""
    draw = fresh()
    for levels, channels in ((2, 3), (1, 2), (3, 2)):
        mixes = draw(2 * levels + 1, channels, channels) / 2
        block = lambda mix: lambda h: torch.tanh(torch.einsum("oc,bchw->bohw", mix, h)) + 0.1 * h  # noqa: E731
        shrink = lambda h: torch.nn.functional.avg_pool2d(h, 2)
        grow = lambda h: torch.nn.functional.interpolate(h, scale_factor=2)
        join = lambda mix, c=channels: lambda both: block(mix)(both[:, :c] - 2 * both[:, c:])
        parts = ([block(m) for m in mixes[:levels]], [shrink] * levels, block(mixes[-1]), [grow] * levels,
                 [join(m) for m in mixes[levels:-1]])
        h = draw(2, channels, 16, 16)
        got = attempt(function, h, *parts, name="mended_through_u")
        compare(got, _through()(h, *parts), "mended_through_u(...)", mistakes=(
            (_through(how)(h, *parts), hint) for how, hint in {
                "after shrinking": "as sick as before: the skip must leave *before* the picture shrinks, and be joined "
                                   "behind the growing.",
                "none": "no skip arrives.", "twice h": "h stands where the skip should.",
            }.items()))
    passed("mended_through_u: detail goes around the middle")


def mended_drop_labels(function):
    """`function(labels, null, p)`: (B,) int64 -> each with probability p `null`, like labels."""
    draw = fresh()
    for count, null, p in ((6000, 5, 0.3), (4000, 8, 0.15)):
        labels = (100 * draw(count)).long() % null
        with own_randomness():
            got = attempt(function, labels, null, p, name="mended_drop_labels")  # and that tells of in place
        if not isinstance(got, torch.Tensor) or got.shape != labels.shape or got.dtype != torch.int64:
            raise CheckFailed("mended_drop_labels should return labels as it got them: an int64 tensor of that shape.")
        gone = got == null
        share = gone.float().mean().item()
        if not gone.any():
            raise CheckFailed("mended_drop_labels: as sick as before, no label is `null`. == only compares.")
        if not torch.equal(got[~gone], labels[~gone]):
            raise CheckFailed("mended_drop_labels: labels that are kept must stay what and where they were.")
        if share == 1 or abs(share - (1 - p)) < 0.04:
            raise CheckFailed(f"mended_drop_labels: {share:.0%} are dropped for p = {p}: one coin for each label, and "
                              "dropped where torch.rand is *below* p.")
        if abs(share - p) > 0.04:
            raise CheckFailed(f"mended_drop_labels: {share:.0%} are dropped for p = {p}.")
    passed("mended_drop_labels: one = less")


def mended_condition(function):
    """`function(image, mask)`: image (B,3,H,W), mask (B,1,H,W), 1 = hole -> [image, 0 in the hole; mask], (B,4,H,W)."""
    draw = fresh()
    for batch, side in ((2, 8), (3, 5)):
        image, mask = draw(batch, 3, side, side), (draw(batch, 1, side, side) > 0).float()
        got, what = attempt(function, image, mask, name="mended_condition"), "mended_condition(image, mask)"
        compare(got, _condition()(image, mask), what, mistakes=[
            (_condition("inverted")(image, mask), "as sick as before: 1 is the hole, and what is kept is the rest."),
            (torch.cat([image * (1 - mask), 1 - mask], 1), "the mask goes in as it came: 1 = hole."),
            (_condition("open")(image, mask), "the picture is whole: its hole is to be 0."),
            (torch.cat([mask, image * (1 - mask)], 1), "the order is picture, then mask."),
        ], shapes={(batch, 3, side, side): "the mask is missing: torch.cat([masked, mask], dim=1)."})
        same_dtype(got, image, what)
    passed("mended_condition: what is in the hole stays unknown")
