"""Errors that the command reports to the user."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from spaces.network.messages import first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

# what a machine lacks: space, a quota, memory, files; or its disk fails, or may no longer be written to
MACHINE_NUMBERS = frozenset(
    number
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "ENOMEM", "EMFILE", "ENFILE", "ESTALE")
    if (number := getattr(errno, name, None)) is not None
)
# words in the messages of libraries that report these by an exception of their own
MACHINE_WORDS = (
    *map(os.strerror, sorted(MACHINE_NUMBERS)),
    *("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "CUDA error"),
    *("database or disk is full", "disk I/O error", "attempt to write a readonly database"),  # SQLite
    *("iostream error", "PytorchStreamWriter failed", "inline_container.cc"),  # torch
)
SHOWN_LENGTH = 500  # characters of a message in which these words are looked for (chosen)
NOT_FINITE = "NotFinite"  # of objectives.samples: a damaged example is no fault of a plan either
TORCH_OUT_OF_MEMORY = "OutOfMemoryError"


class UserError(ValueError):
    """An error that the user can correct: one line with the rule, the values and the remedy; the exit code is 2."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines that a notebook shows in place of a traceback."""
        return [*getattr(self, "__notes__", []), f"{type(self).__name__}: {self}"]


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


def _chain(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """Yield an exception and those before it, each with whether it is the cause and not only came before."""
    link: BaseException | None = error
    is_cause = True
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link, is_cause
        is_cause = is_cause and link.__cause__ is not None
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _of_machine(error: BaseException) -> bool:
    """Return whether an exception says by itself that the machine lacks something."""
    if isinstance(error, OSError):
        return error.errno in MACHINE_NUMBERS
    named = type(error).__name__ == TORCH_OUT_OF_MEMORY  # by name: importing torch takes a second
    text = str(error)[:SHOWN_LENGTH].lower()
    return isinstance(error, MemoryError) or named or any(words.lower() in text for words in MACHINE_WORDS)


def machine_fault(error: BaseException) -> MachineFault | None:
    """Return the fault of the machine that an exception, or what caused it, reports; None if it reports none.

    A fault that was found before counts also where its handling raised another exception.
    """
    links = list(_chain(error))
    fault = next((link for link, _ in links if isinstance(link, MachineFault)), None)
    if fault is not None:
        return fault
    for link, is_cause in links:
        words = str(link).partition("\n")[0]
        if is_cause and type(link).__name__ == NOT_FINITE:
            return MachineFault(str(link))
        if _of_machine(link) or (is_cause and isinstance(link, OSError)):
            return MachineFault(
                f"the machine failed, not a plan: {type(link).__name__}{': ' * bool(words)}{words}; all finished work "
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
