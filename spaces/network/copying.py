"""Copy a network that can be compressed."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.weight_norm import WeightNorm

from spaces.network.messages import first_line

FLOAT_BYTES = 4


def compressible_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a network, if it is one that can be compressed.

    Raises
    ------
    ValueError
        If its weights are narrower than 32 bits, if it is TorchScript, or if it cannot be copied.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("a TorchScript network shows none of its layers; give the torch.nn.Module it was made from")
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.element_size() < FLOAT_BYTES:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise ValueError(f"a network is compressed from 32-bit floats, but {name!r} is {kind}; give model.float()")
    for name, module in model.named_modules():
        if any(isinstance(hook, WeightNorm) for hook in module._forward_pre_hooks.values()):  # noqa: SLF001
            raise ValueError(
                f"{name!r} has the old torch.nn.utils.weight_norm, which cannot be copied; "
                "torch.nn.utils.remove_weight_norm makes its weight plain"
            )
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ValueError(f"the network must be one that can be copied, but {first_line(error)}") from error
