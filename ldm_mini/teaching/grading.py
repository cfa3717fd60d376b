"""Grades for submitted notebooks: `SUBMISSIONS/<student>/<assignment>/<notebook>.ipynb` -> a table.

This process reads no submission and runs none: it has imported PyTorch once, and forks a process for each notebook,
which forks one for its exercises, and one for each that fails there (`judging.py`, `sandbox.py`).
"""

import csv
import gc
import io
import re
import tempfile
from pathlib import Path

import einops
import torch
import torch._dynamo  # the first optimizer would import it, in each process anew

from ..editions.source import FOLDER, source_notebooks
from ..files import FileError, writable_folder, write_file
from .judging import WALL_S, Task, Verdict, judge, read_ahead, tasks_of
from .sandbox import Died, leave_privileges, run_apart
from .submissions import read_bytes

COLUMNS = ("student_id", "assignment", "score", "max_score")
MOST = 5  # notebooks of a student for one assignment that are graded
SEEDS = (0, 1)  # what the learner's own check draws, and what it does not


def graded_notebooks(folder=FOLDER) -> dict[str, Path]:
    """{assignment: notebook with solutions} of the course and its assignments; an assignment is called after it."""
    return {path.stem: path for path in [*source_notebooks(folder), *sorted(Path(folder).glob("assignments/*.ipynb"))]}


def grade(submissions, out, sources=FOLDER, say=print, seeds=SEEDS) -> list[tuple]:
    """Grade all submissions and write `out`, a CSV file, and beside it why: `<out>-exercises.csv`. The rows of `out`.

    A student has a row for each assignment that anybody handed in. Raises FileError, before anything is graded, for a
    folder without submissions, and for a table that cannot be written.
    """
    submissions, out = Path(submissions), Path(out)
    if out.is_dir():
        raise FileError(f"{out} is a folder: give the name of the table, such as {out / 'grades.csv'}.")
    writable_folder(out.parent)                                 # hours before it is written
    students = sorted(path for path in _folders(submissions) if not path.name.startswith((".", "_")))
    names = sorted({path.name for student in students for path in _folders(student)} - {".ipynb_checkpoints"})
    assignments = {name: path for name in names if (path := source_of(name, graded_notebooks(sources)))}
    if not assignments:
        raise FileError(f"{submissions} holds no submission: SUBMISSIONS/<student>/<assignment>/<notebook>.ipynb, with "
                        f"assignments named like {', '.join(list(graded_notebooks(sources))[:3])}.")
    for name in sorted(set(names) - set(assignments)):
        say(f"{name}: no assignment of the course; left out.")
    torch.set_num_threads(1)  # a process with threads is not forked
    einops.rearrange(torch.zeros(1), "a -> a")  # the first call tells torch's compiler of it: 2 s, in each process anew
    tasks = {name: tasks_of(path) for name, path in assignments.items()}
    for path in assignments.values():
        read_ahead(path)
    rows, why = [], []
    gc.freeze()  # what is here stays as it is: forked processes share it
    try:
        for student in students:
            for name in assignments:
                verdicts = grade_folder(student / name, assignments[name], tasks[name], seeds)
                rows.append((student.name, name, sum(v.score for v in verdicts), sum(v.max_score for v in verdicts)))
                why += [(student.name, name, v.exercise, v.score, v.max_score, v.note) for v in verdicts]
            say(f"{student.name}: {sum(row[2] for row in rows if row[0] == student.name)}")
    finally:
        gc.unfreeze()
    _write(out, COLUMNS, rows)
    _write(out.with_name(f"{out.stem}-exercises.csv"),
           ("student_id", "assignment", "exercise", "score", "max_score", "note"), why)
    return rows


def source_of(assignment: str, known: dict[str, Path]) -> Path | None:
    """The notebook that an assignment is about: its name, or the number that its name begins with."""
    number = re.match(r"[A\d]\d(?!\d)", assignment)
    by_number = [path for name, path in known.items() if number and name.startswith(f"{number[0]}_")]
    return known.get(assignment) or (by_number or [None])[0]


def grade_folder(folder: Path, source: Path, tasks: list[Task], seeds=SEEDS) -> list[Verdict]:
    """What was handed in for an assignment: the notebook of its name, or else the best of those that are there."""
    found = [] if folder.is_symlink() else sorted(folder.glob("*.ipynb"))[:MOST]
    named = [path for path in found if path.stem == source.stem]
    graded = [grade_notebook(path, tasks, seeds) for path in named or found]
    nothing = [Verdict(task.name, 0, task.points, "nothing handed in") for task in tasks]
    return max(graded, key=lambda verdicts: sum(v.score for v in verdicts), default=nothing)


def grade_notebook(path: Path, tasks: list[Task], seeds=SEEDS) -> list[Verdict]:
    """One submitted notebook, whatever is in it."""
    try:
        content = read_bytes(path)
        with tempfile.TemporaryDirectory() as empty:
            Path(empty).chmod(0o755)
            found = run_apart(lambda: judge(content, tasks, seeds), 60 + 2 * WALL_S * len(tasks),
                              prepare=lambda: leave_privileges(empty))
        return [Verdict(**fields) for fields in found]
    except (FileError, Died) as error:
        return [Verdict(task.name, 0, task.points, f"the notebook {error}") for task in tasks]


def _folders(path: Path) -> list[Path]:
    """Those that are there themselves: a link may lead to somebody else's work."""
    return [inside for inside in path.iterdir() if inside.is_dir() and not inside.is_symlink()] if path.is_dir() else []


def _write(path: Path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_plain(value) for value in row] for row in rows])
    write_file(path, text.getvalue().encode())


def _plain(value):
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
