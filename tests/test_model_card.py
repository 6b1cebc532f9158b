"""The card beside an export says what the file is, and its lines for Python load the file."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from objectives.runtimes import named
from search.evaluation.reference import teacher_file
from search.results.confirm import confirm, weights_of
from search.results.export import Asked, export
from search.study.front import front
from tests.small_study import context, searched, study

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study

NEEDS = {"litert": "litert_torch", "tflite-micro": "tflite_micro", "executorch": "executorch", "openvino": "openvino"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def found(home: Path) -> Study:
    return searched(study(3), home)


def card_of(found: Study, home: Path, out: Path, runtime: str = "onnx", license_name: str = "") -> str:
    shared = context(dataclasses.replace(study(3), runtime=named(runtime)))
    trial = front(found)[0]
    reference = teacher_file(shared.subject, shared.spec.runtime, home)
    export(trial, shared, weights_of(home, trial), out, reference, Asked(license_name=license_name))
    return (out / "README.md").read_text()


@pytest.mark.parametrize("runtime", ["onnx", "openvino", "litert", "tflite-micro", "executorch"])
def test_the_lines_for_python_load_the_file(runtime: str, found: Study, home: Path, tmp_path: Path) -> None:
    if runtime in NEEDS:
        pytest.importorskip(NEEDS[runtime])
    card = card_of(found, home, tmp_path / "export", runtime)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "export", capture_output=True, text=True, check=False
    )
    assert not ran.returncode, ran.stderr
    assert "1, 4)" in ran.stdout or "[1 4]" in ran.stdout or "[1,4]" in ran.stdout, ran.stdout
    languages = {"onnx": 4, "litert": 4, "executorch": 4, "tflite-micro": 2, "openvino": 1}[runtime]
    assert len(re.findall("```[a-z]", card)) == languages
    assert "$" not in card


def test_a_card_says_what_was_measured_and_on_how_many(found: Study, home: Path, tmp_path: Path) -> None:
    card = card_of(found, home, tmp_path / "export", license_name="apache-2.0")
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert re.search(
        r"`top1` of the file: [\d.]+ \(95% interval [\d.]+ to [\d.]+\), on the validation split, n = \d+", card
    )
    assert "the test split was not read; `slimfront confirm` does that" in card
    assert "version 1.2" in card or "version 1.19" in card
    assert "distil T=" in card
    assert (tmp_path / "export" / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_a_card_has_what_confirm_measured_on_the_test_split(found: Study, home: Path, tmp_path: Path) -> None:
    confirm(front(found)[:1], context(study(3)), home, 2)
    card = card_of(found, home, tmp_path / "export")
    measured = r"`test_top1` on the test split, measured in torch: [\d.]+ ± [\d.]+ "
    assert re.search(measured + r"\(mean and standard deviation of 2 trainings", card)
    assert "license: unknown" in card
