"""The latency model: predicts a cost that cannot be computed from shapes, fitted on measured networks.

Suffixes of array names: `N` measured networks, `M` networks to predict, `F` kinds of work; `P` and `L` as in `Parts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import nnls

from spaces.network.layers import FLOAT_BITS

if TYPE_CHECKING:
    from objectives.layers import Parts

KERNEL_BANDWIDTH = 0.05  # standard deviation of the smoothing kernel, in shares of a network's cost (fitted)
PRIOR_NETWORKS = 0.3  # weight of a zero residual at every point, as a number of networks (fitted)
BYTE_BITS = 8  # bits in a byte
OUTPUT_BLOCKS = 8, 16  # output channels that the kernels of ONNX Runtime and of XNNPACK compute together
INPUT_BLOCK = 8  # input channels that XNNPACK's integer kernels multiply together, at each kernel position


@dataclass(frozen=True)
class LatencyModel:
    """A linear model of the work in a network, with a kernel smoother on its residuals.

    Each kind of work has a coefficient, fitted by non-negative least squares of relative errors. The logarithmic
    residuals of the linear model are smoothed with a kernel over similar networks (Nadaraya 1964, Theory of Probability
    and Its Applications 9(1)); far from all measured networks the smoothed residual is zero.

    Parameters
    ----------
    name
        Name of the objective.
    work_NF, values_N
        Work and measured cost of each network, the cost in the objective's unit; the first network is the teacher.
    """

    name: str
    work_NF: np.ndarray
    values_N: np.ndarray

    @property
    def teacher(self) -> float:
        """Cost of the teacher as measured in this process; it may differ in other processes."""
        return float(self.values_N[0])

    @cached_property
    def coefficients_F(self) -> np.ndarray:  # noqa: N802 - suffix of the shape
        """Cost of one unit of each kind of work, in the objective's unit."""
        return _coefficients(self.work_NF, self.values_N)

    @cached_property
    def error(self) -> float:
        """Median relative error on the measured networks, by leave-one-out cross-validation."""
        others_of = enumerate(~np.eye(len(self.values_N), dtype=bool))
        predicted_N = [
            float(
                LatencyModel(self.name, self.work_NF[others], self.values_N[others]).predict(self.work_NF[at, None])[0]
            )
            for at, others in others_of
        ]
        return float(np.median(np.abs(predicted_N / self.values_N - 1)))

    def foreseen(self, parts: Parts) -> np.ndarray:
        """Return the predicted cost of each network, shape (N,)."""
        return self.predict(work(parts))

    def predict(self, work_MF: np.ndarray) -> np.ndarray:
        """Return the predicted cost of networks with the given work, shape (M,)."""
        linear_M, features_MK = self._linear(work_MF)
        linear_N, features_NK = self._linear(self.work_NF)
        distances_MN = (features_MK**2).sum(1)[:, None] + (features_NK**2).sum(1) - 2 * features_MK @ features_NK.T
        kernel_MN = np.exp(-distances_MN / (2 * KERNEL_BANDWIDTH**2))
        residual_M = kernel_MN @ np.log(self.values_N / linear_N) / (kernel_MN.sum(1) + PRIOR_NETWORKS)
        predicted: np.ndarray = linear_M * np.exp(residual_M)
        return predicted

    def _linear(self, work_MF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the cost by the linear model, and features for the kernel: each kind's share of it, and its log."""
        each_MF = work_MF * self.coefficients_F
        total_M = np.maximum(each_MF.sum(1), 1e-12)
        return total_M, np.column_stack([each_MF / total_M[:, None], np.log(total_M)])

    def with_measurement(self, parts: Parts, value: float) -> LatencyModel:
        """Return the model fitted with one more network and its measured cost."""
        return LatencyModel(self.name, np.vstack([self.work_NF, work(parts)]), np.append(self.values_N, value))


def work(parts: Parts) -> np.ndarray:
    """Return the work of each kind in each network, shape (N, F).

    The kinds of work, in order:

    - multiply-adds with output channels padded to blocks of 8, then of 16: of dense floating-point convolutions, dense
      integer convolutions, grouped convolutions, and linear layers;
    - multiply-adds of dense integer convolutions with input channels padded to blocks (a first layer has few);
    - multiply-adds without padding: of all layers, of grouped integer convolutions, and of convolutions whose weights
      of less than a byte are unpacked at every inference (integer dense, integer grouped, floating-point dense,
      floating-point grouped);
    - bits of the weights; numbers written; numbers written by layers with quantized inputs;
    - layers; layers with quantized inputs; layers with unpacked weights (integer, floating-point);
    - multiply-adds of other products; and the constant 1.
    """
    arrays = np.broadcast_arrays(
        parts.macs, parts.weights, parts.outputs, parts.inputs, parts.weight_bits, parts.activation_bits, parts.linear,
        parts.grouped,
    )  # fmt: skip
    macs, weights, outputs, inputs, weight_bits, activation_bits, linear, grouped = arrays
    present = outputs > 0
    padded_outputs = [_padded(macs, outputs, block) for block in OUTPUT_BLOCKS]
    padded_inputs = _padded(macs, inputs, INPUT_BLOCK)
    written = outputs * macs / np.maximum(weights, 1)
    quantized = present & (activation_bits < FLOAT_BITS)
    integer = quantized & (weight_bits < FLOAT_BITS)
    is_grouped = grouped > 0
    dense = present & ~(linear > 0) & ~is_grouped
    unpacked = [present & (weight_bits < BYTE_BITS) & kind for kind in (integer, ~integer)]
    kinds = (
        *(
            padded * kind
            for padded in padded_outputs for kind in (dense & ~integer, dense & integer, is_grouped, linear > 0)
        ),
        padded_inputs * (dense & integer), macs, macs * (is_grouped & integer),
        *(macs * (kind & layers) for kind in unpacked for layers in (dense, is_grouped)),
        weights * weight_bits, written, written * quantized, present, quantized, *unpacked,
    )  # fmt: skip
    sums = [kind.sum((0, 2)) for kind in kinds]
    return np.column_stack([*sums, parts.product_macs, np.ones(len(sums[0]))])


def _padded(macs: np.ndarray, channels: np.ndarray, block: int) -> np.ndarray:
    """Return the multiply-adds with channels padded to whole blocks."""
    padded: np.ndarray = macs * np.ceil(channels / block) * block / np.maximum(channels, 1)
    return padded


def _coefficients(work_NF: np.ndarray, values_N: np.ndarray) -> np.ndarray:
    """Return the non-negative coefficients with the smallest squared relative errors on the measured networks.

    References
    ----------
    Lawson & Hanson 1974, Solving Least Squares Problems, ch. 23.
    """
    scale_F = np.maximum(np.abs(work_NF).max(0), 1e-12)
    steps = 100 * len(scale_F)  # far above the default of 3 per coefficient, because the fit fails at the bound
    coefficients_F, _ = nnls(work_NF / scale_F / values_N[:, None], np.ones(len(values_N)), maxiter=steps)
    scaled: np.ndarray = coefficients_F / scale_F
    return scaled
