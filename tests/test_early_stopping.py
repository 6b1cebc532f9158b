"""Early stopping ends trainings that cannot succeed, and records the reason."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from objectives import Limit
from search.evaluation.early_stopping import MIN_TRIALS, EarlyStopping
from search.results.candidates import candidates
from search.study.attributes import content_of
from search.study.front import trained, trained_count
from search.study.records import EARLY_CHECK, REASON, STOPPED
from tests.small_study import context, searched, study

if TYPE_CHECKING:
    from pathlib import Path

    from search.evaluation.context import Context

EPOCHS = 1


@functools.cache
def shared() -> Context:
    return context(study())


def with_trained(
    check: float, end: float, size: float, epochs: float = EPOCHS, count: int = MIN_TRIALS
) -> optuna.Study:
    """Return a study of trials with equal sizes, equal accuracies at the check, and equal accuracies at the end."""
    main = optuna.create_study(directions=["maximize", "minimize"])
    for _ in range(count):
        attributes = {EARLY_CHECK: json.dumps({"epochs": epochs, "values": {"0": check}})}
        main.add_trial(create_trial(values=[end, size], user_attrs=attributes))
    return main


def measured(main: optuna.Study, size: float, share: float = 0.3, *, strict: bool = False) -> optuna.Trial:
    """Call early stopping at this share of a training; the network is the teacher, which is more than 90% accurate."""
    trial = main.ask()
    progress: list[float] = []
    stopping = EarlyStopping(
        trial,
        shared(),
        shared().subject.model,
        {"size_bytes": size, "macs": 1.0},
        EPOCHS,
        progress.append,
        strict=strict,
    )
    stopping(0.1)
    assert EARLY_CHECK not in trial.user_attrs
    try:
        stopping(share)
    finally:
        assert progress == [0.1, share]
    return trial


def reason_of(main: optuna.Study, limited: Context, *, strict: bool = False) -> str:
    """Return why early stopping ends a training of the teacher in a study with a limit; empty if it does not."""
    trial, costs = main.ask(), {"size_bytes": 60.0, "macs": 1.0}
    stopping = EarlyStopping(trial, limited, limited.subject.model, costs, EPOCHS, lambda _: None, strict=strict)
    with contextlib.suppress(optuna.TrialPruned):
        stopping(0.3)
    return str(trial.user_attrs.get(REASON, ""))


def test_a_training_is_stopped_if_a_cheaper_trial_is_out_of_reach() -> None:
    main = with_trained(check=109.0, end=110.5, size=50.0)  # the expected gain is 1.5 points
    with pytest.raises(optuna.TrialPruned):
        measured(main, size=60.0)
    trial = main.trials[-1]
    assert trial.user_attrs[STOPPED]
    assert trial.user_attrs[REASON] == (
        "stopped after a quarter of its training: trial 0, which costs no more, is out of reach"
    )
    assert 90 < content_of(trial, EARLY_CHECK)["values"]["0"] <= 100


@pytest.mark.parametrize("strict", [False, True])
def test_a_training_is_stopped_if_it_will_miss_a_limit(strict: bool) -> None:  # noqa: FBT001
    now = content_of(measured(with_trained(0.0, 0.0, 99.0), size=60.0), EARLY_CHECK)["values"]["0"]
    main = with_trained(check=50.0, end=50.5, size=99.0)
    for other in with_trained(check=50.0, end=53.5, size=99.0).trials:
        main.add_trial(other)  # the expected gain is 2 points, with a standard deviation of 1.5
    reasons = {}
    for gain in (1.9, 2.1, 3.4, 3.6):
        limit = Limit(study().objectives[0], at_least=now + gain)
        limited = context(dataclasses.replace(study(), limits=(limit,)))
        prefix = f"stopped after a quarter of its training: the limit {limit} is "
        reasons[gain] = reason_of(main, limited, strict=strict).removeprefix(prefix)
    if strict:
        assert reasons == {1.9: "", **dict.fromkeys((2.1, 3.4, 3.6), "not expected to be met")}
    else:
        assert reasons == {1.9: "", 2.1: "", 3.4: "", 3.6: "out of reach"}


def test_while_no_candidate_meets_a_limit_only_a_training_that_stays_behind_the_nearest_is_stopped() -> None:
    """The nearest one may be trained further at the end of the run, and so meet the limit."""
    now = content_of(measured(with_trained(0.0, 0.0, 99.0), size=60.0), EARLY_CHECK)["values"]["0"]
    limit = Limit(study().objectives[0], at_least=now + 12)
    expected = 10 / (now + 12)  # excess after the usual gain of 2 points
    limited = context(dataclasses.replace(study(), limits=(limit,)))
    reasons = []
    for nearest in (2 * expected, expected / 2):
        main = optuna.create_study(directions=["maximize", "minimize"])
        for trial in with_trained(check=50.0, end=52.0, size=99.0).trials:
            excess = {str(limit): nearest if trial.number == 3 else 0.9}
            main.add_trial(create_trial(values=trial.values, user_attrs=trial.user_attrs, constraints=excess))
        reasons.append(reason_of(main, limited))
    reason = f"stopped after a quarter of its training: the limit {limit.words} is out of reach, and the nearest "
    assert reasons == ["", f"{reason}candidate is nearer"]


def test_a_training_is_stopped_if_it_will_lose_more_than_is_allowed() -> None:
    main = with_trained(check=50.0, end=52.0, size=99.0)  # the expected gain is 2 points
    now = content_of(measured(with_trained(0.0, 0.0, 99.0), size=60.0), EARLY_CHECK)["values"]["0"]
    reasons = []
    for loss in (1.5, 0.5):
        limit = Limit(study().objectives[0], lose_at_most=loss).against(now + 3)
        limited = context(dataclasses.replace(study(), limits=(limit,)))
        reasons.append(reason_of(main, limited))
    reason = f"the limit top1 >= the teacher's - 0.5 ({now + 2.5:,.6g}) is out of reach"
    assert reasons == ["", f"stopped after a quarter of its training: {reason}"]


def test_strict_stopping_ends_a_training_that_is_not_expected_to_beat_the_others() -> None:
    now = content_of(measured(with_trained(0.0, 0.0, 99.0), size=60.0), EARLY_CHECK)["values"]["0"]
    main = with_trained(check=now - 0.7, end=now - 0.2, size=50.0)
    for trial in with_trained(check=now - 0.7, end=now + 2.8, size=50.0).trials:
        main.add_trial(trial)  # the expected gain is 2 points, with a standard deviation of 1.5
    assert STOPPED not in measured(main, size=60.0).user_attrs
    with pytest.raises(optuna.TrialPruned):
        measured(main, size=60.0, strict=True)
    assert main.trials[-1].user_attrs[REASON].endswith("is not expected to be beaten")


@pytest.mark.parametrize("main", [
    with_trained(check=109.0, end=110.5, size=70.0),  # the others cost more
    with_trained(check=60.0, end=100.5, size=50.0),  # it is expected to beat the others
    with_trained(check=109.0, end=110.5, size=50.0, epochs=2),  # the others had another length
    with_trained(check=109.0, end=110.5, size=50.0, count=MIN_TRIALS - 1),
], ids=["more expensive", "caught up", "longer", "too few"])  # fmt: skip
def test_a_training_that_may_become_the_best_of_its_size_continues(main: optuna.Study) -> None:
    trial = measured(main, size=60.0)
    assert STOPPED not in trial.user_attrs
    assert EARLY_CHECK in trial.user_attrs


def test_a_finished_training_is_not_stopped() -> None:
    assert EARLY_CHECK not in measured(with_trained(check=109.0, end=110.5, size=50.0), size=60.0, share=1.0).user_attrs


def test_stopped_trials_count_towards_the_budget_and_appear_in_the_table(tmp_path: Path) -> None:
    main = searched(study(trials=30, epochs=4), tmp_path)
    stopped = [trial for trial in main.trials if STOPPED in trial.user_attrs]
    assert stopped
    assert all(trial.state == TrialState.PRUNED for trial in stopped)
    assert trained_count(main) == 30 == len(trained(main)) + len(stopped)
    table = candidates(main, study()).set_index("number")
    assert set(table.loc[[trial.number for trial in stopped], "state"]) == {"stopped early"}
