"""The answers of networks to examples, batch by batch, on the CPU."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

from objectives.data import BATCH
from objectives.trees import Tree, at, joined, length, moved, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from objectives.data import Data


def answers(model: nn.Module, data: Data) -> Iterator[tuple[Tree, Tree]]:
    """Yield the outputs of a network with the labels, batch by batch, both on the CPU.

    Parameters
    ----------
    model
        Any network; its mode is not changed, and it computes on its own device.
    data
        The examples.
    """
    for (output,), labels in answers_of((model,), data):
        yield output, labels


def answers_of(models: Sequence[nn.Module], data: Data) -> Iterator[tuple[list[Tree], Tree]]:
    """Yield the outputs of several networks for the same examples, with the labels, batch by batch, on the CPU."""
    devices = [device_of(model) for model in models]
    for inputs, labels in data.batches():
        with torch.no_grad():
            found = [moved(run(model, moved(inputs, one)), "cpu") for model, one in zip(models, devices, strict=True)]
        yield found, labels


def outputs(model: nn.Module, inputs: Tree, size: int = BATCH) -> Tree:
    """Return the outputs of the network, shape (N, ...), on the CPU; compute them on its own device, without gradients.

    Parameters
    ----------
    model
        Any network; its mode is not changed.
    inputs
        Inputs, shape (N, ...); a tuple is passed by position, a dict by name.
    size
        Examples in a batch.
    """
    device, count = device_of(model), length(inputs) or 0
    parts = [at(inputs, slice(start, start + size)) for start in range(0, count, size)]
    with torch.no_grad():
        return joined([moved(run(model, moved(part, device)), "cpu") for part in parts])


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the network; the CPU if it has no tensors."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device
