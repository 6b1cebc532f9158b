"""ONNX Runtime: one .onnx file, with integer weights packed to their bit width."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from objectives.flat import NOT_IN_NAMES
from objectives.layers import FLOAT_BITS
from objectives.runtimes.ends import require_one_entry
from objectives.runtimes.file_layout import FileLayout
from objectives.runtimes.onnx.loading import ONNX_LOADING
from objectives.runtimes.runtime import Precision, import_extra, require_eval_mode, require_threads
from objectives.runtimes.versions import taken_widths
from objectives.trees import Tree, leaves


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """ONNX Runtime on the CPU.

    The file holds the trained scales, zero points and codes unchanged. Weights of 3 and 4 bits are stored as 4-bit
    integers, of 2 bits as 2-bit integers, of 5 to 8 bits as bytes; the indices of a codebook take 2, 4 or 8 bits.
    Convolutions between quantized activations, and linear layers with quantized inputs, run in integer kernels. Other
    layers run in floating point; their weights are unpacked when the file is loaded.

    Parameters
    ----------
    threads
        Number of threads of one inference.
    version
        The oldest version of the runtime that must take the files, such as ``1.20``: integers that it does not take are
        neither offered nor stored. By default the version that is installed.
    """

    threads: int = 1
    version: str = field(default="", repr=False, metadata={"added": True})
    oldest: ClassVar[Mapping[int, str]] = {2: "1.24", 4: "1.23", 8: "1.19"}  # that takes integers of these bits
    loops: ClassVar[bool] = True  # whether it executes a Scan that reads weights outside of its body
    own_operators: ClassVar[bool] = True  # whether it executes the operators of ONNX Runtime that ONNX does not have
    recurrent_operators: ClassVar[bool] = True  # whether a recurrent layer whose inputs are not rounded is one operator
    integer_kinds: ClassVar[frozenset[str]] = frozenset({"Conv1d", "Conv2d", "Conv3d", "Linear"})  # of integer kernels

    def __post_init__(self) -> None:
        """Check the number of threads and the version."""
        require_threads(self.threads)
        taken_widths(self.version, self.oldest)

    @property
    def bits(self) -> tuple[int, ...]:
        """Bits of the integers in a file, ascending."""
        return taken_widths(self.version, self.oldest)

    @property
    def name(self) -> str:
        """``onnx``."""
        return "onnx"

    @property
    def loading(self) -> Mapping[str, str]:
        """How a file is loaded, by language."""
        return ONNX_LOADING

    @property
    def suffix(self) -> str:
        """``onnx``."""
        return "onnx"

    @property
    def channels(self) -> int:
        """8: 17, 25 or 31 channels take 1.1 to 2.4 times as long as 24 or 32. With AVX-512, 24 take as long as 32."""
        return 8

    @property
    def integers_only(self) -> bool:
        """False."""
        return False

    @property
    def layout(self) -> FileLayout:
        """Bytes (fitted): layers from files of stacked layers, the rest from 80 files of plans for four networks.

        The rest are rounded inputs and factors. On 60 files of other plans the error of the predicted size is at most
        4.0%, its median 0.3%.
        """
        return FileLayout(
            graph=190,
            convolution=68,
            linear=79,
            factor=24,
            linear_factor=45,
            padded=19,
            strided=18,
            grouped=14,
            sum=20,
            resize=158,
            floating=60,
            integer=78,
            floating_bits=self.bits,
            integer_bits=self.bits,
            codebook=99,
            inputs=78,
            clip=26,
        )

    def precisions(self, kind: str, groups: int) -> tuple[Precision, ...]:
        """Return the precisions of convolutions and linear layers; see `Runtime`."""
        del groups
        weights_only = tuple(Precision(bits, FLOAT_BITS) for bits in self.bits)
        integer = tuple(Precision(bits, 8) for bits in self.bits)
        return (*weights_only, *integer) if kind in self.integer_kinds else weights_only

    def export(self, model: nn.Module, example: Tree, path: Path) -> None:
        """Write ``model`` to one .onnx file with input ``x``, output ``y`` and any batch size.

        Several inputs or outputs have the names of the keys of their dict, or are numbered: ``x1``, ``x2``.

        Parameters
        ----------
        model
            A finished model in eval mode; it is not changed.
        example
            A batch of inputs; only its dtype and its shape without the batch dimension matter.
        path
            The file to write; its folder must exist.

        Raises
        ------
        ExportError
            If an operator has no ONNX form, the model cannot be traced, or an entry point for each of several sizes of
            images is asked for.
        ImportError
            If the extra of the runtime's name is not installed.
        """
        onnx = import_extra(self.name, "onnx")
        require_eval_mode(model)
        require_one_entry(model, "an .onnx file takes images of any size with --dynamic-size")
        tracing = import_extra(self.name, "objectives.runtimes.onnx.tracing")
        graph = tracing.trace(model, example, min(self.bits), loops=self.loops)
        packing = import_extra(self.name, "objectives.runtimes.onnx.packing")
        packed = packing.pack(graph, min(self.bits), own_operators=self.own_operators)
        onnx.checker.check_model(packed)
        path.write_bytes(packed.SerializeToString(deterministic=True))

    def load(self, path: Path) -> Callable[[Tree], Tree]:
        """Return a function that executes the file at ``path`` on a CPU batch of any size.

        Parameters
        ----------
        path
            A file written by `export`.

        Raises
        ------
        ImportError
            If the ``onnx`` extra is not installed.
        """
        session = _open(path.read_bytes(), self.threads, wide=_saturates())

        names = [one.name for one in session.get_inputs()]

        def run(x: Tree) -> Tree:
            results = [torch.from_numpy(result) for result in session.run(None, arrays(names, x))]
            return results[0] if len(results) == 1 else tuple(results)

        return run

    def oldest_version(self, path: Path) -> str:
        """Return the oldest version of the runtime that takes a file, of those that were tried.

        Raises
        ------
        ImportError
            If the extra of the runtime's name is not installed.
        """
        onnx = import_extra(self.name, "onnx")
        stored = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
        kinds = onnx.TensorProto
        narrow = {2: {kinds.INT2, kinds.UINT2}, 4: {kinds.INT4, kinds.UINT4}}
        return self.oldest[next((bits for bits, names in narrow.items() if names & stored), 8)]


def arrays(names: Sequence[str], inputs: Tree) -> dict[str, NDArray[Any]]:
    """Return the inputs of a file by name: a dict has the names, all else their order."""
    if isinstance(inputs, Mapping):
        tensors = {NOT_IN_NAMES.sub("_", str(name)): tensor for name, tensor in inputs.items()}
        if set(names) <= set(tensors):
            inputs = tuple(tensors[name] for name in names)
    values = [np.ascontiguousarray(tensor.detach().numpy()) for tensor in leaves(inputs)]
    return dict(zip(names, values, strict=True))


def _open(content: bytes, threads: int, *, wide: bool) -> Any:  # noqa: ANN401 - onnxruntime has no types
    """Start a session; ``wide`` selects kernels that sum products in 32 bits and take about twice as long."""
    onnxruntime = import_extra("onnx", "onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    if wide:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@cache
def _saturates() -> bool:
    """Check whether integer convolutions on this processor saturate their sums at 16 bits.

    x86 processors without VNNI add two uint8 x int8 products in 16 bits, so that 8-bit weights with 8-bit activations
    saturate (28 instead of 55 dB on a small network). `session.x64quantprecision` avoids that, but doubles the time
    even where nothing saturates. Therefore a convolution with a known result is executed first.
    """
    helper, kinds = import_extra("onnx", "onnx").helper, import_extra("onnx", "onnx").TensorProto
    channels, step = 16, 255.0 * 127.0 * 16 / 200
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "one"], ["e"]),
        helper.make_node("Conv", ["d", "e"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "step"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "step"], ["y"]),
    ]
    constants = [
        helper.make_tensor("one", kinds.FLOAT, (), [1.0]),
        helper.make_tensor("step", kinds.FLOAT, (), [step]),
        helper.make_tensor("w", kinds.INT8, (channels, channels, 1, 1), [127] * channels**2),
    ]
    shape = (1, channels, 4, 4)
    ends = [helper.make_tensor_value_info(name, kinds.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = _open(model.SerializeToString(), 1, wide=False)
    (result,) = session.run(None, {"x": np.full(shape, 255.0, np.float32)})
    return bool(result.min() < 199 * step)
