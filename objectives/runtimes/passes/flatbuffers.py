"""Serialization of FlatBuffers that stores equal vectors once.

Import this module only where an extra that installs ``flatbuffers`` is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flatbuffers

if TYPE_CHECKING:
    import numpy as np


def serialize(root: Any, identifier: bytes, alignment: int = 1) -> bytes:  # noqa: ANN401 - a class that flatc generates
    """Return the bytes of a file in which equal vectors are stored once.

    Parameters
    ----------
    root
        The root table, in the object API of FlatBuffers.
    identifier
        Four bytes that identify the file format.
    alignment
        Vectors of bytes, which hold the constants, begin at multiples of so many bytes.
    """
    builder = _SharingBuilder(alignment)
    builder.Finish(root.Pack(builder), file_identifier=identifier)
    return bytes(builder.Output())


class _SharingBuilder(flatbuffers.Builder):  # type: ignore[misc]
    """A builder that stores equal vectors once."""

    def __init__(self, alignment: int) -> None:
        super().__init__(1024)
        self._alignment = alignment
        self._written: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802 - overrides
        """Return the offset of a vector of numbers."""
        key = x.dtype.str, x.tobytes()
        if key not in self._written:
            if x.dtype.itemsize == 1:
                self.Prep(self._alignment, x.size)
            self._written[key] = super().CreateNumpyVector(x)
        return self._written[key]
