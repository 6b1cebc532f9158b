"""The measured parts of networks, kept for this machine and shared by all its studies.

Each line of a file is one part: the numbers of its layers, its ends, and its milliseconds. A line is written at once,
so several processes may add to the same file.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from search.costs.work import Ends, work
from search.study import machine
from spaces.costs.architectures import OF_LAYERS, Parts

if TYPE_CHECKING:
    from objectives.objective import Partwise

MEASUREMENTS_VARIABLE = "SLIMFRONT_MEASURED"  # the environment variable that names the folder of measurements
FORM = 3  # of files, to be raised when an export writes other files of the same network: what was measured is outdated
MOST_PARTS = 2000  # the latest parts of a file that are read (chosen)


def measurements_folder() -> Path:
    """Return the folder of the measurements of this machine."""
    return Path(os.environ.get(MEASUREMENTS_VARIABLE, "runs/measured"))


def measurements_file(name: str, *of: object) -> Path:
    """Return the file with what was measured on this machine, on files of the form that exports write.

    Parameters
    ----------
    name
        Its name, with ``{}`` for the digest.
    of
        What else the measurements depend on, each with a text of its own.
    """
    key = repr((machine.identity(), FORM, *of))
    return measurements_folder() / name.format(hashlib.sha256(key.encode()).hexdigest()[:16])


@dataclass(frozen=True, slots=True)
class PartsFile:
    """The file with the measured parts for one objective's conditions on this machine."""

    path: Path

    @classmethod
    def of(cls, objective: Partwise) -> PartsFile:
        """Return the file for an objective, which may not exist yet."""
        return cls(measurements_file("parts-{}.jsonl", objective.conditions))

    def add(self, parts: Parts, ends: Ends, milliseconds: float) -> None:
        """Add a measured part."""
        layers = {name: np.asarray(getattr(parts, name), dtype=float)[:, 0].tolist() for name in OF_LAYERS}
        line = json.dumps({"layers": layers, "ends": [ends.taken, ends.returned], "ms": milliseconds}) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the work of the measured parts, shape (S, F), and their milliseconds, shape (S,)."""
        lines = self.path.read_text(errors="replace").splitlines()[-MOST_PARTS:] if self.path.exists() else []
        rows = [row for row in map(_row, lines) if row is not None]
        if not rows:
            return np.zeros((0, 0)), np.zeros(0)
        return np.vstack([one for one, _ in rows]), np.array([milliseconds for _, milliseconds in rows])


def _row(line: str) -> tuple[np.ndarray, float] | None:
    """Return the work of a part and its milliseconds; None for a line that is damaged, or not written yet."""
    try:
        content: dict[str, Any] = json.loads(line)
        layers = {name: np.array(content["layers"][name])[:, None] for name in OF_LAYERS}
        nothing = {field.name: np.zeros(1) for field in fields(Parts) if field.name not in OF_LAYERS}
        found, milliseconds = work(Parts(**layers, **nothing), Ends(*content["ends"])), float(content["ms"])
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError):
        return None
    return (found, milliseconds) if np.isfinite(found).all() and 0 < milliseconds < np.inf else None
