"""What holds for every test: one thread, the same random numbers, and no measurements of the tests that ran before.

Tests import OpenVINO themselves, to skip where it is missing; no import of it may report to its maker.
"""

from __future__ import annotations

import itertools
import sys

import pytest
import torch

from search.evaluation.measured_parts import MEASUREMENTS_VARIABLE

FRESH = itertools.count()
torch.set_num_threads(1)
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # as `objectives.runtimes.onnx.openvino` does


@pytest.fixture(autouse=True)
def _seeded(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setenv(MEASUREMENTS_VARIABLE, str(tmp_path_factory.getbasetemp() / f"measured-{next(FRESH)}"))
