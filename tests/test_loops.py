"""Loops in files for TFLite Micro: the step of a recurrent layer is stored once, and computes with integers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from objectives.runtimes import TfliteMicro
from spaces import Factorize, Quantize, deployed, trace, with_plain_layers
from spaces.testing.runtime_contract import sqnr
from tests.test_recurrent import LAYERS, STEPS, X, reader

if TYPE_CHECKING:
    from pathlib import Path

runtime = pytest.importorskip("tflite_micro.python.tflite_micro.runtime")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
pytest.importorskip("litert_torch")

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch says so of its own layer
MICRO = TfliteMicro()
INTEGERS = {2, 6, 7, 9}  # types of tensors: of 32 bits, truth values, of 16 bits, of 8 bits


def rounded(network: nn.Module, example: Tensor, rank: float = 1.0) -> nn.Module:
    """Return a finished network of 8-bit layers, its recurrent matrices factorized if a rank is given."""
    plain = with_plain_layers(network, example)
    names = [layer.name for layer in trace(plain, example).layers]
    if rank < 1:
        plain = Factorize(tuple((name, rank) for name in names if "hidden" in name)).apply(plain, example)
    integers = Quantize(tuple((name, 8, 8) for name in names)).apply(plain, example)
    return deployed(integers.eval(), example)


def graphs(path: Path) -> list[Any]:
    """Return the subgraphs of a file: its own, then those of its loops."""
    found: list[Any] = runtime.convert_bytearray_to_object(path.read_bytes()).subgraphs
    return found


def written(network: nn.Module, inputs: Tensor, path: Path) -> float:
    """Write a file, and return the signal-to-noise ratio of its answers in dB."""
    MICRO.export(network, inputs, path)
    with torch.no_grad():
        return sqnr(network(inputs), MICRO.load(path)(inputs))


@pytest.mark.parametrize(
    ("name", "rank"),
    [("GRU bidirectional", 1), ("LSTM two both ways without bias", 0.25), ("RNN relu", 1), ("LSTM projected", 0.25)],
)
def test_the_steps_of_integers_are_a_loop_without_floating_point(name: str, rank: float, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    assert written(rounded(reader(name), X, rank), X, path) > 28
    main, *loops = graphs(path)
    _, settings = LAYERS[name]
    runs = settings.get("num_layers", 1) * (2 if settings.get("bidirectional") else 1)
    assert len(loops) == 2 * runs  # a body and a condition
    assert {int(tensor.type) for graph in (main, *loops) for tensor in graph.tensors} <= INTEGERS
    assert len(main.operators) < 20 * runs


@pytest.mark.parametrize("name", ["GRU bidirectional", "LSTM projected"])
def test_a_network_of_floats_has_loops_too(name: str, tmp_path: Path) -> None:
    network = deployed(with_plain_layers(reader(name), X), X)
    assert written(network, X, tmp_path / "model.tflite") > 100
    assert len(graphs(tmp_path / "model.tflite")) > 1


class Last(nn.Module):
    """A network that reads the last states alone."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.rnn = kind(X.shape[-1], 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        _, last = self.rnn(x)
        return self.head((last[1] if isinstance(last, tuple) else last)[-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM], ids=["GRU", "LSTM"])
def test_last_states_are_read_without_all_outputs(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "model.tflite"
    assert written(rounded(Last(kind).eval(), X), X, path) > 28
    _, body, _ = graphs(path)
    assert STEPS not in {size for tensor in body.tensors[3:] for size in tensor.shape}  # no outputs of all steps


def test_more_steps_take_no_more_operators_and_few_more_bytes(tmp_path: Path) -> None:
    longer, sizes = X.repeat(1, 10, 1), {}
    for inputs in (X, longer):
        path = tmp_path / f"{inputs.shape[1]}.tflite"
        assert written(rounded(reader("GRU bidirectional"), inputs), inputs, path) > 28
        sizes[inputs.shape[1]] = path.stat().st_size, sum(len(graph.operators) for graph in graphs(path))
    (few, operators), (many, same) = sizes.values()
    assert operators == same
    assert many < 1.02 * few


class Chained(nn.Module):
    """A network whose second layer starts with the last state of the first, which no file starts a loop with."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.GRU(X.shape[-1], 8, batch_first=True) for _ in range(2))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        _, last = self.first(x)
        return self.head(self.second(x, last)[0][:, -1])  # type: ignore[no-any-return]


@pytest.mark.slow
def test_steps_are_written_one_by_one_where_a_loop_starts_with_what_is_computed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "model.tflite"
    assert written(rounded(Chained().eval(), X), X, path) > 20
    assert len(graphs(path)) == 1


class Readers(nn.Module):
    """A map that two layers read, each of which clips it elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Conv2d(1, 8, 3)
        self.first, self.second = nn.Linear(8 * 36, 16), nn.Linear(8 * 36, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.map(x).relu().flatten(1)
        return torch.cat([self.first(y), self.second(y)], 1)


def test_layers_that_clip_one_tensor_at_different_ends_are_right(tmp_path: Path) -> None:
    """Both read it at its own scale, and their biases were scaled for another."""
    torch.manual_seed(0)
    inputs = torch.randn(64, 1, 8, 8)
    network: Any = rounded(Readers().eval(), inputs)
    network.first.input_scale *= 0.6
    network.second.input_scale *= 0.7
    assert written(network, inputs, tmp_path / "model.tflite") > 35
