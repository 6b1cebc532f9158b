"""What is proposed after several plans in a row exceeded a limit on a cost that is predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from optuna.trial import TrialState

from search.proposals.draft_records import Drafted, draft_of, tried
from search.proposals.limits import excess_over_limits, limits_before_training, sets_of_axes
from search.proposals.seeds import seeds_by_margin
from search.proposals.sensitivity_table import stored_table
from search.study.attributes import constraints_of
from search.study.console import console
from search.study.history import Finished, read
from search.study.queue import enqueue
from search.study.records import REASON
from spaces.plan import architectures_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study

    from search.evaluation.context import Context
    from spaces import Plan

REFUSALS = 3  # plans refused in a row, after which another one is enqueued (chosen)
MIXED = 200  # mixtures of uniform plans that are considered beside the draft (chosen)
STRENGTHS = 21  # uniform plans that they are mixed from (chosen)


def refused_in_a_row(study: Study, context: Context) -> int:
    """Return how many of the latest finished trials in a row exceeded a limit on a predicted cost."""
    limits = list(map(str, context.spec.limits))
    modelled = [str(x) for x in context.spec.limits if x.objective.name in context.cost_model.models]
    count = 0
    for trial in reversed(read(study, Finished).trials):
        excess = constraints_of(trial, limits)
        if REASON not in trial.user_attrs or all(excess.get(limit, 0.0) <= 0 for limit in modelled):
            break
        count += 1
    return count


def are_due(study: Study, context: Context) -> bool:
    """Whether the latest refusals are as many in a row as call for another plan."""
    count = refused_in_a_row(study, context)
    return bool(count) and not count % REFUSALS


def any_excess(context: Context) -> bool:
    """Whether there is a limit on a cost that is predicted."""
    return any(limit.objective.name in context.cost_model.formulas for limit in limits_before_training(context))


def excess_of(context: Context, plans: Sequence[Plan], margins: float) -> np.ndarray:
    """Return by how much the worst limit on a cost is exceeded, shape (plans,), zero or less where all are met.

    Parameters
    ----------
    context
        The study.
    plans
        The plans.
    margins
        By how many times the error of a cost's model its prediction is raised.
    """
    if not any_excess(context):
        return np.full(len(plans), -np.inf)
    architectures = architectures_of(context.cost_model.frame, plans)
    return excess_over_limits(context, context.cost_model.of(architectures), margins)


def turn_after_refusals(study: Study, context: Context) -> None:
    """After every third refusal in a row, enqueue a plan that the refitted models clearly allow; else do nothing.

    It is the plan of the draft with the smallest proxy loss of those that meet the limits by the margin of a model for
    every third refusal. The draft was searched with the models of that time, and what they took for cheap may be what
    they were wrong about; so if it has none, the table is searched again. Without a table, or if no plan of it is
    allowed, it is the mixture of uniform plans that compresses least, or the one that exceeds the limits least.
    """
    count = refused_in_a_row(study, context)
    if not are_due(study, context) or study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        return
    margins = count / REFUSALS
    draft = draft_of(study)
    plans = read(draft, Drafted) if draft is not None else Drafted()
    names, known = plans.names, tried(study, plans.names)
    fresh = [trial for trial, choices in zip(plans.trials, plans.choices, strict=True) if choices not in known]
    excess = excess_of(context, [context.plan(trial.params) for trial in fresh], margins) if fresh else np.zeros(0)
    allowed = np.flatnonzero(excess <= 0)
    if len(allowed):
        chosen = dict(fresh[min(allowed, key=lambda at: fresh[at].values[0])].params)
        source = "the plan of the draft with the smallest proxy loss of those that it allows"
    elif found := _best_of_table(study, context, margins):
        chosen, source = found, "the plan with the best sum of the sensitivity table of those that it allows"
    else:
        mixed = _mixtures(context, seed=count)
        mixtures = [params for params in mixed if tuple(map(params.get, names)) not in known] or mixed
        excess = excess_of(context, list(map(context.plan, mixtures)), margins)
        inside = np.flatnonzero(excess <= 0)
        chosen = mixtures[inside[excess[inside].argmax()] if len(inside) else excess.argmin()]
        source = "a mixture of uniform plans"
    enqueue(study, chosen)
    console.print(f"{count} plans in a row exceeded a limit: the models were fitted again, and next is {source}")


def _best_of_table(study: Study, context: Context, margins: float) -> dict[str, float] | None:
    """Return the parameters of the untried plan with the best sum of those that the models allow by these margins."""
    table = stored_table(study, context)
    if table is None:
        return None
    known = tried(study, table.names)
    chosen = seeds_by_margin(context, table, [], margins)
    for row in chosen[table.sums(chosen).argsort(kind="stable")] if len(chosen) else []:
        params = table.params(row)
        if tuple(params.values()) not in known:
            return params | context.spec.space.recovery.usual()
    return None


def _mixtures(context: Context, seed: int) -> list[dict[str, float]]:
    """Return mixtures of pairs of uniform plans, each axis with its own strength, and the strongest uniform plans."""
    space, anatomy = context.spec.space, context.subject.anatomy
    rng, axes = np.random.default_rng(seed), len(space.steps)
    found = []
    for number in range(MIXED):
        some = rng.random(axes) < 0.5 + number % 2  # half of the axes, then all of them
        strengths = rng.integers(STRENGTHS, size=(2, axes)) / (STRENGTHS - 1) * some
        pair = [space.uniform(anatomy, tuple(map(float, each))) for each in strengths]
        found.append({name: pair[rng.integers(2)][name] for name in pair[0]})
    return [*found, *(space.uniform(anatomy, strengths) for strengths in sets_of_axes(axes))]
