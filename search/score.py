"""How good a network is before it is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from optuna.trial import FixedTrial

from objectives.examples import outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from search.bench import Bench

SCORED = 256  # training inputs that are drawn, others than those that the steps are fitted on


class Score:
    """How far the answers of a network are from the teacher's, in the units of the recovery's loss.

    Parameters
    ----------
    bench
        The study.
    """

    def __init__(self, bench: Bench) -> None:
        train = bench.spec.splits.train
        generator = torch.Generator().manual_seed(bench.spec.seed + 1)
        chosen = torch.randperm(len(train), generator=generator)[:SCORED]
        self._inputs = train.inputs[chosen].to(bench.device)
        self._labels = train.labels[chosen].to(bench.device)
        self._recovery = bench.spec.space.recovery.suggest(FixedTrial(bench.spec.space.recovery.usual()))
        self._teacher: Tensor = outputs(bench.model, self._inputs)
        self._least = self._loss(self._teacher)

    def __call__(self, model: nn.Module) -> float:
        """Return the loss of the answers, less that of the teacher's own."""
        return self._loss(outputs(model.eval(), self._inputs)) - self._least

    def _loss(self, answers: Tensor) -> float:
        return float(self._recovery.loss(answers, self._teacher, self._labels))
