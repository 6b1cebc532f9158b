"""Limits relative to the teacher, and what is said about limits that are not met."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import pytest

from objectives import Latency, LatencyShare, Limit, Loss, Macs, Parameters, SizeBytes, Top1
from objectives.runtimes import OnnxRuntime
from search.evaluation.reference import bounded
from search.proposals.defaults import resolved
from search.proposals.limits import check_reachable
from search.study.attributes import constraints_of, numbers_of
from search.study.definition import define
from search.study.errors import LimitsUnmet, UserError
from search.study.front import front, need_front, trained
from search.study.queue import enqueue
from search.study.records import EPOCHS, EXCESS, REASON, TEACHER, VALUES
from search.study.storage import open_study
from search.study.unmet import Candidate, details, loosened, shortfall
from tests.small_study import context, searched, splits, study, teacher, watched

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from objectives.objective import Direction

DATA = splits().validation
MACS = Macs(DATA.inputs)


@dataclasses.dataclass(frozen=True)
class Timed:
    """A cost that has no formula and depends on the machine, like a time; `slowness` is the machine."""

    slowness: list[float] = dataclasses.field(default_factory=lambda: [1.0], repr=False, metadata={"found": True})
    name: ClassVar[str] = "time_ms"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True

    def __call__(self, model: nn.Module) -> float:
        return self.slowness[0] * Parameters()(model)


def test_a_share_of_the_teacher_is_an_upper_bound_of_what_is_minimized() -> None:
    limit = Limit(SizeBytes(), of_teacher=0.25)
    known = limit.against(4000)
    assert (known.bound, known.is_upper, known.is_relative) == (1000, True, True)
    assert [known.excess(value) for value in (500, 1000, 2000)] == [-0.5, 0, 1]
    assert (str(known), known.words) == (
        "size_bytes <= 0.25 of the teacher's",
        "size_bytes <= 0.25 of the teacher's (1,000)",
    )
    assert (str(limit), limit.words) == (str(known), str(known))


def test_a_share_of_the_teacher_is_a_lower_bound_of_what_is_maximized() -> None:
    limit = Limit(Top1(DATA), of_teacher=0.9).against(80)
    assert (limit.bound, limit.is_upper, limit.words) == (72, False, "top1 >= 0.9 of the teacher's (72)")
    assert limit.excess(36) == 0.5


def test_a_loss_is_allowed_in_the_direction_that_is_worse() -> None:
    most = Limit(Loss(DATA), lose_at_most=0.1).against(0.2)
    least = Limit(Top1(DATA), lose_at_most=1.0).against(98.5)
    assert most.bound == pytest.approx(0.3)
    assert (most.is_upper, str(most)) == (True, "loss_nats <= the teacher's + 0.1")
    assert (least.bound, least.is_upper, least.words) == (97.5, False, "top1 >= the teacher's - 1 (97.5)")
    assert str(Limit(Top1(DATA), lose_at_most=0)) == "top1 >= the teacher's"


def test_a_loss_of_just_what_is_allowed_is_within_the_limit() -> None:
    limit = Limit(Top1(DATA), lose_at_most=1.0).against(98.3)
    assert limit.bound > 97.3 - 1e-9
    assert limit.excess(97.3) == 0
    assert limit.excess(97.2) > 0


def test_the_excess_over_a_bound_of_zero_is_finite() -> None:
    assert Limit(Loss(DATA), lose_at_most=0).against(0.0).excess(0.5) == 0.5
    assert Limit(Top1(DATA), lose_at_most=50).against(50.0).excess(-5.0) == 0.1


@pytest.mark.parametrize("given", [{"of_teacher": 0.0}, {"of_teacher": -1.0}, {"lose_at_most": -0.5}])
def test_a_relative_limit_is_not_negative(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"of a limit must be (positive|zero or more), but got .* for 'top1'"):
        Limit(Top1(DATA), **given)


def test_a_relative_limit_has_no_bound_before_the_teacher_is_known() -> None:
    with pytest.raises(ValueError, match=r"top1 >= the teacher's - 1 has no bound before the teacher's value is known"):
        _ = Limit(Top1(DATA), lose_at_most=1).bound


def test_a_share_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"loss_nats of the teacher is 0; use lose_at_most"):
        Limit(Loss(DATA), of_teacher=1.1).against(0.0)


def test_the_definition_holds_what_the_user_gave_and_nothing_else() -> None:
    spec = dataclasses.replace(study(), limits=(Limit(MACS, at_most=5.0), Limit(SizeBytes(), of_teacher=0.5)))
    settings = {path: value for path, value in define(spec).items() if path.startswith("limits")}
    assert settings == {
        "limits[0]": "Limit", "limits[0].objective": repr(MACS), "limits[0].at_most": "5.0",
        "limits[0].at_least": "None",
        "limits[1]": "Limit", "limits[1].objective": "SizeBytes",
        **{path: value for path, value in settings.items() if path.startswith("limits[1].objective.")},
        "limits[1].at_most": "None", "limits[1].at_least": "None", "limits[1].of_teacher": "0.5",
    }  # fmt: skip
    known = dataclasses.replace(spec, limits=tuple(limit.against(9.0) for limit in spec.limits))
    assert define(known) == define(spec)


def test_a_study_meets_its_relative_limits(tmp_path: Path) -> None:
    limits = (Limit(MACS, of_teacher=0.6), Limit(Top1(DATA), lose_at_most=10))
    found = searched(dataclasses.replace(study(8), limits=limits), tmp_path)
    best = found.user_attrs[TEACHER]
    assert front(found)
    for trial in front(found):
        assert numbers_of(trial, VALUES)["macs"] <= 0.6 * best["macs"]
        assert trial.values[0] >= best["top1"] - 10
    missed = [trial for trial in trained(found) if trial.values[0] < best["top1"] - 10]
    assert missed
    for trial in trained(found):
        lost = (best["top1"] - 10 - trial.values[0]) / best["top1"]
        assert trial.constraints["1"] == pytest.approx(lost)
        assert numbers_of(trial, EXCESS) == constraints_of(trial, list(map(str, limits)))


def test_relative_and_absolute_limits_of_one_bound_give_the_same_study(tmp_path: Path) -> None:
    absolute = searched(study(5), tmp_path / "absolute")
    relative = searched(dataclasses.replace(study(5), limits=(Limit(MACS, of_teacher=0.6),)), tmp_path / "relative")
    assert [trial.values for trial in trained(relative)] == [trial.values for trial in trained(absolute)]


def test_a_rejected_plan_names_the_limit_with_its_bound(tmp_path: Path) -> None:
    spec = dataclasses.replace(study(6), limits=(Limit(MACS, of_teacher=0.3),))
    found = searched(spec, tmp_path)
    shared = context(spec)
    enqueue(found, spec.space.uniform(shared.subject.anatomy, (0.0, 0.0, 0.0)))
    searched(dataclasses.replace(spec, budget=dataclasses.replace(spec.budget, trials=7)), tmp_path)
    reasons = [trial.user_attrs[REASON] for trial in found.trials if REASON in trial.user_attrs]
    bound = 0.3 * MACS(teacher())
    assert f"exceeds the limit macs <= 0.3 of the teacher's ({bound:,.6g})" in reasons


def test_a_resumed_study_has_the_bounds_of_the_stored_teacher(tmp_path: Path) -> None:
    spec = dataclasses.replace(study(2), limits=(Limit(Top1(DATA), lose_at_most=10), Limit(MACS, of_teacher=0.5)))
    found = searched(spec, tmp_path)
    found.set_user_attr(TEACHER, {**found.user_attrs[TEACHER], "top1": 77.0, "macs": 1000.0})
    first, second = bounded(found, context(spec)).spec.limits
    assert (first.bound, second.bound) == (67.0, 500.0)


def test_a_measured_cost_is_compared_with_the_teacher_of_the_same_process(tmp_path: Path) -> None:
    cost = Timed()
    spec = resolved(dataclasses.replace(study(2), limits=(Limit(cost, of_teacher=0.5),)))
    stored = open_study(spec, tmp_path, None, create=True)
    first = bounded(stored, context(spec)).spec.limits[0].bound
    cost.slowness[0] = 3.0
    again = bounded(stored, context(spec)).spec.limits[0].bound
    assert (first, again) == (398, 3 * 398)
    assert stored.user_attrs[TEACHER]["time_ms"] == 796


def test_latency_relative_to_the_teacher_is_that_of_the_reference_in_this_process(tmp_path: Path) -> None:
    latency = Latency(OnnxRuntime(), teacher(), DATA.inputs[:1], rounds=2)
    limits = (Limit(latency, of_teacher=0.5), Limit(LatencyShare(latency), of_teacher=0.5))
    spec = resolved(dataclasses.replace(study(2), limits=limits))
    stored = open_study(spec, tmp_path, None, create=True)
    shared = context(spec)
    latency = next(objective for objective in shared.spec.measured if isinstance(objective, Latency))
    first = bounded(stored, shared).spec.limits
    stored.set_user_attr(TEACHER, {**stored.user_attrs[TEACHER], "latency_ms": 1e6, "latency_share": 3.0})
    second = bounded(stored, shared).spec.limits  # as on another machine
    assert [limit.bound for limit in first] == [limit.bound for limit in second] == [latency.of_reference() / 2, 0.5]


def test_a_share_of_a_teacher_without_value_is_reported(tmp_path: Path) -> None:
    spec = resolved(dataclasses.replace(study(2), limits=(Limit(Top1(DATA), of_teacher=0.9),)))
    stored = open_study(spec, tmp_path, None, create=True)
    stored.set_user_attr(TEACHER, {"top1": 0.0, "size_bytes": 1.0})
    with pytest.raises(UserError, match="of_teacher takes a share of a positive value, but top1 of the teacher is 0"):
        bounded(stored, context(spec))


def test_a_longer_training_keeps_what_was_found_on_the_limits_of_costs(tmp_path: Path) -> None:
    cost = Timed()
    spec = dataclasses.replace(study(1), limits=(Limit(cost, of_teacher=0.9),))
    (before,) = trained(searched(spec, tmp_path))
    assert before.constraints["0"] < 0
    again = dataclasses.replace(spec, budget=dataclasses.replace(spec.budget, trials=9))  # after the initial designs
    enqueue(open_study(resolved(again), tmp_path, None, create=True), before.params, 2)
    cost.slowness[0] = 0.1  # a faster machine, with a smaller bound in milliseconds
    after = next(x for x in trained(searched(again, tmp_path)) if x.user_attrs[EPOCHS] == 2)
    assert numbers_of(after, VALUES)["time_ms"] == numbers_of(before, VALUES)["time_ms"]
    assert numbers_of(after, EXCESS) == numbers_of(before, EXCESS)
    assert list(numbers_of(after, EXCESS).values()) == list(after.constraints.values())


ONE, TWO = Limit(MACS, at_most=100), Limit(Parameters(), at_most=10)


def candidate(name: str, macs: float, parameters: float | None = None) -> Candidate:
    excess = {str(ONE): ONE.excess(macs)}
    if parameters is None:
        return Candidate(name, {"macs": macs}, excess)
    return Candidate(name, {"macs": macs, "parameters": parameters}, excess | {str(TWO): TWO.excess(parameters)})


def test_the_binding_limit_is_the_one_that_is_enough_to_loosen() -> None:
    some = [candidate("a", 90, 20), candidate("b", 110, 9), candidate("c", 130, 8), candidate("d", 50)]
    found = shortfall([ONE, TWO], some)
    assert (found.binding, found.nearest.name) == (ONE, "b")
    assert found.enough is found.nearest
    assert {limit: best.name for limit, best in found.best.items()} == {ONE: "d", TWO: "c"}
    assert details(found, some) == [
        "limit macs <= 100: met by 2 of 4; the best value is 50, d",
        "limit parameters <= 10: met by 2 of 3; the best value is 8, c",
    ]


def test_without_a_single_limit_in_the_way_the_one_missed_by_most_binds() -> None:
    some = [candidate("a", 120, 30), candidate("b", 150, 18)]
    found = shortfall([ONE, TWO], some)
    assert (found.binding, found.nearest.name, found.enough) == (TWO, "b", None)
    assert details(found, some)[1] == "limit parameters <= 10: missed by 80.0%; the best value is 18, b"


def test_a_loosened_limit_is_given_in_its_own_terms() -> None:
    assert loosened(ONE, 120) == "120"
    assert loosened(Limit(MACS, of_teacher=0.1).against(1000), 120) == "120, 0.12 of the teacher's (8.33 times less)"
    assert loosened(Limit(Top1(DATA), lose_at_most=1).against(98), 95.5) == "95.5, a loss of 2.5"


def test_a_limit_out_of_reach_is_reported_with_the_axis_that_gives_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = watched(monkeypatch)
    spec = dataclasses.replace(study(), limits=(Limit(MACS, of_teacher=0.01), Limit(SizeBytes(), of_teacher=0.9)))
    with pytest.raises(LimitsUnmet) as caught:
        searched(spec, tmp_path)
    message = str(caught.value)
    assert message.startswith("the limit macs <= 0.01 of the teacher's (139.52) cannot be met: the nearest plan")
    assert (
        "; loosen only this limit, to 1,036, 0.07425 of the teacher's (13.5 times less), or extend the range of Prune"
        in message
    )
    assert "the axis that gives most: alone, at its strongest (channels -75% first, second), it reaches macs" in message
    assert [line.split(":")[0] for line in caught.value.details] == [
        "limit macs <= 0.01 of the teacher's (139.52)",
        "limit size_bytes <= 0.9 of the teacher's (3,280.5)",
    ]
    assert "missed by a factor of 7.43; the best value is 1,036, by channels -75%" in caught.value.details[0]
    assert "met by " in caught.value.details[1]
    assert not trainings


def test_limits_that_exclude_each_other_are_reported_together() -> None:
    # the smallest file needs pruning, so a network that keeps its multiply-adds cannot be small
    limits = (Limit(SizeBytes(), of_teacher=0.3), Limit(MACS, at_least=0.9 * MACS(teacher())))
    spec = dataclasses.replace(study(), limits=limits)
    shared = context(spec)
    shared.spec = dataclasses.replace(spec, limits=(limits[0].against(SizeBytes()(shared.subject.finished)), limits[1]))
    with pytest.raises(LimitsUnmet, match="cannot be met together with the others") as caught:
        check_reachable(shared)
    assert all("met by" in line for line in caught.value.details)
    assert "loosen only this limit, to " in str(caught.value)


def test_an_empty_front_names_best_values_the_binding_limit_and_the_way_out(tmp_path: Path) -> None:
    limits = (Limit(MACS, of_teacher=0.6), Limit(Top1(DATA), at_least=100.5))
    spec = dataclasses.replace(study(3), limits=limits)
    found = searched(spec, tmp_path)
    best = max(trained(found), key=lambda trial: trial.values[0])
    with pytest.raises(LimitsUnmet) as caught:
        need_front(found, spec)
    message = str(caught.value)
    assert f"no candidate meets all limits; the nearest, trial {best.number}, misses top1 >= 100.5 by " in message
    assert f"; loosen only this limit, to {best.values[0]:.10g}, or run the study for longer" in message
    macs, top1 = caught.value.details
    assert macs.startswith("limit macs <= 0.6 of the teacher's (8,371.2): met by ")
    assert f"the best value is {best.values[0]:g}, of trial {best.number}" in top1
