"""The journal storage: it says what Optuna's says of the same file, after kills too, and a snapshot changes nothing."""

from __future__ import annotations

import json
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from search.study import quick_journal
from search.study.attributes import put
from search.study.errors import UserError
from search.study.journal import journal_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from optuna.storages import BaseStorage

DISTRIBUTIONS = {
    "ratio": FloatDistribution(0, 1, step=0.125),
    "bits": IntDistribution(2, 32, log=True),
    "rate": FloatDistribution(1e-4, 1, log=True),
    "kind": CategoricalDistribution(("a", None, 3, 2.5, True)),
}
WORKER = """
import sys
from pathlib import Path
import optuna
from search.study.journal import journal_storage

optuna.logging.set_verbosity(40)
study = optuna.create_study(storage=journal_storage(Path(sys.argv[1])), study_name="s", load_if_exists=True,
                            sampler=optuna.samplers.RandomSampler())
print("started", flush=True)
for _ in range(int(sys.argv[2])):
    trial = study.ask()
    for number in range(20):
        trial.suggest_float(f"p{number}", 0, 1)
    trial.set_user_attr("plan_key", "k")
    study.tell(trial, trial.params["p0"])
"""


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal.log"


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save a snapshot after a few records."""
    monkeypatch.setattr(quick_journal, "LEAST_NEW_RECORDS", 25)


def by_optuna(journal: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(journal)))


def said(storage: BaseStorage) -> list[Any]:
    """Return all that a storage says, the order of parameters included."""
    return [
        (
            study.__dict__,
            [
                (trial, list(trial.params), list(trial.distributions))
                for trial in storage.get_all_trials(study._study_id)
            ],
        )
        for study in storage.get_all_studies()
    ]


def act(study: optuna.Study, rng: random.Random, running: list[optuna.Trial]) -> None:
    """Do something that a run does."""
    kind = rng.randrange(8)
    if kind == 0 or not running:
        running.append(study.ask())
    elif kind == 1:
        study.enqueue_trial({"ratio": 0.5, "bits": rng.randint(2, 32)}, user_attrs={"enqueued": True})
    elif kind == 2:
        params = {name: one.to_external_repr(one.to_internal_repr(v)) for (name, one), v in
                  zip(DISTRIBUTIONS.items(), (0.25, 8, 0.01, None), strict=True)}  # fmt: skip
        study.add_trial(create_trial(params=params, distributions=DISTRIBUTIONS, values=[rng.random()]))
    elif kind == 3:
        trial = running.pop(rng.randrange(len(running)))
        trial.report(rng.random(), rng.randrange(5))
        state = rng.choice((TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
        study.tell(trial, rng.random() if state == TrialState.COMPLETE else None, state=state)
    elif kind == 4:
        study.set_user_attr("definition", {"n": rng.random(), "é": [1, None]})
    elif kind == 5:
        rng.choice(running).set_user_attr("measured", {"top1": rng.random(), "words": "8 bit é"})
    elif kind == 6:
        rng.choice(running).set_constraint(f"limit {rng.random()}", rng.random() - 0.5)
    else:
        trial = rng.choice(running)
        for name, distribution in DISTRIBUTIONS.items():
            trial._suggest(name, distribution)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.usefixtures("often")
def test_it_says_what_optunas_storage_says(journal: Path, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - of a test
    workers = [
        optuna.create_study(
            storage=journal_storage(journal), study_name="s", load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(seed=seed),
        )
        for _ in range(2)
    ]  # fmt: skip
    running: list[list[optuna.Trial]] = [[], []]
    for _ in range(150):
        at = rng.randrange(2)
        act(workers[at], rng, running[at])
    for worker in workers:
        worker._storage.remove_session()
    expected = said(by_optuna(journal))
    assert [said(worker._storage) for worker in workers] == [expected, expected]
    assert said(journal_storage(journal)) == expected


def test_optunas_storage_and_ours_share_a_file(journal: Path) -> None:
    ours = optuna.create_study(storage=journal_storage(journal), study_name="s")
    theirs = optuna.load_study(storage=by_optuna(journal), study_name="s")
    for _ in range(5):
        ours.optimize(lambda trial: trial.suggest_float("x", 0, 1), 1)
        theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), 1)
    assert ours.trials == theirs.trials
    assert len(ours.trials) == 10


def counted_writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of records that are written together from now on, as they come."""
    writes: list[int] = []
    append = quick_journal._Lines.append_logs

    def counted(lines: quick_journal._Lines, logs: list[dict[str, Any]]) -> None:
        writes.append(len(logs))
        append(lines, logs)

    monkeypatch.setattr(quick_journal._Lines, "append_logs", counted)
    return writes


def test_the_parameters_of_a_trial_are_one_write(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study(storage=journal_storage(journal))
    writes = counted_writes(monkeypatch)
    trial = study.ask()
    for number in range(30):
        trial.suggest_float(f"p{number}", 0, 1)
    trial.set_user_attr("plan_key", "k")
    assert writes == [1, 31]
    assert len(by_optuna(journal).get_trial(trial._trial_id).params) == 30


def test_the_attributes_of_a_trial_are_one_write(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study(storage=journal_storage(journal))
    trial, other = study.ask(), study.ask()
    writes = counted_writes(monkeypatch)
    attributes = {"a": 1, "b": 2.5, "c": "three"}
    put(trial, attributes)
    assert writes == [3]
    assert trial.user_attrs == study.get_trials()[0].user_attrs == attributes
    assert by_optuna(journal).get_trial(trial._trial_id).user_attrs == attributes
    for name in "xyz":
        trial.suggest_float(name, 0, 1)  # written with what comes next
    by_optuna(journal).set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        put(trial, {"d": 4, "e": 5})
    study.tell(other, 2.0)  # no record is left to be refused
    assert study.get_trials()[0].user_attrs == attributes


def test_a_trial_that_was_handed_out_does_not_change(journal: Path) -> None:
    study = optuna.create_study(storage=journal_storage(journal))
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    seen = study.get_trials(deepcopy=False)[0]
    trial.suggest_float("y", 0, 1)
    trial.set_user_attr("a", 1)
    trial.set_constraint("limit", 1.0)
    trial.report(1.0, 3)
    study.tell(trial, 1.0)
    assert (len(seen.params), seen.user_attrs, seen.constraints, seen.state.name) == (1, {}, {}, "RUNNING")
    assert not seen.intermediate_values


def test_a_parameter_that_contradicts_earlier_ones_is_refused(journal: Path) -> None:
    study = optuna.create_study(storage=journal_storage(journal))
    study.optimize(lambda trial: trial.suggest_categorical("x", [1, 2]), 2)
    trial = study.ask()
    with pytest.raises(ValueError, match="dynamic value space"):
        trial.suggest_categorical("x", [1, 3])
    with pytest.raises(ValueError, match="different"):
        trial.suggest_float("x", 0, 1)
    study.tell(trial, state=TrialState.FAIL)
    assert said(journal_storage(journal)) == said(by_optuna(journal))


def test_a_finished_trial_is_refused_changes(journal: Path) -> None:
    study = optuna.create_study(storage=journal_storage(journal))
    trial = study.ask()
    study.tell(trial, 1.0)
    for change in (lambda: trial.set_user_attr("a", 1), lambda: trial.suggest_float("x", 0, 1)):
        with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
            change()
    assert said(journal_storage(journal)) == said(by_optuna(journal)) == said(study._storage)


def test_a_worker_that_is_killed_leaves_all_parameters_of_a_trial_or_none(journal: Path) -> None:
    rng = random.Random(0)  # noqa: S311 - of a test
    for _ in range(6):
        command = [sys.executable, "-c", WORKER, str(journal), "100000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "started\n"
            time.sleep(rng.random() / 2)
            worker.send_signal(signal.SIGKILL)
    content = journal.read_bytes()
    journal.write_bytes(content[: content.rfind(b"\n") + 1])  # as `cut_incomplete_record`
    trials = optuna.load_study(storage=journal_storage(journal), study_name="s").trials
    assert {len(trial.params) for trial in trials} <= {0, 20}
    assert len(trials) > 6
    assert said(journal_storage(journal)) == said(by_optuna(journal))


@pytest.mark.usefixtures("often")
def test_several_processes_write_at_once(journal: Path) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(journal), "15"], stdout=subprocess.DEVNULL)
               for _ in range(3)]  # fmt: skip
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0, 0]
    expected = said(by_optuna(journal))
    assert said(journal_storage(journal)) == said(journal_storage(journal)) == expected
    assert len(expected[0][1]) == 45


def written(journal: Path) -> Path:
    """Write a journal with some trials, and return the path of its snapshot."""
    study = optuna.create_study(storage=journal_storage(journal), study_name="s", directions=["minimize"])
    running: list[optuna.Trial] = []
    rng = random.Random(7)  # noqa: S311 - of a test
    for _ in range(80):
        act(study, rng, running)
    study._storage.remove_session()
    journal_storage(journal)
    path = journal.with_name("journal.log.snapshot")
    assert path.exists()
    return path


@pytest.mark.usefixtures("often")
def test_a_snapshot_is_read_in_place_of_the_records(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, expected = written(journal), said(by_optuna(journal))
    head = json.loads(path.read_bytes().partition(b"\n")[0])
    decoded: list[int] = []
    decode = quick_journal._decoded

    def counted(lines: list[bytes]) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
        decoded.append(len(lines))
        return decode(lines)

    monkeypatch.setattr(quick_journal, "_decoded", counted)
    assert said(journal_storage(journal)) == expected
    assert sum(decoded) == journal.read_bytes().count(b"\n") - head["records"]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a changed byte": lambda content: content[:-40] + b"7" + content[-39:],
    "another format": lambda content: content.replace(b'"format": 1', b'"format": 2', 1),
    "another length": lambda content: content.replace(b'"length": ', b'"length": 1', 1),
    "a length that is no number": lambda content: content.replace(b'"length": ', b'"length": null, "x": ', 1),
    "no number of records": lambda content: content.replace(b'"records"', b'"record"', 1),
    "a pickle": lambda content: pickle.dumps({"trials": []}),
    "noise": lambda content: bytes(range(256)) * 20,
    "a list": lambda content: b"[1, 2]\n{}",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.usefixtures("often")
def test_a_damaged_snapshot_is_ignored(journal: Path, damage: str) -> None:
    path, expected = written(journal), said(by_optuna(journal))
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert said(journal_storage(journal)) == expected
    assert said(journal_storage(journal)) == expected  # from the snapshot that took its place


@pytest.mark.usefixtures("often")
def test_the_snapshot_of_another_journal_is_ignored(journal: Path) -> None:
    written(journal)
    lines = journal.read_bytes().splitlines(keepends=True)
    for changed in (lines[:-40], [lines[0], *lines[2:]], [line.replace(b"ratio", b"ration") for line in lines]):
        journal.write_bytes(b"".join(changed))
        assert said(journal_storage(journal)) == said(by_optuna(journal))


@pytest.mark.usefixtures("often")
def test_a_study_is_searched_where_no_snapshot_can_be_written(journal: Path) -> None:
    path = written(journal)
    path.unlink()
    path.mkdir()
    (path / "in the way").touch()
    expected = said(by_optuna(journal))
    assert said(journal_storage(journal)) == expected
    assert [one.name for one in journal.parent.iterdir() if one.suffix.isdigit()] == []


def test_a_last_line_that_another_process_is_writing_is_left_for_later(journal: Path) -> None:
    study = optuna.create_study(storage=journal_storage(journal), study_name="s")
    reader = optuna.load_study(storage=journal_storage(journal), study_name="s")
    study.optimize(lambda _: 1.0, 2)
    content = journal.read_bytes()
    journal.write_bytes(content[:-30])
    assert len(reader.trials) == 2
    journal.write_bytes(content)
    assert [trial.state.name for trial in reader.trials] == ["COMPLETE", "COMPLETE"]


GARBAGE = {
    "noise": b"\x00\xff\n",
    "two records": b'{"op_code":0},{"op_code":0}\n',
    "a part": b'{"op_code":4,"worker_id"\n',
    "an empty line": b"\n",
    "a number": b"7\n",
    "deep": b'{"a":' + b"[" * 100_000 + b"}\n",
}


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("together", [1, 2, 7, 1000])
def test_a_line_that_holds_no_record_is_noticed_wherever_it_is(
    journal: Path, garbage: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick_journal, "DECODED_TOGETHER", together)
    study = optuna.create_study(storage=journal_storage(journal), study_name="s")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), 2)
    lines = journal.read_bytes().splitlines(keepends=True)
    for at in (1, 2, len(lines) - 1):
        journal.write_bytes(b"".join([*lines[:at], GARBAGE[garbage], *lines[at:]]))
        with pytest.raises(UserError, match=f"line {at + 1} holds no record"):
            journal_storage(journal)
    journal.write_bytes(b"".join([*lines, GARBAGE[garbage]]))  # the last line may be one that is being written
    assert len(journal_storage(journal).get_all_trials(0)) == 2


def test_a_record_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    study = optuna.create_study(study_name="s", storage=journal_storage(path))
    study.set_user_attr("first", 1)
    line = path.read_bytes().splitlines(keepends=True)[-1]
    stopped = threading.Event()

    def write() -> None:
        with path.open("ab", buffering=0) as file:
            while not stopped.is_set():
                for part in (line[:20], line[20:50], line[50:]):
                    file.write(part)

    reader = journal_storage(path)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            assert len(reader.get_all_studies()) == 1
    finally:
        stopped.set()
        writer.join()
