"""Write FlatBuffers in which equal vectors stand once.

Import it only where an extra that brings ``flatbuffers`` is known to be there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flatbuffers

if TYPE_CHECKING:
    import numpy as np


def written_once(content: Any, identifier: bytes) -> bytes:  # noqa: ANN401 - of classes that flatc makes
    """Return the bytes of a file.

    Parameters
    ----------
    content
        Its root, of the object interface of FlatBuffers.
    identifier
        Four letters that say what it is.
    """
    builder = _Sharing()
    builder.Finish(content.Pack(builder), file_identifier=identifier)
    return bytes(builder.Output())


class _Sharing(flatbuffers.Builder):  # type: ignore[misc]
    """A builder that writes equal vectors once."""

    def __init__(self) -> None:
        super().__init__(1024)
        self._written: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802 - overrides
        """Return the place of a vector of numbers."""
        key = x.dtype.str, x.tobytes()
        if key not in self._written:
            self._written[key] = super().CreateNumpyVector(x)
        return self._written[key]
