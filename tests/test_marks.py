"""The mark of our folders: nothing that we did not write is deleted or written over."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from search.evaluation.reference import teacher_file
from search.results.confirm import weights_of
from search.results.export import export
from search.results.exported import ensure_replaceable
from search.results.file_records import with_records
from search.results.report import report
from search.study.errors import UserError
from search.study.front import front
from search.study.marks import (
    MARK,
    digests_of,
    mark_of,
    put_files,
    recover,
    replace_folder,
    set_mark,
    unfinished_folder,
)
from search.study.stored import claim
from tests.small_study import context, searched, study

if TYPE_CHECKING:
    from optuna import Study

    from search.evaluation.context import Context

EARLIER_EXPORT = ("model.onnx", "plan.json", "state.safetensors", "verification.json")
EXPORT = ("README.md", "model.onnx", "plan.json", "plan.png", "state.safetensors", "verification.json")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def folder_with(folder: Path, *names: str, writer: str = "") -> Path:
    """Return a folder with these files; with a writer, marked as its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(f"the user's {name}")
    if writer:
        set_mark(folder, writer, digests_of(folder))
    return folder


@pytest.mark.parametrize(
    "names",
    [("model.py",), ("plan.json",), ("model.py", "plan.json"), ("model.onnx",), ("state.safetensors",),
     ("verification.json",), ("model.onnx", "model.py", "plan.json"), (MARK,), ("plan.json", MARK), ("thesis.tex",)],
)  # fmt: skip
def test_a_folder_that_we_did_not_write_is_never_replaced(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = folder_with(tmp_path / "mine", *names)
    before = contents(folder)
    for replace in (True, False):
        with pytest.raises(UserError, match="name another folder with --out"):
            ensure_replaceable(folder, replace=replace)
    assert contents(folder) == before


def test_an_export_of_an_earlier_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "export", *EARLIER_EXPORT)
    with pytest.raises(UserError, match=r"is not marked as ours .* earlier version .* delete it, or name another"):
        ensure_replaceable(folder, replace=True)


def test_an_export_of_ours_is_replaced_only_if_asked(tmp_path: Path) -> None:
    ensure_replaceable(tmp_path / "new", replace=False)
    ensure_replaceable(folder_with(tmp_path / "empty"), replace=False)
    folder = folder_with(tmp_path / "export", *EXPORT, writer="export")
    ensure_replaceable(folder, replace=True)
    with pytest.raises(UserError, match="is not empty; name another folder with --out, or overwrite it with --replace"):
        ensure_replaceable(folder, replace=False)
    with pytest.raises(UserError, match="is a file; name a folder with --out"):
        ensure_replaceable(folder / "plan.json", replace=True)


@pytest.mark.parametrize("change", ["added", "changed", "folder", "link", "hidden"])
def test_an_export_with_something_of_the_user_is_not_replaced(tmp_path: Path, change: str) -> None:
    folder = folder_with(tmp_path / "export", *EXPORT, writer="export")
    if change == "added":
        (folder / "thesis.tex").touch()
    elif change == "hidden":
        (folder / ".git").mkdir()
    elif change == "folder":
        (folder / "model.onnx").unlink()
        (folder / "model.onnx").mkdir()
    elif change == "link":
        (folder / "plan.json").rename(tmp_path / "plan.json")
        (folder / "plan.json").symlink_to(tmp_path / "plan.json")
    else:
        (folder / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="contains other files than an export, such as"):
        ensure_replaceable(folder, replace=True)


@pytest.mark.parametrize("writer", ["run", "report"])
def test_another_folder_of_ours_is_not_replaced_by_an_export(tmp_path: Path, writer: str) -> None:
    folder = folder_with(tmp_path / "other", "front.png", writer=writer)
    with pytest.raises(UserError, match=f"was written by slimfront {writer}; name another folder"):
        ensure_replaceable(folder, replace=True)


def test_what_appears_in_a_folder_while_it_is_replaced_is_kept(tmp_path: Path) -> None:
    old = folder_with(tmp_path / "export", *EXPORT, writer="export")
    new = folder_with(tmp_path / ".export-1", *EXPORT, writer="export")
    (old / "thesis.tex").write_text("years of work")
    replace_folder(new, old)
    assert sorted(contents(old)) == sorted([*EXPORT, MARK])
    assert [path.read_text() for path in tmp_path.rglob("thesis.tex")] == ["years of work"]


@pytest.mark.parametrize("after", ["first", "second"])
def test_a_replacement_that_was_killed_is_undone_or_finished(tmp_path: Path, after: str) -> None:
    folder = folder_with(tmp_path / "export", *EXPORT, writer="export")
    folder.rename(tmp_path / ".export-replaced")
    if after == "second":
        folder_with(folder, *EXPORT, writer="export")
    recover(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert sorted(contents(folder)) == sorted([*EXPORT, MARK])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def found(home: Path) -> Study:
    return searched(study(4), home)


@pytest.fixture(scope="module")
def shared(found: Study) -> Context:
    return context(study(4))


def test_a_report_keeps_pictures_that_are_not_ours(found: Study, shared: Context, home: Path, tmp_path: Path) -> None:
    out = folder_with(tmp_path / "report", "plan-999.png", "plan-of-the-house.png", "notes.txt")
    before = contents(out)
    for members in (front(found), front(found)[:1]):
        report(found, shared, with_records(members, study(4).runtime, home), home, out)
        assert before.items() <= contents(out).items()
        plans = {path.name for path in out.glob("plan-*.png")}
        assert plans == {"plan-999.png", "plan-of-the-house.png", *(f"plan-{x.number}.png" for x in members)}


@pytest.mark.parametrize("name", ["front.png", "front.html", "candidates.csv", "plan-0.png", MARK])
def test_a_report_overwrites_nothing_of_the_user(
    found: Study, shared: Context, home: Path, tmp_path: Path, name: str
) -> None:
    out = folder_with(tmp_path / "report", name.replace("plan-0", f"plan-{front(found)[0].number}"))
    before = contents(out)
    with pytest.raises(UserError, match=r"is not as slimfront report wrote it, .* move it away, or name another"):
        report(found, shared, with_records(front(found), study(4).runtime, home), home, out)
    assert contents(out) == before


def test_a_table_that_the_user_edited_is_not_overwritten(
    found: Study, shared: Context, home: Path, tmp_path: Path
) -> None:
    members = with_records(front(found), study(4).runtime, home)
    report(found, shared, members, home, tmp_path)
    (tmp_path / "candidates.csv").write_text("my notes")
    with pytest.raises(UserError, match=r"candidates.csv is not as slimfront report wrote it"):
        report(found, shared, members, home, tmp_path)
    assert (tmp_path / "candidates.csv").read_text() == "my notes"


def test_files_that_were_put_in_part_are_put_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the program ends, the folder has a mark that knows all files of ours in it."""
    out = tmp_path / "report"
    moved: list[Path] = []
    honest = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if not self.name.startswith("."):  # not the mark
            moved.append(self)
            if len(moved) == ends_at:
                raise KeyboardInterrupt
        return honest(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    for turn in range(1, 4):
        moved.clear()
        ends_at = turn
        new = folder_with(tmp_path / f"new{turn}")
        for name in ("front.html", "front.png", "plan-1.png"):
            (new / name).write_text(f"{turn}")
        with pytest.raises(KeyboardInterrupt):
            put_files(new, out, "report")
    ends_at = 0
    put_files(folder_with(tmp_path / "last", "front.png"), out, "report")
    assert sorted(contents(out)) == ["front.png", MARK]


def test_an_export_replaces_an_earlier_one_of_another_member(
    found: Study, shared: Context, home: Path, tmp_path: Path
) -> None:
    reference, out = teacher_file(shared.subject, shared.spec.runtime, home), tmp_path / "out"
    trial = front(found)[0]
    export(trial, shared, weights_of(home, trial), folder_with(out, "model.tflite", writer="export"), reference)
    assert sorted(contents(out)) == sorted([*EXPORT, MARK])
    mark = mark_of(out)
    assert mark is not None
    assert mark.files == digests_of(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    before = contents(folder_with(out, "model.py"))
    with pytest.raises(UserError, match=r"contains other files than an export, such as model\.py"):
        export(trial, shared, weights_of(home, trial), out, reference)
    assert contents(out) == before


@pytest.mark.parametrize("name", ["study.json", "journal.log", MARK])
def test_the_folder_of_a_study_may_not_hold_the_users_files_under_our_names(tmp_path: Path, name: str) -> None:
    folder = folder_with(tmp_path / "mine", name)
    before = contents(folder)
    with pytest.raises(UserError, match=f"{name} was not written by slimfront.*; move it away, or name another folder"):
        claim(folder)
    assert contents(folder) == before


def test_the_folder_of_a_study_is_marked_also_if_an_earlier_version_wrote_it(tmp_path: Path) -> None:
    claim(folder_with(tmp_path / "new", "notes.txt"))
    shutil.copy(Path(__file__).parent / "stored" / "journal-0.1.log", folder_with(tmp_path / "old") / "journal.log")
    claim(tmp_path / "old")
    claim(tmp_path / "old")
    assert all(mark_of(tmp_path / name) is not None for name in ("old", "new"))
    with pytest.raises(UserError, match="was written by slimfront export; name another folder with --folder"):
        claim(folder_with(tmp_path / "export", writer="export"))


def test_unfinished_folders_of_killed_processes_are_removed_after_a_day(tmp_path: Path) -> None:
    names = {"old": ".out-0a1b2c3d", "new": ".out-1a1b2c3d", "unmarked": ".out-2a1b2c3d", "other": ".out-mine"}
    for kind, name in names.items():
        folder_with(tmp_path / name, "model.onnx", writer="" if kind == "unmarked" else "unfinished")
        if kind != "new":
            os.utime(tmp_path / name, (time.time() - 100_000,) * 2)
    with unfinished_folder(tmp_path, "out") as folder:
        assert mark_of(folder) is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(set(names.values()) - {names["old"]})


KILLED = """
import os, signal, sys, threading, time
from search.cli import main
def kill():
    time.sleep(float(sys.argv[1]))
    os.kill(os.getpid(), signal.SIGKILL)
main(["front", "tests.small_study:study"])  # imports
threading.Thread(target=kill, daemon=True).start()
main(["export", "tests.small_study:study", "--out", "out", "--replace"])
"""


@pytest.mark.slow
def test_an_export_that_is_killed_at_any_moment_leaves_a_whole_one(
    found: Study, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    shutil.copytree(home, tmp_path / "runs" / "small")
    monkeypatch.chdir(tmp_path)
    out, command = tmp_path / "out", [sys.executable, "-c", KILLED]
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    subprocess.run([*command, "1000"], check=True, capture_output=True)
    for seconds in (0.1, 0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 6):
        subprocess.run([*command, str(seconds)], check=False, capture_output=True)
        recover(out)
        mark = mark_of(out)
        assert mark is not None
        assert mark.files == digests_of(out)
        assert sorted(contents(out)) == sorted([*EXPORT, MARK])
