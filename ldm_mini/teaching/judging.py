"""One submitted notebook, judged exercise by exercise with the course's checks.

For an exercise only what it needs is run: the learner's imports, helpers and constants, the exercise itself, and the
course's own statements for names that the submission does not give. An earlier exercise that it calls is the learner's
own; if that fails, the course's, so that one mistake costs one exercise.
"""

import ast
import builtins
import operator
import os
import sys
from dataclasses import asdict, dataclass
from functools import lru_cache
from types import CellType, FunctionType

import torch

from .. import checks
from ..checks.properties import SEED
from ..editions import source
from .gate import Refused, gated, given_builtins
from .sandbox import Died, limit, run_apart
from .statements import DEFINITIONS, IMPORTS, Statement, needed, parse, statements, used
from .submissions import Code, code_cells

COURSE, SUBMISSION = "course", "submission"  # names of modules
CPU_S, WALL_S, MEMORY = 20, 80, 2_000_000_000  # of an exercise, and of all of a notebook that pass together


@dataclass(frozen=True)
class Task:
    """An exercise as it is graded."""

    id: str  # of its cell
    name: str
    points: int
    stub: str  # what a learner is given
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
            found.append(Task(task.cell_id, task.name, points(task), task.stub, calls, above))
    return found


def points(exercise: source.Exercise) -> int:
    """What an exercise is worth: its stars."""
    return max(exercise.stars, 1)


def check_calls(code: str, name: str) -> list[ast.Call]:
    """The calls `checks.<check>(...)` of a cell that are given the exercise `name`."""
    return [node.value for node in parse(code).body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            and ast.unparse(node.value.func).startswith("checks.") and name in used(node)]


def judge(content: bytes, tasks: list[Task], seeds) -> list[dict]:
    """Each exercise of a submitted notebook: the fields of a Verdict. To be run in a process of its own.

    All exercises are tried in one process, in order. What does not pass there is tried again in a process of its own:
    all of them, if that one ended early or an exercise changed what the others are judged with.
    """
    cells = code_cells(content)
    given = _given([cell.source for cell in cells])
    names, untouched = {task.name for task in tasks}, _shared()
    planned = [(task, _plans(task, cells, given, names - {task.name})) for task in tasks]
    try:
        passed = _apart(lambda: _passed(planned, untouched, seeds), untouched)
    except Died:
        passed = {}
    return [asdict(Verdict(task.name, passed[task.id], task.points, "") if task.id in passed else
                   _judge_alone(task, plans, untouched, seeds)) for task, plans in planned]


def _apart(work, untouched: list):
    held = frozenset(_functions(part for part, *_ in untouched))
    return run_apart(work, WALL_S, prepare=lambda: limit(CPU_S, MEMORY, held))


def _passed(planned: list, untouched: list, seeds) -> dict:
    """{id: points} of exercises that pass, one after the other; of none, if one changed what is not its own."""
    found = {}
    for task, plans in planned:
        points = _run(task, *plans[0], seeds)["points"] if plans else 0
        found |= {task.id: points} if points else {}
        # after each: a later one could put back what an earlier one changed
        if not _as_it_was(untouched):
            return {}
    return found


def _judge_alone(task: Task, plans: list, untouched: list, seeds) -> Verdict:
    """One exercise, each plan in a process of its own."""
    def work(plan):
        result = _run(task, *plan, seeds)
        changed = result["points"] and not _as_it_was(untouched)
        return {"points": 0, "note": "changed what belongs to PyTorch or to the checks"} if changed else result

    notes = []
    for number, plan in enumerate(plans):
        try:
            result = _apart(lambda: work(plan), untouched)
        except Died as died:
            result = {"points": 0, "note": str(died)}
        if result["points"]:
            return Verdict(task.name, result["points"], task.points,
                           "with the course's version of what it calls" if number else "")
        notes.append(result["note"])
    return Verdict(task.name, 0, task.points, (notes or ["still the stub, or not there"])[0])


def find_exercise(task: Task, cells: list[Code]) -> int | None:
    """Which cell is the exercise: among those that define its name, one that is written, with its id, the last."""
    defining = [(number, cell) for number, cell in enumerate(cells)
                if any(task.name in s.binds for s in statements([cell.source]) if not isinstance(s.node, IMPORTS))]
    ranked = sorted(defining, key=lambda pair: ("raise NotImplementedError" not in pair[1].source,
                                                pair[1].id == task.id, pair[0]))
    return ranked[-1][0] if ranked else None


def read_ahead(path):
    """Parse and test what learners are handed out of a notebook of the course: most of it comes back as it was."""
    cells = source.read_notebook(path)["cells"]
    _given([source.without_solution(cell["source"]) for cell in cells if cell["cell_type"] == "code"])


def _given(codes) -> list[Statement]:
    """What a submission may lend its exercises: imports, definitions and plain constants that pass the gate."""
    return [statement for statement in statements(codes) if _may_lend(statement.node)]


@lru_cache(maxsize=10_000)
def _may_lend(node: ast.stmt) -> bool:
    if not isinstance(node, (*IMPORTS, *DEFINITIONS)) and any(isinstance(part, ast.Call) for part in ast.walk(node)):
        return False
    try:
        _ready(node)
        return True
    except Refused:
        return False


@lru_cache(maxsize=10_000)
def _ready(node: ast.stmt) -> ast.stmt:
    """A submitted statement that passed the gate. Raises Refused."""
    try:
        return gated(node)
    except RecursionError:
        raise Refused(f"line {node.lineno} is nested too deeply to be read") from None


def _plans(task: Task, cells: list[Code], given: list[Statement], others: set) -> list[tuple]:
    """What to run for an exercise: with the learner's version of what it calls, then with the course's, if they differ.

    `others`: the names of the other exercises. Nothing is run where the exercise is not, or is what was handed out.
    """
    at = find_exercise(task, cells)
    if at is None or cells[at].source.strip() == task.stub.strip():
        return []
    around = [s for s in given if s.cell > at] + [s for s in given if s.cell < at]  # those above last: they count first
    first = _plan(task, cells[at].source, around)
    second = _plan(task, cells[at].source, [s for s in around if not s.binds & others])
    return [first] if first == second else [first, second]


def _plan(task: Task, code: str, given: list[Statement]) -> tuple:
    """What is run for an exercise: the course's statements, the learner's, and the exercise's own, in this order."""
    own = statements([code])
    names = set().union(*(s.uses for s in own), *(used(call) for call in task.calls))
    names -= set().union(*(s.binds for s in own))
    theirs = needed(names, given)
    names = names.union(*(s.uses for s in theirs)) - set().union(*(s.binds for s in theirs))
    return needed(names - vars(builtins).keys(), list(task.above)), theirs, own


def _run(task: Task, course: list[Statement], theirs: list[Statement], own: list[Statement], seeds) -> dict:
    """The exercise's points and, if it has none, why. A check that returns a number gives so many, others give all."""
    space = {"__name__": COURSE}
    failed, points = f"not by the course, please report it: {task.name}", task.points
    try:
        exec(compile(ast.Module([s.node for s in course], []), COURSE, "exec"), space)
        space = {**space, "__name__": SUBMISSION, "__builtins__": given_builtins(SUBMISSION)}
        failed = ""
        exec(compile(ast.Module([_ready(s.node) for s in theirs + own], []), SUBMISSION, "exec"), space)
        for seed in seeds:
            os.environ[SEED] = str(seed)
            for call in task.calls:
                torch.default_generator.manual_seed(seed)
                inputs = [eval(compile(ast.Expression(word), COURSE, "eval"), space) for word in call.args]
                earned = getattr(checks, call.func.attr)(*inputs)
                points = points if earned is None else min(points, int(earned))
    except BaseException as error:  # SystemExit too
        kind = "" if isinstance(error, (checks.CheckFailed, Refused)) else f"{type(error).__name__}: "
        return {"points": 0, "note": f"{failed}{kind}{error}"[:300]}
    return {"points": points, "note": ""}


def _as_it_was(untouched: list) -> bool:
    """Is everything shared still what it was? Imports may have added to it."""
    return all(len(names) <= len(now := vars(part)) and _same(names, now) and _same(values, now.values())
               and all(_same(before, _kept(*holders)) for before, holders in kept)
               for part, names, values, kept in untouched)


def _same(before, now) -> bool:
    """Are these the very same things, in this order? `now` may go on. Equal is not enough: equality can be forged."""
    return all(map(operator.is_, before, now))


def _shared() -> list[tuple]:
    """What code that is judged must leave as it is: the names of torch, of Python and of the checks.

    A list of (module or class, names, values, [(what a function among the values keeps, what it keeps that in)]).
    """
    parts = [module for name, module in sys.modules.items() if name.startswith("ldm_mini.")]
    parts += [builtins, torch, torch.Tensor, torch.nn, torch.nn.functional, checks]
    parts += {kind for part in parts for kind in vars(part).values() if isinstance(kind, type)
              and kind.__module__.startswith(("ldm_mini.", "torch.nn."))}
    holders = {function: (function.__kwdefaults__ or {}, function.__closure__ or ()) for function in _functions(parts)}
    return [(part, [*vars(part)], [*vars(part).values()],
             [(_kept(*holders[function]), holders[function]) for function in _functions([part])
              if any(holders[function])]) for part in parts]


def _functions(parts) -> list[FunctionType]:
    return [value for part in parts for value in vars(part).values() if isinstance(value, FunctionType)]


def _kept(keywords: dict, cells: tuple) -> list:
    """What can change in a function that keeps its code and its defaults, which `limit` sees to."""
    return [*keywords.values(), *(cell.cell_contents for cell in cells if cell != CellType())]
