"""What is loaded is compared with what was recorded: weights, records, plans, and the code of the teacher."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from optuna.trial import TrialState
from safetensors.torch import load_file, save_file

from search.cli import main
from search.evaluation.answers import ensure_same_answers
from search.evaluation.reference import teacher_file
from search.export import rebuild
from search.proposals.defaults import resolved
from search.results.confirm import confirm, weights_of
from search.results.export import export, verify_front
from search.results.recorded import ensure_as_recorded, restored
from search.study.errors import UserError
from search.study.front import front
from search.study.marks import MARK
from search.study.records import ANSWERS, WEIGHTS
from search.study.storage import open_study
from search.study.weights import save_state, state_path
from spaces import deployed
from tests.small_study import Net, context, study

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.evaluation.context import Context

STUDY = "my_study.py:study"
FORWARD = """
import dataclasses
from torch.nn import functional as F
from tests import small_study

class Net(small_study.Net):
    def forward(self, images):
        images = F.relu(self.first_norm(self.first(images)))
        images = F.relu(self.second_norm(self.second(images)))
        return self.head(F.max_pool2d(images, 2).flatten(1))

def study():
    net = Net()
    net.load_state_dict(small_study.teacher().state_dict())
    return dataclasses.replace(small_study.study(4), teacher=net.eval())
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    (folder / "my_study.py").write_text(FORWARD)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", STUDY]) == 0
    return folder


@pytest.fixture
def workdir(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of a finished study, as the working directory."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def home(workdir: Path) -> Path:
    return workdir / "runs" / "small"


@pytest.fixture
def found(home: Path) -> Study:
    return open_study(resolved(study(4)), home, None, create=False)


@pytest.fixture(scope="module")
def shared() -> Context:
    return context(study(4))


def change(path: Path, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change the floats in a file of weights."""
    save_file({name: function(tensor) if tensor.is_floating_point() else tensor
               for name, tensor in load_file(path).items()}, path)  # fmt: skip


FAULTS: dict[str, Callable[[Path], Any]] = {
    "noise": lambda path: change(path, lambda tensor: tensor + 0.3 * torch.randn_like(tensor)),
    "little noise": lambda path: change(path, lambda tensor: tensor * 1.0001),
    "nan": lambda path: change(path, lambda tensor: tensor * torch.nan),
    "infinite": lambda path: change(path, lambda tensor: tensor / 0),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "one bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "another network": lambda path: save_state(Net(), path),
    "a folder": lambda path: (path.rename(f"{path}.old"), Path(path).mkdir()),  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("fault", FAULTS)
def test_changed_weights_are_not_exported(
    fault: str, home: Path, found: Study, shared: Context, tmp_path: Path
) -> None:
    trial = front(found)[0]
    FAULTS[fault](state_path(home, trial.number))
    message = (
        rf"{trial.number}.safetensors.*; train it anew with: slimfront confirm STUDY --pick {trial.number} --seeds 1"
    )
    with pytest.raises(UserError, match=message) as raised:
        export(trial, shared, weights_of(home, trial), tmp_path / "out", tmp_path)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def without_checksum(trial: FrozenTrial) -> FrozenTrial:
    """Return a trial as version 0.1 stored it."""
    earlier = copy.deepcopy(trial)
    earlier.set_user_attr(WEIGHTS, None)
    return earlier


@pytest.mark.parametrize("fault", ["noise", "nan", "infinite", "cut", "another network"])
def test_changed_weights_of_version_0_1_are_found_by_what_they_measure(
    fault: str, home: Path, found: Study, shared: Context, tmp_path: Path
) -> None:
    trial = without_checksum(front(found)[0])
    FAULTS[fault](state_path(home, trial.number))
    message = "is damaged|holds the weights of another" if fault in {"cut", "another network"} else (
        r"top1 of the network of trial \d+ is \S+, but \S+ was recorded when it was trained, so .* or the code of the "
        r"network was changed; undo the change, or train it anew with: slimfront confirm STUDY --pick \d+ --seeds 1"
    )  # fmt: skip
    with pytest.raises(UserError, match=message):
        export(trial, shared, weights_of(home, trial), tmp_path / "out", tmp_path)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_candidate_measures_what_was_recorded_on_any_number_of_threads(
    home: Path, found: Study, shared: Context, threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for trial in front(found):
            weights = state_path(home, trial.number)
            _, model = restored(trial, shared, weights)
            ensure_as_recorded(trial, weights, model, deployed(model, shared.subject.example), shared.spec)
    finally:
        torch.set_num_threads(before)


def test_damaged_weights_of_one_member_do_not_keep_the_others_from_their_verification(
    home: Path, found: Study, shared: Context
) -> None:
    members = [(trial, state_path(home, trial.number)) for trial in front(found)]
    assert len(members) > 1
    FAULTS["nan"](members[0][1])
    shutil.rmtree(home / "verified")
    (failure,) = verify_front(members, shared, home, teacher_file(shared.subject, shared.spec.runtime, home))
    assert failure.startswith(f"trial {members[0][0].number}: {members[0][1]} is damaged: it differs from the checksum")
    records = {path.name for path in (home / "verified" / "onnx").iterdir()}
    first, *others = (trial.number for trial, _ in members)
    assert records == {f"{first}.failed.json", *(f"{number}.json" for number in others)}


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", "{}", '{"file_bytes": 3}', "changed", "other"])
def test_a_damaged_verification_record_counts_as_missing_and_is_made_anew(
    damage: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = min(path for path in (home / "verified" / "onnx").iterdir() if path.stem.isdigit())
    record = json.loads(path.read_text())
    if damage == "changed":
        path.write_text(json.dumps(record | {"top1_file": 100.0}))
    elif damage == "other":
        shutil.copy(home / "study.json", path)
    else:
        path.write_text(damage)
    assert main(["front", STUDY]) == 0
    words = " ".join(capsys.readouterr().err.split())
    assert f"{path.name} is" in words
    assert "the file is verified again by: slimfront confirm STUDY --seeds 0" in words
    if damage in {"{", "changed"}:
        assert main(["confirm", STUDY, "--seeds", "0"]) == 0
        made = json.loads(path.read_text())
        assert made["top1_file"] == record["top1_file"]
        assert main(["front", STUDY]) == 0
        assert "verified again" not in capsys.readouterr().err.rpartition("slimfront confirm")[2]


@pytest.mark.parametrize("what", ["record", "weights", "both"])
def test_a_damaged_confirmation_is_not_exported_and_is_trained_again(
    what: str, home: Path, found: Study, shared: Context, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = front(found)[0]
    first = confirm([trial], shared, home, 1)
    weights = weights_of(home, trial)
    assert weights.parent.name == "confirmed"
    if what != "weights":
        weights.with_suffix(".json").write_text('{"values": {"validation_top1"')
    if what != "record":
        FAULTS["noise"](weights)
    with pytest.raises(UserError, match=r"(is damaged|cannot be used).*; train it anew with: slimfront confirm"):
        export(trial, shared, weights, tmp_path / "out", tmp_path)
    assert confirm([trial], shared, home, 1) == first
    assert "the member is trained again" in " ".join(capsys.readouterr().err.split())
    _, model = restored(trial, shared, weights_of(home, trial))
    ensure_as_recorded(trial, weights, model, deployed(model, shared.subject.example), shared.spec)


def test_a_training_does_not_continue_from_damaged_weights(
    workdir: Path, home: Path, found: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = front(found)[0]
    for _ in found.get_trials(states=(TrialState.WAITING,)):
        found.tell(found.ask(), state=TrialState.FAIL)
    found.enqueue_trial(trial.params, user_attrs={"asked_epochs": 3})
    FAULTS["nan"](state_path(home, trial.number))
    assert main(["run", STUDY, "--trials", "5", "--unverified"]) == 0
    assert "is damaged: it differs from the checksum" in " ".join(capsys.readouterr().err.split())
    last = open_study(resolved(study(4)), home, None, create=False).trials[-1]
    assert last.values[0] > 50


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished)
        assert main(["export", STUDY, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize(
    "plan",
    ["", "{", "[1]", "3", "{}", '{"plan": 3}', '{"plan": {}, "inputs": {}}', '{"plan": {"kind": "Plan"}}',
     '{"plan": {"kind": "os.system", "command": "touch executed"}, "inputs": {"shape": [1], "type": "float32"}}',
     '{"plan": {"kind": "Prune", "ratios": 3}, "inputs": {"shape": [1], "type": "float32"}}',
     '{"plan": {"kind": "Plan", "steps": 3}, "inputs": {"shape": [1, 8, 8], "type": "float32"}}',
     '{"plan": {"kind": "Plan", "steps": [7], "recovery": 1}, "inputs": {"shape": [1, 8, 8], "type": "float32"}}',
     '{"plan": {"kind": "Plan", "steps": [], "recovery": null}, "inputs": {"shape": "wide", "type": "float32"}}',
     '{"plan": {"kind": "Plan", "steps": [], "recovery": null}, "inputs": {"shape": [1, 8, 8], "type": "load"}}',
     '{"plan": {"kind": "Plan", "steps": [], "recovery": null}, "inputs": {"shape": [-1], "type": "float32"}}'],
)  # fmt: skip
def test_a_damaged_plan_is_told_in_one_line(plan: str, exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    (tmp_path / "plan.json").write_text(plan)
    with pytest.raises(UserError) as raised:
        rebuild(Net(), tmp_path)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)
    assert not Path("executed").exists()


class Executes:
    """A pickle of it creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.mkdir, (self.path,)


def test_a_pickle_in_place_of_weights_is_not_unpickled(exported: Path, tmp_path: Path) -> None:
    folder, created = tmp_path / "export", tmp_path / "created"
    shutil.copytree(exported, folder)
    (folder / MARK).unlink()  # without it there is no checksum that differs
    torch.save({"first.weight": Executes(created)}, tmp_path / "weights.pt")
    shutil.copy(tmp_path / "weights.pt", folder / "state.safetensors")
    with pytest.raises(UserError, match="it is no safetensors file"):
        rebuild(Net(), folder)
    assert not created.exists()
    torch.load(tmp_path / "weights.pt", weights_only=False)  # what reading it as a pickle does
    assert created.exists()


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "another network"])
def test_damaged_weights_of_an_export_are_told_in_one_line(fault: str, exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    FAULTS[fault](tmp_path / "state.safetensors")
    with pytest.raises(UserError, match=r"must contain plan.json and state.safetensors as .*; copy"):
        rebuild(Net(), tmp_path)


EDITS = {
    "another activation": ("F.relu(self.second_norm", "F.leaky_relu(self.second_norm"),
    "a scaled answer": ("return self.head(", "return 1.01 * self.head("),
    "a shifted answer": ("return self.head(", "return 0.01 + self.head("),
    "a norm left out": ("self.second_norm(self.second(images))", "self.second(images)"),
    "another pooling": ("F.max_pool2d", "F.avg_pool2d"),
    "permuted classes": (".flatten(1))", ".flatten(1))[:, [0, 1, 3, 2]]"),
    "a flipped input": ("self.first(images)", "self.first(images.flip(-1))"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_teacher_whose_forward_was_edited_is_noticed(
    edit: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = workdir / "my_study.py"
    assert EDITS[edit][0] in FORWARD
    file.write_text(FORWARD.replace(*EDITS[edit]))
    commands = [["export", "--out", "out"], ["report"], ["confirm"], ["run", "--trials", "9"]]
    for command, *words in commands if edit == "a scaled answer" else commands[:1]:
        assert main([command, STUDY, *words]) == 2
        words_printed = " ".join(capsys.readouterr().err.split())
        assert "a teacher that has the same weights but other answers" in words_printed
        assert "undo that, or start another study with --folder" in words_printed
    assert not (workdir / "out").exists()


def test_the_same_computation_in_other_words_is_the_same_teacher(workdir: Path, found: Study) -> None:
    other = FORWARD.replace("F.relu(self.second_norm", "(1.0 * self.second_norm").replace(
        "(self.second(images)))\n", "(self.second(images))).clamp(min=0) * 3 / 3\n", 1
    )
    (workdir / "my_study.py").write_text(other)
    before = found.user_attrs[ANSWERS]
    assert main(["report", STUDY]) == 0
    assert open_study(resolved(study(4)), workdir / "runs" / "small", None, create=False).user_attrs[ANSWERS] == before


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_answers_are_the_same_on_any_number_of_threads(found: Study, shared: Context, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ensure_same_answers(found, shared.subject)
    finally:
        torch.set_num_threads(before)


def test_a_study_without_answers_gets_them(found: Study, shared: Context) -> None:
    stored = found.user_attrs[ANSWERS]
    found.set_user_attr(ANSWERS, None)
    ensure_same_answers(found, shared.subject)
    assert found.user_attrs[ANSWERS] == stored
    assert len(json.dumps(stored)) < 20_000


def test_other_calibration_inputs_are_told_and_nothing_is_compared(
    found: Study, shared: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    other = copy.copy(shared.subject)
    other.example = shared.subject.example.flip(0)
    ensure_same_answers(found, other)
    assert "the calibration inputs are not those" in " ".join(capsys.readouterr().err.split())


def test_a_teacher_that_draws_random_numbers_is_not_compared(found: Study, shared: Context) -> None:
    class Random(Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images + torch.rand_like(images))

    random = copy.copy(shared.subject)
    random.normal = Random().eval()
    found.set_user_attr(ANSWERS, None)
    ensure_same_answers(found, random)
    assert found.user_attrs[ANSWERS] is None
