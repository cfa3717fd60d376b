"""The course for nbgrader under the real nbgrader: `pip install "ldm_mini[teach]"`; .ci/run does."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("tested where grading works", allow_module_level=True)

from ldm_mini.checks.properties import SEED
from ldm_mini.editions.source import exercises, read_notebook, without_marks, write_notebook
from ldm_mini.teaching import judging
from ldm_mini.teaching.assignments import teach
from ldm_mini.teaching.grading import graded_notebooks
from ldm_mini.teaching.statements import bound, needed, parse

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
FULL, HALF = ("00_start_here", "01_one_data_set_seven_tasks"), "03_vq_vae"  # handed in complete, and half-done

# nbgrader takes seconds to start, and so does a kernel: one process for all that is asked, one kernel for a notebook
START = """
import json
from pathlib import Path
from nbgrader.apps import NbGrader, NbGraderAPI
from nbgrader.validator import Validator
app = NbGrader()
app.load_config_file()
api = NbGraderAPI(config=app.config)
def must(done):
    assert done["success"], done
"""
GENERATE_ALL = START + """
for name in sorted(api.get_source_assignments()):
    must(api.generate_assignment(name, force=True))
"""
VALIDATE_AND_AUTOGRADE = START + """
for name in sorted(path.name for path in Path("submitted/ann").iterdir()):
    print(f"### {name}")
    Validator(config=app.config).validate_and_print(f"submitted/ann/{name}/{name}.ipynb")
    must(api.autograde(name, "ann"))
    print(json.dumps(api.get_submission(name, "ann")))
"""
# it looks for alembic there, as in an activated environment
ENVIRONMENT = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


@pytest.fixture(scope="module")
def nbgrader():
    """Runs code that calls nbgrader in a folder; what it printed."""
    try:
        metadata.version("nbgrader")
    except metadata.PackageNotFoundError:
        pytest.skip("nbgrader is not installed: pip install 'ldm_mini[teach]'")

    def run(folder, code):
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True,
                              env=ENVIRONMENT)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def lean(path):
    """A notebook without the cells that no exercise needs: training and figures take minutes."""
    notebook = read_notebook(path)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    checking = {id_ for task in exercises(path) for id_ in task.check_cell_ids}
    keep = checking | {task.cell_id for task in exercises(path)}
    for task in judging.tasks_of(path):
        names = set().union(*(judging.used(node) for node in parse(_source(code, task.id)).body), {"checks"})
        keep |= {code[statement.cell]["id"] for statement in needed(names, list(task.above))}
    cells = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            nodes = parse(cell["source"]).body
            if cell["id"] not in keep:
                continue
            if "SOLUTION" not in cell["source"]:  # of helpers what names things, of checks the check
                keep_node = bound if cell["id"] not in checking else is_check
                cell = {**cell, "source": "\n".join(judging.ast.unparse(node) for node in nodes if keep_node(node))}
        cells.append(cell)
    return {**notebook, "cells": cells}


def is_check(node):
    return judging.ast.unparse(node).startswith("checks.")


def _source(code, id_):
    return without_marks(next(cell["source"] for cell in code if cell["id"] == id_))


@pytest.fixture(scope="module")
def course(tmp_path_factory, nbgrader):
    """The whole course, three notebooks of it lean, with all assignments generated; its folder, and our releases."""
    folder, sources = tmp_path_factory.mktemp("course"), tmp_path_factory.mktemp("sources")
    for stem in (*FULL, HALF):
        (sources / f"{stem}.ipynb").write_bytes(write_notebook(lean(NOTEBOOKS / f"{stem}.ipynb")))
    teach(folder)
    teach(folder, sources=sources)
    ours = {path: read_notebook(path) for path in sorted(folder.glob("release/*/*.ipynb"))}
    nbgrader(folder, GENERATE_ALL)
    return folder, ours


def test_every_notebook_becomes_an_assignment_the_same_as_ours(course):
    _, ours = course
    assert len(ours) == len(graded_notebooks())
    for path, made in ours.items():
        theirs = read_notebook(path)
        assert [(cell["id"], cell["source"]) for cell in theirs["cells"]] == \
            [(cell["id"], cell["source"]) for cell in made["cells"]], path.name


def tasks(course, stem):
    return exercises(course / "source" / stem / f"{stem}.ipynb")


def hand_in(course, stem, solved):
    """The released notebook with the course's solutions to some exercises."""
    released = read_notebook(course / "release" / stem / f"{stem}.ipynb")
    answers = {task.cell_id: task.solution for task in tasks(course, stem) if task.name in solved}
    for cell in released["cells"]:
        cell["source"] = answers.get(cell["id"], cell["source"])
    folder = course / "submitted" / "ann" / stem
    folder.mkdir(parents=True)
    (folder / f"{stem}.ipynb").write_bytes(write_notebook(released))


def test_it_validates_and_grades(course, nbgrader):
    course, _ = course
    solved = {stem: {task.name for task in tasks(course, stem)} for stem in FULL} | {HALF: {"vq_loss"}}
    for stem, names in solved.items():
        hand_in(course, stem, names)
    said = nbgrader(course, VALIDATE_AND_AUTOGRADE)
    parts = dict(part.split("\n", 1) for part in said.split("### ")[1:])
    assert parts.keys() == solved.keys()
    for stem, part in parts.items():
        *lines, found = part.strip().splitlines()
        worth = {task.name: max(task.stars, 1) for task in tasks(course, stem)}
        found = json.loads(found)
        assert found["max_score"] == sum(worth.values())
        assert found["score"] == sum(worth[name] for name in solved[stem])
        if stem in FULL:
            assert "Success! Your notebook passes all the tests." in part
        else:
            assert f"VALIDATION FAILED ON {len(worth) - 1} CELL(S)" in part
            assert not [line for line in lines if line.endswith("...")], "a message was cut"


def test_a_notebook_straight_from_the_course_is_taken_as_it_is(tmp_path, nbgrader):
    """Without `course.py teach`: nbgrader refuses a solution in a cell that has no mark of it."""
    source = tmp_path / "source" / HALF / f"{HALF}.ipynb"
    source.parent.mkdir(parents=True)
    source.write_bytes((NOTEBOOKS / source.name).read_bytes())
    nbgrader(tmp_path, START + f"must(api.generate_assignment({HALF!r}))")
    released = read_notebook(tmp_path / "release" / HALF / source.name)
    assert not any("SOLUTION" in cell["source"] for cell in released["cells"])
    assert sum("NotImplementedError" in cell["source"] for cell in released["cells"]) >= len(exercises(source))


def test_hidden_tests_draw_other_inputs(course):
    course, _ = course
    text = json.dumps(read_notebook(course / "source" / HALF / f"{HALF}.ipynb"))
    assert text.count("BEGIN HIDDEN TESTS") == len(tasks(course, HALF)) > 0 and SEED in text
