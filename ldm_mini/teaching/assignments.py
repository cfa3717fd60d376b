"""A course for nbgrader, made from the notebooks: source, release, configuration, a plan of weeks, a page on reuse."""

import ast
import re
from pathlib import Path

from ..checks.properties import SEED
from ..editions.source import (
    FOLDER,
    STUB,
    Exercise,
    exercises_in,
    read_notebook,
    without_solution,
    write_notebook,
)
from ..files import FileError, write_file
from .grading import SEEDS, graded_notebooks, source_of
from .judging import check_calls, points

HIDDEN = f"""\

### BEGIN HIDDEN TESTS
import os
os.environ["{SEED}"] = "{SEEDS[-1]}"  # the same checks on other inputs
try:
    earned = [{{calls}}]
finally:
    del os.environ["{SEED}"]
min(earned, key=lambda points: (points is None, points))  # None: all points
### END HIDDEN TESTS"""
CONFIG = f"""\
# nbgrader reads this where it is started. Made by `course.py teach`.
c = get_config()
c.CourseDirectory.course_id = "ldm_mini"
c.ClearSolutions.code_stub = {{"python": {STUB!r}}}
c.Execute.timeout = 300  # seconds for a cell: some train
c.Execute.kernel_name = "python3"
c.Validator.width = 100
"""
PLAN = """\
# A plan of weeks

One notebook a week, in this order; what a notebook needs is in its header. The whole course takes 19 weeks. In twelve
weeks: 00 with 01, then 02 to 11, one a week, then one of 12, 13, 14. That is about 11 hours to read, 20 of exercises
and 8 of open ones: two to four hours a week.

Times are those stated in the notebooks: reading, running, and the exercises' own. Reading is counted for 150 words, or
20 lines of code, a minute, and half a minute a figure.

| week | notebook | read | run | exercises | points |
|---|---|---|---|---|---|
{rows}

Hand out `release/`, collect into a folder `SUBMISSIONS/<student>/<assignment>/<notebook>.ipynb`, and grade it in one of
two ways:

* `python3 course.py grade SUBMISSIONS --out grades.csv`: seconds a learner, in processes that are kept from your files
  (how far, says the README). It runs the exercises and their checks only, each on inputs that the learner saw and on
  others.
* nbgrader, in its activated environment and this folder: `nbgrader generate_assignment NAME --force`, then
  `nbgrader autograde NAME` (it expects `submitted/<student>/<assignment>/`). It runs whole notebooks, minutes each, as
  the user who calls it: do that in a container if you do not know who wrote them. Its kernel needs ldm_mini: give
  `pip install -e ".[course,teach]"` in the clone's folder, in an environment of the teacher's own.

Points are the exercises' stars. An exercise without a check (the open one of each notebook) has none: read it.

All solutions are public, those of A1 to A3 too (they are in the clone), and submissions may import the library. So use
points as practice; for a mark use the open exercises, or change A1 to A3.
"""


def teach(out, wanted=(), sources=FOLDER) -> list[str]:
    """Write the course for nbgrader into `out`, of all notebooks or of those named by number. What was made, in lines.

    Raises FileError for a number without a notebook, or a folder that cannot be written.
    """
    out, known = Path(out), graded_notebooks(sources)
    paths = [_named(word, known) for word in wanted] or list(known.values())
    try:
        rows = [_write_assignment(out, path, week) for week, path in enumerate(paths, 1)]
        write_file(out / "nbgrader_config.py", CONFIG.encode())
        write_file(out / "PLAN.md", PLAN.format(rows="\n".join(rows)).encode())
        write_file(out / "REUSE.md", Path(__file__).with_name("reuse.md").read_bytes())
    except OSError as error:
        raise FileError(f"{out} cannot hold the course: {error}.") from None
    return [f"{len(paths)} assignments in {out}: source/, release/, nbgrader_config.py, PLAN.md, REUSE.md"]


def _named(word: str, known: dict[str, Path]) -> Path:
    path = source_of(word, known)
    if path is None:
        raise FileError(f"there is no notebook {word!r}; there are: {', '.join(known)}.")
    return path


def _write_assignment(out: Path, path: Path, week: int) -> str:
    """Source and release of one notebook; its row in the plan."""
    notebook = read_notebook(path)
    tasks = exercises_in(notebook, path.name)
    for kind, made in (("source", source_of_course(notebook, tasks)), ("release", release_of(notebook, tasks))):
        folder = out / kind / path.stem
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / path.name, write_notebook(made))
    first = notebook["cells"][0]["source"]
    stated = dict(re.findall(r"\*\*(Read|Exercises|Run):\*\* *([^\n]*)", first))
    title = re.match(r"# *([^\n]*)", first)
    worth = sum(points(task) for task in tasks if task.check)
    minutes = f"{len(tasks)}: {stated.get('Exercises', '')}"
    week = week if path.stem[0].isdigit() else "any"
    columns = week, title[1] if title else path.stem, stated.get("Read", ""), stated.get("Run", ""), minutes, worth
    return f"| {' | '.join(map(str, columns))} |"


def source_of_course(notebook: dict, tasks: list[Exercise]) -> dict:
    """The notebook with solutions, its cells marked for nbgrader, and hidden tests: the same checks on other inputs."""
    text = {cell["id"]: cell["source"] for cell in notebook["cells"]}
    graded = _graded(tasks)
    hidden = {id_: HIDDEN.format(calls=", ".join(_calls(task, text))) for id_, task in graded.items()}
    cells = [{**cell, "source": cell["source"] + hidden.get(cell["id"], "")}
             for cell in marked(notebook, tasks)["cells"]]
    return {**notebook, "cells": cells}


def release_of(notebook: dict, tasks: list[Exercise]) -> dict:
    """What learners get: stubs, no outputs, no hidden tests. nbgrader makes the same of the source, plus checksums."""
    return {**notebook, "cells": [_emptied(cell) for cell in marked(notebook, tasks)["cells"]]}


def _emptied(cell: dict) -> dict:
    if cell["cell_type"] != "code":
        return cell
    return {**cell, "source": without_solution(cell["source"]), "outputs": [], "execution_count": None}


def marked(notebook: dict, tasks: list[Exercise]) -> dict:
    """The notebook with nbgrader's marks on the cells of solutions and of checks, and on no other cell."""
    solutions, graded = {task.cell_id for task in tasks}, _graded(tasks)
    cells = []
    for cell in notebook["cells"]:
        id_, task = cell["id"], graded.get(cell["id"])
        metadata = {key: value for key, value in cell["metadata"].items() if key != "nbgrader"}
        if task or id_ in solutions:
            metadata["nbgrader"] = {
                "schema_version": 3, "grade_id": id_, "cell_type": "code", "task": False,
                "solution": id_ in solutions, "grade": bool(task), "locked": bool(task),
                **({"points": points(task)} if task else {})}
        cells.append({**cell, "metadata": metadata})
    return {**notebook, "cells": cells}


def _graded(tasks: list[Exercise]) -> dict[str, Exercise]:
    # of several checks the last one is graded, and repeats them all
    return {task.check_cell_ids[-1]: task for task in tasks if task.check_cell_ids}


def _calls(task: Exercise, text: dict) -> list[str]:
    return [ast.unparse(call) for id_ in task.check_cell_ids for call in check_calls(text[id_], task.name)]
