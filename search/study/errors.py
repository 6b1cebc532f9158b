"""Errors that the command reports to the user."""

from __future__ import annotations


class UserError(ValueError):
    """An error that the user can correct: one line with the rule, the values and the remedy; the exit code is 2."""


class Diverged(ArithmeticError):
    """A training that reached values that are not finite; its trial fails and the study continues."""
