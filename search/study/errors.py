"""Errors that the command reports to the user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spaces.network.messages import first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

# words in the messages of libraries that report a full disk or missing memory by an exception of their own
MACHINE_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "No space left on device", "CUDA error")
NOT_FINITE = "NotFinite"  # of objectives.samples: a damaged example is no fault of a plan either
TORCH_OUT_OF_MEMORY = "OutOfMemoryError"


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


class StorageFault(MachineFault):
    """The storage of the trials is lost, locked or damaged: no plan is to blame, and the run ends."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def machine_fault(error: BaseException) -> MachineFault | None:
    """Return the fault of the machine that an exception, or what caused it, reports; None if it reports none.

    A fault that was found before counts also where its handling raised another exception.
    """
    before: BaseException | None = error
    while before is not None:
        if isinstance(before, MachineFault):
            return before
        before = before.__cause__ or before.__context__
    for cause in causes(error):
        if type(cause).__name__ == NOT_FINITE:
            return MachineFault(str(cause))
        words = str(cause).partition("\n")[0]
        named = type(cause).__name__ == TORCH_OUT_OF_MEMORY  # by name: importing torch takes a second
        if isinstance(cause, MemoryError | OSError) or named or any(one in words for one in MACHINE_WORDS):
            return MachineFault(
                f"the machine failed, not a plan: {type(cause).__name__}{': ' * bool(words)}{words}; all finished work "
                "is kept; free memory or disk, and run the command again"
            )
    return None


def raise_machine_fault(error: BaseException) -> None:
    """Raise `MachineFault` if an exception, or what caused it, is a fault of the machine; else return.

    Raises
    ------
    MachineFault
        If it is.
    """
    fault = machine_fault(error)
    if fault is not None:
        raise fault from error


def reason_of(error: Exception) -> str:
    """Return why a plan failed, in one line.

    Raises
    ------
    MachineFault
        If the plan is not to blame.
    """
    raise_machine_fault(error)
    message = str(error).strip()
    if isinstance(error, UserError):
        return first_line(error)
    return f"{type(error).__name__}: {first_line(error) if message else 'no message'}"
