"""A full disk: no plan is blamed, nothing is half-written, and with space the same command goes on."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest
import torch
from optuna.trial import TrialState
from safetensors.torch import save_file

from search.cli import main
from search.study.errors import MachineFault, machine_fault, reason_of
from search.study.journal import storage_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FULL = Path("/dev/full")  # a device without space
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")


def _raised(act: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - what it is, is what is tested
        act()
    return caught.value


@pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize(
    "write",
    [
        lambda: FULL.write_bytes(bytes(1 << 20)),
        lambda: torch.save(torch.zeros(1 << 16), FULL),
    ],
)
def test_what_libraries_raise_on_a_full_disk_is_not_charged_to_a_plan(write: Callable[[], object]) -> None:
    with pytest.raises(MachineFault, match="the machine failed, not a plan"):
        reason_of(_raised(write))


def _in_place_of(first: Exception, second: Exception) -> Exception:
    """Return an exception that is raised while another one is handled, as some libraries do."""

    def act() -> None:
        try:
            raise first
        except type(first):
            raise second  # noqa: B904

    return _raised(act)


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EIO", "EROFS", "ENOMEM", "EMFILE", "EFBIG"])
def test_faults_in_the_words_of_other_libraries_are_of_the_machine(name: str) -> None:
    number = getattr(errno, name)
    assert machine_fault(OSError(number, os.strerror(number))) is not None
    assert machine_fault(RuntimeError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"))
    fault = OSError(number, os.strerror(number))
    assert machine_fault(_in_place_of(fault, RuntimeError("could not export the network"))) is not None


def test_an_error_of_a_plan_stays_one() -> None:
    tried = FileNotFoundError(errno.ENOENT, "No such file")
    error = _in_place_of(tried, ValueError("the kernel is larger than the input"))
    assert reason_of(error) == "ValueError: the kernel is larger than the input"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Yield a function that sets the size of a small disk in KiB, and returns its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def sized(size: int) -> Path:
        how = [f"remount,size={size}k"] if folder.is_mount() else [f"size={size}k"]
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", *how, "tmpfs", folder], check=False, capture_output=True)
        if made.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {made.stderr.decode().strip()}")
        return folder

    yield sized
    if folder.is_mount():
        subprocess.run(["umount", "-l", folder], check=True)


@ROOT
def test_safetensors_and_sqlite_on_a_full_disk_are_faults_of_the_machine(disk: Callable[[int], Path]) -> None:
    folder = disk(64)
    weights = {"w": torch.zeros(1 << 16)}
    assert machine_fault(_raised(lambda: save_file(weights, folder / "w.safetensors"))) is not None
    (folder / "rest").write_bytes(bytes(1 << 12))
    database = sqlite3.connect(folder / "t.db")

    def fill() -> None:
        database.execute("CREATE TABLE t (x)")
        for _ in range(100):
            database.execute("INSERT INTO t VALUES (zeroblob(4096))")
        database.commit()

    assert machine_fault(_raised(fill)) is not None
    database.close()


def _runs_full(
    kind: str,
    sizes: list[int],
    disk: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *more: str,
) -> None:
    (tmp_path / "small.py").write_text((Path(__file__).parent / "small_study.py").read_text())
    monkeypatch.chdir(tmp_path)
    run = ["run", "small.py:study", "--trials", "2", *more]
    assert main([*run, "--folder", "undisturbed"]) == 0
    expected = _values(tmp_path / "undisturbed", None)
    for number, size in enumerate(sizes):
        folder = disk(size) / str(number)
        url = f"sqlite:///{folder.parent}/{number}.db" if kind == "sqlite" else None
        words = [*run, "--folder", str(folder)] + (["--storage", url] if url else [])
        capsys.readouterr()
        assert main(words) == 2
        printed = capsys.readouterr().err
        assert "Traceback" not in printed
        assert "unexpected" not in printed
        assert " failed: " not in printed.replace("the machine failed, not a plan: ", "").replace(" failed: Oper", "")
        disk(16_000)
        assert not [path for path in folder.rglob(".*") if path.is_file()]
        assert main(words) == 0
        assert _values(folder, url) == expected
        subprocess.run(["umount", "-l", folder.parent], check=True)


def _values(folder: Path, url: str | None) -> dict[str, list[float]]:
    study = optuna.load_study(study_name="small", storage=storage_at(folder, url, create=False))
    trained = [t for t in study.get_trials(states=[TrialState.COMPLETE]) if "replay_of" not in t.user_attrs]
    assert not [trial for trial in study.get_trials() if "reason" in trial.user_attrs and "failed" in trial.user_attrs]
    assert len({trial.user_attrs["plan"] for trial in trained}) == len(trained)
    return {trial.user_attrs["plan"]: trial.values for trial in trained}


@ROOT
@pytest.mark.parametrize(("kind", "sizes"), [("journal", [32]), ("sqlite", [180])])
def test_with_space_the_same_command_goes_on(
    kind: str,
    sizes: list[int],
    disk: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _runs_full(kind, sizes, disk, tmp_path, monkeypatch, capsys, "--unverified")


@ROOT
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "sizes"), [("journal", [*range(4, 60, 4)]), ("sqlite", [*range(20, 190, 16)])])
def test_with_space_the_same_command_goes_on_whichever_write_failed(
    kind: str,
    sizes: list[int],
    disk: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _runs_full(kind, sizes, disk, tmp_path, monkeypatch, capsys)
