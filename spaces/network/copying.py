"""Copy a network, without its wrappers and without the tensors that a forward pass left on it."""

from __future__ import annotations

import copy
import types
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim.swa_utils import AveragedModel

from spaces.network.messages import first_line
from spaces.network.tensors import reachable

if TYPE_CHECKING:
    from collections.abc import Iterable

FLOAT_BYTES = 4  # bytes of a 32-bit float, the narrowest that is compressed
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)  # each holds its network as `module`


def compressible_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a network that can be compressed as it is.

    Raises
    ------
    ValueError
        If the weights are narrower than 32 bits, if the network is TorchScript, or if it cannot be copied.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.element_size() < FLOAT_BYTES:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise ValueError(f"the network must have 32-bit floats, but {name!r} is {kind}; pass model.float()")
    for name, module in model.named_modules():
        if any(isinstance(hook, WeightNorm) for hook in module._forward_pre_hooks.values()):  # noqa: SLF001
            raise ValueError(
                f"{name!r} uses the old torch.nn.utils.weight_norm, which cannot be copied; "
                "torch.nn.utils.remove_weight_norm makes its weight a plain parameter"
            )
    return copied(model)


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a network, with the networks inside wrappers in place of the wrappers.

    Wrappers are `DataParallel`, `AveragedModel` and what `torch.compile` returns, at any depth. Tensors with gradients
    that an earlier forward pass left on its modules, which torch does not copy, are copied without gradients.

    Raises
    ------
    ValueError
        If the network is TorchScript, or if it cannot be copied; the message names the attribute.
    """
    modules = list(model.modules())
    if any(isinstance(module, torch.jit.ScriptModule) for module in modules):
        raise ValueError(
            "a TorchScript network does not show its layers; pass the torch.nn.Module that it was made from"
        )
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in kept_tensors(modules)}
    try:
        for module in reversed(modules):  # the innermost wrapper first
            inner = _wrapped(module)
            if inner is not None:
                memo[id(module)] = copy.deepcopy(inner, memo)
        found: nn.Module = copy.deepcopy(model, memo)
    except Exception as error:
        where = _not_copied(model, memo)
        raise ValueError(
            f"the network must allow copy.deepcopy, but {where}{first_line(error)}; create it in the forward, or "
            "outside of the network"
        ) from error
    for name, module in found.named_modules():
        _restore_forward(name, module)
        module._backward_hooks.clear()  # noqa: SLF001 - they watch gradients, as for class activation maps
        module._backward_pre_hooks.clear()  # noqa: SLF001
    return found


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network in all wrappers around it."""
    inner = _wrapped(model)
    return model if inner is None else unwrapped(inner)


def kept_tensors(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Return the tensors with a gradient's history that modules keep as attributes, in nested containers too."""
    values = reachable(value for module in modules for value in vars(module).values())
    return [value for value in values if isinstance(value, Tensor) and value.requires_grad and not value.is_leaf]


def _wrapped(module: nn.Module) -> nn.Module | None:
    """Return the network in a wrapper; None if the module is no wrapper."""
    if isinstance(module, WRAPPERS):
        return module.module
    inner = module._modules.get("_orig_mod")  # noqa: SLF001 - what torch.compile keeps; importing its class is slow
    return inner if type(module).__name__ == "OptimizedModule" else None


def _not_copied(model: nn.Module, memo: dict[int, Any]) -> str:
    """Return words for the attribute that cannot be copied; empty if it is none."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in {"_parameters", "_buffers", "_modules"}:
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:  # noqa: BLE001 - objects that cannot be copied raise anything
                return f"the attribute {attribute!r} of {name or type(module).__name__!r} does not: "
    return ""


def _restore_forward(name: str, module: nn.Module) -> None:
    """Remove the compiled form of a forward; refuse one that still runs the network that was copied.

    Raises
    ------
    ValueError
        If a function that was assigned as the module's forward refers to the original network.
    """
    forward = vars(module).get("forward")
    forward = getattr(forward, "_torchdynamo_orig_callable", forward)
    if isinstance(forward, types.MethodType) and forward is not vars(module).get("forward"):
        module.forward = types.MethodType(forward.__func__, module)
    elif isinstance(forward, types.FunctionType):
        used = [cell.cell_contents for cell in forward.__closure__ or ()]
        used += [forward.__globals__.get(word) for word in forward.__code__.co_names]
        if any(isinstance(one, nn.Module) or isinstance(getattr(one, "__self__", None), nn.Module) for one in used):
            raise ValueError(
                f"the forward of {name or 'the network'!r} was replaced by a function that holds the original module, "
                "which a copy would still run; define the forward in a class"
            )
