"""Checks of notebook 03, the VQ-VAE. Gradients are looked at, not only values: its famous bugs change nothing else."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checking import CheckFailed, attempt, compare, noise, passed, several

FLAT = "the flattening mixed pixels up: the channels of one pixel are one vector, so move the channels last *before* "\
       "you reshape: z.permute(0, 2, 3, 1).reshape(-1, D)."


def _vectors(z: Tensor) -> Tensor:
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def _nearest(z: Tensor, codebook: Tensor, vectors=_vectors, pick=torch.argmin) -> Tensor:
    """Brute force in double precision -> (B,h,w)."""
    distances = (vectors(z.double())[:, None] - codebook.double()[None]).square().sum(-1)
    return pick(distances, dim=1).view(z.shape[0], *z.shape[2:])


def _look_up(codebook: Tensor, indices: Tensor) -> Tensor:
    return codebook[indices].permute(0, 3, 1, 2)


def _index_mistakes(z: Tensor, codebook: Tensor) -> list:
    """Wrong indices (B,h,w) that known mistakes give."""
    norms, products = codebook.square().sum(1), _vectors(z) @ codebook.T
    best = lambda score: score.argmin(1).view(z.shape[0], *z.shape[2:])
    directions = F.normalize(_vectors(z), dim=1) @ F.normalize(codebook, dim=1).T
    return [
        (_nearest(z, codebook, lambda z: z.reshape(-1, z.shape[1])), FLAT),
        (_nearest(z, codebook, pick=torch.argmax), "these are the codes *farthest* away: take the argmin."),
        (best(-products), "|e|^2 is missing. The codes differ in length, so the largest dot product is not the "
                          "nearest code."),
        (best(norms - products), "a factor: |z - e|^2 = |z|^2 + |e|^2 - *2* z.e."),
        (best(norms + 2 * products), "a sign: |z - e|^2 = |z|^2 + |e|^2 *minus* 2 z.e."),
        (best(norms.expand(len(products), -1)), "every vector got the same code: z plays no part in your distances."),
        (best(-directions), "these are the codes of nearest *direction*; lengths count too."),
    ]


def nearest_code(function):
    """`function(z, codebook)`: z (B,D,h,w), codebook (K,D) -> index (B,h,w) of the nearest code of every pixel."""
    z, codebook = noise(2, 3, 5, 4), noise(9, 3, seed=1)
    got = attempt(function, z, codebook, name="nearest_code")
    compare(got, _nearest(z, codebook), "nearest_code(z, codebook)", mistakes=_index_mistakes(z, codebook), shapes={
        tuple(z.shape): "these are the codes; return their indices, (B,h,w).",
        (40,): "one index per vector. Give them the shape (B,h,w) again."})
    passed("nearest_code: every pixel finds its code")


def straight_through(function):
    """`function(z, q)` of equal shapes: the value of q, whose gradient goes to z unchanged and to q not at all."""
    z, q, upstream = noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1), noise(2, 3, 4, 4, seed=2)
    z, q = z.requires_grad_(), q.requires_grad_()
    out = attempt(function, z, q, name="straight_through")
    name = "straight_through(z, q)"
    compare(out, q, name, mistakes=[
        (z, "this has the value of z. Forward must be q: z + (q - z), with a detach at the right place."),
        (2 * z - q, "this is 2z - q: the difference is q - z, not z - q."),
        (z + q, "this is z + q. Add the *difference* q - z to z."),
    ])
    if not out.requires_grad:
        raise CheckFailed(f"{name} has no gradient at all. Detach only the difference, (q - z).detach().")
    _judge_straight_through(*torch.autograd.grad((out * upstream).sum(), [z, q], allow_unused=True), upstream, name)
    passed("straight_through: forward q, backward as if nothing had happened")


def _judge_straight_through(to_z, to_q, upstream: Tensor, name: str):
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
    for weight in (0.25, 2.0):
        z, e = noise(2, 3, 4, 4).requires_grad_(), noise(2, 3, 4, 4, seed=1).requires_grad_()
        name = f"vq_loss(z, e, {weight:g})"
        loss = attempt(function, z, e, weight, name="vq_loss")
        _judge_loss_value(loss, z.detach(), e.detach(), weight, name)
        if not loss.requires_grad:
            raise CheckFailed(f"{name} has no gradient: each term detaches *one* of the two, not both.")
        unit = 2 * (z - e).detach() / z.numel()                                 # gradient of |z - e|^2 on z
        to_z, to_e = torch.autograd.grad(loss, [z, e], allow_unused=True)
        _judge_loss_gradients(_share(to_z, unit, name), _share(to_e, -unit, name), weight, name)
    passed("vq_loss: codes walk to the vectors, vectors are held near their codes, each with its own weight")


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
        (2 * mse, "the weight was not used: it belongs to the commitment term |z - sg(e)|^2."),
        (2 * weight * mse, "the weight stands at both terms; only the commitment term has it."),
    ])


def _share(gradient, unit: Tensor, name: str) -> float:
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


def vector_quantizer(cls):
    """`cls(codebook_size, dim, commitment_weight)`: a module with `.codebook` (K,D); z -> z_q, indices, loss.

    A codebook without gradient is taken for one that moves by running means (EMA): then the loss is the commitment.
    """
    sizes = {"codebook_size": 9, "dim": 3, "commitment_weight": 0.4}
    name = getattr(cls, "__name__", "your class")
    module = attempt(lambda: cls(**sizes), name=f"{name}(codebook_size=9, dim=3, commitment_weight=0.4)")
    _set_codebook(module, name)
    # in training mode a codebook may move, and nothing could be compared
    module.eval()
    z, upstream = noise(2, 3, 5, 4).requires_grad_(), noise(2, 3, 5, 4, seed=2)
    book = _codebook(module)
    before = book.detach().clone()
    out = attempt(module, z, name=f"{name}'s forward")
    z_q, indices, loss = several(out, f"{name}'s forward", "three things: z_q, indices, loss")
    right = _nearest(z.detach(), before)
    compare(indices, right, "indices", mistakes=_index_mistakes(z.detach(), before))
    codes = _look_up(before, right)
    compare(z_q, codes, "z_q", mistakes=[
        (z.detach(), "z_q has the value of z: return the codes (straight-through adds the *detached* difference)."),
        (before[right.flatten()].reshape(z.shape), "the codes are right but mixed up on the way back to (B,D,h,w): "
                                                   "first (B,h,w,D), then permute(0, 3, 1, 2)."),
    ])
    if not z_q.requires_grad:
        raise CheckFailed("z_q has no gradient: the lookup cuts the encoder off. Use straight-through.")
    to_z, to_book = torch.autograd.grad((z_q * upstream).sum(), [z] + [book] * book.requires_grad, allow_unused=True,
                                        retain_graph=True) + (None,) * (not book.requires_grad)
    _judge_straight_through(to_z, to_book, upstream, "z_q")
    _judge_class_loss(loss, z, codes, right, book)
    if not torch.equal(_codebook(module).detach(), before):
        raise CheckFailed("a forward in eval mode changed the codebook: update it only `if self.training`.")
    if not book.requires_grad:
        _must_follow(module, z.detach())
    passed(f"{name}: nearest codes, straight-through, both losses"
           if book.requires_grad else f"{name}: nearest codes, straight-through, a codebook of running means")


def _judge_class_loss(loss, z: Tensor, codes: Tensor, indices: Tensor, book: Tensor):
    """Value and gradients of the loss of a whole quantiser whose commitment_weight is 0.4."""
    name, mse = "the loss", F.mse_loss(z, codes).detach()
    unit = 2 * (z.detach() - codes) / z.numel()
    if not book.requires_grad:
        compare(loss, 0.4 * mse, name, mistakes=[(1.4 * mse, "a codebook of running means gets no gradient: only the "
                                                             "commitment term is left.")])
        if not loss.requires_grad:
            raise CheckFailed("the loss has no gradient: the commitment term moves z; detach the code in it, not z.")
        share = _share(torch.autograd.grad(loss, z)[0], unit, name)
        if abs(share - 0.4) > 1e-3:
            raise CheckFailed(f"{name}: the commitment term reaches the encoder {share:.2f} times; it should be 0.4.")
        return
    _judge_loss_value(loss, z.detach(), codes, 0.4, name)
    if not loss.requires_grad:
        raise CheckFailed("the loss has no gradient: each term detaches *one* of the two, not both.")
    to_z, to_book = torch.autograd.grad(loss, [z, book], allow_unused=True)
    per_code = torch.zeros_like(book).index_add_(0, indices.flatten(), -_vectors(unit))
    _judge_loss_gradients(_share(to_z, unit, name), _share(to_book, per_code, name), 0.4, name)


def _codebook(module) -> Tensor:
    book = getattr(module, "codebook", None)
    return book.weight if isinstance(book, nn.Embedding) else book


def _set_codebook(module, name: str):
    """Give a learner's module known codes."""
    if not isinstance(module, nn.Module):
        raise CheckFailed(f"{name} should be an nn.Module.")
    book = _codebook(module)
    if not isinstance(book, Tensor) or book.shape != (9, 3):
        raise CheckFailed(f"{name} should keep its codes as `self.codebook`, of shape (codebook_size, dim) = (9, 3).")
    if all(book is not kept for kept in [*module.parameters(), *module.buffers()]):
        raise CheckFailed(f"{name}.codebook is a plain tensor: no optimizer, no .to(device) and no state dict will "
                          "ever see it. Make it an nn.Parameter.")
    if not book.isfinite().all() or (book == book[0]).all():
        raise CheckFailed(f"{name}'s codes are all equal (or not finite) at the start: the first one would win every "
                          "time. Start them at random, for instance uniform in [-1/K, 1/K].")
    with torch.no_grad():
        book.copy_(noise(9, 3, seed=1))


def _must_follow(module, z: Tensor):
    """A codebook that learns by itself must come nearer to what it is shown."""
    distance = lambda: F.mse_loss(_look_up(_codebook(module), _nearest(z, _codebook(module))), z).item()
    first = distance()
    module.train()
    for _ in range(200):
        attempt(module, z, name="forward in training mode")
    if not distance() < 0.9 * first:
        raise CheckFailed("the codebook has no gradient, and 200 forward passes in training mode did not move it to "
                          "its vectors: neither way of learning works. Make it an nn.Parameter, or update the means.")
