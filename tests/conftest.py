"""What holds for every test: one thread, the same random numbers, and no times of the tests that ran before.

Sizes of files are kept: they are exact, and calibrating them takes half of the time of a small study.

Tests import OpenVINO themselves, to skip where it is missing; no import of it may report to its maker.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import torch

from search.evaluation.measured_parts import MEASUREMENTS_VARIABLE
from tests import installed, left_to_test_all, postgresql_server

installed.for_this_process()

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

torch.set_num_threads(1)
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # as `objectives.runtimes.onnx.openvino` does


@pytest.fixture(scope="session", autouse=True)
def _measurements(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patched:
        folder = tmp_path_factory.mktemp("measured", numbered=False)
        patched.setenv(MEASUREMENTS_VARIABLE, str(folder))
        yield folder


@pytest.fixture(autouse=True)
def _seeded(_measurements: Path) -> None:
    torch.manual_seed(0)
    for path in _measurements.iterdir():
        if not path.name.startswith("sizes-"):
            path.unlink(missing_ok=True)


@pytest.hookimpl(tryfirst=True)  # before cases are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    left_to_test_all.mark(items)


@pytest.fixture(scope="session")
def postgresql_session() -> Iterator[postgresql_server.Server]:
    if postgresql_server.programs() is None:
        pytest.skip(postgresql_server.MISSING)
    with postgresql_server.Server() as server:
        yield server


@pytest.fixture
def postgresql(postgresql_session: postgresql_server.Server) -> str:
    return postgresql_session.database()
