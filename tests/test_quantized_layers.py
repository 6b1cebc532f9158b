"""The layer that is trained with rounded weights and inputs, and its deployed form, which holds integers."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from spaces import KMeans, PowersOfTwo, Uniform
from spaces.axes.quantized_layers import ROUNDED_TOGETHER, PackedLayer, QuantizedLayer, _rounded_inputs
from spaces.network.layers import FLOAT_BITS
from spaces.network.statistics import subsample

if TYPE_CHECKING:
    from spaces.axes.grids import Grid

GRIDS: tuple[Grid, ...] = (Uniform(), PowersOfTwo(), KMeans())
each_grid = pytest.mark.parametrize("grid", GRIDS, ids=repr)
each_layer = pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 5), (8, 6)),
        (nn.Conv1d(4, 6, 3, padding=1, groups=2), (3, 4, 9)),
        (nn.Conv2d(4, 5, 3, stride=2, padding=1, padding_mode="circular"), (3, 4, 6, 6)),
        (nn.Conv3d(2, 3, 2, bias=False), (2, 2, 4, 4, 4)),
        (nn.ConvTranspose1d(4, 6, 3, stride=2), (3, 4, 9)),
        (nn.ConvTranspose2d(4, 5, 3, stride=2, padding=1, output_padding=1, bias=False), (3, 4, 6, 6)),
        (nn.ConvTranspose3d(2, 3, 2, dilation=2), (2, 2, 4, 4, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)


def calibrated(layer: nn.Module, inputs: Tensor, weight_bits: int, activation_bits: int, grid: Grid) -> QuantizedLayer:
    """Return a copy of the layer, quantized and calibrated on these inputs."""
    quantized = QuantizedLayer(copy.deepcopy(layer), weight_bits, activation_bits, grid)
    quantized.calibrate(inputs)
    return quantized


@each_layer
def test_widths_of_32_do_not_change_the_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(shape)
    assert torch.equal(calibrated(layer, inputs, FLOAT_BITS, FLOAT_BITS, Uniform())(inputs), layer(inputs))


@each_grid
@each_layer
def test_weights_are_rounded_to_their_levels(layer: nn.Module, shape: tuple[int, ...], grid: Grid) -> None:
    inputs = torch.randn(shape)
    quantized = calibrated(layer, inputs, 3, FLOAT_BITS, grid)
    float_layer = copy.deepcopy(layer)
    float_layer.get_parameter("weight").data = quantized.rounded()
    rows = quantized.rounded().transpose(0, int("Transpose" in type(layer).__name__))
    for row, scale in zip(rows, quantized.weight_scale, strict=True):
        assert torch.isclose(row[..., None], quantized.levels * scale, rtol=1e-6, atol=0).any(-1).all()
    torch.testing.assert_close(quantized(inputs), float_layer(inputs))
    assert not torch.allclose(quantized(inputs), layer(inputs), atol=1e-3)


def test_a_transposed_convolution_of_groups_is_refused() -> None:
    message = (
        r"only a transposed convolution of one group can have a scale for every output channel, but got "
        r"ConvTranspose2d\(4"
    )
    with pytest.raises(ValueError, match=message):
        QuantizedLayer(nn.ConvTranspose2d(4, 4, 2, groups=2), 8, 8, Uniform())


@each_grid
def test_quantizing_a_quantized_weight_changes_nothing(grid: Grid) -> None:
    quantized = calibrated(nn.Linear(30, 8), torch.randn(8, 30), 4, FLOAT_BITS, grid)
    codes, once = quantized.codes(), quantized.rounded()
    quantized.layer.get_parameter("weight").data = once
    assert torch.equal(quantized.codes(), codes)
    assert torch.equal(quantized.rounded(), once)


@each_grid
def test_eight_bits_change_the_outputs_little(grid: Grid) -> None:
    layer, inputs = nn.Linear(64, 32), torch.randn(128, 64)
    quantized = calibrated(layer, inputs, 8, 8, grid)
    noise = (quantized(inputs) - layer(inputs)).square().mean() / layer(inputs).square().mean()
    assert noise < (1e-3 if grid != PowersOfTwo() else 3e-2)


def test_gradients_of_weights_pass_through_the_rounding() -> None:
    quantized = calibrated(nn.Linear(6, 4), torch.randn(8, 6), 2, FLOAT_BITS, Uniform())
    inputs = torch.randn(8, 6)
    quantized(inputs).sum().backward()
    # the gradient of a sum of outputs with respect to any row of weights is the sum of the inputs
    torch.testing.assert_close(quantized.layer.get_parameter("weight").grad, inputs.sum(0).expand(4, 6))


def test_gradients_of_inputs_pass_in_the_range_and_are_zero_outside() -> None:
    scale, zero = torch.tensor(0.1), torch.tensor(5)
    inputs = torch.tensor([-3.0, -0.51, -0.49, 0.0, 0.33, 0.99, 1.01, 7.0], requires_grad=True)
    output = _rounded_inputs(inputs, scale, zero, 15)
    output.sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    torch.testing.assert_close(output, torch.tensor([-0.5, -0.5, -0.5, 0.0, 0.3, 1.0, 1.0, 1.0]))


def test_gradients_of_the_limits_themselves_pass() -> None:
    scale, zero = torch.tensor(0.02), torch.tensor(3)
    inputs = torch.stack([-3 * scale, 252 * scale]).requires_grad_()
    _rounded_inputs(inputs, scale, zero, 255).sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.tolist() == [1, 1]


def test_torch_func_takes_the_gradient_of_rounded_inputs() -> None:
    scale, zero, inputs = torch.tensor(0.1), torch.tensor(5), torch.tensor([[-3.0, 0.2], [0.33, 7.0]])

    def total(row: torch.Tensor) -> torch.Tensor:
        return _rounded_inputs(row, scale, zero, 15).sum()

    assert torch.func.grad(total)(inputs).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_are_rounded_the_same_in_parts_and_in_every_layout(dtype: torch.dtype) -> None:
    scale, zero = torch.tensor(0.02), torch.tensor(100)
    inputs = torch.randn(3, 40, 21, 27, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert inputs.numel() > 2 * ROUNDED_TOGETHER
    expected = (inputs.clamp(-100 * scale, 155 * scale) / scale).round() * scale
    passing = (inputs >= -100 * scale) & (inputs <= 155 * scale)
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = inputs.clone(memory_format=layout).requires_grad_()
        found = _rounded_inputs(leaf, scale, zero, 255)
        found.sum().backward()
        assert found.dtype == dtype
        assert torch.equal(found, expected)
        assert torch.equal(found, _rounded_inputs(leaf.detach(), scale, zero, 255)), "also without gradients"
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, passing.to(dtype))


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=60),
    st.integers(4, 8),
)
def test_codes_of_inputs_fit_their_bits_and_zero_is_exact(values: list[float], bits: int) -> None:
    inputs = torch.tensor(values)
    layer = calibrated(nn.Linear(1, 1), inputs, FLOAT_BITS, bits, Uniform())
    assert layer.input_scale > 0
    assert 0 <= layer.input_zero < 2**bits
    around = torch.cat([inputs, torch.linspace(-200, 200, 1001), torch.zeros(1)])
    once = _rounded_inputs(around, layer.input_scale, layer.input_zero, 2**bits - 1)
    assert once[-1] == 0
    codes = (once / layer.input_scale).round() + layer.input_zero
    assert codes.min() >= 0
    assert codes.max() < 2**bits
    twice = _rounded_inputs(once, layer.input_scale, layer.input_zero, 2**bits - 1)
    torch.testing.assert_close(twice, once)


def test_inputs_that_are_never_negative_use_all_codes() -> None:
    layer = calibrated(nn.Linear(1, 1), torch.rand(1000), FLOAT_BITS, 8, Uniform())
    assert layer.input_zero == 0
    assert 0.9 < 255 * layer.input_scale <= 1.01


def test_an_outlier_is_clipped_where_that_lowers_the_total_error() -> None:
    inputs = torch.cat([torch.randn(10_000), torch.tensor([8.0])])
    layer = calibrated(nn.Linear(1, 1), inputs, FLOAT_BITS, 4, Uniform())
    assert 15 * layer.input_scale < 8 - inputs.min()


def test_inputs_that_are_all_zero_stay_zero() -> None:
    layer = calibrated(nn.Linear(3, 2), torch.zeros(4, 3), FLOAT_BITS, 8, Uniform())
    assert torch.equal(layer(torch.zeros(4, 3)), layer.layer(torch.zeros(4, 3)))


def test_calibration_does_nothing_for_32_bits() -> None:
    layer = calibrated(nn.Linear(3, 2), torch.randn(4, 3), 8, FLOAT_BITS, Uniform())
    assert layer.input_scale == 1
    assert layer.input_zero == 0


@each_grid
@each_layer
@pytest.mark.parametrize("widths", [(2, FLOAT_BITS), (8, 8), (FLOAT_BITS, 4), (5, 6)])
def test_the_deployed_layer_computes_the_outputs_of_the_trained_one(
    layer: nn.Module, shape: tuple[int, ...], grid: Grid, widths: tuple[int, int]
) -> None:
    inputs = torch.randn(shape)
    trained = calibrated(layer, inputs, *widths, grid)
    want = trained(inputs)
    packed = PackedLayer(copy.deepcopy(trained))
    torch.testing.assert_close(packed(inputs), want, atol=1e-5, rtol=1e-4)
    assert (packed.weight_bits, packed.activation_bits) == widths


@each_grid
@given(seed=st.integers(0, 999), bits=st.integers(2, 8))
def test_codes_are_single_bytes_in_range(grid: Grid, seed: int, bits: int) -> None:
    torch.manual_seed(seed)
    packed = PackedLayer(QuantizedLayer(nn.Linear(7, 3), bits, FLOAT_BITS, grid))
    assert packed.codes.dtype == (torch.int8 if grid.uniform else torch.uint8)
    assert isinstance(packed.codes, nn.Parameter)
    assert not packed.codes.requires_grad
    assert "layer.weight" not in dict(packed.named_parameters())
    limit = 2 ** (bits - 1) - 1
    low, high = (-limit, limit) if grid.uniform else (0, 2**bits - 1)
    assert low <= packed.codes.min()
    assert packed.codes.max() <= high


@given(st.integers(1, 200_000))
def test_a_subsample_has_about_the_requested_number_of_values(count: int) -> None:
    kept = len(subsample(torch.zeros(count), 1000))
    assert kept == count if count < 2000 else 500 <= kept <= 10_000
