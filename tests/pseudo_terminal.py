"""A real terminal of 80 columns and 24 lines for a program, without a screen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path

COLUMNS, LINES = 80, 24
ROOT = Path(__file__).parent.parent
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CTRL_C = b"\x03"
# Takes the terminal as the one whose Ctrl-C is meant for the program. It is done there, and not between fork and exec:
# other tests leave threads behind.
IN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "search", *sys.argv[1:]])
"""


@dataclass(frozen=True)
class Shown:
    """What a program wrote to its terminal, and its exit code."""

    code: int
    raw: str

    @property
    def lines(self) -> list[str]:
        """The lines without colors and movements of the cursor; what changes in place is there in every state."""
        return [line.rstrip() for line in re.split(r"[\r\n]+", CONTROL.sub("", self.raw))]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def words(self) -> set[str]:
        return set(self.text.split())


def environment(**more: str) -> dict[str, str]:
    """Return the environment of the tests, with our packages and a usual terminal."""
    kept = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
    return {**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **more}


def shown(folder: Path, *words: str, until: str = "", keys: bytes = b"", seconds: float = 240) -> Shown:
    """Run `slimfront` in a terminal; once it has shown a text, press keys."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", IN_TERMINAL, *words], cwd=folder, env=environment(), stdin=theirs, stdout=theirs,
        stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    read, deadline = b"", time.monotonic() + seconds
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # Linux: the program has closed the terminal
                break
            read += part
        if keys and until.encode() in read:
            os.write(ours, keys)
            keys = b""
    os.close(ours)
    return Shown(process.wait(timeout=30), read.decode())


def piped(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `slimfront` without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "search", *words], cwd=folder, env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
