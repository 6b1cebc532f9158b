"""The form in which a network enters: what the other parts of this package rely on holds from here on.

A network comes as its author uses it: wrapped, frozen, at another precision, with norms for several devices, with a
forward pass that leaves things on its modules. Here this is settled once, before the network is traced.
"""

from __future__ import annotations

import copy
import types
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from spaces.network.computed_weights import store_computed_weights
from spaces.network.copying import copied
from spaces.network.examples_first import ensure_batches, mixing_note
from spaces.network.forward_writes import UndoWrites, changed_buffers, restore, saved, writes
from spaces.network.layers import BATCH_NORMS, LAYER_TYPES, computes_as_torch, state_sizes
from spaces.network.messages import first_line, listed
from spaces.network.rewriting import modules_to_rewrite, seen_in_calls, with_layers
from spaces.network.seen_weights import with_seen_weights
from spaces.network.tensors import run, seeded_outputs, some, tensors, twice

if TYPE_CHECKING:
    from spaces.network.tensors import Inputs

FROZEN_NORM = {"weight", "bias", "running_mean", "running_var"}  # the buffers of a FrozenBatchNorm2d, in any library
NORM_OF_DIMENSIONS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


class Normalized(NamedTuple):
    """A network in the form that can be compressed.

    Attributes
    ----------
    model
        A new network in evaluation mode, on the device of the example: without wrappers, with 32-bit floats, every
        weight trainable, weights and BatchNorms plain, and a forward pass that leaves nothing on the modules.
    notes
        Sentences on what was changed that a user may not expect.
    """

    model: nn.Module
    notes: tuple[str, ...]


def normalized(model: nn.Module, example: Inputs) -> Normalized:
    """Return a network in the form that can be compressed, with the same outputs; `model` is not changed.

    Parameters
    ----------
    model
        Any network.
    example
        A batch of inputs, shape (B, ...); the network runs on the first two.

    Raises
    ------
    ValueError
        If the network cannot be copied, has layers without weights, does not run on two examples at once, or takes
        their first dimension for the steps of a sequence.
    """
    new = copied(model)
    _ensure_initialized(new)
    notes = [*_with_floats(new), *_trainable(new)]
    _return_self(new)
    new = new.to(tensors(example)[0].device).eval()
    notes += store_computed_weights(new)
    two = some(example, slice(2))
    _build_lazily(new, two)
    for layer in new.modules():
        if isinstance(layer, LAYER_TYPES) and computes_as_torch(layer):
            state_sizes(layer)
    notes += _without_in_place(new, two)
    new = _with_batch_norms(new, two)
    new, said = with_seen_weights(new, two)
    notes += said
    _undo_writes(new, two)
    return Normalized(new, tuple(filter(None, (*notes, mixing_note(new, two)))))


def _ensure_initialized(model: nn.Module) -> None:
    """Check that every layer has its weights.

    Raises
    ------
    ValueError
        If a lazy layer was never run.
    """
    every = (*model.named_parameters(), *model.named_buffers())
    lazy = dict.fromkeys(name.rpartition(".")[0] for name, tensor in every if is_lazy(tensor))
    if lazy:
        kinds = ", ".join(sorted({type(model.get_submodule(name)).__name__ for name in lazy}))
        raise ValueError(
            f"every layer must have its weights, but {listed(lazy)} ({kinds}) has none yet; load trained weights, or "
            "run the network once before you train it; remove a layer that never runs"
        )


def _with_floats(model: nn.Module) -> list[str]:
    """Convert all weights to 32-bit floats, in place, and those that were created in inference mode to usual ones."""
    kinds = {
        str(tensor.dtype).removeprefix("torch.")
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.is_floating_point() and tensor.dtype != torch.float32
    }
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        model._apply(torch.clone)  # noqa: SLF001 - what `to` and `float` use; they do not copy equal tensors
    if not kinds:
        return []
    model.float()
    return [f"the network's {' and '.join(sorted(kinds))} weights are converted to 32-bit floats"]


def _trainable(model: nn.Module) -> list[str]:
    """Make every weight trainable, in place."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    total = sum(1 for _ in model.parameters())
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    note = (
        f"{len(frozen)} of {total} weights are frozen (requires_grad=False) in the given network; candidates train "
        "all; layers that the forward calls under torch.no_grad() stay as they are"
    )
    return [note] if frozen else []


def _return_self(model: nn.Module) -> None:
    """Let `train` and `eval` return the module, as torch's own do, where a class defines its own."""
    for module in model.modules():
        for name, with_return in (("train", _train), ("eval", _eval)):
            if getattr(type(module), name) is not getattr(nn.Module, name):
                setattr(module, name, types.MethodType(with_return, module))


def _train(module: nn.Module, mode: bool = True) -> nn.Module:  # noqa: FBT001, FBT002 - the signature of torch
    type(module).train(module, mode)
    return module


def _eval(module: nn.Module) -> nn.Module:
    type(module).eval(module)
    return module


def _run(model: nn.Module, inputs: Inputs) -> None:
    """Run a network in evaluation mode; random numbers are fixed.

    Raises
    ------
    ValueError
        If the forward pass fails.
    """
    try:
        seeded_outputs(model, inputs)
    except Exception as error:
        ensure_batches(model, inputs, error)
        kinds = ((tensor.shape[1:], str(tensor.dtype).removeprefix("torch.")) for tensor in tensors(inputs))
        shapes = " and ".join(f"shape {(1, *shape)} and type {kind}" for shape, kind in kinds)
        raise ValueError(
            f"the network must accept the example, but its forward failed on a tensor of {shapes}: "
            f"{first_line(error)}; pass an example of the shape and type that the network is used with, or convert it "
            "in a first module of the network"
        ) from error


def _build_lazily(model: nn.Module, inputs: Inputs) -> None:
    """Run the network once, in place, to build what its first forward pass builds; else undo what that pass writes."""
    before, names = saved(model), [name for name, _ in _parts(model)]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    _run(model, inputs)
    if [name for name, _ in _parts(model)] != names:  # it built layers or weights, and may have noted that it did
        return
    restore(before)
    with torch.no_grad():
        for name in changed_buffers(model, buffers):
            model.get_buffer(name).copy_(buffers[name])


def _without_in_place(model: nn.Module, inputs: Inputs) -> list[str]:
    """Let activations return new tensors where writing in place prevents training."""
    writing = [name for name, module in model.named_modules() if getattr(module, "inplace", False) is True]
    if not writing or _can_train(model, inputs):
        return []
    tried = copy.deepcopy(model)
    for network in (tried, model):
        if network is model and not _can_train(tried, inputs):
            return []
        for name in writing:
            network.get_submodule(name).inplace = False  # type: ignore[assignment]
    return [f"{listed(writing)} no longer write in place, which prevented training"]


def _can_train(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a backward pass in training mode works."""
    tried = copy.deepcopy(model).train()
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            answers = [output for output in tensors(run(tried, twice(inputs))) if output.requires_grad]
            torch.stack([output.sum() for output in answers]).sum().backward()
    except Exception:  # noqa: BLE001 - whatever it is, it cannot
        return False
    return True


def _parts(model: nn.Module) -> list[tuple[str, object]]:
    return [*model.named_modules(), *model.named_parameters(), *model.named_buffers()]


def _undo_writes(model: nn.Module, inputs: Inputs) -> None:
    """Find out what a forward pass writes on the modules, in both modes, and let the network undo it, in place."""
    tried = copy.deepcopy(model)
    buffers = {name: buffer.clone() for name, buffer in tried.named_buffers()}
    before = saved(tried)
    _run(tried, inputs)
    changed = changed_buffers(tried, buffers)
    found = writes(before)
    if not found:
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                run(tried.train(), twice(inputs))
        except Exception:  # noqa: BLE001 - whether it can be trained is checked with the loss of the study
            found = True  # so that nothing is left behind by chance
        found = found or writes(before)
    if found or changed:
        UndoWrites(changed).attach(model)


def _with_batch_norms(model: nn.Module, inputs: Inputs) -> nn.Module:
    """Return the network with torch's BatchNorms in place of synchronized and of frozen ones, where outputs agree."""
    names = modules_to_rewrite(model, _is_other_norm)
    seen = seen_in_calls(model, inputs, names, lambda _, given, __: int(given[0].dim())) if names else {}
    norms = {
        name: _batch_norm(model.get_submodule(name), dimensions)
        for name, calls in seen.items()
        if calls and (dimensions := calls[-1]) is not None
    }
    return with_layers(model, inputs, names, norms)


def _is_other_norm(module: nn.Module) -> bool:
    if isinstance(module, _BatchNorm):
        plain = isinstance(module, nn.SyncBatchNorm) or type(module).forward is _BatchNorm.forward
        return plain and not isinstance(module, BATCH_NORMS)
    return set(module._buffers) >= FROZEN_NORM and not module._parameters  # noqa: SLF001 - those of this module alone


def _batch_norm(old: nn.Module, dimensions: int) -> nn.Module:
    """Return torch's BatchNorm with the weights and statistics of another kind of BatchNorm."""
    mean = old.running_mean
    size = old.num_features if isinstance(old, _BatchNorm) else len(mean)  # type: ignore[arg-type]
    new = NORM_OF_DIMENSIONS[dimensions](size, eps=float(getattr(old, "eps", 1e-5)))
    for name in ("momentum", "track_running_stats", "affine"):
        if hasattr(old, name):
            setattr(new, name, getattr(old, name))
    for name in ("weight", "bias"):
        value: Tensor | None = getattr(old, name)
        new.register_parameter(name, None if value is None else nn.Parameter(value.detach().clone()))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        if hasattr(old, name):
            setattr(new, name, getattr(old, name))
    return new.to(old.weight.device if isinstance(old.weight, Tensor) else "cpu").train(old.training)
