"""The learning rate: a short range test on one network, and a rule that scales it to other networks and lengths."""

from __future__ import annotations

import copy
import math
import statistics
from typing import TYPE_CHECKING, NamedTuple

import torch

from search.study.errors import UserError
from search.training.fine_tuning import training_steps, warmed

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from objectives import Data
    from search.study.spec import Recipe
    from search.training.fine_tuning import TeacherOutputs
    from spaces import Recovery

FIRST_RATE, MIN_RATE, MAX_RATE = 4e-3, 1e-6, 10.0  # learning rates: the first that is tried, and the bounds (chosen)
RATE_FACTOR = 2.0  # ratio of one tried learning rate to the next (chosen)
TEST_STEPS, LEAST_TEST_STEPS = 25, 8  # steps of each training of a range test, and if the time is short (chosen)
QUICK_TEST_STEPS = 7  # about the steps of a quick test: one, and one for each rate that it tries (chosen)
QUICK_FIRST_RATE = 5e-4  # the first rate of a quick test (chosen)
QUICK_LENGTH = 25  # steps of a training that the rate of a quick test suits (fitted: studies/LOG.md)
SCORED_STEPS_SHARE = 0.25  # last share of these steps, whose mean loss is compared (chosen)
LOSS_EXPONENT = 0.65  # the best learning rate grows with this power of the loss (fitted: studies/LOG.md)
STEPS_EXPONENT = 0.5  # the best learning rate grows with this power of the steps (fitted: studies/LOG.md)
MAX_TRAINABLE_LOSS = 0.45  # proxy loss up to which networks are known to be trainable (fitted: studies/LOG.md)
MIN_FITTED_LOSS = 0.004  # the smallest proxy loss in the fit of the exponents (fitted)
MAX_FITTED_STEPS = 200  # steps; the longest training in the fit of the exponents (fitted)


class Rate(NamedTuple):
    """A good learning rate for one network and one length of training.

    Attributes
    ----------
    rate
        The highest learning rate of the training.
    loss
        Proxy loss of the network before training.
    steps
        Steps of the training.
    """

    rate: float
    loss: float
    steps: int

    def at(self, loss: float, steps: int) -> float:
        """Return the rate for another network of the study or another length of training, to two digits.

        A network with a larger loss needs and tolerates a larger rate, and so does a longer training.
        """
        loss_ratio = max(loss, MIN_FITTED_LOSS) / max(self.loss, MIN_FITTED_LOSS)
        steps_ratio = min(steps, MAX_FITTED_STEPS) / min(self.steps, MAX_FITTED_STEPS)
        return float(f"{self.rate * loss_ratio**LOSS_EXPONENT * steps_ratio**STEPS_EXPONENT:.2g}")


# for AdamW, if there is no time for a range test; measured on three networks (fitted: studies/LOG.md)
DEFAULT_RATE = Rate(0.008, 0.4, 50)


def range_test(
    student: nn.Module,
    teacher: TeacherOutputs,
    examples: Data,
    recovery: Recovery,
    recipe: Recipe,
    seed: int,
    steps: int = TEST_STEPS,
    first: float = FIRST_RATE,
    judge: Callable[[nn.Module], float] | None = None,
) -> float:
    """Return the learning rate with the smallest final loss of a short training.

    Each training has as many steps on the same batches and a complete schedule. The rate is doubled, or halved, as
    long as the mean loss of the last steps falls; the result is the minimum of the parabola through the best three
    rates.

    Parameters
    ----------
    student
        The network; it is not changed.
    teacher, examples, recovery, recipe, seed
        As in `fine_tune`; the recipe's learning rate and epochs are ignored.
    steps
        Steps of each training.
    first
        The rate that is tried first; the nearer it is to the best one, the fewer are tried.
    judge
        Returns the loss of a trained network; by default it is the mean loss of the last steps, which a large network
        with small batches lowers also where it gets worse, since its norms then take the statistics of each batch.

    Raises
    ------
    UserError
        If no loss is finite.
    """

    def final_loss(rate: float) -> float:
        rates = [rate * warmed(step, steps) for step in range(steps)]
        model = copy.deepcopy(student)
        losses = [loss for _, loss in training_steps(model, teacher, examples, recovery, recipe, seed, rates)]
        last = losses[-round(SCORED_STEPS_SHARE * steps) :]
        loss = statistics.fmean(map(float, last)) if judge is None else judge(model)
        return loss if math.isfinite(loss) else math.inf

    return _lowest(final_loss, first)


def quick_test(
    student: nn.Module,
    teacher: TeacherOutputs,
    examples: Data,
    recovery: Recovery,
    recipe: Recipe,
    seed: int,
) -> float:
    """Return the learning rate at which one step lowers the loss on other examples most.

    It takes about `QUICK_TEST_STEPS` steps, and is for networks whose range test takes too long. The step of an
    optimizer is proportional to its learning rate, so that one step tells those of all rates.

    Parameters
    ----------
    student, teacher, examples, recovery, recipe, seed
        As in `range_test`.

    Raises
    ------
    UserError
        If no loss is finite.
    """

    def step(model: nn.Module, rate: float, seed: int) -> float:
        ((_, loss),) = training_steps(model, teacher, examples, recovery, recipe, seed, [rate])
        return float(loss)

    moved = copy.deepcopy(student)
    step(moved, QUICK_FIRST_RATE, seed)
    changes = [(new - old).detach() for new, old in zip(moved.parameters(), student.parameters(), strict=True)]

    def loss_after(rate: float) -> float:
        model = copy.deepcopy(student)
        with torch.no_grad():
            for parameter, change in zip(model.parameters(), changes, strict=True):
                parameter.add_(change, alpha=rate / QUICK_FIRST_RATE)
        loss = step(model, 0.0, seed + 1)
        return loss if math.isfinite(loss) else math.inf

    return _lowest(loss_after, QUICK_FIRST_RATE)


def _lowest(final_loss: Callable[[float], float], first: float) -> float:
    """Return the learning rate with the smallest loss, searched downhill from the first one.

    Raises
    ------
    UserError
        If no loss is finite.
    """
    final_losses = {first: final_loss(first)}
    for factor in (RATE_FACTOR, 1 / RATE_FACTOR):
        rate = first * factor
        while MIN_RATE <= rate <= MAX_RATE:
            final_losses[rate] = final_loss(rate)
            if final_losses[rate] > final_losses[rate / factor] or (factor > 1 and math.isinf(final_losses[rate])):
                break
            rate *= factor
        if factor > 1 and min(final_losses, key=final_losses.__getitem__) != first:
            break
    best = min(final_losses, key=final_losses.__getitem__)
    if math.isinf(final_losses[best]):
        raise UserError("no loss of the range test is finite; check the data and the loss, or set a learning_rate")
    neighbours = [
        final_losses.get(best / RATE_FACTOR, math.inf),
        final_losses[best],
        final_losses.get(best * RATE_FACTOR, math.inf),
    ]
    return best * math.pow(RATE_FACTOR, _parabola_minimum(neighbours))


def _parabola_minimum(values: list[float]) -> float:
    """Return the minimum of the parabola through the values at -1, 0 and 1; 0 if a value is missing."""
    curvature = values[0] - 2 * values[1] + values[2]
    return 0.5 * (values[0] - values[2]) / curvature if math.isfinite(curvature) and curvature > 0 else 0.0
