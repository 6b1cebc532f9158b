"""What is kept of finished trials equals what reading all of them anew gives, in any order and for several workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import optuna
import pytest
from optuna.storages import InMemoryStorage, get_storage
from optuna.trial import TrialState

from search.proposals.draft_records import tried
from search.study.front import front, trained, trained_count
from search.study.history import ByPlan, Finished, Interrupted, read
from search.study.journal import journal_storage
from search.study.records import KEY, REASON, REPLAY, STOPPED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    Directions = tuple[Literal["minimize", "maximize"], ...]

STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def storages(folder: Path) -> dict[str, Callable[[], BaseStorage]]:
    memory = InMemoryStorage()
    return {
        "journal": lambda: journal_storage(folder / "journal.log"),
        "sqlite": lambda: get_storage(f"sqlite:///{folder}/study.db"),
        "memory": lambda: memory,
    }


def opened(storage: BaseStorage, directions: Directions = ("maximize", "minimize")) -> Study:
    return optuna.create_study(storage=storage, study_name="s", directions=directions, load_if_exists=True)


def best_of_all(study: Study) -> list[int]:
    """Return the numbers of the front, as Optuna finds it in all trials."""
    best = {trial.number: trial for trial in study.best_trials if REPLAY not in trial.user_attrs}
    sign = -1 if study.directions[0].name == "MAXIMIZE" else 1
    distinct = {tuple(trial.values): trial for trial in sorted(best.values(), key=lambda x: x.number, reverse=True)}
    return [
        trial.number for trial in sorted(distinct.values(), key=lambda trial: (sign * trial.values[0], trial.number))
    ]


def finish(study: Study, trial: optuna.Trial, rng: np.random.Generator) -> None:
    """End a trial at random: trained, over a limit, stopped, failed, interrupted, or a replay."""
    trial.set_user_attr(KEY, str(rng.integers(5)))
    trial.suggest_int("x", 0, 3)
    earlier = trained(study)
    if earlier and rng.random() < 0.2:
        replayed = earlier[int(rng.integers(len(earlier)))]
        trial.set_user_attr(REPLAY, replayed.number)
        trial.set_constraint("limit", replayed.constraints["limit"])
        study.tell(trial, replayed.values)
        return
    trial.set_constraint("limit", float(rng.integers(-3, 2)))
    state = STATES[rng.choice(3, p=[0.7, 0.15, 0.15])]
    if state != TrialState.COMPLETE and rng.random() < 0.5:
        trial.set_user_attr(STOPPED if state == TrialState.PRUNED else REASON, "why")
    values = [float(value) for value in rng.integers(6, size=len(study.directions))]
    study.tell(trial, values if state == TrialState.COMPLETE else None, state=state)


def check(study: Study) -> None:
    """Compare everything that is kept with all trials."""
    everything = study.get_trials(deepcopy=False)
    assert [trial.number for trial in front(study)] == best_of_all(study)
    usual = [trial for trial in everything if REPLAY not in trial.user_attrs]
    complete = [trial for trial in usual if trial.state == TrialState.COMPLETE]
    assert trained(study) == complete
    stopped = [trial for trial in usual if trial.state == TrialState.PRUNED and STOPPED in trial.user_attrs]
    assert trained_count(study) == len(complete) + len(stopped)
    finished = [trial for trial in everything if trial.state.is_finished()]
    assert read(study, Finished).trials == finished
    for key in map(str, range(5)):
        assert read(study, ByPlan).of(key) == [trial for trial in finished if trial.user_attrs.get(KEY) == key]
    interrupted = [
        trial.number for trial in finished if trial.state == TrialState.FAIL and REASON not in trial.user_attrs
    ]
    for trial in everything:
        position = trial.number - sum(other < trial.number for other in interrupted)
        assert read(study, Interrupted).position(trial) == position
    by_choice: dict[tuple[object, ...], FrozenTrial] = {}
    for trial in sorted(everything, key=lambda trial: trial.state == TrialState.COMPLETE):
        by_choice[(trial.params.get("x", trial.system_attrs.get("fixed_params", {}).get("x")),)] = trial
    assert dict(tried(study, ["x"])) == by_choice


@pytest.mark.parametrize("where", ["journal", "sqlite", "memory"])
@pytest.mark.parametrize("seed", range(2))
def test_what_is_kept_equals_what_all_trials_give(tmp_path: Path, where: str, seed: int) -> None:
    rng, make = np.random.default_rng(seed), storages(tmp_path)[where]
    workers = [opened(make()) for _ in range(3)]
    running: list[optuna.Trial] = []
    for _ in range(30 if where == "sqlite" else 60):
        worker = workers[int(rng.integers(3))]
        if rng.random() < 0.2:
            worker.enqueue_trial({"x": int(rng.integers(4))})
        if rng.random() < 0.5 or not running:
            running.append(worker.ask())
        else:
            finish(worker, running.pop(int(rng.integers(len(running)))), rng)
        if rng.random() < 0.3:
            check(workers[int(rng.integers(3))])
    for worker in workers:
        check(worker)


@pytest.mark.parametrize("directions", [("minimize",), ("maximize",), ("maximize", "minimize", "minimize")])
def test_any_number_of_objectives(tmp_path: Path, directions: Directions) -> None:
    rng, study = np.random.default_rng(0), opened(InMemoryStorage(), directions)
    for _ in range(40):
        finish(study, study.ask(), rng)
        assert [trial.number for trial in front(study)] == best_of_all(study)


@pytest.mark.parametrize("where", ["journal", "sqlite"])
def test_a_new_study_in_the_place_of_a_deleted_one_starts_empty(tmp_path: Path, where: str) -> None:
    rng, storage = np.random.default_rng(0), storages(tmp_path)[where]()
    study = opened(storage)
    for _ in range(5):
        finish(study, study.ask(), rng)
    check(study)
    optuna.delete_study(study_name="s", storage=storage)
    again = opened(storage)
    assert (front(again), trained_count(again)) == ([], 0)
    for _ in range(7):
        finish(again, again.ask(), rng)
    check(again)


def test_a_trial_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, study, reads = np.random.default_rng(0), opened(InMemoryStorage()), []
    add = Finished.add

    def counted(reader: Finished, trial: FrozenTrial) -> None:
        reads.append(trial.number)
        add(reader, trial)

    monkeypatch.setattr(Finished, "add", counted)
    for _ in range(20):
        finish(study, study.ask(), rng)
        read(study, Finished)
    assert reads == list(range(20))
