"""What a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """An error of one line that says the rule, the values and the way out; the command ends with exit code 2."""


class Diverged(ArithmeticError):
    """Training left the finite numbers; the trial fails, the study goes on."""
