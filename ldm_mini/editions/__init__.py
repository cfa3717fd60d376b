"""Editions of the notebooks, made from the one source with solutions: for learners, for teachers."""

from .source import Exercise, exercises, exercises_in, read_notebook, source_notebooks, write_notebook

__all__ = ["Exercise", "exercises", "exercises_in", "read_notebook", "source_notebooks", "write_notebook"]
