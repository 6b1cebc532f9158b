"""Products of thinner layers: exact at full rank, best below it, and as costly as they say."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from objectives.macs import count
from spaces import SpatialSvd, Svd, Tucker2, statistics
from spaces.decompose import Decomposition, rank_of, shapes_of
from spaces.statistics import Moments, moments
from spaces.trace import describe, layers_of

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(12, 7), (64, 12)),
    "tokens": (nn.Linear(6, 9), (8, 10, 6)),
    "pointwise": (nn.Conv2d(10, 8, 1), (4, 10, 6, 6)),
    "padded": (nn.Conv2d(5, 8, 3, padding=1), (8, 5, 8, 8)),
    "strided": (nn.Conv2d(5, 8, 3, stride=2, padding=1, bias=False), (8, 5, 8, 8)),
    "dilated": (nn.Conv2d(5, 8, 3, padding=2, dilation=2), (8, 5, 8, 8)),
    "reflected": (nn.Conv2d(5, 8, (3, 5), padding=(1, 2), padding_mode="reflect"), (8, 5, 8, 8)),
    "same": (nn.Conv2d(5, 8, 3, padding="same"), (8, 5, 8, 8)),
    "wide": (nn.Conv2d(32, 40, 3, padding=1), (8, 32, 8, 8)),
    "wide and strided": (nn.Conv2d(32, 32, 3, stride=2, padding=1), (8, 32, 8, 8)),
    "one dimension": (nn.Conv1d(6, 8, 5, stride=2, padding=2), (8, 6, 16)),
}
DECOMPOSITIONS: tuple[Decomposition, ...] = (Svd(), SpatialSvd(), Tucker2())
each_layer = pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS.keys())
each_decomposition = pytest.mark.parametrize("decomposition", DECOMPOSITIONS, ids=repr)


def inputs_of(shape: tuple[int, ...]) -> Tensor:
    """Return inputs whose channels go together, some weaker than others."""
    channel = 1 if len(shape) > 3 or shape[-1] == 16 else len(shape) - 1
    torch.manual_seed(4)
    mix = torch.randn(shape[channel], shape[channel]) * torch.logspace(0, -1.5, shape[channel])
    return (torch.randn(shape).movedim(channel, -1) @ mix.T).movedim(-1, channel)


def split(
    decomposition: Decomposition, layer: nn.Module, inputs: Tensor, fraction: float, seen: Moments | None = None
) -> nn.Sequential:
    """Split a layer by what it sees, or by what is given instead."""
    seen = seen or moments(nn.Sequential(layer), inputs, ["0"])["0"]
    return decomposition.split(layer, describe("0", layer), seen, fraction)


def error(parts: nn.Module, layer: nn.Module, inputs: Tensor) -> float:
    """Return the summed squared error of the outputs."""
    with torch.no_grad():
        return float((parts(inputs) - layer(inputs)).double().square().sum())


@each_decomposition
@each_layer
def test_full_rank_reproduces_the_layer(decomposition: Decomposition, layer: nn.Module, shape: tuple[int, ...]) -> None:
    inputs = inputs_of(shape)
    before = copy.deepcopy(layer.state_dict())
    parts = split(decomposition, layer, inputs, 1.0)
    torch.testing.assert_close(parts(inputs), layer(inputs), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


@each_decomposition
@each_layer
def test_the_error_falls_as_the_rank_grows(
    decomposition: Decomposition, layer: nn.Module, shape: tuple[int, ...]
) -> None:
    inputs = inputs_of(shape)
    errors = [error(split(decomposition, layer, inputs, fraction), layer, inputs) for fraction in (0.2, 0.4, 0.6, 0.8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


@each_decomposition
@each_layer
def test_what_the_layer_sees_lowers_the_error(
    decomposition: Decomposition, layer: nn.Module, shape: tuple[int, ...]
) -> None:
    inputs = inputs_of(shape)
    seen = moments(nn.Sequential(layer), inputs, ["0"])["0"]
    nothing = Moments(torch.zeros_like(seen.mean_D), torch.eye(len(seen.mean_D)), seen.block)
    whitened = error(split(decomposition, layer, inputs, 0.4), layer, inputs)
    plain = error(split(decomposition, layer, inputs, 0.4, nothing), layer, inputs)
    assert whitened < plain


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
@each_layer
def test_svd_is_the_best_approximation_of_the_outputs(
    layer: nn.Module, shape: tuple[int, ...], fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "DAMPING", 1e-6)
    inputs = inputs_of(shape)
    with torch.no_grad():
        outputs = layer(inputs)
        bias = layer.bias if layer.bias is not None else torch.zeros(())
        channel = -1 if isinstance(layer, nn.Linear) else 1
        rows = (outputs.movedim(channel, -1) - bias).reshape(-1, outputs.shape[channel]).double().numpy()
    rank = rank_of(min(rows.shape[1], layer.get_parameter("weight")[0].numel()), fraction)
    best = float((np.linalg.svd(rows, compute_uv=False)[rank:] ** 2).sum())
    assert error(split(Svd(), layer, inputs, fraction), layer, inputs) == pytest.approx(best, rel=1e-2)


@each_decomposition
@pytest.mark.parametrize("wide", [False, True])
def test_pooled_positions_do_too(decomposition: Decomposition, *, wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MOST_COLUMNS", 10)
    layer, shape = LAYERS["wide" if wide else "padded"]
    inputs = inputs_of(shape)
    seen = moments(nn.Sequential(layer), inputs, ["0"])["0"]
    assert seen.block == 1
    torch.testing.assert_close(split(decomposition, layer, inputs, 1.0)(inputs), layer(inputs), atol=1e-4, rtol=1e-4)
    nothing = Moments(seen.mean_D, torch.eye(shape[1]), 1)
    whitened = error(split(decomposition, layer, inputs, 0.4), layer, inputs)
    assert whitened < error(split(decomposition, layer, inputs, 0.4, nothing), layer, inputs)


@each_decomposition
@pytest.mark.parametrize(("layer", "shape"), LAYERS.values())
@pytest.mark.parametrize("fraction", [0.25, 0.6, 1.0])
def test_the_multiply_adds_are_those_that_fvcore_counts(
    decomposition: Decomposition, layer: nn.Module, shape: tuple[int, ...], fraction: float
) -> None:
    inputs = inputs_of(shape)
    parts = split(decomposition, layer, inputs, fraction)
    (seen,) = layers_of(nn.Sequential(layer), inputs[:1])
    assert decomposition.factors(shapes_of(seen), fraction).macs == count(parts, inputs)[""]


@each_decomposition
@each_layer
def test_only_the_last_part_has_a_bias(decomposition: Decomposition, layer: nn.Module, shape: tuple[int, ...]) -> None:
    *first, last = split(decomposition, layer, inputs_of(shape), 0.5)
    assert first
    assert all(part.bias is None for part in first)
    want, got = dict(layer.named_parameters()).get("bias"), dict(last.named_parameters()).get("bias")
    assert (want is None) == (got is None)
    if want is not None and got is not None:
        assert torch.equal(want, got)
        assert want is not got


def test_parts_have_the_ranks_of_the_fraction() -> None:
    layer, shape = LAYERS["wide"]
    shapes = {
        decomposition: [
            tuple(part.get_parameter("weight").shape) for part in split(decomposition, layer, inputs_of(shape), 0.25)
        ]
        for decomposition in DECOMPOSITIONS
    }
    assert shapes[Svd()] == [(10, 32, 3, 3), (40, 10, 1, 1)]
    assert shapes[SpatialSvd()] == [(24, 32, 3, 1), (40, 24, 1, 3)]
    assert shapes[Tucker2()] == [(8, 32, 1, 1), (10, 8, 3, 3), (40, 10, 1, 1)]


def test_a_rank_is_never_zero() -> None:
    assert [rank_of(8, fraction) for fraction in (0.01, 0.25, 1.0)] == [1, 2, 8]
    assert math.isclose(rank_of(1, 0.5), 1)
