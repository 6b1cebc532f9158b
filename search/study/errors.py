"""Errors that the command reports to the user."""

from __future__ import annotations

import torch

from spaces.network.messages import first_line

# words in the messages of libraries that report a full disk or missing memory by an exception of their own
MACHINE_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "No space left on device", "CUDA error")


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


class MachineFault(UserError):
    """Missing memory, a full disk or a fault of a device: no plan is to blame, and the run ends."""


def raise_machine_fault(error: BaseException) -> None:
    """Raise `MachineFault` if an exception, or what caused it, is a fault of the machine; else return.

    Raises
    ------
    MachineFault
        If it is.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MachineFault):
            raise cause
        by_words = isinstance(cause, Exception) and any(words in str(cause) for words in MACHINE_WORDS)
        if by_words or isinstance(cause, MemoryError | OSError | torch.OutOfMemoryError):
            words = first_line(cause) if isinstance(cause, Exception) else str(cause)
            raise MachineFault(
                f"the machine failed, not a plan: {type(cause).__name__}: {words}; all finished work is kept; free "
                "memory or disk, and run the command again"
            ) from error
        cause = cause.__cause__


def reason_of(error: Exception) -> str:
    """Return why a plan failed, in one line.

    Raises
    ------
    MachineFault
        If the plan is not to blame.
    """
    raise_machine_fault(error)
    message = str(error).strip()
    return f"{type(error).__name__}: {first_line(error) if message else 'no message'}"
