"""The learning rate is found by a range test, and the front is trained further if there is time."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from optuna.trial import TrialState
from safetensors.torch import load_file
from torch import nn

from objectives import Examples, Limit, SizeBytes, Top1
from objectives.outputs import outputs
from search import Budget, Recipe
from search.evaluation.context import Context
from search.evaluation.input_time import input_seconds_of
from search.evaluation.proxy_loss import PROXY_INPUTS, ProxyLoss
from search.evaluation.subject import Subject
from search.loop.rates import range_tested
from search.loop.schedule import approach, prolong, promote
from search.proposals.defaults import resolved
from search.results.confirm import confirm
from search.study.attributes import numbers_of
from search.study.budget_clock import BudgetClock
from search.study.errors import UserError
from search.study.front import front, trained
from search.study.queue import enqueue, fixed
from search.study.records import ASKED, EPOCHS, RANGE, RATE, SECONDS, VALUES
from search.study.storage import open_study
from search.study.weights import state_path
from search.training.fine_tuning import TeacherOutputs, fine_tune, training_steps
from search.training.learning_rate import (
    DEFAULT_RATE,
    FIRST_RATE,
    MAX_FITTED_STEPS,
    MAX_RATE,
    MIN_RATE,
    QUICK_LENGTH,
    TEST_STEPS,
    Rate,
    quick_test,
    range_test,
)
from spaces import Distill, Plan
from tests.small_study import Net, context, searched, splits, study, teacher, watched

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from objectives.objective import Direction

TRAIN = splits().train


def rate_found(recipe: Recipe, seed: int = 0) -> float:
    torch.manual_seed(3)
    return range_test(Net(), TeacherOutputs(teacher(), TRAIN), TRAIN, Distill(), recipe, seed)


def unrated(**settings: Any) -> Any:
    return dataclasses.replace(study(4), recipe=Recipe(epochs=1, batch_size=32), **settings)


def test_the_rate_is_reproducible_and_does_not_depend_on_the_epochs() -> None:
    rate = rate_found(Recipe(batch_size=32))
    assert MIN_RATE < rate < MAX_RATE
    assert rate_found(Recipe(batch_size=32)) == rate
    assert rate_found(Recipe(epochs=9, batch_size=32)) == rate


def test_a_rate_is_judged_by_another_loss_where_one_is_given() -> None:
    network, judged = Net(), []

    def judge(trained: nn.Module) -> float:
        judged.append(trained)
        moved = zip(trained.parameters(), parameters, strict=True)
        return sum(float((new.detach() - old).abs().sum()) for new, old in moved)

    parameters = [parameter.detach().clone() for parameter in network.parameters()]
    given = TeacherOutputs(teacher(), TRAIN), TRAIN, Distill(), Recipe(batch_size=32), 0
    rate = range_test(network, *given, 2, judge=judge)
    assert rate < 2 * MIN_RATE, "the loss is smallest where nothing changes"
    assert range_test(network, *given, 2) > 100 * rate
    assert len(judged) == len({id(trained) for trained in judged})


def test_the_rate_is_stable_on_a_quadratic() -> None:
    """Gradient descent on this quadratic is stable only below a rate of 0.2."""
    examples = Examples(torch.randn(64, 4), torch.zeros(64, 1))
    network = nn.Linear(4, 1, bias=False)
    nn.init.constant_(network.weight, 3.0)

    class Steep:
        def loss(self, student: Tensor, _: Tensor, labels: Tensor) -> Tensor:
            return 5 * (student - labels).square().mean()

        def words(self) -> str:
            return "steep"

    recipe = Recipe(batch_size=64, optimizer=torch.optim.SGD, weight_decay=0.0)
    rate = range_test(network, TeacherOutputs(network, examples), examples, Steep(), recipe, 0)
    assert 0.002 < rate < 0.2


def test_the_rate_gives_the_best_short_training() -> None:
    """On the small study, trainings at a tenth of the rate and at ten times the rate end with larger losses."""
    rate = rate_found(Recipe(batch_size=32))

    def ending(rate: float) -> float:
        torch.manual_seed(3)
        net = Net()
        fine_tune(net, TeacherOutputs(teacher(), TRAIN), TRAIN, Distill(), Recipe(25 / 6, 32, rate), 0)
        with torch.no_grad():
            return float(Distill().loss(net(TRAIN.inputs), teacher()(TRAIN.inputs), TRAIN.labels))

    assert ending(rate) < min(ending(rate / 10), ending(10 * rate))


def test_the_range_test_does_not_change_the_network() -> None:
    network = Net()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    range_test(network, TeacherOutputs(teacher(), TRAIN), TRAIN, Distill(), Recipe(batch_size=32), 0)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_the_rate_grows_with_the_loss_and_the_number_of_steps() -> None:
    rate = Rate(rate=4e-3, loss=1.0, steps=25)
    assert rate.at(1.0, 25) == 4e-3
    assert rate.at(1.0, 100) == 8e-3
    assert rate.at(0.1, 25) == pytest.approx(4e-3 * 10**-0.65, rel=0.02)
    assert rate.at(-0.001, 25) == rate.at(0.0, 25) > 0, "as good as the teacher, or better"
    assert rate.at(1.0, 10 * MAX_FITTED_STEPS) == rate.at(1.0, MAX_FITTED_STEPS)


@pytest.mark.parametrize(("bound", "chosen"), [(0.5, 0), (1.0, 0), (2.0, 1), (9.0, 2)])
def test_the_range_test_uses_the_smallest_trainable_network(
    bound: float, chosen: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = unrated()
    main = open_study(resolved(made), tmp_path, None, create=True)
    shared = context(made)
    strengths = (0.3, 0.6, 1.0)
    starts = [made.space.uniform(shared.subject.anatomy, (strength,) * len(made.space.steps)) for strength in strengths]
    for params in starts:
        enqueue(main, params)
    losses = dict(zip((shared.plan(params) for params in starts), (1.0, 2.0, 9.0), strict=True))
    monkeypatch.setattr(shared.subject, "build_roughly", lambda plan, _: plan)
    monkeypatch.setattr("search.evaluation.proxy_loss.ProxyLoss.__call__", lambda _, plan, *__: losses.get(plan, 0.0))
    monkeypatch.setattr("search.loop.rates.MAX_TRAINABLE_LOSS", bound)
    built: list[Plan] = []

    def build(plan: Plan) -> nn.Module:
        built.append(plan)
        return Context.build(shared, plan)

    monkeypatch.setattr(shared, "build", build)
    range_tested(main, shared)
    assert built == [shared.plan(starts[chosen])]


@pytest.mark.parametrize(
    ("step_seconds", "steps", "words"),
    [
        (0.1, TEST_STEPS, "the range test found a learning rate of "),
        (0.3, 12, " in 12 steps, since the time is short; it is scaled"),
        (
            0.5,
            QUICK_LENGTH,
            "no range test, since 4 trainings of 8 steps would take over 15% of the time: single steps ",
        ),
        (5.0, DEFAULT_RATE.steps, "no range test, since 4 trainings of 8 steps would take over 15% of the time: the "),
    ],
)
def test_the_range_test_fits_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    step_seconds: float, steps: int, words: str,
) -> None:  # fmt: skip
    made = unrated()
    main = open_study(resolved(made), tmp_path, None, create=True)
    shared = context(made)
    monkeypatch.setattr(Context, "step_seconds", lambda *_: step_seconds)
    rate = range_tested(main, shared, BudgetClock(Budget(trials=None, cpu_seconds=100)))
    assert rate is not None
    assert rate.steps == steps
    assert (rate == DEFAULT_RATE) == (steps == DEFAULT_RATE.steps)
    assert words in " ".join(capsys.readouterr().err.split())
    assert range_tested(main, shared) == rate


@pytest.mark.parametrize(("step_seconds", "steps", "first"), [(0.3, 12, 0.00069), (0.01, 25, FIRST_RATE)])
def test_a_shortened_range_test_starts_where_single_steps_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_seconds: float, steps: int, first: float
) -> None:
    made = unrated()
    main = open_study(resolved(made), tmp_path, None, create=True)
    shared = context(made)
    monkeypatch.setattr(Context, "step_seconds", lambda *_: step_seconds)
    monkeypatch.setattr("search.loop.rates.quick_test", lambda *_: 1e-3)  # suits 25 steps
    calls = []

    def tested(*arguments: Any) -> float:
        calls.append((*arguments[-3:-1], arguments[-1] is not None))
        return 0.002

    monkeypatch.setattr("search.loop.rates.range_test", tested)
    rate = range_tested(main, shared, BudgetClock(Budget(trials=None, cpu_seconds=100)))
    assert rate is not None
    assert rate.rate == 0.002
    assert calls == [(steps, first, steps < TEST_STEPS)], "judged in evaluation mode where it is short"


def test_no_plan_is_scored_for_a_range_test_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = unrated()
    main = open_study(resolved(made), tmp_path, None, create=True)
    shared = context(made)
    monkeypatch.setattr(Context, "step_seconds", lambda *_: 0.5)
    monkeypatch.setattr("search.loop.rates.proxy_loss_of", lambda *_: pytest.fail("a plan was scored"))
    rate = range_tested(main, shared, BudgetClock(Budget(trials=None, cpu_seconds=100)))
    assert rate is not None
    assert rate.steps == QUICK_LENGTH


@pytest.mark.parametrize("middle", ["hardly trainable", "failing"])
def test_a_quick_test_leaves_a_plan_that_cannot_be_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], middle: str
) -> None:
    made = unrated()
    main = open_study(resolved(made), tmp_path, None, create=True)
    shared = context(made)
    strengths = [(strength,) * len(made.space.steps) for strength in (0.1, 0.5, 0.9)]
    starts = [made.space.uniform(shared.subject.anatomy, each) for each in strengths]
    for params in starts:
        enqueue(main, params)
    plans = [shared.plan(params) for params in starts]
    tested = []

    def quick(model: nn.Module, *_: object) -> float:
        if middle == "failing":
            raise RuntimeError("too narrow")
        tested.append(sum(parameter.numel() for parameter in model.parameters()))
        return 0.0123

    monkeypatch.setattr(Context, "step_seconds", lambda *_: 0.5)
    monkeypatch.setattr("search.loop.rates.quick_test", quick)
    losses = iter([1.0, 0.2])
    monkeypatch.setattr(ProxyLoss, "__call__", lambda *_: next(losses))
    rate = range_tested(main, shared, BudgetClock(Budget(trials=None, cpu_seconds=100)))
    if middle == "failing":
        assert rate == DEFAULT_RATE
        assert "single steps fail: RuntimeError: too narrow: the learning rate is " in " ".join(
            capsys.readouterr().err.split()
        )
    else:
        assert rate == Rate(0.0123, 0.2, QUICK_LENGTH)
        assert tested == [sum(p.numel() for p in shared.subject.build(plans[0]).parameters())]


def test_a_quick_test_finds_the_step_that_lowers_the_loss_on_other_examples_most() -> None:
    network = Net()
    answers, recovery, recipe = TeacherOutputs(teacher(), TRAIN), Distill(), Recipe(batch_size=32)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = quick_test(network, answers, TRAIN, recovery, recipe, 0)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])

    def loss_after(rate: float) -> float:
        model = copy.deepcopy(network)
        for seed, each in ((0, rate), (1, 0.0)):
            ((_, loss),) = training_steps(model, answers, TRAIN, recovery, recipe, seed, [each])
        return float(loss)

    losses = {factor: loss_after(found * factor) for factor in (1 / 8, 1 / 3, 1, 3, 8)}
    assert min(losses, key=losses.__getitem__) == 1
    assert losses[1 / 3] < losses[1 / 8]
    assert losses[3] < losses[8]


def test_a_slow_step_is_timed_once(tmp_path: Path) -> None:
    shared = context(made := unrated())
    plan = shared.plan(made.space.uniform(shared.subject.anatomy, (0.5,) * len(made.space.steps)))
    network = shared.build(plan)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for most in (0.0, 100.0):
        assert 0 < shared.step_seconds(network, plan, made.recipe, 2, most) < 60
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_all_that_a_candidate_takes_beside_its_steps_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = context(made := unrated())
    plan = shared.plan(made.space.uniform(shared.subject.anatomy, (0.5,) * len(made.space.steps)))
    now = 0.0

    def taking(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any, **named: Any) -> Any:
            nonlocal now
            now += seconds
            return function(*arguments, **named)

        return slow

    monkeypatch.setattr("search.evaluation.context.time.process_time", lambda: now)
    monkeypatch.setattr(Context, "build", taking(10, Context.build))
    monkeypatch.setattr(SizeBytes, "__call__", taking(20, SizeBytes.__call__))
    monkeypatch.setattr(Top1, "__call__", taking(4, Top1.__call__))
    monkeypatch.setattr(ProxyLoss, "__call__", taking(2, ProxyLoss.__call__))
    monkeypatch.setattr(ProxyLoss, "answer", taking(100, ProxyLoss.answer))  # once for all candidates
    building, judging = shared.seconds_a_candidate(made.recipe, plan)[1:]
    assert building == 10 + 20 + 4
    assert judging == 2 + 2 * 2 + 4, "losses on training and validation inputs, and the early check"
    rated = dataclasses.replace(made.recipe, learning_rate=1e-3)
    assert shared.seconds_a_candidate(rated, plan)[1:] == (building, judging - 2)
    # where that takes too long, one forward pass tells
    monkeypatch.setattr("search.evaluation.input_time.outputs", taking(0.16, outputs))
    monkeypatch.setattr(Top1, "__call__", lambda *_: pytest.fail("it takes too long"))
    validation, input_seconds = len(made.splits.validation), 0.01
    building, judging = shared.seconds_a_candidate(made.recipe, plan, most=1.0)[1:]
    assert building == pytest.approx(10 + 20 + validation * input_seconds)
    assert judging == pytest.approx((PROXY_INPUTS + 3 * validation) * input_seconds)


def test_a_call_does_not_count_as_the_time_of_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = context(unrated())
    now, counts = 0.0, []

    def called(model: nn.Module, inputs: Tensor) -> Tensor:
        nonlocal now
        now += 0.1 + 0.001 * len(inputs)
        counts.append(len(inputs))
        found: Tensor = outputs(model, inputs)
        return found

    monkeypatch.setattr("search.evaluation.context.time.process_time", lambda: now)
    monkeypatch.setattr("search.evaluation.input_time.outputs", called)
    assert input_seconds_of(teacher(), shared.subject.example, enough=0.16) == pytest.approx(0.164 / 64)
    assert counts == [16, 32, 64], "until a pass takes long enough"
    assert input_seconds_of(teacher(), shared.subject.example, enough=0.15) == pytest.approx(0.164 / 64)
    assert input_seconds_of(teacher(), shared.subject.example, enough=9.0) == pytest.approx(0.164 / 64), (
        "there are no more inputs"
    )


def test_a_network_that_was_timed_is_not_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = context(unrated())
    plan = shared.plan(shared.spec.space.uniform(shared.subject.anatomy, (0.5,) * len(shared.spec.space.steps)))
    usual = shared.subject.build(plan)
    shared.seconds_a_candidate(shared.spec.recipe, plan)
    monkeypatch.setattr(Subject, "build", lambda *_: pytest.fail("it was built before"))
    model = shared.build(plan)
    for name, tensor in usual.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), "the timed steps changed a copy"
    monkeypatch.undo()
    assert shared.build(plan) is not model, "it is kept for one more time alone"


def test_the_range_test_reports_that_no_loss_is_finite() -> None:
    class Nan(Distill):
        def loss(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
            return student.sum() * float("nan")

    with pytest.raises(
        UserError, match="no loss of the range test is finite; check the data and the loss, or set a learning_rate"
    ):
        range_test(Net(), TeacherOutputs(teacher(), TRAIN), TRAIN, Nan(), Recipe(batch_size=32), 0)


def test_all_learning_rates_of_a_study_follow_from_one_range_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = searched(unrated(), tmp_path)
    assert capsys.readouterr().err.count("the range test found a learning rate of") == 1
    rate = Rate(*main.user_attrs[RANGE])
    rates = [trial.user_attrs[RATE] for trial in trained(main)]
    assert len(set(rates)) > 1
    assert all(rate.at(0.0, 6) <= each <= rate.at(10.0, 6) for each in rates)
    searched(unrated(budget=Budget(5)), tmp_path)
    assert "the range test found a learning rate of" not in capsys.readouterr().err
    shared = context(unrated())
    (record,) = confirm(front(main)[:1], shared, tmp_path, 1, range_tested(main, shared))
    assert record["n"] == 1
    stored = json.loads(next((tmp_path / "confirmed").glob("*-seed0.json")).read_text())
    assert stored["recipe"]["range_test"] == list(rate)


def test_with_more_time_the_front_is_trained_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = study(4)
    main = searched(short, tmp_path)
    before = {trial.number: trial for trial in front(main)}
    assert not promote(main, 1.4)
    assert promote(main, 2.0) == len(before)
    assert not promote(main, 2.0), "a waiting trial is not enqueued twice"
    trainings = watched(monkeypatch)
    again = searched(dataclasses.replace(short, budget=Budget(16)), tmp_path)
    assert [epochs for epochs, _ in trainings if epochs != 1] == [2.0] * len(before)
    longer = [trial for trial in again.trials if ASKED in trial.user_attrs]
    assert [trial.user_attrs[EPOCHS] for trial in longer] == [2.0] * len(before)
    assert {str(trial.params) for trial in longer} == {str(trial.params) for trial in before.values()}


def test_a_longer_training_starts_from_the_weights_of_the_shorter_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = searched(study(4), tmp_path)
    member = front(main)[0]
    promote(main, 3.0)
    seen: list[dict[str, Tensor]] = []

    def record(student: nn.Module, *arguments: Any) -> None:
        if arguments[3].epochs > 1:
            seen.append({name: tensor.clone() for name, tensor in student.state_dict().items()})
        student.eval()

    monkeypatch.setattr("search.evaluation.context.fine_tune", record)
    searched(study(16), tmp_path)
    stored = load_file(state_path(tmp_path, member.number))
    assert all(torch.equal(stored[name], tensor) for name, tensor in seen[0].items())


@dataclasses.dataclass
class Drifting:
    """A cost that grows with every measurement."""

    name: ClassVar[str] = "drift"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True
    calls: ClassVar[int] = 0

    def __call__(self, model: nn.Module) -> float:
        Drifting.calls += 1
        return 1.0 + Drifting.calls


def test_costs_are_not_measured_again_when_a_network_is_trained_further(tmp_path: Path) -> None:
    spec = dataclasses.replace(study(4), reported=(Drifting(),))
    main = searched(spec, tmp_path)
    before = {str(trial.params): numbers_of(trial, VALUES)["drift"] for trial in front(main)}
    promote(main, 2.0)
    again = searched(dataclasses.replace(spec, budget=Budget(16)), tmp_path)
    longer = [trial for trial in again.trials if ASKED in trial.user_attrs]
    assert {str(trial.params): numbers_of(trial, VALUES)["drift"] for trial in longer} == before


def test_the_front_is_prolonged_to_the_full_recipe_if_time_allows(tmp_path: Path) -> None:
    main = searched(study(6), tmp_path)
    long = study(6, epochs=50)
    assert prolong(main, long, seconds=1e-6) == 0
    assert prolong(main, long, seconds=1e6) == len(front(main))
    asked = {
        trial.user_attrs[ASKED] for trial in main.get_trials(states=(TrialState.WAITING,)) if ASKED in trial.user_attrs
    }
    assert asked == {50.0}


def test_the_worst_member_of_the_front_is_prolonged_if_time_is_too_short_for_all(tmp_path: Path) -> None:
    main = searched(study(6), tmp_path)
    members = front(main)
    assert len(members) > 1
    over = trained(main)
    for_two = 2 * sum(trial.user_attrs[SECONDS] for trial in over) / len(over)
    long = study(6, epochs=50)
    assert prolong(main, long, seconds=for_two) == 1
    (waiting,) = (trial for trial in main.get_trials(states=(TrialState.WAITING,)) if ASKED in trial.user_attrs)
    assert waiting.user_attrs[ASKED] == pytest.approx(2.0)
    assert fixed(waiting) == min(members, key=lambda member: member.values[0]).params


def test_the_nearest_candidate_is_trained_as_long_as_a_confirmation_if_none_meets_a_limit(tmp_path: Path) -> None:
    spec = study(6)
    top1 = spec.objectives[0]
    main = searched(dataclasses.replace(spec, limits=(Limit(top1, at_least=101.0),)), tmp_path)
    limited = dataclasses.replace(spec, limits=(Limit(top1, at_least=101.0),), confirmation=Recipe(epochs=30))
    assert not front(main)
    nearest = max(trained(main), key=lambda trial: trial.values[0])
    assert approach(main, limited, seconds=0.0) == 0
    assert approach(main, limited, seconds=1e-3) == 0  # too short to be a longer training
    assert approach(main, limited, seconds=40 * nearest.user_attrs[SECONDS]) >= 1
    (first, *_) = (trial for trial in main.get_trials(states=(TrialState.WAITING,)) if ASKED in trial.user_attrs)
    assert first.user_attrs[ASKED] > 1.0
    assert fixed(first) == nearest.params


def test_nothing_is_trained_further_for_the_limits_if_a_candidate_meets_them(tmp_path: Path) -> None:
    main = searched(study(4), tmp_path)
    assert approach(main, study(4), seconds=1e6) == 0


def test_a_run_ends_with_a_confirmation_of_the_nearest_candidate_if_none_meets_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has the augmentation of the confirmation, too."""
    seen: list[float] = []

    def noted(inputs: Tensor, _: torch.Generator) -> Tensor:
        seen.append(len(inputs))
        return inputs

    spent = iter([0.0] * 40)
    monkeypatch.setattr(BudgetClock, "spent", property(lambda _: next(spent, 0.8) if not seen else 1.0))
    monkeypatch.setattr(BudgetClock, "left", property(lambda _: 1000.0))
    spec = study(6)
    confirmation = Recipe(epochs=3, batch_size=32, augment=noted)  # the learning rate is that of the study's recipe
    limits = (*spec.limits, Limit(spec.objectives[0], at_least=100.1))
    timed = Budget(trials=None, cpu_seconds=1000)
    main = searched(dataclasses.replace(spec, limits=limits, confirmation=confirmation, budget=timed), tmp_path)
    assert "used to train the nearest further" in capsys.readouterr().err
    longest = max(trained(main), key=lambda trial: trial.user_attrs[EPOCHS])
    assert longest.user_attrs[EPOCHS] == 3
    assert len(seen) == 3 * 192 // 32
