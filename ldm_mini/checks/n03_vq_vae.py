"""Checks of notebook 03, the VQ-VAE. Gradients are looked at, not only values: its famous bugs change nothing else."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checking import CheckFailed, attempt, compare, passed
from .properties import fresh, learn, same_dtype

FLAT = "the flattening mixed pixels up: the channels of one pixel are one vector, so move the channels last *before* "\
       "you reshape: z.permute(0, 2, 3, 1).reshape(-1, D)."


def rows(z: Tensor) -> Tensor:
    """(B,D,h,w) -> the vectors (B*h*w, D)"""
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def nearest(z: Tensor, codebook: Tensor, vectors=rows, pick=torch.argmin) -> Tensor:
    """Brute force in double precision -> (B,h,w)."""
    distances = (vectors(z.double())[:, None] - codebook.double()[None]).square().sum(-1)
    return pick(distances, dim=1).view(z.shape[0], *z.shape[2:])


def look_up(codebook: Tensor, indices: Tensor) -> Tensor:
    """Codes (K,D) and indices (B,h,w) -> (B,D,h,w)"""
    return codebook[indices].permute(0, 3, 1, 2)


def index_mistakes(z: Tensor, codebook: Tensor) -> list:
    """Wrong indices (B,h,w) that known mistakes give."""
    norms, products = codebook.square().sum(1), rows(z) @ codebook.T
    best = lambda score: score.argmin(1).view(z.shape[0], *z.shape[2:])
    directions = F.normalize(rows(z), dim=1) @ F.normalize(codebook, dim=1).T
    one_norm = torch.cdist(rows(z), codebook, p=1).argmin(1).view(z.shape[0], *z.shape[2:])
    turned = lambda z: z.permute(0, 3, 2, 1).reshape(-1, z.shape[1])
    return [
        (nearest(z, codebook, lambda z: z.reshape(-1, z.shape[1])), FLAT),
        (nearest(z, codebook, turned), "height and width have changed places: permute(0, 2, 3, 1), not (0, 3, 2, 1)."),
        (nearest(z, codebook, pick=torch.argmax), "these are the codes *farthest* away: take the argmin."),
        (best(-products), "|e|^2 is missing. The codes differ in length, so the largest dot product is not the "
                          "nearest code."),
        (best(norms - products), "a factor: |z - e|^2 = |z|^2 + |e|^2 - *2* z.e."),
        (best(norms + 2 * products), "a sign: |z - e|^2 = |z|^2 + |e|^2 *minus* 2 z.e."),
        (best(norms.expand(len(products), -1)), "every vector got the same code: z plays no part in your distances."),
        (best(-directions), "these are the codes of nearest *direction*; lengths count too."),
        (one_norm, "these are the nearest by absolute differences; square them."),
        (nearest(z[:1], codebook).expand(len(z), *z.shape[2:]), "all pictures got the codes of the first one."),
    ]


def nearest_code(function):
    """`function(z, codebook)`: z (B,D,h,w), codebook (K,D) -> index (B,h,w) of the nearest code of every pixel."""
    draw = fresh()
    for shape, size in (((2, 3, 5, 4), 9), ((3, 2, 4, 6), 5), ((1, 6, 3, 3), 20)):
        z, codebook = clear_cut(draw, shape, size)
        got = attempt(function, z, codebook, name="nearest_code")
        b, _, h, w = shape
        shapes = {shape: "these are the codes; return their indices, (B,h,w).",
                  (b * h * w,): "one index per vector. Give them the shape (B,h,w) again.",
                  (b * h * w, size): "these are all distances; take the index of the smallest of each row.",
                  (b, 1, h, w): "drop the axis of size 1: (B,h,w)."}
        if h != w:
            shapes[b, w, h] = "height and width have changed places."
        compare(got, nearest(z, codebook), "nearest_code(z, codebook)", mistakes=index_mistakes(z, codebook),
                shapes=shapes)
    passed("nearest_code: every pixel finds its code")


def clear_cut(draw, shape: tuple, size: int) -> tuple[Tensor, Tensor]:
    """Vectors and codes without a tie that rounding could decide."""
    while True:
        z, codebook = draw(*shape), draw(size, shape[1])
        first, second = torch.cdist(rows(z), codebook).topk(2, largest=False).values.unbind(1)
        if (second - first).min() > 1e-3:
            return z, codebook


def straight_through(function):
    """`function(z, q)` of equal shapes: the value of q, whose gradient goes to z unchanged and to q not at all."""
    draw, name = fresh(), "straight_through(z, q)"
    for shape in ((2, 3, 4, 4), (1, 5, 2, 3)):
        z, q, upstream = *learn(draw(*shape), draw(*shape)), draw(*shape)
        out = attempt(function, z, q, name="straight_through")
        compare(out, q, name, mistakes=[
            (z, "this has the value of z. Forward must be q: z + (q - z), with a detach at the right place."),
            (2 * z - q, "this is 2z - q: the difference is q - z, not z - q."),
            (z + q, "this is z + q. Add the *difference* q - z to z."),
            (q - z, "this is the difference alone: add it to z."),
            ((z + q) / 2, "this is the mean of the two. Forward must be q."),
        ])
        same_dtype(out, q, name)
        if not out.requires_grad:
            raise CheckFailed(f"{name} has no gradient at all. Detach only the difference, (q - z).detach().")
        gradients = torch.autograd.grad((out * upstream).sum(), [z, q], allow_unused=True)
        judge_straight_through(*gradients, upstream, name)
        # no training is going on: the value must come all the same
        with torch.no_grad():
            compare(attempt(function, z.detach(), q.detach(), name="straight_through"), q, name + " without gradients")
    passed("straight_through: forward q, backward as if nothing had happened")


def judge_straight_through(to_z, to_q, upstream: Tensor, name: str):
    """The gradients on z and on q against the one that came in."""
    if to_z is None or not to_z.any():
        raise CheckFailed(f"{name}: no gradient reaches z, so the encoder would never learn. z + (q - z) alone is just "
                          "q: detach the difference, z + (q - z).detach().")
    if not torch.allclose(to_z, upstream, atol=1e-5):
        raise CheckFailed(f"{name}: the gradient on z is not the gradient that came in. It must pass unchanged.")
    if to_q is not None and to_q.any():
        raise CheckFailed(f"{name}: the gradient also flows into q, so the decoder moves the codes. Only the codebook "
                          "loss should: detach q as well.")


def vq_loss(function):
    """`function(z, e, weight)`: z and the codes e that it chose, (B,D,h,w) -> |e - sg(z)|^2 + weight |z - sg(e)|^2."""
    draw = fresh()
    for weight, shape in ((0.25, (2, 3, 4, 4)), (2.0, (3, 2, 5, 3)), (0.6, (1, 4, 2, 6))):
        z, e = learn(draw(*shape), draw(*shape))
        loss, name = attempt(function, z, e, weight, name="vq_loss"), f"vq_loss(z, e, {weight:g})"
        unit = 2 * (z - e).detach() / z.numel()                                 # gradient of |z - e|^2 on z
        judge_loss(loss, z, e, {z: unit, e: -unit}, weight, name)
    passed("vq_loss: codes walk to the vectors, vectors are held near their codes, each with its own weight")


def judge_loss(loss, z: Tensor, e: Tensor, units: dict, weight: float, name: str):
    """Value and gradients; units: {what is moved: the gradient of |z - e|^2 on it}, the encoder's side first."""
    def shares():
        moved = torch.autograd.grad(loss, list(units), allow_unused=True, retain_graph=True)
        return [share(gradient, unit, name) for gradient, unit in zip(moved, units.values())]

    mse = F.mse_loss(z, e).detach()
    # one of the terms alone has this value too
    if isinstance(loss, Tensor) and loss.shape == () and loss.requires_grad and torch.allclose(loss.to(mse), mse):
        if torch.allclose(torch.tensor(shares()), torch.tensor([weight, 1 - weight]), atol=1e-3):
            raise CheckFailed(f"{name}: the two weights add up to 1. The codebook term has the weight 1, not 1 - "
                              "weight: |e - sg(z)|^2 + weight * |z - sg(e)|^2.")
    _judge_loss_value(loss, z.detach(), e.detach(), weight, name)
    if not loss.requires_grad:
        raise CheckFailed(f"{name} has no gradient: each term detaches *one* of the two, not both.")
    _judge_loss_gradients(*shares(), weight, name)


def _judge_loss_value(loss, z: Tensor, e: Tensor, weight: float, name: str):
    # the values cannot tell where a gradient was stopped: `_judge_loss_gradients` does
    mse, per_vector, per_picture = F.mse_loss(z, e), z.shape[1], z[0].numel()
    right = (1 + weight) * mse
    sums = "sums instead of means: take the mean over all elements, so that the weight does not depend on the size of "\
           "the picture."
    only = "one of the two terms is missing: |sg(z) - e|^2 + weight * |z - sg(e)|^2."
    compare(loss, right, name, mistakes=[
        (right * z.numel(), sums), (right * per_picture, sums),
        (right * per_vector, "a sum over the channels. Take the mean over them too: all elements alike."),
        ((1 + weight) * F.l1_loss(z, e), "absolute differences: square them."),
        ((1 + weight) * (z - e).norm(), "a length; the *squares* are averaged: (z - e).square().mean()."),
        (mse, only), (weight * mse, only),
        (1.25 * mse, "the weight is fixed at 0.25: use the argument."),
        (right / 2, "no factor 1/2: the two terms are added."),
        (2 * mse, "the weight was not used: it belongs to the commitment term |z - sg(e)|^2."),
        (2 * weight * mse, "the weight stands at both terms; only the commitment term has it."),
    ])


def share(gradient, unit: Tensor, name: str) -> float:
    """How many times `unit` a gradient is; anything but a multiple is an error."""
    if gradient is None:
        return 0.0
    share = ((gradient * unit).sum() / unit.square().sum()).item()
    if not torch.allclose(gradient, share * unit, atol=1e-3 * unit.abs().max().item()):
        raise CheckFailed(f"{name}: the gradient points elsewhere than from a vector to its code.")
    return share


def _judge_loss_gradients(encoder: float, codes: float, weight: float, name: str):
    """The multiples of d|z-e|^2 that reach z and e; right is (weight, 1)."""
    w, head = weight, f"{name}: the value is right, the gradients are not. "
    near = lambda a, b: abs(encoder - a) + abs(codes - b) < 1e-3
    idle = "The codes get no gradient and never learn: in the codebook term detach z, not e."
    if near(w, 1):
        return
    for a, b, message in [
        (1, w, "The weight is on the codebook term: swapped. It belongs to the term that moves the *encoder*, "
               "weight * |z - sg(e)|^2. (The released code has this bug.)"),
        (1 + w, 1 + w, "Both stop-gradients are missing: each term must move one side only. Detach z in the first, e "
                       "in the second."),
        (w - 1, 0, "The loss is computed *after* straight-through: there z_q carries the gradient of z, so the codes "
                   "get none and the encoder is pushed *away* from them. Use the codes as looked up."),
        (1 + w, 0, idle), (w, 0, idle),
        (0, 1 + w, "Both terms move the codes and none the encoder: in the commitment term detach e, not z."),
        (1 + w, 1, "The codebook term moves the encoder too: detach z in it, |e - sg(z)|^2."),
        (w, 1 + w, "The commitment term moves the codes too: detach e in it, |z - sg(e)|^2."),
        (0, 1, "The commitment term moves nothing. Computed after straight-through, z and z_q move together: use the "
               "code itself, detached."),
    ]:
        if near(a, b):
            raise CheckFailed(head + message)
    raise CheckFailed(head + f"In units of the gradient of |z - e|^2 the encoder gets {encoder:.2f} (right: {w:g}) and "
                             f"the codes {codes:.2f} (right: 1).")
