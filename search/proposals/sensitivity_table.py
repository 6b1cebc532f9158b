"""The sensitivity table: the loss and the costs of each single change of the network."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from search.study.console import console, track
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
    from spaces.costs.effects import Effect

MIN_COST = 1e-9  # in the unit of any cost; smaller costs, such as zero, are replaced by it in logarithms
TIMED_ENTRIES = 20  # entries of the table after which the time for all of them is estimated


@dataclass(frozen=True)
class SensitivityTable:
    """Losses and architectures for every value of every parameter, changed alone.

    Attributes
    ----------
    axes
        For each parameter, the number of its axis.
    names, values
        The parameters, and for each the values that give different plans; the first value changes nothing.
    losses
        For each parameter, the loss that each value adds, nondecreasing, in the units of the proxy loss.
    architectures
        Rows: the unchanged network, then each value of each parameter alone.
    owners
        See `Architectures.mixed`.
    """

    axes: tuple[int, ...]
    names: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    losses: tuple[np.ndarray, ...]
    architectures: Architectures
    owners: Mapping[Effect, np.ndarray]

    def sums(self, chosen_NP: np.ndarray) -> np.ndarray:
        """Return the sum of the losses of the choices in each row, shape (N,)."""
        total: np.ndarray = np.sum([added[chosen_NP[:, at]] for at, added in enumerate(self.losses)], axis=0)
        return total

    def params(self, chosen: np.ndarray) -> dict[str, float]:
        """Return the parameters of a row of choices."""
        return {name: values[at] for name, values, at in zip(self.names, self.values, chosen, strict=True)}

    def combine(self, chosen_NP: np.ndarray) -> Architectures:
        """Return the architectures of plans that combine the choices in each row."""
        starts = 1 + np.cumsum([0, *(len(values) - 1 for values in self.values)])[:-1]
        return self.architectures.mixed(np.where(chosen_NP > 0, starts + chosen_NP - 1, 0), self.owners)


def measured_table(context: Context, study: Study, seconds: float) -> SensitivityTable | None:
    """Return the table of a study, with a progress bar; None if it would take more CPU time than `seconds`.

    The measured losses are stored in the study, for other workers and for a resumed run.
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
    """Measure the proxy loss of every single change; return None if this would take more CPU time than `seconds`.

    Parameters
    ----------
    context
        The study.
    progress
        Called with the share that is done.
    seconds
        CPU time that the table may take; the total is estimated from the first entries.
    known
        The losses, if they were measured before.
    """
    space, anatomy = context.spec.space, context.subject.anatomy
    unchanged_params = space.uniform(anatomy, (0.0,) * len(space.steps))
    trial = FixedTrial(unchanged_params)
    unchanged = space.suggest(trial, anatomy)
    plans: dict[str, dict[float, Plan]] = {}
    for name, distribution in trial.distributions.items():
        if name not in space.recovery.usual():
            changed = {
                value: space.suggest(FixedTrial(unchanged_params | {name: value}), anatomy)
                for value in _values(distribution)
            }
            plans[name] = _distinct(changed, unchanged_params[name], unchanged)
    losses = [np.array(added) for added in known] if known else _measure_losses(context, plans, progress, seconds)
    if losses is None:
        return None
    owners = [set(axis.uniform(anatomy, 0.0)) for axis in space.steps]
    rows = [unchanged, *itertools.chain(*(found.values() for found in plans.values()))]
    architectures = architectures_of(context.cost_model.frame, rows)
    return SensitivityTable(
        axes=tuple(next(n for n, owned in enumerate(owners) if name in owned) for name in plans),
        names=tuple(plans),
        values=tuple((unchanged_params[name], *found) for name, found in plans.items()),
        losses=tuple(losses),
        architectures=architectures,
        owners=architectures.owners([len(found) for found in plans.values()]),
    )


def _distinct(changed: Mapping[float, Plan], start: float, unchanged: Plan) -> dict[float, Plan]:
    """Return one value for each distinct plan, ordered by distance from `start`; rounding makes some plans equal."""
    by_distance = sorted(changed.items(), key=lambda item: abs(item[0] - start))
    distinct = {plan: value for value, plan in by_distance if plan != unchanged}
    return {value: plan for plan, value in distinct.items()}


def _measure_losses(
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
                console.print(
                    f"the sensitivity table is skipped: {count} entries would take some {spent * count / done:.0f} CPU "
                    f"seconds, and it may take {seconds:.0f}; allow more by a longer budget and DraftStart(seconds=...)"
                )
                return None
        losses.append(np.array(added))
    return losses


def safe_log(costs: np.ndarray) -> np.ndarray:
    """Return the logarithms of costs, with zero replaced by a tiny cost."""
    logs: np.ndarray = np.log(np.maximum(costs, MIN_COST))
    return logs


def _values(distribution: BaseDistribution) -> tuple[float, ...]:
    """Return all values of a distribution that has a step."""
    if isinstance(distribution, IntDistribution):
        return tuple(range(distribution.low, distribution.high + 1, distribution.step))
    assert isinstance(distribution, FloatDistribution)
    assert distribution.step
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    return tuple(round(distribution.low + index * distribution.step, 9) for index in range(count))
