"""For teachers: a course for nbgrader, and grades for what comes back."""

from .assignments import teach
from .grading import grade

__all__ = ["grade", "teach"]
