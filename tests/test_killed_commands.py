"""Kill -9 of `export`, `report` and `confirm` at random moments, and a container that starts again under its name."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from search.study.marks import MARK, NOBODY, mark_of
from tests.several import check, finished, folder_of_study, has_trained, is_being_trained, opened, started, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STUDY = "variants.py:drafted"
RUN = "run", STUDY, "--trials", "4", "--unverified"
KILLS = 12


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with folder_of_study(tmp_path) as found:
        yield found


def seconds_of(folder: Path, *words: str) -> float:
    """Run a command to its end; return how long it took."""
    begun = time.monotonic()
    finished(started(folder, *words))
    return time.monotonic() - begun


def killed(folder: Path, seconds: float, *words: str) -> None:
    """Start a command, and kill it after a time if it has not ended."""
    process = started(folder, *words)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def is_whole(folder: Path, writer: str) -> bool:
    """Whether a folder has the files that its mark lists, as they were written, and no other that is not marked."""
    mark = mark_of(folder)
    left = {path.name for path in folder.glob(f".{writer}-*") if (other := mark_of(path)) and other.writer == NOBODY}
    names = {path.name for path in folder.iterdir()} - {MARK} - left
    return (
        mark is not None
        and mark.writer == writer
        and names == set(mark.files)
        and all(mark.lists(folder / name) for name in names)
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_export_leaves_the_old_folder_or_the_new_one(folder: Path) -> None:
    finished(started(folder, *RUN))
    export = "export", STUDY, "--pick", "knee", "--replace", "--out", "given/model"
    (folder / "given").mkdir()
    (folder / "given" / "notes.txt").write_text("mine")
    seconds, rng = seconds_of(folder, *export), random.Random(0)  # noqa: S311
    for _ in range(KILLS):
        killed(folder, rng.uniform(0.3, 1.0) * seconds, *export)
        there = folder / "given" / "model"
        assert not there.exists() or is_whole(there, "export")
    finished(started(folder, *export))
    assert is_whole(folder / "given" / "model", "export")
    assert (folder / "given" / "notes.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_report_is_whole_after_the_next(folder: Path) -> None:
    finished(started(folder, *RUN))
    report = "report", STUDY, "--out", "page"
    seconds, rng = seconds_of(folder, *report), random.Random(1)  # noqa: S311
    (folder / "page" / "plan-of-mine.png").write_text("mine")
    for _ in range(KILLS):
        killed(folder, rng.uniform(0.3, 1.0) * seconds, *report)
        mark = mark_of(folder / "page")
        assert mark is not None
        assert all(mark.lists(folder / "page" / name) for name in mark.files if (folder / "page" / name).exists())
        assert (folder / "page" / "front.html").read_text().rstrip().endswith("</html>")
    finished(started(folder, *report))
    assert (folder / "page" / "plan-of-mine.png").read_text() == "mine"
    (folder / "page" / "plan-of-mine.png").unlink()
    assert is_whole(folder / "page", "report")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_confirmation_goes_on_and_confirms_the_same(folder: Path, tmp_path: Path) -> None:
    finished(started(folder, *RUN))
    other = tmp_path / "undisturbed"
    other.mkdir()
    for name in ("my_study.py", "variants.py"):
        shutil.copy(folder / name, other)
    shutil.copytree(folder / "runs", other / "runs")
    confirm = "confirm", STUDY, "--seeds", "3"
    seconds, rng = seconds_of(other, *confirm), random.Random(2)  # noqa: S311
    for _ in range(KILLS):
        killed(folder, rng.uniform(0.3, 1.0) * seconds, *confirm)
    finished(started(folder, *confirm))
    expected, found = (contents(where / "runs" / "small" / "confirmed") for where in (other, folder))
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name] == expected[name], name


@pytest.mark.slow
def test_a_container_that_starts_again_under_its_name_is_another_worker(folder: Path) -> None:
    """Both are process 1 of a host of the same name; the first one is killed in the middle of a training."""
    namespaces = ["unshare", "--pid", "--fork", "--kill-child", "--uts", "--mount-proc"]
    if subprocess.run([*namespaces, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may not create namespaces of processes")
    worker = f"hostname trainer && exec {sys.executable} -m search worker variants.py:drafted --trials 4"
    words = [*namespaces, "sh", "-c", worker + " --set epochs=60"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}

    def container() -> subprocess.Popen[str]:
        return subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True, env=environment)

    first = container()
    wait_until(lambda: has_trained(folder, 1)() and is_being_trained(folder))
    first.kill()
    first.communicate()
    printed = finished(container())
    assert "of a worker that is gone: will be run again" in printed
    check(folder, 4)
    workers = {trial.user_attrs["worker"] for trial in opened(folder).trials if "worker" in trial.user_attrs}
    assert len(workers) == 2


@pytest.mark.slow
def test_a_watched_report_follows_a_run_until_ctrl_c(folder: Path) -> None:
    """The page is there before the run has ended, and the pictures at the end."""
    out = folder / "runs/small/report"
    run = started(folder, "run", "my_study.py:study", "--trials", "30", "--unverified", "--set", "epochs=40")
    wait_until(has_trained(folder, 1))
    watching = started(folder, "report", "my_study.py:study", "--set", "epochs=40", "--watch")
    wait_until((out / "front.html").exists)
    assert run.poll() is None
    first = (out / "candidates.csv").read_text().count("\n")
    assert not (out / "front.png").exists()
    assert '"refresh": 10.0' in (out / "front.html").read_text()
    finished(run)
    wait_until(lambda: (out / "candidates.csv").read_text().count("\n") > first)
    watching.send_signal(signal.SIGINT)
    assert "is kept current; Ctrl-C ends this" in finished(watching)
    assert (out / "front.png").exists()
    assert '"refresh": null' in (out / "front.html").read_text()
    assert is_whole(out, "report")
