"""What each single change would do: its loss measured alone, its place in an outline; and the best of their sums."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from spaces.outline import outlined

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna.distributions import BaseDistribution

    from objectives.objective import Foretelling
    from search.bench import Bench
    from spaces import Plan
    from spaces.outline import Outline

MULTIPLIERS = np.geomspace(3e-4, 10, 28)  # nats for a factor of e in cost
SWEEPS = 6
NOTHING = 1e-9
ENOUGH = 20  # entries, from which the time of all is told


@dataclass(frozen=True)
class Options:
    """Every rung of every parameter, changed alone.

    Attributes
    ----------
    axes
        For each parameter the number of the axis it belongs to.
    names, values
        The parameters, and for each the values that give different plans, the one that changes nothing first.
    losses
        For each parameter the loss that each value adds, never falling.
    outline
        Rows: nothing changed, then each value of each parameter alone.
    owners
        See `Outline.mixed`.
    """

    axes: tuple[int, ...]
    names: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    losses: tuple[np.ndarray, ...]
    outline: Outline
    owners: tuple[np.ndarray, ...]

    def sums(self, chosen_NP: np.ndarray) -> np.ndarray:
        """Return the sum of the losses of the choices in each row, shape (N,)."""
        total: np.ndarray = np.sum([added[chosen_NP[:, at]] for at, added in enumerate(self.losses)], axis=0)
        return total

    def params(self, chosen: np.ndarray) -> dict[str, float]:
        """Return the parameters of a row of choices."""
        return {name: values[at] for name, values, at in zip(self.names, self.values, chosen, strict=True)}


def options(
    bench: Bench, told: Callable[[float], None], seconds: float, known: Sequence[Sequence[float]] | None = None
) -> Options | None:
    """Measure every change alone: the distance of the answers from the teacher's, by the recovery's own loss.

    None where that would take more CPU time than `seconds`.

    Parameters
    ----------
    bench
        The study.
    told
        Called with the share that is done.
    seconds
        CPU time that it may take, told from the first entries on.
    known
        The losses, where they were measured before.
    """
    space, anatomy = bench.spec.space, bench.anatomy
    untouched = space.uniform(anatomy, (0.0,) * len(space.steps))
    trial = FixedTrial(untouched)
    none = space.suggest(trial, anatomy)
    plans = {
        name: {value: space.suggest(FixedTrial(untouched | {name: value}), anatomy) for value in _rungs(distribution)}
        for name, distribution in trial.distributions.items()
        if name not in space.recovery.usual()
    }
    for name, found in plans.items():  # what rounding makes equal is one option
        distinct = {plan: value for value, plan in _outwards(found, untouched[name]) if plan != none}
        plans[name] = {value: plan for plan, value in distinct.items()}
    losses = [np.array(added) for added in known] if known else _losses(bench, plans, told, seconds)
    if losses is None:
        return None
    owners = [set(axis.uniform(anatomy, 0.0)) for axis in space.steps]
    outline = outlined(bench.foresight.frame, [none, *itertools.chain(*(found.values() for found in plans.values()))])
    return Options(
        axes=tuple(next(n for n, owned in enumerate(owners) if name in owned) for name in plans),
        names=tuple(plans),
        values=tuple((untouched[name], *found) for name, found in plans.items()),
        losses=tuple(losses),
        outline=outline,
        owners=outline.owners([len(found) for found in plans.values()]),
    )


def _losses(
    bench: Bench, plans: dict[str, dict[float, Plan]], told: Callable[[float], None], seconds: float
) -> list[np.ndarray] | None:
    score, started = bench.score, time.process_time()
    count, done = sum(map(len, plans.values())), 0
    losses = []
    for found in plans.values():
        added = [0.0]
        for plan in found.values():
            added.append(max(added[-1], score(bench.sketch(plan))))
            done += 1
            told(done / count)
            spent = time.process_time() - started
            if done >= ENOUGH and spent > seconds * done / count:
                return None
        losses.append(np.array(added))
    return losses


def virtual(options: Options, costs: Sequence[tuple[Foretelling, float]]) -> np.ndarray:
    """Return choices that are best in the sum of their losses, for many weights of the costs and sets of axes.

    Coordinate descent on loss + multiplier * log(cost), every multiplier and set of axes at once: each axis alone, each
    pair, all. Several costs are weighed evenly, and each ten times the others. Shape (plans, parameters), no row twice.

    Parameters
    ----------
    options
        The single changes.
    costs
        What is to be small, each with the constant that its `foreseen` lacks.

    References
    ----------
    Everett 1963, Operations Research 11(3): what minimizes the Lagrangian is on the front of loss and cost.
    """
    axes = np.array(options.axes)
    many = range(axes.max() + 1)
    sets = [chosen for size in range(1, len(many) + 1) for chosen in itertools.combinations(many, size)]
    states = list(itertools.product(sets, MULTIPLIERS))
    free_SP = np.array([np.isin(axes, chosen) for chosen, _ in states])
    multipliers_S = np.array([multiplier for _, multiplier in states])
    weights = np.full((len(costs), len(costs)), 0.1) + 0.9 * np.eye(len(costs))
    if len(costs) > 1:
        weights = np.concatenate([weights, np.ones((1, len(costs)))])

    def prices(outline: Outline, weight: np.ndarray) -> np.ndarray:
        parts = outline.parts()
        logs = (logarithms(cost.foreseen(parts) + constant) for cost, constant in costs)
        total: np.ndarray = sum(share * log for share, log in zip(weight, logs, strict=True)) / weight.sum()
        return total

    found = []
    for weight in weights:
        chosen_SP = np.zeros(free_SP.shape, dtype=int)
        for _ in range(SWEEPS):
            before = chosen_SP.copy()
            for column, losses in enumerate(options.losses):
                rows = np.flatnonzero(free_SP[:, column])
                trials = np.repeat(chosen_SP[rows], len(losses), axis=0)
                trials[:, column] = np.tile(np.arange(len(losses)), len(rows))
                price = prices(combined(options, trials), weight).reshape(len(rows), -1)
                chosen_SP[rows, column] = (losses + multipliers_S[rows, None] * price).argmin(1)
            if (before == chosen_SP).all():
                break
        found.append(chosen_SP)
    return np.unique(np.concatenate(found), axis=0)


def logarithms(costs: np.ndarray) -> np.ndarray:
    """Return the logarithms of costs, on which a front looks alike at both ends; of nothing, that of very little."""
    logs: np.ndarray = np.log(np.maximum(costs, NOTHING))
    return logs


def combined(options: Options, chosen_NP: np.ndarray) -> Outline:
    """Return the outline of plans that make these choices."""
    starts = 1 + np.cumsum([0, *(len(values) - 1 for values in options.values)])[:-1]
    return options.outline.mixed(np.where(chosen_NP > 0, starts + chosen_NP - 1, 0), options.owners)


def _outwards(found: dict[float, Plan], start: float) -> list[tuple[float, Plan]]:
    return sorted(found.items(), key=lambda item: abs(item[0] - start))


def _rungs(distribution: BaseDistribution) -> tuple[float, ...]:
    if isinstance(distribution, IntDistribution):
        return tuple(range(distribution.low, distribution.high + 1, distribution.step))
    assert isinstance(distribution, FloatDistribution)
    assert distribution.step
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    return tuple(round(distribution.low + index * distribution.step, 9) for index in range(count))
