"""Run a study, look at its front, confirm it, export from it."""

from search.anchors import TableStart, UniformStart
from search.draft import DraftStart
from search.spec import Budget, Recipe, Splits, StudySpec
from search.teacher import trained

__all__ = ["Budget", "DraftStart", "Recipe", "Splits", "StudySpec", "TableStart", "UniformStart", "trained"]
