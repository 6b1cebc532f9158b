"""Examples: inputs with their labels, as tensors in memory or streamed from a dataset or a loader."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from objectives.data import BATCH, Batch
from objectives.identity import coarse_digest, description, exact_digest, origin
from objectives.samples import PAIR, Selector, ensure_finite, split
from objectives.sources import Source
from objectives.trees import PerExample, Tree, at, joined, leaves, length, one_shape, shape_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from objectives.data import Data

DIGESTED = 256  # most examples of a digest of tensors in memory, evenly spaced (chosen)
PROBED = 16  # examples that are read first, and again, to find out whether the transforms are random (chosen)
EMPTY = "a data source must give examples in every pass, but {} gave none; give a Dataset or a DataLoader"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Examples:
    """Labelled inputs in memory.

    Batches are slices of one tensor: for small inputs, a loader with workers takes more time than the network.

    Parameters
    ----------
    inputs
        Inputs of the network, shape (N, ...); or a tuple or dict of tensors for several inputs.
    labels
        Class indices (N,), or the targets of the loss of the study: class maps (N, H, W), numbers (N, ...), or any
        structure of tensors; None if there are none, for training with the teacher's outputs alone.
    """

    inputs: Tree
    labels: Tree
    _digests: list[str] = field(default_factory=list, init=False)  # of the content, computed once

    def __post_init__(self) -> None:
        """Check the types and the lengths."""
        for name, value in (("inputs", self.inputs), ("labels", self.labels)):
            if not leaves(value) and not (name == "labels" and (value is None or isinstance(value, PerExample))):
                raise ValueError(f"{name} must be a tensor, but got {type(value).__name__}; torch.as_tensor makes one")
        lengths = [length(value) for value in (self.inputs, self.labels) if value is not None]
        if len(set(lengths)) != 1 or not lengths[0]:
            raise ValueError(
                f"inputs and labels must have the same length and not be empty, but got {shape_words(self.inputs)} and "
                f"{shape_words(self.labels)}"
            )

    @staticmethod
    def of(source: object, inputs: Selector = None, labels: Selector = None, count: int | None = None) -> Data:
        """Return the examples of a dataset or a loader, read anew in every pass: nothing is held in memory.

        A loader keeps its workers, its sampler, its batch size, its `collate_fn` and the transforms of its dataset,
        which are random anew in every epoch; of a dataset alone, batches have the size of the recipe. For measurements
        each example is read once, also those that a loader with `drop_last=True` drops. The tensors of a
        `TensorDataset` are taken as they are, in memory.

        Parameters
        ----------
        source
            A map-style dataset, an iterable dataset, a loader, or anything else that can be iterated over several times
            and gives batches. A list holds samples; of a list of batches pass `DataLoader(list, batch_size=None)`.
        inputs, labels
            Which parts of a sample are the inputs and the labels, if a sample is not (input, label) or the input alone:
            a key or an index, several of them for several inputs, or a function of the collated batch.
        count
            Number of examples, if the source does not tell; otherwise they are counted in one pass.
        """
        if isinstance(source, TensorDataset) and len(source.tensors) == PAIR and inputs is None:
            return Examples(*source.tensors)
        return Stream(source, inputs, labels, count)

    @property
    def places(self) -> int:
        """The number of examples."""
        return len(self)

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.labels is not None

    @property
    def repeatable(self) -> bool:
        """Tensors are the same at every reading."""
        return True

    @property
    def classified(self) -> bool:
        """Whether the labels are integers, that is classes."""
        return isinstance(self.labels, Tensor) and not self.labels.is_floating_point()

    def __len__(self) -> int:
        """Return the number of examples."""
        count = length(self.inputs)
        assert count is not None
        return count

    def __repr__(self) -> str:
        """Return a text with count, shape and a digest of evenly spaced examples, the same in every process."""
        if not self._digests:
            count = len(self)
            few = torch.arange(0, count, -(-count // DIGESTED))
            part = self if len(few) == count else self.take(few)
            self._digests.append(exact_digest((part.inputs, part.labels)))
        shape = one_shape(self.inputs, 1)
        return f"Examples({len(self)} of {shape}, sha256 {self._digests[0]})"

    def batches(self, size: int = BATCH) -> Iterator[tuple[Tree, Tree]]:
        """Yield batches of inputs and labels in order, of at most `size` examples."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield at(self.inputs, part), at(self.labels, part)

    def training_batches(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Yield batches without end; every pass has a new order."""
        size = self.batch_size(size)
        while True:
            for chosen in torch.randperm(len(self), generator=generator).split(size):
                if len(chosen) == size:  # BatchNorm statistics of a short batch are poor
                    yield Batch(at(self.inputs, chosen), at(self.labels, chosen), chosen)

    def keyed(self, size: int = BATCH) -> Iterator[tuple[Tensor, Tree]]:
        """Yield the keys and the inputs of all examples in order, in batches of at most `size` examples."""
        for keys in torch.arange(len(self)).split(size):
            yield keys, at(self.inputs, keys)

    @property
    def keyed_count(self) -> int:
        """The number of examples."""
        return len(self)

    def batch_size(self, wanted: int) -> int:
        """Return the wanted number of examples in a batch, or all if they are fewer."""
        return min(wanted, len(self))

    def steps(self, wanted: int) -> int:
        """Return the number of whole batches of one pass."""
        return len(self) // self.batch_size(wanted)

    def sample(self, count: int, seed: int) -> Examples:
        """Return at most `count` examples, drawn at random; the same ones for the same seed."""
        return self.take(torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count])

    def example(self, count: int = 1) -> Tree:
        """Return the inputs of the first examples, shape (count, ...)."""
        return at(self.inputs, slice(count))

    def head(self, count: int) -> Examples:
        """Return the first examples, at most `count`."""
        return Examples(at(self.inputs, slice(count)), at(self.labels, slice(count)))

    def take(self, indices: Tensor) -> Examples:
        """Return the examples at these indices, in this order."""
        return Examples(at(self.inputs, indices), at(self.labels, indices))


class Stream:
    """Examples that are read from a dataset or a loader in every pass; see `Examples.of`.

    Parameters
    ----------
    source, inputs, labels, count
        As in `Examples.of`.
    """

    def __init__(
        self, source: object, inputs: Selector = None, labels: Selector = None, count: int | None = None
    ) -> None:
        self._source, self._selectors, self._given_count = Source(source), (inputs, labels), count
        self.origin = origin(self._source.dataset)  # what the dataset says of classes and preprocessing
        self._samples: dict[tuple[int, int], Examples] = {}
        self._found: dict[str, Any] = {}
        if self._source.by_index:
            self.sample(PROBED, 0)  # what cannot be used is reported where it is given

    def __len__(self) -> int:
        """Return the number of examples of one pass for measurements; count them if the source does not tell."""
        if "count" not in self._found:
            count = self._given_count if self._given_count is not None else self._source.count()
            if count is None:
                count = sum(length(inputs) or 0 for inputs, _ in self.batches())
            if not count:
                raise ValueError(EMPTY.format(self._source.name))
            self._found["count"] = count
        return int(self._found["count"])

    def __repr__(self) -> str:
        """Return what identifies the data: class, number, shape, paths, transforms and a digest of a few samples."""
        if "words" not in self._found:
            few = self.sample(PROBED, 0)
            content = f", sha256 {coarse_digest(few.inputs, few.labels)} of {len(few)}" if self.repeatable else ""
            shape = shape_words(at(few.inputs, slice(1)))
            self._found["words"] = f"Stream({description(self._source.dataset)}, {len(self)} of {shape}{content})"
        return str(self._found["words"])

    @property
    def places(self) -> int:
        """The number of examples of the dataset, of which a sampler may choose some; 0 if it has no indices."""
        return len(self._source.dataset) if self._source.by_index else 0

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.sample(PROBED, 0).labelled

    @property
    def classified(self) -> bool:
        """Whether the labels are integers, that is classes."""
        return self.sample(PROBED, 0).classified

    @property
    def repeatable(self) -> bool:
        """Whether an example is the same at every reading; random transforms make it another one."""
        if "repeatable" not in self._found:
            first, again = (list(self._source.drawn(PROBED, 0, noise=noise)) for noise in (1, 2))
            pairs = zip(leaves(tuple(first)), leaves(tuple(again)), strict=True)
            same = all(one.shape == two.shape and torch.equal(one, two) for one, two in pairs)
            self._found["repeatable"] = same and not self._source.looks_random
        return bool(self._found["repeatable"])

    def batches(self, size: int = BATCH) -> Iterator[tuple[Tree, Tree]]:
        """Yield all examples once: those of a dataset in their order, those of a loader as its own sampler chooses."""
        left, start = self._found.get("count"), 0
        for batch in self._source.once(size):
            inputs, labels = self._split(batch, start)
            start += length(inputs) or 0
            if left is not None:
                part = slice(max(0, left))
                inputs, labels = at(inputs, part), at(labels, part)
                left -= length(inputs) or 0
            yield inputs, labels
            if left == 0:
                return

    def training_batches(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Yield batches without end, as the loader gives them, or of a dataset in random order.

        A last batch of a single example is left out, unless all batches are so small: it has no variance, which
        BatchNorm needs.
        """
        several = self.batch_size(size) > 1
        passes = self._source.passes(size, generator)
        keep_keys = None
        while True:
            read = 0
            for keys, batch in next(passes):
                inputs, labels = self._split(batch, keys=keys)
                read += 1
                if several and length(inputs) == 1:
                    continue
                if keys is not None and keep_keys is None:
                    keep_keys = self.repeatable
                yield Batch(inputs, labels, keys if keep_keys else None)
            if not read:
                raise ValueError(EMPTY.format(self._source.name))

    def keyed(self, size: int = BATCH) -> Iterator[tuple[Tensor, Tree]]:
        """Yield the keys and the inputs of the examples of a dataset, those that the loader's sampler chooses."""
        for keys, batch in self._source.keyed(size):
            yield keys, self._split(batch, keys=keys)[0]

    @property
    def keyed_count(self) -> int:
        """The number of examples that the loader's sampler chooses of a dataset; 0 if they have no keys."""
        return len(self._source.pool)

    def batch_size(self, wanted: int) -> int:
        """Return the batch size of the loader, or the wanted one."""
        return self._source.batch_size or min(wanted, len(self))

    def steps(self, wanted: int) -> int:
        """Return the number of batches of one pass."""
        return max(1, self._source.batch_count() or len(self) // self.batch_size(wanted))

    def sample(self, count: int, seed: int) -> Examples:
        """Return at most `count` examples, drawn at random, in memory; the same ones for the same seed.

        Of a source that can only be iterated over, they are drawn from the first four times as many.
        """
        if (count, seed) not in self._samples:
            parts = [self._split(batch) for batch in self._source.drawn(count, seed)]
            if not parts:
                raise ValueError(EMPTY.format(self._source.name))
            inputs, labels = zip(*parts, strict=True)
            self._samples[count, seed] = Examples(joined(inputs), joined(labels))
        return self._samples[count, seed]

    def example(self, count: int = 1) -> Tree:
        """Return the inputs of a few examples, shape (count, ...)."""
        return self.sample(count, 0).inputs

    def head(self, count: int) -> Data:
        """Return the first examples of a pass, at most `count`, read anew in every pass."""
        part = copy.copy(self)
        part._found = self._found | {"count": min(count, len(self))}  # noqa: SLF001 - of the same class
        return part

    def in_memory(self) -> Examples:
        """Return all examples, read once into memory: faster, if they are few and their transforms not random."""
        inputs, labels = zip(*self.batches(), strict=True)
        return Examples(joined(inputs), joined(labels))

    def _split(self, batch: object, start: int | None = None, keys: Tensor | None = None) -> tuple[Tree, Tree]:
        """Return inputs and labels of a batch, whose examples have these keys, or follow one another from a start."""
        inputs, labels = split(batch, *self._selectors)
        places = None if start is None else range(start, start + (length(inputs) or 0))
        ensure_finite(inputs, self._source.name, places if keys is None else keys.tolist())
        return inputs, labels
