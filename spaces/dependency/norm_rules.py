"""Rules for operations that reduce over channels, and for norms: statistics of a norm tie no channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils._python_dispatch import TorchDispatchMode

from spaces.dependency.combining import CONSTANT_OR_INPUT, pointwise
from spaces.dependency.label_sets import varies
from spaces.dependency.operator_calls import Call, CallCounter
from spaces.network.tensors import tensors

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import Tensor

    from spaces.dependency.combining import Rule
    from spaces.dependency.label_sets import LabelSets

STATISTICS = frozenset({"mean", "sum", "var", "std", "var_mean", "linalg_vector_norm"})  # operations of norms, in ATen
EQUAL_GROUPS = "the groups of the norm must keep equal sizes"
POSITIONS = "its norm reads them as positions of one channel"


def reduced(sets: LabelSets, call: Call) -> list[Tensor]:
    """Combine the values along some dimensions into one."""
    if len(call.labels) > 1:
        return pointwise(sets, call)  # the maximum or minimum of two tensors
    labels, dimensions = call.labels[0], call.argument("dim")
    if dimensions is None or dimensions == []:
        dimensions = range(labels.dim())
    dimensions = [dimensions] if isinstance(dimensions, int) else dimensions
    along = [dimension % labels.dim() for dimension in dimensions]
    if call.name in STATISTICS and any(varies(labels, dimension) for dimension in along):
        sums_powers = call.name == "linalg_vector_norm" and call.argument("ord") > 0
        label = sets.statistic(labels, (call.name, call.number), call.reason, sums_powers=sums_powers)
        return [label.reshape([1] * result.dim()).expand(result.shape) for result in call.results]
    combined = sets.equalize(labels, along, call.reason)
    if combined.dim() != call.results[0].dim():
        combined = combined.squeeze(tuple(along))
    return [combined.expand(result.shape) for result in call.results]


def layer_norm(sets: LabelSets, call: Call) -> list[Tensor]:
    """Normalize over the last dimension, with a weight and a bias that are no module's own."""
    labels = call.labels[0]
    if len(call.argument("normalized_shape")) > 1:
        sets.fix(labels, "a norm has a weight for every position")
        return []
    return [_normalized(sets, call, labels.dim() - 1, ("weight", "bias")).expand(labels.shape)]


def channel_norm(sets: LabelSets, call: Call) -> list[Tensor]:
    """Normalize each channel, or groups of them, which lie along the second dimension."""
    labels = call.labels[0]
    found = _normalized(sets, call, 1, ("weight", "bias", "running_mean", "running_var"))
    groups = call.argument("group") or found.shape[1]
    if groups < found.shape[1]:
        sets.equalize(found.reshape(groups, -1), (0,), EQUAL_GROUPS)
    return [found.expand(labels.shape)]


def _normalized(sets: LabelSets, call: Call, channel: int, own: tuple[str, ...]) -> Tensor:
    """Join the channels with the vectors of the norm; return their labels with size 1 in all other dimensions."""
    labels = call.labels[0]
    found = sets.equalize(labels, [d for d in range(labels.dim()) if d != channel], POSITIONS)
    for name in own:
        vector = call.argument(name)
        if vector is not None and vector.numel() == found.shape[channel]:
            shape = [-1 if d == channel else 1 for d in range(labels.dim())]
            reason = f"{call.reason} with {CONSTANT_OR_INPUT}"
            found = sets.join(found, call.labels_of(vector).reshape(shape), reason)
    return found


NORM_RULES: dict[str, Rule] = {  # by name in ATen
    **dict.fromkeys(("amax", "amin", "max", "min", "prod", "logsumexp", "argmax", "argmin"), reduced),
    **dict.fromkeys(STATISTICS, reduced),
    "native_layer_norm": layer_norm,
    **dict.fromkeys(("native_group_norm", "native_batch_norm", "_native_batch_norm_legit_no_training"), channel_norm),
}  # fmt: skip


class WithoutStatistics(TorchDispatchMode):
    """Let norms only scale and shift, since their statistics depend on the number of channels.

    Parameters
    ----------
    statistics
        The statistics of norms that the network itself computes, as `LabelClasses` names them; they are 1.
    """

    def __init__(self, statistics: Collection[tuple[str, int]] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._statistics = statistics
        self._counter = CallCounter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run the operation, without statistics if it is one of these."""
        name = function._schema.name  # noqa: SLF001
        call = self._counter.next(function)
        if name == "aten::native_layer_norm":
            x, shape, weight, bias, _ = args
            if list(shape) != list(x.shape[-len(shape) :]):
                return function(*args, **(kwargs or {}))  # raises the error of the operation
        elif name == "aten::native_group_norm":
            x, weight, bias, *_ = args
            weight, bias = (None if p is None else p.reshape(-1, *[1] * (x.dim() - 2)) for p in (weight, bias))
        else:
            output = function(*args, **(kwargs or {}))
            if call in self._statistics:
                for result in tensors(output):
                    result.fill_(1)
            return output
        scaled = x if weight is None else x * weight
        return scaled if bias is None else scaled + bias, x.new_zeros(1), x.new_ones(1)
