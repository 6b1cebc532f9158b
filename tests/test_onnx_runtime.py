"""The outputs and the size of exported .onnx files, and the errors of models that cannot be exported."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, NoReturn

import onnx
import onnxruntime
import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from onnx import TensorProto
from torch import Tensor, fx, nn
from torch.fx.traceback import NodeSource
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from objectives.runtimes import ExportError, OnnxRuntime, OpenVino
from objectives.runtimes.exporting import exporting
from objectives.runtimes.onnx import translations
from objectives.runtimes.runtime import export_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OPS = torch.ops.quantized_decomposed
RUNTIME = OnnxRuntime()
EXACT = 100.0  # dB: only the order of floating-point sums differs
INTEGER = 38.0  # dB: integer kernels round a bias, which moves some outputs to the neighbouring level


class Codes(nn.Module):
    """A layer with uniform integer weights, which are random."""

    def __init__(self, bits: int, operator: Callable[..., Tensor], shape: tuple[int, ...], **options: int) -> None:
        super().__init__()
        self.axis = 1 if "transpose" in operator.__name__ else 0
        self.operator, self.options, self.limit = operator, options, 2 ** (bits - 1) - 1
        codes = torch.randint(-self.limit, self.limit + 1, shape, dtype=torch.int8)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scale", (torch.rand(shape[self.axis]) + 0.5) * 0.3 / self.limit)
        self.register_buffer("zeros", torch.zeros(shape[self.axis], dtype=torch.int64))
        self.bias = nn.Parameter(torch.randn(shape[self.axis]) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        """Dequantize the weight and apply the operator."""
        grid = (self.scale, self.zeros, self.axis, -self.limit, self.limit, torch.int8)
        weight: Tensor = OPS.dequantize_per_channel(self.codes, *grid)
        return self.operator(x, weight, self.bias, **self.options)


class Codebook(nn.Module):
    """A 3x3 convolution whose weight consists of entries of a codebook."""

    def __init__(self, entries: int, channels: int) -> None:
        super().__init__()
        self.codebook: Tensor
        self.scale: Tensor
        codes = torch.randint(0, entries, (channels, channels, 3, 3)).to(torch.uint8)
        codes.view(-1)[0] = entries - 1
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("codebook", torch.randn(entries) * 0.1)
        self.register_buffer("scale", torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Look up the weight and apply the convolution."""
        weight: Tensor = self.codebook[self.codes.long()] * self.scale.view(-1, 1, 1, 1)
        return F.conv2d(x, weight, padding=1)


class Levels(nn.Module):
    """A layer that quantizes and dequantizes activations."""

    def __init__(self, bits: int, largest: float, zero_point: int = 0) -> None:
        super().__init__()
        top = 2**bits - 1
        self.grid = (largest / (top - zero_point), zero_point, 0, top, torch.uint8)

    def forward(self, x: Tensor) -> Tensor:
        """Round the activations to the levels."""
        rounded: Tensor = OPS.dequantize_per_tensor(OPS.quantize_per_tensor(x, *self.grid), *self.grid)
        return rounded


class Residual(nn.Module):
    """A residual block of two quantized convolutions."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.before, self.inside = Levels(8, 4.0, 128), Levels(8, 4.0)
        self.first, self.second = (Codes(bits, F.conv2d, (8, 8, 3, 3), padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Add the output of two convolutions to the input."""
        x = self.before(x)
        result: Tensor = self.inside(F.relu(x + self.second(self.inside(F.relu(self.first(x))))))
        return result


class Pair(nn.Module):
    """A network with two outputs."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return two tensors."""
        return x + 1, x - 1


class Bessel(nn.Module):
    """A network with an operator that has no ONNX form."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the Bessel function of the input."""
        result: Tensor = torch.special.bessel_j0(x)
        return result


def weight_only_layers(bits: int) -> nn.Sequential:
    """Return one convolution of each kind and a linear layer, all with floating-point activations."""
    return nn.Sequential(
        Codes(bits, F.conv2d, (32, 4, 3, 3), padding=1),
        nn.ReLU(),
        Codes(bits, F.conv2d, (32, 1, 3, 3), groups=32),
        Codes(bits, F.conv2d, (32, 8, 3, 3), groups=4),
        nn.MaxPool2d(2),
        nn.Flatten(),
        Codes(bits, F.linear, (10, 32 * 4 * 4)),
    )


def chain(weight_bits: int, activation_bits: int) -> nn.Sequential:
    """Return three convolutions with quantized inputs and outputs, the last one depthwise."""
    return nn.Sequential(
        Levels(activation_bits, 4.0, 2 ** (activation_bits - 1)),
        Codes(weight_bits, F.conv2d, (16, 4, 3, 3), padding=1),
        nn.ReLU(),
        Levels(activation_bits, 4.0),
        Codes(weight_bits, F.conv2d, (16, 16, 3, 3), stride=2),
        nn.ReLU6(),
        Levels(activation_bits, 5.9),
        Codes(weight_bits, F.conv2d, (16, 1, 3, 3), groups=16),
        Levels(activation_bits, 4.0, 2 ** (activation_bits - 1)),
    )


def sqnr(reference: Tensor, other: Tensor) -> float:
    """Return the power of the reference over the power of the difference, in dB."""
    return float(10 * torch.log10(reference.square().mean() / (reference - other).square().mean().clamp_min(1e-30)))


def exported(model: nn.Module, shape: tuple[int, ...], folder: Path) -> tuple[Path, float]:
    """Export a network; return its file and the SQNR against torch, the lower of two batch sizes."""
    path = folder / "model.onnx"
    RUNTIME.export(model.eval(), torch.randn(1, *shape), path)
    run = RUNTIME.load(path)
    with torch.no_grad():
        return path, min(sqnr(model(x), run(x)) for x in (torch.randn(1, *shape), torch.randn(7, *shape)))


def executed(path: Path, folder: Path, precision: str) -> Counter[str]:
    """Count the operators that ONNX Runtime executes; one that reads a constant at every run counts as "weight"."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.add_session_config_entry("session.x64quantprecision", precision)
    onnxruntime.InferenceSession(str(path), options)
    graph = onnx.load(folder / "optimized.onnx").graph
    constants = {tensor.name for tensor in graph.initializer}
    return Counter("weight" if node.input[0] in constants else node.op_type for node in graph.node)


def kinds(path: Path) -> Counter[int]:
    """Count the types of the initializers with more than one dimension."""
    return Counter(tensor.data_type for tensor in onnx.load(path).graph.initializer if len(tensor.dims) > 1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_are_packed_to_their_bits_and_outputs_agree(bits: int, tmp_path: Path) -> None:
    """The file is little larger than the packed codes, scales and biases."""
    model = weight_only_layers(bits)
    path, agreement = exported(model, (4, 12, 12), tmp_path)
    stored, kind = (2, TensorProto.INT2) if bits == 2 else (4, TensorProto.INT4) if bits <= 4 else (8, TensorProto.INT8)
    layers = [module for module in model if isinstance(module, Codes)]
    payload = sum(layer.codes.numel() * stored / 8 + 8 * layer.codes.shape[0] for layer in layers)
    assert agreement > EXACT
    assert kinds(path)[kind] == len(layers)
    assert payload < path.stat().st_size < payload + 140 * len(layers) + 220


@pytest.mark.parametrize(
    ("entries", "kind"),
    [(4, TensorProto.UINT2), (16, TensorProto.UINT4), (17, TensorProto.UINT8), (256, TensorProto.UINT8)],
)
def test_codebooks_are_stored_as_tables_and_packed_indices(entries: int, kind: int, tmp_path: Path) -> None:
    """Indices take 2, 4 or 8 bits, and the file does not contain the dequantized weight."""
    path, agreement = exported(nn.Sequential(Codebook(entries, 8), nn.ReLU()), (8, 6, 6), tmp_path)
    bits = {4: 2, 16: 4}.get(entries, 8)
    assert agreement > EXACT
    assert kinds(path)[kind] == 1
    assert path.stat().st_size < 8 * 8 * 9 * bits / 8 + 4 * entries + 4 * 8 + 260


@pytest.mark.parametrize("bits", range(4, 9))
def test_activations_saturate_at_their_width(bits: int, tmp_path: Path) -> None:
    """The levels equal those of torch exactly, also far outside the range."""
    model = nn.Sequential(Levels(bits, 3.0, 3), nn.Flatten()).eval()
    RUNTIME.export(model, torch.randn(2, 4, 5), tmp_path / "model.onnx")
    x = torch.randn(50, 4, 5) * 5
    assert torch.equal(RUNTIME.load(tmp_path / "model.onnx")(x), model(x))


@pytest.mark.parametrize("weight_bits", [2, 4, 5, 8])
@pytest.mark.parametrize("precision", ["0", "1"])
def test_a_chain_of_quantized_layers_runs_in_integer_kernels(weight_bits: int, precision: str, tmp_path: Path) -> None:
    """All convolutions become integer convolutions, also with packed weights, with and without the x86 option."""
    path, agreement = exported(chain(weight_bits, 8), (4, 16, 16), tmp_path)
    operators = executed(path, tmp_path, precision)
    assert agreement > INTEGER
    assert operators["QLinearConv"] == 3
    assert operators["weight"] == 0
    assert not {"Relu", "Clip"} & {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize("shape", [(40,), (5, 40)], ids=["rows", "tokens"])
@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(2, 8), (4, 4), (8, 8)])
@pytest.mark.parametrize("precision", ["0", "1"])
def test_linear_layers_with_rounded_inputs_multiply_integers(
    precision: str, weight_bits: int, activation_bits: int, shape: tuple[int, ...], tmp_path: Path
) -> None:
    """Their sums are exact, also on processors that saturate, and their weights are packed."""
    without_bias = Codes(weight_bits, F.linear, (10, 24))
    without_bias.bias = None  # type: ignore[assignment]
    rounding = (Levels(activation_bits, 4.0, 2 ** (activation_bits - 1)), Levels(activation_bits, 4.0))
    net = nn.Sequential(rounding[0], Codes(weight_bits, F.linear, (24, 40)), nn.ReLU(), rounding[1], without_bias)
    path, agreement = exported(net, shape, tmp_path)
    assert agreement > EXACT
    found = executed(path, tmp_path, precision)
    assert (found["MatMulIntegerToFloat"], found["weight"]) == (2, 0)
    assert not {"Gemm", "MatMul", "Add", "DequantizeLinear"} & found.keys()
    packed = {2: TensorProto.UINT2, 4: TensorProto.UINT4, 8: TensorProto.UINT8}[weight_bits]
    assert kinds(path) == {packed: 2}


def test_openvino_gets_no_operators_of_onnx_runtime(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    net = nn.Sequential(Levels(8, 4.0, 128), Codes(8, F.linear, (24, 40))).eval()
    OpenVino().export(net, torch.randn(2, 40), path)
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} == {""}
    assert [known.domain for known in model.opset_import] == [""]


@pytest.mark.parametrize("activation_bits", [4, 6])
def test_outputs_agree_for_activations_of_few_bits(activation_bits: int, tmp_path: Path) -> None:
    """Floating-point kernels run where rounding the bias would matter, and their weights are not rounded."""
    path, agreement = exported(chain(4, activation_bits), (4, 16, 16), tmp_path)
    assert agreement > INTEGER
    assert executed(path, tmp_path, "1")["weight"] == 0


@pytest.mark.parametrize("codebook", [True, False])
def test_a_float_layer_between_quantizers_keeps_its_weight(
    codebook: bool,  # noqa: FBT001 - a test parameter
    tmp_path: Path,
) -> None:
    """ONNX Runtime would round it to 8 bits without the guard."""
    layer = Codebook(16, 16) if codebook else nn.Conv2d(16, 16, 3)
    model = nn.Sequential(Levels(8, 4.0, 128), layer, nn.ReLU(), Levels(8, 3.0))
    assert exported(model, (16, 8, 8), tmp_path)[1] > 60


@pytest.mark.parametrize("between", [nn.MaxPool2d(2), nn.Flatten()], ids=["pool", "flatten"])
@pytest.mark.parametrize("bits", [8, 32])
def test_operators_between_a_layer_and_its_quantizer_do_not_change_the_kernel(
    bits: int, between: nn.Module, tmp_path: Path
) -> None:
    """ONNX Runtime moves quantizers across pooling and reshaping."""
    layer = nn.Conv2d(16, 16, 3) if bits == 32 else Codes(bits, F.conv2d, (16, 16, 3, 3))
    model = nn.Sequential(Levels(8, 4.0, 128), layer, nn.ReLU(), between, Levels(8, 3.0))
    path, agreement = exported(model, (16, 8, 8), tmp_path)
    assert agreement > (60 if bits == 32 else INTEGER)
    assert executed(path, tmp_path, "0")["QLinearConv"] == (bits < 32)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_outputs_of_a_residual_block_agree(bits: int, tmp_path: Path) -> None:
    """The convolution before the addition runs in floating point, and its weight is unpacked once."""
    path, agreement = exported(Residual(bits), (8, 8, 8), tmp_path)
    operators = executed(path, tmp_path, "1")
    assert agreement > INTEGER
    assert operators["QLinearConv"] == 1
    assert operators["weight"] == 0


@pytest.mark.parametrize(
    ("operator", "shape", "input_shape"),
    [
        (F.conv1d, (8, 4, 3), (4, 20)),
        (F.conv3d, (4, 2, 3, 3, 3), (2, 6, 6, 6)),
        (F.conv_transpose2d, (4, 6, 2, 2), (4, 5, 5)),
        (F.linear, (6, 5), (7, 5)),
        (F.linear, (9000, 5), (5,)),
    ],
    ids=["conv1d", "conv3d", "transposed", "tokens", "many outputs"],
)
@pytest.mark.parametrize("quantized", [False, True])
def test_the_outputs_of_other_layers_agree(
    operator: Callable[..., Tensor],
    shape: tuple[int, ...],
    input_shape: tuple[int, ...],
    quantized: bool,  # noqa: FBT001 - a test parameter
    tmp_path: Path,
) -> None:
    """Convolutions in one and three dimensions, transposed ones, and linear layers on tokens."""
    layer = Codes(4, operator, shape)
    model = nn.Sequential(Levels(8, 3.0, 128), layer, Levels(8, 3.0, 128)) if quantized else layer
    assert exported(model, input_shape, tmp_path)[1] > (INTEGER if quantized else EXACT)


@pytest.mark.parametrize("dead", [1, 16])  # of 16 channels
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_layer_with_a_channel_of_a_tiny_scale_runs_in_integer_kernels(bits: int, dead: int, tmp_path: Path) -> None:
    """The bias of a dead channel, in units of that scale, would exceed 32 bits."""
    model = chain(bits, 8)
    with torch.no_grad():
        model[1].get_buffer("scale")[0] = torch.finfo(torch.float32).tiny
        model[4].get_buffer("scale")[:3] = 1e-11
        model[7].get_buffer("scale")[:dead] = 1e-11
    path, agreement = exported(model, (4, 16, 16), tmp_path)
    assert agreement > INTEGER
    assert executed(path, tmp_path, "1")["QLinearConv"] == 3


@pytest.mark.parametrize(("groups", "integer"), [(1, True), (2, True), (4, False), (16, False), (32, True)])
def test_layers_of_small_groups_run_in_floating_point(
    groups: int,
    integer: bool,  # noqa: FBT001 - a test parameter
    tmp_path: Path,
) -> None:
    """Their integer kernels are up to ten times as slow; those of one channel in each group are not."""
    layer = Codes(8, F.conv2d, (32, 32 // groups, 3, 3), groups=groups)
    model = nn.Sequential(Levels(8, 4.0, 128), layer, nn.ReLU(), Levels(8, 4.0))
    path, agreement = exported(model, (32, 8, 8), tmp_path)
    assert agreement > INTEGER
    assert executed(path, tmp_path, "1")["QLinearConv"] == integer


def test_a_channel_is_not_rounded_more_coarsely_than_its_output(tmp_path: Path) -> None:
    """With a larger scale, the many weights of this channel, all alike, would move its output by some steps."""
    layer = Codes(2, F.conv2d, (4, 512, 3, 3))
    with torch.no_grad():
        layer.codes[0], layer.bias[0] = 1, 0.2
        layer.get_buffer("scale")[0] = 0.49 * 64 * 0.2 / (4 / 255 * 2**30)
    model = nn.Sequential(nn.ReLU(), Levels(8, 4.0), layer, Levels(8, 0.3))
    assert exported(model, (512, 6, 6), tmp_path)[1] > INTEGER


@pytest.mark.parametrize(("scale", "integer"), [(0.05, True), (1.5, False)])
def test_a_bias_is_rounded_by_a_small_part_of_a_step_of_the_output(
    scale: float,
    integer: bool,  # noqa: FBT001 - a test parameter
    tmp_path: Path,
) -> None:
    layer = Codes(8, F.conv2d, (16, 16, 3, 3))
    with torch.no_grad():
        layer.get_buffer("scale")[0] = scale
    model = nn.Sequential(Levels(8, 4.0, 128), layer, nn.ReLU6(), Levels(8, 6.0))
    path, agreement = exported(model, (16, 8, 8), tmp_path)
    assert agreement > (INTEGER if integer else 60)
    assert executed(path, tmp_path, "1")["QLinearConv"] == integer


@pytest.mark.parametrize(
    ("padding", "value", "merged"),
    [((0, 1, 0, 1), 0.0, True), ((1, 2, 1, 2), 0.0, True), ((0, 1, 0, 1), 1.0, False), ((0, -1, 1, 1), 0.0, False)],
)
@pytest.mark.parametrize("own", [0, 1])
def test_zeros_before_a_quantizer_become_the_padding_of_the_convolution(
    padding: tuple[int, int, int, int],
    value: float,
    merged: bool,  # noqa: FBT001 - a test parameter
    own: int,
    tmp_path: Path,
) -> None:
    """So the convolution before them is fused with the quantizer; networks of TensorFlow pad in this way."""
    model = nn.Sequential(
        Levels(8, 4.0, 128),
        Codes(8, F.conv2d, (16, 4, 3, 3)),
        nn.ReLU6(),
        nn.ConstantPad2d(padding, value),
        Levels(8, 5.9),
        Codes(8, F.conv2d, (16, 1, 3, 3), groups=16, stride=2, padding=own),
        Levels(8, 4.0, 128),
    )
    path, agreement = exported(model, (4, 16, 16), tmp_path)
    assert agreement > INTEGER
    assert ("Pad" in {node.op_type for node in onnx.load(path).graph.node}) != merged
    if merged:
        assert executed(path, tmp_path, "1")["QLinearConv"] == 2


def test_export_is_silent_and_changes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    """Export prints nothing, warns of nothing, does not change the model, and writes the same bytes twice."""
    model = chain(4, 8).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for name in ("first", "second"):
        RUNTIME.export(model, torch.randn(1, 4, 16, 16), tmp_path / name)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_an_operator_without_onnx_form_is_named(tmp_path: Path) -> None:
    """The error message is one line."""
    with pytest.raises(ExportError, match=r"^every operator .* but Bessel fails: .*bessel_j0[^\n]*$"):
        RUNTIME.export(Bessel().eval(), torch.randn(1, 3), tmp_path / "model.onnx")


class Mixture(nn.Module):
    """A network whose einsum of three tensors torch.export traces with a batch of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 4), nn.Parameter(torch.ones(4, 6, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("btef,efd,bte->btd", x, self.experts, self.gate(x.mean(2)).softmax(-1))


def test_a_batch_that_tracing_fixes_is_named_in_one_line(tmp_path: Path) -> None:
    """The message says which dimension is fixed, and how to free it."""
    reason = (
        r"^a file must take batches of any size, but Mixture fails: tracing inferred a static shape of 2 for dimension "
        r"0 of input 0; an operator of the forward pass fixes it, [^\n]*$"
    )
    with pytest.raises(ExportError, match=reason):
        RUNTIME.export(Mixture().eval(), torch.randn(2, 3, 4, 6), tmp_path / "model.onnx")


def test_a_cause_that_follows_a_colon_is_part_of_the_message() -> None:
    """Messages of torch begin with a line that ends with a colon."""
    error = export_error(nn.Linear(1, 1), "an ONNX", RuntimeError("It failed:\n- the cause\n- more"))
    assert str(error).endswith("but Linear fails: It failed: - the cause")


def test_a_model_in_training_mode_is_an_error(tmp_path: Path) -> None:
    """Dropout and BatchNorm would be exported in training mode."""
    with pytest.raises(ExportError, match="must be in eval mode to be exported, but Linear is training"):
        RUNTIME.export(nn.Linear(3, 3), torch.randn(1, 3), tmp_path / "model.onnx")


@pytest.mark.parametrize("module", ["onnx", "onnxruntime"])
def test_a_missing_extra_is_named_in_the_error(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error contains the command that installs it."""

    def export_and_load() -> None:
        RUNTIME.export(nn.Linear(3, 3).eval(), torch.randn(1, 3), tmp_path / "model.onnx")
        RUNTIME.load(tmp_path / "model.onnx")

    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'but {module} is missing: pip install "slimfront\[onnx\]"$'):
        export_and_load()


def test_translations_are_read_once_and_an_export_adds_nothing_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted() -> dict[Any, int]:
        return {key: sum(map(len, one.functions.values())) for key, one in translations.known_registries.items()}

    def read_again(opset_version: int) -> NoReturn:
        raise AssertionError(opset_version)

    model, inputs = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), torch.randn(2, 4)
    RUNTIME.export(model, inputs, tmp_path / "first.onnx")
    before = counted()
    monkeypatch.setattr("torch.onnx._internal.exporter._registration.ONNXRegistry.from_torchlib", read_again)
    RUNTIME.export(model, inputs, tmp_path / "second.onnx")
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()
    assert before
    assert before == counted()


def test_origins_of_nodes_are_not_copied_for_each_pass() -> None:
    node = fx.symbolic_trace(nn.ReLU()).graph.output_node()
    node.meta["from_node"] = [NodeSource(None, "first")]
    copied = NodeSource(node, "second").from_node
    with exporting():
        shared = NodeSource(node, "second").from_node
    assert shared[0] is node.meta["from_node"][0]
    assert copied[0] is not shared[0]
    assert [origin.pass_name for origin in copied] == [origin.pass_name for origin in shared] == ["first"]


def test_operators_are_looked_up_again_if_there_are_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    utils = importlib.import_module("torch._export.utils")
    look_up, calls = utils._materialize_cpp_cia_ops, []
    monkeypatch.setattr(utils, "_materialize_cpp_cia_ops", lambda: calls.append(look_up()))
    with torch.library._scoped_library("slimfront", "DEF") as library:
        with exporting():
            utils._collect_all_valid_cia_ops()
            before = len(calls)
            utils._collect_all_valid_cia_ops()
        assert len(calls) == before <= 1
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: 2 * x, "CompositeImplicitAutograd")
        with exporting():
            found = {operator.name() for operator in utils._collect_all_valid_cia_ops()}
    assert len(calls) == before + 1
    assert "slimfront::twice" in found
