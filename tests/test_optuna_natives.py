"""Somebody who knows Optuna opens a study: with optuna-dashboard, which is started here, and with plain Optuna."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, download_artifact, get_all_artifact_meta
from optuna.samplers import GPSampler, NSGAIISampler, TPESampler
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from search.cli import main
from search.results.artifacts import ARTIFACT_FOLDER
from search.study.attributes import constraints_of, put_constraints
from search.study.cleaning import _size
from search.study.front import front
from search.study.notes import MOST_NOTED, NOTE_PART, note_study, note_trial
from search.study.records import PLAN, REASON
from tests import small_study

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optuna import Study
    from optuna.samplers import BaseSampler

PAGE = Path(__file__).parent.parent / "docs" / "pages" / "optuna.md"
NAMED = """
import dataclasses

from objectives import Limit, Top1
from optuna.samplers import RandomSampler
from search import DraftStart
from small_study import splits, study as small
from spaces import BitWidths, Space, Temperatures


def limited(share):
    limits = (*small(share=share).limits, Limit(Top1(splits().validation), at_least=60))
    return dataclasses.replace(small(), name="digits", limits=limits)


def uniform():  # many plans exceed the limit on multiply-adds
    return dataclasses.replace(limited(0.3), sampler=RandomSampler)


def study():  # with a draft of few plans
    space = Space(steps=(BitWidths(weights=(2, 4, 8), activations=(8,)),), recovery=Temperatures())
    return dataclasses.replace(limited(1.0), space=space, start=DraftStart())
"""
STUDY = "natives.py:study"
STARTING_SECONDS = 60


def ran(folder: Path, patch: pytest.MonkeyPatch, *words: str) -> Path:
    """Run a study called digits; its folder is in the current one."""
    (folder / "small_study.py").write_text(Path(small_study.__file__).read_text())
    (folder / "natives.py").write_text(NAMED)
    patch.chdir(folder)
    assert main(["run", *words, "--trials", "5", "--unverified"]) == 0
    return folder / "runs" / "digits"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = ran(tmp_path_factory.mktemp("natives"), patch, STUDY)
        assert main(["report", STUDY]) == 0
        assert main(["export", STUDY, "--pick", "knee"]) == 0
        yield folder


@pytest.fixture
def study(home: Path) -> Study:
    return opened(home)


def opened(home: Path, name: str = "digits") -> Study:
    """Open a study as somebody does who has nothing but Optuna."""
    return optuna.load_study(study_name=name, storage=JournalStorage(JournalFileBackend(str(home / "journal.log"))))


@contextlib.contextmanager
def dashboard(storage: str, artifacts: Path) -> Iterator[Callable[[str], bytes]]:
    """Start the dashboard on a storage; yield a function that asks it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("optuna-dashboard")
    words = [
        str(program),
        storage,
        "--artifact-dir",
        str(artifacts),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--quiet",
    ]
    words += ["--server", "wsgiref"]

    def ask(path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            return bytes(answer.read())

    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(10 * STARTING_SECONDS):
                with contextlib.suppress(urllib.error.URLError):
                    ask("/api/meta")
                    break
                assert server.poll() is None, "the dashboard ended"
                time.sleep(0.1)
            yield ask
        finally:
            server.kill()


def details(ask: Callable[[str], bytes]) -> dict[str, dict[str, Any]]:
    """Return what the dashboard knows of each study, by name."""
    listed = json.loads(ask("/api/studies"))["study_summaries"]
    return {one["study_name"]: json.loads(ask(f"/api/studies/{one['study_id']}")) | one for one in listed}


def test_the_dashboard_shows_names_notes_and_files(home: Path) -> None:
    with dashboard(str(home / "journal.log"), home / ARTIFACT_FOLDER) as ask:
        studies = details(ask)
        assert {"digits", "digits-draft", "digits-workers"} == studies.keys()
        found = studies["digits"]
        assert found["objective_names"] == ["top1_percent", "size_bytes"]
        for words in (
            "`constraints[0]`: macs <=",
            "`constraints[1]`: top1 >= 60",
            "| size_bytes | minimized |",
            f"slimfront export {STUDY}",
            "`digits-draft` and `digits-workers` are not the result",
        ):
            assert words in found["note"]["body"]
        assert studies["digits-draft"]["objective_names"][0] == "one_shot_loss"
        assert studies["digits-draft"]["note"]["body"].startswith("# The draft of `digits`: not the result")
        assert studies["digits-workers"]["note"]["body"].startswith("# The workers of `digits`: not the result")
        files = {
            trial["trial_id"]: {meta["filename"]: meta for meta in trial["artifacts"]} for trial in found["trials"]
        }
        (exported,) = [trial_id for trial_id, metas in files.items() if "model.onnx" in metas]
        assert {"README.md", "plan.png", "verification.json"} <= files[exported].keys()
        for name, meta in files[exported].items():
            content = ask(f"/artifacts/{found['study_id']}/{exported}/{meta['artifact_id']}")
            assert content == (home / "export" / name).read_bytes()
        members = {trial._trial_id for trial in front(opened(home))}
        assert {trial_id for trial_id, metas in files.items() if "plan.png" in metas} == members


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_dashboard_shows_feasibility_and_how_trials_ended(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/study.db" if kind == "sqlite" else request.getfixturevalue("postgresql")
    folder = ran(tmp_path, monkeypatch, "natives.py:uniform", "--storage", url)
    url = url.replace("postgresql://", "postgresql+psycopg://")
    with dashboard(url, folder / ARTIFACT_FOLDER) as ask:
        found = details(ask)["digits"]
    assert found["objective_names"] == ["top1_percent", "size_bytes"]
    ends = {"Complete": ("**trained**", "**same as"), "Pruned": ("**rejected**\n\nexceeds the limit macs <=",)}
    for trial in found["trials"]:
        assert len(trial["constraints"]) == 2
        assert trial["note"]["body"].startswith(ends[trial["state"]])
        plan = next(one["value"] for one in trial["user_attrs"] if one["key"] == PLAN)
        assert trial["note"]["body"].endswith(f"\n\n{plan}")
    feasible = {trial["number"] for trial in found["trials"] if max(trial["constraints"]) <= 0}
    storage = RDBStorage(url)
    study = optuna.load_study(study_name="digits", storage=storage)
    assert {trial.number for trial in study.best_trials} <= feasible < {trial.number for trial in study.trials}
    assert {tuple(trial.values) for trial in study.best_trials} == {tuple(trial.values) for trial in front(study)}
    storage.remove_session()
    storage.engine.dispose()


def test_plain_optuna_finds_the_front_and_the_files(home: Path, study: Study, tmp_path: Path) -> None:
    assert study.metric_names == ["top1_percent", "size_bytes"]
    members = front(study)
    assert {trial.number for trial in members} <= {trial.number for trial in study.best_trials}
    limits = ["macs", "top1"]
    assert all(list(constraints_of(trial, limits)) == limits for trial in members)
    metas = {meta.filename: meta for meta in get_all_artifact_meta(study)}
    (model,) = [name for name in metas if name.endswith("model.onnx")]
    assert int(re.findall(r"\d+", model)[0]) in {trial.number for trial in members}
    download_artifact(
        artifact_store=FileSystemArtifactStore(home / ARTIFACT_FOLDER),
        artifact_id=metas[model].artifact_id,
        file_path=str(tmp_path / "model.onnx"),
    )
    assert (tmp_path / "model.onnx").read_bytes() == (home / "export" / "model.onnx").read_bytes()


def test_no_file_is_stored_twice(home: Path, study: Study) -> None:
    (model,) = [meta for meta in get_all_artifact_meta(study) if meta.filename.endswith("model.onnx")]
    artifact = home / ARTIFACT_FOLDER / model.artifact_id
    assert artifact.samefile(home / "export" / "model.onnx")
    assert artifact.stat().st_nlink == 3
    once = {path.stat().st_ino: path.stat().st_size for path in home.rglob("*") if path.is_file()}
    assert _size(home) == sum(once.values())


def test_an_export_replaces_the_artifacts_of_its_trial(home: Path, study: Study) -> None:
    before = {meta.filename: meta.artifact_id for meta in get_all_artifact_meta(study)}
    assert main(["export", STUDY, "--pick", "knee", "--replace", "--io", "uint8"]) == 0
    assert {meta.filename: meta.artifact_id for meta in get_all_artifact_meta(opened(home))} == before
    (model,) = [number for name, number in before.items() if name.endswith("model.onnx")]
    assert (home / ARTIFACT_FOLDER / model).samefile(home / "export" / "model.onnx")


@pytest.mark.parametrize("name", ["digits", "digits-draft"])
def test_the_table_of_trials_has_scalars_with_plain_names(home: Path, name: str) -> None:
    table = opened(home, name).trials_dataframe()
    assert {"user_attrs_plan", f"values_{opened(home, name).metric_names[0]}"} <= set(table.columns)  # type: ignore[index]
    if name == "digits":
        assert {"user_attrs_measured:macs", "user_attrs_measured:top1", "user_attrs_cpu_seconds"} <= set(table.columns)
        assert any(column.startswith("user_attrs_excess:macs <= ") for column in table.columns)
    ours = [column for column in table.columns if not column.startswith("system_attrs_")]  # these are Optuna's
    for column in ours:
        kinds = {type(value) for value in table[column] if not isinstance(value, str | Real)}
        assert {kind.__name__ for kind in kinds} <= {"NoneType", "Timestamp", "Timedelta", "NaTType"}, column
    optunas = {column.split(":")[0] for column in table.columns if column.startswith("system_attrs_")}
    assert optunas <= {"system_attrs_fixed_params", "system_attrs_constraints", "system_attrs_tpe"}


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(("kind", "trials"), [(TPESampler, 60), (NSGAIISampler, 60), (GPSampler, 16)])
def test_samplers_of_optuna_keep_to_the_constraints(kind: Callable[..., BaseSampler], trials: int) -> None:
    """What is maximized grows with x; with the constraints, more than 0.5 is infeasible."""
    means = []
    for constrained in (True, False):
        sampler = kind(seed=0, population_size=10, mutation_prob=0.1) if kind is NSGAIISampler else kind(seed=0)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for _ in range(trials):
            trial = study.ask()
            x = trial.suggest_float("x", 0, 1)
            put_constraints(trial, [x - 0.5, -1.0] if constrained else [])
            study.tell(trial, x)
        means.append(statistics.fmean(trial.params["x"] for trial in study.trials[-trials // 4 :]))
        if constrained:
            assert study.best_value == max(trial.params["x"] for trial in study.trials if trial.params["x"] <= 0.5)
    assert means[0] < means[1] - 0.15


def test_the_dashboard_reads_long_notes_and_what_somebody_writes_stays() -> None:
    from optuna_dashboard import get_note, save_note  # noqa: PLC0415 - as its users do

    study = optuna.create_study()
    text = "word " * NOTE_PART
    note_study(study, text)
    assert get_note(study) == text
    save_note(study, "mine")
    note_study(study, text)
    assert get_note(study) == "mine"


def test_a_note_says_how_a_trial_ended_and_later_trials_have_none() -> None:
    from optuna_dashboard import get_note  # noqa: PLC0415 - the same

    study = optuna.create_study()
    attributes = {PLAN: "head: 4 bit", REASON: "exceeds the limit macs <= 3"}
    for _ in range(MOST_NOTED + 1):
        study.add_trial(create_trial(state=TrialState.PRUNED, user_attrs=attributes))
    for trial in (study.trials[7], study.trials[-1]):
        note_trial(study, trial)
    shown = get_note(optuna.trial.Trial(study, study.trials[7]._trial_id))
    assert shown == "**rejected**\n\nexceeds the limit macs <= 3\n\nhead: 4 bit"
    assert get_note(optuna.trial.Trial(study, study.trials[-1]._trial_id)) == ""


def test_the_page_on_optuna_is_right(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python runs, its attributes are those of the study, and its commands are those of the dashboard."""
    monkeypatch.chdir(home.parent.parent)
    page = PAGE.read_text()
    space: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, space)  # noqa: S102 - the page is ours
    assert space["study"].study_name == "digits"
    assert space["copied"].read_bytes() == (home / "export" / "model.onnx").read_bytes()
    described = set(re.findall(r"^\| `([a-z_0-9]+:?)", page, re.MULTILINE))
    for name in ("digits", "digits-draft"):
        stored = {key for trial in opened(home, name).trials for key in trial.user_attrs}
        assert {key.partition(":")[0] + ":" * (":" in key) for key in stored} <= described
    help_text = subprocess.run(
        [Path(sys.executable).with_name("optuna-dashboard"), "--help"], capture_output=True, text=True, check=True
    ).stdout
    for option in re.findall(r"optuna-dashboard .*(--[a-z-]+)", page):
        assert option in help_text
