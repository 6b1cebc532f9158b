"""What a few steps of training leave of a loss: one-shot losses of networks with many layers and with few mislead."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from search.bench import FEW
from search.rates import USUAL
from search.score import SCORED

if TYPE_CHECKING:
    from search.bench import Bench
    from spaces import Plan

STEPS = 25  # of a training
FIRST = 8  # plans that are trained at once; beyond these no more examples are trained on than scored
ALIKE = 5  # trained plans from which it is told what training would leave of another
DEPTH = 5.0  # how much a share of the layers counts there beside a factor of e of the loss


def usual(bench: Bench) -> bool:
    """Whether the rate of such a training is known without a look: the study's own, or that of classes and AdamW."""
    recipe = bench.spec.recipe
    return recipe.learning_rate is not None or (
        bench.spec.splits.train.classified and recipe.optimizer is torch.optim.AdamW
    )


class Mending:
    """Losses after a few steps of the recipe: of some plans by training them, of others told from those like them.

    Parameters
    ----------
    bench
        The study.

    Attributes
    ----------
    every
        Of how many plans one more is trained, beside the first.
    """

    def __init__(self, bench: Bench) -> None:
        recipe, examples = bench.spec.recipe, len(bench.spec.splits.train)
        self._bench = bench
        self._recipe = recipe.longer(STEPS / recipe.steps(examples))
        self.every = STEPS * recipe.batch(examples) / (FEW + SCORED)
        self._places: list[tuple[float, float]] = []
        self._ratios: list[float] = []

    def note(self, left_out: float, loss: float, ratio: float) -> None:
        """Learn from one plan.

        Parameters
        ----------
        left_out
            Share of the layers that it leaves out.
        loss
            Before training, positive.
        ratio
            What training left of it.
        """
        self._places.append((DEPTH * left_out, math.log(loss)))
        self._ratios.append(ratio)

    def told(self, left_out: float, loss: float) -> float:
        """Return what training would leave of a loss, as a ratio: the median of the plans that are most alike."""
        if not self._ratios:
            return 1.0
        apart = np.abs(np.array(self._places) - (DEPTH * left_out, math.log(loss))).sum(1)
        return float(np.median(np.array(self._ratios)[apart.argsort(kind="stable")[:ALIKE]]))

    def due(self, scored: int) -> bool:
        """Whether one more may be trained, of so many plans."""
        return len(self._ratios) < FIRST + scored / self.every

    def __call__(self, plan: Plan) -> float:
        """Return the loss after training, less that of the teacher; infinite where training fails."""
        model = self._bench.build(plan)
        recipe = self._bench.rated(self._recipe, model, USUAL)
        try:
            self._bench.train(model, plan, recipe, self._bench.spec.seed)
            return self._bench.score(model)
        except Exception:  # noqa: BLE001 - whatever it is, a trial will say so
            return math.inf
