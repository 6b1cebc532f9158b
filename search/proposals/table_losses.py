"""Measure the losses of single changes in a given time: on fewer inputs, and at fewer values, where there are many."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from search.evaluation.proxy_loss import PROXY_INPUTS
from search.study.console import console, track
from search.study.errors import raise_machine_fault
from search.study.failed_plans import FailedPlans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from search.evaluation.context import Context
    from search.study.budget_clock import BudgetClock
    from spaces import Plan

TABLE_SHARE = 0.1  # share of the budget: the most that measuring the table may take (from the requirements)
FITTED_SHARE = 0.5  # inputs that a plan is fitted on, as a share of those that it is scored on (chosen)
LEAST_INPUTS, LEAST_COUNTED_INPUTS = 16, 64  # inputs of a proxy loss, at least: in a budget of time, of trials (chosen)
PART = 8  # entries that a worker measures before others see their losses (chosen)
WANTED_VALUES = 3  # values of a parameter that are measured before more inputs are used (chosen)
BACKWARD_PASSES = 2  # a training step takes as long as this many forward passes more than a forward pass
TIMED_PLANS = 3  # plans whose time is measured, to choose the number of inputs (chosen)
SMOOTH_EXPONENT = 2.0  # of the loss in the number of the value, if no parameter of the axis shows it: second order
EXPONENTS = 0.5, 8.0  # bounds on the exponent that the parameters of an axis show (chosen)
LARGEST_LOSS = 1e9  # in place of a loss that is not finite


class Change(NamedTuple):
    """One parameter, and the plans in which it alone is changed.

    Attributes
    ----------
    name, axis
        The parameter and the number of its axis.
    values, plans
        The values that give different plans, and these plans; the first of both changes nothing.
    """

    name: str
    axis: int
    values: tuple[float, ...]
    plans: tuple[Plan, ...]


@dataclass(frozen=True, slots=True)
class Allowance:
    """What an activity may take: until a share of the budget's time is spent, or a number of forward passes.

    Attributes
    ----------
    clock, until
        The clock, and the share of its time at which the activity ends; 1 or more in a budget without a time.
    passes
        Forward passes of one example; infinity in a budget with a time. They are counted, not timed, so that a budget
        of trials gives the same plans on every machine. Where trainings are very short, a plan is still scored on 64
        inputs, and three values of each parameter are measured.
    """

    clock: BudgetClock
    until: float
    passes: float

    @staticmethod
    def of(context: Context, clock: BudgetClock, share: float = TABLE_SHARE) -> Allowance:
        """Return this share of a budget; one of trials is the work of their trainings, or of an epoch each."""
        recipe, train = context.spec.recipe, context.spec.splits.train
        steps = recipe.steps(train) or train.steps(recipe.batch_size)
        training = (1 + BACKWARD_PASSES) * steps * recipe.batch(train)
        passes = math.inf if clock.timed else share * training * (clock.budget.trials or 1)
        return Allowance(clock, clock.spent + share, passes)

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return self.clock.timed and self.clock.spent >= self.until

    @property
    def seconds(self) -> float:
        """Seconds that are left; infinity in a budget without a time."""
        return max(0.0, self.until - self.clock.spent) * self.clock.total if self.clock.timed else math.inf

    def inputs(self, context: Context, plans: Sequence[Plan], wanted: int) -> int:
        """Return how many inputs each of `wanted` plans may be scored on.

        Parameters
        ----------
        context
            The study.
        plans
            Some of the plans, whose time is measured if the budget has a time.
        wanted
            Number of plans to be scored within the allowance.
        """
        inputs, most = PROXY_INPUTS, len(context.spec.splits.train)
        if not self.clock.timed:
            while inputs > LEAST_COUNTED_INPUTS and wanted * passes_of(inputs) > self.passes:
                inputs //= 2
            return min(inputs, most)
        given = self.seconds * self.clock.workers
        on_fewest = _seconds_on_fewest(context, plans, given / max(wanted, 1))
        forward = _forward_seconds(context) if wanted * on_fewest < given else math.inf
        while inputs > LEAST_INPUTS and wanted * (on_fewest + (inputs - LEAST_INPUTS) * forward) > given:
            inputs //= 2
        return min(inputs, most)


def passes_of(inputs: int) -> float:
    """Return the forward passes of one example that fitting and scoring a plan takes."""
    return inputs * (1 + FITTED_SHARE)


def proxy_loss_of(context: Context, plan: Plan, inputs: int) -> float:
    """Return the proxy loss of a plan on this number of inputs; it is fitted on half of them."""
    loss = context.proxy_loss(context.subject.build_roughly(plan, round(FITTED_SHARE * inputs)), inputs)
    return loss if math.isfinite(loss) else LARGEST_LOSS


def _seconds_on_fewest(context: Context, plans: Sequence[Plan], most: float) -> float:
    """Return the CPU seconds of scoring a plan on the fewest inputs; stop at a plan that takes more than `most`."""
    times: list[float] = []
    for turn, plan in enumerate([*plans[:1], *plans]):
        started = time.process_time()
        try:
            proxy_loss_of(context, plan, LEAST_INPUTS)
        except Exception as error:  # noqa: BLE001 - it is reported where the plan is scored
            raise_machine_fault(error)
        if turn:  # the first one also computes the teacher's statistics
            times.append(time.process_time() - started)
            if times[-1] > most:
                return times[-1]
    return statistics.fmean(times)


def _forward_seconds(context: Context) -> float:
    """Return the CPU seconds that each further input of a plan takes."""
    model, count = context.subject.model, 2 * LEAST_INPUTS
    context.proxy_loss(model, count)  # also computes the teacher's answers, once
    started = time.process_time()
    for _ in range(TIMED_PLANS):
        context.proxy_loss(model, count)
    passes = 1 + 2 * FITTED_SHARE  # a joint plan is fitted in two passes
    return (time.process_time() - started) / (TIMED_PLANS * count) * passes


def measured_losses(context: Context, changes: Sequence[Change], allowance: Allowance) -> list[np.ndarray]:
    """Return the loss that each value of each parameter adds, nondecreasing and 0 for the first value.

    A value whose plan fails adds the largest loss, and so do stronger values that are not measured.

    The strongest value of every parameter is measured first, then values between those that are known, as long as the
    allowance lasts; the others are interpolated, also between parameters of an axis if there is no time for each.

    Parameters
    ----------
    context
        The study.
    changes
        The parameters and their plans.
    allowance
        What measuring may take.
    """
    total = sum(len(change.plans) - 1 for change in changes)
    rounds = list(itertools.zip_longest(*(_bisection(len(change.plans) - 1) for change in changes)))
    spread = [0, *_bisection(len(changes) - 1)] if len(changes) > 1 else [0]
    queue = [(at, each[at]) for each in rounds for at in spread if each[at] is not None]
    wanted = sum(min(WANTED_VALUES, len(change.plans) - 1) for change in changes)
    sample = [changes[round(at)].plans[-1] for at in np.linspace(0, len(changes) - 1, TIMED_PLANS)]
    task = "inputs of the table"
    count = context.workers.share([task], lambda _: allowance.inputs(context, sample, wanted))[task]
    most = int(min(total, max(wanted, allowance.passes / passes_of(count))))
    losses_of = _measured_together(context, changes, queue[:most], allowance, count)
    known: list[dict[int, float]] = [{} for _ in changes]
    refused: list[dict[int, str]] = [{} for _ in changes]
    for (at, choice), loss in losses_of.items():
        if isinstance(loss, str):
            refused[at][choice] = loss
        else:
            known[at][choice] = loss
    failed = FailedPlans("the sensitivity table")
    failed.reasons = Counter(reason for reasons in refused for reason in reasons.values())
    measured = sum(map(len, known))
    failed.ensure_some_work(measured)
    if failed.reasons:
        console.print(failed.words())
    if not measured and total:
        console.print("the sensitivity table: no time is left to measure it, so all changes count alike")
    elif measured + failed.reasons.total() < total or count < min(PROXY_INPUTS, len(context.spec.splits.train)):
        entries = f"{measured} of {total} entries, the others are interpolated," if measured < total else "all entries"
        console.print(
            f"the sensitivity table: measured {entries} on {count} inputs each, since more would take over "
            f"{TABLE_SHARE:.0%} of the budget"
        )
    losses = interpolated(known, [change.axis for change in changes], [len(change.plans) for change in changes])
    for added, found, choices in zip(losses, known, refused, strict=True):
        unknown = [choice for choice in range(min(choices, default=len(added)), len(added)) if choice not in found]
        added[unknown] = LARGEST_LOSS  # also of stronger values that were not measured
    return losses


def _measured_together(
    context: Context, changes: Sequence[Change], queue: list[tuple[int, int]], allowance: Allowance, count: int
) -> dict[tuple[int, int], float | str]:
    """Measure entries of the table on `count` inputs, each by one of the workers, as long as the allowance lasts.

    Return their losses, or why their plans failed, by the numbers of the parameter and of the value.
    """
    given, failed = allowance.seconds, FailedPlans("the sensitivity table")
    parts = {f"part {start // PART} of the table": queue[start : start + PART] for start in range(0, len(queue), PART)}

    def losses_of(part: int) -> list[float | str] | None:
        found: list[float | str] = []
        for at, choice in queue[part * PART : (part + 1) * PART]:
            if allowance.over:
                break
            plan = changes[at].plans[choice]
            try:
                found.append(proxy_loss_of(context, plan, count))
            except Exception as error:  # noqa: BLE001 - a plan may fail in any way
                found.append(failed.note(plan.words(), error))
            spent = 1 - allowance.seconds / given if given and math.isfinite(given) else 0.0
            progress(max((part * PART + len(found)) / len(queue), spent))
        return found or None

    total = sum(len(change.plans) - 1 for change in changes)
    with track(f"measuring {total} entries of the sensitivity table") as progress:
        results = context.workers.share(list(parts), losses_of)
    return {
        entry: loss
        for name, entries in parts.items()
        for entry, loss in zip(entries, results.get(name, ()), strict=False)
    }


def _bisection(count: int) -> list[int]:
    """Return the numbers from 1 to `count`: the last one, then always the middle of a widest gap, from 0 on."""
    return [count, *middles(0, count)] if count else []


def middles(low: int, high: int, first: int | None = None) -> list[int]:
    """Return the numbers between two numbers, the first one first, then always the middle of a widest gap."""
    order: list[int] = [] if first is None else [first]
    known = sorted([low, *order, high])
    while len(order) < high - low - 1:
        below, above = max(itertools.pairwise(known), key=lambda gap: gap[1] - gap[0])
        order.append((below + above + 1) // 2)
        known = sorted([*known, order[-1]])
    return order


def interpolated(known: Sequence[dict[int, float]], axes: Sequence[int], counts: Sequence[int]) -> list[np.ndarray]:
    """Return the losses of all values of each parameter, from those of some values.

    Between two values the logarithm of the loss is linear in the logarithm of the value's number. Below the first
    one the loss is a power of that number; the exponent is the median of those that the axis shows between the first
    two values. The strongest value of a parameter of which nothing is known is interpolated between its neighbours.

    Parameters
    ----------
    known
        For each parameter, losses by the number of the value, from 1.
    axes, counts
        For each parameter, the number of its axis, and the number of its values, including the unchanged one.
    """
    exponents = {}
    for axis in set(axes):
        own = [sorted(found.items()) for found, other in zip(known, axes, strict=True) if other == axis]
        slopes = [_slope(*found[:2]) for found in own if len(found) > 1 and 0 < found[0][1] < found[1][1]]
        exponents[axis] = min(max(statistics.median(slopes), EXPONENTS[0]), EXPONENTS[1]) if slopes else SMOOTH_EXPONENT
    losses = []
    for at, (found, axis, count) in enumerate(zip(known, axes, counts, strict=True)):
        if count == 1:
            losses.append(np.zeros(1))
            continue
        points = found or {count - 1: _neighbouring(known, axes, at)}
        numbers = np.array(sorted(points))
        values = np.maximum.accumulate([max(0.0, points[number]) for number in numbers])
        wanted = np.arange(1, count)
        smallest = values[values > 0].min(initial=math.inf)
        if math.isinf(smallest):
            losses.append(np.zeros(count))
            continue
        logs = np.interp(np.log(wanted), np.log(numbers), np.log(np.maximum(values, smallest * 1e-3)))
        below = exponents[axis] * np.minimum(0.0, np.log(wanted / numbers[0]))
        filled = np.exp(logs + below)
        filled[numbers - 1] = values  # exact where it was measured, also where it is 0
        losses.append(np.maximum.accumulate([0.0, *filled]))
    return losses


def _neighbouring(known: Sequence[dict[int, float]], axes: Sequence[int], at: int) -> float:
    """Return the loss of the strongest value of a parameter, interpolated between the nearest ones of its axis."""
    measured = [other for other, found in enumerate(known) if found]
    own = [other for other in measured if axes[other] == axes[at]] or measured
    return float(np.interp(at, own, [known[other][max(known[other])] for other in own])) if own else 1.0


def _slope(low: tuple[int, float], high: tuple[int, float]) -> float:
    """Return the exponent of the power law through two points."""
    return math.log(high[1] / low[1]) / math.log(high[0] / low[0])
