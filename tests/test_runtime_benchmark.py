"""The benchmark of runtimes: its verdict and its records."""

from __future__ import annotations

from datetime import UTC, datetime

import pandas as pd

from search.study import machine
from studies.digits import study
from studies.runtime_benchmark import recorded, verdict

TEACHER = {"top1": 98.0, "bytes": 1000, "latency_ratio": 1.0}
QUANTIZED = {"top1": 97.9, "bytes": 400, "latency_ratio": 1.2}


def row(top1: float, size: float, latency: float) -> dict[str, float]:
    return {"top1": top1, "bytes": size, "latency_ratio": latency}


def test_the_verdict_names_a_member_that_reaches_the_aim() -> None:
    rows = {"teacher": TEACHER, "8 bits": QUANTIZED, "3": row(96.0, 50, 0.2), "5": row(97.5, 100, 0.45)}
    assert verdict(rows) == (
        "aim reached (at most 1 point lost, 0.25 of the 8-bit file, 0.5 of the teacher's latency): member 5 loses 0.50 "
        "points and takes 0.250 of the 8-bit file and 0.45 of the latency"
    )


def test_if_no_member_reaches_the_aim_the_verdict_names_the_closest() -> None:
    rows = {"teacher": TEACHER, "8 bits": QUANTIZED, "3": row(96.0, 50, 0.2), "5": row(98.5, 101, 0.5)}
    assert verdict(rows) == (
        "aim missed (at most 1 point lost, 0.25 of the 8-bit file, 0.5 of the teacher's latency): member 5 loses 0.00 "
        "points and takes 0.253 of the 8-bit file and 0.50 of the latency"
    )


def test_without_a_verified_file_the_verdict_names_the_command_that_verifies() -> None:
    assert verdict({"teacher": TEACHER, "8 bits": QUANTIZED}) == (
        "no member of the front has a verified file for this runtime; verify them with: slimfront confirm "
        "--runtime NAME --seeds 0"
    )


def test_a_record_holds_the_study_the_runtime_the_date_and_the_machine() -> None:
    table = recorded(pd.DataFrame({"teacher": TEACHER, "3": row(96.0, 50, 0.2)}).T, study())
    assert table.drop(columns="date").loc["3"].to_dict() == {
        **row(96.0, 50, 0.2), "study": "digits", "runtime": "onnx", "inputs": 360, "machine": machine.words(),
    }  # fmt: skip
    assert (table["date"] == datetime.now(UTC).date().isoformat()).all()
