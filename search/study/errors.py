"""Errors that the command reports to the user."""

from __future__ import annotations


class UserError(ValueError):
    """An error that the user can correct: one line with the rule, the values and the remedy; the exit code is 2."""


class LimitsUnmet(UserError):
    """Limits that no plan or no candidate meets.

    Attributes
    ----------
    details
        Lines to print before the message: how near each limit came.
    """

    def __init__(self, message: str, details: list[str]) -> None:
        super().__init__(message)
        self.details = details


class Diverged(ArithmeticError):
    """A training that reached values that are not finite; its trial fails and the study continues."""
