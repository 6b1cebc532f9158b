"""Replace recurrent layers by ones that consist of linear layers, which can be compressed."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from spaces.network.layers import replace_module
from spaces.network.recurrent import Recurrent, RecurrentCell
from spaces.network.rewriting import modules_to_rewrite, rewritten
from spaces.network.tensors import run, some

if TYPE_CHECKING:
    from spaces.network.tensors import Inputs

SEQUENCE_KINDS = (nn.LSTM, nn.GRU, nn.RNN)
CELL_KINDS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)


def unfold_recurrence(model: nn.Module, example: Inputs) -> nn.Module:
    """Return a network with the same outputs whose recurrent layers and cells consist of linear layers.

    Parameters
    ----------
    model
        The network; it is not changed.
    example
        A batch of inputs on the device of the network, shape (B, ...); the outputs are compared on the first two.

    Returns
    -------
    nn.Module
        A new network, or `model` itself if there is nothing to replace. See `kept_recurrence` for what is kept.
    """
    new = rewritten(model, example, modules_to_rewrite(model, _is_plain), _unfold)
    layers = modules_to_rewrite(new, lambda module: isinstance(module, Recurrent) and module.returns_states)
    return rewritten(new, example, layers, _drop_states)


def _is_plain(module: nn.Module) -> bool:
    return type(module) in (*SEQUENCE_KINDS, *CELL_KINDS)


def _unfold(root: nn.Module, aliases: list[str]) -> None:
    """Replace one module, in place, under all its names."""
    module: Any = root.get_submodule(aliases[0])
    with torch.enable_grad():
        new = (Recurrent if isinstance(module, SEQUENCE_KINDS) else RecurrentCell)(module).train(module.training)
    replace_module(root, aliases[0], new)


def _drop_states(root: nn.Module, aliases: list[str]) -> None:
    """Let a layer return no last states, which tie the units of all layers and directions, where nothing reads them."""
    new = copy.deepcopy(root.get_submodule(aliases[0]))
    assert isinstance(new, Recurrent)
    new.returns_states = False
    replace_module(root, aliases[0], new)


def kept_recurrence(model: nn.Module, example: Inputs) -> dict[str, str]:
    """Return the recurrent modules of torch that `unfold_recurrence` does not replace, each with the reason.

    Parameters
    ----------
    model
        The network; it is not changed.
    example
        A batch of inputs, shape (B, ...); the network runs on the first.
    """
    kinds = (*SEQUENCE_KINDS, *CELL_KINDS)
    modules = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    if modules:
        unfolded = dict(unfold_recurrence(model, example).named_modules())
        modules = {name: module for name, module in modules.items() if type(unfolded.get(name)) is type(module)}
    if not modules:
        return {}
    packed: set[str] = set()
    handles = [
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: packed.add(name) if inputs and isinstance(inputs[0], PackedSequence) else None
        )
        for name, module in modules.items()
    ]
    try:
        with torch.no_grad():
            run(model, some(example, slice(1)))
    finally:
        for handle in handles:
            handle.remove()
    replaceable = {name for names in modules_to_rewrite(model, _is_plain) for name in names}
    return {name: _reason(module, name in packed, name in replaceable) for name, module in modules.items()}


def _reason(module: nn.Module, packed: bool, replaceable: bool) -> str:  # noqa: FBT001
    kind = type(module).__name__
    if packed:
        return (
            f"{kind} reads packed sequences, whose steps depend on the lengths of the inputs; padded sequences of one "
            "length can be compressed"
        )
    if not _is_plain(module):
        return f"{kind} is derived from torch's class, so what it computes is unknown"
    if not replaceable:
        return f"{kind} has hooks, or another module holds its weights too"
    return f"the network reads more of {kind} than its outputs"
