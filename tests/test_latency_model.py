"""Costs that shapes do not tell are learned from measured networks."""

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
from search.costs.latency_model import LatencyModel, work
from search.evaluation.context import Context
from search.evaluation.profiling import (
    LEAST_NETWORKS,
    NETWORKS,
    PLANS_A_ROUND,
    ROUNDS,
    fit_before_search,
    measure_promising,
    refit,
)
from search.evaluation.trial import run_trial
from search.loop.run import run
from search.proposals.defaults import resolved
from search.proposals.draft_records import draft_of
from search.proposals.proxy_correlation import cost_prediction_errors
from search.study import machine
from search.study.budget_clock import BudgetClock
from search.study.front import trained
from search.study.queue import enqueue
from search.study.records import AHEAD, PROXY_LOSS, REASON, RELATIVE
from search.study.storage import open_study
from spaces import Distill, Factorize, Plan, Prune, Quantize
from spaces.axes.quantized_layers import PackedLayer
from spaces.network.layers import FLOAT_BITS
from spaces.plan import architectures_of
from tests.small_study import context, searched, study

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from objectives.objective import Direction
    from search import StudySpec


TOO_LITTLE = 1e-9


def rows(shared: Context) -> int:
    """Return from how many networks the cost is learned."""
    return len(shared.cost_model.models["energy_nj"].values_N)


@dataclasses.dataclass(frozen=True)
class Energy:
    """A cost that no outline tells: half for the work, which integers make cheaper, and half for the memory."""

    inputs: Tensor = dataclasses.field(repr=False)
    name: ClassVar[str] = "energy_nj"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True
    calls: ClassVar[list[int]] = []

    def __call__(self, model: nn.Module) -> float:
        self.calls.append(1)
        rounded = sum(isinstance(layer, PackedLayer) for layer in model.modules())
        return Macs(self.inputs)(model) / 100 + Parameters()(model) / 20 + 5 * rounded + 40


def spec(trials: int = 5) -> StudySpec:
    made = study(trials)
    energy = Energy(made.splits.validation.inputs)
    return dataclasses.replace(made, objectives=(made.objectives[0], energy), limits=(), start=DraftStart(4, 30))


def told_and_measured(shared: Context, count: int = 30) -> tuple[np.ndarray, np.ndarray]:
    space, anatomy = shared.spec.space, shared.subject.anatomy
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=5))
    plans = [space.suggest(drawn.ask(), anatomy) for _ in range(count)]
    told = shared.cost_model.of(architectures_of(shared.cost_model.frame, plans))["energy_nj"]
    (energy,) = shared.spec.costs
    return told, np.array([energy(shared.subject.finish(shared.subject.build_roughly(plan))) for plan in plans])


def test_a_learned_cost_is_near_to_what_is_measured_on_networks_that_it_has_not_seen() -> None:
    shared = context(spec())
    fit_before_search(shared, 1e9)
    told, measured = told_and_measured(shared)
    assert np.median(np.abs(told / measured - 1)) < 0.05
    assert spearmanr(told, measured)[0] > 0.95
    assert shared.cost_model._formulas == {}  # so nothing is refused by it


def test_what_was_measured_is_not_measured_again_and_what_is_missing_is() -> None:
    Energy.calls.clear()
    fit_before_search(context(spec()), TOO_LITTLE)
    first = len(Energy.calls)
    assert first < LEAST_NETWORKS
    shared = context(spec())
    fit_before_search(shared, 1e9)
    assert "energy_nj" in shared.cost_model.formulas
    teachers = 3  # one a run of measuring, one to put the ratios to scale
    assert len(Energy.calls) == NETWORKS + teachers
    fit_before_search(context(spec()), 0.0)
    assert len(Energy.calls) == NETWORKS + teachers + 1


def test_too_little_time_leaves_a_cost_unknown_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    shared = context(spec())
    fit_before_search(shared, TOO_LITTLE)
    assert shared.cost_model.formulas == {}
    assert "energy_nj is not predicted: measuring 8 networks would take too long" in capsys.readouterr().err.replace(
        "\n", " "
    )


def test_what_is_loaded_once_does_not_count_for_every_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime takes seconds to load; 8 networks of a second each fit into 20 seconds with it."""
    measured, now = Energy.__call__, 0.0

    def slow(self: Energy, model: nn.Module) -> float:
        nonlocal now
        now += 1.0 if now else 10.0
        return measured(self, model)

    monkeypatch.setattr(Energy, "__call__", slow)
    monkeypatch.setattr("search.evaluation.profiling.time.process_time", lambda: now)
    shared = context(spec())
    fit_before_search(shared, 20.0)
    assert LEAST_NETWORKS <= rows(shared) - 1 <= 10


def test_a_cost_that_cannot_be_learned_is_named_and_the_study_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    class Nothing(Energy):
        def __call__(self, model: nn.Module) -> float:
            return super().__call__(model) * float(isinstance(model.get_submodule("first"), nn.Conv2d))

    made = spec()
    shared = context(dataclasses.replace(made, objectives=(made.objectives[0], Nothing(made.splits.validation.inputs))))
    fit_before_search(shared, 1e9)
    assert shared.cost_model.formulas == {}
    said = capsys.readouterr().err.replace("\n", " ")
    assert "energy_nj is not predicted: measuring a network failed: a cost must be positive" in said


def test_a_study_of_it_has_a_draft_and_tells_how_well_it_was_told(tmp_path: Path) -> None:
    done = searched(spec(), tmp_path / "study")
    draft = draft_of(done)
    assert draft is not None
    assert draft.metric_names == [PROXY_LOSS, "energy_nj"]
    assert len(trained(done)) == 5
    told = cost_prediction_errors(done)["energy_nj"]
    assert told.trials >= 4
    assert told.error < 0.05


def test_what_is_measured_later_is_learned_from_too() -> None:
    shared = context(spec())
    fit_before_search(shared, 1e9)
    plan = Plan((Quantize((("first", 4, 8),)),), Distill())
    before = shared.cost_model.predict(plan).modelled["energy_nj"]
    relative = shared.cost_model.over_teacher({"energy_nj": 3 * before, "size_bytes": 1.0})
    assert relative.keys() == {"energy_nj"}
    for share in range(2 * NETWORKS):
        none = Prune((("first", share / 1000),))  # less than one unit: another plan, and as much work
        for weight in (0.2, 0.8):
            shared.cost_model.observe(Plan((none, *plan.steps), Distill(weight=weight)), relative)
    assert shared.cost_model.predict(plan).modelled["energy_nj"] > 2 * before
    assert rows(shared) == 1 + 3 * NETWORKS, "each once, however it is trained"


def test_a_network_is_measured_once_whatever_asks_and_however_it_is_trained() -> None:
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
def test_what_is_no_cost_is_not_learned_from(value: float) -> None:
    shared = context(spec())
    fit_before_search(shared, 1e9)
    shared.cost_model.observe(Plan((Quantize((("first", 4, 8),)),), Distill()), {"energy_nj": value})
    assert rows(shared) == 1 + NETWORKS


def test_plans_are_measured_before_the_draft_each_once() -> None:
    made = spec()
    shared = context(made)
    main = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    DraftStart(4, 30)(shared, main, BudgetClock(Budget()))
    ahead = main.user_attrs[AHEAD]
    plans = {shared.plan(params) for params, *_ in ahead}
    assert PLANS_A_ROUND < len(plans) == len(ahead) <= (1 + ROUNDS) * PLANS_A_ROUND
    assert rows(shared) == 1 + NETWORKS + len(plans)
    (energy,) = made.costs
    params, relative, on = ahead[0]
    measured = energy(shared.subject.finish(shared.subject.build_roughly(shared.plan(params))))
    assert relative["energy_nj"] * energy(shared.subject.finished) == pytest.approx(measured)
    assert on == machine.words()


def test_no_more_plans_are_measured_than_there_is_time_for_and_one_that_fails_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = context(spec())
    fit_before_search(shared, 1e9)
    main = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    space = shared.spec.space
    some = [space.uniform(shared.subject.anatomy, (at / 10,) * len(space.steps)) for at in range(1, 4)]
    monkeypatch.setattr(Energy, "__call__", lambda *_: 1 / 0)
    measure_promising(main, shared, lambda _: some, 1e9)
    assert rows(shared) == 1 + NETWORKS
    assert "a plan could not be measured: " in capsys.readouterr().err
    monkeypatch.undo()
    main.set_user_attr(AHEAD, [])
    measure_promising(main, shared, lambda _: some, 0.0)
    assert len(main.user_attrs[AHEAD]) == 1
    measure_promising(main, shared, lambda _: some, 1e9)
    assert len(main.user_attrs[AHEAD]) == 1, "once a study"


def test_a_study_that_goes_on_learns_from_what_it_measured_before(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    done = searched(spec(5), folder)
    count = len(done.trials)
    assert sum(RELATIVE in trial.user_attrs for trial in done.trials) >= 4
    made = spec(7)
    main, shared = open_study(resolved(made), folder, None, create=False), context(made)
    Energy.calls.clear()
    run(main, shared, folder)
    new = [trial for trial in main.trials[count:] if RELATIVE in trial.user_attrs]
    assert len(Energy.calls) == 1 + len(new), "the teacher, and what is new"
    networks = {shared.plan(params).steps for params, *_ in main.user_attrs[AHEAD]}
    networks |= {shared.plan(trial.params).steps for trial in main.trials[:-1] if RELATIVE in trial.user_attrs}
    assert len(networks) > len(main.user_attrs[AHEAD])
    assert rows(shared) == 1 + NETWORKS + len(networks)


def test_what_another_machine_measured_is_not_learned_from() -> None:
    shared = context(spec())
    fit_before_search(shared, 1e9)
    foreign = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    space = shared.spec.space
    params = [space.uniform(shared.subject.anatomy, (strength,) * len(space.steps)) for strength in (0.25, 0.5, 0.75)]
    for on, here in (("another", 0), (machine.words(), 2)):
        foreign.set_user_attr(AHEAD, [[params[0], {"energy_nj": 0.5}, on]])
        enqueue(foreign, params[1 + (here > 0)])
        trial = foreign.ask()
        space.suggest(trial, shared.subject.anatomy)
        trial.set_user_attr(RELATIVE, [{"energy_nj": 0.4}, on])
        refit(foreign, shared)
        assert rows(shared) == 1 + NETWORKS + here


def test_nothing_is_measured_where_there_is_no_time_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    Energy.calls.clear()
    shared = context(spec())
    fit_before_search(shared, 0.0)
    assert shared.cost_model.formulas == {}
    assert not Energy.calls
    assert "not predicted" not in capsys.readouterr().err


def test_what_is_surely_over_a_limit_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = spec()
    energy = made.objectives[1]
    limit = Limit(energy, at_most=0.5 * energy(context(made).subject.finished))
    limited = dataclasses.replace(made, limits=(limit,), start=UniformStart(), budget=Budget(3))
    shared = context(limited)
    fit_before_search(shared, 1e9)
    main = open_study(resolved(limited), tmp_path, None, create=True)
    whole = shared.spec.space.uniform(shared.subject.anatomy, (0.0,) * len(shared.spec.space.steps))
    enqueue(main, whole)
    builds: list[object] = []
    monkeypatch.setattr(Context, "build", lambda _, plan: builds.append(plan))
    main.optimize(lambda trial: run_trial(trial, shared, tmp_path, limited.recipe, lambda _: None), n_trials=1)
    (trial,) = main.trials
    assert trial.state == TrialState.PRUNED
    assert trial.user_attrs[REASON] == f"predicted to exceed the limit {limit}, and not measured"
    assert trial.constraints[str(limit)] == pytest.approx(1.0, abs=0.1)
    assert not builds


def test_limits_on_it_bound_the_draft() -> None:
    made = spec()
    energy = made.objectives[1]
    limit = Limit(energy, at_most=0.6 * energy(context(made).subject.finished))
    shared = context(dataclasses.replace(made, limits=(limit,)))
    main = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    plans = DraftStart(4, 30)(shared, main, BudgetClock(Budget()))
    for params in plans:
        plan = shared.spec.space.suggest(FixedTrial(params), shared.subject.anatomy)
        assert energy(shared.subject.finish(shared.build(plan))) <= 1.1 * limit.bound


def test_work_of_layers_whose_weights_are_unpacked_is_counted_apart() -> None:
    shared = context(spec())
    pairs = (("first", 4, FLOAT_BITS), ("second", 4, 8), ("head", 8, 8))
    plan = Plan((Quantize(pairs),), Distill())
    done = work(architectures_of(shared.cost_model.frame, [plan]).parts())[0]
    first, second = 8 * 9 * 64, 8 * 8 * 9 * 16
    integer, floating = (second, 0), (first, 0)  # of whole convolutions, of grouped ones
    assert done[10:15].tolist() == [0, *integer, *floating]
    assert done[-6:-2].tolist() == [3, 2, 1, 1], "layers, with rounded inputs, unpacked between integers and not"


def test_input_channels_between_integers_are_filled_up_and_those_of_floating_point_are_not() -> None:
    shared = context(spec())
    plans = [
        Plan((Quantize(pairs),), Distill()) for pairs in ((("first", 8, 8),), (("second", 8, 8),), (("head", 8, 8),))
    ]
    done = work(architectures_of(shared.cost_model.frame, [None, *plans]).parts())
    first, second = 8 * 9 * 64, 8 * 8 * 9 * 16
    assert done[:, 8].tolist() == [0, 8 * first, second, 0], "the first has one input channel, the second eight"
    split = Plan((Factorize((("second", 0.25),)), Quantize((("second", 8, 8),))), Distill())
    model = split.apply(shared.subject.model, shared.subject.example)
    layers = [module for module in model.get_submodule("second").modules() if isinstance(module, nn.Conv2d)]
    filled = {layer: -(-layer.in_channels // 8) * 8 / layer.in_channels for layer in layers}
    wanted = sum(16 * layer.weight.numel() * filled[layer] for layer in layers)
    assert [layer.in_channels for layer in layers] == [8, 2]
    assert work(architectures_of(shared.cost_model.frame, [split]).parts())[0, 8] == wanted


def test_the_error_is_that_of_networks_that_were_not_learned_from() -> None:
    shared = context(spec())
    plans = [None, *(Plan((Quantize((("first", bits, FLOAT_BITS),)),), Distill()) for bits in (2, 4, 8))]
    parts = architectures_of(shared.cost_model.frame, plans).parts()
    assert LatencyModel("noise", work(parts), np.array([1.0, 5.0, 1.0, 5.0])).error > 0.6, (
        "0.46 of what they are told from"
    )


def test_what_is_measured_of_networks_that_are_alike_moves_what_is_told_of_their_like_alone() -> None:
    dice = np.random.default_rng(0)
    done = dice.uniform(1, 9, (20, 4))
    prices = np.array([1.0, 0.5, 2.0, 0.1])
    strange = np.array([2.0, 8.0, 1.0, 5.0])  # whose like take a fifth more than their work tells
    alike = strange * dice.uniform(0.98, 1.02, (6, 4))
    before = LatencyModel("ms", done, done @ prices)
    after = LatencyModel("ms", np.vstack([done, alike]), np.concatenate([done @ prices, 1.2 * alike @ prices]))
    assert before.predict(strange[None])[0] == pytest.approx(strange @ prices, rel=0.01)
    assert after.predict(strange[None])[0] == pytest.approx(1.2 * strange @ prices, rel=0.03)
    other = np.array([9.0, 1.0, 9.0, 1.0])
    assert after.predict(other[None])[0] == pytest.approx(other @ prices, rel=0.08)
    assert after.error < 0.05


def test_work_counts_the_layers_and_fills_channels_up_to_blocks() -> None:
    shared = context(spec())
    done = work(architectures_of(shared.cost_model.frame, [None]).parts())
    assert done.shape == (1, 24)
    first, second, head = 8 * 9 * 64, 8 * 8 * 9 * 16, 32 * 4
    weights = 32 * (8 * 9 + 8 * 8 * 9 + head)
    written = 8 * 64 + 8 * 16 + 4
    assert done[0].tolist() == [
        *(first + second, 0, 0, 2 * head), *(2 * (first + second), 0, 0, 4 * head), 0,
        first + second + head, *[0] * 5, weights, written, 0, 3, 0, 0, 0, 0, 1,
    ]  # fmt: skip
