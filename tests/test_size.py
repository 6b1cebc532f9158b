"""The predicted size of a file against the exported file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from objectives import SizeBytes
from objectives.runtimes import OnnxRuntime
from spaces import Factorize, KMeans, PowersOfTwo, Prune, Quantize, Uniform, deployed, trace
from spaces.axes.quantized_layers import PackedLayer, QuantizedLayer
from studies.digits import Net
from tests.small_study import teacher

if TYPE_CHECKING:
    from pathlib import Path

    from spaces import Step
    from spaces.axes.grids import Grid

RELATIVE_ERROR, ABSOLUTE_ERROR = 0.05, 150  # largest errors of the prediction: of the file size, and in bytes
IMAGES = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
torch.manual_seed(0)
NETWORKS = {"small": teacher(), "residual": Net(32)}
for _ in range(3):
    NETWORKS["residual"](
        2 * IMAGES + 1
    )  # BatchNorm statistics for which no bias is zero: the exporter drops zero biases
NETWORKS["residual"].eval()


def plans(network: nn.Module) -> dict[str, tuple[Step, ...]]:
    """Return steps that bring layers into every form in which a file can store them."""
    anatomy = trace(network, IMAGES)
    names = [layer.name for layer in anatomy.layers]
    prune = Prune(tuple((group.name, 0.5) for group in anatomy.groups))
    split = Factorize(tuple((name, 0.25) for name in names))
    eight = Quantize(tuple((name, 8, 8) for name in names))
    return {
        "float": (),
        "pruned": (prune,),
        "low rank": (split,),
        "2 bits": (Quantize(tuple((name, 2, 32) for name in names)),),
        "4 bits": (Quantize(tuple((name, 4, 32) for name in names)),),
        "8 bits and inputs": (eight,),
        "inputs alone": (Quantize(tuple((name, 32, 8) for name in names)),),
        "codebook": (Quantize(tuple((name, 4, 32) for name in names), KMeans()),),
        "powers of two": (Quantize(tuple((name, 3, 8) for name in names), PowersOfTwo()),),
        "everything": (prune, split, Quantize(tuple((name, 4, 8) for name in names))),
    }


@pytest.mark.parametrize("plan", plans(NETWORKS["small"]))
@pytest.mark.parametrize("net", NETWORKS)
def test_the_predicted_size_is_that_of_the_file(net: str, plan: str, tmp_path: Path) -> None:
    network = NETWORKS[net]
    for step in plans(network)[plan]:
        network = step.apply(network, IMAGES)
    finished = deployed(network, IMAGES)
    OnnxRuntime().export(finished, IMAGES[:1], tmp_path / "model.onnx")
    predicted, real = SizeBytes()(finished), (tmp_path / "model.onnx").stat().st_size
    print(f"{net}, {plan}: {predicted:.0f}, file {real}, {predicted / real - 1:+.1%}")  # noqa: T201
    assert abs(predicted - real) <= max(ABSOLUTE_ERROR, RELATIVE_ERROR * real)


@pytest.mark.parametrize("grid", [Uniform(), KMeans()])
def test_a_transposed_convolution_is_as_large_as_a_convolution(grid: Grid) -> None:
    layers = (nn.Conv2d(4, 16, 3, stride=2, padding=1), nn.ConvTranspose2d(4, 16, 3, stride=2, padding=1))
    plain, transposed = (SizeBytes()(PackedLayer(QuantizedLayer(layer, 4, 8, grid))) for layer in layers)
    assert plain == transposed
