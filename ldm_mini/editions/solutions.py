"""Where a running notebook finds the course's version of an exercise: in the notebooks of a folder."""

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..files import FileError
from .merge import record_of
from .source import exercises_in, read_notebook


@dataclass(frozen=True)
class Solution:
    """The course's version of one exercise."""

    name: str  # of the function or class
    check: str  # of its check; "" if it has none
    code: str  # of the cell


def find_solutions(folder) -> tuple[list[Solution], bool]:
    """All solutions in the notebooks of a folder; and whether it holds a learner's edition.

    A learner's edition carries solutions in its cells' metadata, so that it works without a clone.
    """
    found, edition = [], False
    for path in sorted(Path(folder).resolve().glob("*.ipynb")):
        with suppress(OSError):  # it went a moment ago
            solutions, learners = _solutions_in(path, path.stat().st_mtime_ns)
            found, edition = found + solutions, edition or learners
    return found, edition


@lru_cache(maxsize=256)
def _solutions_in(path: Path, changed: int) -> tuple[list[Solution], bool]:
    """What `find_solutions` wants of one file as it was at the time `changed`: each check that fails asks again."""
    try:
        notebook = read_notebook(path)
        found = [Solution(task.name, task.check, task.solution) for task in exercises_in(notebook, path.name)]
        found += [Solution(**record_of(cell)["solution"]) for cell in notebook["cells"]
                  if "solution" in record_of(cell)]
    except (FileError, SyntaxError, TypeError, StopIteration):  # a notebook of the learner's own: whatever it is
        return [], False
    return found, record_of(notebook).get("edition") == "learner"
