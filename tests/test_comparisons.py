"""The tables of the comparisons with peers, of proxies, and of the cost of a search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from studies import bit_operations
from studies.peers import accuracies, tables
from studies.proxies import correlations
from studies.search_benchmark import main as compare_searches
from studies.search_cost import growth

TEACHER = {"validation": 90.0, "test": 89.0, "bytes": 1000, "macs": 100.0, "latency": 1.002}


def record(method: str, seed: int, *rows: dict[str, float]) -> dict[str, Any]:
    return {"network": "net", "method": method, "seed": seed, "teacher": TEACHER, "rows": list(rows)}


def file(validation: float, test: float, share: float) -> dict[str, float]:
    return {"validation": validation, "test": test, "bytes": 1000 * share, "macs": 100 * share, "latency": share}


def test_the_file_with_the_best_validation_accuracy_within_a_share_is_shown_with_its_test_accuracy() -> None:
    table = accuracies(record("ours", 0, file(88, 80, 0.5), file(87, 86, 0.4), file(50, 51, 0.1)))
    assert [table.at["bytes", f"1/{share}"] for share in (1, 2, 4, 8)] == [89, 80, 51, 51]  # noqa: PD008 - one cell
    assert table.loc[["latency"], "1/16"].isna().all()


def test_the_teacher_counts_for_every_method_although_its_own_file_is_timed_with_noise() -> None:
    assert accuracies(record("ours", 0)).loc["latency", "1/1"] == 89


def test_a_method_that_has_no_file_that_cheap_with_some_seed_has_an_empty_cell() -> None:
    text = tables([record("ours", 0, file(80, 79, 0.25)), record("ours", 1, file(70, 69, 0.5))])
    rows = [line.split() for line in text.splitlines() if "ours" in line and "runs" not in line]
    assert rows[0][-6:] == ["89.0", "74.0", "NaN", "NaN", "NaN", "NaN"]


def test_proxies_are_compared_with_trainings_within_bands() -> None:
    """Over all bands the proxy is useless, within each it is perfect; the objective is a maximized one."""
    rng = np.random.default_rng(0)
    loss = rng.random(24)
    band = np.repeat([0, 1], 12)
    rows = pd.DataFrame({"band": band, "table": loss + 0.1, "untrained": 0.5 - loss / 4})
    for name in ("10 steps", "25 steps", "50 steps", "100 steps"):
        rows[name] = loss - band
    for turn in (1, 2):
        rows[f"loss {turn}"], rows[f"objective {turn}"] = loss + 10 * band, 100 - loss - 10 * band
    for name in ("table", "untrained", "10 steps", "25 steps", "50 steps", "100 steps", "full"):
        rows[f"{name} seconds"] = 1.0
    table = correlations(rows)
    assert table.loc[["table"]].to_numpy().tolist() == [[1, 1, 1]]
    assert table.loc["untrained", "with loss"] == -1
    assert table.loc["25 steps", "with objective"] == 1
    assert table.loc["one training", "with loss"] == 1


def test_the_growth_of_the_time_of_a_plan_is_fitted() -> None:
    macs, layers = np.array([1.0, 10, 100, 1000, 5000]), np.array([10, 50, 20, 50, 100])
    rows = pd.DataFrame({"mega_macs": macs, "layers": layers, "plan_s": 0.1 * macs**0.75 * layers**0.5})
    assert growth(rows) == "seconds of a plan grow as multiply-adds to the power 0.75 times layers to the power 0.50"


def test_a_limit_on_multiply_adds_is_a_share_of_the_first_teachers() -> None:
    spec = bit_operations.study_of("digits", 3, 0.25)
    (limit,) = spec.limits
    assert limit.bound == pytest.approx(0.25 * limit.objective(spec.teacher))
    assert [objective.name for objective in spec.objectives] == ["top1", "bops"]
    assert spec.seed == 3


def test_stages_of_single_axes_are_not_compared_under_a_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["search_benchmark", "--macs", "0.5", "--methods", "ours", "bits-alone"])
    with pytest.raises(SystemExit):
        compare_searches()
    assert "leave out bits-alone" in capsys.readouterr().err
