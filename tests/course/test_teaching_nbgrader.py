"""The course for nbgrader under the real nbgrader: `pip install "ldm_mini[teach]"`; .ci/run does."""

import csv
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
from ldm_mini.teaching.statements import needed, parse

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
STEMS = ["01_one_data_set_seven_tasks", "03_vq_vae", "05_vqgan"]

GENERATE_ALL = """
from nbgrader.apps import NbGrader, NbGraderAPI
app = NbGrader()
app.load_config_file()
api = NbGraderAPI(config=app.config)
for name in sorted(api.get_source_assignments()):
    done = api.generate_assignment(name, force=True)
    assert done["success"], done
"""


# it looks for alembic there, as in an activated environment
ENVIRONMENT = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


@pytest.fixture(scope="module")
def nbgrader():
    """Runs an nbgrader command in a folder."""
    try:
        metadata.version("nbgrader")
    except metadata.PackageNotFoundError:
        pytest.skip("nbgrader is not installed: pip install 'ldm_mini[teach]'")

    def run(folder, *words):
        done = subprocess.run([sys.executable, "-m", "nbgrader", *words], cwd=folder, capture_output=True, text=True,
                              env=ENVIRONMENT)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def generate_all(folder):
    """`nbgrader generate_assignment` for each assignment, in one process."""
    done = subprocess.run([sys.executable, "-c", GENERATE_ALL], cwd=folder, capture_output=True, text=True,
                          env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr


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
                keep_node = judging.bound if cell["id"] not in checking else is_check
                cell = {**cell, "source": "\n".join(judging.ast.unparse(node) for node in nodes if keep_node(node))}
        cells.append(cell)
    return {**notebook, "cells": cells}


def is_check(node):
    return judging.ast.unparse(node).startswith("checks.")


def _source(code, id_):
    return without_marks(next(cell["source"] for cell in code if cell["id"] == id_))


@pytest.fixture(scope="module")
def course(tmp_path_factory, nbgrader):
    """A course of three notebooks, with all assignments generated."""
    folder, sources = tmp_path_factory.mktemp("course"), tmp_path_factory.mktemp("sources")
    for stem in STEMS:
        (sources / f"{stem}.ipynb").write_bytes(write_notebook(lean(NOTEBOOKS / f"{stem}.ipynb")))
    teach(folder, sources=sources)
    ours = {path.parent.name: read_notebook(path) for path in folder.glob("release/*/*.ipynb")}
    generate_all(folder)
    return folder, ours


def test_every_notebook_becomes_an_assignment_the_same_as_ours(tmp_path, nbgrader):
    teach(tmp_path)
    ours = {path: read_notebook(path) for path in sorted(tmp_path.glob("release/*/*.ipynb"))}
    assert len(ours) == len(graded_notebooks())
    generate_all(tmp_path)
    for path, made in ours.items():
        theirs = read_notebook(path)
        assert [(cell["id"], cell["source"]) for cell in theirs["cells"]] == \
            [(cell["id"], cell["source"]) for cell in made["cells"]], path.name


def fill(course, stem, student, only=None):
    """Hand in the released notebook, with the course's solutions to all exercises, or some."""
    released = read_notebook(course / "release" / stem / f"{stem}.ipynb")
    answers = {task.cell_id: task.solution for task in exercises(course / "source" / stem / f"{stem}.ipynb")
               if only is None or task.name in only}
    for cell in released["cells"]:
        cell["source"] = answers.get(cell["id"], cell["source"])
    folder = course / "submitted" / student / stem
    folder.mkdir(parents=True)
    (folder / f"{stem}.ipynb").write_bytes(write_notebook(released))
    return folder / f"{stem}.ipynb"


def test_it_validates_and_grades(course, nbgrader):
    folder, ours = course
    some = {"01_one_data_set_seven_tasks": {"box_iou"}, "03_vq_vae": {"vq_loss"}, "05_vqgan": {"hinge_losses"}}
    for stem in ours:
        solved, half = fill(folder, stem, "ann"), fill(folder, stem, "ben", only=some[stem])
        assert "Success! Your notebook passes all the tests." in nbgrader(folder, "validate", str(solved))
        if stem == "03_vq_vae":  # one is enough: each starts a kernel
            said = nbgrader(folder, "validate", str(half))
            tasks = exercises(folder / "source" / stem / f"{stem}.ipynb")
            assert f"VALIDATION FAILED ON {len(tasks) - 1} CELL(S)" in said
            assert not [line for line in said.splitlines() if line.endswith("...")], "a message was cut"
        nbgrader(folder, "autograde", stem)
    nbgrader(folder, "export", "--to", str(folder / "grades.csv"))
    rows = {(row["student_id"], row["assignment"]): row
            for row in csv.DictReader(open(folder / "grades.csv", encoding="utf-8"))}
    for stem in ours:
        worth = {task.name: max(task.stars, 1) for task in exercises(folder / "source" / stem / f"{stem}.ipynb")}
        full, half = rows["ann", stem], rows["ben", stem]
        assert float(full["score"]) == float(full["max_score"]) == sum(worth.values())
        assert float(half["score"]) == sum(worth[name] for name in some[stem])


def test_hidden_tests_draw_other_inputs(course):
    folder, _ = course
    path = next(folder.glob("source/03*/*.ipynb"))
    text = json.dumps(read_notebook(path))
    assert text.count("BEGIN HIDDEN TESTS") == len(exercises(path)) > 0 and SEED in text
