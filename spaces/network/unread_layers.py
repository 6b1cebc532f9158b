"""Layers that run although no output of the network depends on them, such as heads that only training returns.

Exported files do not have them. They are found from one forward pass: what was computed from what is followed back from
the outputs, by the memory of tensors, so that views and writes in place count as what they change.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spaces.network.layers import LAYER_TYPES, SHAPE_PRESERVING
from spaces.network.omission import ZeroOutput
from spaces.network.rewriting import agree, with_layers
from spaces.network.tensors import seeded_outputs, some

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch.utils.hooks import RemovableHandle

    from spaces.network.tensors import Inputs

WATCHED = (*LAYER_TYPES, *SHAPE_PRESERVING)
LEAVING = (Tensor.tolist, Tensor.numpy, Tensor.__array__)  # functions that give values to Python
LEAVING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}  # of operators that do, such as `item`


def without_unread_layers(model: nn.Module, example: Inputs) -> nn.Module:
    """Return a network in evaluation mode where zeros replace the layers and norms that no output depends on.

    Parameters
    ----------
    model
        A network in evaluation mode; it is not changed.
    example
        A batch of inputs, shape (B, ...); the outputs are compared on the first two.

    Returns
    -------
    nn.Module
        A new network, or `model` itself if there is no such layer, or none without which it runs.
    """
    names = unread(calls_read(model, some(example, slice(2))))
    zeros = {name: ZeroOutput(model.get_submodule(name)).eval() for name in names}
    return with_layers(model, example, [[name] for name in names], zeros)


def unread(calls: Mapping[str, tuple[bool, ...]]) -> tuple[str, ...]:
    """Return the names of the modules of which no call is read."""
    return tuple(name for name, read in calls.items() if not any(read))


def calls_read(model: nn.Module, example: Inputs) -> dict[str, tuple[bool, ...]]:
    """Return for each layer and norm that runs whether an output depends on it, call by call, in order of execution.

    Where that cannot be told, as for networks that compute outside of torch, every call counts as read.

    Parameters
    ----------
    model
        A network in evaluation mode; it is not changed.
    example
        A batch of inputs, shape (B, ...); all are used.
    """
    recorder = _Recorder()
    watched = {name: module for name, module in model.named_modules() if isinstance(module, WATCHED)}
    calls: dict[str, list[set[int]]] = {}

    def note(name: str, output: object) -> None:
        calls.setdefault(name, []).append(recorder.memory((output,)))

    try:
        with recorder.values, recorder:
            outputs = _outputs(model, example, watched, note)
        recorder.roots |= recorder.memory((outputs, list(model.buffers())))
        needed = recorder.needed()
        found = {name: tuple(not needed.isdisjoint(each) for each in every) for name, every in calls.items()}
        if names := [(name, at) for name, every in found.items() for at, read in enumerate(every) if not read]:
            _ensure_unread(model, example, watched, frozenset(names), outputs)
    except Exception:  # noqa: BLE001 - an unusual network may raise anything; all of it counts then
        return {name: (True,) * len(every) for name, every in calls.items()}
    return found


def _ensure_unread(
    model: nn.Module,
    example: Inputs,
    watched: Mapping[str, nn.Module],
    unread_calls: frozenset[tuple[str, int]],
    expected: list[Tensor],
) -> None:
    """Check that the outputs stay the same when these calls return noise: a kernel may read memory unseen.

    Raises
    ------
    ValueError
        If they do not.
    """
    numbers: dict[str, Iterator[int]] = {name: itertools.count() for name in watched}
    dice = torch.Generator().manual_seed(0)

    def disturb(name: str, output: object) -> object:
        if (name, next(numbers[name])) not in unread_calls or not isinstance(output, Tensor):
            return None
        return torch.randn(output.shape, generator=dice, dtype=output.dtype).to(output.device)

    got = _outputs(model, example, watched, disturb)
    if not agree(got, expected):
        raise ValueError("an output depends on a layer that no operator of torch passes on")


def _outputs(
    model: nn.Module, example: Inputs, watched: Mapping[str, nn.Module], hook: Callable[[str, object], object]
) -> list[Tensor]:
    """Return the outputs of a network, with a hook on these modules that gets their name and output."""
    handles: list[RemovableHandle] = [
        module.register_forward_hook(lambda _, __, output, name=name: hook(name, output))
        for name, module in watched.items()
    ]
    try:
        return seeded_outputs(model, example)
    finally:
        for handle in handles:
            handle.remove()


class _Operation(NamedTuple):
    """The memory that an operator read, and that it wrote."""

    read: set[int]
    written: set[int]


class _Recorder(TorchDispatchMode):
    """Records which memory each operator of a forward pass reads and writes.

    Memory is named by numbers that are not used twice, since a weak reference to it is kept.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.roots: set[int] = set()
        self.values = _Values(self)
        self._operations: list[_Operation] = []
        self._known: dict[int, StorageWeakRef] = {}

    def memory(self, tree: object) -> set[int]:
        """Return the memory of all tensors in nested containers."""
        found = set()
        for leaf in tree_leaves(tree):
            if isinstance(leaf, Tensor):
                reference = StorageWeakRef(leaf.untyped_storage())
                self._known.setdefault(reference.cdata, reference)
                found.add(reference.cdata)
        return found

    def needed(self) -> set[int]:
        """Return all memory on which the roots depend."""
        needed = set(self.roots)
        for read, written in reversed(self._operations):
            if not needed.isdisjoint(written):
                needed |= read
        return needed

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run an operator, and record it; what becomes a Python value decides what runs, so it is needed."""
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        read, written = self.memory((args, kwargs)), self.memory(result)
        if not LEAVING_TAGS.isdisjoint(function.tags):
            self.roots |= read
        written |= self.memory(list(_written_to(function, args, kwargs)))
        self._operations.append(_Operation(read, written))
        return result


class _Values(TorchFunctionMode):
    """Notes the memory of tensors whose values leave torch."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run a function."""
        if func in LEAVING:
            self._recorder.roots |= self._recorder.memory(args)
        return func(*args, **(kwargs or {}))


def _written_to(function: Any, args: Iterable[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:  # noqa: ANN401
    """Yield the arguments that an operator writes to."""
    arguments = function._schema.arguments  # noqa: SLF001 - it has no public name
    for argument, value in zip(arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield value
    for argument in arguments:
        if argument.name in kwargs and argument.alias_info is not None and argument.alias_info.is_write:
            yield kwargs[argument.name]
