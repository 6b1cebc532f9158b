"""Levels and scales of quantized weights."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spaces import KMeans, PowersOfTwo, Uniform
from spaces.axes.grids import Grid, nearest, scales
from spaces.axes.grids import rounded as at_nearest

GRIDS: tuple[Grid, ...] = (Uniform(), PowersOfTwo(), KMeans())
each_grid = pytest.mark.parametrize("grid", GRIDS, ids=repr)
each_width = pytest.mark.parametrize("bits", range(2, 9))
weights = st.builds(
    lambda seed, rows, columns, size: size * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)),
    st.integers(0, 999), st.integers(1, 5), st.integers(1, 40), st.sampled_from([1e-3, 1.0, 50.0]),
)  # fmt: skip


def normal(weight_OX: Tensor) -> Tensor:
    """Return every row divided by its largest magnitude."""
    return weight_OX / weight_OX.abs().amax(1, keepdim=True)


def rounded(weight_OX: Tensor, grid: Grid, bits: int) -> Tensor:
    """Return the weight rounded to its levels."""
    levels = grid.levels(normal(weight_OX), bits)
    scale = scales(weight_OX, levels)[:, None]
    return levels[nearest(weight_OX / scale, levels)] * scale


def sqnr(weight_OX: Tensor, grid: Grid, bits: int) -> float:
    """Return the ratio of signal to rounding noise, in dB."""
    noise = (rounded(weight_OX, grid, bits) - weight_OX).square().mean()
    return 10 * math.log10(weight_OX.square().mean() / noise)


@each_width
def test_uniform_levels_are_evenly_spaced_and_symmetric(bits: int) -> None:
    levels = Uniform().levels(torch.ones(1, 1), bits)
    q = 2 ** (bits - 1) - 1
    assert len(levels) == 2 * q + 1
    torch.testing.assert_close(levels, torch.linspace(-1, 1, 2 * q + 1))
    assert levels[q] == 0


@each_width
def test_powers_of_two_are_exact_and_symmetric(bits: int) -> None:
    levels = PowersOfTwo().levels(torch.ones(1, 1), bits)
    assert len(levels) == 2**bits - 1
    assert torch.equal(levels, -levels.flip(0))
    positive = [float(level) for level in levels if level > 0]
    assert [math.frexp(level)[0] for level in positive] == [0.5] * len(positive)
    assert positive[-1] == 1
    assert all(later == 2 * earlier for earlier, later in itertools.pairwise(positive))


def test_each_additional_bit_adds_about_six_decibels() -> None:
    weight = torch.randn(8, 512)
    ratios = [sqnr(weight, Uniform(), bits) for bits in range(3, 9)]
    gains = [more - less for less, more in itertools.pairwise(ratios)]
    assert all(4.5 < gain < 7 for gain in gains)
    assert ratios[-1] > 38


@each_grid
@each_width
def test_levels_ascend_and_fit_the_codes(grid: Grid, bits: int) -> None:
    weight = normal(torch.randn(4, 100))
    levels = grid.levels(weight, bits)
    assert len(levels) <= 2**bits
    assert torch.equal(levels, levels.sort().values)
    assert levels.abs().max() <= 1
    assert levels.dtype == weight.dtype


@each_grid
@each_width
def test_values_are_rounded_to_the_nearest_level_and_zero_stays_zero(grid: Grid, bits: int) -> None:
    values = torch.cat([torch.randn(6, 80), torch.zeros(6, 1)], 1)
    levels = grid.levels(normal(values), bits)
    torch.testing.assert_close(at_nearest(values, levels), levels[nearest(values, levels)], rtol=1e-6, atol=0)
    if (levels == 0).any():
        assert (at_nearest(values, levels)[:, -1] == 0).all()


@each_grid
@each_width
def test_scales_are_never_worse_than_scaling_to_the_largest_weight(grid: Grid, bits: int) -> None:
    weight = torch.randn(6, 80) * torch.logspace(-2, 1, 6)[:, None]
    levels = grid.levels(normal(weight), bits)
    largest = weight.abs().amax(1, keepdim=True)
    naive = (levels[nearest(weight / largest, levels)] * largest - weight).square().sum(1)
    errors = (rounded(weight, grid, bits) - weight).square().sum(1)
    assert (errors <= naive * (1 + 1e-5)).all()
    if grid == Uniform() and bits in {3, 4}:
        assert errors.sum() < 0.9 * naive.sum()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_codebook_beats_powers_of_two_on_bimodal_weights(bits: int) -> None:
    weight = torch.cat([0.7 + 0.05 * torch.randn(4, 200), -0.3 + 0.05 * torch.randn(4, 200)], 1)
    errors = [(rounded(weight, grid, bits) - weight).square().mean() for grid in (KMeans(), PowersOfTwo())]
    assert errors[0] <= errors[1]


def test_a_codebook_does_not_depend_on_the_seed() -> None:
    weight = normal(torch.randn(8, 300))
    first = KMeans().levels(weight, 4)
    torch.manual_seed(99)
    assert torch.equal(KMeans().levels(weight, 4), first)


def test_a_codebook_has_its_full_length_also_for_few_distinct_weights() -> None:
    weight = torch.tensor([[1.0, 0.5, 0.5, -0.25, -0.25, -0.25]])
    levels = KMeans().levels(weight, 4)
    assert len(levels) == 16  # so that one plan gives tensors of the same shapes for any weights
    torch.testing.assert_close(levels.unique(), torch.tensor([-0.25, 0.5, 1.0]))


def test_a_codebook_of_mostly_zero_weights_fits_the_others_too() -> None:
    weight = torch.zeros(4, 200)
    weight[:, ::20] = normal(torch.randn(4, 10))
    assert sqnr(weight, KMeans(), 4) > 15


def test_a_codebook_of_a_sample_is_close_to_that_of_all_weights() -> None:
    weight = normal(torch.randn(16, 512))
    of_sample, of_all = KMeans(sample=512).levels(weight, 3), KMeans().levels(weight, 3)
    torch.testing.assert_close(of_sample, of_all, atol=0.1, rtol=0)


@each_grid
@given(weight=weights, bits=st.integers(2, 8))
def test_scales_are_positive_and_codes_are_in_range(grid: Grid, weight: Tensor, bits: int) -> None:
    levels = grid.levels(normal(weight), bits)
    scale = scales(weight, levels)
    assert (scale > 0).all()
    codes = nearest(weight / scale[:, None], levels)
    assert codes.min() >= 0
    assert codes.max() < len(levels) <= 2**bits


@given(weight=weights, bits=st.integers(2, 8), grid=st.sampled_from([Uniform(), PowersOfTwo()]))
def test_rounding_twice_equals_rounding_once(weight: Tensor, bits: int, grid: Grid) -> None:
    levels = grid.levels(normal(weight), bits)
    scale = scales(weight, levels)[:, None]
    once = levels[nearest(weight / scale, levels)] * scale
    twice = levels[nearest(once / scale, levels)] * scale
    assert torch.equal(once, twice)


@each_grid
def test_a_channel_of_zeros_stays_zero(grid: Grid) -> None:
    weight = torch.randn(3, 50)
    weight[1] = 0
    levels = grid.levels(weight / weight.abs().amax(1, keepdim=True).clamp_min(1e-8), 4)
    scale = scales(weight, levels)
    result = levels[nearest(weight / scale[:, None], levels)] * scale[:, None]
    assert result[1].abs().max() < 1e-8


@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=50), st.integers(2, 6))
def test_no_level_is_nearer_than_the_one_that_is_returned(values: list[float], bits: int) -> None:
    levels, tensor = Uniform().levels(torch.ones(1, 1), bits), torch.tensor(values)
    chosen = (levels[nearest(tensor, levels)] - tensor).abs()
    least = (levels[None] - tensor[:, None]).abs().amin(1)
    torch.testing.assert_close(chosen, least, atol=1e-6, rtol=0)


def test_a_value_midway_is_rounded_to_the_lower_level() -> None:
    for levels in (torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([-1.0, 0.0, 0.5])):
        assert nearest(torch.tensor([-9.0, -0.5, -0.4, 0.25, 9.0]), levels).tolist() == [0, 0, 1, 1, 2]
