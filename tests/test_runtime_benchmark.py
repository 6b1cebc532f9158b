"""What the benchmark of runtimes says of its numbers."""

from __future__ import annotations

from datetime import UTC, datetime

import pandas as pd

from search.study import machine
from studies.digits import study
from studies.runtime_benchmark import recorded, verdict

TEACHER = {"top1": 98.0, "bytes": 1000, "latency_ratio": 1.0}
ROUNDED = {"top1": 97.9, "bytes": 400, "latency_ratio": 1.2}


def row(top1: float, size: float, time: float) -> dict[str, float]:
    return {"top1": top1, "bytes": size, "latency_ratio": time}


def test_a_member_that_reaches_all_is_named() -> None:
    rows = {"teacher": TEACHER, "8 bits": ROUNDED, "3": row(96.0, 50, 0.2), "5": row(97.5, 100, 0.45)}
    assert verdict(rows).startswith("reached")
    assert "member 5 loses 0.50 points, takes 0.250 of the 8-bit file and 0.45 of the time" in verdict(rows)


def test_the_nearest_is_named_where_none_does() -> None:
    rows = {"teacher": TEACHER, "8 bits": ROUNDED, "3": row(96.0, 50, 0.2), "5": row(98.5, 101, 0.5)}
    assert verdict(rows).startswith("missed")
    assert "member 5 loses 0.00 points, takes 0.253" in verdict(rows)


def test_without_a_verified_member_the_way_out_is_said() -> None:
    assert "slimfront confirm --runtime NAME --seeds 0" in verdict({"teacher": TEACHER, "8 bits": ROUNDED})


def test_a_record_says_of_what_when_and_on_which_machine() -> None:
    table = recorded(pd.DataFrame({"teacher": TEACHER, "3": row(96.0, 50, 0.2)}).T, study())
    assert table.drop(columns="date").loc["3"].to_dict() == {
        **row(96.0, 50, 0.2), "study": "digits", "runtime": "onnx", "inputs": 360, "machine": machine.words(),
    }  # fmt: skip
    assert (table["date"] == datetime.now(UTC).date().isoformat()).all()
