"""LiteRT, which was TensorFlow Lite: one .tflite file, for Android, iOS and boards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from objectives.layers import FLOAT_BITS
from objectives.runtimes.file_layout import FileLayout
from objectives.runtimes.runtime import Precision, extra, in_evaluation, silence

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

_PACKED = tuple(Precision(bits, FLOAT_BITS) for bits in (2, 4, 8))
_COMPUTED = (Precision(4, 8), Precision(8, 8))
_BYTE = np.iinfo(np.int8)


@dataclass(frozen=True, slots=True)
class LiteRt:
    """LiteRT on the CPU, with XNNPACK.

    Weights are packed to 2, 4 or 8 bits. With rounded inputs, convolutions and linear layers compute with integers, and
    what lies between them does too (see `objectives.runtimes.passes.integers`); where the network begins or ends with
    such a layer, the file takes or gives 8-bit integers, whose scale it holds. Otherwise weights are unpacked to
    floating point: 8 bits once, while the file is loaded, 4 and 2 bits at every inference, which is slower.

    Parameters
    ----------
    threads
        Threads of one inference.
    """

    threads: int = 1

    @property
    def name(self) -> str:
        """``litert``."""
        return "litert"

    @property
    def suffix(self) -> str:
        """``tflite``."""
        return "tflite"

    @property
    def channels(self) -> int:
        """8: XNNPACK computes 16 side by side, and 8 in half of the time; 24 take what 32 do."""
        return 8

    @property
    def layout(self) -> FileLayout:
        """Of layers and their rounding read off rows of them, of all else off 72 files of plans for four networks.

        48 files of other plans are told within 3.0%, half of them within 0.8%.
        """
        return FileLayout(
            graph=1500,
            convolution=200,
            linear=215,
            factor=-42,
            linear_factor=76,
            grouped_factor=-139,
            strided=20,
            apart=100,
            sum=130,
            floating=88,
            integer=76,
            integer_scale=8,
            zeros=10,
            mixed=189,
            ends=76,
            floating_bits=(2, 4, 8),
            integer_bits=(4, 8),
        )

    def precisions(self, kind: str, groups: int) -> tuple[Precision, ...]:
        """Return the widths of two-dimensional convolutions and linear layers; see `Runtime`."""
        del groups
        return (*_PACKED, *_COMPUTED) if kind in {"Conv2d", "Linear"} else ()

    def export(self, model: nn.Module, example: Tensor, path: Path) -> None:
        """Write ``model`` to one .tflite file that takes one input at a time; see `Runtime`.

        Raises
        ------
        ExportError
            If an operator has no form in LiteRT.
        ImportError
            If the ``litert`` extra is not installed.
        """
        in_evaluation(model)
        path.write_bytes(extra("litert", "objectives.runtimes.litert.packing").converted(model, example))

    def load(self, path: Path) -> Callable[[Tensor], Tensor]:
        """Return a function that executes the file at ``path`` on a CPU batch of any size, one input after another.

        Raises
        ------
        ImportError
            If the ``litert`` extra is not installed.
        """
        module = extra("litert", "ai_edge_litert.interpreter")
        with silence():
            interpreter = module.Interpreter(model_content=path.read_bytes(), num_threads=self.threads)
            interpreter.allocate_tensors()
        (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()

        def run(x: Tensor) -> Tensor:
            results = []
            for one in _codes(np.ascontiguousarray(x.detach().numpy()), taken):
                interpreter.set_tensor(taken["index"], one[None])
                interpreter.invoke()
                results.append(_values(interpreter.get_tensor(given["index"]), given))
            return torch.from_numpy(np.concatenate(results))

        return run


def _codes(values: NDArray[Any], tensor: dict[str, Any]) -> NDArray[Any]:
    """Return what a file takes in place of numbers."""
    if tensor["dtype"] != np.int8:
        return values
    scale, zero = tensor["quantization"]
    codes: NDArray[Any] = (np.rint(values / np.float32(scale)) + zero).clip(_BYTE.min, _BYTE.max).astype(np.int8)
    return codes


def _values(codes: NDArray[Any], tensor: dict[str, Any]) -> NDArray[Any]:
    """Return the numbers that a file gave."""
    if tensor["dtype"] != np.int8:
        return codes
    scale, zero = tensor["quantization"]
    values: NDArray[Any] = (codes.astype(np.float32) - np.float32(zero)) * np.float32(scale)
    return values
