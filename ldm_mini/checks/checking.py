"""What every check is made of: call a learner's function safely, compare its result, name the likely mistake."""

import inspect
import re
import textwrap
import traceback
from numbers import Real

import torch
from torch import Tensor


class CheckFailed(AssertionError):
    """Your solution differs from what the exercise asks; the message says how, and what to look at."""

    way_on = ""  # what a notebook adds to the message

    def _render_traceback_(self):
        """Jupyter shows this instead of a stack trace through our files: the message is what helps."""
        lines = [*f"CheckFailed: {self}".splitlines(), self.way_on]
        # a shape stays on one line
        lines = [re.sub(r"(?<=\d,) (?=\d)", "\0", line) for line in lines if line]
        wrapped = [textwrap.fill(line, 80, break_long_words=False, break_on_hyphens=False) for line in lines]
        return [line.replace("\0", " ") for line in wrapped]


class NotWritten(CheckFailed):
    """An exercise is still a stub: this one, or an earlier one that it calls, whose name is `stub` then."""

    def __init__(self, message: str, stub: str = ""):
        super().__init__(message)
        self.stub = stub


def compare(got, want, what: str, mistakes=(), shapes=None, rtol=1e-4, atol=1e-5):
    """Hold a learner's result against the right one, a tensor or a number.

    mistakes: pairs (value a known mistake would give, what to tell the learner about it); where the values take long,
              a generator: it is asked only when the result is wrong.
    shapes: {a shape that a known mistake has: the same}.
    Raises CheckFailed naming the first difference: type, shape, dtype kind, a known mistake, or the largest error.
    """
    want = want if isinstance(want, Tensor) else torch.tensor(want, dtype=torch.float64)
    if got is None:
        raise CheckFailed(f"{what} returned None. Did you forget the `return`, or is the stub still in place?")
    if not isinstance(got, Tensor):
        raise CheckFailed(f"{what} should be a torch.Tensor, not {type(got).__name__}.")
    if tuple(got.shape) in (shapes or {}):
        raise CheckFailed(f"{what} has shape {tuple(got.shape)}: {shapes[tuple(got.shape)]}")
    if got.shape != want.shape:
        raise CheckFailed(f"{what} has shape {tuple(got.shape)}; it should be {tuple(want.shape)}.")
    if (got.is_floating_point(), got.dtype == torch.uint8) != (want.is_floating_point(), want.dtype == torch.uint8):
        raise CheckFailed(f"{what} has dtype {got.dtype}; it should be {want.dtype}.")
    got, want = got.detach().double(), want.detach().double()
    if torch.allclose(got, want, rtol=rtol, atol=atol):
        return
    if not got.isfinite().all():
        raise CheckFailed(f"{what} contains NaN or infinity. Look for a division by zero.")
    # only now that it is wrong: for some inputs a mistake gives the right value too
    for value, message in mistakes:
        value = torch.as_tensor(value, dtype=torch.float64).detach()
        if value.shape == got.shape and torch.allclose(got, value, rtol=rtol, atol=atol):
            raise CheckFailed(f"{what}: {message}")
    error = (got - want).abs()
    where = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    at = f"at index {where}: " if where else ""
    raise CheckFailed(f"{what} is off by up to {error.max():.3g} ({at}got {got[where]:.4g}, expected "
                      f"{want[where]:.4g}).")


def several(got, name: str, what: str) -> tuple:
    """A learner's results, as many as the first word of `what` says: "two things: the mean and the variance"."""
    if not isinstance(got, (tuple, list)) or len(got) != {"two": 2, "three": 3}[what.partition(" ")[0]]:
        raise CheckFailed(f"{name} should return {what}; got {_found(got)}.")
    return tuple(got)


def number(got, name: str) -> Tensor:
    """A learner's number, in whatever shape it came, as float64 without axes."""
    if got is None:
        raise CheckFailed(f"{name} returned None. Did you forget the `return`?")
    if isinstance(got, Real) and not isinstance(got, bool) or isinstance(got, Tensor) and got.numel() == 1:
        return torch.as_tensor(got, dtype=torch.float64).detach().reshape(())
    raise CheckFailed(f"{name} should return one number, not {_found(got)}.")


def whole(got, name: str) -> int:
    """A learner's whole number; 3.0 is one."""
    if isinstance(got, bool) or not isinstance(got, Real) or got % 1 != 0:
        raise CheckFailed(f"{name} should return a whole number, not {_found(got)}.")
    return int(got)


def truth(got, name: str) -> bool:
    """A learner's yes or no; a tensor of one value is one."""
    if isinstance(got, bool) or isinstance(got, Tensor) and got.numel() == 1:
        return bool(got)
    raise CheckFailed(f"{name} should return True or False, not {_found(got)}.")


def count(got, right: int, name: str, mistakes: dict):
    """Hold a learner's count against the right one; mistakes: {what a known one counts: what to tell the learner}."""
    got = whole(got, name)
    if got != right:
        raise CheckFailed(f"{name}: " + mistakes.get(got, f"got {got:,}, expected {right:,}."))


def _found(got) -> str:
    """What a learner's function returned, in words."""
    if got is None:
        return "None (did you forget the `return`?)"
    if isinstance(got, Tensor):
        return f"a tensor of shape {tuple(got.shape)}"
    return f"a {type(got).__name__} of {len(got)}" if isinstance(got, (tuple, list, dict)) else _brief(got)


def passed(message: str):
    """The one line a learner wants to see."""
    print(f"✓ {message}")


def attempt(function, *inputs, name: str):
    """Call a learner's function; an exception inside it becomes a message that says where it came from."""
    # the function gets copies, and the originals show whether it wrote into them
    copies = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
    try:
        result = function(*copies)
    except NotImplementedError as error:
        raise still_a_stub(error, name) from None
    except Exception as error:
        called = f" (called with {_named(function, inputs)})." if inputs else "."
        if type(error) is NameError:
            called = ": run the cells above first; or is it misspelled?"
        raise CheckFailed(f"{name} raised {type(error).__name__}: {str(error).rstrip('.')}{called}") from error
    for before, after in zip(inputs, copies):
        if isinstance(before, Tensor) and not torch.equal(before, after):
            raise CheckFailed(f"{name} changed its input in place. Make a new tensor: `x = x * 2`, not `x *= 2`.")
    return result


def _named(function, inputs) -> str:
    """Inputs in a few letters, each under the name that the learner's function gives it, where it names each."""
    try:
        names = inspect.signature(function).bind(*inputs).arguments
    except Exception:  # of a learner's object: whatever it is
        names = {}
    words = list(map(_brief, inputs))
    return ", ".join(map(" ".join, zip(names, words)) if len(names) == len(words) > 1 else words)


def _brief(x) -> str:
    """An input of a learner's function, in a few letters: tensors by their shape, functions and networks by name."""
    if isinstance(x, Tensor):
        return str(tuple(x.shape))
    if isinstance(x, (list, tuple)):
        return "[" + ", ".join(map(_brief, x)) + "]"
    if isinstance(x, dict):
        return "{" + ", ".join(f"{key}: {_brief(value)}" for key, value in x.items()) + "}"
    if callable(x):
        return getattr(x, "__name__", type(x).__name__)
    text = repr(x)
    if " object at 0x" in text:
        return type(x).__name__
    return text if len(text) <= 60 else text[:57] + "..."


def still_a_stub(error: NotImplementedError, name: str) -> NotWritten:
    """Whose stub it was that raised: this exercise's, or that of an earlier one, which the solution calls."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [f for f in frames if f.f_globals.get("__name__", "").partition(".")[0] not in ("ldm_mini", "torch")]
    if own and own[-1].f_code is not own[0].f_code:
        owner = own[-1].f_locals.get("self")
        stub = [type(owner).__name__] * (owner is not None) + [own[-1].f_code.co_name]
        return NotWritten(f"{name} calls {'.'.join(stub)}, which is still a stub: write that first.", stub[0])
    return NotWritten(f"{name} is still the stub: replace `raise NotImplementedError` by your code.")
