"""Recurrent layers and cells made of linear layers: the same outputs, every axis, every file."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from objectives import Bops, Macs, Parameters
from objectives.runtimes import ExecuTorch, LiteRt, OnnxRuntime, OpenVino
from spaces import (
    BitWidths,
    Distill,
    Factorize,
    Plan,
    Prune,
    PruneRatios,
    Quantize,
    Ranks,
    deployed,
    trace,
    with_plain_layers,
)
from spaces.costs.frame import Frame
from spaces.network import used_weights
from spaces.network.recurrent import Recurrent, RecurrentCell
from spaces.plan import architectures_of

if TYPE_CHECKING:
    from pathlib import Path

    from objectives.runtimes import Runtime
    from spaces import Anatomy
    from spaces.plan import Step

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch says so of its own layer
STEPS, FEATURES, UNITS = 5, 6, 16
X = torch.randn(8, STEPS, FEATURES, generator=torch.Generator().manual_seed(1))
SHORT = X[:, :2]
RECOVERY = Distill(temperature=4.0, weight=0.5)
LAYERS: dict[str, Any] = {
    f"{kind.__name__} {name}": (kind, settings)
    for kind in (nn.LSTM, nn.GRU, nn.RNN)
    for name, settings in {
        "one layer": {"batch_first": True},
        "time first": {},
        "bidirectional": {"batch_first": True, "bidirectional": True},
        "three layers": {"num_layers": 3, "batch_first": True, "dropout": 0.1},
        "two both ways without bias": {"num_layers": 2, "bidirectional": True, "bias": False},
    }.items()
} | {
    "RNN relu": (nn.RNN, {"nonlinearity": "relu", "batch_first": True}),
    "LSTM projected": (nn.LSTM, {"proj_size": 7, "batch_first": True}),
    "LSTM projected twice both ways": (nn.LSTM, {"proj_size": 7, "num_layers": 2, "bidirectional": True}),
}  # fmt: skip


class Reader(nn.Module):
    """A linear layer, a recurrent one, and a classifier of the last step."""

    def __init__(self, kind: Any, **settings: Any) -> None:
        super().__init__()
        self.front = nn.Linear(FEATURES, 12)
        self.rnn = kind(12, UNITS, **settings)
        sides = 1 + self.rnn.bidirectional
        self.head = nn.Linear((self.rnn.proj_size or UNITS) * sides, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.front(x).relu()
        y = self.rnn(y if self.rnn.batch_first else y.transpose(0, 1))[0]
        return self.head(y[:, -1] if self.rnn.batch_first else y[-1])  # type: ignore[no-any-return]


def reader(name: str) -> nn.Module:
    torch.manual_seed(0)
    kind, settings = LAYERS[name]
    return Reader(kind, **settings).eval()


def sqnr(got: Tensor, want: Tensor) -> float:
    return float(10 * torch.log10(want.square().mean() / (got - want).square().mean().clamp_min(1e-30)))


def recurrent_layers(anatomy: Anatomy) -> list[str]:
    return [layer.name for layer in anatomy.layers if layer.name not in {"front", "head"}]


def everything(anatomy: Anatomy, bits: tuple[int, int] = (8, 32)) -> Plan:
    """Half of the units, half of the ranks, and 8 bits of everything that is recurrent."""
    names = recurrent_layers(anatomy)
    steps: tuple[Step, ...] = (
        Prune(tuple((group.name, 0.5) for group in anatomy.groups)),
        Factorize(tuple((name, 0.25) for name in names)),
        Quantize(tuple((name, *bits) for name in names)),
    )
    return Plan(steps, RECOVERY)


def test_recurrent_layers_keep_their_inputs_where_they_are_one_operator() -> None:
    """With rounded inputs an .onnx file would have their steps one by one; other linear layers may have them."""
    anatomy = trace(with_plain_layers(reader("LSTM bidirectional"), X), X)
    offered = BitWidths(runtime=OnnxRuntime()).offered(anatomy)
    rounded = {name for name, pairs in offered.items() if any(inputs == 8 for _, inputs in pairs)}
    assert rounded == {"front", "head"}
    assert offered.keys() - rounded == {*recurrent_layers(anatomy)}
    on_litert = BitWidths(runtime=LiteRt()).offered(anatomy)
    assert all((8, 8) in pairs for pairs in on_litert.values())


@pytest.mark.parametrize("name", LAYERS)
def test_linear_layers_compute_what_the_recurrent_layer_does(name: str) -> None:
    network = reader(name)
    plain = with_plain_layers(network, X)
    assert isinstance(plain.rnn, Recurrent)
    with torch.no_grad():
        assert sqnr(plain(X), network(X)) > 120
    stepwise = copy.deepcopy(plain)
    for module in stepwise.modules():
        module.register_forward_hook(lambda *_: None)  # the layers are called step by step
    with torch.no_grad():
        assert sqnr(stepwise(X), network(X)) > 110
    assert Macs(X)(plain) == Macs(X)(network)
    assert Parameters()(plain) == Parameters()(network)


@pytest.mark.parametrize("name", ["LSTM two both ways without bias", "GRU bidirectional", "LSTM projected"])
@pytest.mark.parametrize("batched", [True, False])
def test_all_outputs_are_those_of_torch(name: str, batched: bool) -> None:  # noqa: FBT001
    kind, settings = LAYERS[name]
    layer = kind(FEATURES, UNITS, **settings)
    plain = Recurrent(layer)
    x = X if batched else X[0]
    if batched and not layer.batch_first:
        x = x.transpose(0, 1)
    with torch.no_grad():
        want, want_last = layer(x)
        given = tuple(0.1 + one for one in want_last) if isinstance(want_last, tuple) else 0.1 + want_last
        for state in (None, given):
            want, want_last = layer(x, state)
            got, got_last = plain(x, state)
            pairs = zip((got, *got_last), (want, *want_last), strict=True)
            assert all(torch.allclose(one, other, atol=1e-5) for one, other in pairs)
            assert got.shape == want.shape


@pytest.mark.parametrize("name", LAYERS)
def test_every_axis_acts_on_every_matrix(name: str) -> None:
    anatomy = trace(with_plain_layers(reader(name), X), X)
    names = recurrent_layers(anatomy)
    assert names
    for axis in (PruneRatios(), Ranks(), BitWidths()):
        assert not [one for one in names if axis.acts_on(anatomy)[one].startswith("no: ")]
    assert anatomy.others == ()
    assert sum(layer.macs for layer in anatomy.layers) == Macs(X)(reader(name))


def test_each_direction_and_layer_loses_its_own_units() -> None:
    plain = with_plain_layers(reader("LSTM two both ways without bias"), X)
    groups = {group.name: group.units for group in trace(plain, X).groups}
    directions = [f"rnn.l{layer}{side}" for layer in range(2) for side in ("", "_reverse")]
    assert groups == {"front": 12} | {f"{name}.input": UNITS for name in directions}
    ratios = tuple(zip(groups, (0.5, 0.25, 0.5, 0.75, 0.25), strict=True))
    pruned = Plan((Prune(ratios),), RECOVERY).apply(plain, X)
    shapes = [pruned.get_parameter(f"{name}.hidden.weight").shape for name in directions]
    assert shapes == [(4 * units, units) for units in (12, 8, 4, 12)]
    assert pruned.get_submodule("rnn.l1.input").in_features == 12 + 8
    assert pruned.get_submodule("rnn").hidden_size == 12
    assert pruned(X).shape == (8, 4)


def test_units_of_a_projection_and_of_the_cell_are_separate() -> None:
    plain = with_plain_layers(reader("LSTM projected"), X)
    groups = {group.name: group.units for group in trace(plain, X).groups}
    assert groups == {"front": 12, "rnn.l0.input": UNITS, "rnn.l0.projection": 7}


@pytest.mark.parametrize("name", ["LSTM bidirectional", "GRU three layers", "RNN relu", "LSTM projected"])
def test_costs_are_known_before_the_network_is_built(name: str) -> None:
    plain = with_plain_layers(reader(name), X)
    anatomy = trace(plain, X)
    frame, plan = Frame(anatomy, deployed(plain, X)), everything(anatomy)
    built = deployed(plan.apply(plain, X), X)
    parts = architectures_of(frame, [plan]).parts()
    for cost in (Macs(X), Bops(X)):
        assert cost.foreseen(parts)[0] == cost(built)
        assert cost(built) < 0.5 * cost(deployed(plain, X))


def test_a_pruned_and_quantized_layer_is_trained() -> None:
    plain = with_plain_layers(reader("GRU bidirectional"), X)
    student = everything(trace(plain, X)).apply(plain, X).train()
    student(X).square().sum().backward()
    missing = [name for name, p in student.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


class OwnStates(nn.Module):
    """Gives its layer states of zeros, and reads the last states."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(FEATURES, UNITS, 2, batch_first=True)
        self.head = nn.Linear(UNITS, 4)

    def forward(self, x: Tensor) -> Tensor:
        start = torch.zeros(2, len(x), UNITS)
        _, (last, _) = self.rnn(x, (start, start))
        return self.head(last[-1])  # type: ignore[no-any-return]


class LearnedStart(nn.Module):
    """Learns the state before the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, 1, UNITS))
        self.rnn = nn.GRU(FEATURES, UNITS, batch_first=True)
        self.head = nn.Linear(UNITS, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x, self.start.expand(-1, len(x), -1))[0][:, -1])  # type: ignore[no-any-return]


class Cells(nn.Module):
    """Runs a cell over the steps, from zeros."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.cell, self.head = kind(FEATURES, UNITS), nn.Linear(UNITS, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(len(x), UNITS)
        for step in x.unbind(1):
            if isinstance(self.cell, nn.LSTMCell) or getattr(getattr(self.cell, "run", None), "kind", "") == "LSTM":
                h, c = self.cell(step, (h, c))
            else:
                h = self.cell(step, h)
        return self.head(h)  # type: ignore[no-any-return]


class Direct(nn.Module):
    """Slices the directions apart by the attribute of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(FEATURES, UNITS, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * UNITS, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.rnn.flatten_parameters()
        _, last = self.rnn(x)
        return self.head(torch.cat([last[-2], last[-1]], 1))  # type: ignore[no-any-return]


class AfterConvolution(nn.Module):
    """Reads the channels of a convolution at each step, and weighs the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.rnn = nn.GRU(8 * FEATURES, UNITS, batch_first=True, bidirectional=True)
        self.weigh, self.head = nn.Linear(2 * UNITS, 1), nn.Linear(2 * UNITS, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(self.conv(x[:, None]).transpose(1, 2).flatten(2))
        return self.head((self.weigh(y).softmax(1) * y).sum(1))  # type: ignore[no-any-return]


class Decodes(nn.Module):
    """An encoder whose last state is the first of a decoder, which reads its own outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.cell = nn.LSTM(FEATURES, UNITS, batch_first=True), nn.LSTMCell(FEATURES, UNITS)
        self.head = nn.Linear(UNITS, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        _, (h, c) = self.rnn(x)
        h, c, y = h[0], c[0], x[:, -1]
        for _ in range(3):
            h, c = self.cell(y, (h, c))
            y = self.head(h)
        return y


USES: dict[str, Any] = {
    "after a convolution": AfterConvolution, "encoder and decoder": Decodes,
    "states of zeros": OwnStates, "a learned state": LearnedStart, "both last states": Direct,
    "LSTM cell": lambda: Cells(nn.LSTMCell), "GRU cell": lambda: Cells(nn.GRUCell),
    "RNN cell": lambda: Cells(nn.RNNCell),
}  # fmt: skip


@pytest.mark.parametrize("name", USES)
def test_hidden_units_are_removed_however_the_states_are_used(name: str) -> None:
    torch.manual_seed(0)
    network: nn.Module = USES[name]().eval()
    plain = with_plain_layers(network, X)
    assert any(isinstance(module, (Recurrent, RecurrentCell)) for module in plain.modules())
    anatomy = trace(plain, X)
    acting = PruneRatios().acts_on(anatomy)
    assert not [one for one in recurrent_layers(anatomy) if acting[one].startswith("no: ") and one != "weigh"]
    assert anatomy.branches == ()  # what a layer makes of its input cannot be left out
    built = deployed(everything(anatomy).apply(plain, X), X)
    assert Macs(X)(built) < 0.5 * Macs(X)(network)
    cells = [module for module in built.modules() if isinstance(module, RecurrentCell)]
    assert all(cell.hidden_size == UNITS // 2 for cell in cells)
    assert Macs(X)(plain) == Macs(X)(network)


class Packed(nn.Module):
    """Reads packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(FEATURES, UNITS, batch_first=True), nn.Linear(UNITS, 4)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.full((len(x),), STEPS), batch_first=True)
        return self.head(pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0][:, -1])  # type: ignore[no-any-return]


class OwnGru(nn.GRU):
    """A class derived from torch's."""


class ReadsWeights(nn.Module):
    """Reads a weight of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(FEATURES, UNITS, batch_first=True), nn.Linear(UNITS, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1]) * torch.as_tensor(self.rnn.weight_hh_l0).norm()  # type: ignore[no-any-return]


class SharesWeights(nn.Module):
    """Two layers with one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.other = (nn.GRU(FEATURES, FEATURES, batch_first=True) for _ in range(2))
        self.other.weight_hh_l0 = self.rnn.weight_hh_l0
        self.head = nn.Linear(FEATURES, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(self.rnn(x)[0])[0][:, -1])  # type: ignore[no-any-return]


class Derived(nn.Module):
    """Has a layer of a derived class."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = OwnGru(FEATURES, UNITS, batch_first=True), nn.Linear(UNITS, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])  # type: ignore[no-any-return]


class Tokens(nn.Module):
    """Reads tokens, and the last states of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.rnn = nn.LSTM(8, UNITS, 2, bidirectional=True)
        self.head = nn.Linear(2 * UNITS, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        _, (last, _) = self.rnn(self.embedding(tokens).transpose(0, 1))
        return self.head(last.view(2, 2, len(tokens), -1)[-1].transpose(0, 1).flatten(1))  # type: ignore[no-any-return]


def test_layers_whose_last_states_are_stacked_lose_the_same_number_of_units() -> None:
    tokens = torch.randint(20, (8, STEPS))
    plain = with_plain_layers(Tokens().eval(), tokens)
    (group,) = (one for one in trace(plain, tokens).groups if len(one.producers) > 1)  # besides the embedding
    assert (group.units, len(group.producers)) == (UNITS, 8)
    pruned = Plan((Prune(((group.name, 0.5),)),), RECOVERY).apply(plain, tokens)
    assert pruned.get_parameter("rnn.l1_reverse.input.weight").shape == (4 * 8, 2 * 8)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Packed, "packed sequences"),
        (Derived, "derived from torch's class"),
        (ReadsWeights, "reads more of GRU than its outputs"),
        (SharesWeights, "another module holds its weights"),
    ],
)
def test_a_layer_that_stays_says_why(kind: type[nn.Module], reason: str) -> None:
    network = kind().eval()
    plain = with_plain_layers(network, X)
    anatomy = trace(plain, X)
    assert ("rnn", type(network.rnn).__name__) in anatomy.others
    assert reason in next(refusal.reason for refusal in anatomy.refusals if refusal.layer == "rnn")
    with torch.no_grad():
        assert torch.equal(plain(X), network(X))


def test_a_packed_sequence_is_refused_with_the_way_out() -> None:
    layer = Recurrent(nn.GRU(FEATURES, UNITS, batch_first=True))
    with pytest.raises(TypeError, match="must be a tensor, but got PackedSequence; pad the sequences"):
        layer(pack_padded_sequence(X, torch.full((8,), STEPS), batch_first=True))


def operators(path: Path) -> list[str]:
    onnx = pytest.importorskip("onnx")
    return [node.op_type for node in onnx.load(path).graph.node]


def agreement(runtime: Runtime, network: nn.Module, path: Path, x: Tensor = X) -> float:
    runtime.export(network, x, path)
    with torch.no_grad():
        return sqnr(runtime.load(path)(x), network(x))


@pytest.mark.parametrize(
    "name", ["LSTM bidirectional", "LSTM projected", "GRU one layer", "RNN two both ways without bias"]
)
def test_an_onnx_file_has_the_operator_or_a_loop_where_that_is_faster(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    plain = with_plain_layers(reader(name), X)
    anatomy = trace(plain, X)
    pruned = Prune(tuple((group.name, 0.5) for group in anatomy.groups))
    whole = Plan((pruned, Quantize(tuple((one, 4, 32) for one in recurrent_layers(anatomy)))), RECOVERY)
    directions = sum(1 for one in recurrent_layers(anatomy) if one.endswith(".hidden"))
    operator = "Scan" if name == "LSTM projected" else name.split(maxsplit=1)[0]
    for plan, saved, expected in (
        (whole, 0, operator), (everything(anatomy), 150_000, operator), (everything(anatomy), 0, "Scan")
    ):  # fmt: skip
        monkeypatch.setattr(used_weights, "MACS_OF_LOOP", saved)
        built = deployed(plan.apply(plain, X), X)
        assert agreement(OnnxRuntime(), built, tmp_path / "net.onnx") > 100
        assert operators(tmp_path / "net.onnx").count(expected) == directions
        assert not any(getattr(module, "loops", False) for module in built.modules())


def test_the_factors_of_a_recurrent_layer_are_stored_not_their_product(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    plain = with_plain_layers(reader("GRU one layer"), X)
    thin = deployed(Plan((Factorize((("rnn.l0.hidden", 0.125),)),), RECOVERY).apply(plain, X), X)
    for network in (plain, thin):
        OnnxRuntime().export(network, X, tmp_path / f"{network is thin}.onnx")
    saved = 4 * (3 * UNITS * UNITS - 2 * (UNITS + 3 * UNITS))
    sizes = [(tmp_path / f"{is_thin}.onnx").stat().st_size for is_thin in (False, True)]
    assert sizes[0] - sizes[1] > saved - 700  # of the nodes that reorder and multiply


@pytest.mark.parametrize(
    ("runtime", "name"),
    [
        (LiteRt(), "LSTM bidirectional"),
        (LiteRt(), "GRU one layer"),
        (OpenVino(), "LSTM bidirectional"),
        (OpenVino(), "RNN relu"),
        pytest.param(ExecuTorch(), "LSTM bidirectional", marks=pytest.mark.slow),
        pytest.param(ExecuTorch(), "GRU one layer", marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_other_runtimes_execute_recurrent_layers(runtime: Runtime, name: str, tmp_path: Path) -> None:
    pytest.importorskip({"litert": "litert_torch", "executorch": "executorch", "openvino": "openvino"}[runtime.name])
    plain = with_plain_layers(reader(name), SHORT)
    anatomy = trace(plain, SHORT)
    integer = runtime.name == "executorch"
    built = deployed(everything(anatomy, (8, 8) if integer else (8, 32)).apply(plain, SHORT), SHORT)
    assert agreement(runtime, deployed(plain, SHORT), tmp_path / "teacher", SHORT) > 60
    assert agreement(runtime, built, tmp_path / "net", SHORT) > (25 if integer else 60)


def test_a_sum_of_table_entries_needs_no_network() -> None:
    plain = with_plain_layers(reader("GRU one layer"), X)
    anatomy = trace(plain, X)
    plans = [everything(anatomy), Plan((Prune((("rnn.l0.input", 0.25),)),), RECOVERY)]
    costs = Macs(X).foreseen(architectures_of(Frame(anatomy, deployed(plain, X)), plans).parts())
    assert np.allclose(costs, [Macs(X)(deployed(plan.apply(plain, X), X)) for plan in plans])
