"""Decompositions reproduce the layer at full rank, approximate it best below, and cost what they report."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from objectives.mac_counter import count
from spaces import SpatialSvd, Svd, Tucker2
from spaces.costs.factors import rank_of, shapes_of
from spaces.network import statistics
from spaces.network.layer_runs import describe, layers_of
from spaces.network.statistics import Moments, moments

if TYPE_CHECKING:
    from spaces.axes.decompositions import Decomposition

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
    "three dimensions": (nn.Conv3d(4, 6, (1, 3, 2), stride=(1, 2, 1), padding=(0, 1, 0)), (8, 4, 3, 6, 5)),
    "grouped": (nn.Conv2d(10, 12, 3, padding=1, groups=2), (8, 10, 8, 8)),
    "grouped pointwise": (nn.Conv2d(12, 9, 1, groups=3, bias=False), (8, 12, 6, 6)),
    "grouped, wide and strided": (nn.Conv2d(64, 70, 3, stride=2, padding=1, groups=2), (8, 64, 8, 8)),
    "grouped in one dimension": (nn.Conv1d(8, 8, 3, padding=2, dilation=2, groups=2), (8, 8, 16)),
    "grouped in three dimensions": (nn.Conv3d(8, 6, 2, padding=1, groups=2), (8, 8, 3, 5, 5)),
}
DEPTHWISE: dict[str, tuple[nn.Module, tuple[int, ...]]] = {  # convolutions with one input channel in each group
    "depthwise": (nn.Conv2d(6, 6, 5, padding=2, groups=6), (8, 6, 8, 8)),
    "depthwise and strided": (nn.Conv2d(6, 6, (5, 3), (2, 1), (2, 1), groups=6, bias=False), (8, 6, 8, 8)),
    "depthwise and reflected": (nn.Conv2d(6, 6, 5, padding=2, padding_mode="reflect", groups=6), (8, 6, 8, 8)),
    "multiplied": (nn.Conv2d(4, 16, 3, padding=1, groups=4), (8, 4, 8, 8)),
}
DECOMPOSITIONS: tuple[Decomposition, ...] = (Svd(), SpatialSvd(), Tucker2())
each_layer = pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS.keys())
each_layer_and_depthwise = pytest.mark.parametrize(
    ("layer", "shape"), (LAYERS | DEPTHWISE).values(), ids=(LAYERS | DEPTHWISE).keys()
)
each_decomposition = pytest.mark.parametrize("decomposition", DECOMPOSITIONS, ids=repr)


def inputs_of(shape: tuple[int, ...]) -> Tensor:
    """Return inputs whose channels are correlated, with different strengths."""
    channel = 1 if len(shape) > 3 or shape[-1] == 16 else len(shape) - 1
    torch.manual_seed(4)
    mix = torch.randn(shape[channel], shape[channel]) * torch.logspace(0, -1.5, shape[channel])
    return (torch.randn(shape).movedim(channel, -1) @ mix.T).movedim(-1, channel)


def split(
    decomposition: Decomposition, layer: nn.Module, inputs: Tensor, fraction: float, seen: Moments | None = None
) -> nn.Sequential:
    """Split a layer by the moments of its inputs, or by the given moments."""
    seen = seen or moments(nn.Sequential(layer), inputs, ["0"]).get("0")
    return decomposition.split(layer, describe("0", layer), seen, fraction)


def white(seen: Moments) -> Moments:
    """Return moments of uncorrelated inputs."""
    identity = torch.eye(seen.mean_GD.shape[1]).expand_as(seen.second_GDD)
    return Moments(torch.zeros_like(seen.mean_GD), identity, seen.block)


def error(parts: nn.Module, layer: nn.Module, inputs: Tensor) -> float:
    """Return the summed squared error of the outputs."""
    with torch.no_grad():
        return float((parts(inputs) - layer(inputs)).double().square().sum())


@each_decomposition
@each_layer_and_depthwise
def test_full_rank_reproduces_the_layer(decomposition: Decomposition, layer: nn.Module, shape: tuple[int, ...]) -> None:
    inputs = inputs_of(shape)
    before = copy.deepcopy(layer.state_dict())
    parts = split(decomposition, layer, inputs, 1.0)
    torch.testing.assert_close(parts(inputs), layer(inputs), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


@each_decomposition
@each_layer_and_depthwise
def test_the_error_falls_as_the_rank_grows(
    decomposition: Decomposition, layer: nn.Module, shape: tuple[int, ...]
) -> None:
    inputs = inputs_of(shape)
    errors = [error(split(decomposition, layer, inputs, fraction), layer, inputs) for fraction in (0.2, 0.4, 0.6, 0.8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


@each_decomposition
@each_layer
def test_whitening_by_the_inputs_lowers_the_error(
    decomposition: Decomposition, layer: nn.Module, shape: tuple[int, ...]
) -> None:
    inputs = inputs_of(shape)
    seen = moments(nn.Sequential(layer), inputs, ["0"])["0"]
    whitened = error(split(decomposition, layer, inputs, 0.4), layer, inputs)
    plain = error(split(decomposition, layer, inputs, 0.4, white(seen)), layer, inputs)
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
    groups = describe("0", layer).groups
    parts = np.split(rows, groups, 1)
    rank = rank_of(min(parts[0].shape[1], layer.get_parameter("weight")[0].numel()), fraction)
    best = sum(float((np.linalg.svd(part, compute_uv=False)[rank:] ** 2).sum()) for part in parts)
    assert error(split(Svd(), layer, inputs, fraction), layer, inputs) == pytest.approx(best, rel=1e-2)


@each_decomposition
@pytest.mark.parametrize("wide", [False, True])
def test_whitening_lowers_the_error_also_with_pooled_positions(
    decomposition: Decomposition, *, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "MOST_COLUMNS", 10)
    layer, shape = LAYERS["wide" if wide else "padded"]
    inputs = inputs_of(shape)
    seen = moments(nn.Sequential(layer), inputs, ["0"])["0"]
    assert seen.block == 1
    torch.testing.assert_close(split(decomposition, layer, inputs, 1.0)(inputs), layer(inputs), atol=1e-4, rtol=1e-4)
    whitened = error(split(decomposition, layer, inputs, 0.4), layer, inputs)
    assert whitened < error(split(decomposition, layer, inputs, 0.4, white(seen)), layer, inputs)


@each_decomposition
@each_layer_and_depthwise
@pytest.mark.parametrize("fraction", [0.25, 0.6, 1.0])
def test_multiply_adds_are_those_that_fvcore_counts(
    decomposition: Decomposition, layer: nn.Module, shape: tuple[int, ...], fraction: float
) -> None:
    inputs = inputs_of(shape)
    parts = split(decomposition, layer, inputs, fraction)
    (seen,) = layers_of(nn.Sequential(layer), inputs[:1])
    assert decomposition.factors(shapes_of(seen), fraction).macs == count(parts, inputs)[""]


@each_decomposition
@each_layer_and_depthwise
def test_only_the_last_factor_has_a_bias(
    decomposition: Decomposition, layer: nn.Module, shape: tuple[int, ...]
) -> None:
    *first, last = split(decomposition, layer, inputs_of(shape), 0.5)
    assert first
    assert all(part.bias is None for part in first)
    want, got = dict(layer.named_parameters()).get("bias"), dict(last.named_parameters()).get("bias")
    assert (want is None) == (got is None)
    if want is not None and got is not None:
        assert torch.equal(want, got)
        assert want is not got


def test_each_depthwise_kernel_is_split_into_a_tall_and_a_wide_one_by_its_svd() -> None:
    layer, shape = DEPTHWISE["depthwise"]
    kernels = layer.get_parameter("weight").detach()[:, 0]
    left, values, right = torch.linalg.svd(kernels)
    for decomposition in DECOMPOSITIONS:
        tall, wide = split(decomposition, layer, inputs_of(shape), 0.4)
        assert [part.get_parameter("weight").shape for part in (tall, wide)] == [(12, 1, 5, 1), (6, 2, 1, 5)]
        product = tall.get_parameter("weight").reshape(6, 2, 5, 1) * wide.get_parameter("weight").reshape(6, 2, 1, 5)
        torch.testing.assert_close(product.sum(1), left[:, :, :2] * values[:, None, :2] @ right[:, :2])


@pytest.mark.parametrize("fraction", [0.25, 0.75])
@each_layer
def test_the_error_is_that_of_a_full_singular_value_decomposition(
    layer: nn.Module, shape: tuple[int, ...], fraction: float
) -> None:
    inputs, description = inputs_of(shape), describe("0", layer)
    seen = moments(nn.Sequential(layer), inputs, ["0"])["0"]
    root = torch.linalg.cholesky(seen.second_GDD.double())
    weight = layer.get_parameter("weight").detach().double().reshape(description.groups, -1, root.shape[1])
    rank = rank_of(min(weight.shape[1:]), fraction)
    best = (torch.linalg.svdvals(weight @ root)[:, rank:] ** 2).sum()
    reduce, expand = split(Svd(), layer, inputs, fraction, seen)
    thin = [part.get_parameter("weight").detach().double().flatten(1) for part in (expand, reduce)]
    product = thin[0].reshape(*weight.shape[:2], rank) @ thin[1].reshape(-1, rank, weight.shape[2])
    assert ((product - weight) @ root).square().sum() <= best * (1 + 1e-4)


@each_decomposition
@each_layer_and_depthwise
def test_cached_factors_serve_every_rank_and_are_not_shared(
    decomposition: Decomposition, layer: nn.Module, shape: tuple[int, ...]
) -> None:
    inputs, uncached = inputs_of(shape), copy.deepcopy(layer)
    seen = moments(nn.Sequential(layer), inputs, ["0"]).get("0")
    first, second = (split(decomposition, layer, inputs, fraction, seen) for fraction in (1.0, 0.5))
    want = split(decomposition, uncached, inputs, 0.5, seen).state_dict()
    with torch.no_grad():
        for parameter in [*first.parameters(), *second.parameters()]:
            parameter.zero_()
    again = split(decomposition, layer, inputs, 0.5, seen).state_dict()
    assert all(torch.equal(again[name], value) for name, value in want.items())


def test_factors_have_the_ranks_of_the_fraction() -> None:
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


def test_factors_of_grouped_layers_have_the_ranks_of_the_fraction_in_every_group() -> None:
    layer, shape = LAYERS["grouped, wide and strided"]
    shapes = {
        decomposition: [
            (tuple(part.get_parameter("weight").shape), describe("0", part).groups)
            for part in split(decomposition, layer, inputs_of(shape), 0.25)
        ]
        for decomposition in DECOMPOSITIONS
    }
    assert shapes[Svd()] == [((18, 32, 3, 3), 2), ((70, 9, 1, 1), 2)]
    assert shapes[SpatialSvd()] == [((48, 32, 3, 1), 2), ((70, 24, 1, 3), 2)]
    assert shapes[Tucker2()] == [((16, 32, 1, 1), 2), ((18, 8, 3, 3), 2), ((70, 9, 1, 1), 2)]


def test_a_rank_is_never_zero() -> None:
    assert [rank_of(8, fraction) for fraction in (0.01, 0.25, 1.0)] == [1, 2, 8]
    assert math.isclose(rank_of(1, 0.5), 1)


class OtherArguments(nn.Conv2d):
    """A convolution whose class has another constructor, as in torchvision's video networks."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)


@pytest.mark.parametrize("decomposition", DECOMPOSITIONS, ids=repr)
def test_a_layer_of_a_subclass_is_split_into_layers_of_torch(decomposition: Decomposition) -> None:
    layer = OtherArguments(32)
    inputs = inputs_of((8, 32, 8, 8))
    parts = split(decomposition, layer, inputs, 1.0)
    assert {type(part) for part in parts} == {nn.Conv2d}
    torch.testing.assert_close(parts(inputs), layer(inputs), atol=1e-3, rtol=1e-3)
