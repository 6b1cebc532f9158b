"""The grids of codes that a file takes and gives, from what its network reads and gives."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from objectives.runtimes.errors import ExportError
from objectives.runtimes.passes.grid import INT8_MAX, INT8_MIN, QUANTIZE, Grid
from objectives.trees import Tree, at, leaves, length, map_tensors, rebuilt, run

if TYPE_CHECKING:
    from collections.abc import Sequence

MEASURED_AT_ONCE = 64  # examples of a batch on which ranges are measured (chosen)
UINT8_MAX = INT8_MAX - INT8_MIN


def measured_grids(
    network: nn.Module, examples: Sequence[Tree], kind: str
) -> tuple[list[Grid | None], list[Grid | None]]:
    """Return the grid of each input and each output tensor; None where they are no floats.

    Parameters
    ----------
    network
        The network in evaluation mode, on the CPU.
    examples
        Batches of its inputs, of any sizes; grids cover their values and those of the outputs, and zero.
    kind
        ``int8`` or ``uint8``.

    Raises
    ------
    ExportError
        If a value is not finite.
    """
    reads = _Reads(at(examples[0], slice(1)))
    with torch.no_grad(), reads:
        run(network, reads.inputs)
    inputs, outputs = _ranges(network, examples)
    taken = [_grid(*pair, kind) for pair in zip(inputs, reads.grids(), strict=True)]
    return taken, [_grid(found, None, kind) for found in outputs]


def _ranges(whole: nn.Module, examples: Sequence[Tree]) -> tuple[list[tuple[float, float] | None], ...]:
    """Return the least and the largest value of each input and output tensor; None where they are no floats."""
    sides: list[list[list[tuple[float, float] | None]]] = [[], []]
    starts = [(one, start) for one in examples for start in range(0, length(one) or 1, MEASURED_AT_ONCE)]
    for example, start in starts:
        few = map_tensors(at(example, slice(start, start + MEASURED_AT_ONCE)), torch.clone)  # a network may write there
        sides[0].append([_range(tensor) for tensor in leaves(few)])
        with torch.no_grad():
            sides[1].append([_range(tensor) for tensor in leaves(run(whole, few))])
    return tuple([_joined(column) for column in zip(*side, strict=True)] for side in sides)


def _range(tensor: Tensor) -> tuple[float, float] | None:
    if not tensor.is_floating_point():
        return None
    low, high = float(tensor.min()), float(tensor.max())
    if not math.isfinite(high - low):
        raise ExportError(
            f"codes of 8 bits need finite numbers, but the calibration gave {low:g} to {high:g}; use float32"
        )
    return low, high


def _joined(ranges: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    known = [one for one in ranges if one is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def _grid(found: tuple[float, float] | None, known: Grid | None, kind: str) -> Grid | None:
    """Return the grid of a tensor with codes of a type."""
    if found is None:
        return None
    grid = known or Grid.over(*found)
    zero = grid.zero - grid.lowest  # from the lowest code
    if kind == "int8":
        return Grid(grid.scale, zero + INT8_MIN)
    return Grid(grid.scale, zero, 0, UINT8_MAX, torch.uint8)


class _Reads(TorchDispatchMode):
    """Notes which operators read the inputs of a network, or views of them."""

    def __init__(self, inputs: Tree) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inputs = rebuilt(inputs, [tensor.clone() for tensor in leaves(inputs)])
        self._places = {tensor.untyped_storage().data_ptr(): place for place, tensor in enumerate(leaves(self.inputs))}
        self._found: list[set[Grid | None]] = [set() for _ in self._places]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        views = {_storage(one) for one in tree_leaves(result) if isinstance(one, Tensor)}
        for tensor in (one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)):
            place = self._places.get(_storage(tensor))
            if place is not None and func == QUANTIZE:
                self._found[place].add(Grid(*args[1:]))
            elif place is not None and (func._schema.is_mutable or _storage(tensor) not in views):  # noqa: SLF001
                self._found[place].add(None)
        return result

    def grids(self) -> list[Grid | None]:
        """Return for each input the grid of 8 bits on which all read it, None if there is none."""
        only = [next(iter(found)) if len(found) == 1 else None for found in self._found]
        return [grid if grid is not None and grid.highest - grid.lowest == UINT8_MAX else None for grid in only]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
