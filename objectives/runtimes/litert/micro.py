"""TFLite Micro, the interpreter of microcontrollers: .tflite files of integers, and the memory that they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from objectives.runtimes.ends import WithEnds, network_of
from objectives.runtimes.errors import ExportError
from objectives.runtimes.file_layout import FileLayout
from objectives.runtimes.litert.arena_tries import ArenaTries
from objectives.runtimes.litert.loading import MICRO_LOADING
from objectives.runtimes.litert.runtime import answers, columns_of, grids_of
from objectives.runtimes.runtime import Precision, export_error, import_extra, require_eval_mode, require_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from objectives.runtimes.passes.grid import Grid
    from objectives.trees import Tree

IDENTIFIER = slice(4, 8), b"TFL3"  # of a .tflite file
_INTERPRETER = "tflite_micro.python.tflite_micro.runtime"


@dataclass(frozen=True, slots=True)
class TfliteMicro:
    """TFLite Micro, whose own interpreter executes the files here, with its reference kernels.

    Convolutions and linear layers take integers alone: inputs of 8 bits, and weights of 8 bits, or of 4 in
    convolutions, with a scale for each output channel. A file with integer weights and inputs in floating point would
    load and be wrong, so such weights are stored as floats. If the network begins and ends with a layer of integers, so
    do the inputs and outputs of the file, whose scales it contains. Operators that have no integer form here, such as
    LayerNorm, compute in floating point between layers of integers.

    Parameters
    ----------
    threads
        Number of threads of one inference; the interpreter has one.
    """

    threads: int = 1

    def __post_init__(self) -> None:
        """Check the number of threads."""
        require_threads(self.threads)
        if self.threads != 1:
            raise ValueError(f"TFLite Micro computes with one thread, but got threads={self.threads}")

    @property
    def name(self) -> str:
        """``tflite-micro``."""
        return "tflite-micro"

    @property
    def loading(self) -> Mapping[str, str]:
        """How a file is loaded, by language."""
        return MICRO_LOADING

    @property
    def suffix(self) -> str:
        """``tflite``."""
        return "tflite"

    @property
    def channels(self) -> int:
        """4: the kernels of Arm (CMSIS-NN) multiply four 8-bit numbers at once."""
        return 4

    @property
    def integers_only(self) -> bool:
        """True: boards compute with integers, and many have no unit for floating point."""
        return True

    @property
    def layout(self) -> FileLayout:
        """Bytes (fitted, from 48 files of plans for four networks: `studies.file_sizes`)."""
        return FileLayout(
            graph=1500,
            convolution=206,
            linear=12,
            factor=-66,
            linear_factor=-12,
            grouped_factor=49,
            strided=86,
            apart=86,
            sum=141,
            resize=220,
            floating=88,
            integer=112,
            integer_scale=8,
            zeros=11,
            mixed=189,
            ends=28,
            integer_bits=(4, 8),
        )

    def precisions(self, kind: str, groups: int) -> tuple[Precision, ...]:
        """Return the precisions of two-dimensional convolutions and of linear layers; see `Runtime`."""
        del groups
        linear = (Precision(8, 8),)
        return {"Conv2d": (Precision(4, 8), *linear), "Linear": linear}.get(kind, ())

    def export(self, model: nn.Module, example: Tree, path: Path) -> None:
        """Write ``model`` to one .tflite file that takes one input at a time; see `Runtime`.

        Raises
        ------
        ExportError
            If there is no operator of LiteRT for one of the model's, or TFLite Micro does not have it.
        ImportError
            If the ``micro`` or the ``litert`` extra is not installed.
        """
        require_eval_mode(model)
        if isinstance(model, WithEnds) and (model.form.free_size or model.form.sizes):
            raise ExportError(
                "a file for TFLite Micro takes images of one size, for which it plans all of its memory; leave out "
                "--sizes and --dynamic-size"
            )
        import_extra("micro", _INTERPRETER)
        packing = import_extra("litert", "objectives.runtimes.litert.packing")
        content = packing.convert(model, example, packing.MICRO)
        try:
            with ArenaTries(content) as tries:
                tries.sufficient()
        except ExportError as error:
            raise export_error(network_of(model), "a TFLite Micro", error) from error
        path.write_bytes(content)

    def load(self, path: Path) -> Callable[[Tree], Tree]:
        """Return a function that executes the file at ``path`` on a CPU batch of any size, one input after another.

        Raises
        ------
        ExportError
            If the interpreter does not take the file.
        ImportError
            If the ``micro`` extra is not installed.
        ValueError
            If it is not a .tflite file.
        """
        import_extra("micro", _INTERPRETER)
        interpreter, inputs, outputs = _interpreter(_content(path))

        def execute(row: list[NDArray[Any]]) -> list[NDArray[Any]]:
            for place, values in enumerate(row):
                interpreter.set_input(values, place)
            interpreter.invoke()
            return [interpreter.get_output(place) for place in range(len(outputs))]

        def run(x: Tree) -> Tree:
            return answers(columns_of(x, inputs), outputs, execute)

        return run

    def arena_bytes(self, path: Path) -> int:
        """Return the bytes of RAM that the interpreter needs for a file, its tensors and its own tables.

        It is the smallest arena, to 16 bytes, in which the interpreter starts here. Its tables hold pointers of 8
        bytes; a board with pointers of 4 bytes needs somewhat less.

        Raises
        ------
        ExportError, ImportError, ValueError
            See `load`.
        """
        import_extra("micro", _INTERPRETER)
        with ArenaTries(_content(path)) as tries:
            return tries.smallest()

    def grids_of(self, path: Path, entry: int = 0) -> tuple[list[Grid | None], list[Grid | None]]:
        """Return the grids of the inputs and of the outputs of a file; see `LiteRt.grids_of`."""
        return grids_of(path, entry)

    def c_source(self, path: Path) -> str:
        """Return a file as C++ source, an aligned array, for programs without a file system."""
        content = path.read_bytes()
        rows = [content[start : start + 12] for start in range(0, len(content), 12)]
        numbers = "\n".join("    " + " ".join(f"0x{byte:02x}," for byte in row) for row in rows)
        return (
            "// A network for TFLite Micro: tflite::GetModel(model_tflite).\n"
            "#include <cstdint>\n\n"
            f"extern const unsigned int model_tflite_len = {len(content)};\n"
            f"alignas(16) extern const uint8_t model_tflite[] = {{\n{numbers}\n}};\n"
        )


def _content(path: Path) -> bytes:
    """Return the bytes of a .tflite file.

    Raises
    ------
    ValueError
        If it is none.
    """
    content, (place, identifier) = path.read_bytes(), IDENTIFIER
    if content[place] != identifier:
        raise ValueError(f"{path} is not a .tflite file")
    return content


def _interpreter(content: bytes) -> tuple[Any, list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the interpreter of a file, and what its inputs and outputs are; errors as in `TfliteMicro.load`."""
    module = import_extra("micro", _INTERPRETER)
    with ArenaTries(content) as tries:
        arena = tries.sufficient()
    interpreter = module.Interpreter.from_bytes(content, arena_size=arena)
    graph = module.convert_bytearray_to_object(content).subgraphs[0]
    inputs = [_described(interpreter.get_input_details(place)) for place in range(len(graph.inputs))]
    outputs = [_described(interpreter.get_output_details(place)) for place in range(len(graph.outputs))]
    return interpreter, inputs, outputs


def _described(tensor: dict[str, Any]) -> dict[str, Any]:
    """Return what an input or an output is, as LiteRT's interpreter tells it."""
    parameters = tensor["quantization_parameters"]
    if not len(parameters["scales"]):
        return {"dtype": tensor["dtype"]}
    return {"dtype": tensor["dtype"], "quantization": (parameters["scales"][0], parameters["zero_points"][0])}
