"""The card beside an export says what the file is, and its lines for Python load the file."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from torch.utils.data import Dataset, Subset

from objectives import Examples
from objectives.objective import in_digits
from objectives.runtimes import named
from search.evaluation.reference import teacher_file
from search.results.confirm import confirm, weights_of
from search.results.export import Asked, export
from search.study.front import front
from search.study.records import TEACHER
from tests.small_study import context, searched, splits, study

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
    teacher = found.user_attrs[TEACHER]
    export(trial, shared, weights_of(home, trial), out, reference, Asked(license_name=license_name), teacher)
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


def test_a_card_compares_with_the_teacher_and_names_one_runtime(found: Study, home: Path, tmp_path: Path) -> None:
    card = card_of(found, home, tmp_path / "export")
    teacher = found.user_attrs[TEACHER]
    assert f"n = 100; teacher: {in_digits(teacher['top1'])}\n" in card
    assert re.search(rf"\| `macs` \(computed or measured in the search\) \| [\d,]+ \| {teacher['macs']:,.0f} \|", card)
    assert "onnxruntime" in card
    assert "ai-edge-litert" not in card
    assert "executorch" not in card


class Named(Dataset[tuple[torch.Tensor, int]]):
    """Samples of a dataset that names its classes and its transform, as those of torchvision do."""

    classes, transform = ("round", "square", "thin", "thick"), torch.nn.Identity()

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        inputs, labels = splits().validation.inputs, splits().validation.labels
        return inputs[index], int(labels[index])


def test_a_card_names_the_classes_and_the_transform_of_the_data(found: Study, home: Path, tmp_path: Path) -> None:
    named_data = Examples.of(Subset(Named(), range(100)))
    spec = study(3)
    shared = context(dataclasses.replace(spec, splits=dataclasses.replace(spec.splits, validation=named_data)))
    trial, reference = front(found)[0], teacher_file(shared.subject, shared.spec.runtime, home)
    record = export(trial, shared, weights_of(home, trial), tmp_path / "export", reference)
    assert record["classes"] == ["round", "square", "thin", "thick"]
    card = (tmp_path / "export" / "README.md").read_text()
    assert "Classes, in the order of the outputs: 0 round, 1 square, 2 thin, 3 thick." in card
    assert "Prepare the inputs as the validation data did:\n\n```\nIdentity()\n```" in card


def test_a_card_has_what_confirm_measured_on_the_test_split(found: Study, home: Path, tmp_path: Path) -> None:
    confirm(front(found)[:1], context(study(3)), home, 2)
    card = card_of(found, home, tmp_path / "export")
    measured = r"`test_top1` on the test split, measured in torch: [\d.]+ ± [\d.]+ "
    assert re.search(measured + r"\(mean and standard deviation of 2 trainings", card)
    assert "license: unknown" in card
