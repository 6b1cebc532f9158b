"""The sensitivity table, and the initial designs that are chosen from it."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np
import optuna
import pytest
from optuna.trial import FixedTrial

from search import Budget, StudySpec, TableStart, UniformStart
from search.proposals.lagrangian import MULTIPLIERS, lagrangian_search
from search.proposals.sensitivity_table import SensitivityTable, sensitivity_table
from search.proposals.uniform_start import uniform_designs
from search.study.budget_clock import BudgetClock
from search.study.definition import define, differences
from tests.small_study import context, study

if TYPE_CHECKING:
    from search.evaluation.context import Context


@functools.cache
def shared() -> Context:
    return context(study())


@functools.cache
def table() -> SensitivityTable:
    found = sensitivity_table(shared(), lambda done: None, 1e9)
    assert found is not None
    return found


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


def test_the_best_sums_are_no_worse_than_those_of_any_uniform_row() -> None:
    known = list(shared().cost_model._formulas.values())[:1]
    chosen = lagrangian_search(table(), known)
    assert len(np.unique(chosen, axis=0)) == len(chosen)
    value = np.log(shared().cost_model.of(table().combine(chosen))["size_bytes"])
    losses = sum(added[chosen[:, column]] for column, added in enumerate(table().losses))
    rows = np.array([[min(step, len(values) - 1) for values in table().values] for step in range(7)])
    rivals = np.log(shared().cost_model.of(table().combine(rows))["size_bytes"])
    rival_losses = sum(added[rows[:, column]] for column, added in enumerate(table().losses))
    for multiplier in MULTIPLIERS:
        assert (losses + multiplier * value).min() <= (rival_losses + multiplier * rivals).min() + 1e-9
    axes = np.array(table().axes)
    sets = [set(axes[row > 0]) for row in chosen]
    assert all({axis} in sets for axis in range(3))  # each axis alone is among them


def is_feasible(spec: StudySpec, params: dict[str, float]) -> bool:
    plan = shared().spec.space.suggest(FixedTrial(params), shared().subject.anatomy)
    costs = shared().cost_model.exact([plan])
    return all(limit.excess(costs[limit.objective.name][0]) <= 0 for limit in spec.limits)


def test_initial_designs_meet_the_limits_and_are_spread_over_the_costs() -> None:
    plans = began(TableStart(plans=8))
    assert 3 <= len(plans) <= 8
    assert all(is_feasible(shared().spec, params) for params in plans)
    drawn = [shared().spec.space.suggest(FixedTrial(params), shared().subject.anatomy) for params in plans]
    sizes = shared().cost_model.exact(drawn)["size_bytes"].tolist()
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2 * sizes[-1]
    assert began(TableStart(plans=8)) == plans


def test_uniform_plans_replace_a_table_that_takes_too_long() -> None:
    assert began(TableStart(seconds=0)) == uniform_designs(shared()) == began(UniformStart())


def test_uniform_plans_replace_the_table_if_no_cost_is_known_before_training() -> None:
    (top1, _) = shared().spec.objectives
    alone = context(dataclasses.replace(study(), objectives=(top1,), limits=()))
    assert began(TableStart(), alone) == uniform_designs(alone)


@pytest.mark.parametrize("start", [TableStart(plans=3), UniformStart()])
def test_the_start_is_part_of_the_definition(start: TableStart | UniformStart) -> None:
    mine = dataclasses.replace(study(), start=start)
    assert bool(differences(define(study()), define(mine))) == (start != UniformStart())
