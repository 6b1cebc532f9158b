"""The sensitivity table, and the initial designs that are chosen from it."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import TYPE_CHECKING

import numpy as np
import optuna
import pytest
from optuna.trial import FixedTrial
from scipy.stats import spearmanr

from search import Budget, StudySpec, TableStart, UniformStart
from search.proposals.sensitivity_table import (
    SensitivityTable,
    measured_table,
    sensitivity_table,
    single_changes,
)
from search.proposals.table_losses import Allowance, interpolated, measured_losses, passes_of
from search.proposals.uniform_start import uniform_designs
from search.study.budget_clock import BudgetClock, cpu_seconds
from search.study.definition import define, differences
from spaces import PruneRatios, Ranks, Space, Temperatures
from tests.small_study import context, study

if TYPE_CHECKING:
    from search.evaluation.context import Context


@functools.cache
def shared() -> Context:
    return context(study())


@functools.cache
def table() -> SensitivityTable:
    changes = single_changes(shared())
    return sensitivity_table(shared(), changes, measured_losses(shared(), changes, passes(math.inf)))


def passes(count: float) -> Allowance:
    """Return an allowance of this many forward passes."""
    return Allowance(BudgetClock(Budget()), 1.0, count)


def began(start: TableStart | UniformStart, given: Context | None = None) -> list[dict[str, float]]:
    return start(given or shared(), optuna.create_study(), BudgetClock(Budget()))


def test_the_table_has_all_values_of_every_parameter_except_those_of_the_recovery() -> None:
    trial = optuna.create_study().ask()
    shared().spec.space.suggest(trial, shared().subject.anatomy)
    assert sorted((*table().names, "distill/temperature", "distill/weight")) == sorted(trial.params)
    assert all(len(values) == len(losses) for values, losses in zip(table().values, table().losses, strict=True))
    named = dict(zip(table().names, table().values, strict=True))
    assert [*named["prune/first"]] == [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75]
    bits = [*named["weight_bits/head"]]
    assert len(bits) == 4  # 32, 8, 4, 2
    assert table().axes == tuple({"prune": 0, "rank": 1}.get(name.partition("/")[0], 2) for name in table().names)


def test_the_first_value_adds_no_loss_and_losses_never_decrease() -> None:
    for losses in table().losses:
        assert losses[0] == 0
        assert (np.diff(losses) >= 0).all()
    assert max(losses[-1] for losses in table().losses) > 0.01


def test_costs_of_choices_equal_those_of_their_plans() -> None:
    random = np.random.default_rng(0)
    chosen = np.stack([random.integers(0, [len(values) for values in table().values]) for _ in range(5)])
    got = shared().cost_model.of(table().combine(chosen))
    usual = shared().spec.space.recovery.usual()
    plans = [
        shared().spec.space.suggest(FixedTrial(table().params(row) | usual), shared().subject.anatomy) for row in chosen
    ]
    want = shared().cost_model.exact(plans)
    assert set(got) == {"size_bytes", "macs"}
    for name, values in want.items():
        np.testing.assert_array_equal(got[name], values)


def is_feasible(spec: StudySpec, params: dict[str, float]) -> bool:
    plan = shared().spec.space.suggest(FixedTrial(params), shared().subject.anatomy)
    costs = shared().cost_model.exact([plan])
    return all(limit.excess(costs[limit.objective.name][0]) <= 0 for limit in spec.limits)


def test_initial_designs_meet_the_limits_and_are_spread_over_the_costs() -> None:
    plans = began(TableStart(plans=8))
    assert 3 <= len(plans) <= 8
    assert all(is_feasible(shared().spec, params) for params in plans)
    drawn = [shared().spec.space.suggest(FixedTrial(params), shared().subject.anatomy) for params in plans]
    sizes = shared().cost_model.exact(drawn)["size_bytes"]
    assert sizes.max() > 2 * sizes.min()
    assert sizes.min() < sizes[1] < sizes.max(), "the second one is in the middle of the widest gap"
    assert began(TableStart(plans=8)) == plans


def test_uniform_plans_replace_the_table_if_no_cost_is_known_before_training() -> None:
    (top1, _) = shared().spec.objectives
    alone = context(dataclasses.replace(study(), objectives=(top1,), limits=()))
    assert began(TableStart(), alone) == uniform_designs(alone)


def test_a_table_in_less_time_has_all_entries_and_nearly_the_same_order(capsys: pytest.CaptureFixture[str]) -> None:
    changes = single_changes(shared())
    entries = sum(len(change.plans) - 1 for change in changes)
    complete = np.concatenate([added[1:] for added in table().losses])
    for share, least in ((0.5, 0.9), (0.1, 0.8)):
        losses = measured_losses(shared(), changes, passes(share * entries * passes_of(256)))
        assert [len(added) for added in losses] == [len(change.plans) for change in changes]
        assert all((np.diff(added) >= 0).all() for added in losses)
        assert spearmanr(complete, np.concatenate([added[1:] for added in losses]))[0] > least
    printed = " ".join(capsys.readouterr().err.split())
    assert re.search(rf"measured \d+ of {entries} entries, the others are interpolated, on \d+ inputs each", printed)


def test_even_without_time_every_entry_has_a_loss() -> None:
    clock = BudgetClock(Budget(None, cpu_seconds=10.0), cpu=cpu_seconds() - 100.0)
    changes = single_changes(shared())
    losses = measured_losses(shared(), changes, Allowance(clock, 0.1, math.inf))
    assert all(len(added) == len(change.plans) for added, change in zip(losses, changes, strict=True))


def test_measuring_the_table_takes_a_tenth_of_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    clock = BudgetClock(Budget(None, cpu_seconds=2.0))
    wide = context(
        dataclasses.replace(study(), space=Space((PruneRatios(step=0.02), Ranks(step=0.02)), Temperatures()))
    )
    found = measured_table(wide, optuna.create_study(), clock)
    assert sum(map(len, found.values)) > 100
    assert clock.spent < 0.3, "an entry takes some milliseconds"
    assert "since more would take over 10% of the budget" in capsys.readouterr().err


def test_losses_between_measured_values_are_interpolated() -> None:
    (cubic,) = interpolated([{8: 512.0, 4: 64.0}], [0], [9])
    np.testing.assert_allclose(cubic, np.arange(9.0) ** 3)
    zero, half = interpolated([{2: 0.0}, {2: 4.0, 1: 1.0}], [0, 0], [3, 3])
    assert zero.tolist() == [0, 0, 0]
    assert half.tolist() == [0, 1, 4]
    quadratic, missing, _ = interpolated([{3: 9.0}, {}, {3: 18.0}], [0, 0, 0], [4, 4, 4])
    np.testing.assert_allclose(quadratic, [0, 1, 4, 9])  # second order, if nothing else is known
    np.testing.assert_allclose(missing[-1], 13.5)  # between its neighbours
    assert interpolated([{}], [0], [4])[0][-1] > 0


@pytest.mark.parametrize("start", [TableStart(plans=3), UniformStart()])
def test_the_start_is_part_of_the_definition(start: TableStart | UniformStart) -> None:
    mine = dataclasses.replace(study(), start=start)
    assert bool(differences(define(study()), define(mine))) == (start != UniformStart())
