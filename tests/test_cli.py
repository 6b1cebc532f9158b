"""The commands: their tables, their errors, and that stopping loses no finished work."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from objectives.runtimes import RUNTIMES, ExportError, OnnxRuntime
from search.cli import main
from search.results.artifacts import ARTIFACT_FOLDER
from search.study.front import trained, trained_count
from search.study.records import KEY, REASON
from tests import small_study

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
STUDY = "my_study.py:study"
VARIANTS = """
import dataclasses
import torch
from objectives import Examples, Macs
from spaces import BitWidths, PruneRatios, Ranks, Space, Temperatures
from my_study import splits, study

def _space(**axes):
    return dataclasses.replace(study(), space=Space(steps=tuple(axes.values()), recovery=Temperatures()))

def layer():
    return _space(bits=BitWidths(only=("secnod",)))

def rank():
    return _space(ranks=Ranks(only=("heat",)))

def group():
    return _space(prune=PruneRatios(only=("frist",)))

def tight():
    return study(share=0.01)

def labels():
    data = splits()
    wrong = Examples(data.train.inputs, data.train.labels + 3)
    return dataclasses.replace(study(), splits=dataclasses.replace(data, train=wrong))

def shape():
    data = splits()
    wide = Examples(data.train.inputs.repeat(1, 3, 1, 1), data.train.labels)
    return dataclasses.replace(study(), splits=dataclasses.replace(data, train=wide))

def counted():
    return Macs(torch.zeros(1, 3, 8, 8))(study().teacher)

def number():
    return 3

def named():
    return dataclasses.replace(study(), name="a/b")

def needs(data):
    return study()

def gone():
    return torch.load("nowhere.pt")
"""
BROKEN = "def study(:\n"


@pytest.fixture(autouse=True)
def _without_lines_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine anything may take so long that it is shown; here the other lines are of interest."""
    monkeypatch.setattr("search.study.console.SILENT_SECONDS", 600.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the file of a study that has been run."""
    folder = tmp_path_factory.mktemp("finished")
    write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", STUDY]) == 0
    return folder


def write(folder: Path) -> None:
    """Write the files of the studies to a folder."""
    shutil.copy(small_study.__file__, folder / "my_study.py")
    (folder / "variants.py").write_text(VARIANTS)
    (folder / "broken.py").write_text(BROKEN)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the file of a study that has not been run; it is the working directory."""
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def finished_dir(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder of the study that has been run, as the working directory; commands must keep its files.

    They may add to its journal, as `export` and `report` do, which note their files as artifacts.
    """
    monkeypatch.chdir(finished)
    before = content(finished)
    yield finished
    after = content(finished)
    for path in [path for path in before if path.name == "journal.log"]:
        after[path] = after[path][: len(before[path])]
    assert {path: after.get(path) for path in before} == before


def content(folder: Path) -> dict[Path, bytes]:
    """Return the content of all files except what is renewed: verification records, and artifacts by new files."""
    left_out = {"__pycache__", "verified", ARTIFACT_FOLDER}
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not left_out & {*path.parts}}


def opened(folder: Path) -> optuna.Study:
    """Return the stored study."""
    storage = JournalStorage(JournalFileBackend(str(folder / "runs" / "small" / "journal.log")))
    return optuna.load_study(study_name="small", storage=storage)


def plans(study: optuna.Study) -> list[tuple[str, tuple[float, ...]]]:
    """Return the digest of the plan and the values of every complete trial."""
    return [
        (trial.user_attrs[KEY], tuple(trial.values)) for trial in study.trials if trial.state == TrialState.COMPLETE
    ]


@dataclasses.dataclass(frozen=True)
class Renamed(OnnxRuntime):
    """ONNX Runtime under another name, so that no other extra is needed."""

    @property
    def name(self) -> str:
        return "renamed"


COMMANDS = ("inspect", "run", "front", "report", "confirm", "export")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"example: slimfront {command} studies/digits.py:study" in " ".join(capsys.readouterr().out.split())


def test_the_help_of_slimfront_names_every_command() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "search", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert all(f"    {command} " in result.stdout for command in COMMANDS)
    assert "slimfront run studies/digits.py:study" in " ".join(result.stdout.split())


NO_STUDY = "/runs/small; start it with slimfront run, or name its folder with --folder"

# By name of the mistake: the arguments, and a part of the one line on standard error.
ERRORS_BEFORE_RUN: dict[str, tuple[list[str], str]] = {
    "no such file": (["run", "nowhere.py:study"], "no file nowhere.py; give the path of the file with the study"),
    "no such module": (
        ["run", "nowhere.at:study"],
        "nowhere.at cannot be imported: ModuleNotFoundError: No module named 'nowhere'",
    ),
    "no function": (
        ["run", "my_study.py"],
        (
            "a study must be named as file.py:function or package.module:function, for example "
            "studies/digits.py:study, but got 'my_study.py'"
        ),
    ),
    "unknown function": (["run", "my_study.py:studdy"], "no function is called 'studdy'; the nearest are: study"),
    "a syntax error": (["run", "broken.py:study"], "broken.py cannot be imported: SyntaxError: invalid syntax"),
    "no study": (["run", "variants.py:number"], "must return a StudySpec, but it returned int"),
    "unknown setting": (["run", STUDY, "--set", "trails=3"], "no setting is called 'trails'; the nearest are: trials"),
    "no setting": (["run", STUDY, "--set", "trials"], "--set takes name=value, but got 'trials'"),
    "setting of another type": (["run", STUDY, "--set", "trials=x"], "trials must be of type int, but got 'x'"),
    "a setting that is needed": (
        ["run", "variants.py:needs"],
        "needs a value for 'data'; give it with --set data=VALUE",
    ),
    "unknown layer to quantize": (["run", "variants.py:layer"], "no layer is called 'secnod'; the nearest are: second"),
    "unknown layer to split": (["run", "variants.py:rank"], "no layer is called 'heat'; the nearest are: head"),
    "unknown group": (["run", "variants.py:group"], "no group of channels is called 'frist'; the nearest are: first"),
    "unknown layer to inspect": (
        ["inspect", "variants.py:layer"],
        "no layer is called 'secnod'; the nearest are: second",
    ),
    "no data": (
        ["run", str(ROOT / "studies" / "fashion_mnist.py") + ":residual", "--set", "data=/nowhere"],
        "no train-images-idx3-ubyte(.gz) in /nowhere; name the folder of the four IDX files",
    ),
    "labels": (
        ["run", "variants.py:labels"],
        "labels must be in [0, 4), for the outputs of the teacher, but the train",
    ),
    "a forward that fails": (
        ["run", "variants.py:shape"],
        "the network must accept the example, but its forward failed",
    ),
    "a forward that fails in the study": (
        ["run", "variants.py:counted"],
        "variants.py:counted: RuntimeError: Given groups=1",
    ),
    "a file that the study reads is missing": (["run", "variants.py:gone"], "'nowhere.pt' (variants.py, line "),
    "the name of the study": (
        ["run", "variants.py:named"],
        (
            "a study's name must start with a letter or digit and consist of letters, digits, '.', '_' and '-', but "
            "got 'a/b'; it becomes the name of a folder"
        ),
    ),
    "a folder below a file": (["run", STUDY, "--folder", "my_study.py/x"], "cannot write to my_study.py/x: Not a dir"),
    "a storage of no kind": (
        ["run", STUDY, "--storage", "nothing://x"],
        "--storage must name a database that SQLAlchemy knows",
    ),
    "a study that was not run": (
        ["front", STUDY],
        NO_STUDY,
    ),
    "a report before the run": (
        ["report", STUDY],
        NO_STUDY,
    ),
    "an export before the run": (
        ["export", STUDY],
        NO_STUDY,
    ),
    "confirming before the run": (
        ["confirm", STUDY],
        NO_STUDY,
    ),
}


@pytest.mark.parametrize("mistake", ERRORS_BEFORE_RUN)
def test_a_mistake_before_the_run_is_reported_in_one_line_and_changes_no_file(
    workdir: Path, mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = ERRORS_BEFORE_RUN[mistake]
    before = content(workdir)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("slimfront: ")
    assert message in printed.err
    assert printed.out == ""
    after = content(workdir)
    for path in [path for path in before if path.name == "journal.log"]:
        after[path] = after[path][: len(before[path])]
    assert {path: after.get(path) for path in before} == before


def test_a_limit_that_no_plan_can_meet_is_reported_before_any_training(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "variants.py:tight"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "the limit macs <= 139.52 cannot be met: the nearest plan reaches macs" in last
    assert "loosen only this limit, to" in last
    assert not (workdir / "runs" / "small" / "candidates").exists()


def test_after_an_error_the_corrected_study_runs(workdir: Path) -> None:
    assert main(["run", "variants.py:tight"]) == 2
    assert main(["run", "variants.py:layer"]) == 2
    assert main(["run", STUDY, "--trials", "1", "--unverified"]) == 0


# The same for a study that has been run.
ERRORS_AFTER_RUN: dict[str, tuple[list[str], str]] = {
    "another seed": (
        ["run", STUDY, "--seed", "3"],
        "stored with another definition: seed was 0, is 3; undo the change",
    ),
    "another limit": (["front", STUDY, "--set", "share=0.9"], "limits[0].at_most was 8371.199999999999, is 12556.8"),
    "another recipe": (["run", STUDY, "--set", "epochs=2"], "recipe.epochs was 1, is 2"),
    "no member": (["export", STUDY, "--pick", "77"], "trial 77 is not on the front; its members are"),
    "no sentence": (
        ["export", STUDY, "--pick", "the best"],
        (
            "a pick must be 'goal', 'knee', the number of a trial, or 'max NAME' or 'min NAME', optionally followed by "
            "'where NAME<=VALUE [and ...]', but got 'the best'"
        ),
    ),
    "no condition": (
        ["export", STUDY, "--pick", "max top1 where size_bytes<=1"],
        "no member of the front has size_bytes<=1",
    ),
    "confirming no member": (["confirm", STUDY, "--pick", "77"], "trial 77 is not on the front"),
    "an export to a full folder": (
        ["export", STUDY, "--out", "runs"],
        "runs contains other files than an export, such as small; name another folder with --out",
    ),
    "an export that would replace another's files": (
        ["export", STUDY, "--out", ".", "--replace"],
        "contains other files than an export, such as",
    ),
    "an export to a file": (
        ["export", STUDY, "--out", "my_study.py"],
        "my_study.py is a file; name a folder with --out",
    ),
    "a report below a file": (["report", STUDY, "--out", "my_study.py/x"], "cannot write to my_study.py/x: Not a dir"),
    "another storage": (["run", STUDY, "--storage", "sqlite:///x.db"], "holds the candidates of another study; name"),
}


@pytest.mark.parametrize("mistake", ERRORS_AFTER_RUN)
def test_a_mistake_after_the_run_is_reported_in_one_line_and_changes_no_file(
    finished_dir: Path, mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = ERRORS_AFTER_RUN[mistake]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("slimfront: ")
    assert message in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "slimfront: argument COMMAND: invalid choice: 'fly'"),
        (["run"], "slimfront: the following arguments are required: study; see slimfront run --help"),
        (
            ["run", STUDY, "--trials", "x"],
            "slimfront: argument --trials: must be a whole number from 1 to 1,000,000,000",
        ),
        (["run", STUDY, "--sampler", "magic"], "slimfront: argument --sampler: invalid choice: 'magic'"),
        (["front", STUDY, "--pick", "3"], "slimfront: unrecognized arguments: --pick 3; see slimfront front --help"),
        (
            ["run", STUDY, "--minuts", "3"],
            "slimfront: unrecognized arguments: --minuts 3; the nearest is --minutes; see slimfront run --help",
        ),
    ],
)
def test_a_mistyped_command_is_reported_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert printed.startswith(message)


def test_every_command_takes_the_folder_of_a_study(finished_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "runs/small", "--pick", "knee", "--out", "by_folder"]) == 0
    capsys.readouterr()
    assert main(["run", "runs/small", "--unverified"]) == 0
    assert "for a file: slimfront export my_study.py:study --folder runs/small --pick knee" in capsys.readouterr().err
    assert main(["report", "runs/large"]) == 2
    assert "no study was run in the folder runs/large; those in runs/ are: runs/small;" in capsys.readouterr().err


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("usage: slimfront ")


@pytest.mark.parametrize("damage", ["a line of nonsense\n", '{"op_code": 99}\n', '{"op_code": 4, "trial_id": 7}\n'])
def test_a_damaged_journal_is_mended_and_what_is_dropped_is_kept(
    finished: Path, workdir: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "runs", workdir / "runs")
    journal = workdir / "runs" / "small" / "journal.log"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:9], damage, *lines[9:]]))
    before = trained_count(opened(finished))
    assert main(["run", STUDY]) == 0
    assert "held no record" in capsys.readouterr().err
    assert journal.with_name("journal.log.dropped").read_text() == damage
    assert trained_count(opened(workdir)) == before
    assert main(["front", STUDY]) == 0


def test_a_trial_whose_record_is_incomplete_is_run_again(workdir: Path) -> None:
    assert main(["run", STUDY, "--unverified", "--trials", "2"]) == 0
    journal = workdir / "runs" / "small" / "journal.log"
    os.truncate(journal, journal.stat().st_size - 25)
    assert main(["run", STUDY, "--unverified", "--trials", "3"]) == 0
    assert len(trained(opened(workdir))) == 3
    assert main(["front", STUDY]) == 0


def test_a_damaged_database_is_reported_and_kept(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workdir / "my.db").write_bytes(b"this is no database" * 99)
    assert main(["run", STUDY, "--storage", "sqlite:///my.db"]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "the database sqlite:///my.db failed: DatabaseError: file is not a database" in printed
    assert (workdir / "my.db").read_bytes() == b"this is no database" * 99


def test_a_network_that_the_runtime_cannot_take_is_reported_in_one_line(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any) -> None:
        raise ExportError("every operator of an exported model must have an ONNX form,\nbut Net fails")

    monkeypatch.setattr(OnnxRuntime, "export", refused)
    assert main(["run", STUDY]) == 2
    assert capsys.readouterr().err == (
        "slimfront: every operator of an exported model must have an ONNX form, but Net fails\n"
    )


def test_debug_shows_the_traceback_before_the_line(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nowhere.py:study", "--debug"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("slimfront: no file nowhere.py; ")


def test_a_study_file_may_have_the_name_of_a_package_of_slimfront(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workdir / "my_study.py").rename(workdir / "search.py")
    before = sys.modules["search"]
    assert main(["inspect", "search.py:study"]) == 0
    assert sys.modules["search"] is before


def test_inspect_shows_what_each_axis_can_do(finished_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", STUDY, "--format", "csv"]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out)).set_index("layer")
    assert list(table.index[:3]) == ["first", "second", "head"]
    assert table["macs_percent"].sum() == pytest.approx(100)
    assert table.loc["second", "PruneRatios"] == "2-8 of 8 units"
    assert str(table.loc["head", "PruneRatios"]).startswith("no: ")
    assert "inputs 8" in str(table.loc["head", "BitWidths"])


def test_the_front_is_a_table_of_the_teacher_and_its_members(
    finished_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["front", STUDY]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[:4] == ["trial", "top1", "size_bytes", "macs"]
    assert "teacher: the network as it was given" in out


def test_the_front_is_csv(finished_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["front", STUDY, "--format", "csv"]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert table["trial"][0] == "teacher"
    assert len(table) > 1
    assert set(table["feasible"][1:]) == {"yes"}
    assert (table["file_bytes"][1:] > 0).all()
    assert (table["macs"][1:] <= 0.6 * table["macs"][0]).all()


def test_the_front_is_json(finished_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["front", STUDY, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["trial"] == "teacher"
    numbers = [int(row["trial"]) for row in rows[1:]]
    assert rows[1]["top1"] == opened(finished_dir).trials[numbers[0]].values[0]  # noqa: PD011 - no pandas
    assert rows[1]["plan"] == opened(finished_dir).trials[numbers[0]].user_attrs["plan"]


def test_report_prints_the_paths_of_its_files(finished_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", STUDY, "--out", "pictures"]) == 0
    named = capsys.readouterr().out.split()
    assert "pictures/front.png" in named
    assert all(Path(name).is_file() for name in named)


@pytest.mark.slow
def test_confirm_prints_mean_and_spread_on_test(finished_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["confirm", STUDY, "--pick", "knee", "--seeds", "2", "--format", "csv"]) == 0
    teacher, row = pd.read_csv(io.StringIO(capsys.readouterr().out)).to_dict("records")
    assert teacher["trial"] == "teacher"
    assert float(teacher["test_top1"]) > 50
    assert row["n"] == 2
    assert "±" in row["test_top1"]


@pytest.mark.slow
def test_files_of_another_runtime_are_verified_without_any_training(
    finished_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.commands.confirm.confirm", None)
    monkeypatch.setitem(RUNTIMES, "litert", f"{__name__}:{Renamed.__name__}")
    assert main(["confirm", STUDY, "--seeds", "0", "--runtime", "litert", "--format", "csv"]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out)).set_index("trial")
    members = table.drop("teacher")
    assert members["file_bytes"].gt(0).all()
    assert set(members["file_front"]) <= {"yes", "no"}
    assert "yes" in set(members["file_front"])
    records = sorted((finished_dir / "runs" / "small" / "verified" / "renamed").iterdir())
    assert {path.stem for path in records} == {str(name) for name in members.index}


def test_an_unknown_runtime_is_reported(finished_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finished_dir
    assert main(["front", STUDY, "--runtime", "onnx"]) == 0
    assert main(["front", STUDY, "--runtime", "magic"]) == 2
    assert "slimfront: there is no runtime 'magic'; the names are onnx, litert, " in capsys.readouterr().err


@pytest.mark.parametrize("words", ["knee", "max top1 where size_bytes<=2500"])
def test_export_writes_and_prints_its_measurements(
    finished_dir: Path, tmp_path: Path, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", STUDY, "--pick", words, "--out", str(out)]) == 0
    record = json.loads((out / "verification.json").read_text())
    printed = capsys.readouterr().out
    assert f"trial {record['trial']}: top-1 {record['top1_file']:.2f}% from the file" in printed
    assert f"{record['file_bytes']:,} bytes" in printed
    assert str(out / "model.onnx") in printed


def test_an_export_is_replaced_only_with_the_option_replace(
    finished_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", STUDY, "--out", str(out)]) == 0
    before = content(out)
    assert main(["export", STUDY, "--out", str(out)]) == 2
    assert "overwrite it with --replace" in capsys.readouterr().err
    assert content(out) == before
    assert main(["export", STUDY, "--out", str(out), "--replace"]) == 0
    assert content(out).keys() == before.keys()


def test_a_database_can_be_the_storage(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = ["--storage", "sqlite:///my.db", "--unverified"]
    assert main(["run", STUDY, "--trials", "2", *storage]) == 0
    assert main(["run", STUDY, "--trials", "3", *storage]) == 0
    assert not (workdir / "runs" / "small" / "journal.log").exists()
    capsys.readouterr()
    assert main(["front", STUDY, "--format", "csv", *storage[:2]]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    study = optuna.load_study(study_name="small", storage="sqlite:///my.db")
    assert len(trained(study)) == 3
    assert {int(number) for number in table["trial"][1:]} <= {trial.number for trial in study.trials}


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "stratified"])
def test_a_sampler_can_be_chosen_by_name(workdir: Path, sampler: str) -> None:
    assert main(["run", STUDY, "--sampler", sampler, "--trials", "7", "--unverified"]) == 0
    assert main(["run", STUDY, "--sampler", "random", "--trials", "9", "--unverified"]) == 0, (
        "and continue with another"
    )
    assert trained_count(opened(workdir)) == 9


def test_another_folder_holds_another_study(workdir: Path) -> None:
    assert main(["run", STUDY, "--folder", "a", "--trials", "1", "--unverified"]) == 0
    assert main(["run", STUDY, "--folder", "b", "--trials", "1", "--seed", "9", "--unverified"]) == 0
    assert (workdir / "a" / "candidates" / "0.safetensors").exists()
    assert (workdir / "b" / "candidates" / "0.safetensors").exists()
    assert not (workdir / "runs").exists()


def started(folder: Path, *, trials: int) -> subprocess.Popen[str]:
    """Start the command in its own process, with trainings that take a while."""
    command = [sys.executable, "-m", "search", "run", STUDY, "--unverified", "--trials", str(trials)]
    return subprocess.Popen(
        [*command, "--set", "epochs=25"], cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for(folder: Path, number: int, process: subprocess.Popen[str]) -> None:
    """Wait until a trial is being trained."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "runs" / "small" / "journal.log").exists():
            trials = opened(folder).trials if "trial" in (folder / "runs/small/journal.log").read_text() else []
            if len(trials) > number and trials[number].state == TrialState.RUNNING and KEY in trials[number].user_attrs:
                return
        time.sleep(0.05)
    pytest.fail(f"trial {number} was never seen running")


def finish(monkeypatch: pytest.MonkeyPatch, trials: int) -> list[tuple[int, int]]:
    """Continue the study in this process; return the epochs and the seed of each training."""
    seeds = small_study.watched(monkeypatch)
    assert main(["run", STUDY, "--unverified", "--trials", str(trials), "--set", "epochs=25"]) == 0
    return seeds


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, tuple[float, ...]]]:
    """Return the plans and values of the study without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", STUDY, "--unverified", "--trials", "7", "--set", "epochs=25"]) == 0
    return plans(opened(folder))


def test_ctrl_c_prints_how_to_continue_and_nothing_is_trained_twice(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, whole: list[tuple[str, tuple[float, ...]]]
) -> None:
    process = started(workdir, trials=7)
    wait_for(workdir, 2, process)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert "stopping after the trial under way" in printed
    assert f"continue with: slimfront run {STUDY} --unverified --trials 7 --set epochs=25" in printed
    before = len(trained(opened(workdir)))
    assert 3 <= before < 7
    seeds = finish(monkeypatch, 7)
    assert len(seeds) == 7 - before
    study = opened(workdir)
    assert not [trial for trial in study.trials if trial.state in {TrialState.FAIL, TrialState.RUNNING}]
    assert plans(study) == whole


def test_the_plan_of_a_killed_trial_is_run_again(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    whole: list[tuple[str, tuple[float, ...]]],
) -> None:  # fmt: skip
    process = started(workdir, trials=7)
    wait_for(workdir, 1, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    killed = next(trial for trial in opened(workdir).trials if trial.state == TrialState.RUNNING)
    before = len(trained(opened(workdir)))
    seeds = finish(monkeypatch, 7)
    assert "1 trial(s) of a worker that is gone: will be run again" in capsys.readouterr().err
    study = opened(workdir)
    assert study.trials[killed.number].state == TrialState.FAIL
    assert REASON not in study.trials[killed.number].user_attrs
    again = [trial for trial in trained(study) if trial.user_attrs[KEY] == killed.user_attrs[KEY]]
    assert len(again) == 1
    assert len(seeds) == 7 - before
    initial_designs = {key for key, _ in whole[:6]}
    assert initial_designs <= {trial.user_attrs[KEY] for trial in study.trials}
    values = {trial.user_attrs[KEY]: tuple(trial.values) for trial in trained(study)}
    assert all(values[key] == value for key, value in whole if key in values)


def test_a_finished_study_prints_how_to_continue(finished_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", STUDY]) == 0
    assert "4 of 4 trials are done; use a larger --trials to continue" in capsys.readouterr().err


def test_no_plan_is_trained_twice(finished: Path) -> None:
    keys = [trial.user_attrs[KEY] for trial in trained(opened(finished))]
    assert len(keys) == len(set(keys)) == 4
