"""Latency is relative to a reference, and a larger network has a larger latency."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from objectives.latency import Latency
from objectives.runtimes import OnnxRuntime, Precision
from objectives.runtimes.timing import LatencyRatio, compare

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor


def network(width: int) -> nn.Module:
    """Return a network of two convolutions."""
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3)).eval()


class Recording:
    """A runtime that records its exports and executes them in torch."""

    name = suffix = "recording"
    threads = 1
    channels = 1
    layout = OnnxRuntime().layout

    def __init__(self) -> None:
        self.exported: list[nn.Module] = []

    def export(self, model: nn.Module, example: Tensor, path: Path) -> None:
        """Record the model, and write its index to the file."""
        del example
        path.write_text(str(len(self.exported)))
        self.exported.append(model)

    integers_only = False

    def precisions(self, kind: str, groups: int) -> tuple[Precision, ...]:
        """Return no precisions."""
        return ()

    def load(self, path: Path) -> Callable[[Tensor], Tensor]:
        """Return the model that was exported to the path."""
        return self.exported[int(path.read_text())]

    def __repr__(self) -> str:
        """Return the name of the class."""
        return "Recording()"


@pytest.fixture(scope="module")
def latency() -> Latency:
    """Return a latency on ONNX Runtime whose reference is a small network."""
    return Latency(OnnxRuntime(), network(8), torch.randn(2, 3, 24, 24), rounds=15, block_ms=2.0)


@pytest.fixture(scope="module")
def files(latency: Latency, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Export a small and a large network, and return the files."""
    folder = tmp_path_factory.mktemp("files")
    for width in (8, 48):
        latency.runtime.export(network(width), latency.example, folder / f"{width}.onnx")
    return folder / "8.onnx", folder / "48.onnx"


def paired(latency: Latency, *paths: Path) -> LatencyRatio:
    """Compare two files as the objective does."""
    runs = [latency.runtime.load(path) for path in paths]
    return compare(runs[0], runs[1], latency.example, latency.rounds, latency.block_ms, latency.runtime.threads)


def test_a_file_is_as_fast_as_itself(latency: Latency, files: tuple[Path, Path]) -> None:
    """The ratio is near 1 and in its interval, and the result records how it was measured."""
    result = paired(latency, files[0], files[0])
    assert result.ratio == pytest.approx(1, abs=0.3)
    assert result.low <= result.ratio <= result.high
    assert (result.threads, result.batch, result.rounds) == (1, 2, 15)
    assert 0 < result.cpu_ms <= 1.1 * result.wall_ms


def test_a_larger_network_is_slower(latency: Latency, files: tuple[Path, Path]) -> None:
    """Twenty times the multiply-adds take at least three times as long."""
    result = paired(latency, files[1], files[0])
    assert result.ratio > 3
    assert result.cpu_ms > 2 * result.reference_cpu_ms


def test_the_value_is_in_milliseconds_a_batch(latency: Latency) -> None:
    """A network like the reference has a positive value, and a larger network a larger one."""
    small, large = latency(network(8)), latency(network(48))
    assert 0 < small < large < 1000


def test_the_reference_is_exported_once() -> None:
    """All candidates of a process share the baseline."""
    runtime = Recording()
    reference, candidate = network(2), network(4)
    latency = Latency(runtime, reference, torch.randn(1, 3, 8, 8), rounds=3, block_ms=0.1)
    for _ in range(2):
        latency(candidate)
    assert [model is candidate for model in runtime.exported] == [False, True, True]


def test_the_repr_has_no_weights_and_is_the_same_in_every_process() -> None:
    """Processes compare it, so it contains no weights, examples or addresses."""
    texts = {repr(Latency(OnnxRuntime(), network(width), torch.randn(2, 3, 8, 8))) for width in (2, 3)}
    assert texts == {"Latency(OnnxRuntime(threads=1), Sequential, (2, 3, 8, 8), rounds=40, block_ms=4)"}


def test_a_latency_is_a_cost_and_hashable() -> None:
    """It is known before training, smaller is better, and it equals only itself."""
    latency, other = (Latency(Recording(), network(2), torch.randn(1, 3, 8, 8)) for _ in range(2))
    assert {latency: latency.name} == {latency: "latency_ms"}
    assert latency != other
    assert (latency.direction, latency.is_cost) == ("minimize", True)


def test_zero_rounds_are_an_error() -> None:
    """There is no median of no values."""
    with pytest.raises(ValueError, match="rounds must be at least 1 and block_ms positive, but got rounds=0"):
        Latency(Recording(), network(2), torch.randn(1, 3, 8, 8), rounds=0)
