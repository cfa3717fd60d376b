"""What every check is made of: call a learner's function safely, compare its result, name the likely mistake."""

import traceback

import torch
from torch import Tensor


class CheckFailed(AssertionError):
    """Your solution differs from what the exercise asks; the message says how, and what to look at."""

    def _render_traceback_(self):
        """Jupyter shows this instead of a stack trace through our files: the message is what helps."""
        return [f"CheckFailed: {self}"]


def compare(got, want: Tensor, what: str, mistakes=(), rtol=1e-4, atol=1e-5):
    """Hold a learner's result against the right one.

    mistakes: pairs (value a known mistake would give, what to tell the learner about it).
    Raises CheckFailed naming the first difference: type, shape, dtype kind, a known mistake, or the largest error.
    """
    if got is None:
        raise CheckFailed(f"{what} returned None. Did you forget the `return`, or is the stub still in place?")
    if not isinstance(got, Tensor):
        raise CheckFailed(f"{what} should be a torch.Tensor, not {type(got).__name__}.")
    if got.shape != want.shape:
        raise CheckFailed(f"{what} has shape {tuple(got.shape)}; it should be {tuple(want.shape)}.")
    if (got.is_floating_point(), got.dtype == torch.uint8) != (want.is_floating_point(), want.dtype == torch.uint8):
        raise CheckFailed(f"{what} has dtype {got.dtype}; it should be {want.dtype}.")
    got, want = got.detach().double(), want.detach().double()
    if torch.allclose(got, want, rtol=rtol, atol=atol):
        return
    if not got.isfinite().all():
        raise CheckFailed(f"{what} contains NaN or infinity. Look for a division by zero.")
    for value, message in mistakes:
        if value.shape == got.shape and torch.allclose(got, value.detach().double(), rtol=rtol, atol=atol):
            raise CheckFailed(f"{what}: {message}")
    error = (got - want).abs()
    where = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    raise CheckFailed(f"{what} is off by up to {error.max():.3g} (at index {where}: got {got[where]:.4g}, "
                      f"expected {want[where]:.4g}).")


def passed(message: str):
    """The one line a learner wants to see."""
    print(f"✓ {message}")


def attempt(function, *inputs, name: str):
    """Call a learner's function; an exception inside it becomes a message that says where it came from."""
    copies = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
    try:
        result = function(*copies)
    except NotImplementedError as error:
        raise still_a_stub(error, name) from None
    except Exception as error:
        shapes = ", ".join(map(_brief, inputs))
        called = f" (called with {shapes})" if inputs else ""
        raise CheckFailed(f"{name} raised {type(error).__name__}: {str(error).rstrip('.')}{called}.") from error
    for before, after in zip(inputs, copies):
        if isinstance(before, Tensor) and not torch.equal(before, after):
            raise CheckFailed(f"{name} changed its input in place. Make a new tensor: `x = x * 2`, not `x *= 2`.")
    return result


def _brief(x) -> str:
    """An input of a learner's function, in a few letters: tensors by their shape, networks by their class."""
    if isinstance(x, Tensor):
        return str(tuple(x.shape))
    if isinstance(x, (list, tuple)):
        return "[" + ", ".join(map(_brief, x)) + "]"
    if isinstance(x, dict):
        return "{" + ", ".join(f"{key}: {_brief(value)}" for key, value in x.items()) + "}"
    text = type(x).__name__ if isinstance(x, torch.nn.Module) else repr(x)
    return text if len(text) <= 60 else text[:57] + "..."


def still_a_stub(error: NotImplementedError, name: str) -> CheckFailed:
    """Whose stub it was that raised: this exercise's, or that of an earlier one, which the solution calls."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [f for f in frames if f.f_globals.get("__name__", "").partition(".")[0] not in ("ldm_mini", "torch")]
    if own and own[-1].f_code is not own[0].f_code:
        owner = own[-1].f_locals.get("self")
        stub = (f"{type(owner).__name__}." if owner is not None else "") + own[-1].f_code.co_name
        return CheckFailed(f"{name} calls {stub}, which is still a stub: write that first.")
    return CheckFailed(f"{name} is still the stub: replace `raise NotImplementedError` by your code.")


def noise(*shape, seed=0) -> Tensor:
    """Standard normal numbers that are the same everywhere."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
