"""A clock that jumps: nothing of a study depends on the time of day."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest

from search.study.journal import storage_at

if TYPE_CHECKING:
    from tests.postgresql_server import Server

# Each look at the time of day is up to a day before or after the last one.
JUMPING = """
import datetime, random, sys, time
from search.cli import main
from search.commands import carrying_out
import optuna.storages.journal._storage, optuna.storages._rdb.storage

moments, clock = random.Random(0), time.time
def jumped(): return clock() + moments.uniform(-86400, 86400)
class Jumping(datetime.datetime):
    @classmethod
    def now(cls, tz=None): return datetime.datetime.fromtimestamp(jumped(), tz)
for name, module in list(sys.modules.items()):
    if name.startswith("optuna.") and vars(module).get("datetime") is datetime.datetime:
        module.datetime = Jumping
time.time, time.time_ns = jumped, lambda: int(jumped() * 1e9)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["journal", "sqlite", "postgresql"])
def test_a_study_is_the_same_with_a_clock_that_jumps(tmp_path: Path, kind: str, postgresql_session: Server) -> None:
    (tmp_path / "small.py").write_text((Path(__file__).parent / "small_study.py").read_text())
    found = []
    for name, start in (("steady", ["-m", "search"]), ("jumping", ["-c", JUMPING])):
        databases = {"sqlite": f"sqlite:///{tmp_path}/{name}.db", "postgresql": postgresql_session.database()}
        url = databases.get(kind)
        words = ["small.py:study", "--folder", name, *(["--storage", url] if url else [])]
        for trials in ("2", "3"):  # the second run goes on
            run = [sys.executable, *start, "run", *words, "--trials", trials, "--unverified"]
            subprocess.run(run, cwd=tmp_path, check=True, capture_output=True, timeout=200)
        found.append(_trials(tmp_path / name, url))
    assert found[0] == found[1]


def _trials(folder: Path, url: str | None) -> list[tuple[Any, ...]]:
    study = optuna.load_study(study_name="small", storage=storage_at(folder, url, create=False))
    return [(trial.number, trial.state, trial.values, trial.params) for trial in study.get_trials()]
