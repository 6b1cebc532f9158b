"""Verification in a separate process, and the front of the files."""

from __future__ import annotations

import copy
import dataclasses
import os
import sys
import time
from typing import TYPE_CHECKING

import pytest
import torch

from objectives import Latency, LatencyShare
from objectives.runtimes import ExportError, OnnxRuntime
from objectives.runtimes.isolated_process import IsolatedProcess
from search.results.file_records import Member, file_table, record_path, with_records
from search.results.tables import files_note
from search.study.attributes import keyed, numbers_of
from search.study.files import save_json
from search.study.front import front
from search.study.loader import imported
from search.study.records import PREDICTED, VALUES
from spaces.testing.networks import Plain, example, teacher
from tests.small_study import searched, study

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from optuna import Study
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Dying(OnnxRuntime):
    """A runtime whose files end the process that loads or runs them."""

    when: str = "loading"

    def load(self, path: Path) -> Callable[[Tensor], Tensor]:
        if self.when == "loading":
            os._exit(3)
        return self._run

    def _run(self, _: Tensor) -> Tensor:
        if self.when == "never":
            time.sleep(600)
        os._exit(3)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "model.onnx"
    OnnxRuntime().export(teacher(Plain), example(teacher(Plain)), path)
    return path


def test_a_file_computes_the_same_in_another_process(file: Path) -> None:
    inputs = example(teacher(Plain))
    with IsolatedProcess(OnnxRuntime(), file) as fresh:
        assert torch.equal(fresh(inputs), OnnxRuntime().load(file)(inputs))
        assert torch.equal(fresh(inputs[:3]), OnnxRuntime().load(file)(inputs[:3]))
        found = fresh.compare(file, inputs[:1], rounds=5, block_ms=1.0)
    assert (found.batch, found.rounds, found.threads) == (1, 5, 1)
    assert found.low <= found.ratio <= found.high


def test_a_runtime_may_be_defined_in_the_file_of_a_study(file: Path, tmp_path: Path) -> None:
    """The module of a study has a name that no other process can import."""
    source = tmp_path / "study_with_a_runtime.py"
    source.write_text("from objectives.runtimes import OnnxRuntime\n\n\nclass Mine(OnnxRuntime):\n    pass\n")
    mine = imported(str(source)).Mine()
    inputs = example(teacher(Plain))
    with IsolatedProcess(mine, file) as fresh:
        assert torch.equal(fresh(inputs), OnnxRuntime().load(file)(inputs))


def test_a_file_that_ends_its_process_is_an_error_here(file: Path) -> None:
    with pytest.raises(ExportError, match=r"executed model\.onnx with onnx ended: exit code 3"):
        IsolatedProcess(Dying(), file).__enter__()
    with IsolatedProcess(Dying(when="running"), file) as fresh, pytest.raises(ExportError, match="ended: exit code 3"):
        fresh(example(teacher(Plain)))


def test_a_file_that_never_answers_is_an_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with IsolatedProcess(Dying(when="never"), file) as fresh:
        monkeypatch.setattr("objectives.runtimes.isolated_process.ANSWER_SECONDS", 0.5)
        with pytest.raises(ExportError, match=r"model\.onnx did not answer in onnx within 0 seconds"):
            fresh(example(teacher(Plain)))


def test_modules_of_the_user_do_not_replace_those_of_slimfront(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("objectives", "search", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(5)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])  # as the loader of studies adds folders
    with IsolatedProcess(OnnxRuntime(), file) as fresh:
        assert len(fresh(example(teacher(Plain))[:2])) == 2


def test_a_file_that_cannot_be_loaded_is_reported(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ExportError, match=r"executed model\.onnx with onnx ended: .*"):
        IsolatedProcess(OnnxRuntime(), tmp_path / "model.onnx").__enter__()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def found(home: Path) -> Study:
    return searched(study(8), home)


def test_measurements_on_files_decide_the_front_of_the_files(found: Study, home: Path) -> None:
    """A member whose file is dominated leaves the front of the files; a member without a file is not in the table."""
    spec = study(8)
    members = front(found)
    assert len(members) >= 2
    assert file_table(with_records(front(found), spec.runtime, home), spec).empty
    for place, trial in enumerate(members[:2]):
        values = {"top1_file": 90.0 - place, "file_bytes": 1000 + place, "latency": {"cpu_ms": 1.0, "ratio": 0.5}}
        save_json(record_path(home, trial, spec.runtime), values)
    table = file_table(with_records(front(found), spec.runtime, home), spec)
    assert list(table["number"]) == [trial.number for trial in members[:2]]
    assert list(table["on_front"]) == [True, False]
    assert list(table["size_bytes"]) == [1000, 1001]


def test_the_note_reports_the_errors_of_predicted_sizes_and_times(found: Study, tmp_path: Path) -> None:
    net = teacher(Plain)
    share = LatencyShare(Latency(OnnxRuntime(), net, example(net)[:1]))
    spec = dataclasses.replace(study(8), reported=(share,))
    assert files_note(spec, with_records(front(found), spec.runtime, tmp_path)).startswith(
        "no onnx file is verified yet; verify without training: slimfront confirm STUDY --runtime onnx --seeds 0"
    )
    members = []
    timing = {"cpu_ms": 1.0, "rounds": 40, "noisy": False, "threads": 1, "batch": 1, "reference_cpu_ms": 2}
    for place in range(5):
        trial = copy.deepcopy(front(found)[0])
        trial.number = 100 + place
        trial.user_attrs |= keyed(PREDICTED, {share.name: 0.5 + place / 10})
        size = {"file_bytes": numbers_of(trial, VALUES)["size_bytes"] * (1.25 if place == 3 else 1.0)}
        ratio = {"ratio": (0.5 + place / 10) / (1.0 if place else 0.8)}
        members.append(Member(trial, {"runtime": "onnx", "top1_file": 90.0, **size, "latency": timing | ratio}))
    timing_line, size_line, latency_line, beaten = files_note(spec, members).splitlines()
    assert beaten == "file_front is no for trial 103: another file is at least as good in all objectives"
    assert timing_line.endswith("onnx, 1 thread, batch 1; the teacher takes 2 ms")
    # all sizes are equal, so there is no rank correlation
    assert size_line == "size_bytes was predicted with an error of at most 20.0% on 5 files, median 0.0%"
    assert (
        latency_line
        == "latency_share was predicted with an error of at most 20.0% on 5 files, median 0.0%, rank correlation 0.90"
    )
    other = dataclasses.replace(spec, runtime=Dying())
    assert "size_bytes was predicted" not in files_note(other, members)
