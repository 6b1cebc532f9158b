"""Batches of any structure: tensors in tuples, lists, dicts and dataclasses, whose first dimension counts examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Tree: TypeAlias = (
    Any  # a tensor, or a tuple, dict or dataclass of trees; as labels also a list with one item an example
)

SHOWN = 4  # most parts of a tuple or list that are shown in a message


class PerExample(list[Any]):
    """Labels that cannot be stacked, such as the boxes of each image: a list with one item for each example."""


def map_tensors(tree: Tree, function: Callable[[Tensor], Any]) -> Tree:  # noqa: PLR0911 - one for each structure
    """Return a tree of the same structure with `function` of every tensor; all else stays as it is."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, PerExample):
        return PerExample(map_tensors(item, function) for item in tree)
    if isinstance(tree, Mapping):
        return {name: map_tensors(item, function) for name, item in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(item, function) for item in tree))
    if isinstance(tree, tuple | list):
        return tuple(map_tensors(item, function) for item in tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        changed = {field.name: map_tensors(getattr(tree, field.name), function) for field in dataclasses.fields(tree)}
        return dataclasses.replace(tree, **changed)
    return tree


def leaves(tree: Tree) -> list[Tensor]:
    """Return the tensors of a tree, in order."""
    found: list[Tensor] = []
    map_tensors(tree, found.append)
    return found


def length(tree: Tree) -> int | None:
    """Return the number of examples in a batch; None if its tensors have none in common."""
    if isinstance(tree, PerExample):
        return len(tree)
    counts = {len(tensor) if tensor.dim() else -1 for tensor in leaves(tree)}
    return counts.pop() if len(counts) == 1 and -1 not in counts else None


def at(tree: Tree, index: slice | Tensor) -> Tree:
    """Return the examples of a batch at a slice or at indices."""
    if isinstance(tree, PerExample):
        return PerExample(tree[index] if isinstance(index, slice) else [tree[i] for i in index.tolist()])
    return map_tensors(tree, lambda tensor: tensor[index])


def run(model: Callable[..., Any], inputs: Tree) -> Tree:
    """Return the outputs of a network; a tuple of inputs is passed by position, a dict by name."""
    if isinstance(inputs, tuple):
        return model(*inputs)
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def joined(trees: Sequence[Tree]) -> Tree:
    """Return one batch of several batches of the same structure."""
    first = trees[0]
    if isinstance(first, PerExample):
        return PerExample(item for tree in trees for item in tree)
    columns = zip(*(leaves(tree) for tree in trees), strict=True)
    return rebuilt(first, [torch.cat(column) for column in columns])


def rebuilt(structure: Tree, tensors: Sequence[Tensor]) -> Tree:
    """Return a tree of the same structure with other tensors, in order."""
    remaining = iter(tensors)
    return map_tensors(structure, lambda _: next(remaining))


def moved(tree: Tree, device: torch.device | str) -> Tree:
    """Return the tree on a device."""
    return map_tensors(tree, lambda tensor: tensor.to(device))


def like(tree: Tree, other: Tree) -> Tree:
    """Return the part of a tree that has the structure of another: of dicts the keys of the other, in its order.

    Raises
    ------
    ValueError
        If a part is missing.
    """
    if isinstance(other, Mapping) and isinstance(tree, Mapping) and set(other) <= set(tree):
        return {name: like(tree[name], part) for name, part in other.items()}
    if len(leaves(tree)) < len(leaves(other)):
        raise ValueError(f"outputs must have the parts {shape_words(other)}, but got {shape_words(tree)}")
    return tree


def shapes_of(tree: Tree) -> list[Any]:
    """Return the shape of one example: a list of numbers, of several tensors a list of such lists."""
    shapes = [list(tensor.shape[1:]) for tensor in leaves(tree)]
    return shapes[0] if len(shapes) == 1 else shapes


def one_shape(tree: Tree, start: int = 0) -> str:
    """Return the shape of a tensor from dimension `start`, as a tuple; of other trees what `shape_words` says."""
    return str(tuple(tree.shape[start:])) if isinstance(tree, Tensor) else shape_words(tree)


def shape_words(tree: Tree) -> str:  # noqa: PLR0911 - one for each structure
    """Describe a tree in a few words: types, shapes, and the keys of dicts."""
    if isinstance(tree, Tensor):
        kind = str(tree.dtype).removeprefix("torch.")
        return f"{kind} {tuple(tree.shape)}"
    if tree is None:
        return "none"
    if isinstance(tree, PerExample):
        return f"a list of {len(tree)}, the first {shape_words(tree[0])}"
    if isinstance(tree, Mapping):
        return "{" + ", ".join(f"{name!r}: {shape_words(item)}" for name, item in tree.items()) + "}"
    if isinstance(tree, tuple | list):
        shown = [shape_words(item) for item in tree[:SHOWN]]
        return "(" + ", ".join(shown + ["..."] * (len(tree) > SHOWN)) + ")"
    if isinstance(tree, int | float | str):
        return repr(tree)
    size = f" of size {tree.size}" if isinstance(getattr(tree, "size", None), tuple) else ""  # of an image of PIL
    return type(tree).__name__ + size
