"""The layer that trains with rounded weights and inputs, and the layer that holds the integers in the end.

Legend: `O` output channels. Scales are held fixed while training; gradients pass straight through the rounding and stop
where an input is clipped (Bengio et al. 2013, arXiv:1308.3432; Jacob et al. 2018, arXiv:1712.05877).
"""

from __future__ import annotations

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor, nn

from spaces.axes.grids import Grid, nearest, rounded, scales
from spaces.network.layers import FLOAT_BITS, TRANSPOSED, along, run_layer, scale_outputs
from spaces.network.statistics import subsample

SILENT = 1e-12  # stands for a gain of zero, which no scale can have
TOGETHER = 4096  # values that are tried at every scale at once: they stay in the cache


class QuantizedLayer(nn.Module):
    """A convolution or linear layer with rounded weights and inputs, for training.

    Parameters
    ----------
    layer
        The layer; its parameters stay the trained ones.
    weight_bits, activation_bits
        Widths; 32 is off.
    grid
        Where the weight levels lie.
    """

    def __init__(self, layer: nn.Module, weight_bits: int, activation_bits: int, grid: Grid) -> None:
        super().__init__()
        self.layer = layer
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits
        self.uniform = grid.uniform
        self.axis = int(isinstance(layer, TRANSPOSED))  # of the weight, along which the output channels lie
        if self.axis and layer.groups != 1:
            raise ValueError(
                f"only a transposed convolution of one group has scales of its own for every output channel, "
                f"but got {layer}"
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
        """Fix the input scale and zero point to the least squared error on these inputs."""
        if self.activation_bits < FLOAT_BITS:
            scale, zero = _affine(subsample(inputs), 2**self.activation_bits - 1)
            self.input_scale.copy_(scale)
            self.input_zero.copy_(zero)

    def codes(self) -> Tensor:
        """Return the index of each weight's level, in the weight's shape."""
        weight = self.layer.get_parameter("weight").detach()
        return nearest(weight / along(self.weight_scale, self.axis, weight), self.levels)

    def rounded(self) -> Tensor:
        """Return the weights, each at its level."""
        weight = self.layer.get_parameter("weight").detach()
        scale = along(self.weight_scale, self.axis, weight)
        return rounded(weight / scale, self.levels).mul_(scale)

    def scale_outputs(self, gain: Tensor) -> None:
        """Multiply each output channel by its gain, shape (O,); the codes of the weights stay as they are.

        The weights are set to their levels first, so that no rounding error moves them to others. Integer kernels want
        positive scales, so uniform codes, which are symmetric, take the sign.
        """
        if self.weight_bits < FLOAT_BITS:
            self.layer.get_parameter("weight").data.copy_(self.rounded())
            gain = torch.where(gain.abs() < SILENT, SILENT, gain)
            self.weight_scale.mul_(gain.abs() if self.uniform else gain)
        scale_outputs(self.layer, gain)

    def stop_rounding_inputs(self) -> None:
        """Take the inputs as they are from now on."""
        self.activation_bits = FLOAT_BITS

    def shipped(self) -> PackedLayer:
        """Return the layer that holds the integers; this one cannot be used any more."""
        return PackedLayer(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layer's output with everything rounded that is to be."""
        weight: Tensor = self.layer.get_parameter("weight")
        if self.activation_bits < FLOAT_BITS:
            inputs = _rounded_inputs(inputs, self.input_scale, self.input_zero, 2**self.activation_bits - 1)
        if self.weight_bits < FLOAT_BITS:
            with torch.no_grad():
                shift = self.rounded() - weight
            weight = weight + shift
        return run_layer(self.layer, inputs, weight)


class PackedLayer(nn.Module):
    """The finished layer: integer codes, scales, and explicit quantize and dequantize operations.

    What an exporter sees are the standard `quantized_decomposed` operations for uniform levels and activations, and
    `levels[codes] * scale` for the others.
    """

    def __init__(self, trained: QuantizedLayer) -> None:
        super().__init__()
        self.layer = trained.layer
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

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layer's output, computed from the integers."""
        ops = torch.ops.quantized_decomposed
        if self.activation_bits < FLOAT_BITS:
            given = (self.input_scale, self.input_zero, 0, 2**self.activation_bits - 1, torch.uint8)
            inputs = ops.dequantize_per_tensor(ops.quantize_per_tensor(inputs, *given), *given)
        if self.weight_bits == FLOAT_BITS:
            return run_layer(self.layer, inputs, self.layer.get_parameter("weight"))
        if self.uniform:
            weight = ops.dequantize_per_channel(
                self.codes, self.scale, self.zeros, self.axis, -self.limit, self.limit, torch.int8
            )
        else:
            weight = self.levels[self.codes.long()] * along(self.scale, self.axis, self.codes)
        return run_layer(self.layer, inputs, weight)


def _rounded_inputs(inputs: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    clipped = inputs.clamp(-zero * scale, (top - zero) * scale)
    with torch.no_grad():
        shift = (clipped / scale).round_().mul_(scale).sub_(clipped)
    return clipped + shift


def _affine(values: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of the range, shrunk as the squared error likes best; zero is always exact."""
    values = values.float()
    low, high = values.min().clamp_max(0.0), values.max().clamp_min(0.0)
    shrink_S1 = torch.linspace(0.3, 1.0, 29, device=values.device)[:, None]
    scale_S1 = ((high - low) * shrink_S1 / top).clamp_min(1e-8)
    zero_S1 = (-low * shrink_S1 / scale_S1).round().clamp(0, top)
    errors = [
        (_rounded_inputs(part, scale_S1, zero_S1, top) - part).square_().sum(1) for part in values.split(TOGETHER)
    ]
    best = int(torch.stack(errors).sum(0).argmin())
    return scale_S1[best, 0], zero_S1[best, 0].to(torch.int64)
