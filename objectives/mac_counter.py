"""Multiply-adds of a network, counted by fvcore."""

from __future__ import annotations

import copy
import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from objectives.answers import device_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fvcore uses torch.jit.script at import
    from fvcore.nn import FlopCountAnalysis
if TYPE_CHECKING:
    from collections import Counter

    from torch import nn


# Operators that fvcore estimates too. Only multiply-adds of convolutions and matrix products are counted here.
NOT_COUNTED = (
    "aten::batch_norm", "aten::group_norm", "aten::layer_norm", "aten::instance_norm", "aten::norm",
    "aten::upsample_nearest2d", "aten::upsample_bilinear2d", "aten::adaptive_avg_pool2d", "aten::grid_sampler",
)  # fmt: skip


def count(model: nn.Module, example: Tensor) -> Counter[str]:
    """Return the multiply-adds of one example for every module with its submodules; the key "" is the network.

    Parameters
    ----------
    model
        Any network; a copy is traced, since fvcore does not remove its hooks when a forward pass fails.
    example
        Inputs, shape (B, ...); the first is used.
    """
    traced = copy.deepcopy(model).eval()
    analysis = FlopCountAnalysis(traced, example[:1].to(device_of(model)))
    analysis.unsupported_ops_warnings(enabled=False).uncalled_modules_warnings(enabled=False)
    analysis.tracer_warnings("none")
    for operation in NOT_COUNTED:
        analysis.set_op_handle(operation, _zero)  # None would keep the built-in estimate
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
    analysis.set_op_handle("aten::baddbmm", _batched_product)
    analysis.set_op_handle("aten::_convolution_mode", _same_convolution)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fast path is one opaque operator, which fvcore cannot count
    try:
        with torch.no_grad():
            counts: Counter[str] = analysis.by_module()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counts


def _zero(inputs: list[Any], outputs: list[Any]) -> int:  # noqa: ARG001 - the signature is fvcore's
    return 0


def _shape(value: Any) -> list[int]:  # noqa: ANN401 - a torch._C.Value
    return list(value.type().sizes())


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Count queries (..., L, E) times keys (..., S, E), and attention weights (..., L, S) times values (..., S, V)."""
    queries, keys, values = (_shape(value) for value in inputs[:3])
    del outputs
    return math.prod(queries[:-1]) * keys[-2] * (queries[-1] + values[-1])


def _same_convolution(inputs: list[Any], outputs: list[Any]) -> int:
    """Count a convolution with padding="same", which fvcore does not count."""
    return math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[1])[1:])


def _batched_product(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(_shape(outputs[0])) * _shape(inputs[1])[-1]
