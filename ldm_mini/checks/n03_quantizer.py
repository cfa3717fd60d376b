"""Checks of notebook 03, continued: the whole quantiser as a module."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checking import CheckFailed, attempt, compare, passed, several
from .n03_vq_vae import clear_cut, index_mistakes, judge_loss, judge_straight_through, look_up, nearest, rows, share
from .properties import fresh, learn, own_randomness, same_dtype


def vector_quantizer(cls):
    """`cls(codebook_size, dim, commitment_weight)`: a module with `.codebook` (K,D); z -> z_q, indices, loss.

    A codebook without gradient is taken for one that moves by running means (EMA): then the loss is the commitment.
    """
    draw, name = fresh(), getattr(cls, "__name__", "your class")
    with own_randomness():
        for size, dim, weight, shape in ((9, 3, 0.4, (2, 3, 5, 4)), (12, 5, 1.5, (3, 5, 2, 6))):
            sizes = {"codebook_size": size, "dim": dim, "commitment_weight": weight}
            written = ", ".join(f"{key}={value}" for key, value in sizes.items())
            module = attempt(lambda: cls(**sizes), name=f"{name}({written})")
            z, codes = clear_cut(draw, shape, size)
            _set_codebook(module, codes, name)
            book = _codebook(module)
            # in training mode running means move, and nothing could be compared
            for training in (False, True) if book.requires_grad else (False,):
                module.train(training)
                if training:
                    # some start their codes from the first batch
                    attempt(module, z, name=f"{name}'s forward in training mode")
                _judge_forward(module, book, *learn(z), draw(*shape), weight, name)
            if not book.requires_grad:
                _must_follow(module, z)
    passed(f"{name}: nearest codes, straight-through, both losses"
           if book.requires_grad else f"{name}: nearest codes, straight-through, a codebook of running means")


def _judge_forward(module, book: Tensor, z: Tensor, upstream: Tensor, weight: float, name: str):
    before, mode = book.detach().clone(), " in training mode" * module.training
    out = attempt(module, z, name=f"{name}'s forward{mode}")
    z_q, indices, loss = several(out, f"{name}'s forward{mode}", "three things: z_q, indices, loss")
    right = nearest(z.detach(), before)
    compare(indices, right, "indices" + mode, mistakes=index_mistakes(z.detach(), before), shapes={
        (right.numel(),): "one index per vector. Give them the shape (B,h,w) again."})
    codes = look_up(before, right)
    compare(z_q, codes, "z_q" + mode, mistakes=[
        (z.detach(), "z_q has the value of z: return the codes (straight-through adds the *detached* difference)."),
        (before[right.flatten()].reshape(z.shape), "the codes are right but mixed up on the way back to (B,D,h,w): "
                                                   "first (B,h,w,D), then permute(0, 3, 1, 2)."),
    ])
    same_dtype(z_q, z, "z_q")
    if not z_q.requires_grad:
        raise CheckFailed(f"z_q{mode} has no gradient: the lookup cuts the encoder off. Use straight-through.")
    to_z, to_book = torch.autograd.grad((z_q * upstream).sum(), [z] + [book] * book.requires_grad, allow_unused=True,
                                        retain_graph=True) + (None,) * (not book.requires_grad)
    judge_straight_through(to_z, to_book, upstream, "z_q" + mode)
    _judge_class_loss(loss, z, codes, right, book, weight, "the loss" + mode)
    if not torch.equal(book.detach(), before) and not module.training:
        raise CheckFailed("a forward in eval mode changed the codebook: update it only `if self.training`.")


def _judge_class_loss(loss, z: Tensor, codes: Tensor, indices: Tensor, book: Tensor, weight: float, name: str):
    """Value and gradients of the loss of a whole quantiser."""
    unit = 2 * (z.detach() - codes) / z.numel()
    if book.requires_grad:
        per_code = torch.zeros_like(book).index_add_(0, indices.flatten(), -rows(unit))
        judge_loss(loss, z, codes, {z: unit, book: per_code}, weight, name)
        return
    mse = F.mse_loss(z, codes).detach()
    compare(loss, weight * mse, name, mistakes=[
        ((1 + weight) * mse, "a codebook of running means gets no gradient: only the commitment term is left."),
        (mse, "commitment_weight was not used.")])
    if not loss.requires_grad:
        raise CheckFailed("the loss has no gradient: the commitment term moves z; detach the code in it, not z.")
    part = share(torch.autograd.grad(loss, z)[0], unit, name)
    if abs(part - weight) > 1e-3:
        raise CheckFailed(f"{name}: the commitment term reaches the encoder {part:.2f} times; it should be {weight}.")


def _codebook(module) -> Tensor:
    book = getattr(module, "codebook", None)
    return book.weight if isinstance(book, nn.Embedding) else book


def _set_codebook(module, codes: Tensor, name: str):
    """Give a learner's module known codes."""
    if not isinstance(module, nn.Module):
        raise CheckFailed(f"{name} should be an nn.Module.")
    book = _codebook(module)
    if not isinstance(book, Tensor) or book.shape != codes.shape:
        raise CheckFailed(f"{name} should keep its codes as `self.codebook`, of shape (codebook_size, dim) = "
                          f"{tuple(codes.shape)}.")
    if all(book is not kept for kept in [*module.parameters(), *module.buffers()]):
        raise CheckFailed(f"{name}.codebook is a plain tensor: no optimizer, no .to(device) and no state dict will "
                          "ever see it. Make it an nn.Parameter.")
    if book.dtype != codes.dtype:
        raise CheckFailed(f"{name}'s codes have dtype {book.dtype}; they should be {codes.dtype}.")
    if not book.isfinite().all() or (book == book[0]).all():
        raise CheckFailed(f"{name}'s codes are all equal (or not finite) at the start: the first one would win every "
                          "time. Start them at random, for instance uniform in [-1/K, 1/K].")
    with torch.no_grad():
        book.copy_(codes)


def _must_follow(module, z: Tensor):
    """A codebook that learns by itself must come nearer to what it is shown."""
    distance = lambda: F.mse_loss(look_up(_codebook(module), nearest(z, _codebook(module))), z).item()
    first = distance()
    module.train()
    for _ in range(100):
        attempt(module, z, name="forward in training mode")
    if not distance() < 0.9 * first:
        raise CheckFailed("the codebook has no gradient, and 100 forward passes in training mode did not move it to "
                          "its vectors: neither way of learning works. Make it an nn.Parameter, or update the means.")
