"""The sensitivity table: the loss and the costs of each single change of the network."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from search.proposals.table_losses import Allowance, Change, measured_losses
from search.study.cpu_profile import TABLE
from search.study.records import SENSITIVITIES
from spaces.plan import architectures_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna import Study
    from optuna.distributions import BaseDistribution

    from search.evaluation.context import Context
    from search.study.budget_clock import BudgetClock
    from spaces import Plan
    from spaces.costs.architectures import Architectures
    from spaces.costs.effects import Effect

MIN_COST = np.finfo(float).tiny  # replaces a cost of zero in logarithms


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


def measured_table(context: Context, study: Study, clock: BudgetClock) -> SensitivityTable:
    """Return the table of a study, with a progress bar; measuring it takes at most a tenth of the budget.

    The losses are stored in the study, for other workers and for a resumed run.
    """
    changes = single_changes(context)
    known = study.user_attrs.get(SENSITIVITIES)
    if known is None:
        with context.cpu_profile.charge(TABLE):
            measured = measured_losses(context, changes, Allowance.of(context, clock))
        with context.workers.turn("the table"):  # the first to end decides, so that all workers have the same table
            known = study.user_attrs.get(SENSITIVITIES) or [added.tolist() for added in measured]
            study.set_user_attr(SENSITIVITIES, known)
    return sensitivity_table(context, changes, [np.array(added) for added in known])


def stored_table(study: Study, context: Context) -> SensitivityTable | None:
    """Return the table of a study that has measured one, else None."""
    known = study.user_attrs.get(SENSITIVITIES)
    if known is None:
        return None
    return sensitivity_table(context, single_changes(context), [np.array(added) for added in known])


def single_changes(context: Context) -> list[Change]:
    """Return, for each parameter except those of the recovery, the plans in which it alone is changed."""
    space, anatomy = context.spec.space, context.subject.anatomy
    unchanged_params = space.uniform(anatomy, (0.0,) * len(space.steps))
    trial = FixedTrial(unchanged_params)
    unchanged = space.suggest(trial, anatomy)
    owners = [set(axis.uniform(anatomy, 0.0)) for axis in space.steps]
    changes = []
    for name, distribution in trial.distributions.items():
        if name not in space.recovery.usual():
            changed = {
                value: space.suggest(FixedTrial(unchanged_params | {name: value}), anatomy)
                for value in _values(distribution)
            }
            axis = next(number for number, owned in enumerate(owners) if name in owned)
            distinct = _distinct(changed, unchanged_params[name], unchanged)
            changes.append(Change(name, axis, (unchanged_params[name], *distinct), (unchanged, *distinct.values())))
    return changes


def sensitivity_table(context: Context, changes: Sequence[Change], losses: Sequence[np.ndarray]) -> SensitivityTable:
    """Return the table of these changes and the losses that each of them adds."""
    unchanged = changes[0].plans[:1]
    rows = [*unchanged, *itertools.chain(*(change.plans[1:] for change in changes))]
    architectures = architectures_of(context.cost_model.frame, rows)
    return SensitivityTable(
        axes=tuple(change.axis for change in changes),
        names=tuple(change.name for change in changes),
        values=tuple(change.values for change in changes),
        losses=tuple(losses),
        architectures=architectures,
        owners=architectures.owners([len(change.plans) - 1 for change in changes]),
    )


def _distinct(changed: Mapping[float, Plan], start: float, unchanged: Plan) -> dict[float, Plan]:
    """Return one value for each distinct plan, ordered by distance from `start`; rounding makes some plans equal."""
    by_distance = sorted(changed.items(), key=lambda item: abs(item[0] - start))
    distinct = {plan: value for value, plan in by_distance if plan != unchanged}
    return {value: plan for plan, value in distinct.items()}


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
