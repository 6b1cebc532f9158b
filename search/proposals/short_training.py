"""The short-training proxy: the ratio of the loss after a few training steps to the loss before.

The losses of untrained networks are misleading if some have many layers and others few: training makes up for
removed width, but not for removed depth.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from search.proposals.table_losses import passes_of
from search.study.console import console
from search.study.cpu_profile import TRAINING
from search.study.failed_plans import FailedPlans
from search.training.learning_rate import DEFAULT_RATE

if TYPE_CHECKING:
    from torch import nn

    from search.evaluation.context import Context
    from spaces import Plan

SHORT_STEPS = 25  # steps of a short training (chosen)
FIRST_TRAINED = 8  # plans trained first; then as many examples are scored as are trained on (chosen)
NEIGHBOURS = 5  # trained plans whose median ratio is the prediction for another plan (chosen)
DEPTH_WEIGHT = 5.0  # weight of the share of left-out layers, relative to the log loss, in the distance (fitted)


def rate_is_known(context: Context) -> bool:
    """Whether a good learning rate is known without a range test: the recipe has one, or AdamW trains on classes."""
    recipe = context.spec.recipe
    return recipe.learning_rate is not None or (
        context.spec.splits.train.classified and recipe.optimizer is torch.optim.AdamW
    )


class ShortTraining:
    """Losses after a few steps of the recipe, measured by training some plans and predicted for similar plans.

    Parameters
    ----------
    context
        The study.
    inputs
        Number of inputs that a plan is scored on.

    Attributes
    ----------
    every
        Number of scored plans for each trained plan after the first ones.
    """

    def __init__(self, context: Context, inputs: int) -> None:
        recipe, train = context.spec.recipe, context.spec.splits.train
        self._context, self._inputs = context, inputs
        self._recipe = recipe.of_steps(SHORT_STEPS, train)
        self.every = SHORT_STEPS * recipe.batch(train) / passes_of(inputs)
        self._features: list[tuple[float, float]] = []
        self._ratios: list[float] = []
        self._attempts = 0
        self._failed = FailedPlans("the short trainings")
        self._fits, self._timed = True, False

    def note(self, left_out: float, loss: float, ratio: float | None) -> None:
        """Record one trained plan.

        Parameters
        ----------
        left_out
            Share of the layers that the plan leaves out.
        loss
            Loss before training, positive.
        ratio
            Loss after training, divided by the loss before; None if the training failed.
        """
        self._attempts += 1
        if ratio is None:
            return
        self._features.append((DEPTH_WEIGHT * left_out, math.log(loss)))
        self._ratios.append(ratio)

    def predict(self, left_out: float, loss: float) -> float:
        """Predict the ratio of the losses after and before training: the median over the most similar trained plans."""
        if not self._ratios:
            return 1.0
        distances = np.abs(np.array(self._features) - (DEPTH_WEIGHT * left_out, math.log(loss))).sum(1)
        return float(np.median(np.array(self._ratios)[distances.argsort(kind="stable")[:NEIGHBOURS]]))

    def due(self, scored: int) -> bool:
        """Whether one more plan may be trained when `scored` plans have been scored."""
        return self._fits and self._attempts < FIRST_TRAINED + scored / self.every

    def __call__(self, plan: Plan, seconds: float) -> float:
        """Return the proxy loss after training; infinite if training fails, or would take longer than this."""
        try:
            model = self._context.build(plan)
            if not self._timed and self._seconds(model, plan, seconds) > seconds:
                console.print(
                    f"no plan of the draft is trained for {SHORT_STEPS} steps, since one takes over {seconds:.0f} s; "
                    "plans with few and with many layers are compared by their losses before training"
                )
                self._fits = False
                return math.inf
            self._timed = True
            recipe = self._context.with_rate(self._recipe, model, DEFAULT_RATE)
            self._context.train(model, plan, recipe, self._context.spec.seed)
            return self._context.proxy_loss(model, self._inputs)
        except Exception as error:  # noqa: BLE001 - a plan may fail in any way
            self._failed.note(plan.words(), error)
            return math.inf

    def _seconds(self, model: nn.Module, plan: Plan, most: float) -> float:
        """Return the CPU seconds of a training, by those of one step; 0 if it may take any time."""
        if math.isinf(most):
            return 0.0
        with self._context.cpu_profile.charge(TRAINING):
            return SHORT_STEPS * self._context.step_seconds(model, plan, self._recipe, 1, most / SHORT_STEPS)
