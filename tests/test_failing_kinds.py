"""Plans that fail again and again: the value that only they have is not proposed again, or the run ends in one line."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from search import Budget, DraftStart, UniformStart
from search.evaluation.context import Context
from search.evaluation.failing_kinds import ENOUGH_FAILURES, LEAST_IN_A_ROW, FailingKinds
from search.study.errors import UserError
from search.study.front import trained, trained_count
from search.study.records import REASON
from tests.small_study import searched
from tests.small_study import study as small_study

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from search import StudySpec
    from spaces import Plan


def spec(trials: int) -> StudySpec:
    found = small_study(trials, share=1.0)
    return dataclasses.replace(found, budget=Budget(trials=trials), sampler=RandomSampler, limits=())


def breaking(monkeypatch: pytest.MonkeyPatch, broken: Any) -> list[Plan]:
    """Let the building of plans fail for which `broken` is true of their words; return the plans that failed."""
    before, failed = Context.build, []

    def build(context: Context, plan: Plan) -> nn.Module:
        if broken(plan):
            failed.append(plan)
            raise RuntimeError(f"the kernel takes no such code: 0x{len(failed):x}{len(failed)}")
        return before(context, plan)

    monkeypatch.setattr(Context, "build", build)
    return failed


def narrow_first(plan: Plan) -> bool:
    """Whether the weights of the layer `first` have 8 bits."""
    return any(layer == "first" and bits == 8 for step in plan.steps for layer, bits, _ in getattr(step, "widths", ()))


def test_one_value_that_fails_is_tried_a_few_times_and_then_not_proposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = breaking(monkeypatch, narrow_first)
    study = searched(spec(20), tmp_path)
    assert trained_count(study) == 20
    printed = " ".join(capsys.readouterr().err.split())
    assert ENOUGH_FAILURES <= len(failed) <= ENOUGH_FAILURES + 1
    assert printed.count("so no other plan with that is tried") == 1
    assert "only they have weight bits of first = 8" in printed
    reasons = [str(trial.user_attrs.get(REASON)) for trial in study.trials if trial.state == TrialState.PRUNED]
    assert any(reason.startswith("not tried: all plans with weight bits of first = 8 failed") for reason in reasons)


def test_failures_with_nothing_in_common_end_the_run_and_keep_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Plan] = []

    def later(plan: Plan) -> bool:
        built.append(plan)
        return len(built) > 4

    failed = breaking(monkeypatch, later)
    with pytest.raises(UserError, match="the last 10 plans all failed, most often with RuntimeError: the kernel takes"):
        searched(spec(40), tmp_path)
    assert LEAST_IN_A_ROW <= len(failed) <= LEAST_IN_A_ROW + ENOUGH_FAILURES
    monkeypatch.undo()
    assert len(trained(searched(spec(6), tmp_path))) == 6, "with the cause repaired, the same command goes on"


def test_a_draft_whose_plans_fail_ends_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = dataclasses.replace(spec(2), sampler=None, start=DraftStart(plans=2, scored=400))
    scored: list[object] = []

    def fail(*_: object) -> float:
        scored.append(None)
        raise RuntimeError("the kernel has no such width")

    monkeypatch.setattr("search.proposals.draft.proxy_loss_of", fail)
    with pytest.raises(UserError, match="the draft: all 10 plans failed, most often with RuntimeError: the kernel has"):
        searched(whole, tmp_path)
    assert len(scored) == LEAST_IN_A_ROW
    assert "the draft: the last 10 plans all failed" in " ".join(capsys.readouterr().err.split())


def test_uniform_plans_that_work_are_not_stopped(tmp_path: Path) -> None:
    assert len(trained(searched(dataclasses.replace(spec(5), start=UniformStart()), tmp_path))) == 5


PLANS = st.lists(
    st.tuples(st.booleans(), st.fixed_dictionaries({"a": st.integers(0, 2), "b": st.integers(0, 2), "c": st.just(1)})),
    max_size=30,
)


@given(PLANS)
@settings(max_examples=150, deadline=None)
def test_no_plan_is_refused_whose_every_value_worked(plans: list[tuple[bool, dict[str, int]]]) -> None:
    kinds = FailingKinds("the study")
    worked: set[tuple[str, int]] = set()
    for works, params in plans:
        if works:
            worked |= set(params.items())
            kinds.worked(params)
        else:
            kinds.failed(params, f"RuntimeError: got {len(worked)}")
    for _, params in plans:
        if set(params.items()) <= worked:
            assert kinds.reason_against(params) == ""
    assert not kinds.hopeless or kinds.in_a_row >= LEAST_IN_A_ROW


def test_a_reason_with_other_numbers_is_the_same_reason(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = FailingKinds("the study")
    kinds.worked({"width": 8, "rank": 0.5})
    for count in range(ENOUGH_FAILURES):
        kinds.failed({"width": 2, "rank": 0.5 if count % 2 else 0.25}, f"RuntimeError: expected {count}, got {count}.5")
    assert "only they have width = 2, so no other" in " ".join(capsys.readouterr().err.split())
    assert kinds.reason_against({"width": 2, "rank": 0.75}).startswith("not tried: all plans with width = 2 failed")
    assert not kinds.reason_against({"width": 3, "rank": 0.25})
