"""Try arenas of TFLite Micro in another process, since the interpreter may crash in one that is too small."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from objectives.runtimes.errors import ExportError
from objectives.runtimes.isolated_process import python

if TYPE_CHECKING:
    from subprocess import Popen

FIRST_ARENA, LARGEST_ARENA = 2**22, 2**30  # bytes that are tried: more than boards have, since teachers are larger
ARENA_STEP = 16  # bytes
PROGRAM = Path(__file__).with_name("arena_process.py")


class ArenaTries:
    """A context manager that tells in which arenas a file starts.

    Parameters
    ----------
    content
        The .tflite file.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._process: Popen[str] | None = None

    def __enter__(self) -> Self:
        """Write the file for the other process."""
        self._file = tempfile.NamedTemporaryFile(suffix=".tflite")
        self._file.write(self._content)
        self._file.flush()
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._end()
        self._file.close()

    def sufficient(self) -> int:
        """Return the bytes of an arena in which the file starts and runs: 4 MB, or four times as many until it does.

        Raises
        ------
        ExportError
            If the interpreter does not take the file; the message is what it says.
        """
        arena = FIRST_ARENA
        while not self.starts(arena, runs=True):
            arena *= 4
            if arena > LARGEST_ARENA:
                raise ExportError(f"it does not start with {LARGEST_ARENA:,} bytes of memory")
        return arena

    def smallest(self) -> int:
        """Return the bytes of the smallest arena in which the file starts, to 16 bytes; errors as in `sufficient`."""
        low, high = 0, self.sufficient() // ARENA_STEP
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.starts(middle * ARENA_STEP) else (middle, high)
        return high * ARENA_STEP

    def starts(self, arena: int, *, runs: bool = False) -> bool:
        """Return whether the file starts in an arena of so many bytes, and runs if asked.

        What the interpreter says of the file is an error if it was asked to run it (see `sufficient`). Otherwise the
        arena is too small, whatever it says: kernels that got no memory go on, and find types that nobody wrote.
        """
        process = self._process = self._process or self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{arena} run\n" if runs else f"{arena}\n")
            process.stdin.flush()
            answer = process.stdout.readline().strip()
        except BrokenPipeError:
            answer = ""
        if not answer:  # it writes beyond an arena that is too small, and ends
            self._end()
            return False
        if runs and answer not in {"starts", "too small"}:
            raise ExportError(answer)
        return answer == "starts"

    def _started(self) -> Popen[str]:
        code = f"import runpy; sys.argv = ['', {self._file.name!r}]; runpy.run_path({str(PROGRAM)!r}, None, '__main__')"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(python(code), text=True, **pipes)  # type: ignore[call-overload, no-any-return] # noqa: S603 - our own code

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None
