"""The search: specify a study, run it, confirm and export its front. These are the names for a study file."""

from search.proposals.draft_start import DraftStart
from search.proposals.table_start import TableStart
from search.proposals.uniform_start import UniformStart
from search.study.spec import Budget, Recipe, Splits, StudySpec
from search.training.teacher import trained

__all__ = ["Budget", "DraftStart", "Recipe", "Splits", "StudySpec", "TableStart", "UniformStart", "trained"]
