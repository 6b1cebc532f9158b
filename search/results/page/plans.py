"""What plans do to each layer: widths, ranks, bits, work and bytes before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from objectives import SizeBytes
from search.results.inspection import NO
from spaces.costs.architectures import OF_LAYERS
from spaces.plan import architectures_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from search.evaluation.context import Context
    from spaces import Plan


def layers_of(context: Context, plans: Mapping[int, Plan]) -> tuple[list[dict[str, Any]], dict[int, list[list[Any]]]]:
    """Describe the layers of the teacher, and what each plan makes of them.

    Returns
    -------
    list of dict
        For each layer its `name`, `kind`, `kernel`, `now` (as below) and `why`: for each axis that cannot act on it,
        the reason.
    dict
        For each plan and layer a list: output channels (0 where the layer is left out), ranks, bits of weights, bits of
        inputs, multiply-adds of one example, bytes in the file.
    """
    anatomy = context.subject.anatomy
    parts = architectures_of(context.cost_model.frame, [None, *plans.values()]).parts()
    shape = np.broadcast_shapes(*(np.shape(getattr(parts, name)) for name in OF_LAYERS))
    arrays = {name: np.broadcast_to(getattr(parts, name), shape) for name in OF_LAYERS}
    size = next((one for one in context.spec.measured if isinstance(one, SizeBytes)), SizeBytes(context.spec.runtime))
    bytes_LN = [size.foreseen(parts.of_layers([column])) for column in range(shape[2])]
    rows = [
        [_layer(arrays, number, column, bytes_LN[column][number]) for column in range(shape[2])]
        for number in range(shape[1])
    ]
    reasons = {type(axis).__name__: axis.acts_on(anatomy) for axis in context.spec.space.steps}
    layers = [
        {
            "name": layer.name,
            "kind": layer.kind,
            "kernel": "x".join(map(str, layer.kernel)),
            "now": now,
            "why": {
                axis: words.removeprefix(NO)
                for axis, by_layer in reasons.items()
                if (words := by_layer.get(layer.name, "")).startswith(NO)
            },
        }
        for layer, now in zip(anatomy.layers, rows[0], strict=True)
    ]
    return layers, dict(zip(plans, rows[1:], strict=True))


def _layer(arrays: Mapping[str, np.ndarray], number: int, column: int, size: float) -> list[Any]:
    """Return the description of one layer of one network."""
    outputs = [int(count) for count in arrays["outputs"][:, number, column] if count > 0]
    if not outputs:
        return [0, "", 32, 32, 0, 0]
    weight_bits, input_bits = (int(arrays[name][0, number, column]) for name in ("weight_bits", "activation_bits"))
    macs = float(arrays["macs"][:, number, column].sum())
    return [outputs[-1], "/".join(map(str, outputs[:-1])), weight_bits, input_bits, round(macs), round(float(size))]
