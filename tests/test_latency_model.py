"""Costs that cannot be computed from shapes are predicted by models fitted on measured networks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import optuna
import pytest
from optuna.trial import FixedTrial, TrialState
from scipy.stats import spearmanr
from torch import nn

from objectives import Limit, Macs, Parameters
from search import Budget, DraftStart, UniformStart
from search.costs.coarse_work import coarse_work
from search.costs.latency_model import MOST_NETWORKS, LatencyModel, MeasuredParts, at_best_clock
from search.costs.part_choice import most_telling
from search.evaluation.context import Context
from search.evaluation.profiled_plans import PROFILED_NETWORKS
from search.evaluation.profiling import (
    PLANS_PER_ROUND,
    PROMISING_ROUNDS,
    fit_before_search,
    measure_promising,
    refit,
)
from search.evaluation.trial import run_trial
from search.loop.run import run
from search.proposals.defaults import resolved
from search.proposals.draft_records import draft_of
from search.proposals.proxy_correlation import cost_prediction_errors
from search.results.file_records import with_records
from search.results.tables import front_table
from search.study import machine
from search.study.attributes import put_content
from search.study.budget_clock import BudgetClock
from search.study.front import front, trained
from search.study.queue import enqueue
from search.study.records import AHEAD, PROXY_LOSS, REASON, RELATIVE
from search.study.storage import open_study
from spaces import Distill, Plan, Prune, Quantize
from spaces.axes.quantized_layers import PackedLayer
from spaces.network.layers import FLOAT_BITS
from spaces.plan import architectures_of
from tests.small_study import context, searched, study

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from objectives.objective import Direction
    from search import StudySpec


TOO_LITTLE = 1e-9  # CPU seconds
NO_PARTS = MeasuredParts(np.zeros((0, 0)), np.zeros(0))


def fitted_networks(shared: Context) -> int:
    """Return the number of networks that the model is fitted on."""
    return len(shared.cost_model.models["energy_nj"].values_N)


@dataclasses.dataclass(frozen=True)
class Energy:
    """A cost without a formula: it depends on multiply-adds, parameters and quantized layers."""

    inputs: Tensor = dataclasses.field(repr=False)
    name: ClassVar[str] = "energy_nj"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True
    calls: ClassVar[list[int]] = []

    def __call__(self, model: nn.Module) -> float:
        self.calls.append(1)
        quantized = sum(isinstance(layer, PackedLayer) for layer in model.modules())
        return Macs(self.inputs)(model) / 100 + Parameters()(model) / 20 + 5 * quantized + 40


def spec(trials: int = 5) -> StudySpec:
    made = study(trials)
    energy = Energy(made.splits.validation.inputs)
    return dataclasses.replace(made, objectives=(made.objectives[0], energy), limits=(), start=DraftStart(4, 30))


def predicted_and_measured(shared: Context, count: int = 30) -> tuple[np.ndarray, np.ndarray]:
    space, anatomy = shared.spec.space, shared.subject.anatomy
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    random = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=5))
    plans = [space.suggest(random.ask(), anatomy) for _ in range(count)]
    predicted = shared.cost_model.of(architectures_of(shared.cost_model.frame, plans))["energy_nj"]
    (energy,) = shared.spec.costs
    return predicted, np.array([energy(shared.subject.finish(shared.subject.build_roughly(plan))) for plan in plans])


def test_predictions_are_accurate_on_networks_that_the_model_was_not_fitted_on() -> None:
    shared = context(spec())
    fit_before_search(shared, 1e9)
    predicted, measured = predicted_and_measured(shared)
    assert np.median(np.abs(predicted / measured - 1)) < 0.05
    assert spearmanr(predicted, measured)[0] > 0.95
    assert shared.cost_model._formulas == {}  # so no plan is rejected for an exact cost


def test_only_missing_measurements_are_made() -> None:
    Energy.calls.clear()
    fit_before_search(context(spec()), TOO_LITTLE)
    assert len(Energy.calls) == 2, "the teacher and one network"
    shared = context(spec())
    fit_before_search(shared, 1e9)
    assert "energy_nj" in shared.cost_model.formulas
    teachers = 2  # one in each run of measuring
    assert len(Energy.calls) == PROFILED_NETWORKS + teachers
    fit_before_search(context(spec()), 0.0)
    assert len(Energy.calls) == PROFILED_NETWORKS + teachers + 1


def test_one_measured_network_is_enough_for_a_model_which_says_how_good_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shared = context(spec())
    fit_before_search(shared, TOO_LITTLE)
    assert fitted_networks(shared) == 2
    message = "energy_nj is predicted from 1 network, too few to tell how well"
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert shared.cost_model.models["energy_nj"].error == 1


def test_the_time_to_load_a_runtime_counts_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading the runtime takes 10 seconds and each network one second, so 8 networks fit into 8 seconds."""
    measured, now = Energy.__call__, 0.0

    def slow(self: Energy, model: nn.Module) -> float:
        nonlocal now
        now += 1.0 if now else 10.0
        return measured(self, model)

    monkeypatch.setattr(Energy, "__call__", slow)
    monkeypatch.setattr("search.evaluation.profiling.time.process_time", lambda: now)
    shared = context(spec())
    fit_before_search(shared, 8.0)
    assert fitted_networks(shared) - 1 == 8


def test_a_cost_that_cannot_be_predicted_is_reported_without_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    class ZeroOnCandidates(Energy):
        def __call__(self, model: nn.Module) -> float:
            return super().__call__(model) * float(isinstance(model.get_submodule("first"), nn.Conv2d))

    made = spec()
    shared = context(
        dataclasses.replace(made, objectives=(made.objectives[0], ZeroOnCandidates(made.splits.validation.inputs)))
    )
    fit_before_search(shared, 1e9)
    assert shared.cost_model.formulas == {}
    printed = capsys.readouterr().err.replace("\n", " ")
    reason = "a cost must be positive and finite to be predicted, but one network has 0.0"
    assert f"energy_nj is not predicted, because measuring a network failed: {reason}" in printed


def test_a_study_with_a_predicted_cost_has_a_draft_and_reports_prediction_errors(tmp_path: Path) -> None:
    done = searched(spec(), tmp_path / "study")
    draft = draft_of(done)
    assert draft is not None
    assert draft.metric_names == [PROXY_LOSS, "energy_nj"]
    assert len(trained(done)) == 5
    made = resolved(spec())
    table = front_table(done, made, with_records(front(done), made.runtime, tmp_path / "study"))
    assert table["predicted_energy_nj"][1:].to_numpy() == pytest.approx(table["energy_nj"][1:].to_numpy(), rel=0.3)
    errors = cost_prediction_errors(done)["energy_nj"]
    assert errors.trials >= 4
    assert errors.error < 0.05


def test_the_model_is_refitted_with_later_measurements() -> None:
    shared = context(spec())
    fit_before_search(shared, 1e9)
    plan = Plan((Quantize((("first", 4, 8),)),), Distill())
    before = shared.cost_model.predict(plan).modelled["energy_nj"]
    relative = shared.cost_model.over_teacher({"energy_nj": 3 * before, "size_bytes": 1.0})
    assert relative.keys() == {"energy_nj"}
    for share in range(2 * PROFILED_NETWORKS):
        none = Prune((("first", share / 1000),))  # less than one unit: another plan with the same work
        for weight in (0.2, 0.8):
            shared.cost_model.observe(Plan((none, *plan.steps), Distill(weight=weight)), relative)
    assert shared.cost_model.predict(plan).modelled["energy_nj"] > 2 * before
    assert fitted_networks(shared) == 1 + 3 * PROFILED_NETWORKS, "each plan once, whatever its recovery"


def test_a_network_is_measured_once_whatever_its_recovery() -> None:
    shared = context(spec())
    plan, other = (
        shared.plan(shared.spec.space.uniform(shared.subject.anatomy, (strength,) * 3)) for strength in (0.5, 1.0)
    )
    Energy.calls.clear()
    shared.seconds_a_candidate(shared.spec.recipe, plan)
    first = shared.measure_costs(plan, shared.build(plan), shared.spec.costs)
    softer = Plan(plan.steps, Distill(temperature=9.0))
    assert shared.measure_costs(softer, shared.build(softer), shared.spec.costs) == first
    assert len(Energy.calls) == 1
    assert shared.measure_costs(other, shared.build(other), shared.spec.costs) != first
    assert len(Energy.calls) == 2


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_invalid_costs_are_ignored(value: float) -> None:
    shared = context(spec())
    fit_before_search(shared, 1e9)
    shared.cost_model.observe(Plan((Quantize((("first", 4, 8),)),), Distill()), {"energy_nj": value})
    assert fitted_networks(shared) == 1 + PROFILED_NETWORKS


def test_promising_plans_are_measured_once_before_the_draft() -> None:
    made = spec()
    shared = context(made)
    main = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    DraftStart(4, 30)(shared, main, BudgetClock(Budget()))
    ahead = main.user_attrs[AHEAD]
    plans = {shared.plan(params) for params, *_ in ahead}
    assert PLANS_PER_ROUND < len(plans) == len(ahead) <= (1 + PROMISING_ROUNDS) * PLANS_PER_ROUND
    assert fitted_networks(shared) == 1 + PROFILED_NETWORKS + len(plans)
    (energy,) = made.costs
    params, relative, where = ahead[0]
    measured = energy(shared.subject.finish(shared.subject.build_roughly(shared.plan(params))))
    assert relative["energy_nj"] * energy(shared.subject.finished) == pytest.approx(measured)
    assert where == machine.words()


def test_measuring_promising_plans_keeps_to_its_time_and_skips_failures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = context(spec())
    fit_before_search(shared, 1e9)
    main = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    space = shared.spec.space
    plans = [space.uniform(shared.subject.anatomy, (at / 10,) * len(space.steps)) for at in range(1, 4)]
    monkeypatch.setattr(Energy, "__call__", lambda *_: 1 / 0)
    measure_promising(main, shared, lambda _: plans, 1e9)
    assert fitted_networks(shared) == 1 + PROFILED_NETWORKS
    assert "a promising plan could not be measured: " in capsys.readouterr().err
    monkeypatch.undo()
    main.set_user_attr(AHEAD, [])
    shared.measuring_seconds = 2.0
    measure_promising(main, shared, lambda _: plans, 1.0)
    assert main.user_attrs[AHEAD] == []
    assert "no promising plan is measured: one takes 2 s, and 1 s are planned for it" in capsys.readouterr().err
    shared.measuring_seconds = 0.0
    measure_promising(main, shared, lambda _: plans, 1e-9)
    assert len(main.user_attrs[AHEAD]) == 1
    measure_promising(main, shared, lambda _: plans, 1e9)
    assert len(main.user_attrs[AHEAD]) == 1, "once per study"


def test_a_resumed_study_fits_its_model_on_earlier_measurements(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    done = searched(spec(5), folder)
    count = len(done.trials)
    assert sum(RELATIVE in trial.user_attrs for trial in done.trials) >= 4
    made = spec(7)
    main, shared = open_study(resolved(made), folder, None, create=False), context(made)
    Energy.calls.clear()
    run(main, shared, folder)
    new = [trial for trial in main.trials[count:] if RELATIVE in trial.user_attrs]
    assert len(Energy.calls) == 1 + len(new), "the teacher and the new networks"
    networks = {shared.plan(params).steps for params, *_ in main.user_attrs[AHEAD]}
    networks |= {shared.plan(trial.params).steps for trial in main.trials[:-1] if RELATIVE in trial.user_attrs}
    assert len(networks) > len(main.user_attrs[AHEAD])
    assert fitted_networks(shared) == 1 + PROFILED_NETWORKS + len(networks)


def test_measurements_from_another_machine_are_ignored() -> None:
    shared = context(spec())
    fit_before_search(shared, 1e9)
    foreign = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    space = shared.spec.space
    params = [space.uniform(shared.subject.anatomy, (strength,) * len(space.steps)) for strength in (0.25, 0.5, 0.75)]
    for where, expected in (("another", 0), (machine.words(), 2)):
        foreign.set_user_attr(AHEAD, [[params[0], {"energy_nj": 0.5}, where]])
        enqueue(foreign, params[1 + (expected > 0)])
        trial = foreign.ask()
        space.suggest(trial, shared.subject.anatomy)
        put_content(trial, RELATIVE, [{"energy_nj": 0.4}, where])
        refit(foreign, shared)
        assert fitted_networks(shared) == 1 + PROFILED_NETWORKS + expected


def test_nothing_is_measured_if_no_time_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    Energy.calls.clear()
    shared = context(spec())
    fit_before_search(shared, 0.0)
    assert shared.cost_model.formulas == {}
    assert not Energy.calls
    assert "not predicted" not in capsys.readouterr().err


def test_a_plan_predicted_to_exceed_a_limit_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = spec()
    energy = made.objectives[1]
    limit = Limit(energy, at_most=0.5 * energy(context(made).subject.finished))
    limited = dataclasses.replace(made, limits=(limit,), start=UniformStart(), budget=Budget(3))
    shared = context(limited)
    fit_before_search(shared, 1e9)
    main = open_study(resolved(limited), tmp_path, None, create=True)
    unchanged = shared.spec.space.uniform(shared.subject.anatomy, (0.0,) * len(shared.spec.space.steps))
    enqueue(main, unchanged)
    builds: list[object] = []
    monkeypatch.setattr(Context, "build", lambda _, plan: builds.append(plan))
    main.optimize(lambda trial: run_trial(trial, shared, tmp_path, limited.recipe, lambda _: None), n_trials=1)
    (trial,) = main.trials
    assert trial.state == TrialState.PRUNED
    assert trial.user_attrs[REASON] == f"predicted to exceed the limit {limit}, so it was not measured"
    assert trial.constraints["0"] == pytest.approx(1.0, abs=0.1)
    assert not builds


def test_limits_on_a_predicted_cost_bound_the_draft() -> None:
    made = spec()
    energy = made.objectives[1]
    limit = Limit(energy, at_most=0.6 * energy(context(made).subject.finished))
    shared = context(dataclasses.replace(made, limits=(limit,)))
    main = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    plans = DraftStart(4, 30)(shared, main, BudgetClock(Budget()))
    for params in plans:
        plan = shared.spec.space.suggest(FixedTrial(params), shared.subject.anatomy)
        assert energy(shared.subject.finish(shared.build(plan))) <= 1.1 * limit.bound


def test_the_error_is_measured_by_leaving_one_network_out() -> None:
    shared = context(spec())
    plans = [None, *(Plan((Quantize((("first", bits, FLOAT_BITS),)),), Distill()) for bits in (2, 4, 8))]
    parts = architectures_of(shared.cost_model.frame, plans).parts()
    values = np.array([1.0, 5.0, 1.0, 5.0])
    model = LatencyModel("noise", coarse_work, coarse_work(parts), values, NO_PARTS)
    assert model.error > 0.6
    assert model.words().startswith("noise is predicted from 3 networks; each network by the others: median error")
    assert "rank correlation" not in model.words()
    alone = LatencyModel("noise", coarse_work, coarse_work(parts)[:1], values[:1], NO_PARTS)
    assert alone.error == 1.0
    assert alone.words() == "noise is predicted from the teacher"


def test_the_error_of_few_networks_is_not_below_half_of_new_ones() -> None:
    work_NF, values_N = np.ones((4, 1)), np.array([1.0, 1.1, 2.0, 1.0])
    two, three = (LatencyModel("ms", coarse_work, work_NF[:count], values_N[:count], NO_PARTS) for count in (3, 4))
    assert two.error == max(abs(two.held_out / values_N[1:3] - 1)), "the larger of two"
    assert three.error == np.median(abs(three.held_out / values_N[1:] - 1))


def test_measurements_change_the_predictions_of_similar_networks_only() -> None:
    rng = np.random.default_rng(0)
    done = rng.uniform(1, 9, (20, 4))
    coefficients = np.array([1.0, 0.5, 2.0, 0.1])
    outlier = np.array([2.0, 8.0, 1.0, 5.0])  # similar networks cost 20% more than the linear model predicts
    similar = outlier * rng.uniform(0.98, 1.02, (6, 4))
    before = LatencyModel("ms", coarse_work, done, done @ coefficients, NO_PARTS)
    costs = np.concatenate([done @ coefficients, 1.2 * similar @ coefficients])
    after = LatencyModel("ms", coarse_work, np.vstack([done, similar]), costs, NO_PARTS)
    assert before.predict(outlier[None])[0] == pytest.approx(outlier @ coefficients, rel=0.01)
    assert after.predict(outlier[None])[0] == pytest.approx(1.2 * outlier @ coefficients, rel=0.03)
    other = np.array([9.0, 1.0, 9.0, 1.0])
    assert after.predict(other[None])[0] == pytest.approx(other @ coefficients, rel=0.1)
    assert after.error < 0.05


@pytest.mark.parametrize("count", [6, 40])
def test_parts_predict_networks_that_one_network_does_not(count: int) -> None:
    rng = np.random.default_rng(0)
    coefficients = np.array([1.0, 0.5, 2.0, 0.1])
    parts, networks = rng.uniform(0, 3, (count, 4)), rng.uniform(1, 90, (30, 4))
    measured = MeasuredParts(parts, parts @ coefficients)
    assert all(len(rows) <= 4 + 1 for rows, _ in measured.resamples) or count == 6, "as few as there are kinds of work"
    model = LatencyModel("ms", coarse_work, networks[:1], networks[:1] @ coefficients, measured)
    assert model.predict(networks) == pytest.approx(networks @ coefficients, rel=0.2)
    alone = LatencyModel("ms", coarse_work, networks[:1], networks[:1] @ coefficients, NO_PARTS)
    assert np.median(abs(alone.predict(networks) / (networks @ coefficients) - 1)) > 0.1
    slower = LatencyModel("ms", coarse_work, networks[:5], 1.5 * networks[:5] @ coefficients, measured)
    assert slower.predict(networks[5:]) == pytest.approx(1.5 * networks[5:] @ coefficients, rel=0.2)


def test_work_that_was_never_measured_adds_nothing() -> None:
    """Rounding errors of the fit must not become coefficients: 3 parts of a large network were predicted as 1e15."""
    rng, kinds = np.random.default_rng(0), 104
    units = 10.0 ** rng.uniform(0, 8, kinds)  # from one operator to 100 million multiply-adds
    parts, teacher = ((rng.random((count, kinds)) < 0.4) * rng.random((count, kinds)) * units for count in (3, 1))
    unknown = (np.vstack([parts, teacher]) == 0).all(0)
    model = LatencyModel("ms", coarse_work, teacher, np.ones(1), MeasuredParts(parts, np.array([0.05, 0.01, 0.02])))
    assert (model.coefficients_F[unknown] == 0).all()
    assert model.predict(teacher + units * unknown)[0] == pytest.approx(1.0, rel=0.1)


def test_the_time_of_small_parts_is_not_charged_to_what_large_networks_have_most_of() -> None:
    """MobileNetV3-small in LiteRT: 96 numbers converted in one layer, 97,000 in a network, predicted as 45, not 1.1."""
    operators_and_numbers = np.array([[1.0, 64.0], [1.0, 96.0], [1.0, 160.0], [2.0, 128.0]])
    times = np.array([0.0095, 0.01, 0.0107, 0.0195])  # 0.01 an operator, and 5% of error
    teacher, network = np.array([[50.0, 0.0]]), np.array([[50.0, 97_000.0]])
    measured = MeasuredParts(operators_and_numbers, times)
    assert LatencyModel("ms", coarse_work, teacher, np.array([0.5]), measured).predict(network)[0] > 1
    informed = dataclasses.replace(measured, most_F=network[0])
    predicted = LatencyModel("ms", coarse_work, teacher, np.array([0.5]), informed).predict(network)[0]
    assert predicted == pytest.approx(0.6, rel=0.1)


def test_the_part_that_tells_most_of_the_networks_is_measured_next() -> None:
    networks = np.array([[40.0, 2e6, 0.0], [40.0, 1e6, 0.0]])
    measured = MeasuredParts(np.array([[1.0, 0.0, 0.0]]), np.array([0.02]))
    candidates = np.array([[1.0, 0.0, 0.0], [1.0, 1e5, 0.0], [1.0, 10.0, 0.0], [1.0, 0.0, 1e6]])
    assert most_telling(candidates, measured, networks, 1.0) == 1, "what networks have much of, and is not measured"
    nothing = MeasuredParts(np.zeros((0, 3)), np.zeros(0))
    assert most_telling(candidates, nothing, networks, 1.0) == 1
    both = MeasuredParts(np.array([[1.0, 1e5, 0.0]] * 20), np.full(20, 0.05))
    assert most_telling(candidates[[1, 0]], both, networks, 1.0) == 1, "not the twenty-first of the same"


@pytest.mark.parametrize("clock", [0.7, 1.0, 1.4])
def test_parts_that_were_timed_at_another_clock_are_corrected(clock: float) -> None:
    rng = np.random.default_rng(0)
    coefficients = np.array([1.0, 0.5, 2.0, 0.1])
    parts, networks = rng.uniform(0, 3, (60, 4)), rng.uniform(1, 90, (8, 4))
    measured = MeasuredParts(parts, parts @ coefficients / clock)
    model = LatencyModel("ms", coarse_work, networks, networks @ coefficients, measured)
    assert at_best_clock(model).parts.values_S == pytest.approx(parts @ coefficients)
    alone = LatencyModel("ms", coarse_work, networks[:1], networks[:1] @ coefficients, measured)
    assert at_best_clock(alone) is alone, "one network says nothing about the clock"


def test_a_model_keeps_the_teacher_and_the_latest_networks() -> None:
    work = np.random.default_rng(0).random((MOST_NETWORKS + 40, 3)) + 0.1
    works = iter(work[1:, None])
    model = LatencyModel("latency_ms", lambda _: next(works), work[:1], work[:1] @ [1.0, 2.0, 3.0], NO_PARTS)
    for row in work[1:]:
        model = model.with_measurement(None, float(row @ [1.0, 2.0, 3.0]))  # type: ignore[arg-type]
    assert model.work_NF == pytest.approx(np.vstack([work[:1], work[-MOST_NETWORKS:]]))
    assert model.values_N == pytest.approx(model.work_NF @ [1.0, 2.0, 3.0])
    assert f"the latest {MOST_NETWORKS} networks" in model.words()
