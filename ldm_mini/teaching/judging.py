"""One submitted notebook, judged exercise by exercise with the course's checks.

For an exercise only what it needs is run: the learner's imports, helpers and constants, the exercise itself, and the
course's own statements for names that the submission does not give. An earlier exercise that it calls is the learner's
own; if that fails, the course's, so that one mistake costs one exercise.
"""

import ast
import builtins
import os
import sys
from copy import deepcopy
from dataclasses import asdict, dataclass

import torch

from .. import checks
from ..editions import source
from .gate import Refused, gated, given_builtins
from .sandbox import Died, limit, run_apart
from .statements import DEFINITIONS, IMPORTS, Statement, bound, needed, parse, statements, used
from .submissions import Code, code_cells

COURSE, SUBMISSION = "course", "submission"  # names of modules
SEED = "LDM_CHECK_SEED"  # the checks draw other inputs
CPU_S, WALL_S, MEMORY = 10, 40, 2_000_000_000  # of one exercise


@dataclass(frozen=True)
class Task:
    """An exercise as it is graded."""

    id: str  # of its cell
    name: str
    points: int
    calls: tuple[ast.Call, ...]  # checks.<check>(<arguments>)
    above: tuple[Statement, ...]  # the course's statements, down to the exercise's own


@dataclass(frozen=True)
class Verdict:
    """What one exercise was worth, and why."""

    exercise: str
    score: int
    max_score: int
    note: str


def tasks_of(path) -> list[Task]:
    """The exercises of a notebook with solutions that have a check."""
    notebook = source.read_notebook(path)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    place = {cell["id"]: number for number, cell in enumerate(code)}
    course = statements(source.without_marks(cell["source"]) for cell in code)
    found = []
    for task in source.exercises_in(notebook, path.name):
        checking = [code[place[id_]]["source"] for id_ in task.check_cell_ids]
        calls = tuple(call for cell in checking for call in check_calls(cell, task.name))
        if calls:
            above = tuple(statement for statement in course if statement.cell <= place[task.cell_id])
            found.append(Task(task.cell_id, task.name, points(task), calls, above))
    return found


def points(exercise: source.Exercise) -> int:
    """What an exercise is worth: its stars."""
    return max(exercise.stars, 1)


def check_calls(code: str, name: str) -> list[ast.Call]:
    """The calls `checks.<check>(...)` of a cell that are given the exercise `name`."""
    return [node.value for node in parse(code).body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            and ast.unparse(node.value.func).startswith("checks.") and name in used(node)]


def judge(content: bytes, tasks: list[Task], seeds) -> list[dict]:
    """Each exercise of a submitted notebook: the fields of a Verdict. To be run in a process of its own."""
    cells = code_cells(content)
    given = _given([cell.source for cell in cells])
    names, untouched = {task.name for task in tasks}, _shared()
    return [asdict(Verdict(task.name, *_judge_exercise(task, cells, given, names - {task.name}, untouched, seeds)))
            for task in tasks]


def _judge_exercise(task, cells, given, others, untouched, seeds) -> tuple[int, int, str]:
    at = find_exercise(task, cells)
    if at is None:
        return 0, task.points, "not found"
    plans = [_plan(task, cells[at].source, _around(given, at)),  # with the learner's version of what it calls, or
             _plan(task, cells[at].source, [s for s in _around(given, at) if not s.binds & others])]
    notes = []
    for number, plan in enumerate(plans):
        if number and plan == plans[0]:
            break
        try:
            result = run_apart(lambda: _run(task, *plan, untouched, seeds), WALL_S,
                               prepare=lambda: limit(CPU_S, MEMORY))
        except Died as died:
            result = {"passed": False, "note": str(died)}
        if result["passed"]:
            return task.points, task.points, "with the course's version of what it calls" if number else ""
        notes.append(result["note"])
    return 0, task.points, notes[0]


def find_exercise(task: Task, cells: list[Code]) -> int | None:
    """Which cell is the exercise: among those that define its name, one that is written, with its id, the last."""
    defining = [(number, cell) for number, cell in enumerate(cells)
                if any(task.name in bound(node) for node in parse(cell.source).body if not isinstance(node, IMPORTS))]
    ranked = sorted(defining, key=lambda pair: ("raise NotImplementedError" not in pair[1].source,
                                                pair[1].id == task.id, pair[0]))
    return ranked[-1][0] if ranked else None


def _given(codes) -> list[Statement]:
    """What a submission may lend its exercises: imports, definitions and plain constants that pass the gate."""
    found = []
    for statement in statements(codes):
        calls = any(isinstance(part, ast.Call) for part in ast.walk(statement.node))
        if isinstance(statement.node, (*IMPORTS, *DEFINITIONS)) or not calls:
            try:
                gated(ast.Module([deepcopy(statement.node)], []))
                found.append(statement)
            except Refused:
                pass
    return found


def _around(given: list[Statement], at: int) -> list[Statement]:
    """The statements of the other cells, those above the cell `at` last, since they count first."""
    return [s for s in given if s.cell > at] + [s for s in given if s.cell < at]


def _plan(task: Task, code: str, given: list[Statement]) -> tuple:
    """What is run for an exercise: the course's statements, the learner's, and the exercise's own, in this order."""
    own = statements([code])
    names = set().union(*(s.uses for s in own), *(used(call) for call in task.calls))
    names -= set().union(*(s.binds for s in own))
    theirs = needed(names, given)
    names = names.union(*(s.uses for s in theirs)) - set().union(*(s.binds for s in theirs))
    return needed(names - vars(builtins).keys(), list(task.above)), theirs, own


def _run(task: Task, course: list[Statement], theirs: list[Statement], own: list[Statement], untouched, seeds) -> dict:
    """In a process of its own: does the exercise pass its checks, and what do they say?"""
    space = {"__name__": COURSE}
    failed = f"not by the course, please report it: {task.name}"
    try:
        exec(compile(ast.Module([s.node for s in course], []), COURSE, "exec"), space)
        space = {**space, "__name__": SUBMISSION, "__builtins__": given_builtins(SUBMISSION)}
        failed = ""
        exec(compile(gated(ast.Module([s.node for s in theirs + own], [])), SUBMISSION, "exec"), space)
        for seed in seeds:
            os.environ[SEED] = str(seed)
            for call in task.calls:
                torch.manual_seed(seed)
                inputs = [eval(compile(ast.Expression(word), COURSE, "eval"), space) for word in call.args]
                getattr(checks, call.func.attr)(*inputs)
    except BaseException as error:  # SystemExit too
        kind = "" if isinstance(error, (checks.CheckFailed, Refused)) else f"{type(error).__name__}: "
        return {"passed": False, "note": f"{failed}{kind}{error}"[:300]}
    if not untouched.items() <= _shared().items():  # imports may add to it
        return {"passed": False, "note": "changed what belongs to PyTorch or to the checks"}
    return {"passed": True, "note": ""}


def _shared() -> dict:
    """What code that is judged must leave as it is: the names of torch, of Python and of the checks."""
    parts = {name: module for name, module in sys.modules.items() if name.startswith("ldm_mini.")}
    parts |= {part.__name__: part for part in (builtins, torch, torch.Tensor, torch.nn, torch.nn.Module,
                                               torch.nn.functional, checks)}
    return {(place, name): (id(value), id(getattr(value, "__code__", None)))
            for place, part in parts.items() for name, value in vars(part).items()}
