"""Journals that are cut or hold garbage: every finished trial whose records are whole keeps its number and values."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from search.study.errors import StorageFault
from search.study.journal import KernelLock, storage_at
from search.study.journal_file import append_whole

GARBAGE = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.just(b"\0" * 30),
    st.sampled_from(
        [b"null", b"{}", b"[1]", b'{"op_code":99}', b'{"op_code":4}', b'{"op_code":8,"worker_id":"x"}', b"7"]
    ),
)


def _journal(folder: Path) -> bytes:
    """Write a journal as two workers do: trials of two studies, enqueued and new ones, in turns."""
    storage = storage_at(folder, None, create=True)
    other = storage_at(folder, None, create=True)
    studies = [optuna.create_study(storage=one, study_name="s", load_if_exists=True) for one in (storage, other)]
    tickets = optuna.create_study(storage=storage, study_name="s-workers")
    studies[0].enqueue_trial({"x": 0.25})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for turn in range(3):
            drawn = storage.create_new_trial(
                tickets._study_id, create_trial(state=TrialState.RUNNING, user_attrs={"task": "t"})
            )
            trials = [study.ask() for study in studies]
            for number, trial in enumerate(trials):
                trial.set_user_attr("plan_key", f"{turn}-{number}")
                trial.suggest_float("x", 0, 1)
            for study, trial in zip(studies, trials, strict=True):
                study.tell(trial, trial.params["x"] + trial.number)
            storage.set_trial_state_values(drawn, TrialState.FAIL)
    return (folder / "journal.log").read_bytes()


def _results(folder: Path) -> dict[int, tuple[Any, ...]]:
    study = optuna.load_study(study_name="s", storage=storage_at(folder, None, create=True))
    return {
        trial.number: (trial.values, trial.params, trial.user_attrs["plan_key"])
        for trial in study.get_trials(states=[TrialState.COMPLETE])
        if trial.params and "plan_key" in trial.user_attrs
    }


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return _journal(tmp_path_factory.mktemp("journal"))


@pytest.fixture(scope="module")
def expected(content: bytes) -> dict[int, tuple[Any, ...]]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "journal.log").write_bytes(content)
        return _results(Path(folder))


def _needed(lines: list[bytes], lost: set[int]) -> set[int]:
    """Return the numbers of the finished trials of which no record is lost."""
    ids: list[tuple[int, int]] = []  # study and number of each trial
    touched: dict[int, list[int]] = {}
    for at, line in enumerate(lines):
        record = json.loads(line)
        if record["op_code"] == 4:
            study = record["study_id"]
            touched[len(ids)] = [at]
            ids.append((study, sum(one == study for one, _ in ids)))
        elif "trial_id" in record:
            touched[record["trial_id"]].append(at)
    return {number for one, (study, number) in enumerate(ids) if study == 0 and not lost & set(touched[one])}


def _recovered(content: bytes) -> dict[int, tuple[Any, ...]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "journal.log").write_bytes(content)
        found = _results(folder)
        storage = storage_at(folder, None, create=True)  # it can be written on, and read again
        optuna.load_study(study_name="s", storage=storage).set_user_attr("later", "thing")
        again = optuna.load_study(study_name="s", storage=storage_at(folder, None, create=False))
        assert again.user_attrs["later"] == "thing"
        assert _results(folder) == found
    return found


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_journal_that_is_cut_keeps_what_is_whole(
    content: bytes, expected: dict[int, tuple[Any, ...]], data: st.DataObject
) -> None:
    lines = content.splitlines(keepends=True)
    least = sum(map(len, lines[:4]))
    cut = data.draw(st.integers(least, len(content)))
    whole = sum(1 for at in range(len(lines)) if sum(map(len, lines[: at + 1])) <= cut + 1)
    tail = data.draw(st.one_of(st.just(b""), GARBAGE, GARBAGE.map(lambda one: one + b"\n")))
    found = _recovered(content[:cut] + tail)
    if not tail:
        assert {n: v for n, v in expected.items() if n in _needed(lines, set(range(whole, len(lines))))}.items() <= (
            found.items()
        )
    assert found.items() <= expected.items()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_garbage_between_records_costs_only_the_records_that_it_hit(
    content: bytes, expected: dict[int, tuple[Any, ...]], data: st.DataObject
) -> None:
    lines = content.splitlines(keepends=True)
    # not among the first: records of both the creation of an enqueued trial and of who took it may not be lost together
    after = next(at for at, line in enumerate(lines) if b'"state":0' in line and b'"op_code":6' in line) + 1
    hit = data.draw(st.sets(st.integers(after, len(lines) - 1), min_size=1, max_size=2))
    garbage = {at: data.draw(GARBAGE) for at in hit}
    damaged = b"".join(garbage[at].replace(b"\n", b"") + b"\n" if at in hit else line for at, line in enumerate(lines))
    found = _recovered(damaged)
    kept = _needed(lines, hit)
    assert {number: found.get(number) for number in kept & expected.keys()} == {
        number: expected[number] for number in kept & expected.keys()
    }


@pytest.mark.parametrize("end", [b'{"op_code":8,"wor', b"garbage\n", b"\0\0\0\0", b"\0\0\n\n", b"null\n{}\n"])
def test_what_was_dropped_is_said_and_kept(
    content: bytes, tmp_path: Path, end: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "journal.log").write_bytes(content + end)
    storage_at(tmp_path, None, create=True)
    assert (tmp_path / "journal.log").read_bytes() == content
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("they are in journal.log.dropped")
    assert (tmp_path / "journal.log.dropped").read_bytes().rstrip(b"\n") == end.rstrip(b"\n")


def test_a_whole_record_without_its_newline_counts(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "journal.log").write_bytes(content[:-1])
    storage_at(tmp_path, None, create=False)
    assert (tmp_path / "journal.log").read_bytes() == content
    assert not capsys.readouterr().err


def test_a_writer_sets_aside_what_a_killed_one_left(content: bytes, tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    journal.write_bytes(content + b'{"op_code":8,"worker')
    append_whole(journal, KernelLock(journal), content.splitlines(keepends=True)[-1])
    assert journal.read_bytes() == content + content.splitlines(keepends=True)[-1]


def test_a_record_that_another_process_is_writing_is_not_damaged(content: bytes, tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    journal.write_bytes(content)
    study = optuna.load_study(study_name="s", storage=storage_at(tmp_path, None, create=False))
    with journal.open("ab") as other:
        record = b'{"op_code":2,"worker_id":"o","study_id":0,"user_attr":{"other":1}}\n'
        other.write(record[:20])
        other.flush()
        assert "other" not in study.user_attrs
        other.write(record[20:])
    assert study.user_attrs["other"] == 1


def test_a_lost_study_is_said_with_the_way_out(content: bytes, tmp_path: Path) -> None:
    lines = content.splitlines(keepends=True)
    (tmp_path / "journal.log").write_bytes(b"garbage\n" * 2 + b"".join(lines[2:]))
    with pytest.raises(StorageFault, match=r"restore a copy of it, or start again with another --folder"):
        storage_at(tmp_path, None, create=True)
    assert (tmp_path / "journal.log").read_bytes().startswith(b"garbage\n")


def test_reading_needs_no_right_to_write(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "journal.log").write_bytes(content + b"cut")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("search.study.journal.mend_end", refuse)
    assert len(_study(tmp_path).trials) == 6


def _study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=storage_at(folder, None, create=False))
