"""Files with several signatures, one for each size of images, that share their weights.

Every size is converted and packed as a file of its own, since the rewrites of such a file are about one graph. Then the
graphs are joined, and equal constants are stored once: weights do not depend on the size.

Import this module only where the ``litert`` extra is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ai_edge_litert.tools import flatbuffer_utils

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ai_edge_litert import schema_py_generated as schema

DEFAULT_SIGNATURE = "serving_default"  # the name that the converter gives the only one


def joined(parts: Mapping[str, schema.ModelT]) -> schema.ModelT:
    """Return one model with the graphs of several, in order, each with a signature of its name; changes them.

    Parameters
    ----------
    parts
        Models of one graph and one signature by name, at least one.
    """
    whole, *others = parts.values()
    buffers = {_content(buffer): place for place, buffer in enumerate(whole.buffers) if place}
    codes = {_operator(code): place for place, code in enumerate(whole.operatorCodes)}
    for part in others:
        (graph,), (signature,) = part.subgraphs, part.signatureDefs
        for tensor in (one for one in graph.tensors if one.buffer):  # the first buffer is that of tensors without data
            buffer = part.buffers[tensor.buffer]
            tensor.buffer = buffers.setdefault(_content(buffer), len(whole.buffers))
            if tensor.buffer == len(whole.buffers):
                whole.buffers.append(buffer)
        for node in graph.operators:
            code = part.operatorCodes[node.opcodeIndex]
            node.opcodeIndex = codes.setdefault(_operator(code), len(whole.operatorCodes))
            if node.opcodeIndex == len(whole.operatorCodes):
                whole.operatorCodes.append(code)
        signature.subgraphIndex = len(whole.subgraphs)
        whole.subgraphs.append(graph)
        whole.signatureDefs.append(signature)
    for name, signature in zip(parts, whole.signatureDefs, strict=True):
        signature.signatureKey = name
    return whole


def signatures_of(content: bytes) -> list[str]:
    """Return the names of the signatures of a file, in the order of their graphs."""
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    ordered = sorted(model.signatureDefs or (), key=lambda one: int(one.subgraphIndex))
    return [one.signatureKey.decode() for one in ordered]


def _content(buffer: schema.BufferT) -> bytes:
    return b"" if buffer.data is None else bytes(buffer.data)


def _operator(code: schema.OperatorCodeT) -> tuple[object, ...]:
    return code.builtinCode, code.deprecatedBuiltinCode, code.customCode, code.version
