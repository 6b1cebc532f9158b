"""A short-training proxy: what a few steps of training leave of a loss.

The losses of untrained networks mislead where some have many layers and others few: width comes back with training,
depth does not.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from search.evaluation.proxy_loss import SCORED
from search.evaluation.subject import FEW
from search.training.learning_rate import USUAL

if TYPE_CHECKING:
    from search.evaluation.context import Context
    from spaces import Plan

SHORT_STEPS = 25  # of a short training
FIRST_TRAINED = 8  # plans that are trained at once; beyond these no more examples are trained on than scored
NEIGHBOURS = 5  # trained plans from which the ratio of another is predicted
DEPTH_WEIGHT = 5.0  # of the share of left-out layers, beside the logarithm of the loss, in their distance (fitted)


def rate_is_known(context: Context) -> bool:
    """Whether a good rate is known without a range test: the study's own, or that of classes and AdamW."""
    recipe = context.spec.recipe
    return recipe.learning_rate is not None or (
        context.spec.splits.train.classified and recipe.optimizer is torch.optim.AdamW
    )


class ShortTraining:
    """Losses after a few steps of the recipe: of some plans by training them, of others predicted from similar ones.

    Parameters
    ----------
    context
        The study.

    Attributes
    ----------
    every
        Of how many plans one more is trained, beside the first.
    """

    def __init__(self, context: Context) -> None:
        recipe, examples = context.spec.recipe, len(context.spec.splits.train)
        self._context = context
        self._recipe = recipe.longer(SHORT_STEPS / recipe.steps(examples))
        self.every = SHORT_STEPS * recipe.batch(examples) / (FEW + SCORED)
        self._places: list[tuple[float, float]] = []
        self._ratios: list[float] = []

    def note(self, left_out: float, loss: float, ratio: float) -> None:
        """Take in one trained plan.

        Parameters
        ----------
        left_out
            Share of the layers that it leaves out.
        loss
            Before training, positive.
        ratio
            What training left of it.
        """
        self._places.append((DEPTH_WEIGHT * left_out, math.log(loss)))
        self._ratios.append(ratio)

    def predict(self, left_out: float, loss: float) -> float:
        """Return what training would leave of a loss, as a ratio: the median of the most similar trained plans."""
        if not self._ratios:
            return 1.0
        apart = np.abs(np.array(self._places) - (DEPTH_WEIGHT * left_out, math.log(loss))).sum(1)
        return float(np.median(np.array(self._ratios)[apart.argsort(kind="stable")[:NEIGHBOURS]]))

    def due(self, scored: int) -> bool:
        """Whether one more may be trained, of so many plans."""
        return len(self._ratios) < FIRST_TRAINED + scored / self.every

    def __call__(self, plan: Plan) -> float:
        """Return the loss after training, less that of the teacher; infinite where training fails."""
        model = self._context.build(plan)
        recipe = self._context.with_rate(self._recipe, model, USUAL)
        try:
            self._context.train(model, plan, recipe, self._context.spec.seed)
            return self._context.proxy_loss(model)
        except Exception:  # noqa: BLE001 - whatever it is, a trial will say so
            return math.inf
