"""The proxy loss: the distance of a network's outputs from the teacher's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from objectives.examples import device_of, outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from objectives import Examples
    from spaces import Recovery

PROXY_INPUTS = 256  # most inputs of the proxy loss, drawn independently of the calibration inputs (chosen)


class ProxyLoss:
    """The recovery's loss of a network's outputs on some inputs, on a scale of its own.

    The teacher has the proxy loss 0, and a network that answers every input with the mean of the teacher's answers has
    the proxy loss 1. So a proxy loss means the same whatever the loss, its units, and the number of classes.

    Parameters
    ----------
    teacher
        The teacher in evaluation mode, on the device where plans are scored.
    examples
        The split that the inputs are drawn from.
    recovery
        The recovery that defines the loss.
    seed
        Seed of the draw of the inputs.
    most
        Number of inputs, at most.
    """

    def __init__(
        self, teacher: nn.Module, examples: Examples, recovery: Recovery, seed: int, most: int = PROXY_INPUTS
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(examples), generator=generator)[:most]
        device = device_of(teacher)
        self._inputs = examples.inputs[chosen].to(device)
        self._labels = examples.labels[chosen].cpu()  # as the outputs are
        self._recovery = recovery
        self._teacher: Tensor = outputs(teacher, self._inputs)
        self._ends: dict[int | None, tuple[float, float]] = {}  # losses of the teacher and the mean answer, by inputs

    def __call__(self, model: nn.Module, count: int | None = None) -> float:
        """Return the proxy loss of a network on the first `count` inputs, or on all; it is left in evaluation mode."""
        if count not in self._ends:
            answers = self._teacher[:count]
            self._ends[count] = self._loss(answers), self._loss(answers.mean(0, keepdim=True).expand_as(answers))
        best, constant = self._ends[count]
        unit = constant - best if math.isfinite(constant) and constant > best else 1.0  # a teacher may be constant
        return (self._loss(outputs(model.eval(), self._inputs[:count])) - best) / unit

    def _loss(self, network_outputs: Tensor) -> float:
        answers = self._teacher[: len(network_outputs)]
        return float(self._recovery.loss(network_outputs, answers, self._labels[: len(network_outputs)]))
