"""Multiply-adds of a network, counted by fvcore, and the operators that cannot be counted.

Legend: `L S` queries and keys of attention, `E V` features of a query and of a value.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from objectives.flat import Flat, flat
from objectives.layers import Repeating
from objectives.outputs import device_of
from objectives.trees import at, moved

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fvcore uses torch.jit.script at import
    from fvcore.nn import FlopCountAnalysis
if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from objectives.trees import Tree

# Operators that fvcore estimates too. Only multiply-adds of convolutions and matrix products are counted here.
NOT_COUNTED = (
    "aten::batch_norm", "aten::group_norm", "aten::layer_norm", "aten::instance_norm", "aten::norm",
    "aten::upsample_nearest2d", "aten::upsample_bilinear2d", "aten::adaptive_avg_pool2d", "aten::grid_sampler",
)  # fmt: skip
# Other operators of ATen without matrix products; views and pointwise operators are recognized without a list.
WITHOUT_PRODUCTS = frozenset(f"aten::{name}" for name in (
    *("mean", "sum", "amax", "amin", "max", "min", "prod", "std", "var", "var_mean", "std_mean", "logsumexp", "argmax",
      "argmin", "any", "all", "norm", "linalg_vector_norm", "count_nonzero", "median", "nanmean", "nansum", "aminmax"),
    *("softmax", "_softmax", "log_softmax", "softmin", "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "sort",
      "argsort", "topk", "kthvalue", "unique_consecutive", "_unique2", "bincount", "searchsorted", "bucketize", "diff"),
    *(f"{kind}_pool{n}d{rest}" for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp", "fractional_max")
      for n in (1, 2, 3) for rest in ("", "_with_indices")),
    *(f"{kind}{n}d" for kind in ("upsample_nearest", "_upsample_nearest_exact", "upsample_linear", "upsample_bilinear",
      "upsample_bicubic", "upsample_trilinear", "_upsample_bilinear", "_upsample_bicubic") for n in (1, 2, 3)),
    *(f"{kind}{n}d_aa" for kind in ("_upsample_bilinear", "_upsample_bicubic") for n in (1, 2, 3)),
    *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)), "pad", "_pad_circular",
    *("batch_norm", "group_norm", "layer_norm", "instance_norm", "rms_norm", "native_layer_norm", "native_group_norm",
      "local_response_norm", "renorm", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d", "affine_grid_generator"),
    *("repeat", "tile", "repeat_interleave", "flip", "roll", "rot90", "index_select", "index_add", "index_copy",
      "index_fill", "index_put", "take", "take_along_dim", "scatter", "scatter_", "scatter_add", "scatter_reduce",
      "masked_select", "masked_scatter", "embedding", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "im2col",
      "col2im", "unfold_backward", "hstack", "vstack", "dstack", "column_stack", "meshgrid", "cartesian_prod", "tril",
      "triu", "diag", "diag_embed", "block_diag", "one_hot", "clone", "constant", "combinations", "nonzero_numpy"),
    *("randn", "rand", "randint", "randperm", "normal", "bernoulli", "multinomial", "randn_like", "rand_like", "ones",
      "ones_like", "empty_like", "new_ones", "linspace", "logspace", "eye", "tensor", "scalar_tensor", "tril_indices",
      "triu_indices", "fill_", "zero_", "fill", "normal_", "uniform_", "feature_dropout", "alpha_dropout", "dropout_",
      "feature_alpha_dropout", "outer", "ger", "item", "numel", "dim", "is_floating_point", "lift_fresh", "__and__",
      "glu", "prelu", "rrelu", "where", "cosine_similarity", "pairwise_distance", "pdist", "mul", "div", "hann_window",
      "hamming_window", "result_type", "len", "list", "_pack_padded_sequence", "_pad_packed_sequence", "lerp",
      "unsafe_chunk", "unsafe_split", "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "hardswish", "hardsigmoid",
      "hardtanh", "relu6", "elu", "celu", "selu", "gelu", "silu", "mish", "leaky_relu", "softplus", "softshrink",
      "hardshrink", "threshold", "log_sigmoid", "quantize_per_tensor", "dequantize",
      "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine"),
))  # fmt: skip


def count(model: nn.Module, example: Tree) -> Counter[str]:
    """Return the multiply-adds of one example for every module with its submodules; the key "" is the network.

    Parameters
    ----------
    model
        Any network; a copy is traced, since fvcore does not remove its hooks when a forward pass fails.
    example
        Inputs, shape (B, ...); the first is used.
    """
    return _analyzed(model, example)[0]


def uncounted(model: nn.Module, example: Tree) -> tuple[tuple[str, str], ...]:
    """Return the operators that may contain matrix products and are not counted, each with its innermost module.

    Parameters
    ----------
    model, example
        As for `count`.
    """
    return _uncounted_of(_analyzed(model, example)[1])


def _uncounted_of(by_module: dict[str, Counter[str]]) -> tuple[tuple[str, str], ...]:
    """Return those of the operators without a handle that may contain matrix products."""
    found = []
    for name, operators in by_module.items():
        depth = name.count(".") + 1 if name else 0
        inside = [
            other
            for other in by_module
            if other != name and other.startswith(f"{name}." if name else "") and other.count(".") == depth
        ]
        for operator, calls in operators.items():
            own = calls - sum(by_module[other][operator] for other in inside)
            if own > 0 and not _without_products(operator):
                found.append((operator, name))
    return tuple(sorted(set(found)))


def uncounted_words(model: nn.Module, example: Tree) -> str:
    """Return one line that names the operators that are not counted; empty where there are none."""
    return count_and_words(model, example)[1]


def count_and_words(model: nn.Module, example: Tree) -> tuple[Counter[str], str]:
    """Return what `count` and `uncounted_words` do, from one analysis."""
    counts, by_module = _analyzed(model, example)
    found = _uncounted_of(by_module)
    named = ", ".join(f"{operator} in {name or 'the network itself'!r}" for operator, name in found)
    return counts, f"multiply-adds leave out what cannot be counted: {named}" if found else ""


def _analyzed(model: nn.Module, example: Tree) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """Return the multiply-adds by module, and the operators without a handle by module, submodules included."""
    copied = copy.deepcopy(model).eval()
    for module in copied.modules():
        if isinstance(module, Repeating):
            module.at_once = True
    traced = flat(copied, moved(at(example, slice(1)), device_of(model)))
    analysis = FlopCountAnalysis(traced.module, traced.example)
    analysis.unsupported_ops_warnings(enabled=False).uncalled_modules_warnings(enabled=False)
    analysis.tracer_warnings("none")
    for operation in NOT_COUNTED:
        analysis.set_op_handle(operation, _zero)  # None would keep the built-in estimate
    for operation, handle in HANDLES.items():
        analysis.set_op_handle(operation, handle)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fast path is one opaque operator, which fvcore cannot count
    try:
        with torch.no_grad():
            counts: Counter[str] = analysis.by_module()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    unsupported = {name: analysis.unsupported_ops(name) for name in counts}
    if isinstance(traced.module, Flat):
        return Counter(_without_wrapper(counts)), _without_wrapper(unsupported)
    return counts, unsupported


def _without_wrapper(by_module: Mapping[str, Any]) -> dict[str, Any]:
    """Return what belongs to the modules of a network that a `Flat` holds, by their names in the network."""
    return {name.partition(".")[2]: value for name, value in by_module.items() if name}


def _without_products(operator: str) -> bool:
    """Whether an operator has no matrix product: it moves data, acts on elements, or reduces."""
    if operator in NOT_COUNTED or operator in WITHOUT_PRODUCTS:
        return True
    space, _, name = operator.partition("::")
    if space != "aten":
        return space == "prim"
    if f"aten::{name.rstrip('_')}" in WITHOUT_PRODUCTS:  # in place
        return True
    packet = getattr(torch.ops.aten, name, None)
    overloads = [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]
    return not overloads or any(torch.Tag.pointwise in one.tags or _is_view(one) for one in overloads)


def _is_view(operator: Any) -> bool:  # noqa: ANN401 - an overload of an operator has no public type
    aliases = [returned.alias_info for returned in operator._schema.returns]  # noqa: SLF001
    return any(alias is not None and not alias.is_write for alias in aliases)


def _zero(inputs: list[Any], outputs: list[Any]) -> int:  # noqa: ARG001 - the signature is fvcore's
    return 0


def _shape(value: Any) -> list[int]:  # noqa: ANN401 - a torch._C.Value
    return list(value.type().sizes())


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Count queries (..., L, E) times keys (..., S, E), and weights (..., L, S) times values (..., S, V).

    Heads of queries that share a head of keys and values are counted each.
    """
    queries, keys, values = (_shape(value) for value in inputs[:3])
    del outputs
    return math.prod(queries[:-1]) * keys[-2] * (queries[-1] + values[-1])


def _convolution(inputs: list[Any], outputs: list[Any]) -> int:
    """Count a convolution that fvcore does not count: one with padding="same", a deformable one."""
    return math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[1])[1:])


def _time_first_convolution(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[1])[:2])  # the weight has the outputs last


def _product(inputs: list[Any], outputs: list[Any]) -> int:
    """Count a product of matrices or vectors, whatever is broadcast; the summed dimension is the last of the left."""
    return math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _added_product(inputs: list[Any], outputs: list[Any]) -> int:
    return _product(inputs[1:], outputs)


def _summed_products(inputs: list[Any], outputs: list[Any]) -> int:
    """Count products of matrices that are summed over the batch."""
    return _added_product(inputs, outputs) * _shape(inputs[1])[0]


def _bilinear(inputs: list[Any], outputs: list[Any]) -> int:
    """Count one multiply-add for each weight at each position."""
    return math.prod(_shape(outputs[0])[:-1]) * math.prod(_shape(inputs[2]))


def _recurrent(inputs: list[Any], outputs: list[Any]) -> int:
    """Count the matrices of all layers and directions at every time step; packed sequences have no padding."""
    del outputs
    lists = [value for value in inputs if value.node().kind() == "prim::ListConstruct"]
    weights = [_shape(weight) for weight in lists[-1].node().inputs()]
    matrices = [shape for shape in weights if len(shape) == 2]  # noqa: PLR2004 - biases have one dimension
    return math.prod(_shape(inputs[0])[:-1]) * sum(map(math.prod, matrices))


def _by_decomposition(name: str) -> Any:  # noqa: ANN401 - a handle of fvcore
    """Return a handle that runs an operator on shapes alone and counts the matrix products that it consists of."""

    def handle(inputs: list[Any], outputs: list[Any]) -> int:
        del outputs
        operator = getattr(torch.ops.aten, name).default
        given = list(zip(operator._schema.arguments, map(_argument, inputs), strict=True))  # noqa: SLF001
        with _ProductCounter() as counter:
            operator(
                *(value for argument, value in given if not argument.kwarg_only),
                **{argument.name: value for argument, value in given if argument.kwarg_only},
            )
        return int(counter.macs)

    return handle


def _argument(value: Any) -> Any:  # noqa: ANN401 - a torch._C.Value, and what it stands for
    if value.type().kind() == "TensorType":
        return torch.empty(_shape(value), dtype=value.type().dtype(), device="meta")
    if value.node().kind() == "prim::ListConstruct":
        return [_argument(one) for one in value.node().inputs()]
    return value.toIValue()


class _ProductCounter(TorchDispatchMode):
    """Counts the multiply-adds of matrix products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run the operation, and count it."""
        output = function(*args, **(kwargs or {}))
        name = function._schema.name  # noqa: SLF001
        if name in {"aten::mm", "aten::bmm", "aten::mv", "aten::dot"}:
            self.macs += math.prod(output.shape) * args[0].shape[-1]
        return output


HANDLES = {
    "aten::scaled_dot_product_attention": _attention,
    **dict.fromkeys(("aten::_convolution_mode", "torchvision::deform_conv2d"), _convolution),
    "aten::conv_tbc": _time_first_convolution,
    **dict.fromkeys((f"aten::{name}" for name in ("matmul", "mm", "bmm", "mv", "dot", "vdot", "linear")), _product),
    **dict.fromkeys(("aten::addmm", "aten::baddbmm", "aten::addmv"), _added_product),
    "aten::addbmm": _summed_products,
    "aten::bilinear": _bilinear,
    **dict.fromkeys((f"aten::{name}" for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")), _recurrent),
    **{f"aten::{name}": _by_decomposition(name)
       for name in ("einsum", "tensordot", "inner", "chain_matmul", "linalg_multi_dot", "matrix_power")},
}  # fmt: skip
