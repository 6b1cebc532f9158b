"""Read samples as datasets give them, as batches of inputs and labels, or say in one line why they cannot be used."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from objectives.trees import PerExample, Tree, leaves, length, map_tensors, shape_words

if TYPE_CHECKING:
    from collections.abc import Iterator

# A key or an index of a sample, several of them for several inputs, or a function of the collated batch.
Selector: TypeAlias = "int | str | tuple[int | str, ...] | Callable[[Any], Any] | None"

PAIR = 2  # values of a sample of input and label
WAY_OUT = "name the parts: Examples.of(source, inputs={inputs}, labels={labels})"


class NotFinite(ValueError):
    """A number that a source gave is NaN or infinite: no network is to blame, and no measurement counts."""


def ensure_finite(tree: Tree, name: str, places: Sequence[int] | None, kind: str = "inputs") -> None:
    """Check that the inputs or the labels of a batch are finite numbers.

    Parameters
    ----------
    tree, name
        The inputs or labels, and the name of their source.
    places
        Where the examples of the batch are in the source, None if that is not known.
    kind
        What they are, as the message says.

    Raises
    ------
    NotFinite
        If one is not; the message names its place.
    """
    if isinstance(tree, PerExample):
        for at, item in enumerate(tree):
            if not all(map(_is_finite, leaves(item))):
                raise _not_finite(at, name, places, kind)
        return
    for tensor in leaves(tree):
        if not _is_finite(tensor):
            first = (~tensor.flatten(1).isfinite().all(1) if tensor.dim() > 1 else ~tensor.isfinite()).nonzero()[0]
            raise _not_finite(int(first), name, places, kind)


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _not_finite(at: int, name: str, places: Sequence[int] | None, kind: str) -> NotFinite:
    which = f"example {at} of a batch" if places is None else f"the example at index {places[at]}"
    return NotFinite(
        f"all {kind} must be finite, but {which} that the {name} gave contains nan or infinity; repair it or leave it "
        "out, or look for a division by zero in the transform"
    )


def collated(samples: Sequence[Any]) -> Any:  # noqa: ANN401 - the batch has the structure of the samples
    """Return a batch as `torch.utils.data.default_collate` does; labels that cannot be stacked stay a list.

    Raises
    ------
    ValueError
        If the samples are no tensors, or the inputs have several sizes; the message says what was got.
    """
    try:
        return default_collate(list(samples))
    except (TypeError, RuntimeError):
        return _collated_by_part(samples)


def split(batch: object, inputs: Selector = None, labels: Selector = None) -> tuple[Tree, Tree]:
    """Return the inputs and the labels of a collated batch; the labels are None where there are none.

    Parameters
    ----------
    batch
        What a loader gave: (inputs, labels), inputs alone, or with more parts, if the two selectors name them.
    inputs, labels
        Which parts are the inputs and the labels.

    Raises
    ------
    ValueError
        If it is not clear what the inputs are, or they are not tensors with one number of examples.
    """
    if inputs is not None:
        chosen, answers = _selected(batch, inputs), None if labels is None else _selected(batch, labels)
    elif isinstance(batch, tuple | list) and len(batch) == PAIR:
        chosen, answers = batch
    elif isinstance(batch, Tensor):
        chosen, answers = batch, None
    else:
        raise ValueError(_unclear(batch))
    chosen = map_tensors(_as_tensors(chosen), lambda tensor: tensor)
    count = length(chosen)
    if count is None:
        raise ValueError(
            f"inputs must be tensors of one number of examples, but got {shape_words(chosen)}; convert them in the "
            "transform of the dataset, such as torchvision.transforms.ToTensor()"
        )
    return chosen, _labels(_as_tensors(answers), count)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the random numbers that transforms draw, from torch, NumPy and Python; restore their states afterwards."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - transforms use the global generator
    with torch.random.fork_rng(devices=[]):
        seed_all(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def seed_all(seed: int) -> None:
    """Seed the global random numbers of torch, NumPy and Python, which transforms and dropout draw."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - transforms use the global generator


def _collated_by_part(samples: Sequence[Any]) -> Any:  # noqa: ANN401
    """Collate each part of the samples by itself; the first part, or the only one, must be tensors of one shape."""
    first = samples[0]
    if isinstance(first, Mapping):
        return {name: _stacked_or_list([sample[name] for sample in samples]) for name in first}
    if isinstance(first, tuple | list) and len({len(sample) for sample in samples}) == 1:
        parts = [[sample[index] for sample in samples] for index in range(len(first))]
        return (_stacked(parts[0]), *(_stacked_or_list(part) for part in parts[1:]))
    return _stacked(samples)


def _stacked_or_list(part: Sequence[Any]) -> Any:  # noqa: ANN401
    try:
        return default_collate(list(part))
    except (TypeError, RuntimeError):
        return PerExample(map_tensors(item, lambda tensor: tensor) for item in part)


def _stacked(part: Sequence[Any]) -> Any:  # noqa: ANN401
    try:
        return default_collate(list(part))
    except (TypeError, RuntimeError) as error:
        shapes = list(dict.fromkeys(shape_words(item) for item in part))
        if leaves(part[0]):
            raise ValueError(
                f"inputs must all have one shape, but got {' and '.join(shapes[:2])}; resize, crop or pad them in the "
                "transform of the dataset, or with the collate_fn of a DataLoader"
            ) from error
        raise ValueError(
            f"inputs must be tensors, but got {shapes[0]}; convert them in the transform of the dataset, such as "
            "torchvision.transforms.ToTensor()"
        ) from error


def _selected(batch: Any, selector: Selector) -> Any:  # noqa: ANN401
    if isinstance(selector, tuple):
        parts = [_selected(batch, key) for key in selector]
        return dict(zip(selector, parts, strict=True)) if isinstance(batch, Mapping) else tuple(parts)
    if callable(selector):
        return selector(batch)
    try:
        return batch[selector]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"a sample must have the part {selector!r}, but got {shape_words(batch)}") from error


def _labels(labels: Any, count: int) -> Tree:  # noqa: ANN401
    """Return the labels of a batch of `count` examples as a tree whose tensors count examples, or one by one."""
    if labels is None:
        return None
    if isinstance(labels, list | PerExample) and not (leaves(labels) and length(tuple(labels)) == count):
        if len(labels) == count:
            return PerExample(labels)
        raise ValueError(f"labels must be one for each of {count} examples, but got {shape_words(labels)}")
    tree = map_tensors(labels, lambda tensor: tensor)
    if length(tree) != count:
        raise ValueError(f"labels must be one for each of {count} examples, but got {shape_words(tree)}")
    return tree


def _as_tensors(value: Any) -> Any:  # noqa: ANN401
    """Return the value with arrays of NumPy as tensors."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        return torch.as_tensor(value)
    return value


def _unclear(batch: object) -> str:
    """Say that a batch has no two parts, what was got, and how to name the parts."""
    if isinstance(batch, Mapping):
        keys = [str(key) for key in batch]
        way_out = WAY_OUT.format(inputs=repr(keys[0]), labels=repr(keys[1]) if len(keys) > 1 else None)
        return f"samples must be (input, label), but got dicts with {', '.join(map(repr, keys))}; {way_out}"
    if isinstance(batch, tuple | list):
        way_out = WAY_OUT.format(inputs=0, labels=1)
        return f"samples must be (input, label), but got {len(batch)} values, {shape_words(batch)}; {way_out}"
    return (
        f"samples must be (input, label) with a tensor as input, but got {shape_words(batch)}; convert them in the "
        "transform of the dataset, such as torchvision.transforms.ToTensor()"
    )
