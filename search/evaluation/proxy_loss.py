"""The proxy loss: the distance of a network's outputs from the teacher's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from objectives.outputs import device_of, outputs
from objectives.trees import at, map_tensors, moved
from search.study.machine import spare_memory

if TYPE_CHECKING:
    from torch import Tensor, nn

    from objectives import Data
    from objectives.trees import Tree
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
        self, teacher: nn.Module, examples: Data, recovery: Recovery, seed: int, most: int = PROXY_INPUTS
    ) -> None:
        chosen = examples.sample(most, seed)
        self._inputs: Tree = moved(chosen.inputs, device_of(teacher))
        self._count = len(chosen)
        self._labels = moved(chosen.labels, "cpu")  # as the outputs are
        self._recovery = recovery
        self._teacher = teacher
        self._scales: dict[int, _Scale] = {}  # by the number of inputs; where the time is short, only a few are used

    def __call__(self, model: nn.Module, count: int | None = None) -> float:
        """Return the proxy loss of a network on the first `count` inputs, or on all; it is left in evaluation mode."""
        count = self._count if count is None else min(count, self._count)
        scale = self._scale(count)
        loss = self._loss(outputs(model.eval(), at(self._inputs, slice(count))), scale.answers, count)
        spare_memory()
        return (loss - scale.best) / scale.unit

    def answer(self, count: int) -> None:
        """Compute the teacher's answers to the first `count` inputs, unless they are known; the first call would."""
        self._scale(min(count, self._count))

    def _scale(self, count: int) -> _Scale:
        """Return the teacher's answers to the first inputs, with their loss, and that of the mean answer above it."""
        if count not in self._scales:
            answers = outputs(self._teacher, at(self._inputs, slice(count)))
            best = self._loss(answers, answers, count)
            constant = self._loss(map_tensors(answers, _mean_answer), answers, count)
            unit = constant - best if math.isfinite(constant) and constant > best else 1.0  # a teacher may be constant
            self._scales[count] = _Scale(answers, best, unit)
        return self._scales[count]

    def _loss(self, network_outputs: Tree, answers: Tree, count: int) -> float:
        return float(self._recovery.loss(network_outputs, answers, at(self._labels, slice(count))))


class _Scale(NamedTuple):
    """The teacher's answers, their loss, and what is 1 on the scale of the proxy loss."""

    answers: Tree
    best: float
    unit: float


def _mean_answer(answers: Tensor) -> Tensor:
    """Return for every input the mean of the answers, shape (N, ...); integers, such as places, stay as they are."""
    if not answers.is_floating_point():
        return answers
    return answers.mean(0, keepdim=True).expand_as(answers).contiguous()  # losses of other libraries use view
