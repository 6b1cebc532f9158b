"""The proxy loss: how far the answers of an untrained candidate are from the teacher's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from objectives.examples import device_of, outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from objectives import Examples
    from spaces import Recovery

SCORED = 256  # training inputs that are drawn, others than those that the steps are fitted on


class ProxyLoss:
    """The loss of a network's answers against the teacher's, on some training inputs, less that of the teacher itself.

    Parameters
    ----------
    teacher
        In evaluation mode, on the device where candidates are scored.
    examples
        The training set.
    recovery
        Whose loss it is, and whose units.
    seed
        Of the draw of the inputs.
    """

    def __init__(self, teacher: nn.Module, examples: Examples, recovery: Recovery, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(examples), generator=generator)[:SCORED]
        device = device_of(teacher)
        self._inputs = examples.inputs[chosen].to(device)
        self._labels = examples.labels[chosen].to(device)
        self._recovery = recovery
        self._teacher: Tensor = outputs(teacher, self._inputs)
        self._least = self._loss(self._teacher)

    def __call__(self, model: nn.Module) -> float:
        """Return the loss of a network, 0 for the teacher; the network is left in evaluation mode."""
        return self._loss(outputs(model.eval(), self._inputs)) - self._least

    def _loss(self, answers: Tensor) -> float:
        return float(self._recovery.loss(answers, self._teacher, self._labels))
