"""A model of a cost that cannot be computed from shapes, such as latency, fitted to measured networks.

Legend: `N` networks, `F` kinds of work, `P` and `L` as in `Parts`.
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

BANDWIDTH = 0.05  # of the kernel, in shares of a network's cost (fitted)
PRIOR_NETWORKS = 0.3  # networks of residual zero that are added at every place (fitted)
BYTE_BITS = 8
BLOCKS = 8, 16  # output channels that kernels compute together: those of ONNX Runtime, and of XNNPACK
INPUT_BLOCK = 8  # input channels that XNNPACK's integer kernels multiply together, at each place of the kernel


@dataclass(frozen=True)
class LatencyModel:
    """A linear model of the work in a network, with a kernel smoother on its residuals.

    Each kind of work has a coefficient, fitted by non-negative least squares on relative errors. Residuals of the
    linear model, in logarithms, are smoothed with a kernel over similar networks (Nadaraya 1964, Theory of Probability
    and Its Applications 9(1)); far from all measured networks the smoothed residual is zero.

    Parameters
    ----------
    name
        Of the objective.
    work_NF, values_N
        The work in the measured networks, and what each costs in the objective's unit; the first is the teacher.
    """

    name: str
    work_NF: np.ndarray
    values_N: np.ndarray

    @property
    def teacher(self) -> float:
        """What the teacher costs in this process, which is not always what it does in another."""
        return float(self.values_N[0])

    @cached_property
    def coefficients_F(self) -> np.ndarray:  # noqa: N802 - the legend's
        """What one unit of each kind of work costs, in the objective's unit."""
        return _coefficients(self.work_NF, self.values_N)

    @cached_property
    def error(self) -> float:
        """Median relative error on the measured networks, each predicted from the others (leave one out)."""
        left_out = enumerate(~np.eye(len(self.values_N), dtype=bool))
        predicted_N = [
            float(
                LatencyModel(self.name, self.work_NF[others], self.values_N[others]).predict(self.work_NF[at, None])[0]
            )
            for at, others in left_out
        ]
        return float(np.median(np.abs(predicted_N / self.values_N - 1)))

    def foreseen(self, parts: Parts) -> np.ndarray:
        """Return the predicted cost of each network, shape (N,)."""
        return self.predict(work(parts))

    def predict(self, work_MF: np.ndarray) -> np.ndarray:
        """Return the predicted cost of networks with so much work in them, shape (M,)."""
        linear_M, places_MF = self._linear(work_MF)
        known_N, known_NF = self._linear(self.work_NF)
        squares_MN = (places_MF**2).sum(1)[:, None] + (known_NF**2).sum(1) - 2 * places_MF @ known_NF.T
        kernel_MN = np.exp(-squares_MN / (2 * BANDWIDTH**2))
        residual_M = kernel_MN @ np.log(self.values_N / known_N) / (kernel_MN.sum(1) + PRIOR_NETWORKS)
        predicted: np.ndarray = linear_M * np.exp(residual_M)
        return predicted

    def _linear(self, work_MF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what the linear model predicts, and where networks lie: shares of each kind of work, and log cost."""
        each_MF = work_MF * self.coefficients_F
        total_M = np.maximum(each_MF.sum(1), 1e-12)
        return total_M, np.column_stack([each_MF / total_M[:, None], np.log(total_M)])

    def with_measurement(self, parts: Parts, value: float) -> LatencyModel:
        """Return the model fitted to one network more, and what that was measured to cost."""
        return LatencyModel(self.name, np.vstack([self.work_NF, work(parts)]), np.append(self.values_N, value))


def work(parts: Parts) -> np.ndarray:
    """Return how much work of each kind there is in each network, shape (N, F).

    Multiply-adds of convolutions in floating point, of those between integers, of grouped ones and of linear layers,
    all with output channels filled up to eight and to sixteen; of those between integers with input channels filled up,
    of which a first layer has few; multiply-adds as they are, of grouped ones between integers, and of convolutions
    whose weights of less than a byte are unpacked at every inference; bits of weights; numbers written, and those of
    layers with rounded inputs; layers, those with rounded inputs and those that are unpacked; multiply-adds of other
    products; and 1.
    """
    whole = np.broadcast_arrays(
        parts.macs, parts.weights, parts.outputs, parts.inputs, parts.weight_bits, parts.activation_bits, parts.linear,
        parts.grouped,
    )  # fmt: skip
    macs, weights, outputs, inputs, weight_bits, activation_bits, linear, grouped = whole
    there = outputs > 0
    blocks = [_filled(macs, outputs, block) for block in BLOCKS]
    gathered = _filled(macs, inputs, INPUT_BLOCK)
    written = outputs * macs / np.maximum(weights, 1)
    rounded = there & (activation_bits < FLOAT_BITS)
    integer = rounded & (weight_bits < FLOAT_BITS)
    alone = grouped > 0
    dense = there & ~(linear > 0) & ~alone
    unpacked = [there & (weight_bits < BYTE_BITS) & kind for kind in (integer, ~integer)]
    each = (
        *(filled * kind for filled in blocks for kind in (dense & ~integer, dense & integer, alone, linear > 0)),
        gathered * (dense & integer), macs, macs * (alone & integer),
        *(macs * (kind & these) for kind in unpacked for these in (dense, alone)),
        weights * weight_bits, written, written * rounded, there, rounded, *unpacked,
    )  # fmt: skip
    sums = [kind.sum((0, 2)) for kind in each]
    return np.column_stack([*sums, parts.product_macs, np.ones(len(sums[0]))])


def _filled(macs: np.ndarray, channels: np.ndarray, block: int) -> np.ndarray:
    """Return the multiply-adds where channels are filled up to whole blocks."""
    filled: np.ndarray = macs * np.ceil(channels / block) * block / np.maximum(channels, 1)
    return filled


def _coefficients(work_NF: np.ndarray, values_N: np.ndarray) -> np.ndarray:
    """Return the coefficients, none negative, of least squared relative error on measured networks.

    References
    ----------
    Lawson & Hanson 1974, Solving Least Squares Problems, ch. 23.
    """
    scale_F = np.maximum(np.abs(work_NF).max(0), 1e-12)
    steps = 100 * len(scale_F)  # the default of three a coefficient would do; beyond it the fit fails
    coefficients_F, _ = nnls(work_NF / scale_F / values_N[:, None], np.ones(len(values_N)), maxiter=steps)
    scaled: np.ndarray = coefficients_F / scale_F
    return scaled
