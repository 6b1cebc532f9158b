"""What a turn of a run costs does not grow with the study."""

from __future__ import annotations

from typing import TYPE_CHECKING

import optuna
import pytest

from search.study.front import front, trained_count
from search.study.storage import open_study
from studies import scale
from studies.synthetic_trials import filled

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("storage", ["journal", "sqlite"])
def test_a_filled_study_is_one_that_can_go_on(tmp_path: Path, storage: str) -> None:
    context = scale._context(2)
    url = None if storage == "journal" else f"sqlite:///{tmp_path}/study.db"
    filled(context, tmp_path, url, 60)
    found = scale.turns_of(2, tmp_path, url)
    study = open_study(context.spec, tmp_path, url, create=False)
    assert {"ask", "front", "open_ms", "turn_ms", "held_mb"} <= found.keys()
    assert trained_count(study) > 50
    assert front(study)
    assert {"COMPLETE", "PRUNED", "FAIL"} <= {trial.state.name for trial in study.trials}
    draft = optuna.load_study(study_name="scale-draft", storage=study._storage)
    assert len(draft.trials) == 1000


@pytest.mark.slow
def test_ten_thousand_trials(tmp_path: Path) -> None:
    row = scale.measured(17, 10_000, "journal", tmp_path)
    assert (
        max(row[name] for name in ("ask", "front", "update", "gap", "same_plan", "misleading")) < 100
    )  # a shared core
    assert row["open_ms"] < 2000
    assert row["open_mb"] < 150
