"""A layer that is trained with rounded weights and inputs, and its deployed form, which holds integers.

Scales are fixed during training. Gradients pass through the rounding unchanged and are zero where an input is clipped
(Bengio et al. 2013, arXiv:1308.3432; Jacob et al. 2018, arXiv:1712.05877).

Legend: `O` output channels, `S` scales that are tried.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor, nn

from spaces.axes.grids import Grid, nearest, rounded, scales
from spaces.network.layers import FLOAT_BITS, TRANSPOSED, along, run_layer, scale_outputs
from spaces.network.stand_ins import StandIn
from spaces.network.statistics import subsample

SMALLEST_GAIN = 1e-12  # replaces a gain of zero, since a scale must not be zero
ROUNDED_TOGETHER = 1 << 15  # inputs that are clipped and rounded before the next ones: they fit in the cache (chosen)
CALIBRATION_CHUNK = 4096  # inputs that are rounded at all tried scales in one operation: they fit in the cache


class QuantizedLayer(StandIn):
    """A convolution or linear layer with rounded weights and inputs, for training.

    Parameters
    ----------
    layer
        The layer; its float parameters are those that are trained.
    weight_bits, activation_bits
        Bits of weights and inputs; 32 means not quantized.
    grid
        Where the levels of the weights lie.
    """

    def __init__(self, layer: nn.Module, weight_bits: int, activation_bits: int, grid: Grid) -> None:
        super().__init__()
        self.layer = layer
        self.stand_for(layer, "layer")
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits
        self.uniform = grid.uniform
        self.axis = int(isinstance(layer, TRANSPOSED))  # the dimension of the weight that holds the output channels
        if self.axis and layer.groups != 1:
            raise ValueError(
                f"only a transposed convolution of one group can have a scale for every output channel, but got {layer}"
            )
        self.weight_scale: Tensor
        self.levels: Tensor
        self.input_scale: Tensor
        self.input_zero: Tensor
        weight = layer.get_parameter("weight").detach()
        rows = weight.transpose(0, self.axis).flatten(1)
        levels, scale = rows.new_zeros(0), rows.new_zeros(0)
        if weight_bits < FLOAT_BITS:
            normal = rows / rows.abs().amax(1, keepdim=True).clamp_min(1e-8)
            levels = grid.levels(normal, weight_bits)
            scale = scales(rows, levels)
        self.register_buffer("levels", levels)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("input_scale", rows.new_ones(()))
        self.register_buffer("input_zero", torch.zeros((), dtype=torch.int64, device=weight.device))

    def calibrate(self, inputs: Tensor) -> None:
        """Set the input scale and zero point to those with the smallest squared error on these inputs."""
        if self.activation_bits < FLOAT_BITS:
            scale, zero = _best_scale_and_zero(subsample(inputs), 2**self.activation_bits - 1)
            self.input_scale.copy_(scale)
            self.input_zero.copy_(zero)

    def codes(self) -> Tensor:
        """Return the index of the level of each weight, in the shape of the weight."""
        weight = self.layer.get_parameter("weight").detach()
        return nearest(weight / along(self.weight_scale, self.axis, weight), self.levels, even=self.uniform)

    def rounded(self) -> Tensor:
        """Return the weights, each rounded to its level."""
        weight = self.layer.get_parameter("weight").detach()
        scale = along(self.weight_scale, self.axis, weight)
        return rounded(weight / scale, self.levels, even=self.uniform).mul_(scale)

    def scale_outputs(self, gain: Tensor) -> None:
        """Multiply each output channel by its gain, shape (O,), in place; the levels of the weights are unchanged.

        The weights are set to their levels first, so that no rounding error moves a weight to another level. Integer
        kernels need positive scales, so for uniform levels, which are symmetric, the codes absorb the sign.
        """
        if self.weight_bits < FLOAT_BITS:
            self.layer.get_parameter("weight").data.copy_(self.rounded())
            gain = torch.where(gain.abs() < SMALLEST_GAIN, SMALLEST_GAIN, gain)
            self.weight_scale.mul_(gain.abs() if self.uniform else gain)
        scale_outputs(self.layer, gain)

    def stop_rounding_inputs(self) -> None:
        """Use the inputs without rounding from now on."""
        self.activation_bits = FLOAT_BITS

    def shipped(self) -> PackedLayer:
        """Return the layer that holds integers; this layer must not be used afterwards."""
        return PackedLayer(self)

    def used_weight(self) -> Tensor | None:
        """Return the rounded weight, through which gradients pass; None if the inputs are rounded too."""
        return None if self.activation_bits < FLOAT_BITS else self._weight()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output of the layer for rounded weights and inputs."""
        if self.activation_bits < FLOAT_BITS:
            inputs = _rounded_inputs(inputs, self.input_scale, self.input_zero, 2**self.activation_bits - 1)
        return run_layer(self.layer, inputs, self._weight())

    def _weight(self) -> Tensor:
        weight: Tensor = self.layer.get_parameter("weight")
        if self.weight_bits < FLOAT_BITS:
            with torch.no_grad():
                shift = self.rounded() - weight
            weight = weight + shift
        return weight


class PackedLayer(StandIn):
    """The deployed layer: integer codes, scales, and explicit quantize and dequantize operations.

    An exporter finds the standard `quantized_decomposed` operations for inputs and for uniform levels, and
    `levels[codes] * scale` for other levels.
    """

    def __init__(self, trained: QuantizedLayer) -> None:
        super().__init__()
        self.layer = trained.layer
        self.stand_for(trained, "layer")
        self.weight_bits = trained.weight_bits
        self.activation_bits = trained.activation_bits
        self.input_scale = float(trained.input_scale)
        self.input_zero = int(trained.input_zero)
        self.uniform = trained.uniform
        self.axis = trained.axis
        self.scale: Tensor
        self.zeros: Tensor
        self.levels: Tensor
        if trained.weight_bits == FLOAT_BITS:
            return
        codes, scale, levels = trained.codes(), trained.weight_scale.clone(), trained.levels.clone()
        if trained.uniform:
            self.limit = 2 ** (self.weight_bits - 1) - 1
            codes, scale, levels = (codes - self.limit).to(torch.int8), scale / self.limit, levels[:0]
        else:
            codes = codes.to(torch.uint8)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scale", scale)
        self.register_buffer("levels", levels)
        self.register_buffer("zeros", torch.zeros(len(scale), dtype=torch.int64, device=scale.device))
        self.layer.register_parameter("weight", None)

    def used_weight(self) -> Tensor | None:
        """Return the weight, computed from the integers; None if the inputs are rounded too."""
        return None if self.activation_bits < FLOAT_BITS else self._weight()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output of the layer, computed from the integers."""
        if self.activation_bits < FLOAT_BITS:
            ops = torch.ops.quantized_decomposed
            affine = (self.input_scale, self.input_zero, 0, 2**self.activation_bits - 1, torch.uint8)
            inputs = ops.dequantize_per_tensor(ops.quantize_per_tensor(inputs, *affine), *affine)
        return run_layer(self.layer, inputs, self._weight())

    def _weight(self) -> Tensor:
        if self.weight_bits == FLOAT_BITS:
            return self.layer.get_parameter("weight")
        if self.uniform:
            weight: Tensor = torch.ops.quantized_decomposed.dequantize_per_channel(
                self.codes, self.scale, self.zeros, self.axis, -self.limit, self.limit, torch.int8
            )
            return weight
        return self.levels[self.codes.long()] * along(self.scale, self.axis, self.codes)


def _rounded_inputs(inputs: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    """Return the inputs clipped and rounded to the codes 0 to `top`; gradients pass where nothing is clipped."""
    low, high = _limits(scale, zero, top)
    if torch.is_grad_enabled() and inputs.requires_grad:
        passed: Tensor = _PassedThrough.apply(inputs, scale, low, high)
        return passed
    return _clipped_and_rounded(inputs, scale, low, high)


class _PassedThrough(torch.autograd.Function):
    """Rounding with the gradient of clipping; each direction is one pass over memory, which is most of its time."""

    generate_vmap_rule = True  # with `setup_context`, so that a network may use torch.func

    @staticmethod
    def forward(inputs: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return _clipped_and_rounded(inputs, scale, low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ANN401, ARG004 - torch's
        taken, _, low, high = inputs
        ctx.save_for_backward(taken, low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401 - torch's
        inputs, low, high = ctx.saved_tensors
        if inputs.is_cpu:  # a fused operation, whose limits are outside of what passes
            infinity = torch.full_like(low, math.inf)
            limits = float(low.nextafter(-infinity)), float(high.nextafter(infinity))
            return torch.ops.aten.hardtanh_backward(gradient, inputs, *limits), None, None, None
        return torch.where((inputs >= low) & (inputs <= high), gradient, 0), None, None, None


def _clipped_and_rounded(inputs: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the inputs clipped and rounded to multiples of the scale, on a CPU in parts that stay in its cache."""
    if not (inputs.is_cpu and inputs.is_contiguous()):
        return inputs.clamp(low, high).div_(scale).round_().mul_(scale)
    found, limits = torch.empty_like(inputs), (float(low), float(high))  # numbers are compared faster than tensors
    together = ROUNDED_TOGETHER * torch.get_num_threads()  # the smallest part of a thread
    for part, result in zip(*(each.view(-1).split(together) for each in (inputs, found)), strict=True):
        result.copy_(part).clamp_(*limits).div_(scale).round_().mul_(scale)
    return found


def _limits(scale: Tensor, zero: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest value that has a code."""
    return -zero * scale, (top - zero) * scale


def _best_scale_and_zero(values: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of the share of the range with the smallest squared error; zero is always exact."""
    values = values.float()
    low, high = values.min().clamp_max(0.0), values.max().clamp_min(0.0)
    share_S1 = torch.linspace(0.3, 1.0, 29, device=values.device)[:, None]  # of the range of the values
    scale_S1 = ((high - low) * share_S1 / top).clamp_min(1e-8)
    zero_S1 = (-low * share_S1 / scale_S1).round().clamp(0, top)
    limits_S1 = _limits(scale_S1, zero_S1, top)
    errors = [
        part.clamp(*limits_S1).div_(scale_S1).round_().mul_(scale_S1).sub_(part).square_().sum(1)
        for part in values.split(CALIBRATION_CHUNK)
    ]
    best = int(torch.stack(errors).sum(0).argmin())
    return scale_S1[best, 0], zero_S1[best, 0].to(torch.int64)
