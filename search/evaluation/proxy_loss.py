"""The proxy loss: the distance of an untrained network's outputs from the teacher's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from objectives.examples import device_of, outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from objectives import Examples
    from spaces import Recovery

PROXY_INPUTS = 256  # training inputs of the proxy loss, drawn independently of the calibration inputs (chosen)


class ProxyLoss:
    """The recovery's loss of a network's outputs on some training inputs, minus the same loss of the teacher's outputs.

    Parameters
    ----------
    teacher
        The teacher in evaluation mode, on the device where plans are scored.
    examples
        The training set.
    recovery
        The recovery that defines the loss and its units.
    seed
        Seed of the draw of the inputs.
    """

    def __init__(self, teacher: nn.Module, examples: Examples, recovery: Recovery, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(examples), generator=generator)[:PROXY_INPUTS]
        device = device_of(teacher)
        self._inputs = examples.inputs[chosen].to(device)
        self._labels = examples.labels[chosen].to(device)
        self._recovery = recovery
        self._teacher: Tensor = outputs(teacher, self._inputs)
        self._teacher_loss = self._loss(self._teacher)

    def __call__(self, model: nn.Module) -> float:
        """Return the proxy loss of a network, 0 for the teacher; the network is left in evaluation mode."""
        return self._loss(outputs(model.eval(), self._inputs)) - self._teacher_loss

    def _loss(self, network_outputs: Tensor) -> float:
        return float(self._recovery.loss(network_outputs, self._teacher, self._labels))
