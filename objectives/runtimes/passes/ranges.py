"""The ranges of the tensors of a graph on calibration inputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

RANGE_INPUTS = 128  # calibration inputs on which ranges are measured (chosen)


def one_by_one(example: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """Return the calibration inputs on which ranges are measured, one example after another."""
    return list(zip(*(tensor[:RANGE_INPUTS].split(1) for tensor in example), strict=True))


class RangeObserver(fx.Interpreter):
    """An interpreter of the graph that records the range of every tensor."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.ranges: dict[str, tuple[float, float]] = {}

    def run_node(self, node: fx.Node) -> Any:  # noqa: ANN401 - any value of a graph
        """Run one node and extend its range; that of a constant is known after the first run."""
        value = super().run_node(node)
        known = node.op == "get_attr" and node.name in self.ranges
        if not known and isinstance(value, Tensor) and value.is_floating_point():
            low, high = self.ranges.get(node.name, (0.0, 0.0))
            self.ranges[node.name] = min(low, float(value.min())), max(high, float(value.max()))
        return value
