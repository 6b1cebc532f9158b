"""The draft: plans that are scored before any training."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import FixedTrial
from torch.nn import functional

from search import Budget, DraftStart
from search.evaluation.context import Context
from search.loop.run import run
from search.loop.schedule import affordable
from search.proposals.defaults import resolved
from search.proposals.draft_records import MIN_LOSS, draft_of
from search.proposals.proxy_correlation import prediction_report
from search.proposals.seeds import DOUBTFUL_LOSS, _saving_most
from search.proposals.short_training import FIRST_TRAINED, SHORT_STEPS, ShortTraining
from search.proposals.table_losses import middles, passes_of, proxy_loss_of
from search.proposals.uniform_start import uniform_designs
from search.study.budget_clock import BudgetClock, cpu_seconds
from search.study.front import trained
from search.study.records import INPUTS, PROXY_LOSS, SHORT_TRAINING, TABLE_RANKS
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


def test_the_draft_is_a_separate_study_whose_values_are_the_loss_and_the_costs() -> None:
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


def test_the_draft_finds_better_plans_than_the_table_alone() -> None:
    draft = draft_of(began()[0])
    assert draft is not None
    values = np.array([trial.values for trial in draft.trials])
    seeds, mutants = values[:13], values[13:]

    def volume(points: np.ndarray) -> float:
        edges = np.linspace(np.log(values[:, 1].min()), np.log(values[:, 1].max()), 200)
        return float(np.mean([min([x for x, c in points if np.log(c) <= edge], default=4.0) for edge in edges]))

    assert volume(np.vstack([seeds, mutants])) < volume(seeds)


def test_a_study_starts_with_the_best_plans_of_the_draft_spread_over_the_costs() -> None:
    main, plans = began()
    draft = draft_of(main)
    assert draft is not None
    assert 3 <= len(plans) <= 5
    drawn = [shared().spec.space.suggest(FixedTrial(params), shared().subject.anatomy) for params in plans]
    costs = shared().cost_model.exact(drawn)
    sizes = costs["size_bytes"]
    assert np.ptp(np.log(costs["macs"])) > np.log(1.5)
    values = np.array([trial.values for trial in draft.trials])
    best = [not ((values <= one).all(1) & (values < one).any(1)).any() for one in values]
    logs, losses = np.log(values[best, 1]), values[best, 0]
    assert np.log(sizes.max()) == logs[losses <= DOUBTFUL_LOSS].max()
    assert np.log(sizes.min()) <= logs.min() + np.ptp(logs) / 2
    assert np.ptp(logs) > 0.2
    own = [draft.trials[at].values[0] for params in plans for at in range(40)
           if draft.trials[at].params.items() <= params.items()]  # fmt: skip
    assert len(own) == len(plans)
    assert sum(loss > DOUBTFUL_LOSS for loss in own) <= 2  # a quarter of five, rounded up
    ranks = draft.user_attrs[TABLE_RANKS]
    words = f"over 40 plans the table's sums rank plans of similar cost with a correlation of {ranks:.2f}"
    assert words in prediction_report(main, spec())
    again = optuna.create_study(study_name="again", storage=optuna.storages.InMemoryStorage())
    assert DraftStart(plans=5, scored=40)(shared(), again, BudgetClock(Budget())) == plans


def test_a_draft_resumes_from_the_storage() -> None:
    main = optuna.create_study(study_name="pieces", storage=optuna.storages.InMemoryStorage())
    for scored in (5, 17, 40):
        plans = DraftStart(plans=5, scored=scored)(shared(), main, BudgetClock(Budget()))
    draft = draft_of(main)
    assert draft is not None
    assert len(draft.trials) == 40
    assert plans
    assert len({tuple(trial.params.items()) for trial in draft.trials}) == 40


def test_a_table_that_another_worker_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    main = optuna.create_study(study_name="shared", storage=optuna.storages.InMemoryStorage())
    first = DraftStart(plans=5, scored=20)(shared(), main, BudgetClock(Budget()))
    monkeypatch.setattr("search.proposals.sensitivity_table.measured_losses", lambda *_: pytest.fail("measured again"))
    assert DraftStart(plans=5, scored=20)(shared(), main, BudgetClock(Budget())) == first


def test_uniform_plans_replace_the_draft_if_no_cost_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    main = optuna.create_study(study_name="none", storage=optuna.storages.InMemoryStorage())
    (top1, _) = shared().spec.objectives
    alone = context(dataclasses.replace(study(), objectives=(top1,), limits=()))
    assert DraftStart()(alone, main, BudgetClock(Budget())) == uniform_designs(alone)
    assert "no draft, because no objective is known before training" in " ".join(capsys.readouterr().err.split())
    assert draft_of(main) is None


@functools.cache
def with_depth() -> Context:
    small = spec()
    space = Space((PruneRatios(), Depth(), BitWidths(weights=(2, 4, 8), activations=(8,))), Temperatures())
    torch.manual_seed(0)
    net, train = Residual(8), small.splits.train
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        functional.cross_entropy(net(train.inputs), train.labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return context(dataclasses.replace(small, teacher=net.eval(), space=space, limits=()))


def test_leading_plans_are_trained_for_a_few_steps_if_layers_can_be_left_out() -> None:
    main = optuna.create_study(study_name="deep", storage=optuna.storages.InMemoryStorage())
    DraftStart(plans=5, scored=30)(with_depth(), main, BudgetClock(Budget()))
    draft = draft_of(main)
    assert draft is not None
    inputs = draft.user_attrs[INPUTS]
    values = np.array([trial.values for trial in draft.trials])
    trained = np.array([SHORT_TRAINING in trial.user_attrs for trial in draft.trials])
    every, passed_over = ShortTraining(with_depth(), inputs).every, 0
    assert 2 < trained.sum() <= FIRST_TRAINED + len(trained) / every + 1
    for at, own in enumerate(values):
        due = trained[:at].sum() < FIRST_TRAINED + at / every
        assert due or not trained[at]
        if due and not trained[at]:
            assert (values[:at] <= own).all(1).any(), "a plan on the front would have been trained"
            passed_over += 1
    assert trained[0], "the first plan is always on the front"
    assert passed_over
    leading = draft.trials[0]
    plan = with_depth().plan(leading.params)
    before, after = proxy_loss_of(with_depth(), plan, inputs), ShortTraining(with_depth(), inputs)(plan, 1e9)
    assert max(MIN_LOSS, after) == pytest.approx(max(MIN_LOSS, leading.values[0]))
    assert leading.user_attrs[SHORT_TRAINING] == pytest.approx(max(MIN_LOSS, after) / max(MIN_LOSS, before))


def test_the_ratio_after_training_is_predicted_from_plans_with_similar_depth_and_loss() -> None:
    proxy = ShortTraining(with_depth(), 256)
    assert proxy.predict(0.5, 1.0) == 1.0
    for ratio in (0.4, 0.5, 0.6, 0.5, 0.5):
        proxy.note(0.2, 2.5, ratio)
        proxy.note(0.6, 2.5, 2 * ratio)
        proxy.note(0.2, 0.02, ratio / 5)
    assert proxy.predict(0.2, 2.2) == 0.5
    assert proxy.predict(0.6, 3.0) == 1.0
    assert proxy.predict(0.2, 0.03) == pytest.approx(0.1)
    proxy.note(0.2, 0.03, None)
    assert proxy.predict(0.2, 0.03) == pytest.approx(0.1), "a training that failed says nothing, but counts"
    trained, batch = 16, with_depth().spec.recipe.batch_size
    # the number of plans whose scoring takes as many examples as the trainings after the first ones
    balanced = (trained - FIRST_TRAINED) * SHORT_STEPS * batch / passes_of(256)
    assert [proxy.due(scored) for scored in (0, int(balanced), int(balanced) + 1)] == [False, False, True]


def test_no_plan_of_the_draft_is_trained_if_there_is_no_time_for_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Context, "step_seconds", lambda *_: 1.0)
    monkeypatch.setattr(Context, "train", lambda *_: pytest.fail("no time"))
    proxy, anatomy = ShortTraining(with_depth(), 64), with_depth().subject.anatomy
    plan = with_depth().plan(with_depth().spec.space.uniform(anatomy, (0.5,) * len(with_depth().spec.space.steps)))
    assert proxy.due(0)
    assert proxy(plan, SHORT_STEPS - 1.0) == np.inf
    assert not proxy.due(1000)
    assert "no plan of the draft is trained for 25 steps, since one takes over 24 s" in capsys.readouterr().err


def test_losses_before_training_are_compared_if_no_layer_can_be_left_out() -> None:
    draft = draft_of(began()[0])
    assert draft is not None
    assert not any(SHORT_TRAINING in trial.user_attrs for trial in draft.trials)


def test_the_number_of_scored_plans_follows_from_the_budget() -> None:
    start = DraftStart()
    assert [start._target(BudgetClock(Budget(trials))) for trials in (1, 20, 500)] == [100, 240, 1000]
    assert start._target(BudgetClock(Budget(None, minutes=1))) == 1000


def test_a_study_trains_the_best_plan_of_each_band_of_its_draft_and_is_reproducible(tmp_path: Path) -> None:
    wide = dataclasses.replace(spec(), start=DraftStart(scored=40), budget=Budget(7))
    found = [searched(wide, tmp_path / name) for name in ("a", "b")]
    first, second = ([(trial.params, trial.values) for trial in one.trials] for one in found)
    assert first == second
    draft = draft_of(found[0])
    assert draft is not None
    known = {tuple(trial.params.items()) for trial in draft.trials}
    assert len(trained(found[0])) == 7
    for trial in trained(found[0]):
        assert tuple((name, trial.params[name]) for name in draft.trials[0].params) in known


@pytest.mark.slow
def test_a_run_shortens_trainings_to_stay_within_its_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timed = dataclasses.replace(
        study(epochs=400), start=DraftStart(plans=5), budget=Budget(trials=None, cpu_seconds=12.0)
    )
    clock = BudgetClock(timed.budget)
    main, made = open_study(resolved(timed), tmp_path, None, create=True), context(timed)
    assert run(main, made, tmp_path)
    assert 0.7 < clock.spent < 1.6
    assert "of the recipe, to finish in time" in capsys.readouterr().err
    assert len([trial for trial in main.trials if trial.values]) >= 3


@pytest.mark.slow
def test_the_draft_gets_time_even_if_measurements_took_most_of_its_share() -> None:
    main = optuna.create_study(study_name="late", storage=optuna.storages.InMemoryStorage())
    late = BudgetClock(Budget(None, cpu_seconds=60.0), cpu=cpu_seconds() - 30.0)
    DraftStart(plans=5, scored=400)(shared(), main, late)
    draft = draft_of(main)
    assert draft is not None
    assert len(draft.trials) > 30
    assert late.spent < 0.8


def test_without_time_for_the_draft_the_table_decides(capsys: pytest.CaptureFixture[str]) -> None:
    main = optuna.create_study(study_name="hasty", storage=optuna.storages.InMemoryStorage())
    plans = DraftStart(plans=5)(shared(), main, BudgetClock(Budget(None, cpu_seconds=1e-3)))
    assert "there was time to score 0 plans; the initial designs are the best by the" in capsys.readouterr().err
    assert 3 <= len(plans) <= 5
    sizes = shared().cost_model.exact([shared().plan(params) for params in plans])["size_bytes"]
    assert sizes.min() < sizes[0] < sizes.max()


def test_a_recipe_that_fits_the_time_is_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    recipe, new = shared().spec.recipe, optuna.create_study()
    assert affordable(new, shared(), BudgetClock(Budget())) == recipe
    assert affordable(new, shared(), BudgetClock(Budget(None, minutes=1000))) == recipe
    long = context(dataclasses.replace(spec(), recipe=recipe.of_length(1000)))
    assert affordable(new, long, BudgetClock(Budget(None, cpu_seconds=1e-3))).steps(long.spec.splits.train) == 1
    assert "each candidate is trained for 1 step, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("other_seconds", "steps", "words"),
    [
        (1.0, 83, ""),  # eight candidates and a quarter of the time for the front
        (8.0, 25, "the time is short: about 9 candidates can be trained, since one takes 10 s"),
        (49.0, 20, "the time is short: about 1 candidate can be trained, since one takes 51 s"),  # and its file
        (90.0, 1, "the time is short: about 1 candidate can be trained, since one takes 90 s"),
    ],
)
def test_a_training_is_shortened_until_a_candidate_and_its_file_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], other_seconds: float, steps: int, words: str
) -> None:
    monkeypatch.setattr(Context, "seconds_a_candidate", lambda *_: (0.1, other_seconds, 0.0))
    long = context(dataclasses.replace(spec(), recipe=shared().spec.recipe.of_length(1000)))
    clock = BudgetClock(Budget(None, cpu_seconds=100.0))
    assert affordable(optuna.create_study(), long, clock).steps(long.spec.splits.train) == pytest.approx(steps, abs=1)
    printed = " ".join(capsys.readouterr().err.split())
    assert words in printed
    assert ("the time is short" in printed) == bool(words)


def test_trainings_are_shortened_only_for_the_trials_that_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "seconds_a_candidate", lambda *_: (1e-6, 100.0, 0.0))
    recipe, new = shared().spec.recipe.of_length(1000), optuna.create_study()
    long = context(dataclasses.replace(spec(), recipe=recipe))
    assert affordable(new, long, BudgetClock(Budget(2, cpu_seconds=220.0))) == recipe
    assert affordable(new, long, BudgetClock(Budget(3, cpu_seconds=220.0))).epochs < recipe.epochs
    assert affordable(new, long, BudgetClock(Budget(None, cpu_seconds=220.0))).epochs < recipe.epochs


def test_an_exhausted_space_ends_the_draft() -> None:
    tiny = Space(steps=(BitWidths(weights=(4, 8), activations=(8,), only=("head",)),), recovery=Temperatures())
    few = context(dataclasses.replace(study(), space=tiny, limits=()))
    main = optuna.create_study(study_name="tiny", storage=optuna.storages.InMemoryStorage())
    plans = DraftStart()(few, main, BudgetClock(Budget()))
    draft = draft_of(main)
    assert draft is not None
    assert 3 <= len(draft.trials) <= 6
    assert 1 <= len(plans) <= 6


def test_uniform_plans_replace_the_draft_if_no_table_sum_meets_the_limits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("search.proposals.seeds.excess_over_limits", lambda _, costs, *__: np.ones(len(costs["macs"])))
    monkeypatch.setattr("search.proposals.draft.meet_limits", lambda _, costs: np.zeros(len(costs["macs"]), dtype=bool))
    main = optuna.create_study(study_name="tight", storage=optuna.storages.InMemoryStorage())
    assert DraftStart(scored=10)(shared(), main, BudgetClock(Budget())) == uniform_designs(shared())
    printed = " ".join(capsys.readouterr().err.split())
    assert "no draft, because no plan of the sensitivity table meets the limits; the initial designs" in printed


def test_a_definition_changed_before_any_training_starts_a_new_draft(tmp_path: Path) -> None:
    main = open_study(resolved(spec()), tmp_path, None, create=True)
    DraftStart(scored=3)(shared(), main, BudgetClock(Budget()))
    assert draft_of(main) is not None
    again = open_study(resolved(dataclasses.replace(spec(), seed=5)), tmp_path, None, create=True)
    assert draft_of(again) is None


@pytest.mark.parametrize(("bounds", "timed"), [({"minutes": 1e-9}, True), ({"cpu_seconds": 1e-9}, True), ({}, False)])
def test_a_clock_reports_the_spent_share_of_a_timed_budget(bounds: dict[str, float], *, timed: bool) -> None:
    clock = BudgetClock(Budget(trials=None if bounds else 4, **bounds))
    assert (clock.spent > 1) == timed == clock.timed
    assert (clock.left == 0) == timed


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_the_first_training_is_of_the_plan_that_saves_most_for_its_loss(unit: float) -> None:
    logs_NC = np.log(unit) + np.array([[0.0, 0.0], [-1.0, 0.0], [-1.5, -1.5], [-4.0, -3.0]])
    losses = np.array([0.0, 0.001, 0.05, 0.45])
    assert _saving_most(logs_NC, losses, logs_NC.max(0)) == 2
    assert _saving_most(logs_NC, losses / 10, logs_NC.max(0)) == 3
    assert middles(-1, 5, 3) == [3, 1, 0, 2, 4]
    assert middles(-1, 5) == [2, 1, 4, 0, 3]
