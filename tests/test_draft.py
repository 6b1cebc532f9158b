"""A draft of plans that are scored before any training."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import TYPE_CHECKING

import numpy as np
import optuna
import pytest
from optuna.trial import FixedTrial

from search import Budget, DraftStart
from search.evaluation.context import Context
from search.evaluation.proxy_loss import SCORED
from search.evaluation.subject import FEW
from search.loop.run import run
from search.loop.schedule import affordable
from search.proposals.defaults import resolved
from search.proposals.draft_records import LEAST_LOSS, NOT_FINITE, draft_of, plausible
from search.proposals.lagrangian import lagrangian_search, search_within_limits
from search.proposals.limits import hold
from search.proposals.sensitivity_table import measured_table
from search.proposals.short_training import FIRST_TRAINED, SHORT_STEPS, ShortTraining
from search.proposals.uniform_start import uniform_designs
from search.study.budget_clock import BudgetClock
from search.study.records import PROXY_LOSS, SHORT_TRAINING
from search.study.storage import open_study
from spaces import BitWidths, Depth, PruneRatios, Space, Temperatures
from studies.digits import Net as Residual
from tests.small_study import context, searched, study

if TYPE_CHECKING:
    from pathlib import Path

    from search import StudySpec


@functools.cache
def shared() -> Context:
    return context(spec())


def spec(trials: int | None = 4) -> StudySpec:
    return dataclasses.replace(study(), start=DraftStart(plans=5, scored=40), budget=Budget(trials or 4))


@functools.cache
def began(seed: int = 0) -> tuple[optuna.Study, list[dict[str, float]]]:
    main = optuna.create_study(study_name=f"m{seed}", storage=optuna.storages.InMemoryStorage())
    return main, DraftStart(plans=5, scored=40)(shared(), main, BudgetClock(Budget()))


def test_the_draft_is_a_study_of_its_own_whose_values_are_the_loss_and_the_costs() -> None:
    main, _ = began()
    draft = draft_of(main)
    assert draft is not None
    assert draft.study_name == "m0-draft"
    assert draft.metric_names == [PROXY_LOSS, "size_bytes"]
    assert len(draft.trials) == 40
    assert len({tuple(trial.params.items()) for trial in draft.trials}) == 40
    usual = shared().spec.space.recovery.usual()
    for trial in draft.trials[::7]:
        plan = shared().spec.space.suggest(FixedTrial(trial.params | usual), shared().subject.anatomy)
        assert shared().cost_model.predict(plan).exact["size_bytes"] == trial.values[1]
        assert shared().cost_model.predict(plan).exact["macs"] <= shared().spec.limits[0].bound


def test_it_finds_what_the_table_alone_does_not() -> None:
    draft = draft_of(began()[0])
    assert draft is not None
    values = np.array([trial.values for trial in draft.trials])
    seeds, changed = values[:13], values[13:]

    def volume(points: np.ndarray) -> float:
        edges = np.linspace(np.log(values[:, 1].min()), np.log(values[:, 1].max()), 200)
        return float(np.mean([min([x for x, c in points if np.log(c) <= edge], default=4.0) for edge in edges]))

    assert volume(np.vstack([seeds, changed])) < volume(seeds)


def test_a_study_starts_with_the_best_of_it_spread_over_the_costs() -> None:
    main, plans = began()
    draft = draft_of(main)
    assert draft is not None
    assert 3 <= len(plans) <= 5
    drawn = [shared().spec.space.suggest(FixedTrial(params), shared().subject.anatomy) for params in plans]
    costs_of_uniform = shared().cost_model.exact(drawn)
    sizes = costs_of_uniform["size_bytes"].tolist()
    assert sizes == sorted(sizes, reverse=True)
    assert costs_of_uniform["macs"][0] > 1.5 * costs_of_uniform["macs"][-1]
    values = np.array([trial.values for trial in draft.trials])
    best = [not ((values <= one).all(1) & (values < one).any(1)).any() for one in values]
    logs = np.log(values[np.array(best) & plausible(values[:, 0]), 1])
    assert np.log(sizes[0]) == logs.max()
    assert np.log(sizes[-1]) <= logs.min() + np.ptp(logs) / 5
    assert np.ptp(logs) > 0.2
    again = optuna.create_study(study_name="again", storage=optuna.storages.InMemoryStorage())
    assert DraftStart(plans=5, scored=40)(shared(), again, BudgetClock(Budget())) == plans


def test_a_draft_goes_on_where_it_was() -> None:
    main = optuna.create_study(study_name="pieces", storage=optuna.storages.InMemoryStorage())
    for scored in (5, 17, 40):
        plans = DraftStart(plans=5, scored=scored)(shared(), main, BudgetClock(Budget()))
    draft = draft_of(main)
    assert draft is not None
    assert len(draft.trials) == 40
    assert plans
    assert len({tuple(trial.params.items()) for trial in draft.trials}) == 40


def test_what_another_worker_measured_alone_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    main = optuna.create_study(study_name="shared", storage=optuna.storages.InMemoryStorage())
    first = DraftStart(plans=5, scored=20)(shared(), main, BudgetClock(Budget()))
    monkeypatch.setattr("search.proposals.sensitivity_table._losses", lambda *_: pytest.fail("measured again"))
    assert DraftStart(plans=5, scored=20)(shared(), main, BudgetClock(Budget())) == first


def test_where_no_cost_is_foreseen_or_the_table_takes_too_long_uniform_plans_are_taken() -> None:
    main = optuna.create_study(study_name="none", storage=optuna.storages.InMemoryStorage())
    assert DraftStart(seconds=0)(shared(), main, BudgetClock(Budget())) == uniform_designs(shared())
    (top1, _) = shared().spec.objectives
    alone = context(dataclasses.replace(study(), objectives=(top1,), limits=()))
    assert DraftStart()(alone, main, BudgetClock(Budget())) == uniform_designs(alone)
    assert draft_of(main) is None


@functools.cache
def deep() -> Context:
    small = spec()
    space = Space((PruneRatios(), Depth(), BitWidths(weights=(2, 4, 8), activations=(8,))), Temperatures())
    return context(dataclasses.replace(small, teacher=Residual(8).eval(), space=space, limits=()))


def test_where_layers_can_be_left_out_what_leads_is_trained_for_a_few_steps() -> None:
    main = optuna.create_study(study_name="deep", storage=optuna.storages.InMemoryStorage())
    DraftStart(plans=5, scored=30)(deep(), main, BudgetClock(Budget()))
    draft = draft_of(main)
    assert draft is not None
    values = np.array([trial.values for trial in draft.trials])
    mended = np.array([SHORT_TRAINING in trial.user_attrs for trial in draft.trials])
    best = np.array([not ((values <= one).all(1) & (values < one).any(1)).any() for one in values])
    assert 2 < mended.sum() <= FIRST_TRAINED + len(mended) / ShortTraining(deep()).every + 1
    assert mended[0], "the first one leads"
    assert mended[best].mean() > 2 * mended[~best].mean()
    leading = draft.trials[np.flatnonzero(mended & best)[0]]
    plan = deep().plan(leading.params)
    before, after = deep().proxy_loss(deep().subject.build_roughly(plan)), ShortTraining(deep())(plan)
    assert max(LEAST_LOSS, after) == pytest.approx(max(LEAST_LOSS, leading.values[0]))
    assert leading.user_attrs[SHORT_TRAINING] == pytest.approx(max(LEAST_LOSS, after) / max(LEAST_LOSS, before))


def test_what_training_would_leave_is_told_from_plans_that_leave_out_as_many_layers_and_lost_as_much() -> None:
    mending = ShortTraining(deep())
    assert mending.predict(0.5, 1.0) == 1.0
    for ratio in (0.4, 0.5, 0.6, 0.5, 0.5):
        mending.note(0.2, 2.5, ratio)
        mending.note(0.6, 2.5, 2 * ratio)
        mending.note(0.2, 0.02, ratio / 5)
    assert mending.predict(0.2, 2.2) == 0.5
    assert mending.predict(0.6, 3.0) == 1.0
    assert mending.predict(0.2, 0.03) == pytest.approx(0.1)
    trained, batch = 15, deep().spec.recipe.batch_size
    enough = (
        (trained - FIRST_TRAINED) * SHORT_STEPS * batch / (FEW + SCORED)
    )  # as many examples as these are trained on
    assert [mending.due(scored) for scored in (0, int(enough), int(enough) + 1)] == [False, False, True]


def test_where_none_can_be_left_out_one_shot_losses_are_compared() -> None:
    draft = draft_of(began()[0])
    assert draft is not None
    assert not any(SHORT_TRAINING in trial.user_attrs for trial in draft.trials)


def test_how_many_are_scored_follows_from_the_budget() -> None:
    start = DraftStart()
    assert [start._aim(BudgetClock(Budget(trials))) for trials in (1, 20, 500)] == [100, 240, 1000]
    assert start._aim(BudgetClock(Budget(None, minutes=1))) == 1000


def test_what_answers_at_random_is_not_plausible() -> None:
    assert plausible(np.array([0.0, 1.0, 1.4, 1.6, 3.0, NOT_FINITE])).tolist() == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_a_whole_study_proposes_from_its_draft_and_the_same_twice(tmp_path: Path) -> None:
    found = [searched(dataclasses.replace(spec(), budget=Budget(9)), tmp_path / name) for name in ("a", "b")]
    first, second = ([(trial.params, trial.values) for trial in one.trials] for one in found)
    assert first == second
    draft = draft_of(found[0])
    assert draft is not None
    known = {tuple(trial.params.items()) for trial in draft.trials}
    for trial in found[0].trials:
        assert tuple((name, trial.params[name]) for name in draft.trials[0].params) in known


def test_a_run_keeps_to_its_time_and_shortens_trainings_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timed = dataclasses.replace(
        study(epochs=400), start=DraftStart(plans=5), budget=Budget(trials=None, cpu_seconds=12.0)
    )
    clock = BudgetClock(timed.budget)
    main, its = open_study(resolved(timed), tmp_path, None, create=True), context(timed)
    assert run(main, its, tmp_path)
    assert 0.7 < clock.spent < 1.6
    assert "of the recipe, to be in time" in capsys.readouterr().err
    assert len([trial for trial in main.trials if trial.values]) >= 3


def test_there_is_time_for_the_draft_where_learning_took_most_of_its_share() -> None:
    main = optuna.create_study(study_name="late", storage=optuna.storages.InMemoryStorage())
    late = BudgetClock(Budget(None, cpu_seconds=30.0), cpu=time.process_time() - 15.0)
    DraftStart(plans=5, scored=400)(shared(), main, late)
    draft = draft_of(main)
    assert draft is not None
    assert len(draft.trials) > 30
    assert late.spent < 0.8


def test_a_recipe_that_fits_is_left_alone() -> None:
    recipe, new = shared().spec.recipe, optuna.create_study()
    assert affordable(new, shared(), BudgetClock(Budget())) is recipe
    assert affordable(new, shared(), BudgetClock(Budget(None, minutes=1000))) is recipe
    long = context(dataclasses.replace(spec(), recipe=recipe.of_length(1000)))
    short = affordable(new, long, BudgetClock(Budget(None, cpu_seconds=1e-3)))
    assert short.steps(192) == 25


def test_trainings_are_not_shortened_for_more_than_are_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "seconds_a_candidate", lambda *_: (1e-6, 100.0))
    recipe, new = shared().spec.recipe.of_length(1000), optuna.create_study()
    long = context(dataclasses.replace(spec(), recipe=recipe))
    assert affordable(new, long, BudgetClock(Budget(2, cpu_seconds=220.0))) is recipe
    assert affordable(new, long, BudgetClock(Budget(3, cpu_seconds=220.0))).epochs < recipe.epochs
    assert affordable(new, long, BudgetClock(Budget(None, cpu_seconds=220.0))).epochs < recipe.epochs


def test_a_space_that_is_used_up_ends_the_draft() -> None:
    tiny = Space(steps=(BitWidths(weights=(4, 8), activations=(8,), only=("head",)),), recovery=Temperatures())
    few = context(dataclasses.replace(study(), space=tiny, limits=()))
    main = optuna.create_study(study_name="tiny", storage=optuna.storages.InMemoryStorage())
    plans = DraftStart()(few, main, BudgetClock(Budget()))
    draft = draft_of(main)
    assert draft is not None
    assert 3 <= len(draft.trials) <= 6
    assert 1 <= len(plans) <= 6


def test_where_no_sum_of_the_table_holds_the_limits_uniform_plans_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("lagrangian", "draft"):
        none = lambda _, costs: np.zeros(len(costs["macs"]), dtype=bool)  # noqa: E731
        monkeypatch.setattr(f"search.proposals.{module}.hold", none)
    main = optuna.create_study(study_name="tight", storage=optuna.storages.InMemoryStorage())
    assert DraftStart(scored=10)(shared(), main, BudgetClock(Budget())) == uniform_designs(shared())


def test_a_definition_that_changes_before_anything_is_trained_starts_a_new_draft(tmp_path: Path) -> None:
    main = open_study(resolved(spec()), tmp_path, None, create=True)
    DraftStart(scored=3)(shared(), main, BudgetClock(Budget()))
    assert draft_of(main) is not None
    again = open_study(resolved(dataclasses.replace(spec(), seed=5)), tmp_path, None, create=True)
    assert draft_of(again) is None


@pytest.mark.parametrize(("given", "share"), [({"minutes": 1e-9}, True), ({"cpu_seconds": 1e-9}, True), ({}, False)])
def test_a_clock_tells_what_is_spent(given: dict[str, float], *, share: bool) -> None:
    clock = BudgetClock(Budget(trials=None if given else 4, **given))
    assert (clock.spent > 1) == share == clock.timed
    assert (clock.left == 0) == share


def test_where_few_of_the_cheap_plans_hold_a_limit_plans_are_sought_that_do() -> None:
    """Size is wanted, multiply-adds are limited: rounding makes files small and leaves all multiply-adds."""
    made = study(4, share=0.2)
    tight = context(made)
    main = optuna.create_study(study_name="few", storage=optuna.storages.InMemoryStorage())
    table = measured_table(tight, main, 1e9)
    assert table is not None
    known = tight.cost_model.formulas
    cheap = lagrangian_search(table, [known["size_bytes"]])
    held = hold(tight, tight.cost_model.of(table.combine(cheap)))
    assert 2 * held.sum() < len(cheap)
    found = search_within_limits(tight, table, ["size_bytes"])
    assert len(found) > 1.5 * held.sum()
    assert hold(tight, tight.cost_model.of(table.combine(found))).all()
