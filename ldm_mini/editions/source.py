"""A notebook of the course, read into its exercises: what the learner gets, the course's version, and its check.

A solution stands between `### BEGIN SOLUTION` and `### END SOLUTION` (nbgrader's marks) in a cell that defines one
function or class; the cells that check it follow at once.
"""

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

from ..files import FileError

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"  # of a clone; an installed package has none
STUB = 'raise NotImplementedError("your code here")'
REGION = re.compile(r"^([ \t]*)### BEGIN SOLUTION[ \t]*\n(.*?)^[ \t]*### END SOLUTION[ \t]*(?:\n|\Z)", re.M | re.S)
TITLE = re.compile(r"^### Exercise (?:\d+ · )?(.+?) \((★+), (\d+) min", re.M)
CHECK = re.compile(r"^checks\.(\w+)\(", re.M)


@dataclass(frozen=True)
class Exercise:
    """One exercise. `check` is "" and `check_cell_ids` is () where the course has no check for it."""

    notebook: str  # file name of the source
    cell_id: str
    name: str  # of the function or class to be written
    title: str
    stars: int  # 1 to 3; 0 where the title does not say
    minutes: int
    stub: str  # the cell without the solution
    solution: str  # the cell with it, without the marks
    answer: str  # what stood between the marks, indented as it was
    check: str  # ldm_mini.checks.<check>
    check_cell_ids: tuple[str, ...]


def read_notebook(path) -> dict:
    """A notebook file as the dict that it is, each cell's `source` joined to one string.

    Raises FileError if it is missing or no notebook of format 4.
    """
    try:
        notebook = json.loads(Path(path).read_text(encoding="utf-8"))
        if notebook["nbformat"] == 4:
            notebook["metadata"] = dict(notebook.get("metadata", {}))
            for number, cell in enumerate(notebook["cells"]):
                cell["source"] = "".join(cell["source"])
                cell["metadata"] = dict(cell.get("metadata", {}))
                cell["cell_type"] = str(cell["cell_type"])
                cell.setdefault("id", f"cell-{number:03}")  # formats before 4.5 have none
            return notebook
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{path} is no notebook, or a damaged one: {error!r}") from None
    raise FileError(f"{path} has the format {notebook['nbformat']}, not 4: open and save it in JupyterLab")


def write_notebook(notebook: dict) -> bytes:
    """The content of a notebook file, as Jupyter writes it."""
    cells = [{**cell, "source": cell["source"].splitlines(keepends=True)} for cell in notebook["cells"]]
    return (json.dumps({**notebook, "cells": cells}, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def source_notebooks(folder=FOLDER) -> list[Path]:
    """The course's notebooks in order. Raises FileError if there are none, as where only the package is installed."""
    found = sorted(path for path in Path(folder).glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise FileError(f"there are no notebooks in {folder}. The editions are made in a clone of the course.")
    return found


def exercises(path) -> list[Exercise]:
    """The exercises of a notebook with solutions, in order."""
    return exercises_in(read_notebook(path), Path(path).name)


def exercises_in(notebook: dict, name: str) -> list[Exercise]:
    """As `exercises`, of a notebook that was read; `name` is its file name."""
    cells, found = notebook["cells"], []
    title = None  # the heading above
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "markdown":
            title = (list(TITLE.finditer(cell["source"])) or [title])[-1]
        elif cell["cell_type"] == "code" and REGION.search(cell["source"]):
            checking = _checking(cells[number + 1:])
            found.append(_exercise(cell, name, title, checking))
            title = None
    return found


def without_solution(source: str) -> str:
    """A cell's code with a stub in place of each solution."""
    return REGION.sub(lambda region: f"{region[1]}{STUB}\n", source).rstrip("\n")


def without_marks(source: str) -> str:
    """A cell's code with its solutions, and without the lines that mark them."""
    return REGION.sub(lambda region: region[2], source).rstrip("\n")


def _checking(following: list) -> list:
    """The cells right below an exercise that check it."""
    found = []
    for cell in following:
        if cell["cell_type"] != "code" or not CHECK.search(cell["source"]):
            break
        found.append(cell)
    return found


def _exercise(cell: dict, notebook: str, title, checking: list) -> Exercise:
    source = cell["source"]
    marked = source[:REGION.search(source).start()].count("\n") + 1
    solution = without_marks(source)
    definitions = [node for node in ast.parse(solution).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    name = next(node.name for node in definitions if node.lineno <= marked <= node.end_lineno + 1)
    return Exercise(
        notebook, cell["id"], name, *((title[1], len(title[2]), int(title[3])) if title else (name, 0, 0)),
        stub=without_solution(source), solution=solution,
        answer="".join(region[2] for region in REGION.finditer(source)),
        check=CHECK.search(checking[0]["source"])[1] if checking else "",
        check_cell_ids=tuple(each["id"] for each in checking))
