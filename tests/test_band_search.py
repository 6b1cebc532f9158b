"""The search of a sensitivity table for the best sums of losses at every cost."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from objectives import Examples, Limit, Macs, SizeBytes, Top1
from search import Splits
from search.proposals.band_search import Evaluation, band_search
from search.proposals.cells import BANDS
from search.proposals.limits import excess_over_limits, meet_limits
from search.proposals.seeds import best_sums, seeds_within_limits
from search.proposals.sensitivity_table import SensitivityTable, sensitivity_table, single_changes
from spaces import BitWidths, Depth, PruneRatios, Ranks, Space, Temperatures
from spaces.axes.bits import WEIGHT_BITS
from spaces.testing import networks
from tests.small_study import context, study
from tests.user_nets import VisionTransformer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from search.evaluation.context import Context
    from spaces.costs.architectures import Architectures

PARAMETERS, CHOICES = 7, 4
ROWS = np.array(list(itertools.product(range(CHOICES), repeat=PARAMETERS)))


class Random:
    """A random table whose costs are sums of products of neighbouring parameters, as those of pruned layers are."""

    def __init__(self, seed: int, costs: int, *, convex: bool) -> None:
        random = np.random.default_rng(seed)
        steps = random.exponential(size=(PARAMETERS, CHOICES - 1)) * random.lognormal(0, 1.5, size=(PARAMETERS, 1))
        jumps = np.sort(random.lognormal(0, 2, size=(PARAMETERS, CHOICES - 1)))
        added = steps.cumsum(1) if convex else jumps
        self.losses = [np.array([0.0, *row]) for row in added]
        kept = random.uniform(0.4, 1, size=(PARAMETERS, CHOICES - 1, costs)).cumprod(1)
        self._kept = np.concatenate([np.ones((PARAMETERS, 1, costs)), kept], axis=1)
        self._weights = random.lognormal(0, 1, size=(PARAMETERS, costs))

    def sums(self, rows: np.ndarray) -> np.ndarray:
        return np.sum([added[rows[:, at]] for at, added in enumerate(self.losses)], axis=0)  # type: ignore[no-any-return]

    def costs(self, rows: np.ndarray) -> np.ndarray:
        kept = self._kept[np.arange(PARAMETERS), rows]
        before = np.concatenate([np.ones_like(kept[:, :1]), kept[:, :-1]], axis=1)
        return (self._weights * kept * before).sum(1)  # type: ignore[no-any-return]

    def found(
        self, bounds: np.ndarray | float = np.inf, loss_unit: float = 1.0, cost_unit: np.ndarray | float = 1.0
    ) -> np.ndarray:
        """Search plans whose costs are at most these shares of the unchanged network's."""
        unit = self.costs(ROWS[:1])

        def evaluate(rows: np.ndarray) -> Evaluation:
            costs = self.costs(rows)
            return Evaluation(costs * cost_unit, (costs / unit / bounds - 1).max(1))

        axes = [at % 3 for at in range(PARAMETERS)]
        return band_search([added * loss_unit for added in self.losses], axes, evaluate)


def best_in_bands(table: Random, rows: np.ndarray, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest sum of the rows in each band of each cost, and of all plans among the given ones."""
    everything = ROWS[1:] if among is None else among
    costs, all_costs = table.costs(rows), table.costs(everything)
    sums, all_sums = table.sums(rows), table.sums(everything)
    found, best = [], []
    for cost in range(costs.shape[1]):
        low, high = np.log(all_costs[:, cost].min()), np.log(table.costs(ROWS[:1])[0, cost])
        edges = low + (high - low) * np.arange(1, BANDS) / BANDS
        band, all_bands = (np.digitize(np.log(values[:, cost]), edges) for values in (costs, all_costs))
        for number in np.unique(all_bands):
            found.append(sums[band == number].min(initial=np.inf))
            best.append(all_sums[all_bands == number].min())
    return np.array(found), np.array(best)


@pytest.mark.parametrize("convex", [True, False])
@pytest.mark.parametrize("costs", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_sum_of_every_band_is_that_of_all_plans(seed: int, costs: int, *, convex: bool) -> None:
    table = Random(seed, costs, convex=convex)
    found, best = best_in_bands(table, table.found())
    assert np.isfinite(found).all(), "every band in which there is a plan has a seed"
    assert (found <= 1.01 * best).all()


@pytest.mark.parametrize("share", [0.3, 0.01, 0.0005])
@pytest.mark.parametrize("seed", range(3))
def test_plans_within_limits_are_found_where_few_hold_them(seed: int, share: float) -> None:
    table = Random(seed, 2, convex=False)
    relative = (table.costs(ROWS) / table.costs(ROWS[:1])).max(1)
    bound = np.sort(relative)[int(share * len(ROWS))]
    rows = table.found(bound)
    assert len(rows)
    assert ((table.costs(rows) / table.costs(ROWS[:1])).max(1) <= bound).all()
    assert table.sums(rows).min() <= 1.01 * table.sums(ROWS[relative <= bound]).min()


def test_a_table_without_a_plan_within_the_limits_gives_none() -> None:
    assert len(Random(0, 2, convex=True).found(1e-6)) == 0


@pytest.mark.parametrize("loss_unit", [2.0**-10, 2.0**10])  # powers of 2, so that rounding is the same
def test_other_units_give_the_same_plans(loss_unit: float) -> None:
    table = Random(0, 2, convex=False)
    other = table.found(loss_unit=loss_unit, cost_unit=np.array([2.0**-20, 2.0**20]))
    np.testing.assert_array_equal(other, table.found())


def test_any_number_of_first_seeds_spans_the_costs_and_each_axis_alone_is_among_them() -> None:
    table = Random(1, 1, convex=True)
    rows = table.found()
    relative = np.log(table.costs(rows) / table.costs(ROWS[:1]))[:, 0]
    for count in (2, 4, 8):
        assert np.ptp(relative[:count]) > (0.4 if count == 2 else 0.7) * np.ptp(relative)
    axes = np.arange(PARAMETERS) % 3
    assert all(any(set(axes[row > 0]) == {axis} for row in rows) for axis in range(3))
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert (rows > 0).any(1).all(), "the unchanged network is no seed"


def searched(losses: list[list[float]], axes: list[int], costs: Callable[[np.ndarray], np.ndarray]) -> list[list[int]]:
    """Search a small table without limits."""
    found = band_search(
        [np.array(added) for added in losses], axes, lambda rows: Evaluation(costs(rows), np.zeros(len(rows)))
    )
    return found.tolist()  # type: ignore[no-any-return]


def test_a_table_with_one_parameter_is_searched() -> None:
    assert sorted(searched([[0, 1, 2]], [0], lambda rows: 1.0 / (1 + rows))) == [[1], [2]]


def test_parameters_without_a_choice_stay() -> None:
    assert searched([[0]], [0], lambda rows: 1.0 + rows) == []
    assert searched([[0], [0, 1]], [0, 1], lambda rows: 1.0 / (1 + rows.sum(1, keepdims=True))) == [[0, 1]]


def test_savings_that_are_too_small_to_matter_end_a_path() -> None:
    rows = searched([[0, 1], [0, 1]], [0, 0], lambda rows: 1.0 - rows @ np.array([[1e-10], [0.5]]))
    assert [0, 1] in rows


@pytest.mark.parametrize("count", [6, 7])
def test_many_costs_of_which_some_are_zero_or_constant(count: int) -> None:
    def costs(rows: np.ndarray) -> np.ndarray:
        kept = 1.0 / (1 + rows)
        return np.column_stack([kept[:, 0], kept[:, 1], np.zeros(len(rows)), *[np.full(len(rows), 3.0)] * (count - 3)])

    rows = searched([[0, 1, 2], [0, 1, 4], [0, 0.5]], [0, 1, 1], costs)
    assert len(rows)
    assert all(any(row) for row in rows)


KINDS: tuple[type[nn.Module], ...] = (
    networks.Plain, networks.Residual, networks.Separable, networks.Dense, networks.Grouped, networks.Mlp,
    networks.SqueezeExcite, networks.Sequence, networks.Wide, VisionTransformer,
)  # fmt: skip


def made(kind: type[nn.Module]) -> tuple[Context, SensitivityTable]:
    """Return a study of a network of this kind, and a table of random losses."""
    torch.manual_seed(0)
    net = kind().eval()
    shape: tuple[int, ...] = net.shape  # type: ignore[assignment]
    inputs = torch.randn(16, *shape)
    with torch.no_grad():
        data = Examples(inputs, net(inputs).flatten(1).argmax(1))
    space = Space((PruneRatios(), Depth(), Ranks(), BitWidths(weights=(2, 4, 8), activations=(8,))), Temperatures())
    objectives = (Top1(data), SizeBytes(), Macs(inputs[:1]))
    spec = dataclasses.replace(
        study(), teacher=net, splits=Splits(data, data, data), space=space, objectives=objectives, limits=(),
        calibration=16,
    )  # fmt: skip
    found = context(spec)
    random = np.random.default_rng(0)
    changes = single_changes(found)
    losses = [np.array([0.0, *random.lognormal(0, 2, len(change.plans) - 1)]).cumsum() for change in changes]
    return found, sensitivity_table(found, changes, losses)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_band_of_every_cost_has_a_seed_wherever_a_plan_is_found(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, table = made(kind)
    names = ["size_bytes", "macs"]
    counts = [len(values) for values in table.values]
    random = np.random.default_rng(1)
    strength = random.random((3000, 1))  # plans of every strength, which random choices alone seldom give
    rows = np.clip(
        (random.beta(0.5 + 3 * strength, 3.5 - 3 * strength, (3000, len(counts))) * counts).astype(int),
        0,
        np.array(counts) - 1,
    )
    rows = np.vstack([rows, [np.array(counts) - 1]])
    smallest = dict.fromkeys(names, np.inf)
    real = found.cost_model.of

    def noted(architectures: Architectures) -> dict[str, np.ndarray]:
        values = real(architectures)
        for name in names:
            smallest[name] = min(smallest[name], values[name].min())
        return values

    monkeypatch.setattr(found.cost_model, "of", noted)
    seeds = seeds_within_limits(found, table, names)
    monkeypatch.undo()
    costs, others = (found.cost_model.of(table.combine(chosen)) for chosen in (seeds, rows))
    teacher = found.cost_model.of(table.combine(np.zeros((1, len(counts)), dtype=int)))
    for name in names:
        assert smallest[name] <= others[name].min(), "the smallest plan is among those that were searched"
        edges = np.log(smallest[name] / teacher[name][0]) * (1 - np.arange(1, BANDS) / BANDS)
        bands, other_bands = (
            set(np.digitize(np.log(values[name][values[name] <= teacher[name]] / teacher[name][0]), edges))
            for values in (costs, others)
        )
        assert other_bands <= bands
    # the first trainings span the range
    best = best_sums(found, table, names, 8)
    chosen = [found.plan(params) for params in best]
    spanned = np.log(found.cost_model.exact(chosen)["macs"])
    assert np.ptp(spanned) > 0.5 * np.ptp(np.log(costs["macs"]))


@pytest.mark.parametrize(
    "kind", [networks.Residual, networks.Separable, VisionTransformer], ids=lambda kind: kind.__name__
)
def test_a_limit_that_few_plans_meet_leaves_seeds(kind: type[nn.Module]) -> None:
    found, table = made(kind)
    seeds = seeds_within_limits(found, table, ["size_bytes", "macs"])
    costs = found.cost_model.of(table.combine(seeds))
    limits = tuple(
        Limit(objective, at_most=1.3 * float(costs[objective.name].min()))
        for objective in found.spec.objectives
        if objective.is_cost
    )
    found.spec = dataclasses.replace(found.spec, limits=limits)
    tight = seeds_within_limits(found, table, ["size_bytes"])
    assert len(tight)
    within = found.cost_model.of(table.combine(tight))
    assert meet_limits(found, within).all()
    assert (excess_over_limits(found, within) <= 0).all()


@pytest.mark.parametrize(
    "kind", [networks.Residual, networks.Separable, VisionTransformer], ids=lambda kind: kind.__name__
)
def test_one_precision_for_all_layers_is_a_seed_where_conversions_cost(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, table = made(kind)
    real = found.cost_model.of

    def with_conversions(architectures: Architectures) -> dict[str, np.ndarray]:
        bits = architectures.chosen[WEIGHT_BITS]
        conversions = (bits[:, 1:] != bits[:, :-1]).sum(1)
        return real(architectures) | {"macs": (1 + 3 * conversions) * (1 + bits.mean(1))}

    monkeypatch.setattr(found.cost_model, "of", with_conversions)
    seeds = seeds_within_limits(found, table, ["macs"])
    bits = table.combine(seeds).chosen[WEIGHT_BITS]
    assert {8, 4, 2} <= {int(row[0]) for row in bits if len(set(row)) == 1}
    assert len(np.unique(seeds, axis=0)) == len(seeds)
