"""What can be trained and measured on, and batches of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor

    from objectives.trees import Tree

BATCH = 256  # examples in a batch of an evaluation, where no loader has a batch size of its own (chosen)


class Batch(NamedTuple):
    """A batch for training.

    Attributes
    ----------
    inputs, labels
        The examples; the labels are None if there are none.
    keys
        The places of the examples in their split, shape (B,), if an example is the same at every reading; otherwise
        None. What was computed for an example can be kept by its place.
    """

    inputs: Tree
    labels: Tree
    keys: Tensor | None


class Data(Protocol):
    """What can be trained and measured on: `Examples` in memory, or a `Stream` of a dataset or a loader."""

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    @property
    def places(self) -> int:
        """The number of keys that batches for training may have; 0 if they have none."""
        ...

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        ...

    @property
    def repeatable(self) -> bool:
        """Whether an example is the same at every reading; random transforms make it another one."""
        ...

    @property
    def classified(self) -> bool:
        """Whether the labels are integers, that is classes."""
        ...

    def batches(self, size: int = BATCH) -> Iterator[tuple[Tree, Tree]]:
        """Yield all inputs and labels once, in batches of at most `size` examples."""
        ...

    def training_batches(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Yield batches without end; every pass has a new order. A loader has its own order and size."""
        ...

    def keyed(self, size: int = BATCH) -> Iterator[tuple[Tensor, Tree]]:
        """Yield the keys of all examples that have one, shape (B,), and their inputs, once and in a fixed order.

        Batches have the size of a loader, if there is one.
        """
        ...

    @property
    def keyed_count(self) -> int:
        """The number of examples that `keyed` yields."""
        ...

    def batch_size(self, wanted: int) -> int:
        """Return the number of examples in a batch for training, given the wanted number."""
        ...

    def steps(self, wanted: int) -> int:
        """Return the number of batches of one pass for training, given the wanted number of examples in a batch."""
        ...

    def head(self, count: int) -> Data:
        """Return the first examples, at most `count`."""
        ...

    def sample(self, count: int, seed: int) -> Held:
        """Return at most `count` examples, drawn at random, in memory; the same ones for the same seed."""
        ...

    def example(self, count: int = 1) -> Tree:
        """Return the inputs of a few examples, shape (count, ...), as objectives of costs take them."""
        ...


class Held(Data, Protocol):
    """Examples that are held in memory."""

    @property
    def inputs(self) -> Tree:
        """All inputs, shape (N, ...)."""
        ...

    @property
    def labels(self) -> Tree:
        """All labels, or None."""
        ...

    def head(self, count: int) -> Held:
        """Return the first examples, at most `count`."""
        ...
