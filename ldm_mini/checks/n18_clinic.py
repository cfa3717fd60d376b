"""Notebook 18, the bug clinic: how a learner's *test* is tested. It must pass for healthy code, however that is
written, and fail for sick code, each time."""

from torch import Tensor

from .checking import CheckFailed, passed, still_a_stub
from .properties import own_randomness

TRIES = 3  # a test may draw random numbers: what it says must not depend on them


def examine(test, name: str, healthy: dict, sick: dict, line: str):
    """Run a learner's test on patients of whom it is known what they have.

    healthy: {what it is: the arguments of the test}; sick: {what it has: (the arguments, what to look at)}.
    A test fails by `assert`, by any other error, or by returning False. line: what is said if all is well.
    """
    for what, patient in healthy.items():
        for said in _tries(test, patient, name):
            if said:
                raise CheckFailed(f"{name} fails for healthy code, {what}. It said: {said}. Whoever cries wolf is not "
                                  "heard: ask only for what must be so in every right version.")
    missed = {}
    for what, (patient, hint) in sick.items():
        seen = [bool(said) for said in _tries(test, patient, name)]
        if not all(seen):
            missed[what] = (any(seen), hint)
    if len(missed) == len(sick) and not any(sometimes for sometimes, _ in missed.values()):
        raise CheckFailed(f"{name} cannot fail: it passes for all {len(sick)} sick ones. Where is its assert?")
    for what, (sometimes, hint) in missed.items():
        luck = f"sees it only by luck (in some of {TRIES} runs)" if sometimes else "passes"
        raise CheckFailed(f"{name} {luck} where the code is sick: {what}. {hint}")
    passed(f"{name}: {line} ({len(healthy)} healthy pass, {len(sick)} sick fail)")


def _tries(test, patient: tuple, name: str):
    """What the test complains of in each of the tries, "" if of nothing."""
    for number in range(TRIES):
        with own_randomness(20 + number):
            said = _complaint(test, patient, name)
        yield said


def _complaint(test, patient: tuple, name: str) -> str:
    try:
        verdict = test(*(x.clone() if isinstance(x, Tensor) else x for x in patient))
    except NotImplementedError as error:
        raise still_a_stub(error, name) from None
    except AssertionError as error:
        return str(error).strip() or "an assert"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    no = verdict is False or isinstance(verdict, Tensor) and verdict.numel() == 1 and not bool(verdict)
    return "it returned False" if no else ""
