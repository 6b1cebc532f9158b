"""What holds for every test: one thread, the same random numbers and no measurements of the tests that ran before."""

from __future__ import annotations

import itertools

import pytest
import torch

from search.evaluation.measured_parts import MEASUREMENTS_VARIABLE

FRESH = itertools.count()
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setenv(MEASUREMENTS_VARIABLE, str(tmp_path_factory.getbasetemp() / f"measured-{next(FRESH)}"))
