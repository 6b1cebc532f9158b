"""The learning rate: a short range test on one network, and a rule for other networks and other lengths."""

from __future__ import annotations

import copy
import math
import statistics
from typing import TYPE_CHECKING, NamedTuple

from search.study.errors import UserError
from search.training.fine_tuning import training_steps, warmed

if TYPE_CHECKING:
    from torch import nn

    from objectives import Examples
    from search.study.spec import Recipe
    from search.training.fine_tuning import TeacherOutputs
    from spaces import Recovery

FIRST, LOWEST, HIGHEST, FACTOR = 4e-3, 1e-6, 10.0, 2.0  # rates that are tried
TEST_STEPS = 25  # of each training of the range test
ENDING = 0.25  # of these steps: the last ones, whose losses count
DAMAGE_POWER, LENGTH_POWER = (
    0.65,
    0.5,
)  # of the loss and the steps that the best rate grows with (fitted: studies/LOG.md)
MOST_DAMAGE = 1.1  # nats, up to which networks were seen to be trainable (fitted: studies/LOG.md)
LEAST_DAMAGE, MOST_STEPS = 0.01, 200  # nats and steps, beyond which nothing was measured (fitted)


class Rate(NamedTuple):
    """A learning rate that is good for a network.

    Attributes
    ----------
    rate
        The highest of a training's.
    loss
        Of the network before training, less that of the teacher.
    steps
        Of the training.
    """

    rate: float
    loss: float
    steps: int

    def at(self, loss: float, steps: int) -> float:
        """Return the rate for another network of the study or a training of another length, to two digits.

        What has lost more bears, and needs, larger steps; so does what has more time to settle.
        """
        damage = max(loss, LEAST_DAMAGE) / max(self.loss, LEAST_DAMAGE)
        length = min(steps, MOST_STEPS) / min(self.steps, MOST_STEPS)
        return float(f"{self.rate * damage**DAMAGE_POWER * length**LENGTH_POWER:.2g}")


USUAL = Rate(0.008, 1.0, 50)  # of AdamW on three networks (fitted: studies/LOG.md), where there is no time for a test


def range_test(
    student: nn.Module, teacher: TeacherOutputs, examples: Examples, recovery: Recovery, recipe: Recipe, seed: int
) -> float:
    """Return the rate with which a short training ends best.

    Trainings of 25 steps on the same batches, with the schedule of a whole one, from one rate to twice or half of it,
    as long as the losses of the last steps fall; then the lowest point of the parabola through the best three.

    Parameters
    ----------
    student
        Is not changed.
    teacher, examples, recovery, recipe, seed
        As of `recover`; the recipe's own rate and epochs do not count.

    Raises
    ------
    UserError
        If no loss is finite.
    """

    def ending(rate: float) -> float:
        rates = [rate * warmed(step, TEST_STEPS) for step in range(TEST_STEPS)]
        losses = list(training_steps(copy.deepcopy(student), teacher, examples, recovery, recipe, seed, rates))
        found = statistics.fmean(float(loss) for loss in losses[-round(ENDING * TEST_STEPS) :])
        return found if math.isfinite(found) else math.inf

    endings = {FIRST: ending(FIRST)}
    for factor in (FACTOR, 1 / FACTOR):
        rate = FIRST * factor
        while LOWEST <= rate <= HIGHEST:
            endings[rate] = ending(rate)
            if endings[rate] > endings[rate / factor] or (factor > 1 and math.isinf(endings[rate])):
                break
            rate *= factor
        if factor > 1 and min(endings, key=endings.__getitem__) != FIRST:
            break
    best = min(endings, key=endings.__getitem__)
    if math.isinf(endings[best]):
        raise UserError("no loss of the range test is finite; look at the data and the loss, or name a learning_rate")
    around = [endings.get(best / FACTOR, math.inf), endings[best], endings.get(best * FACTOR, math.inf)]
    return best * math.pow(FACTOR, _lowest(around))


def _lowest(three: list[float]) -> float:
    """Return where a parabola through the values at -1, 0 and 1 is lowest; 0 where one is missing."""
    bend = three[0] - 2 * three[1] + three[2]
    return 0.5 * (three[0] - three[2]) / bend if math.isfinite(bend) and bend > 0 else 0.0
