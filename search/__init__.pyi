from .proposals.draft_start import DraftStart
from .proposals.table_start import TableStart
from .proposals.uniform_start import UniformStart
from .study.spec import Budget, Recipe, Splits, StudySpec
from .training.teacher import trained

__all__ = [
    "Budget",
    "DraftStart",
    "Recipe",
    "Splits",
    "StudySpec",
    "TableStart",
    "UniformStart",
    "trained",
]
