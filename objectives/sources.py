"""Sources of data: datasets and loaders of torch, and iterables of other libraries, read in one way."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from objectives.identity import description
from objectives.samples import collated, seeded
from objectives.trees import at, leaves

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

BUFFER = 4  # times as many examples are read of a stream as are drawn from it (chosen)
# words in the text of transforms that draw random numbers
RANDOM_TRANSFORMS = re.compile(r"Random|Jitter|Augment|MixUp|CutMix|Erasing|AugMix|Noise|Elastic", re.IGNORECASE)


class Source:
    """A dataset or a loader.

    Parameters
    ----------
    given
        A map-style dataset, an iterable dataset, a loader, or another iterable of batches.

    Attributes
    ----------
    pool
        The keys of the examples that training may give, in order; empty if they have none.

    Raises
    ------
    ValueError
        If it is none of these.
    """

    def __init__(self, given: object) -> None:
        self.loader = given if isinstance(given, DataLoader) else None
        self.dataset: Any = given.dataset if isinstance(given, DataLoader) else given
        self.by_index = hasattr(self.dataset, "__getitem__") and not isinstance(self.dataset, IterableDataset | dict)
        self.by_index = self.by_index and isinstance(self.dataset, Sized)
        if not self.by_index and (not isinstance(self.dataset, Iterable) or isinstance(self.dataset, Iterator)):
            raise ValueError(
                "a data source must be a Dataset, a DataLoader or an iterable of batches that can be read again, but "
                f"got {type(given).__name__}"
            )
        self.name = type(given).__name__
        with seeded(0):  # a sampler may draw of the global random numbers, which are those of a training later
            self.pool = self._pool()

    @property
    def _usual(self) -> BatchSampler | None:
        """The batch sampler of a loader that makes batches of a sampler as torch does; None for all else."""
        sampler = None if self.loader is None or not self.by_index else self.loader.batch_sampler
        return sampler if type(sampler) is BatchSampler else None

    @property
    def batch_size(self) -> int | None:
        """The batch size of a loader, the mean one where it has a batch sampler of its own; None without a loader."""
        if self._usual is not None:
            return int(self._usual.batch_size)
        if self.loader is None or self.loader.batch_size is not None:
            return None if self.loader is None else self.loader.batch_size
        batches, examples = self.batch_count(), self.count()
        return max(1, examples // batches) if batches and examples else None

    @property
    def looks_random(self) -> bool:
        """Whether a transform of the dataset, by its name, draws random numbers."""
        return bool(RANDOM_TRANSFORMS.search(description(self.dataset)))

    def count(self) -> int | None:
        """Return the number of examples of a pass for measurements; None if only reading them tells."""
        if not self.by_index:
            return _length(self.dataset) if isinstance(self.dataset, IterableDataset) else None
        if self.loader is None:
            return len(self.dataset)
        return None if self._usual is None else _length(self._usual.sampler)

    def batch_count(self) -> int | None:
        """Return the number of batches of a pass for training, as a loader has them; None without a loader."""
        return None if self.loader is None else _length(self.loader)

    def once(self, size: int) -> Iterator[Any]:
        """Yield batches of all examples once, without those that a loader adds or drops for training."""
        loader, usual = self.loader, self._usual
        if loader is None:
            if not self.by_index and not isinstance(self.dataset, IterableDataset):
                yield from self.dataset
            else:
                yield from DataLoader(self.dataset, batch_size=size, collate_fn=collated)
        elif usual is None and (self.by_index or loader.batch_size is None):
            yield from loader  # the dataset, or a sampler of its own, makes the batches
        else:
            settings = self._workers(loader) | {"generator": torch.Generator()}  # the global one is that of a training
            if usual is not None:
                settings["sampler"] = _in_order(usual.sampler, self.dataset)
            yield from DataLoader(self.dataset, self.batch_size, collate_fn=self._collate(), **settings)

    def passes(self, size: int, generator: torch.Generator) -> Iterator[Iterator[tuple[Tensor | None, Any]]]:
        """Yield passes for training, each of which yields places and batches; the places are None where unknown.

        Generators of the loader's own are seeded anew, so that a training does not depend on those before it.
        """
        for own in self._generators():
            own.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        loader = self._own if self.loader is not None and self.by_index else self._training_loader(size, generator)
        while True:
            if isinstance(loader, DataLoader) and isinstance(loader.dataset, _Placed):
                yield ((_places(places), batch) for places, batch in loader)
            else:
                yield ((None, batch) for batch in loader)

    def keyed(self, size: int) -> Iterator[tuple[Tensor, Any]]:
        """Yield keys and batches of the examples of `pool`, each once, in order; batches as large as the loader's."""
        if not self.pool:
            return
        settings: dict[str, Any] = {} if self.loader is None else self._workers(self.loader)
        settings |= {"generator": torch.Generator(), "collate_fn": _CollatePlaced(self._collate())}  # as in `once`
        size = self.batch_size or size
        with seeded(0):
            for keys, batch in DataLoader(_Placed(self.dataset), size, sampler=self.pool, **settings):
                yield torch.tensor(keys), batch

    def drawn(self, count: int, seed: int, noise: int | None = None) -> Iterator[Any]:
        """Yield batches of at most `count` examples in all, drawn with a seed; their transforms draw from `noise`."""
        generator = torch.Generator().manual_seed(seed)
        with seeded(seed if noise is None else noise):
            if self.by_index and (self.loader is None or self.loader.batch_sampler is not None):
                chosen = torch.randperm(len(self.pool), generator=generator)[:count].tolist()
                if chosen:
                    yield self._collate()([self.dataset[self.pool[index]] for index in chosen])
                return
            yield from _drawn_of(self.once(count), count, generator)

    def _pool(self) -> Sequence[Any]:
        """Return the keys of the examples that training may give: all, or those that the loader's sampler chooses."""
        if not self.by_index or (self.loader is not None and self.loader.batch_sampler is None):
            return ()
        if self.loader is None:
            return range(len(self.dataset))
        if self._usual is None:
            assert self.loader.batch_sampler is not None
            return sorted(set(itertools.chain(*self.loader.batch_sampler)))
        if isinstance(self._usual.sampler, RandomSampler | SequentialSampler):
            return range(len(self.dataset))
        return sorted(set(self._usual.sampler))

    def _generators(self) -> list[torch.Generator]:
        """Return the generators that the user gave to the loader and its samplers, each once."""
        batches = getattr(self.loader, "batch_sampler", None)
        holders = (self.loader, batches, getattr(self.loader, "sampler", None), getattr(batches, "sampler", None))
        found = [getattr(holder, "generator", None) for holder in holders]
        return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())

    def _collate(self) -> Callable[[list[Any]], Any]:
        own = None if self.loader is None else self.loader.collate_fn
        return collated if own is None or own is torch.utils.data.default_collate else own

    def _workers(self, loader: DataLoader[Any]) -> dict[str, Any]:
        """Return the settings of a loader's workers."""
        names = ("num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context")
        settings: dict[str, Any] = {name: getattr(loader, name) for name in names}
        if loader.num_workers:
            settings["prefetch_factor"] = loader.prefetch_factor
        return settings

    def _training_loader(self, size: int, generator: torch.Generator) -> Iterable[Any]:
        """Return what gives the batches for training: of a dataset a new loader; of all else the source itself."""
        if not self.by_index:
            if isinstance(self.dataset, IterableDataset) and self.loader is None:
                return DataLoader(self.dataset, batch_size=size, collate_fn=collated)
            return self.dataset if self.loader is None else self.loader
        placed = _Placed(self.dataset)
        sampler, size = RandomSampler(placed, generator=generator), min(size, len(placed))
        collate = _CollatePlaced(self._collate())
        return DataLoader(placed, batch_size=size, sampler=sampler, drop_last=True, collate_fn=collate)

    @functools.cached_property
    def _own(self) -> DataLoader[Any]:
        """The loader of the user, whose samples come with their keys; kept, since it may have persistent workers."""
        loader, placed = self.loader, _Placed(self.dataset)
        assert loader is not None
        settings = self._workers(loader) | {"generator": loader.generator}
        if loader.num_workers:
            settings["persistent_workers"] = loader.persistent_workers
        if loader.batch_sampler is None:  # each sample is a batch
            return DataLoader(placed, batch_size=None, sampler=loader.sampler, collate_fn=_without_key, **settings)
        collate = _CollatePlaced(self._collate())
        return DataLoader(placed, batch_sampler=loader.batch_sampler, collate_fn=collate, **settings)


class _Placed(Dataset[Any]):
    """A dataset whose samples come with their keys."""

    def __init__(self, dataset: Any) -> None:  # noqa: ANN401
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, key: Any) -> tuple[Any, Any]:  # noqa: ANN401
        return key, self._dataset[key]


class _CollatePlaced:
    """A `collate_fn` that keeps the keys apart; a class, since workers may have to be sent it."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, samples: list[tuple[Any, Any]]) -> tuple[list[Any], Any]:
        keys, given = zip(*samples, strict=True)
        return list(keys), self._collate(list(given))


def _without_key(sample: Any) -> tuple[None, Any]:  # noqa: ANN401
    """Return a sample that is a batch already; without a place, since it has many."""
    return None, torch.utils.data.default_convert(sample[1])


def _in_order(sampler: Any, dataset: Any) -> Any:  # noqa: ANN401
    """Return the sampler of measurements: all examples in order, unless the sampler chooses among them."""
    shuffles_all = isinstance(sampler, RandomSampler) and not sampler.replacement and len(sampler) == len(dataset)
    return SequentialSampler(dataset) if shuffles_all else sampler


def _drawn_of(batches: Iterator[Any], count: int, generator: torch.Generator) -> Iterator[Any]:
    """Yield `count` examples that are drawn at random from the first `BUFFER` times as many."""
    kept, read = [], 0
    for batch in batches:
        size = len(next(iter(leaves(batch)), ()))
        kept.append((read, size, batch))
        read += size
        if read >= BUFFER * count:
            break
    chosen = torch.randperm(read, generator=generator)[:count].sort().values
    for start, size, batch in kept:
        inside = chosen[(chosen >= start) & (chosen < start + size)] - start
        if len(inside):
            yield at(batch, inside)


def _places(keys: list[Any] | None) -> Tensor | None:
    return torch.tensor(keys) if keys is not None and all(isinstance(key, int) for key in keys) else None


def _length(value: object) -> int | None:
    """Return the length of a value; None if it has none, as loaders of iterable datasets."""
    try:
        return len(value)  # type: ignore[arg-type]
    except TypeError:
        return None
