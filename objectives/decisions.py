"""What a forward pass decides on the values of tensors, such as `if (std == 0).any()`, where these are constants.

Tools that follow a network without values cannot decide. Where the values do not depend on the inputs, the decisions
are made once, with values, and repeated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from objectives.trees import Tree, at, leaves, map_tensors, run

if TYPE_CHECKING:
    from collections.abc import Sequence

DECIDING = (
    Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.item, Tensor.tolist, Tensor.is_nonzero,
    torch.is_nonzero,
)  # fmt: skip


class Decision(NamedTuple):
    """The value of a tensor that became a Python value, whether it depends on the inputs, and the function."""

    value: Any
    depends: bool
    function: Any = Tensor.__bool__


def decisions_of(model: nn.Module, example: Tree) -> tuple[Decision, ...]:
    """Return the decisions of a forward pass in order; none if none is the same for all inputs.

    Parameters
    ----------
    model
        The network, in evaluation mode, on the device of the example.
    example
        A batch of inputs; only the first one is used.
    """
    one = at(example, slice(1))
    with torch.no_grad():
        plain = _Recorder(frozenset())
        with plain:
            run(model, one)
        if not plain.found:
            return ()
        first, second = (_recorded(model, inputs) for inputs in (one, map_tensors(one, lambda x: torch.cat((x, x)))))
    if len(first) != len(second):  # they depend on the number of examples
        return ()
    found = tuple(
        one._replace(depends=one.depends or other.depends or one.value != other.value)
        for one, other in zip(first, second, strict=True)
    )
    return () if all(decision.depends for decision in found) else found


class Repeat(TorchFunctionMode):
    """Repeats those decisions that do not depend on the inputs.

    Parameters
    ----------
    decisions
        Of a forward pass, in order.
    """

    def __init__(self, decisions: Sequence[Decision]) -> None:
        super().__init__()
        self._left = list(decisions)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Return the known value of a decision, and compute everything else."""
        if func in DECIDING and self._left and self._left[0].function == func:
            decision = self._left.pop(0)
            if not decision.depends:
                return decision.value
        return func(*args, **(kwargs or {}))


class _Recorder(TorchFunctionMode):
    """Records the decisions; `derived` holds the memory of tensors that depend on the inputs."""

    def __init__(self, derived: set[int] | frozenset[int]) -> None:
        super().__init__()
        self.found: list[Decision] = []
        self._derived = derived

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        value = func(*args, **(kwargs or {}))
        if func in DECIDING:
            self.found.append(Decision(value, _memory(args[0]) in self._derived, func))
        return value


class _Derived(TorchDispatchMode):
    """Finds the memory of all tensors that depend on the inputs, also through views and writes in place."""

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory = {_memory(tensor) for tensor in inputs}
        self._kept = list(inputs)  # so that no memory is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        given, got = ([x for x in tree_leaves(tree) if isinstance(x, Tensor)] for tree in ((args, kwargs), result))
        if any(_memory(tensor) in self.memory for tensor in given):
            self.memory.update(map(_memory, got))
        self._kept += got
        return result


def _recorded(model: nn.Module, inputs: Tree) -> list[Decision]:
    derived = _Derived(leaves(inputs))
    recorder = _Recorder(derived.memory)
    with derived, recorder:
        run(model, inputs)
    return recorder.found


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - its identity; an empty tensor has no address
