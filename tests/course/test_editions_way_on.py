"""Who is stuck goes on: checks in a learner's edition, with a made-up shell, and one edition run for real."""

import shutil
import sys
from types import SimpleNamespace

import nbclient
import nbformat
import pytest
import torch

from ldm_mini import checks
from ldm_mini.checks import stuck
from ldm_mini.editions import find_solutions, make_edition, source_notebooks

STUB = 'def {}({}):\n    raise NotImplementedError("your code here")'
WRONG = "def guide(uncond, cond, scale):\n    return cond + scale * (cond - uncond)"
RIGHT = "def guide(uncond, cond, scale):\n    return uncond + scale * (cond - uncond)"
SOURCES = source_notebooks()


@pytest.fixture(scope="module")
def edition(tmp_path_factory):
    folder = tmp_path_factory.mktemp("my-course")
    make_edition(folder)
    return folder


@pytest.fixture
def notebook(edition, monkeypatch):
    """What a running notebook of the edition sees."""
    names = {"torch": torch, "checks": checks}
    monkeypatch.chdir(edition)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(user_ns=names)))
    monkeypatch.setattr(stuck, "_put_in_place", [])
    return lambda code: exec(code, names)


def test_a_stub_is_told_and_the_courses_version_put_in_place(notebook, capsys):
    notebook(STUB.format("guide", "uncond, cond, scale") + "\nchecks.guidance(guide)")
    assert "guide is not written yet" in capsys.readouterr().out
    notebook("assert guide(1.0, 3.0, 2.0) == 5.0\nchecks.guidance(guide)")
    out = capsys.readouterr().out
    assert "guide is the course's version" in out and "✓" not in out  # nobody is told that it is solved
    notebook(RIGHT + "\nchecks.guidance(guide)")
    assert capsys.readouterr().out.startswith("✓")


@pytest.mark.parametrize("name", ["guide", "guidance"])
def test_solve_by_the_name_of_exercise_or_check(notebook, capsys, name):
    notebook(WRONG + f"\nchecks.solve('{name}')\nassert guide(1.0, 3.0, 2.0) == 5.0")
    assert "The course's version of guide is in place" in capsys.readouterr().out


def test_a_mistake_is_named_and_the_way_on_told_in_narrow_lines(notebook):
    with pytest.raises(checks.CheckFailed, match="convention") as failed:
        notebook(WRONG + "\nchecks.guidance(guide)")
    lines = "\n".join(failed.value._render_traceback_()).splitlines()
    assert lines[0].startswith("CheckFailed: ") and max(map(len, lines)) <= 80
    assert lines[-1] == 'Stuck? checks.solve("guide") puts the course\'s version in place.'
    assert "Stuck" not in str(failed.value)  # what notebooks print and store stays


def test_a_stub_of_an_earlier_exercise_is_the_one_to_solve(notebook):
    with pytest.raises(checks.CheckFailed, match="calls attention, which is still a stub") as failed:
        notebook(STUB.format("attention", "q, k, v")
                 + "\ndef multi_head(x, *rest):\n    return attention(x, x, x)\nchecks.multi_head(multi_head)")
    assert 'checks.solve("attention")' in failed.value.way_on


def test_where_nothing_may_be_given_a_stub_fails(notebook, monkeypatch, tmp_path):
    cell = STUB.format("guide", "uncond, cond, scale") + "\nchecks.guidance(guide)"
    monkeypatch.setenv("LDM_MINI_CHECKS", "strict")
    with pytest.raises(checks.CheckFailed, match="still the stub"):
        notebook(cell)
    monkeypatch.delenv("LDM_MINI_CHECKS")
    shutil.copy(SOURCES[0], tmp_path)
    monkeypatch.chdir(tmp_path)  # a notebook with solutions, or a submission: no edition
    with pytest.raises(checks.CheckFailed, match="still the stub") as failed:
        notebook(cell)
    assert 'checks.solve("guide")' in failed.value.way_on


def test_every_check_knows_a_stub_that_raises_anywhere():
    """Even where the check itself does not expect it."""
    def draft(x):
        raise NotImplementedError

    with pytest.raises(checks.CheckFailed, match="draft is still the stub"):
        stuck.with_a_way_on(lambda solution: solution(1))(draft)


def test_solve_tells_what_is_missing(notebook, monkeypatch):
    with pytest.raises(checks.CheckFailed, match="of 'gide' was not found"):
        notebook("checks.solve('gide')")
    with pytest.raises(checks.CheckFailed, match="needs the cells above it.*'nn' is not defined"):
        notebook("checks.solve('MyVQ')")
    monkeypatch.setitem(sys.modules, "IPython", None)
    with pytest.raises(checks.CheckFailed, match="works in a notebook"):
        checks.solve("guide")


def test_a_lone_notebook_of_an_edition_works_without_a_clone(notebook, monkeypatch, edition, tmp_path, capsys):
    """Under another name, beside a file that is no notebook."""
    shutil.copy(edition / SOURCES[0].name, tmp_path / "mine.ipynb")
    (tmp_path / "broken.ipynb").write_text("{")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stuck, "find_solutions", lambda: find_solutions(".", tmp_path / "nowhere"))
    solutions, edition = stuck.find_solutions()
    assert edition and {solution.name for solution in solutions} == {"latent_numbers", "to_picture", "guide"}
    notebook(STUB.format("guide", "uncond, cond, scale") + "\nchecks.guidance(guide)")
    assert "not written yet" in capsys.readouterr().out
    with pytest.raises(checks.CheckFailed, match="was not found"):
        notebook("checks.solve('attention')")


def test_an_edition_with_nothing_solved_runs_to_its_end(edition):
    """Notebook 01 in a real kernel: a cell that stopped would raise here."""
    nb = nbformat.read(edition / SOURCES[1].name, as_version=4)
    nbclient.NotebookClient(nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": edition}}).execute()
    said = [output.get("text", "") for cell in nb.cells for output in cell.get("outputs", ())]
    assert sum("is not written yet" in text for text in said) == 3 and not any("✓" in text for text in said)


def test_a_wrong_solution_stops_with_the_mistake_and_the_way_on(edition):
    """In a real kernel, as the learner sees it; and after the call, the next cell runs."""
    new = nbformat.v4.new_code_cell
    nb = nbformat.v4.new_notebook(cells=[new("from ldm_mini import checks"), new(WRONG), new("checks.guidance(guide)"),
                                         new("checks.solve('guide')"), new("print(guide(1.0, 3.0, 2.0))")])
    nbclient.NotebookClient(nb, timeout=300, kernel_name="python3", allow_errors=True,
                            resources={"metadata": {"path": edition}}).execute()
    failed = "\n".join(nb.cells[2].outputs[0].traceback)
    assert "convention" in failed and "Traceback" not in failed and 'checks.solve("guide")' in failed
    assert nb.cells[4].outputs[0].text == "5.0\n"
