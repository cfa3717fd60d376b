"""The tests of a check: right solutions must pass, and wrong ones must fail with a hint.

A file holds solutions, CORRECT = {check: [solution, ...]} and MUTANTS = {check: [(solution, hint), ...]}, and ends with

    test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
"""

from functools import partial

import pytest
import torch

from ldm_mini import checks


def spoiled(solution, *cases):
    """Mutants from (options, hint): the solution with these options; a word is short for {"how": word}."""
    return [(partial(solution, **({"how": options} if isinstance(options, str) else options)), hint)
            for options, hint in cases]


def variant(base, **parts):
    """A solution that is a class, with other methods or attributes: its mutants."""
    return type(base.__name__, (base,), parts)


def welford(batches):
    """1 / the standard deviation of all values, by Welford's running mean and sum of squares."""
    n, mean, m2 = 0, 0.0, 0.0
    for z in batches:
        z = z.double().flatten()
        delta, both = z.mean().item() - mean, n + len(z)
        m2 += (z - z.mean()).square().sum().item() + delta**2 * n * len(z) / both
        mean, n = mean + delta * len(z) / both, both
    return (n - 1) ** 0.5 / m2**0.5


def try_all(correct, mutants):
    """The three tests of a file's tables."""
    def name(value):
        return getattr(value, "__name__", None)  # None: pytest finds one

    @pytest.mark.parametrize("check, solution", [(check, s) for check in correct for s in correct[check]], ids=name)
    def right(check, solution, capsys):
        torch.manual_seed(0)
        check(solution)
        assert capsys.readouterr().out.startswith("✓")

    @pytest.mark.parametrize("check, mutant, hint", [(check, *row) for check in mutants for row in mutants[check]],
                             ids=name)
    def wrong(check, mutant, hint):
        torch.manual_seed(0)
        with pytest.raises(checks.CheckFailed, match=hint):
            check(mutant)

    @pytest.mark.parametrize("check", correct, ids=name)
    def stub(check):
        def unwritten(*inputs, **options):
            raise NotImplementedError

        with pytest.raises(checks.CheckFailed, match="still the stub"):
            check(unwritten)
        with pytest.raises(checks.CheckFailed):
            check(lambda *inputs, **options: None)

    return right, wrong, stub
