"""Marks the notebooks' cells for nbgrader, so that it also takes a notebook straight from `notebooks/`.

    python data/build/nbgrader_marks.py      # after an exercise or a check came, went or changed its stars

`course.py teach` marks its copies alike, whatever stands in the notebooks, and adds hidden tests. A test compares.
"""

import json

from ldm_mini.editions.source import exercises_in, read_notebook
from ldm_mini.files import write_file
from ldm_mini.teaching.assignments import marked
from ldm_mini.teaching.grading import graded_notebooks


def main() -> None:
    for path in graded_notebooks().values():
        read, file = read_notebook(path), json.loads(path.read_text(encoding="utf-8"))
        for cell, new in zip(file["cells"], marked(read, exercises_in(read, path.name))["cells"]):
            cell["metadata"] = new["metadata"]              # and nothing else of the file
        write_file(path, (json.dumps(file, indent=1, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    main()
