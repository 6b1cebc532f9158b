"""The front is printed from the storage: without the network, the data, or the file that defines the study."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from search.cli import main
from search.command_line import parser
from search.commands import front
from search.study.errors import UserError
from search.study.outline import StoredMetric, StoredObjective, stored_outline
from search.study.stored import STARTED_WITH, find
from tests import small_study

STUDY = "my_study.py:study"
GOAL = "2x smaller, 1.2x fewer parameters, lose at most 40 points"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which a study with limits and a goal has been run."""
    folder = tmp_path_factory.mktemp("searched")
    shutil.copy(small_study.__file__, folder / "my_study.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", STUDY, "--trials", "6", "--goal", GOAL]) == 0
    return folder


@pytest.fixture
def workdir(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of it as the working directory."""
    shutil.copytree(searched, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def without_data(folder: Path) -> None:
    """Let the study's function fail, as it does where the data is not."""
    path = folder / "my_study.py"
    path.write_text('"""Nothing is here any more."""\nraise FileNotFoundError("data")\n')


@pytest.mark.parametrize("words", [[], ["--runtime", "onnx"], ["--format", "csv"], ["--format", "json"]])
def test_the_stored_front_is_that_of_the_loaded_study(
    workdir: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["front", STUDY, *words]
    assert front.command(parser().parse_args(command)) == 0
    loaded = capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr() == loaded
    assert f"goal '{GOAL}': met by" in loaded.err


def test_the_front_needs_neither_the_network_nor_the_data(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["front", STUDY]) == 0
    before = capsys.readouterr()
    without_data(workdir)
    assert main(["front", STUDY]) == 0
    after = capsys.readouterr()
    assert after.out == before.out
    note = "the file of the study 'small' is not what it was when the study was last run; this is the stored front"
    assert after.err == f"{before.err}{note}\n"
    assert main(["report", STUDY]) == 2


def test_a_study_can_be_named_by_its_folder(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["front", STUDY, "--format", "csv"]) == 0
    named = capsys.readouterr()
    assert main(["front", "runs/small", "--format", "csv"]) == 0
    assert capsys.readouterr() == named
    assert main(["front", "runs", "--format", "csv"]) == 2
    assert "no study was run in the folder runs; those in runs/ are: runs/small;" in capsys.readouterr().err


def test_torch_is_not_loaded_for_the_front(workdir: Path) -> None:
    code = (
        "import sys; from search.cli import main; "
        f"assert main(['front', {STUDY!r}]) == 0; assert 'pandas' in sys.modules; assert 'torch' not in sys.modules"
    )
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, env={"PYTHONPATH": root}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "the network as it was given" in done.stdout


@pytest.mark.parametrize("folder", [None, "runs/small"])
def test_a_study_is_found_by_its_words(workdir: Path, folder: str | None) -> None:
    assert find(STUDY, [], folder, None) is not None
    assert find(STUDY, ["epochs=3"], folder, None) is None
    assert find("other.py:study", [], folder, None) is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"name": "small"}'])
def test_a_study_whose_words_are_lost_is_loaded(workdir: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    (workdir / "runs" / "small" / STARTED_WITH).write_text(damage)
    assert find(STUDY, [], None, None) is None
    assert main(["front", STUDY]) == 0
    assert "the network as it was given" in capsys.readouterr().out


def test_of_two_studies_with_the_same_words_the_one_that_was_run_last_is_shown(workdir: Path) -> None:
    other = workdir / "runs" / "another"
    shutil.copytree(workdir / "runs" / "small", other)
    later = (other / STARTED_WITH).stat().st_mtime_ns
    words = workdir / "runs" / "small" / STARTED_WITH
    found = find(STUDY, [], None, None)
    assert found is not None
    assert found.folder in {Path("runs/small"), Path("runs/another")}
    words.write_text(words.read_text())
    assert words.stat().st_mtime_ns > later
    found = find(STUDY, [], None, None)
    assert found is not None
    assert found.folder == Path("runs/small")


def test_a_study_that_is_not_in_the_storage_any_more_is_loaded(workdir: Path) -> None:
    path = workdir / "runs" / "small" / STARTED_WITH
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": "gone"}))
    assert find(STUDY, [], None, None) is None


def test_an_unknown_runtime_is_refused(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["front", STUDY, "--runtime", "magic"]) == 2
    assert "there is no runtime 'magic'" in capsys.readouterr().err


def test_the_outline_has_what_tables_need_and_measures_nothing(workdir: Path) -> None:
    found = find(STUDY, [], None, None)
    assert found is not None
    outline = stored_outline(found.study)
    assert outline == found.outline
    assert outline is not None
    kinds = {objective.name: type(objective) for objective in outline.measured}
    assert kinds["top1"] is StoredMetric
    assert kinds["size_bytes"] is StoredObjective
    assert [str(limit) for limit in outline.limits] == [
        "macs <= 8371.2", "size_bytes <= 0.5 of the teacher's", "parameters <= 0.833333 of the teacher's",
        "top1 >= the teacher's - 40",
    ]  # fmt: skip
    with pytest.raises(UserError, match="top1 of a stored study cannot measure Net; load the study"):
        outline.objectives[0](small_study.Net())
