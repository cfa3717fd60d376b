"""Where a running notebook finds the course's version of an exercise: in the notebooks of a folder."""

from dataclasses import dataclass
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
    for path in sorted(Path(folder).glob("*.ipynb")):
        try:
            notebook = read_notebook(path)
            found += [Solution(task.name, task.check, task.solution) for task in exercises_in(notebook, path.name)]
            found += [Solution(**record_of(cell)["solution"]) for cell in notebook["cells"]
                      if "solution" in record_of(cell)]
        except (FileError, SyntaxError, TypeError, StopIteration):  # a notebook of the learner's own: whatever it is
            continue
        edition = edition or record_of(notebook).get("edition") == "learner"
    return found, edition
