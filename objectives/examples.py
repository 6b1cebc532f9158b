"""Inputs with their labels, whole in memory."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn
    from torch.utils.data import Dataset


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Examples:
    """Labelled inputs.

    One tensor in memory and batches by slicing: for small inputs, a loader with workers costs more than the network.

    Parameters
    ----------
    inputs
        As the network takes them, shape (N, ...).
    labels
        Class indices (N,), or whatever the study's loss compares outputs with: class maps (N, H, W), numbers (N, ...).
    """

    inputs: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        """Check the kinds and the lengths."""
        for name in ("inputs", "labels"):
            if not isinstance(getattr(self, name), Tensor):
                kind = type(getattr(self, name)).__name__
                raise ValueError(f"{name} must be a tensor, but got {kind}; torch.as_tensor makes one")
        if len(self.inputs) != len(self.labels) or not len(self.inputs):
            raise ValueError(
                f"inputs and labels must be equally many and not empty, but got {len(self.inputs)} and "
                f"{len(self.labels)}"
            )

    @classmethod
    def of(cls, source: Dataset[Any] | DataLoader[Any]) -> Examples:
        """Read a dataset or a loader of (input, label) pairs to its end, once, into memory.

        Parameters
        ----------
        source
            A map-style dataset, or a loader; a loader's own order and transforms are taken as they come.
        """
        loader = source if isinstance(source, DataLoader) else DataLoader(source, batch_size=256)
        inputs, labels = zip(*((torch.as_tensor(x), torch.as_tensor(y)) for x, y in loader), strict=True)
        return cls(torch.cat(inputs), torch.cat(labels))

    @property
    def classified(self) -> bool:
        """Whether the labels are classes, that is integers."""
        return not self.labels.is_floating_point()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.inputs)

    def __repr__(self) -> str:
        """Name size, shape and content, alike in every process."""
        digest = hashlib.sha256(self.inputs.contiguous().numpy().tobytes())
        digest.update(self.labels.contiguous().numpy().tobytes())
        return f"Examples({len(self)} of {tuple(self.inputs.shape[1:])}, sha256 {digest.hexdigest()[:12]})"

    def batches(self, size: int = 512) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and labels in order, at most `size` at a time."""
        yield from zip(self.inputs.split(size), self.labels.split(size), strict=True)

    def take(self, indices: Tensor) -> Examples:
        """Return those examples, in that order."""
        return Examples(self.inputs[indices], self.labels[indices])


def outputs(model: nn.Module, inputs: Tensor, size: int = 256) -> Tensor:
    """Return the network's outputs on the CPU, shape (N, ...), without gradients, on the device where it lies.

    Parameters
    ----------
    model
        Any network of one output tensor; its mode is left as it is.
    inputs
        Shape (N, ...).
    size
        How many at a time.
    """
    device = device_of(model)
    with torch.no_grad():
        return torch.cat([model(part.to(device)).cpu() for part in inputs.split(size)])


def device_of(model: nn.Module) -> torch.device:
    """Return where the network's tensors lie; the CPU if it has none."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device
