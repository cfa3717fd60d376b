"""What a check asks beyond one right value: inputs that nobody knows by heart, gradients, dtypes; and numbers."""

import os
from contextlib import contextmanager
from functools import partial
from numbers import Real

import torch
from torch import Tensor

from .checking import CheckFailed

SEED = "LDM_CHECK_SEED"  # an environment variable: a whole number repeats all random inputs


def generator(stream: int = 0) -> torch.Generator:
    """A source of random numbers that differ at every call of a check, unless LDM_CHECK_SEED is set.

    With it, the numbers are the same for the same stream: what must not depend on each other takes different ones.
    """
    source, seed = torch.Generator(), os.environ.get(SEED)
    source.manual_seed(int(seed) + 1_000_003 * stream) if seed else source.seed()
    return source


def fresh(stream: int = 1):
    """`draw(*shape)`: standard normal numbers from one `generator`. Make one per check, and draw all inputs from it."""
    return partial(torch.randn, generator=generator(stream))


def fresh_whole():
    """`some(low, high)`: a whole number, low <= number < high, from one `generator`. Make one per check."""
    source = generator(5)
    return lambda low, high: int(torch.randint(low, high, (), generator=source))


@contextmanager
def own_randomness(stream: int = 2):
    """Within, torch's global random numbers are fresh ones; afterwards they go on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed what is on a GPU, and take a hundred times as long
        torch.default_generator.manual_seed(generator(stream).initial_seed() % 2**63)
        yield


def learn(*tensors: Tensor) -> list[Tensor]:
    """The same values as leaves that gradients can reach."""
    return [t.detach().clone().requires_grad_() for t in tensors]


def same_gradient(got, right: Tensor, leaves: dict, what: str, mistakes=(), rtol=1e-3):
    """Hold the gradients that a learner's result sends to `leaves`, {name: tensor}, against those of the right one.

    Call it when the value is known to be right: then it names a gradient that is missing, cut or not finite.
    mistakes: pairs ({name: gradient}, what to tell the learner) of known wrong gradients.
    """
    cause = "Look for .detach(), .item(), .data, torch.tensor(...) or torch.no_grad() on the way."
    if not isinstance(got, Tensor) or not got.requires_grad:
        raise CheckFailed(f"{what} has the right value but no gradient, so nothing can be trained with it. {cause}")
    for leaf in leaves.values():
        leaf._backward_hooks = None  # a learner's hook would change both gradients alike
    # a weighted sum, since of a plain one some gradients are 0
    weights = torch.arange(1, right.numel() + 1, dtype=right.dtype).cos().view(right.shape) if right.dim() else 1
    one = lambda out: torch.autograd.grad((out * weights).sum(), list(leaves.values()), retain_graph=True,
                                          allow_unused=True)
    filled = lambda out: {name: torch.zeros_like(leaves[name]) if g is None else g
                          for name, g in zip(leaves, one(out))}
    mine, want = filled(got.reshape(right.shape)), filled(right)
    # gradients of a mean over many are small: what counts as 0 depends on the largest
    close = lambda a, b: torch.allclose(a, b.to(a.dtype), rtol=rtol, atol=1e-9 + rtol / 10 * b.abs().max().item())
    wrong = [name for name in leaves if not close(mine[name], want[name])]
    if not wrong:
        return
    for known, message in mistakes:
        if all(close(mine[name], known[name]) for name in known):
            raise CheckFailed(f"{what}: the value is right, the gradient is not. {message}")
    name = wrong[0]
    if not mine[name].isfinite().all():
        raise CheckFailed(f"{what}: the value is right, but the gradient on {name} is NaN or infinite. Look for a "
                          "square root or a division at 0.")
    if not mine[name].any():
        raise CheckFailed(f"{what}: the value is right, but no gradient reaches {name}. {cause}")
    if not want[name].any():
        raise CheckFailed(f"{what}: the value is right, but a gradient reaches {name}, which should get none.")
    raise CheckFailed(f"{what}: the value is right, but the gradient on {name} is not: a part of it is cut off, or "
                      f"comes twice. {cause}")


def same_dtype(got: Tensor, like: Tensor, what: str):
    """What comes out of float32 is float32; another dtype breaks the next layer."""
    if got.dtype != like.dtype:
        raise CheckFailed(f"{what} has dtype {got.dtype}, but the inputs are {like.dtype}: the next layer would refuse "
                          "it, or lose digits. Keep the dtype of the inputs.")


def plain(got):
    """A learner's number as Python's own when it came as a tensor of one value; all else as it is."""
    return got.item() if isinstance(got, Tensor) and got.numel() == 1 else got


def scalar(got):
    """A learner's Python number as a tensor (): for exercises that say "()" and need no gradient."""
    return torch.tensor(float(got)) if isinstance(got, Real) and not isinstance(got, bool) else got
