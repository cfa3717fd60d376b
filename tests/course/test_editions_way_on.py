"""Who is stuck goes on: checks in a learner's edition, with a made-up shell, and one edition run for real."""

import ast
import shutil
from contextlib import suppress
from types import SimpleNamespace

import IPython
import nbformat
import pytest
import torch

from ldm_mini import checks
from ldm_mini.checks import stuck
from ldm_mini.editions import exercises, find_solutions, make_edition, read_notebook, source_notebooks

STUB = 'def {}({}):\n    raise NotImplementedError("your code here")'
WRONG = "def guide(uncond, cond, scale):\n    return cond + scale * (cond - uncond)"
RIGHT = "def guide(uncond, cond, scale):\n    return uncond + scale * (cond - uncond)"
SOURCES = source_notebooks()
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


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
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(user_ns=names))
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
    notebook("checks.guidance(guide)")  # written since, but the call still stands between: nothing of theirs is tried
    out = capsys.readouterr().out
    assert "The course's version of guide is in place" in out and "delete this call" in out
    assert "no checks.solve between them" in out and max(map(len, out.splitlines())) <= 80


def test_a_mistake_is_named_and_the_way_on_told_in_narrow_lines(notebook, capsys):
    with pytest.raises(checks.CheckFailed, match="convention") as failed:
        notebook(WRONG + "\nchecks.guidance(guide)")
    lines = "\n".join(failed.value._render_traceback_()).splitlines()
    assert lines[0].startswith("CheckFailed: ") and max(map(len, lines)) <= 80
    assert " ".join(lines[-2:]) == ('Stuck? In a new cell above this one, checks.solve("guide") puts the course\'s '
                                    "version in place.")
    assert "Stuck" not in str(failed.value)  # what notebooks print and store stays
    notebook("checks.solve('guide')\nchecks.guidance(guide)")  # as told: all cells run
    assert "guide is the course's version" in capsys.readouterr().out


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


def test_a_stub_is_known_even_where_the_check_does_not_expect_it():
    names = {"__name__": "ldm_mini.checks.made_up"}
    exec("def careless(solution):\n    solution(1)", names)

    def draft(x):
        raise NotImplementedError

    with pytest.raises(checks.CheckFailed, match="draft is still the stub"):
        stuck.with_a_way_on(names["careless"])(draft)


@pytest.mark.parametrize("path", SOURCES, ids=[path.stem for path in SOURCES])
def test_each_stub_of_a_notebook_is_told_and_replaced(path, notebook, capsys):
    """All definitions of a notebook, with nothing solved; the random state is the one that solutions leave behind."""
    source, tasks = read_notebook(path), {task.cell_id: task for task in exercises(path)}
    for cell in source["cells"]:
        if cell["cell_type"] == "code" and cell["id"] in tasks:
            task = tasks[cell["id"]]
            torch.manual_seed(3)
            notebook(f"{task.stub}\nchecks.{task.check}({task.name})")
            assert f"– {task.name} is not written yet" in capsys.readouterr().out
            assert IPython.get_ipython().user_ns[task.name] is stuck._put_in_place[-1]
            state = torch.get_rng_state()
            torch.manual_seed(3)
            notebook(f"{task.solution}\nchecks.{task.check}({task.name})")
            assert capsys.readouterr().out.startswith("✓") and torch.equal(state, torch.get_rng_state())
            notebook(f"checks.solve('{task.name}')")
        elif cell["cell_type"] == "code":
            for node in ast.parse(cell["source"]).body:
                with suppress(NameError):  # what only a run would make
                    if isinstance(node, DEFINITIONS):
                        notebook(ast.unparse(node))


def test_solve_tells_what_is_missing(notebook, monkeypatch):
    with pytest.raises(checks.CheckFailed, match="of 'gide' was not found"):
        notebook("checks.solve('gide')")
    with pytest.raises(checks.CheckFailed, match="needs the cells above it.*'nn' is not defined"):
        notebook("checks.solve('MyVQ')")
    monkeypatch.setattr(IPython, "get_ipython", lambda: None)
    with pytest.raises(checks.CheckFailed, match="works in a notebook"):
        checks.solve("guide")


def test_a_lone_notebook_of_an_edition_works_without_a_clone(notebook, monkeypatch, edition, tmp_path, capsys):
    """Under another name, beside a file that is no notebook."""
    shutil.copy(edition / SOURCES[0].name, tmp_path / "mine.ipynb")
    (tmp_path / "broken.ipynb").write_text("{")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stuck, "FOLDER", tmp_path / "nowhere")
    solutions, edition = find_solutions(tmp_path)
    assert edition and {solution.name for solution in solutions} == {"latent_numbers", "to_picture", "guide"}
    notebook(STUB.format("guide", "uncond, cond, scale") + "\nchecks.guidance(guide)")
    assert "not written yet" in capsys.readouterr().out
    with pytest.raises(checks.CheckFailed, match="was not found"):
        notebook("checks.solve('attention')")


def test_an_edition_with_nothing_solved_runs_to_its_end(edition):
    """Notebook 01 in a real kernel; then a wrong solution, as the learner sees it, and the call that goes on."""
    import nbclient  # seconds, which all who only collect the tests would wait

    nb, new = nbformat.read(edition / SOURCES[1].name, as_version=4), nbformat.v4.new_code_cell
    course_cells, after = list(nb.cells), [new(WRONG), new("checks.guidance(guide)"), new("checks.solve('guide')"),
                                           new("print(guide(1.0, 3.0, 2.0))")]
    nb.cells += after
    nbclient.NotebookClient(nb, timeout=600, kernel_name="python3", allow_errors=True,
                            resources={"metadata": {"path": edition}}).execute()
    outputs = [output for cell in course_cells for output in cell.get("outputs", ())]
    said = [output.get("text", "") for output in outputs]
    unwritten = sum("is not written yet" in text for text in said)
    assert unwritten == len(exercises(SOURCES[1])) and not any("✓" in text for text in said)
    assert not [output for output in outputs if output.output_type == "error"]
    failed = "\n".join(after[1].outputs[0].traceback)
    assert "convention" in failed and "Traceback" not in failed and 'checks.solve("guide")' in failed
    assert after[3].outputs[0].text == "5.0\n"
