"""Copy a network, after a check that it can be compressed."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.weight_norm import WeightNorm

from spaces.network.messages import first_line

FLOAT_BYTES = 4  # bytes of a 32-bit float, the narrowest that is compressed


def compressible_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a network that can be compressed.

    Raises
    ------
    ValueError
        If the weights are narrower than 32 bits, if the network is TorchScript, or if it cannot be copied.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            "a TorchScript network does not show its layers; pass the torch.nn.Module that it was made from"
        )
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
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ValueError(f"the network must allow copy.deepcopy, but {first_line(error)}") from error
