"""Serialization of the XNNPACK part of an ExecuTorch file, without duplicates and without data that no runtime reads.

Import this module only where the ``executorch`` extra is installed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import importlib.util
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from executorch.backends.xnnpack import serialization, xnnpack_preprocess
from executorch.backends.xnnpack.serialization import xnnpack_graph_serialize
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import (
    ConstantDataOffset,
    XNNStaticReshape,
    XNNStaticTranspose,
)
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import (
    CONSTANT_TENSOR_ALIGNMENT,
    convert_to_flatbuffer,
    serialize_xnnpack_binary,
)
from executorch.exir._serialize._flatbuffer import _run_flatc
from executorch.exir._serialize._named_data_store import NamedDataStore
from executorch.exir.emit import _emitter
from executorch.exir.schema import ContainerMetadata

from objectives.runtimes.passes.flatbuffers import serialize

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import XNNGraph

_XNNPACK_IDENTIFIER = b"XN01"
NAME_COST = 300  # bytes of a name in each part and of a segment, at most: twice 64 letters, and tables (chosen)


class Constants:
    """The constants of the parts of a program that XNNPACK executes, by name.

    Parameters
    ----------
    shared
        Names of those that are stored once for all parts.
    """

    def __init__(self, shared: frozenset[str] = frozenset()) -> None:
        self.shared = shared
        self.data: dict[str, bytes] = {}
        self._uses: Counter[str] = Counter()

    def note(self, names: set[str]) -> None:
        """Note the constants of one part."""
        self._uses.update(names)

    def repeated(self) -> frozenset[str]:
        """Return the names of those that several parts have and that are large enough to be shared."""
        return frozenset(
            name for name, count in self._uses.items() if (count - 1) * len(self.data[name]) > NAME_COST * count
        )


@contextlib.contextmanager
def packing(constants: Constants) -> Iterator[None]:
    """Patch the exporter within the context so that it writes small files; it has no options for this.

    - The exporter names every weight, bias and vector of scales by a digest of 64 letters, written twice, and gives
      each a segment, so that files can share them: more than half of the bytes of a small network. Here, they are
      stored after the graph, where the runtime looks for constants without a name, but for those that are shared.
    - The exporter stores how Python nests inputs and outputs; here, each is a single tensor.
    - Duplicates within a graph are removed: see `_share_scales`, `_bypass_transpositions` and
      `objectives.runtimes.passes.flatbuffers`.
    """

    class Inline(NamedDataStore):  # type: ignore[misc]
        def add_named_data(self, key: str, data: Any, *more: object, **named: object) -> None:  # noqa: ANN401 - bytes-like
            constants.data[key] = bytes(data)
            if key in constants.shared:
                super().add_named_data(key, data, *more, **named)

    def serialized(graph: XNNGraph, _: bytearray) -> bytes:
        _bypass_transpositions(graph)
        _share_scales(graph)
        for node in graph.xnodes:
            node.debug_handle = 0  # a link to a line of the model's code, which the file does not contain
        constants.note({entry.named_key for entry in graph.constant_data[1:]})
        return bytes(serialize_xnnpack_binary(graph, _inline(graph, constants)))

    with (
        patch.object(xnnpack_preprocess, "NamedDataStore", Inline),
        patch.object(xnnpack_preprocess, "serialize_xnnpack_binary", serialized),
        patch.object(xnnpack_graph_serialize, "convert_to_flatbuffer", _flatbuffer),
        patch.object(_emitter, "ContainerMetadata", lambda *_, **__: ContainerMetadata("", "")),
    ):
        yield


def _bypass_transpositions(graph: XNNGraph) -> None:
    """Remove transpositions that move no number and whose output is only reshaped, as before a classifier."""
    values = _by_id(graph)
    readers: dict[int, list[Any]] = {}
    for node in graph.xnodes:
        for name, read in vars(node.xnode_union).items():
            if name.endswith("_id") and not name.startswith("output"):
                readers.setdefault(read, []).append(node.xnode_union)
    for node in list(graph.xnodes):
        moved = node.xnode_union
        if not isinstance(moved, XNNStaticTranspose) or moved.output_id in graph.output_ids:
            continue
        wide = [size for size in _tensor(values[moved.input_id]).dims if size > 1]
        after = readers.get(moved.output_id, [])
        if len(wide) <= 1 and all(isinstance(reader, XNNStaticReshape) for reader in after):
            for reader in after:
                reader.input_id = moved.input_id
            graph.xnodes.remove(node)
            graph.xvalues.remove(values[moved.output_id])


def _share_scales(graph: XNNGraph) -> None:
    """Let a bias refer to the scales of its weight: XNNPACK requires scales for a bias but does not read them.

    It adds the bias as it is to sums of products, whose scale is that of the input times that of the weight.
    """
    values = _by_id(graph)
    for node in graph.xnodes:
        pair = [getattr(node.xnode_union, name, None) for name in ("filter_id", "bias_id")]
        weight, bias = (_channelwise(values[index]) if index in values else None for index in pair)
        if weight is not None and bias is not None and weight.num_scales == bias.num_scales:
            bias.scale_buffer_idx = weight.scale_buffer_idx


def _inline(graph: XNNGraph, constants: Constants) -> bytearray:
    """Return the constants one after another, equal ones once, and store their positions in the graph.

    Those that are shared keep their names instead.
    """
    content = bytearray()
    entries = graph.constant_data[:1]  # the first entry means: no constant
    place: dict[bytes, int] = {}

    def placed(index: int) -> int:
        if index <= 0:
            return index
        entry = graph.constant_data[index]
        data = constants.data[entry.named_key]
        if data not in place and entry.named_key in constants.shared:
            place[data] = len(entries)
            entries.append(entry)
        elif data not in place:
            content.extend(bytes(-len(content) % CONSTANT_TENSOR_ALIGNMENT))
            place[data] = len(entries)
            entries.append(ConstantDataOffset(len(content), len(data), None))
            content.extend(data)
        return place[data]

    for value in graph.xvalues:
        tensor, scales = _tensor(value), _channelwise(value)
        tensor.constant_buffer_idx = placed(tensor.constant_buffer_idx)
        if scales is not None:
            scales.scale_buffer_idx = placed(scales.scale_buffer_idx)
    graph.constant_data = entries
    return content


def _by_id(graph: XNNGraph) -> dict[int, Any]:
    return {_tensor(value).id_out: value for value in graph.xvalues}


def _tensor(value: Any) -> Any:  # noqa: ANN401 - the exporter publishes no types
    """Return the part of a value that contains its shape, its constant and its id."""
    return getattr(value.xvalue_union, "tensor_value", value.xvalue_union)


def _channelwise(value: Any) -> Any:  # noqa: ANN401 - the exporter publishes no types
    """Return the quantization of a value whose scales are constants of the file; None for other values."""
    grid = getattr(value.xvalue_union, "quant_params", None)
    return grid if getattr(grid, "scale_buffer_idx", 0) > 0 else None


def _flatbuffer(graph: XNNGraph) -> bytes:
    """Return the bytes of the graph, with equal vectors such as shapes stored once."""
    classes = _classes()
    return serialize(classes.XNNGraphT.InitFromPackedBuf(convert_to_flatbuffer(graph)), _XNNPACK_IDENTIFIER)


@functools.cache
def _classes() -> ModuleType:
    """Return classes that read and write XNNPACK graphs, which flatc generates from the schema of the exporter."""
    with tempfile.TemporaryDirectory() as folder:
        schema = Path(folder) / "xnnpack.fbs"
        schema.write_bytes((importlib.resources.files(serialization) / "schema.fbs").read_bytes())
        _run_flatc(["--python", "--gen-object-api", "--gen-onefile", "-o", folder, str(schema)])
        source = Path(folder) / "xnnpack_generated.py"
        # flatc 24 spells the names of its functions for unions in two ways
        source.write_text(re.sub(r"\w+Creator\b", lambda match: match[0].lower(), source.read_text("utf-8")), "utf-8")
        spec = importlib.util.spec_from_file_location("xnnpack_generated", source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module
