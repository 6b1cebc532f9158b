"""The loop rejects, replays, survives and counts trials as it should."""

from __future__ import annotations

import dataclasses
import functools
import re
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import optuna
import pytest
import torch
from optuna.trial import TrialState

import search.loop.watch
from objectives import Limit, SizeBytes, Top1
from search import Budget, DraftStart, Recipe
from search.evaluation.context import Context
from search.evaluation.reference import measure_teacher
from search.evaluation.subject import Subject
from search.loop.run import run
from search.proposals.defaults import resolved
from search.proposals.limits import costs_of_uniform
from search.proposals.uniform_start import uniform_designs
from search.study.attributes import numbers_of
from search.study.budget_clock import BudgetClock
from search.study.errors import Diverged, UserError
from search.study.front import front, need_front, trained
from search.study.machine import device_named
from search.study.records import EXCESS, KEY, PLAN, RANGE, RANGES, REASON, REPLAY, RERUN
from search.study.storage import open_study
from spaces import Distill, PruneRatios, Space, Temperatures
from tests.small_study import context, searched, splits, study, watched

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from optuna.trial import BaseTrial, FrozenTrial
    from torch import Tensor, nn

    from objectives.objective import Direction
    from search import StudySpec

RANDOM = optuna.samplers.RandomSampler


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Record epochs and seed of every training."""
    return watched(monkeypatch)


def raising(error: BaseException, *numbers: int) -> Callable[[int], None]:
    """Return a function that raises the error before the trainings with these numbers."""

    def before(number: int) -> None:
        if number in numbers:
            raise error

    return before


def pruning(trials: int, **settings: Any) -> StudySpec:
    """Return a study that only prunes: two groups, so that plans repeat soon."""
    space = Space(steps=(PruneRatios(),), recovery=Fixed())
    return dataclasses.replace(study(trials), space=space, limits=(), sampler=RANDOM, **settings)


def without_limits(trials: int, **settings: Any) -> StudySpec:
    """Return the small study without its limit, so that its initial designs need no measurements."""
    return dataclasses.replace(study(trials), limits=(), **settings)


@dataclass(frozen=True)
class Fixed:
    """A search space of recoveries with one element."""

    recovery: Distill = dataclasses.field(default_factory=Distill)

    def suggest(self, trial: BaseTrial) -> Distill:
        return self.recovery

    def usual(self) -> dict[str, float]:
        return {}


def outcome(trial: FrozenTrial) -> tuple[object, ...]:
    return trial.user_attrs[PLAN], trial.user_attrs[KEY], trial.state, tuple(trial.values or ())


def outcomes(finished: optuna.Study) -> list[tuple[object, ...]]:
    """Return the outcome of every trial, except those that were interrupted and run again."""
    return [outcome(trial) for trial in finished.trials if trial.state != TrialState.FAIL or REASON in trial.user_attrs]


def test_a_plan_over_a_limit_is_rejected_before_training(tmp_path: Path, trainings: list[tuple[int, int]]) -> None:
    spec = dataclasses.replace(study(7, share=0.3), sampler=RANDOM)
    found = searched(spec, tmp_path)
    rejected = [trial for trial in found.trials if trial.state == TrialState.PRUNED and REPLAY not in trial.user_attrs]
    assert rejected
    for trial in rejected:
        assert trial.constraints["0"] == numbers_of(trial, EXCESS)[str(spec.limits[0])] > 0
        assert trial.user_attrs[REASON] == f"exceeds the limit {spec.limits[0]}"
        assert not (tmp_path / "candidates" / f"{trial.number}.safetensors").exists()
    assert len(trainings) == len(trained(found)) == 7


def test_a_trial_within_the_limits_is_reported_as_feasible(tmp_path: Path) -> None:
    found = searched(study(2), tmp_path)
    assert all(next(iter(trial.constraints.values())) <= 0 for trial in trained(found))


def test_the_same_plan_is_replayed_and_not_trained_again(tmp_path: Path, trainings: list[tuple[int, int]]) -> None:
    spec = dataclasses.replace(pruning(6), space=Space(steps=(PruneRatios(highest=0.5, step=0.5),), recovery=Fixed()))
    found = searched(dataclasses.replace(spec, budget=Budget(4)), tmp_path)
    replays = [trial for trial in found.trials if REPLAY in trial.user_attrs]
    assert replays
    for trial in replays:
        first = found.trials[trial.user_attrs[REPLAY]]
        assert outcome(trial) == outcome(first)
        assert REPLAY not in first.user_attrs
    assert len(trainings) == len({trial.user_attrs[KEY] for trial in found.trials}) == 4


def test_the_budget_counts_trained_trials_only(tmp_path: Path) -> None:
    found = searched(dataclasses.replace(study(7, share=0.3), sampler=RANDOM), tmp_path)
    assert len(trained(found)) == 7
    assert len(found.trials) > 7


def test_a_spent_budget_trains_nothing_more(tmp_path: Path, trainings: list[tuple[int, int]]) -> None:
    searched(study(2), tmp_path)
    found = searched(study(2), tmp_path)
    assert len(trainings) == len(trained(found)) == 2


def test_an_exhausted_space_ends_the_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.loop.watch, "MAX_FRUITLESS", 20)
    spec = dataclasses.replace(pruning(9), space=Space(steps=(PruneRatios(highest=0.5, step=0.5),), recovery=Fixed()))
    assert len(trained(searched(spec, tmp_path))) == 4
    assert (
        "stopping: the last 20 plans all exceeded a limit, were of a kind that fails, or had been evaluated before"
        in capsys.readouterr().err
    )


def test_training_that_diverges_fails_one_trial_and_the_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = watched(
        monkeypatch, raising(Diverged("the loss became nan"), 2, 8)
    )  # an initial design, and a sampler's plan
    found = searched(without_limits(8), tmp_path)
    failed = [trial for trial in found.trials if trial.state == TrialState.FAIL]
    assert [trial.user_attrs[REASON] for trial in failed] == ["the loss became nan"] * 2
    assert len(trained(found)) == 8
    assert len(calls) == 10


@dataclass(frozen=True)
class Nan:
    """A recovery whose loss is NaN."""

    def loss(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return student.sum() * torch.nan

    def words(self) -> str:
        return ""

    def suggest(self, trial: BaseTrial) -> Nan:
        return self

    def usual(self) -> dict[str, float]:
        return {}


def test_a_study_where_everything_fails_stops_with_the_reason(tmp_path: Path) -> None:
    spec = dataclasses.replace(pruning(4), space=Space(steps=(PruneRatios(),), recovery=Nan()))
    with pytest.raises(UserError, match="first 3 trials all failed; the last error was: the loss became nan within"):
        searched(spec, tmp_path)


@dataclass(frozen=True)
class Broken:
    """A metric that fails on pruned networks."""

    message: str
    name: ClassVar[str] = "broken"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = False

    def __call__(self, model: nn.Module) -> float:
        if len(list(model.parameters())) == 6 and model.second.weight.shape[0] < 8:  # type: ignore[union-attr, index]
            raise RuntimeError(self.message)
        return 0.0


def test_a_trial_that_crashes_records_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = pruning(2)
    spec = dataclasses.replace(spec, objectives=(Top1(splits().validation), Broken("cannot [/open] it\nat all")))
    found = searched(spec, tmp_path)
    reasons = {trial.user_attrs[REASON] for trial in found.trials if trial.state == TrialState.FAIL}
    assert reasons == {"RuntimeError: cannot [/open] it"}
    assert "failed: RuntimeError: cannot [/open] it" in capsys.readouterr().err


@pytest.mark.parametrize("sampler", [optuna.samplers.TPESampler, optuna.samplers.NSGAIISampler, RANDOM])
def test_the_same_seed_gives_the_same_plans_and_values(tmp_path: Path, sampler: type) -> None:
    spec = without_limits(9, sampler=sampler)
    first, second = (outcomes(searched(spec, tmp_path / name)) for name in ("a", "b"))
    assert first == second


def test_another_seed_gives_other_plans(tmp_path: Path) -> None:
    first, second = (outcomes(searched(without_limits(8, seed=seed), tmp_path / str(seed))) for seed in (0, 1))
    assert first != second


def quick(*, startup: int) -> Callable[..., optuna.samplers.BaseSampler]:
    return functools.partial(optuna.samplers.TPESampler, n_startup_trials=startup)


def test_a_study_resumed_several_times_equals_one_run_at_once(tmp_path: Path, trainings: list[tuple[int, int]]) -> None:
    whole = dataclasses.replace(study(12), sampler=quick(startup=4))
    once = outcomes(searched(whole, tmp_path / "once"))
    assert len(trainings) == 12
    for trials in (3, 7, 12):
        pieces = searched(dataclasses.replace(whole, budget=Budget(trials)), tmp_path / "pieces")
    assert outcomes(pieces) == once
    assert trainings[12:] == trainings[:12]


def test_a_study_whose_parameters_have_other_choices_now_is_not_continued(tmp_path: Path) -> None:
    """Parameters are places in lists of choices, so trials would mean other plans."""
    spec = without_limits(2)
    found = searched(spec, tmp_path)
    ends = dict(found.user_attrs[RANGES])
    changed = next(iter(ends))
    found.set_user_attr(RANGES, ends | {changed: [ends[changed][0], ends[changed][1] + 3]})
    with pytest.raises(UserError, match=f"other choices for {re.escape(changed)}; continue it with that version"):
        searched(dataclasses.replace(spec, budget=Budget(3)), tmp_path)
    assert len(trained(found)) == 2


def test_a_late_run_says_so_and_tests_no_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(BudgetClock, "_whole", lambda clock: [(120.0, clock.budget.cpu_seconds)])
    monkeypatch.setattr("search.loop.rates.range_test", lambda *_, **__: pytest.fail("rates were tested"))
    monkeypatch.setattr("search.loop.rates.quick_test", lambda *_, **__: pytest.fail("rates were tested"))
    unknown_rate = dataclasses.replace(study(5).recipe, learning_rate=None)
    found = searched(without_limits(5, budget=Budget(5, cpu_seconds=100), recipe=unknown_rate), tmp_path)
    assert len(trained(found)) == 1
    printed = capsys.readouterr().err
    assert "have passed before the search, so little can be searched" in printed
    assert "no range test, since no time is left" in printed
    assert RANGE not in found.user_attrs


def test_an_interrupted_trial_is_run_again_without_other_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = without_limits(10, sampler=quick(startup=4))
    once = searched(spec, tmp_path / "once")
    calls = watched(monkeypatch, raising(KeyboardInterrupt(), 8))
    stopped = searched(spec, tmp_path / "twice")
    assert len(trained(stopped)) == 7
    again = searched(spec, tmp_path / "twice")
    assert [trial.user_attrs[RERUN] for trial in again.trials if RERUN in trial.user_attrs] == [7]
    assert [trial.number for trial in again.trials if trial.state == TrialState.FAIL] == [7]
    assert outcomes(again) == outcomes(once)
    assert len(calls) == 11


def test_an_interrupted_initial_design_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = watched(monkeypatch, raising(KeyboardInterrupt(), 2))
    searched(without_limits(4), tmp_path)
    again = searched(without_limits(6), tmp_path)
    interrupted = next(trial for trial in again.trials if trial.state == TrialState.FAIL)
    assert interrupted.user_attrs[KEY] in {trial.user_attrs[KEY] for trial in trained(again)}
    assert len(calls) == 7


def test_ctrl_c_finishes_the_trial_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    watched(monkeypatch, lambda _: signal.raise_signal(signal.SIGINT))
    found = searched(without_limits(4), tmp_path)
    assert len(trained(found)) == 1
    assert "stopping after the trial under way" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_initial_designs_meet_the_limits() -> None:
    for share in (0.7, 0.3):
        shared = context(study(share=share))
        uniform = uniform_designs(shared)
        (limit,) = shared.spec.limits
        assert len(uniform) > 3
        for params in uniform:
            plan = shared.spec.space.suggest(optuna.trial.FixedTrial(params), shared.subject.anatomy)
            assert shared.measure(shared.build(plan), [limit.objective])[limit.objective.name] <= limit.bound


def test_initial_designs_start_at_the_weakest_plan_within_the_limits() -> None:
    shared = context(study(share=0.5))
    strengths = [
        max(value for name, value in params.items() if name.startswith("prune/")) for params in uniform_designs(shared)
    ]
    assert 0 < strengths[0] < 0.75


def test_without_limits_the_first_initial_design_changes_nothing() -> None:
    shared = context(dataclasses.replace(study(), limits=()))
    plan = shared.spec.space.suggest(optuna.trial.FixedTrial(uniform_designs(shared)[0]), shared.subject.anatomy)
    assert plan.words() == "nothing removed; distil T=4, weight 0.7"


def test_an_unreachable_limit_is_reported_with_the_smallest_value_and_the_nearest_plan(
    tmp_path: Path, trainings: list[tuple[int, int]]
) -> None:
    spec = study(share=0.01)
    smallest = min(
        costs_of_uniform(context(spec), mask)["macs"]
        for mask in [(1.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)]
    )
    with pytest.raises(UserError) as caught:
        searched(spec, tmp_path)
    assert str(caught.value).startswith(
        f"the limit {spec.limits[0]} cannot be met: the nearest plan reaches macs {smallest:.10g}, by channels -75%"
    )
    assert f"; loosen only this limit, to {smallest:.10g}, or extend the range of PruneRatios" in str(caught.value)
    assert not trainings


def test_a_limit_that_was_too_low_can_be_raised(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be met"):
        searched(study(2, share=0.01), tmp_path)
    assert len(trained(searched(study(2, share=0.6), tmp_path))) == 2


def test_a_limit_on_a_metric_is_applied_after_training(tmp_path: Path) -> None:
    least = Limit(Top1(splits().validation), at_least=90)
    found = searched(dataclasses.replace(study(8), limits=(least,)), tmp_path)
    missed = [trial for trial in trained(found) if trial.values[0] < 90]
    assert missed
    assert all(trial.constraints["0"] == (90 - trial.values[0]) / 90 for trial in trained(found))
    assert front(found)
    assert all(trial.values[0] >= 90 for trial in front(found))


def test_an_empty_front_is_reported_with_the_nearest_trial(tmp_path: Path) -> None:
    least = Limit(Top1(splits().validation), at_least=100.5)
    spec = dataclasses.replace(study(3), limits=(least,))
    found = searched(spec, tmp_path)
    best = max(trained(found), key=lambda trial: trial.values[0])
    with pytest.raises(UserError, match=rf"nearest, trial {best.number}, misses top1 >= 100.5 by \d+\.\d%"):
        need_front(found, spec)


def test_a_study_without_trials_has_no_front(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no trained candidate yet; run it for longer: slimfront run"):
        need_front(open_study(resolved(study()), tmp_path, None, create=True), study())


def test_a_study_may_have_one_objective(tmp_path: Path) -> None:
    found = searched(dataclasses.replace(study(3), objectives=(SizeBytes(),)), tmp_path)
    assert len(front(found)) == 1
    assert front(found)[0].values[0] == min(trial.values[0] for trial in trained(found))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_reported() -> None:
    with pytest.raises(UserError, match="there is none; use --device auto or cpu"):
        device_named("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_table_draft_and_trainings_run_on_a_gpu(tmp_path: Path) -> None:
    spec = resolved(dataclasses.replace(study(4), start=DraftStart(plans=3, scored=20)))
    found = open_study(spec, tmp_path, None, create=True)
    made = Context(spec, Subject(spec, device_named("cuda")))
    measure_teacher(found, made)
    assert run(found, made, tmp_path)
    assert len(trained(found)) == 4
    assert next(made.build(made.plan(front(found)[0].params)).parameters()).is_cuda


def test_budgets_and_recipes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="trials of a budget must be positive, but got 0"):
        Budget(trials=0)
    with pytest.raises(ValueError, match="minutes of a budget must be positive, but got -1"):
        Budget(minutes=-1)
    with pytest.raises(ValueError, match="learning_rate must be positive, but got 0"):
        Recipe(learning_rate=0)


def test_a_run_ends_after_its_minutes(tmp_path: Path) -> None:
    spec = without_limits(50, budget=Budget(trials=50, minutes=0.01))
    found = searched(spec, tmp_path)
    assert 1 <= len(trained(found)) < 50


def test_the_time_left_is_estimated_from_trainings_and_not_from_the_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings = watched(monkeypatch)
    # half of the time is spent before the first training
    monkeypatch.setattr(BudgetClock, "spent", property(lambda _: 0.5 + 0.1 * len(trainings)))
    # the original function trains a network to time it
    monkeypatch.setattr("search.loop.run.affordable", lambda _, context, __: context.spec.recipe)
    monkeypatch.setattr("search.loop.board.EVERY_SECONDS", 0)
    found = searched(without_limits(50, budget=Budget(trials=50, cpu_seconds=1000)), tmp_path)
    assert len(trained(found)) == 5
    printed = re.findall(r"^([\d/]+) candidates?, ", capsys.readouterr().err, re.MULTILINE)
    assert printed == ["1", "2", "3/5", "4/5", "5/5"]  # no time is known before three trainings


def test_temperatures_are_part_of_the_plan(tmp_path: Path) -> None:
    space = Space(steps=(PruneRatios(),), recovery=Temperatures())
    found = searched(dataclasses.replace(pruning(7), space=space), tmp_path)
    assert len({trial.params["distill/temperature"] for trial in found.trials}) > 1


@dataclass(frozen=True, slots=True)
class NanOnCandidates:
    """A cost that is NaN on every network except the teacher."""

    name: ClassVar[str] = "nan_on_candidates"
    direction: ClassVar[str] = "minimize"
    is_cost: ClassVar[bool] = True
    whole: float = 0.0

    def __call__(self, model: nn.Module) -> float:
        count = float(sum(parameter.numel() for parameter in model.parameters()))
        return count if count == self.whole else float("nan")


def test_an_objective_that_is_not_finite_fails_its_trial_once_with_a_reason(
    tmp_path: Path,
) -> None:
    spec = dataclasses.replace(study(3), limits=())
    whole = float(sum(p.numel() for p in context(spec).subject.finish(context(spec).subject.model).parameters()))
    spec = dataclasses.replace(spec, objectives=(spec.objectives[0], NanOnCandidates(whole)))  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match="the last 10 plans all failed, most often with the objective nan_on_candidates"
    ):
        searched(spec, tmp_path)
    failed = open_study(resolved(spec), tmp_path, None, create=False).get_trials(states=(TrialState.FAIL,))
    assert failed
    assert {trial.user_attrs["reason"] for trial in failed} == {"the objective nan_on_candidates is nan"}
    keys = [trial.user_attrs["plan_key"] for trial in failed if "replay_of" not in trial.user_attrs]
    assert len(keys) == len(set(keys))


def test_different_objectives_of_the_same_name_are_rejected() -> None:
    data = splits()
    with pytest.raises(ValueError, match="objectives of one name must be the same, but 'top1' is"):
        dataclasses.replace(study(), objectives=(Top1(data.validation), SizeBytes()), reported=(Top1(data.train),))


def test_an_interrupted_initial_design_leaves_the_front_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = without_limits(12, sampler=quick(startup=4))
    once = searched(spec, tmp_path / "once")
    watched(monkeypatch, raising(KeyboardInterrupt(), 2, 5, 6, 10))
    for _ in range(5):
        again = searched(spec, tmp_path / "again")
    assert len([trial for trial in again.trials if RERUN in trial.user_attrs]) == 4
    assert [outcome(trial) for trial in trained(again)] == [outcome(trial) for trial in trained(once)]
    assert [outcome(trial) for trial in front(again)] == [outcome(trial) for trial in front(once)]


def _breaks(*_: object) -> list[dict[str, float]]:
    raise ZeroDivisionError("my own start")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (_breaks, "the start of the study, _breaks, failed: ZeroDivisionError: my own start"),
        (
            lambda *_: 3,
            "the start of the study, <lambda>, must return a list of dicts of parameters, but returned int",
        ),
        (lambda *_: [{"prune/frist": 0.5}], "returned a wrong parameter: no parameter is called 'prune/frist'"),
    ],
)
def test_a_start_of_the_user_that_fails_is_one_line(
    start: Callable[..., list[dict[str, float]]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        searched(dataclasses.replace(study(2), start=start), tmp_path)
