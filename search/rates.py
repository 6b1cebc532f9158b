"""Choose a learning rate by a short range test."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from search.errors import UserError
from search.recover import training

if TYPE_CHECKING:
    from torch import Tensor, nn

    from objectives import Examples
    from search.recover import Teacher
    from search.spec import Recipe
    from spaces import Recovery

LOWEST, HIGHEST, A_DECADE = 1e-4, 10.0, 14  # learning rates, and steps while they become ten times as large
MEMORY = 0.8  # of the running mean of the losses
ALIKE = 1.05  # times the least loss, and a loss is as good: batches differ by more
DIVERGED = 1.5  # times the least loss: what comes after it can be left out
SAFE = 20.0  # the highest rate with a loss as good as the least, over the one that is taken: there, it is about to rise


def range_test(
    student: nn.Module, teacher: Teacher, examples: Examples, recovery: Recovery, recipe: Recipe, seed: int
) -> float:
    """Return a twentieth of the highest learning rate at which the loss is not above its least, while the rate rises.

    A rate too low moves nothing in so few steps, one too high throws the loss up; the running mean of the losses is
    least just before it does. What a batch costs the teacher is taken off its loss, and their mean put back: batches
    differ by more than the student changes.

    Parameters
    ----------
    student
        Is trained in place, and of no use afterwards.
    teacher, examples, recovery, recipe, seed
        As of `recover`; the recipe's own rate and epochs do not count.

    Raises
    ------
    UserError
        If no loss is finite.

    References
    ----------
    Smith 2017, IEEE WACV (arXiv:1506.01186), section 3.3: the range test.
    """
    count = math.ceil(A_DECADE * math.log10(HIGHEST / LOWEST))
    rates = [LOWEST * 10 ** (step / A_DECADE) for step in range(count + 1)]
    beside = _Beside(recovery)
    mean, means = 0.0, []
    losses = training(student, teacher, examples, beside, recipe, seed, rates)
    for step, loss in enumerate(losses, 1):
        mean = MEMORY * mean + (1 - MEMORY) * (float(loss) - beside.teachers[-1])
        means.append(mean / (1 - MEMORY**step))
        usual = statistics.fmean(beside.teachers)
        if not math.isfinite(mean) or (step > A_DECADE and means[-1] + usual > DIVERGED * (min(means) + usual)):
            break
    if not math.isfinite(means[0]):
        raise UserError("no loss of the range test is finite; look at the data and the loss, or name a learning_rate")
    most = ALIKE * (min(means) + usual) - usual
    good = [rate for rate, loss in zip(rates, means, strict=False) if loss <= most]
    return good[-1] / SAFE


class _Beside:
    """A recovery that notes what its loss would be for the teacher, where there is one."""

    def __init__(self, recovery: Recovery) -> None:
        self._recovery = recovery
        self.teachers: list[float] = []

    def loss(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return the recovery's."""
        self.teachers.append(float(self._recovery.loss(teacher, teacher, labels)) if len(teacher) else 0.0)
        return self._recovery.loss(student, teacher, labels)

    def words(self) -> str:
        """Say the recovery's."""
        return self._recovery.words()
