"""The sensitivity table: what each single change of the network loses, and what it costs."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from search.study.console import track
from search.study.cpu_profile import TABLE
from search.study.records import SENSITIVITIES
from spaces.plan import architectures_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from optuna import Study
    from optuna.distributions import BaseDistribution

    from search.evaluation.context import Context
    from spaces import Plan
    from spaces.costs.architectures import Architectures

NOTHING = 1e-9  # of any cost, whose logarithm stands for that of zero
TIMED_ENTRIES = 20  # of the table, from which the time of all is estimated


@dataclass(frozen=True)
class SensitivityTable:
    """Every value of every parameter, changed alone.

    Attributes
    ----------
    axes
        For each parameter the number of the axis it belongs to.
    names, values
        The parameters, and for each the values that give different plans, the one that changes nothing first.
    losses
        For each parameter the loss that each value adds, never falling, in the units of the proxy loss.
    architectures
        Rows: nothing changed, then each value of each parameter alone.
    owners
        See `Architectures.mixed`.
    """

    axes: tuple[int, ...]
    names: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    losses: tuple[np.ndarray, ...]
    architectures: Architectures
    owners: tuple[np.ndarray, ...]

    def sums(self, chosen_NP: np.ndarray) -> np.ndarray:
        """Return the sum of the losses of the choices in each row, shape (N,)."""
        total: np.ndarray = np.sum([added[chosen_NP[:, at]] for at, added in enumerate(self.losses)], axis=0)
        return total

    def params(self, chosen: np.ndarray) -> dict[str, float]:
        """Return the parameters of a row of choices."""
        return {name: values[at] for name, values, at in zip(self.names, self.values, chosen, strict=True)}

    def combine(self, chosen_NP: np.ndarray) -> Architectures:
        """Return the architectures of plans that make the choices in each row together."""
        starts = 1 + np.cumsum([0, *(len(values) - 1 for values in self.values)])[:-1]
        return self.architectures.mixed(np.where(chosen_NP > 0, starts + chosen_NP - 1, 0), self.owners)


def measured_table(context: Context, study: Study, seconds: float) -> SensitivityTable | None:
    """Return the table of a study, in sight of the user; None where it would take more CPU time than `seconds`.

    What was measured lies in the study, for other workers and for when it goes on.
    """
    known = study.user_attrs.get(SENSITIVITIES)
    with track("measuring the sensitivity table") as progress, context.cpu_profile.charge(TABLE):
        table = sensitivity_table(context, progress, seconds, known)
    if table is not None and known is None:
        study.set_user_attr(SENSITIVITIES, [added.tolist() for added in table.losses])
    return table


def sensitivity_table(
    context: Context, progress: Callable[[float], None], seconds: float, known: Sequence[Sequence[float]] | None = None
) -> SensitivityTable | None:
    """Measure the proxy loss of every change alone.

    None where that would take more CPU time than `seconds`.

    Parameters
    ----------
    context
        The study.
    progress
        Called with the share that is done.
    seconds
        CPU time that it may take, estimated from the first entries on.
    known
        The losses, where they were measured before.
    """
    space, anatomy = context.spec.space, context.subject.anatomy
    untouched = space.uniform(anatomy, (0.0,) * len(space.steps))
    trial = FixedTrial(untouched)
    unchanged = space.suggest(trial, anatomy)
    plans: dict[str, dict[float, Plan]] = {}
    for name, distribution in trial.distributions.items():
        if name not in space.recovery.usual():
            changed = {
                value: space.suggest(FixedTrial(untouched | {name: value}), anatomy) for value in _values(distribution)
            }
            plans[name] = _distinct(changed, untouched[name], unchanged)
    losses = [np.array(added) for added in known] if known else _losses(context, plans, progress, seconds)
    if losses is None:
        return None
    owners = [set(axis.uniform(anatomy, 0.0)) for axis in space.steps]
    rows = [unchanged, *itertools.chain(*(found.values() for found in plans.values()))]
    architectures = architectures_of(context.cost_model.frame, rows)
    return SensitivityTable(
        axes=tuple(next(n for n, owned in enumerate(owners) if name in owned) for name in plans),
        names=tuple(plans),
        values=tuple((untouched[name], *found) for name, found in plans.items()),
        losses=tuple(losses),
        architectures=architectures,
        owners=architectures.owners([len(found) for found in plans.values()]),
    )


def _distinct(changed: Mapping[float, Plan], start: float, unchanged: Plan) -> dict[float, Plan]:
    """Return the plans that differ, outwards from the value that changes nothing: what rounding makes equal is one."""
    outwards = sorted(changed.items(), key=lambda item: abs(item[0] - start))
    distinct = {plan: value for value, plan in outwards if plan != unchanged}
    return {value: plan for plan, value in distinct.items()}


def _losses(
    context: Context, plans: dict[str, dict[float, Plan]], progress: Callable[[float], None], seconds: float
) -> list[np.ndarray] | None:
    proxy_loss, started = context.proxy_loss, time.process_time()
    count, done = sum(map(len, plans.values())), 0
    losses = []
    for found in plans.values():
        added = [0.0]
        for plan in found.values():
            added.append(max(added[-1], proxy_loss(context.subject.build_roughly(plan))))
            done += 1
            progress(done / count)
            spent = time.process_time() - started
            if done >= TIMED_ENTRIES and spent > seconds * done / count:
                return None
        losses.append(np.array(added))
    return losses


def logarithms(costs: np.ndarray) -> np.ndarray:
    """Return the logarithms of costs, on which a front looks alike at both ends; of nothing, that of very little."""
    logs: np.ndarray = np.log(np.maximum(costs, NOTHING))
    return logs


def _values(distribution: BaseDistribution) -> tuple[float, ...]:
    if isinstance(distribution, IntDistribution):
        return tuple(range(distribution.low, distribution.high + 1, distribution.step))
    assert isinstance(distribution, FloatDistribution)
    assert distribution.step
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    return tuple(round(distribution.low + index * distribution.step, 9) for index in range(count))
