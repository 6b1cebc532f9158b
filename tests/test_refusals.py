"""After three refusals in a row for a predicted cost, another kind of plan is proposed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from objectives import Limit
from search import Budget
from search.evaluation.profiling import fit_before_search
from search.proposals.draft_records import create_draft
from search.proposals.refusals import REFUSALS, _mixtures, excess_of, refused_in_a_row, turn_after_refusals
from search.proposals.sensitivity_table import measured_table
from search.study.budget_clock import BudgetClock
from search.study.queue import fixed
from search.study.records import PROXY_LOSS, REASON
from tests.small_study import context
from tests.test_latency_model import spec

if TYPE_CHECKING:
    from search.evaluation.context import Context
    from search.proposals.sensitivity_table import SensitivityTable

Params = dict[str, float]


@pytest.fixture
def limited() -> tuple[Context, Limit]:
    """A study whose predicted energy may be at most half of the teacher's."""
    made = spec()
    energy = made.objectives[1]
    limit = Limit(energy, at_most=0.5 * energy(context(made).subject.finished))
    shared = context(dataclasses.replace(made, limits=(limit,)))
    fit_before_search(shared, 1e9)
    return shared, limit


def refused(shared: Context, limit: Limit, count: int) -> optuna.Study:
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), study_name="refusing")
    for number in range(count):
        study.enqueue_trial(uniform(shared, number / 100))
        trial = study.ask()
        shared.spec.space.suggest(trial, shared.subject.anatomy)
        trial.set_constraint(str(limit), 0.4)
        trial.set_user_attr(REASON, "exceeds the limit")
        study.tell(trial, state=TrialState.PRUNED)
    return study


def uniform(shared: Context, strength: float) -> Params:
    space = shared.spec.space
    return space.uniform(shared.subject.anatomy, (strength,) * len(space.steps))


def waiting(study: optuna.Study) -> list[Params]:
    return [fixed(trial) for trial in study.get_trials(states=(TrialState.WAITING,))]


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_nothing_is_enqueued_otherwise(limited: tuple[Context, Limit], count: int) -> None:
    shared, limit = limited
    study = refused(shared, limit, count)
    assert refused_in_a_row(study, shared) == count
    turn_after_refusals(study, shared)
    assert waiting(study) == []


def test_a_plan_that_the_models_clearly_allow_is_enqueued_once(
    limited: tuple[Context, Limit], capsys: pytest.CaptureFixture[str]
) -> None:
    shared, limit = limited
    study = refused(shared, limit, REFUSALS)
    turn_after_refusals(study, shared)
    turn_after_refusals(study, shared)
    (params,) = waiting(study)
    assert excess_of(shared, [shared.plan(params)], 1.0)[0] <= 0
    assert excess_of(shared, [shared.plan(params)], 1.0)[0] > -0.3, "it compresses little more than is needed"
    assert "3 plans in a row exceeded a limit" in capsys.readouterr().err.replace("\n", " ")


def test_the_best_plan_of_the_draft_that_is_allowed_is_preferred(limited: tuple[Context, Limit]) -> None:
    shared, limit = limited
    study = refused(shared, limit, REFUSALS)
    draft = create_draft(study, [PROXY_LOSS, "energy_nj"])
    usual = shared.spec.space.recovery.usual()
    for loss, strength in ((0.1, 0.05), (0.7, 0.9), (0.5, 1.0)):
        params = {name: value for name, value in uniform(shared, strength).items() if name not in usual}
        distributions = {name: study.trials[0].distributions[name] for name in params}
        draft.add_trial(create_trial(params=params, distributions=distributions, values=[loss, 1.0]))
    turn_after_refusals(study, shared)
    (params,) = waiting(study)
    assert params == draft.trials[2].params


def test_without_an_allowed_plan_in_the_draft_the_table_is_searched_again(
    limited: tuple[Context, Limit], capsys: pytest.CaptureFixture[str]
) -> None:
    shared, limit = limited
    study = refused(shared, limit, REFUSALS)
    table = measured_table(shared, study, BudgetClock(Budget(trials=100)))
    turn_after_refusals(study, shared)
    (params,) = waiting(study)
    assert "the plan with the best sum of the sensitivity table" in capsys.readouterr().err.replace("\n", " ")
    assert excess_of(shared, [shared.plan(params)], 1.0)[0] <= 0
    own = table.sums(row_of(table, params))[0]
    mixed = [one for one in _mixtures(shared, seed=REFUSALS) if excess_of(shared, [shared.plan(one)], 1.0)[0] <= 0]
    rows = [row_of(table, one) for one in mixed]
    assert mixed
    assert own <= min(table.sums(row)[0] for row in rows)


def row_of(table: SensitivityTable, params: Params) -> np.ndarray:
    """Return the choices of a plan, the nearest ones where the table has no such value."""
    return np.array(
        [
            [
                np.abs(np.array(values) - params[name]).argmin()
                for name, values in zip(table.names, table.values, strict=True)
            ]
        ]
    )


def test_a_refusal_for_another_reason_ends_the_row(limited: tuple[Context, Limit]) -> None:
    shared, limit = limited
    study = refused(shared, limit, REFUSALS)
    study.enqueue_trial(uniform(shared, 0.3))
    trial = study.ask()
    trial.set_constraint(str(limit), -0.1)
    trial.set_user_attr(REASON, "cannot reach the front")
    study.tell(trial, state=TrialState.PRUNED)
    assert refused_in_a_row(study, shared) == 0
