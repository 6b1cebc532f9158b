"""Inputs with their labels, in memory."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, field
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
    """Labelled inputs in memory.

    Batches are slices of one tensor: for small inputs, a loader with workers takes more time than the network.

    Parameters
    ----------
    inputs
        Inputs of the network, shape (N, ...).
    labels
        Class indices (N,), or the targets of the loss of the study: class maps (N, H, W), numbers (N, ...).
    """

    inputs: Tensor
    labels: Tensor
    _digests: list[str] = field(default_factory=list, init=False)  # of the content, computed once: it reads all data

    def __post_init__(self) -> None:
        """Check the types and the lengths."""
        for name in ("inputs", "labels"):
            if not isinstance(getattr(self, name), Tensor):
                kind = type(getattr(self, name)).__name__
                raise ValueError(f"{name} must be a tensor, but got {kind}; torch.as_tensor makes one")
        if len(self.inputs) != len(self.labels) or not len(self.inputs):
            raise ValueError(
                f"inputs and labels must have the same length and not be empty, but got {len(self.inputs)} and "
                f"{len(self.labels)}"
            )

    @classmethod
    def of(cls, source: Dataset[Any] | DataLoader[Any]) -> Examples:
        """Read all (input, label) pairs of a dataset or a loader into memory, once.

        Parameters
        ----------
        source
            A map-style dataset, or a loader; the order and the transforms of a loader are kept.
        """
        loader = source if isinstance(source, DataLoader) else DataLoader(source, batch_size=256)
        inputs, labels = zip(*((torch.as_tensor(x), torch.as_tensor(y)) for x, y in loader), strict=True)
        return cls(torch.cat(inputs), torch.cat(labels))

    @property
    def classified(self) -> bool:
        """Whether the labels are integers, that is classes."""
        return not self.labels.is_floating_point()

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.inputs)

    def __repr__(self) -> str:
        """Return a text with count, shape and a digest of the content, the same in every process."""
        if not self._digests:
            digest = hashlib.sha256(self.inputs.contiguous().numpy().data)
            digest.update(self.labels.contiguous().numpy().data)
            self._digests.append(digest.hexdigest()[:12])
        return f"Examples({len(self)} of {tuple(self.inputs.shape[1:])}, sha256 {self._digests[0]})"

    def batches(self, size: int = 512) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of inputs and labels in order, of at most `size` examples."""
        yield from zip(self.inputs.split(size), self.labels.split(size), strict=True)

    def take(self, indices: Tensor) -> Examples:
        """Return the examples at these indices, in this order."""
        return Examples(self.inputs[indices], self.labels[indices])


def outputs(model: nn.Module, inputs: Tensor, size: int = 256) -> Tensor:
    """Return the outputs of the network, shape (N, ...), on the CPU; compute them on its own device, without gradients.

    Parameters
    ----------
    model
        Any network with one output tensor; its mode is not changed.
    inputs
        Inputs, shape (N, ...).
    size
        Examples in a batch.
    """
    device = device_of(model)
    with torch.no_grad():
        return torch.cat([model(batch.to(device)).cpu() for batch in inputs.split(size)])


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the network; the CPU if it has no tensors."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device
