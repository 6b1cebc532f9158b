"""The plan that a runtime's own converter makes, with which a study starts."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.trial import FixedTrial

from objectives import Limit, Macs, SizeBytes
from search import Budget, DraftStart
from search.proposals.converter import converters_plan
from search.proposals.sensitivity_table import stored_table
from search.study.budget_clock import BudgetClock
from search.study.records import EPOCHS
from spaces import BitWidths, PruneRatios, Space, Temperatures
from tests.small_study import context, searched, splits, study, teacher

if TYPE_CHECKING:
    from pathlib import Path

    from search import StudySpec
    from search.evaluation.context import Context


def unlimited(**changes: Any) -> StudySpec:
    return dataclasses.replace(study(), limits=(), **changes)


def runtime(*pairs: tuple[int, int]) -> SimpleNamespace:
    return SimpleNamespace(integers_only=False, precisions=lambda *_: pairs)


def widths(shared: Context, params: dict[str, float]) -> set[tuple[int, int]]:
    """Return the bits of weights and inputs that the layers have."""
    quantize = shared.plan(params).steps[-1]
    return {(weights, inputs) for _, weights, inputs in quantize.widths}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (BitWidths(), (8, 8)),
        (BitWidths(activations=(32,)), (8, 32)),
        (BitWidths(weights=(2, 4)), (32, 8)),
        (BitWidths(runtime=runtime((2, 32), (4, 32), (8, 32), (8, 8), (4, 8))), (8, 8)),
        (BitWidths(runtime=runtime((4, 32), (8, 32))), (8, 32)),
        (BitWidths(weights=(4,), runtime=runtime((4, 32), (4, 8), (8, 32))), (32, 32)),
    ],
)
def test_it_has_eight_bits_everywhere_as_far_as_they_are_offered(axis: BitWidths, expected: tuple[int, int]) -> None:
    shared = context(unlimited(space=Space((PruneRatios(), axis), Temperatures())))
    params = shared.spec.space.converted(shared.subject.anatomy)
    assert widths(shared, params) == {expected}
    assert not shared.plan(params).steps[0].words(), "nothing is pruned"
    assert converters_plan(shared, ["size_bytes"]) == ([] if expected[0] == 32 else [params])


def test_it_is_left_out_where_it_saves_nothing_or_exceeds_a_limit() -> None:
    macs = Macs(splits().validation.inputs)
    top1, size = study().objectives
    shared = context(unlimited(objectives=(top1, size, macs)))
    assert converters_plan(shared, ["macs"]) == []
    assert len(converters_plan(shared, ["macs", "size_bytes"])) == 1
    tight = Limit(SizeBytes(), at_most=0.1 * SizeBytes()(teacher()))
    assert converters_plan(context(dataclasses.replace(study(), limits=(tight,))), ["size_bytes"]) == []
    without_bits = context(unlimited(space=Space((PruneRatios(),), Temperatures())))
    assert converters_plan(without_bits, ["size_bytes"]) == []


def test_a_study_starts_with_it() -> None:
    shared = context(unlimited(budget=Budget(4)))
    main = optuna.create_study(study_name="m", storage=optuna.storages.InMemoryStorage())
    plans = DraftStart(plans=4, scored=20)(shared, main, BudgetClock(Budget()))
    (expected,) = converters_plan(shared, ["size_bytes"])
    assert shared.plan(plans[0]) == shared.plan(expected)
    table = stored_table(main, shared)
    assert table is not None
    pairs = zip(table.names, table.values, strict=True)
    assert all(plans[0][name] in values for name, values in pairs), "as a plan of the draft says it"
    assert 2 <= len(plans) <= 4
    drawn = [shared.spec.space.suggest(FixedTrial(params), shared.subject.anatomy) for params in plans]
    assert len(set(drawn)) == len(plans)


@pytest.mark.parametrize("short", [True, False])
def test_in_a_short_time_it_is_measured_without_a_training(
    short: bool,  # noqa: FBT001 - a test parameter
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = unlimited(start=DraftStart(plans=3, scored=20), budget=Budget(2))
    whole = spec.recipe
    monkeypatch.setattr("search.loop.run.affordable", lambda *_: whole.of_length(0.5) if short else whole)
    first, second = searched(spec, tmp_path / "s").get_trials()[:2]
    assert [first.state.name, second.state.name] == ["COMPLETE", "COMPLETE"]
    assert [first.user_attrs[EPOCHS], second.user_attrs[EPOCHS]] == ([0, 0.5] if short else [1, 1])
    said = "measured without a training" in " ".join(capsys.readouterr().err.split())
    assert said == short
