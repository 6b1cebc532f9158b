"""Where a study starts: plans that compress every layer alike, or those that a table of single changes makes best."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from search.errors import UserError
from search.learned import learn, look_ahead
from search.options import combined, logarithms, options, virtual
from search.progress import track
from search.shares import TABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Study

    from objectives import Limit
    from search.bench import Bench
    from search.clock import Clock
    from search.options import Options

TIE = 0.01  # nats that a factor of e in any cost may lose: of plans about as good, the smaller
HALVINGS = 5  # of the strength, to find the weakest plan that holds the limits
LOSSES = "losses of changes alone"  # attribute of a study
BEYOND = (0.0, 0.25, 0.5)  # anchors lie at the weakest plan within the limits and this far on the way to the strongest


def anchors(bench: Bench) -> list[dict[str, float]]:
    """Return the parameters of the uniform plans to start with, scaled until they hold the limits.

    Each axis alone, and all together, from the weakest plan that holds the limits on.

    Raises
    ------
    UserError
        If no plan holds them: the limit that binds, the smallest value and the nearest plan are named.
    """
    return uniform(bench, check_reachable(bench))


def uniform(bench: Bench, reachable: dict[tuple[float, ...], dict[str, float]]) -> list[dict[str, float]]:
    """Return the same, of the sets of axes that can hold the limits."""
    axes = len(bench.spec.space.steps)
    params = []
    for mask in sorted(_masks(axes), key=lambda mask: -sum(mask)):
        if sum(mask) not in {1, axes} or not holds(bench, reachable.get(mask, {})):
            continue
        weakest = _weakest(bench, mask)
        for way in BEYOND if sum(mask) == axes else BEYOND[1:2]:
            strength = weakest + way * (1 - weakest)
            params.append(bench.spec.space.uniform(bench.anatomy, tuple(strength * chosen for chosen in mask)))
    return params


@dataclass(frozen=True, slots=True)
class UniformStart:
    """Start with the plans that compress every layer alike, each axis alone and all together."""

    def __call__(self, bench: Bench, study: Study, clock: Clock) -> list[dict[str, float]]:  # noqa: ARG002
        """Return the parameters of each plan."""
        return anchors(bench)


@dataclass(frozen=True, slots=True)
class TableStart:
    """Start with the plans that are best in the sum of what each single change was measured to lose.

    Where no cost can be foreseen, or the table would take too long, with those of `UniformStart`.

    Parameters
    ----------
    plans
        How many, spread over the costs.
    seconds
        CPU time that the table may take; what is to be learned before and after it as much again, each.
    """

    plans: int = 10
    seconds: float = 120.0

    def __call__(self, bench: Bench, study: Study, clock: Clock) -> list[dict[str, float]]:  # noqa: ARG002
        """Return the parameters of each plan, the largest network first."""
        reachable = check_reachable(bench)
        learn(bench, self.seconds)
        known = bench.foresight.foreseeable
        wanted = [objective.name for objective in bench.spec.objectives if objective.name in known]
        table = table_of(bench, study, self.seconds) if wanted else None
        if table is None:
            return uniform(bench, reachable)
        look_ahead(study, bench, lambda count: best_sums(bench, table, wanted, count), self.seconds)
        return best_sums(bench, table, wanted, self.plans) or uniform(bench, reachable)


def table_of(bench: Bench, study: Study, seconds: float) -> Options | None:
    """Measure every change alone, in sight of the user; None where that would take more CPU time than `seconds`.

    What was measured lies in the study, for other workers and for when it goes on.
    """
    known = study.user_attrs.get(LOSSES)
    with track("measuring every change alone") as told, bench.shares.spending(TABLE):
        found = options(bench, told, seconds, known)
    if found is not None and known is None:
        study.set_user_attr(LOSSES, [added.tolist() for added in found.losses])
    return found


def representatives(
    bench: Bench,
    table: Options,
    chosen: np.ndarray,
    logs_NC: np.ndarray,
    losses: np.ndarray,
    held: np.ndarray,
    count: int,
) -> list[dict[str, float]]:
    """Return the parameters of the plans of least loss in bands of each cost, the largest network first.

    Parameters
    ----------
    bench, table
        The study and its single changes.
    chosen
        Choices from the table, a row a plan.
    logs_NC, losses, held
        Logarithm of each cost, the loss, and whether it may be taken, of each plan.
    count
        How many plans, about.
    """
    bands = -(-count // logs_NC.shape[1])
    picked = dict.fromkeys(row for logs in logs_NC.T for row in spread(logs, losses, held, bands))
    usual = bench.spec.space.recovery.usual()
    return [table.params(chosen[row]) | usual for row in sorted(picked, key=lambda row: -logs_NC[row, 0])]


def best_sums(bench: Bench, table: Options, wanted: list[str], count: int) -> list[dict[str, float]]:
    """Return the parameters of about as many plans as named, best in the sum of the table and spread over the costs.

    The list is empty where no plan of the table holds the limits.
    """
    chosen = within_limits(bench, table, wanted)
    if not len(chosen):
        return []
    foreseen = bench.foresight.of(combined(table, chosen))
    logs = logarithms(np.column_stack([foreseen[name] for name in wanted]))
    losses = table.sums(chosen) + TIE * logs.sum(1)
    return representatives(bench, table, chosen, logs, losses, np.ones(len(chosen), dtype=bool), count)


def within_limits(bench: Bench, table: Options, wanted: list[str]) -> np.ndarray:
    """Return choices from the table that are best in the sum of their losses and hold the limits.

    What is cheap in one cost need not be in another: where most of the plans that are cheap in what is wanted are over
    a limit, plans are sought that are also cheap in what is limited.
    """
    known = bench.foresight.foreseeable
    limited = [limit.objective.name for limit in limits_known_before(bench) if limit.at_most is not None]
    both = tuple(name for name in dict.fromkeys([*wanted, *limited]) if name in known)
    found = np.zeros((0, len(table.names)), dtype=int)
    for names in dict.fromkeys((tuple(wanted), both)):  # once, where all that is limited is wanted
        chosen = virtual(table, [known[name] for name in names])
        held = chosen[within(bench, bench.foresight.of(combined(table, chosen)))]
        found = np.unique(np.concatenate([found, held]), axis=0)
        if 2 * len(held) >= len(chosen):
            break
    return found


def within(bench: Bench, foreseen: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return which plans hold the limits that are foreseen, shape (plans,); with what is told about, to be sure."""
    held = np.ones(len(next(iter(foreseen.values()))), dtype=bool)
    for limit in limits_known_before(bench):
        name = limit.objective.name
        if name in foreseen:
            sure = foreseen[name] * (1 + bench.foresight.doubt(limit))
            held &= np.array([limit.excess(float(value)) <= 0 for value in sure], dtype=bool)
    return held


def spread(place: np.ndarray, losses: np.ndarray, held: np.ndarray, count: int) -> list[int]:
    """Return the rows of least loss in `count` bands of equal width, of those that hold."""
    rows = np.flatnonzero(held)
    if not len(rows):
        return []
    bands = np.linspace(place[rows].min(), place[rows].max(), count + 1)[1:-1]
    band = np.digitize(place[rows], bands)
    return [int(min(rows[band == number], key=lambda row: losses[row])) for number in np.unique(band)]


def costs(bench: Bench, strengths: tuple[float, ...]) -> dict[str, float]:
    """Foresee what is limited of the uniform plan with these strengths, or measure it, untrained."""
    plan = bench.plan(bench.spec.space.uniform(bench.anatomy, strengths))
    foreseen = bench.foresight.told(plan)
    limited = {limit.objective.name: limit.objective for limit in limits_known_before(bench)}
    unknown = [objective for name, objective in limited.items() if name not in foreseen]
    return foreseen | (bench.measured(bench.build(plan), unknown) if unknown else {})


def holds(bench: Bench, values: dict[str, float]) -> bool:
    """Whether every limit that is known before training holds."""
    return all(limit.excess(values[limit.objective.name]) <= 0 for limit in limits_known_before(bench))


def limits_known_before(bench: Bench) -> list[Limit]:
    """Return the limits of the study that are known before training."""
    return [limit for limit in bench.spec.limits if limit.objective.is_cost]


def _weakest(bench: Bench, mask: tuple[float, ...]) -> float:
    if not limits_known_before(bench) or holds(bench, costs(bench, (0.0,) * len(mask))):
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if holds(bench, costs(bench, tuple(middle * chosen for chosen in mask))):
            high = middle
        else:
            low = middle
    return high


def _masks(axes: int) -> list[tuple[float, ...]]:
    return [tuple(float(chosen) for chosen in mask) for mask in itertools.product((0, 1), repeat=axes) if any(mask)]


def check_reachable(bench: Bench) -> dict[tuple[float, ...], dict[str, float]]:
    """Return what the strongest plan of each set of axes costs; nothing without limits.

    Raises
    ------
    UserError
        If none holds the limits.
    """
    limits = limits_known_before(bench)
    reachable = {mask: costs(bench, mask) for mask in _masks(len(bench.spec.space.steps))} if limits else {}
    if not limits or any(holds(bench, values) for values in reachable.values()):
        return reachable
    nearest, values = min(reachable.items(), key=lambda item: max(x.excess(item[1][x.objective.name]) for x in limits))
    binding = max(limits, key=lambda limit: limit.excess(values[limit.objective.name]))
    plan = bench.plan(bench.spec.space.uniform(bench.anatomy, nearest))
    reached = values[binding.objective.name]
    raise UserError(
        f"the limit {binding} cannot be met: the smallest plan reaches {binding.objective.name} {reached:.10g}; "
        f"the nearest plan is: {plan.words()}; loosen the limit to {reached:.10g} or let the axes go further"
    )
