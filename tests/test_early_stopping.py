"""A training that leads nowhere is stopped early, and says so."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from objectives import Limit
from search.evaluation.early_stopping import LEAST_TRIALS, EarlyStopping
from search.results.candidates import candidates
from search.study.front import spent, trained
from search.study.records import REASON, RUNG, STOPPED
from tests.small_study import context, searched, study

if TYPE_CHECKING:
    from pathlib import Path

    from search.evaluation.context import Context

EPOCHS = 1


@functools.cache
def shared() -> Context:
    return context(study())


def with_trained(
    now: float, end: float, size: float, epochs: float = EPOCHS, count: int = LEAST_TRIALS
) -> optuna.Study:
    """Return a study of trials that had one accuracy at a quarter and another at the end, all of one size."""
    main = optuna.create_study(directions=["maximize", "minimize"])
    for _ in range(count):
        rung = {"epochs": epochs, "values": {"0": now}}
        main.add_trial(create_trial(values=[end, size], user_attrs={RUNG: rung}))
    return main


def measured(main: optuna.Study, size: float, share: float = 0.3, *, strict: bool = False) -> optuna.Trial:
    """Train a network of that size up to this share; the teacher stands for it, with more than 90 percent."""
    trial = main.ask()
    told: list[float] = []
    rung = EarlyStopping(
        trial, shared(), shared().subject.model, {"size_bytes": size, "macs": 1.0}, EPOCHS, told.append, strict=strict
    )
    rung(0.1)
    assert RUNG not in trial.user_attrs
    try:
        rung(share)
    finally:
        assert told == [0.1, share]
    return trial


def test_what_is_out_of_reach_is_stopped_and_named() -> None:
    main = with_trained(now=109.0, end=110.5, size=50.0)  # 1.5 points more are to be expected
    with pytest.raises(optuna.TrialPruned):
        measured(main, size=60.0)
    trial = main.trials[-1]
    assert trial.user_attrs[STOPPED]
    assert trial.user_attrs[REASON] == (
        "at a quarter of its training, trial 0, which costs no more, is out of its reach"
    )
    assert 90 < trial.user_attrs[RUNG]["values"]["0"] <= 100


@pytest.mark.parametrize("strict", [False, True])
def test_what_will_miss_a_limit_is_stopped_and_told_which(strict: bool) -> None:  # noqa: FBT001
    now = measured(with_trained(0.0, 0.0, 99.0), size=60.0).user_attrs[RUNG]["values"]["0"]
    main = with_trained(now=50.0, end=50.5, size=99.0)
    for other in with_trained(now=50.0, end=53.5, size=99.0).trials:
        main.add_trial(other)  # so 2 points more are to be expected, 1.5 up or down
    said = {}
    for more in (1.9, 2.1, 3.4, 3.6):
        limit = Limit(study().objectives[0], at_least=now + more)
        limited = context(dataclasses.replace(study(), limits=(limit,)))
        trial = main.ask()
        costs = {"size_bytes": 60.0, "macs": 1.0}
        rung = EarlyStopping(trial, limited, limited.subject.model, costs, EPOCHS, lambda _: None, strict=strict)
        with contextlib.suppress(optuna.TrialPruned):
            rung(0.3)
        said[more] = trial.user_attrs.get(REASON, "").removeprefix(f"at a quarter of its training, {limit} is ")
    if strict:
        assert said == {1.9: "", **dict.fromkeys((2.1, 3.4, 3.6), "not expected to be held")}
    else:
        assert said == {1.9: "", 2.1: "", 3.4: "", 3.6: "out of its reach"}


def test_a_strict_rung_stops_what_is_not_expected_to_beat_the_others_though_it_might() -> None:
    now = measured(with_trained(0.0, 0.0, 99.0), size=60.0).user_attrs[RUNG]["values"]["0"]
    main = with_trained(now=now - 0.7, end=now - 0.2, size=50.0)
    for trial in with_trained(now=now - 0.7, end=now + 2.8, size=50.0).trials:
        main.add_trial(trial)  # so 2 points more are to be expected, 1.5 up or down
    assert STOPPED not in measured(main, size=60.0).user_attrs
    with pytest.raises(optuna.TrialPruned):
        measured(main, size=60.0, strict=True)
    assert main.trials[-1].user_attrs[REASON].endswith("is not expected to be beaten")


@pytest.mark.parametrize("main", [
    with_trained(now=109.0, end=110.5, size=70.0),  # they cost more
    with_trained(now=60.0, end=100.5, size=50.0),  # it will become better than they
    with_trained(now=109.0, end=110.5, size=50.0, epochs=2),  # of another length
    with_trained(now=109.0, end=110.5, size=50.0, count=LEAST_TRIALS - 1),
], ids=["dearer", "caught up", "longer", "too few"])  # fmt: skip
def test_what_may_still_be_the_best_of_its_size_goes_on(main: optuna.Study) -> None:
    trial = measured(main, size=60.0)
    assert STOPPED not in trial.user_attrs
    assert RUNG in trial.user_attrs


def test_at_the_end_nothing_is_stopped() -> None:
    assert RUNG not in measured(with_trained(now=109.0, end=110.5, size=50.0), size=60.0, share=1.0).user_attrs


def test_stopped_trials_count_as_spent_and_are_told_in_the_table(tmp_path: Path) -> None:
    main = searched(study(trials=30, epochs=4), tmp_path)
    stopped = [trial for trial in main.trials if STOPPED in trial.user_attrs]
    assert stopped
    assert all(trial.state == TrialState.PRUNED for trial in stopped)
    assert spent(main) == 30 == len(trained(main)) + len(stopped)
    table = candidates(main, study()).set_index("number")
    assert set(table.loc[[trial.number for trial in stopped], "state"]) == {"stopped early"}
