"""Weights that nothing needs are removed, and the folder of a study keeps within a size."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from search.cli import main
from search.study.cleaning import Cleaning
from search.study.front import front, trained
from search.study.journal import journal_storage
from search.study.records import ASKED, KEEP, KEY, STORE
from search.study.weights import state_path
from tests.small_study import searched, study

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study

SPACE: dict[str, optuna.distributions.BaseDistribution] = {"x": optuna.distributions.FloatDistribution(0, 10)}
SIZE = 10_000  # bytes of a file of weights


def made(folder: Path, points: list[tuple[float, float]], *, excess: list[float] | None = None) -> Study:
    """Return a study of two minimized objectives whose trials have these values, each with a file of weights."""
    found = optuna.create_study(directions=["minimize", "minimize"])
    for number, values in enumerate(points):
        limits = {"limit": excess[number]} if excess else {}
        found.add_trial(create_trial(values=values, params={"x": float(number)}, distributions=SPACE,
                                     constraints=limits, user_attrs={KEY: f"key {number}"}))  # fmt: skip
        written(folder, number)
    return found


def written(folder: Path, number: int) -> None:
    path = state_path(folder, number)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"0" * SIZE)


def left(folder: Path) -> list[int]:
    """Return the numbers of the trials whose weights are there."""
    return sorted(int(path.stem) for path in (folder / "candidates").glob("[0-9]*"))


def test_only_the_weights_of_the_front_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cleaning = Cleaning(made(tmp_path, [(1, 4), (2, 2), (3, 3), (4, 1), (5, 5)]), tmp_path)
    cleaning.clean()
    cleaning.clean()
    assert left(tmp_path) == [0, 1, 3]
    cleaning.report()
    assert "removed the weights of 2 dominated candidates, 0.0 MB" in capsys.readouterr().err


def test_without_a_front_all_weights_are_kept(tmp_path: Path) -> None:
    """The candidates nearest to the limits may be trained further."""
    Cleaning(made(tmp_path, [(1, 4), (2, 2), (3, 3)], excess=[0.1, 0.2, 0.3]), tmp_path).clean()
    assert left(tmp_path) == [0, 1, 2]


def test_a_candidate_outside_of_the_limits_is_dominated_by_one_within(tmp_path: Path) -> None:
    Cleaning(made(tmp_path, [(1, 1), (2, 2), (3, 3)], excess=[0.1, -0.2, 0.3]), tmp_path).clean()
    assert left(tmp_path) == [1]


@pytest.mark.parametrize("how", ["waiting", "running"])
def test_weights_from_which_a_training_will_continue_are_kept(tmp_path: Path, how: str) -> None:
    found = made(tmp_path, [(1, 1), (2, 2), (3, 3)])
    if how == "waiting":
        found.enqueue_trial({"x": 2.0}, user_attrs={ASKED: 9})
    else:
        found.ask().set_user_attr(KEY, "key 2")
    Cleaning(found, tmp_path).clean()
    assert left(tmp_path) == [0, 2]


def test_the_weights_of_a_trial_that_another_worker_has_not_told_yet_are_kept(tmp_path: Path) -> None:
    found = made(tmp_path, [(1, 1), (2, 2)])
    found.ask()
    written(tmp_path, 2)
    written(tmp_path, 3)  # this worker has not seen that trial yet
    Cleaning(found, tmp_path).clean()
    assert left(tmp_path) == [0, 2, 3]


def test_the_weights_that_a_killed_worker_left_without_a_result_are_removed(tmp_path: Path) -> None:
    found = made(tmp_path, [(1, 1)])
    found.tell(found.ask(), state=TrialState.FAIL)
    written(tmp_path, 1)
    Cleaning(found, tmp_path).clean()
    assert left(tmp_path) == [0]


def test_files_that_are_not_weights_of_trials_are_kept(tmp_path: Path) -> None:
    found = made(tmp_path, [(1, 1), (2, 2)])
    others = [tmp_path / "candidates" / name for name in ("my.safetensors", "1.pt", ".new-0a1b2c3d.safetensors")]
    old = tmp_path / "candidates" / ".7-0a1b2c3d.safetensors"
    for path in (*others, old):
        path.touch()
    yesterday = time.time() - 100_000
    os.utime(old, (yesterday, yesterday))
    Cleaning(found, tmp_path).clean()
    assert all(path.exists() for path in others)
    assert not old.exists(), "a process that was killed yesterday left it unfinished"


def confirmed(folder: Path, *names: str) -> None:
    (folder / "confirmed").mkdir()
    for name in names:
        (folder / "confirmed" / f"{name}.safetensors").write_bytes(b"0" * SIZE)


@pytest.mark.parametrize(
    ("files", "gone"),
    [(8, []), (7, ["2-seed0"]), (6, ["2-seed0", "0-seed1"]), (5, ["2-seed0", "0-seed1", "1-seed1"]),
     (1, ["2-seed0", "0-seed1", "1-seed1"])],
)  # fmt: skip
def test_a_cap_removes_what_the_front_does_not_need_the_least_needed_first(
    tmp_path: Path, files: int, gone: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = made(tmp_path, [(1, 4), (2, 2), (3, 3)])
    names = ["0-seed0", "0-seed1", "1-seed0", "1-seed1", "2-seed0"]
    confirmed(tmp_path, *names)
    (tmp_path / "report.pdf").write_bytes(b"0" * SIZE)
    found.set_user_attr(KEEP, files * SIZE / 1e9)
    cleaning = Cleaning(found, tmp_path)
    cleaning.clean()
    cleaning.clean()
    assert left(tmp_path) == [0, 1]
    assert sorted(path.stem for path in (tmp_path / "confirmed").iterdir()) == sorted({*names} - {*gone})
    printed = " ".join(capsys.readouterr().err.split())
    assert all(f"confirmed/{name}.safetensors" in printed for name in gone)
    assert printed.count("what is left belongs to the front, and is kept") == (files == 1)
    assert (tmp_path / "report.pdf").exists()


def test_a_cap_without_a_front_keeps_the_candidates_nearest_to_the_limits(tmp_path: Path) -> None:
    found = made(tmp_path, [(1, 4), (2, 2), (3, 3), (4, 4)], excess=[0.3, 0.1, 0.4, 0.2])
    found.set_user_attr(KEEP, 2.5 * SIZE / 1e9)
    Cleaning(found, tmp_path).clean()
    assert left(tmp_path) == [1, 3]
    found.set_user_attr(KEEP, 0.5 * SIZE / 1e9)
    Cleaning(found, tmp_path).clean()
    assert left(tmp_path) == [1]


def test_a_search_leaves_the_weights_of_its_front(tmp_path: Path) -> None:
    found = searched(study(6), tmp_path)
    assert len(trained(found)) > len(front(found))
    assert left(tmp_path) == sorted(trial.number for trial in front(found))


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "much"])
def test_a_cap_must_be_a_positive_number(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["run", "tests.small_study:study", f"--keep-gb={value}"])
    assert "--keep-gb: must be a number from" in capsys.readouterr().err


def test_a_cap_and_a_store_are_kept_with_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["run", "tests.small_study:study", "--unverified"]
    store = f"file://{tmp_path}/store"
    assert main([*command, "--trials", "2", "--keep-gb", "1e-6", "--artifacts", store]) == 0
    assert "more than --keep-gb 1e-06; what is left belongs to the front" in " ".join(capsys.readouterr().err.split())
    assert main([*command, "--trials", "3"]) == 0
    assert "more than --keep-gb 1e-06" in " ".join(capsys.readouterr().err.split())
    found = optuna.load_study(study_name="small", storage=journal_storage(tmp_path / "runs" / "small" / "journal.log"))
    assert {trial.user_attrs[STORE] for trial in trained(found)} == {store}
    assert len(list((tmp_path / "store").iterdir())) == len(front(found))
    assert main(["run", "tests.small_study:study", "--artifacts", "ftp://host"]) == 2
    assert "must be file:///folder, s3://bucket/prefix or gs://" in " ".join(capsys.readouterr().err.split())
