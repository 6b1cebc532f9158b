"""What an engine does: it starts a worker's command somewhere and tells how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Started(Protocol):
    """A worker that was started."""

    def lines(self) -> list[str]:
        """Return the lines that it has printed since the last call."""
        ...

    def ended(self) -> int | None:
        """Return its exit code, None as long as it runs; negative: the signal that ended it."""
        ...

    @property
    def waits(self) -> bool:
        """Whether it still waits for a free machine."""
        ...

    def end_in_words(self) -> str:
        """Say how it ended."""
        ...

    def stop(self) -> None:
        """Ask it to stop after the trial under way; asked again, it stops at once."""
        ...

    def kill(self) -> None:
        """End it now, if it still runs."""
        ...


class Engine(Protocol):
    """A way to start workers."""

    def start(self, number: int, arguments: Sequence[str], environment: dict[str, str]) -> Started:
        """Start a worker.

        Parameters
        ----------
        number
            Its number in the run, from 0.
        arguments
            The arguments of `slimfront`.
        environment
            Environment variables to add, such as those with secrets.
        """
        ...
