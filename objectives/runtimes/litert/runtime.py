"""LiteRT, formerly TensorFlow Lite: one .tflite file, for Android, iOS and embedded boards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from objectives.layers import FLOAT_BITS
from objectives.runtimes.file_layout import FileLayout
from objectives.runtimes.litert.loading import LITERT_LOADING, LITERT_SIGNATURE
from objectives.runtimes.runtime import Precision, import_extra, require_eval_mode, require_threads, silence
from objectives.runtimes.versions import taken_widths
from objectives.trees import leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from objectives.runtimes.passes.grid import Grid
    from objectives.trees import Tree

_INTEGER = (Precision(4, 8), Precision(8, 8))


@dataclass(frozen=True, slots=True)
class LiteRt:
    """LiteRT on the CPU, with XNNPACK.

    Weights are packed to 2, 4 or 8 bits. With rounded inputs, convolutions and linear layers compute with integers, and
    so do the operators between them (see `objectives.runtimes.passes.integers`). If the network begins or ends with
    such a layer, the file reads or writes 8-bit integers, whose scale it contains; an input that is resized first is
    read in floating point. Otherwise weights are unpacked to floating point: 8 bits once, when the file is loaded; 4
    and 2 bits at every inference, which is slower.

    Parameters
    ----------
    threads
        Number of threads of one inference.
    version
        The oldest version of the package `ai-edge-litert` that must take the files, such as ``1.4``: weights of 2 bits
        are neither offered nor stored before 2.1. By default the version that is installed.
    """

    threads: int = 1
    version: str = field(default="", repr=False, metadata={"added": True})
    oldest: ClassVar[Mapping[int, str]] = {2: "2.1", 4: "1.2", 8: "1.2"}  # that takes weights of these bits

    def __post_init__(self) -> None:
        """Check the number of threads and the version."""
        require_threads(self.threads)
        taken_widths(self.version, self.oldest)

    @property
    def bits(self) -> tuple[int, ...]:
        """Bits of the weights in a file, ascending."""
        return taken_widths(self.version, self.oldest)

    @property
    def name(self) -> str:
        """``litert``."""
        return "litert"

    @property
    def loading(self) -> Mapping[str, str]:
        """How a file is loaded, by language."""
        return LITERT_LOADING

    @property
    def signature_call(self) -> str:
        """How a signature of a file is called."""
        return LITERT_SIGNATURE

    @property
    def suffix(self) -> str:
        """``tflite``."""
        return "tflite"

    @property
    def channels(self) -> int:
        """8: XNNPACK computes 16 channels in parallel, and 8 in half the time; 24 take as long as 32."""
        return 8

    @property
    def integers_only(self) -> bool:
        """False."""
        return False

    @property
    def layout(self) -> FileLayout:
        """Bytes (fitted): layers and their rounding from files of stacked layers, the rest from 72 files of plans.

        The plans are for four networks. On 48 files of other plans the error of the predicted size is at most 3.0%,
        its median 0.8%.
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
            resize=220,
            floating=88,
            integer=76,
            integer_scale=8,
            zeros=10,
            mixed=189,
            ends=76,
            floating_bits=self.bits,
            integer_bits=(4, 8),
        )

    def precisions(self, kind: str, groups: int) -> tuple[Precision, ...]:
        """Return the precisions of two-dimensional convolutions and of linear layers; see `Runtime`."""
        del groups
        weights_only = tuple(Precision(bits, FLOAT_BITS) for bits in self.bits)
        return (*weights_only, *_INTEGER) if kind in {"Conv2d", "Linear"} else ()

    def export(self, model: nn.Module, example: Tree, path: Path) -> None:
        """Write ``model`` to one .tflite file that takes one input at a time; see `Runtime`.

        Raises
        ------
        ExportError
            If LiteRT does not have an operator of the model.
        ImportError
            If the ``litert`` extra is not installed.
        """
        require_eval_mode(model)
        packing = import_extra("litert", "objectives.runtimes.litert.packing")
        storage = packing.LITERT.of_widths(self.bits)
        path.write_bytes(packing.convert(model, example, storage))

    def load(self, path: Path) -> Callable[[Tree], Tree]:
        """Return a function that executes the file at ``path`` on a CPU batch of any size, one input after another.

        Images of other sizes make the interpreter resize its tensors, which the network must allow. A file with several
        signatures executes the one that has the sizes of the inputs.

        Raises
        ------
        ImportError
            If the ``litert`` extra is not installed.
        """
        module = import_extra("litert", "ai_edge_litert.interpreter")
        with silence():
            interpreter = module.Interpreter(model_content=path.read_bytes(), num_threads=self.threads)
            interpreter.allocate_tensors()
        if len(names := interpreter.get_signature_list()) > 1:
            return _by_sizes([interpreter.get_signature_runner(name) for name in names])
        sources, targets = interpreter.get_input_details(), interpreter.get_output_details()
        sizes = [tuple(source["shape"]) for source in sources]

        def execute(row: list[NDArray[Any]]) -> list[NDArray[Any]]:
            for values, source in zip(row, sources, strict=True):
                interpreter.set_tensor(source["index"], values)
            interpreter.invoke()
            return [interpreter.get_tensor(target["index"]) for target in targets]

        def run(x: Tree) -> Tree:
            columns = columns_of(x, sources)
            if (wanted := [(1, *values.shape[1:]) for values in columns]) != sizes:  # such as larger images
                for source, size in zip(sources, wanted, strict=True):
                    interpreter.resize_tensor_input(source["index"], size)
                interpreter.allocate_tensors()
                sizes[:] = wanted
            return answers(columns, targets, execute)

        return run

    def grids_of(self, path: Path, entry: int = 0) -> tuple[list[Grid | None], list[Grid | None]]:
        """Return the grids of the inputs and of the outputs of a file; None for those that are no codes.

        Of several signatures, those of the one at this place.

        Raises
        ------
        ImportError
            If the ``litert`` extra is not installed.
        """
        return grids_of(path, entry)

    def signatures_of(self, path: Path) -> list[str]:
        """Return the names of the signatures of a file, that of the network's own size first.

        Raises
        ------
        ImportError
            If the ``litert`` extra is not installed.
        """
        found: list[str]
        found = import_extra("litert", "objectives.runtimes.litert.signatures").signatures_of(path.read_bytes())
        return found

    def oldest_version(self, path: Path) -> str:
        """Return the oldest version of `ai-edge-litert` that takes a file, of those that were tried.

        Raises
        ------
        ImportError
            If the ``litert`` extra is not installed.
        """
        packing = import_extra("litert", "objectives.runtimes.litert.packing")
        return self.oldest[packing.narrowest(path.read_bytes())]


def grids_of(path: Path, entry: int) -> tuple[list[Grid | None], list[Grid | None]]:
    """Return the grids of the inputs and of the outputs of a .tflite file; see `LiteRt.grids_of`."""
    found: tuple[list[Grid | None], list[Grid | None]]
    found = import_extra("litert", "objectives.runtimes.litert.ends").grids_of(path.read_bytes(), entry)
    return found


def _by_sizes(runners: Sequence[Any]) -> Callable[[Tree], Tree]:
    """Return a function that executes the signature whose inputs have the sizes of those that it gets."""
    runs = {}
    for runner in runners:
        inputs, outputs = _numbered(runner.get_input_details()), _numbered(runner.get_output_details())
        sizes = tuple(tuple(int(length) for length in one["shape"][1:]) for one in inputs.values())
        runs[sizes] = runner, inputs, outputs

    def run(x: Tree) -> Tree:
        sizes = tuple(tuple(tensor.shape[1:]) for tensor in leaves(x))
        if sizes not in runs:
            raise ValueError(f"the signatures of the file take inputs of {[*runs]}, but got {sizes}")
        runner, inputs, outputs = runs[sizes]

        def execute(row: list[NDArray[Any]]) -> list[NDArray[Any]]:
            found = runner(**dict(zip(inputs, row, strict=True)))
            return [found[name] for name in outputs]

        return answers(columns_of(x, [*inputs.values()]), [*outputs.values()], execute)

    return run


def _numbered(details: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the inputs or outputs of a signature in the order of the numbers that their names end with."""
    return {name: details[name] for name in sorted(details, key=lambda name: int(name.rpartition("_")[2]))}


def columns_of(x: Tree, sources: list[dict[str, Any]]) -> list[NDArray[Any]]:
    """Return a batch of inputs as the input tensors of a file take them."""
    given = [np.ascontiguousarray(tensor.detach().numpy()) for tensor in leaves(x)]
    return [_quantized(values, source) for values, source in zip(given, sources, strict=True)]


def answers(
    columns: list[NDArray[Any]],
    targets: list[dict[str, Any]],
    execute: Callable[[list[NDArray[Any]]], list[NDArray[Any]]],
) -> Tree:
    """Return the outputs of a file that takes one input at a time, for a batch.

    Parameters
    ----------
    columns
        The batch, as `columns_of` returns it.
    targets
        The output tensors of the file.
    execute
        Returns the outputs for one input.
    """
    results: list[list[NDArray[Any]]] = [[] for _ in targets]
    for row in zip(*columns, strict=True):
        for found, target, values in zip(results, targets, execute([one[None] for one in row]), strict=True):
            found.append(_dequantized(values, target))
    tensors = [torch.from_numpy(np.concatenate(found)) for found in results]
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def _quantized(values: NDArray[Any], tensor: dict[str, Any]) -> NDArray[Any]:
    """Return the values as the type of an input tensor of the file, which may be 8-bit integers."""
    if values.dtype == tensor["dtype"] or not _is_rounded(tensor):
        return values.astype(tensor["dtype"], copy=False)  # the converter makes 32-bit integers of 64-bit ones
    scale, zero = tensor["quantization"]
    limits = np.iinfo(tensor["dtype"])
    codes: NDArray[Any] = (np.rint(values / np.float32(scale)) + zero).clip(limits.min, limits.max)
    return codes.astype(tensor["dtype"])


def _dequantized(codes: NDArray[Any], tensor: dict[str, Any]) -> NDArray[Any]:
    """Return the values of an output tensor of the file as floats."""
    if not _is_rounded(tensor):
        return codes
    scale, zero = tensor["quantization"]
    values: NDArray[Any] = (codes.astype(np.float32) - np.float32(zero)) * np.float32(scale)
    return values


def _is_rounded(tensor: dict[str, Any]) -> bool:
    """Return whether the integers of a tensor stand for numbers; a network may also take or give integers itself."""
    return tensor["dtype"] in {np.int8, np.uint8} and bool(tensor["quantization"][0])
