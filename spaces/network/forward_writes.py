"""Undo what a forward pass writes on the modules of its network, so that equal inputs always give equal outputs."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from spaces.network.tensors import CONTAINERS, holds_state, reachable

if TYPE_CHECKING:
    from collections.abc import Sequence

REGISTRIES = frozenset(vars(nn.Module()))  # what torch itself keeps on a module: parameters, hooks, the mode
PLAIN = (int, float, complex, str, bytes, bool, type(None), tuple)


class _Saved(NamedTuple):
    """A container or the attributes of an object, and a copy of its content."""

    place: Any
    content: Any


class UndoWrites:
    """The hooks of a network that undo what its forward pass writes on its modules.

    Attributes are undone in both modes, so that no tensor of a forward pass outlives it; buffers only in evaluation
    mode, since training is meant to change them.

    Parameters
    ----------
    buffers
        Names of the buffers that the network changes in evaluation mode.
    """

    def __init__(self, buffers: Sequence[str] = ()) -> None:
        self.buffers = tuple(buffers)
        self._saved: list[tuple[list[_Saved], list[tuple[nn.Module, str, Tensor]]]] = []

    def attach(self, model: nn.Module) -> None:
        """Act on every forward pass of the network and of its copies."""
        model.register_forward_pre_hook(self.before, prepend=True)
        model.register_forward_hook(self.after, always_call=True)

    def before(self, model: nn.Module, inputs: object) -> None:
        """Save the attributes, and let the forward pass write on copies of the buffers."""
        del inputs
        replaced = []
        holders = dict(model.named_modules())
        for buffer_name in () if model.training else self.buffers:
            owner, _, leaf = buffer_name.rpartition(".")
            holder = holders.get(owner)
            if holder is not None and holder._buffers.get(leaf) is not None:  # noqa: SLF001 - a step may have removed it
                buffer = holder.get_buffer(leaf)
                replaced.append((holder, leaf, buffer))
                holder._buffers[leaf] = buffer.clone()  # noqa: SLF001 - assigning would be taken for a new buffer
        self._saved.append((saved(model), replaced))

    def after(self, model: nn.Module, inputs: object, output: object) -> None:
        """Restore what was saved."""
        del model, inputs, output
        if not self._saved:
            return
        contents, buffers = self._saved.pop()
        restore(contents)
        for holder, leaf, buffer in buffers:
            holder._buffers[leaf] = buffer  # noqa: SLF001


def saved(model: nn.Module) -> list[_Saved]:
    """Return copies of the attributes of the modules, and of the containers and plain objects in them."""
    found = [_Saved(module, _own(module)) for module in model.modules()]
    for value in reachable(value for _, own in found for value in own.values()):
        if isinstance(value, CONTAINERS):
            found.append(_Saved(value, value.copy()))
        elif holds_state(value):
            found.append(_Saved(value, dict(vars(value))))
    return found


def _own(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in REGISTRIES}


def restore(contents: list[_Saved]) -> None:
    """Restore what was saved."""
    for place, content in contents:
        if isinstance(place, nn.Module):
            attributes = vars(place)
            for name in [name for name in attributes if name not in content and name not in REGISTRIES]:
                del attributes[name]
            attributes.update(content)
            continue
        items = place if isinstance(place, CONTAINERS) else vars(place)
        items.clear()
        items.extend(content) if isinstance(items, list | deque) else items.update(content)


def writes(contents: list[_Saved]) -> bool:
    """Whether anything differs from what was saved."""
    for place, content in contents:
        if isinstance(place, nn.Module):
            now: Any = _own(place)
        else:
            now = place if isinstance(place, CONTAINERS) else vars(place)
        if isinstance(now, dict):
            if not _same(now, content):
                return True
        elif len(now) != len(content) or not all(map(_equal, now, content)):
            return True
    return False


def changed_buffers(model: nn.Module, before: dict[str, Tensor]) -> list[str]:
    """Return the names of the buffers that differ from earlier copies."""
    now = dict(model.named_buffers())
    return [name for name, old in before.items() if name in now and not _equal_tensors(now[name], old)]


def _same(now: dict[Any, Any], then: dict[Any, Any]) -> bool:
    return now.keys() == then.keys() and all(_equal(now[key], then[key]) for key in then)


def _equal(now: object, then: object) -> bool:
    return now is then or (type(now) is type(then) and isinstance(now, PLAIN) and not _tensors_in(now) and now == then)


def _tensors_in(value: object) -> bool:
    return isinstance(value, tuple) and any(isinstance(item, Tensor) or _tensors_in(item) for item in value)


def _equal_tensors(now: Tensor, then: Tensor) -> bool:
    return now.shape == then.shape and bool(torch.equal(now, then) or torch.allclose(now, then, 0, 0, equal_nan=True))
