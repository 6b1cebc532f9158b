"""A fault of the converter of LiteRT that is mended while it runs.

Import this module only where the ``litert`` extra is installed.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from litert_torch._convert.fx_passes.optimize_layout_transposes_pass.pass_body import OptimizeLayoutTransposesPass

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import fx

_INSERT = OptimizeLayoutTransposesPass.insert_t_q_dq


@contextlib.contextmanager
def mended_layouts() -> Iterator[None]:
    """Let the converter transpose a rounded image for each of its readers, within the context.

    It computes images with their channels last, and transposes them for operators and outputs that need them first.
    After the first transposition of a rounded image it loses the mark that this has its channels last (its meta data
    are replaced), so the next reader gets it as it is: outputs of another shape, or values in another order.
    """

    def inserted(self: OptimizeLayoutTransposesPass, graph: fx.Graph, source: fx.Node, *more: Any) -> list[fx.Node]:  # noqa: ANN401 - the arguments of the converter
        meta = source.meta
        nodes: list[fx.Node] = _INSERT(self, graph, source, *more)
        source.meta = meta
        return nodes

    with patch.object(OptimizeLayoutTransposesPass, "insert_t_q_dq", inserted):
        yield
