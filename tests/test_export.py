"""Export: the files, the truth of their measurements, and files that do not compute what the network does."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from typing import TYPE_CHECKING, Any

import onnx
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from objectives.runtimes import ExportError, OnnxRuntime, Precision
from search import Budget
from search.evaluation.reference import teacher_file
from search.evaluation.trial import key_of
from search.results.confirm import weights_of
from search.results.export import VerificationTime, export, verify_front
from search.results.exported import rebuild
from search.results.file_records import record_path
from search.results.interface import Interface
from search.results.recorded import restored
from search.results.verification import Disagreement, record_words, verify
from search.study.budget_clock import BudgetClock
from search.study.errors import UserError
from search.study.front import front
from search.study.marks import MARK
from search.study.records import KEY
from search.study.weights import state_path
from spaces import deployed
from tests.small_study import Net, context, searched, splits, study

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from optuna import Study
    from optuna.trial import FrozenTrial

    from objectives.runtimes.file_layout import FileLayout
    from search import StudySpec
    from search.evaluation.context import Context

EXPORTED_FILES = ["README.md", "model.onnx", "plan.json", "plan.png", MARK, "state.safetensors", "verification.json"]
IMAGES = splits().validation.inputs


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def found(home: Path) -> Study:
    return searched(study(8), home)


@pytest.fixture(scope="module")
def shared(found: Study) -> Context:
    return context(study(8))


@pytest.fixture(scope="module")
def exported(home: Path, found: Study, shared: Context) -> Path:
    """Return the folder of one export, with every kind of step in its plan."""
    trial = front(found)[0]
    export(
        trial, shared, weights_of(home, trial), home / "export", teacher_file(shared.subject, shared.spec.runtime, home)
    )
    return home / "export"


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "verification.json").read_text())  # type: ignore[no-any-return]


def test_an_export_consists_of_six_files_and_their_mark(exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == EXPORTED_FILES


def test_no_temporary_file_is_left(exported: Path, home: Path) -> None:
    assert not [path for path in home.rglob("*") if path.name.startswith(".")]


def test_the_verification_agrees_with_the_file(exported: Path) -> None:
    record, labels = record_of(exported), splits().validation.labels
    actual = OnnxRuntime().load(exported / "model.onnx")(IMAGES)
    assert record["samples"] == len(labels)
    assert record["top1_file"] == 100 * float((actual.argmax(1) == labels).double().mean())
    assert record["file_bytes"] == (exported / "model.onnx").stat().st_size
    expected = rebuild(Net(), exported)(IMAGES)
    assert record["top1_torch"] == 100 * float((expected.argmax(1) == labels).double().mean())
    assert record["agreement_percent"] == 100 * float((expected.argmax(1) == actual.argmax(1)).double().mean())
    assert record["sqnr_db"] > 15
    assert record["latency"]["ratio"] > 0


def test_the_verification_names_its_study_and_trial(exported: Path, found: Study) -> None:
    record, trial = record_of(exported), front(found)[0]
    assert (record["study"], record["trial"], record["runtime"]) == ("small", trial.number, "onnx")
    assert record["searched"]["top1"] == trial.values[0]
    words = record_words(record)
    assert f"top-1 {record['top1_file']:.2f}% from the file" in words
    assert f"{record['file_bytes']:,} bytes" in words


def test_the_file_of_the_teacher_computes_what_the_teacher_does(shared: Context, home: Path) -> None:
    path = teacher_file(shared.subject, shared.spec.runtime, home)
    torch.testing.assert_close(
        OnnxRuntime().load(path)(IMAGES), shared.subject.model(IMAGES).detach(), rtol=1e-4, atol=1e-4
    )
    written = path.stat().st_mtime_ns
    assert teacher_file(shared.subject, shared.spec.runtime, home).stat().st_mtime_ns == written


@pytest.mark.parametrize("change", [lambda y: 1.1 * y, lambda y: y.flip(1), lambda y: y * torch.nan])
def test_a_runtime_that_computes_something_else_is_found_before_the_search(
    change: Callable[[Tensor], Tensor], shared: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = OnnxRuntime.load
    monkeypatch.setattr(OnnxRuntime, "load", lambda self, path: lambda x: change(load(self, path)(x)))
    with pytest.raises(ExportError, match="the file of the teacher must answer as the network does, but onnx computes"):
        teacher_file(shared.subject, shared.spec.runtime, tmp_path)
    assert not list(tmp_path.iterdir())


def test_plan_and_weights_rebuild_the_network_bit_for_bit(
    exported: Path, found: Study, shared: Context, home: Path
) -> None:
    trial = front(found)[0]
    _, original = restored(trial, shared, weights_of(home, trial))
    torch.manual_seed(77)
    again = rebuild(Net(), exported)
    assert not again.training
    assert again(IMAGES).equal(original(IMAGES))
    again_finished, finished = (deployed(network, IMAGES[:64]) for network in (again, original))
    assert again_finished(IMAGES).equal(finished(IMAGES))


@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_member_of_the_front_is_rebuilt_from_its_plan(found: Study, shared: Context, home: Path, place: int) -> None:
    trial = front(found)[place]
    assert key_of(shared.plan(trial.params)) == trial.user_attrs[KEY]
    _, network = restored(trial, shared, state_path(home, trial.number))
    finished = shared.subject.finish(network)
    objectives = study(8).objectives  # those of `found`: sizes in `shared` are calibrated on the teacher's file
    assert [objective(finished) for objective in objectives] == trial.values
    assert load_file(state_path(home, trial.number)).keys() == network.state_dict().keys()


def test_a_folder_without_an_export_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must contain plan.json and state.safetensors as export writes them"):
        rebuild(Net(), tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"must contain plan.json"):
        rebuild(Net(), tmp_path)


def test_missing_weights_are_reported(found: Study, shared: Context, tmp_path: Path) -> None:
    trial = front(found)[0]
    message = (
        r"the weights of trial \d+ are missing: .*/candidates/\d+.safetensors; "
        r"name the folder of the study with --folder"
    )
    with pytest.raises(UserError, match=message):
        restored(trial, shared, state_path(tmp_path, trial.number))


def tamper(path: Path, change: Callable[[Any], Any]) -> None:
    """Change the largest constant of a file."""
    model = onnx.load(path)
    largest = max(model.graph.initializer, key=lambda constant: len(constant.raw_data))
    largest.raw_data = change(largest.raw_data)
    onnx.save(model, path)


def test_a_changed_file_fails_its_verification(
    exported: Path, found: Study, shared: Context, home: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    shutil.copy(exported / "model.onnx", path)
    tamper(path, lambda raw: raw[::-1])
    trial = front(found)[0]
    _, network = restored(trial, shared, weights_of(home, trial))
    message = (
        r"the exported file must give the outputs of the torch network, but its top1 is .* instead of .* and they "
        r"agree on .*% of 100 samples, of at least 99.00%; nothing was written"
    )
    with pytest.raises(Disagreement, match=message):
        verify(
            Interface(network, shared.spec.splits.validation),
            path,
            shared.spec,
            teacher_file(shared.subject, shared.spec.runtime, home),
        )


@dataclasses.dataclass(frozen=True)
class Tampering:
    """ONNX Runtime, but its files do not compute what the network does."""

    honest: OnnxRuntime = dataclasses.field(default_factory=OnnxRuntime)
    name: str = "onnx"
    threads: int = 1
    suffix: str = "onnx"
    channels: int = 8
    layout: FileLayout = dataclasses.field(default_factory=lambda: OnnxRuntime().layout)

    integers_only = False

    def precisions(self, kind: str, groups: int) -> tuple[Precision, ...]:
        return self.honest.precisions(kind, groups)

    def export(self, model: nn.Module, example: Tensor, path: Path) -> None:
        self.honest.export(model, example, path)
        tamper(path, lambda raw: raw[::-1])

    def load(self, path: Path) -> Callable[[Tensor], Tensor]:
        return self.honest.load(path)


def tampered(spec: StudySpec) -> Context:
    return context(dataclasses.replace(spec, runtime=Tampering()))


def test_an_export_that_disagrees_leaves_no_file(found: Study, home: Path, tmp_path: Path) -> None:
    trial, tampering = front(found)[0], tampered(study(8))
    with pytest.raises(Disagreement, match="nothing was written"):
        export(
            trial,
            tampering,
            weights_of(home, trial),
            tmp_path / "export",
            teacher_file(tampering.subject, tampering.spec.runtime, home),
        )
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_disagrees_keeps_an_earlier_one(exported: Path, found: Study, home: Path) -> None:
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    trial, tampering = front(found)[0], tampered(study(8))
    with pytest.raises(Disagreement):
        export(
            trial,
            tampering,
            weights_of(home, trial),
            exported,
            teacher_file(tampering.subject, tampering.spec.runtime, home),
        )
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before


def test_the_front_is_verified_once_and_failures_are_reported(
    found: Study, shared: Context, home: Path, tmp_path: Path
) -> None:
    member: FrozenTrial = front(found)[0]
    reference = teacher_file(shared.subject, shared.spec.runtime, tmp_path)
    shutil.copytree(home / "candidates", tmp_path / "candidates")
    with_weights = [(member, state_path(tmp_path, member.number))]
    assert verify_front(with_weights, tampered(study(8)), tmp_path, reference) != []
    assert not record_path(tmp_path, member, shared.spec.runtime).exists()
    assert verify_front(with_weights, shared, tmp_path, reference) == []
    assert record_path(tmp_path, member, shared.spec.runtime).exists()
    assert verify_front(with_weights, tampered(study(8)), tmp_path, reference) == []


def test_files_are_not_verified_once_the_time_is_over(
    found: Study, shared: Context, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    member: FrozenTrial = front(found)[0]
    reference = teacher_file(shared.subject, shared.spec.runtime, tmp_path)
    shutil.copytree(home / "candidates", tmp_path / "candidates")
    with_weights = [(member, state_path(tmp_path, member.number))]
    over = BudgetClock(Budget(None, minutes=1), wall=time.monotonic() - 61)
    assert verify_front(with_weights, shared, tmp_path, reference, over) == []
    assert not record_path(tmp_path, member, shared.spec.runtime).exists()
    assert "the time is over: 1 of 1 files of the front are not verified" in " ".join(capsys.readouterr().err.split())
    planned = VerificationTime(shared, tmp_path, reference, wall=True)
    assert planned.of(with_weights) == 0, "it was verified to learn how long that takes"
    assert record_path(tmp_path, member, shared.spec.runtime).exists()
    second = front(found)[1]
    assert planned.of([*with_weights, (second, state_path(tmp_path, second.number))]) > 0
    assert planned.of([*with_weights, (second, tmp_path / "none")]) == 0
    assert verify_front([(second, tmp_path / "none")], shared, tmp_path, reference) == []
    assert f"trials {second.number} are not verified" in capsys.readouterr().err
