"""The package slimfront of this checkout, in the place that it has where it is installed."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
_folder = tempfile.TemporaryDirectory()
LINKS = Path(_folder.name)
(LINKS / "slimfront").symlink_to(ROOT / "search" / "slimfront")


def for_this_process() -> None:
    """Let `import slimfront` find the package of this checkout."""
    if str(LINKS) not in sys.path:
        sys.path.insert(0, str(LINKS))


def for_processes(*before: Path, **variables: str) -> dict[str, str]:
    """Return an environment in which programs find the packages of this checkout, after these folders."""
    paths = os.pathsep.join(map(str, (*before, ROOT, LINKS)))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **variables}
