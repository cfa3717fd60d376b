"""With any one exercise unsolved, only its own check says so: shown from the source of every notebook.

`test_editions_way_on.py` runs each stub's check and sees that it puts the course's version in place, under the same
name and with the same random state. What is left to show is that nothing meets the stub before its check does, and
that no cell needs more of a solution than the text, the stub and the check ask of whoever writes one.
"""

import ast
import re

import nbformat
import pytest

from ldm_mini.editions import FOLDER, exercises, exercises_in, read_notebook, source_notebooks

SOURCES = [*source_notebooks(), *sorted((FOLDER / "assignments").glob("*.ipynb"))]


def bound(code: str) -> set[str]:
    """The names that a cell binds."""
    names = set()
    for node in ast.parse(code).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        else:
            parts = [part for part in ast.walk(node) if isinstance(part, ast.Name)]
            names |= {part.id for part in parts if isinstance(part.ctx, ast.Store)}
    return names


def members(code: str) -> set[str]:
    """What objects of a cell's classes have: methods, and what is assigned to `self`."""
    nodes = list(ast.walk(ast.parse(code)))
    stored = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
              and ast.unparse(node.value) == "self"}
    return stored | {part.name for node in nodes if isinstance(node, ast.ClassDef) for part in node.body
                     if isinstance(part, ast.FunctionDef)}


def loads(code: str, name: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(ast.parse(code)))


def broken(cells: list, task) -> list[str]:
    """What would let other cells see that this exercise is unsolved."""
    at = [cell["id"] for cell in cells].index(task.cell_id)
    if not task.check:
        return ["nothing checks it"]
    first = ast.parse(cells[at + 1]["source"]).body[0]
    called = isinstance(first, ast.Expr) and isinstance(first.value, ast.Call) and first.value
    told = []
    if not called or ast.unparse(called.func) != f"checks.{task.check}" or ast.unparse(called.args[0]) != task.name:
        told.append(f"the first line below is not checks.{task.check}({task.name}, ...)")
    rest = [node for node in ast.parse(task.stub).body if getattr(node, "name", None) != task.name]
    if any(loads(ast.unparse(node), task.name) for node in rest):
        told.append("its own cell uses the stub")
    if bound(task.stub) != bound(task.solution):
        told.append(f"only the solution binds {bound(task.solution) - bound(task.stub)}")
    # what the solution alone gives its objects is asked for in words wherever a later cell uses it
    asked = "\n".join(cell["source"] for cell in cells[max(at - 1, 0):at]) + task.stub
    for name in members(task.solution) - members(task.stub):
        used = any(cell["cell_type"] == "code" and re.search(rf"\.{name}\b", cell["source"]) for cell in cells[at + 2:])
        if used and not re.search(rf"\b{name}\b", asked):
            told.append(f"later cells use .{name}, of which neither text nor stub speaks")
    return told


@pytest.mark.parametrize("path", SOURCES, ids=[path.stem for path in SOURCES])
def test_only_its_check_meets_a_stub(path):
    cells, tasks = read_notebook(path)["cells"], exercises(path)
    assert tasks and {task.name: broken(cells, task) for task in tasks} == {task.name: [] for task in tasks}


STUB = """class Double:
    def __init__(self):
        ### BEGIN SOLUTION
        self.two = 2
        ### END SOLUTION"""


@pytest.mark.parametrize("cell, below, after, text, told", [
    (STUB, "checks.double(Double)", "", "", []),
    (STUB, "checks.double(Double, 3)\nprint(Double().two)", "", "", []),  # in its check's cell, behind the check
    (STUB, "checks.double(Double)", "print(Double().two)", "Keep it as `two`.", []),
    (STUB, "checks.double(Double)", "print(Double().two)", "", ["later cells use .two"]),
    (STUB, "print(3)", "checks.double(Double)", "", ["nothing checks it"]),
    (STUB, "x = Double()\nchecks.double(Double)", "", "", ["the first line below is not"]),
    (STUB, "checks.double(x)", "", "", ["the first line below is not"]),
    (STUB + "\ndouble = Double()", "checks.double(Double)", "", "", ["its own cell uses the stub"]),
    (STUB + "\nclass Four(Double):\n    pass", "checks.double(Double)", "", "", ["its own cell uses the stub"]),
    (STUB.replace("= 2", "= 2\nhelper = 3"), "checks.double(Double)", "", "", ["only the solution binds {'helper'}"])])
def test_each_way_to_meet_a_stub_is_seen(cell, below, after, text, told):
    new = nbformat.v4
    cells = [new.new_markdown_cell(text), *map(new.new_code_cell, (cell, below, after))]
    task, = exercises_in({"cells": cells}, "made_up.ipynb")
    found = broken(cells, task)
    assert len(found) == len(told) and all(line.startswith(start) for line, start in zip(found, told))
