"""Editions of the notebooks, made from the one source with solutions: for learners, for teachers."""

from .learner import edition_of, make_edition
from .solutions import Solution, find_solutions
from .source import FOLDER, Exercise, exercises, exercises_in, read_notebook, source_notebooks, write_notebook

__all__ = ["FOLDER", "Exercise", "Solution", "edition_of", "exercises", "exercises_in", "find_solutions",
           "make_edition", "read_notebook", "source_notebooks", "write_notebook"]
