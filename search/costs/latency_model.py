"""The latency model: predicts a cost without a formula, fitted on measured networks and parts of networks.

Suffixes of array names: `N` measured networks, `S` measured parts or equations, `M` networks to predict, `F` kinds of
work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import nnls
from scipy.stats import spearmanr

if TYPE_CHECKING:
    from collections.abc import Callable

    from objectives.layers import Parts

KERNEL_BANDWIDTH = 0.05  # standard deviation of the smoothing kernel, in shares of a network's cost (fitted)
PRIOR_NETWORKS = 0.3  # weight of a zero residual at every point, as a number of networks (fitted)
SCALE_PRIOR = 0.3  # weight of a scale of 1 between parts and whole networks, as a number of networks (fitted)
NETWORK_WEIGHTS = 0.0, 0.2, 1.0  # of a network beside the parts in the linear model; the best is taken (chosen)
MOST_HELD_OUT = 20  # the latest networks, each of which is predicted without it (chosen)


LEAST_FOR_CORRELATION = 5  # networks; a rank correlation over fewer says nothing, nor does a choice among weights


@dataclass(frozen=True)
class MeasuredParts:
    """Measured parts of networks.

    Parameters
    ----------
    work_SF, values_S
        Work and measured cost of each part; none if the cost is only measured on whole networks.
    """

    work_SF: np.ndarray
    values_S: np.ndarray

    @cached_property
    def equations(self) -> tuple[np.ndarray, np.ndarray]:
        """The equations of the parts' relative errors, reduced to as few as there are kinds of work."""
        rows_SF, ones_S = self.work_SF / self.values_S[:, None], np.ones(len(self.values_S))
        if len(rows_SF) <= rows_SF.shape[1]:
            return rows_SF, ones_S
        triangle = np.asarray(np.linalg.qr(np.column_stack([rows_SF, ones_S]), mode="r"))  # the same squared errors
        return triangle[:, :-1], triangle[:, -1]


@dataclass(frozen=True)
class LatencyModel:
    """A linear model of the work in a network, with a kernel smoother on its residuals.

    Each kind of work has a coefficient, fitted by non-negative least squares of relative errors, on whole networks and
    on parts of networks: a part is a small network. Few networks say little about many kinds of work, so a network has
    the weight with which networks that are left out are predicted best, which may be 0. The mean logarithmic residual
    of the networks scales all predictions: operators take longer in a large network, where they find the caches filled
    by others. The residuals that remain are smoothed with a kernel over similar networks (Nadaraya 1964, Theory of
    Probability and Its Applications 9(1)); far from all measured networks the smoothed residual is zero.

    Parameters
    ----------
    name
        Name of the objective.
    work_of
        Returns the work of N networks, shape (N, F).
    work_NF, values_N
        Work and measured cost of each network, the cost in the objective's unit; the first network is the teacher.
    parts
        Measured parts of networks.
    weight
        Weight of a network other than the teacher in the linear model, None for the best.
    """

    name: str
    work_of: Callable[[Parts], np.ndarray]
    work_NF: np.ndarray
    values_N: np.ndarray
    parts: MeasuredParts
    weight: float | None = None

    @property
    def teacher(self) -> float:
        """Cost of the teacher as measured in this process; it may differ in other processes."""
        return float(self.values_N[0])

    @cached_property
    def coefficients_F(self) -> np.ndarray:  # noqa: N802 - suffix of the shape
        """Cost of one unit of each kind of work, in the objective's unit."""
        weights_N = np.full(len(self.values_N), self.network_weight)
        weights_N[0] = 1
        rows_SF, targets_S = self.work_NF * (weights_N / self.values_N)[:, None], weights_N
        if len(self.parts.values_S):
            part_rows_SF, part_targets_S = self.parts.equations
            rows_SF, targets_S = np.vstack([rows_SF, part_rows_SF]), np.concatenate([targets_S, part_targets_S])
        return _coefficients(rows_SF, targets_S)

    @cached_property
    def network_weight(self) -> float:
        """Weight of a network other than the teacher in the linear model; 1 without parts."""
        if self.weight is not None or not len(self.parts.values_S):
            return 1.0 if self.weight is None else self.weight
        if len(self.values_N) <= LEAST_FOR_CORRELATION:  # too few to compare the weights on
            return NETWORK_WEIGHTS[0]
        models = [replace(self, weight=weight) for weight in NETWORK_WEIGHTS]
        return min(models, key=lambda model: float(np.abs(model.held_out_errors).mean())).network_weight

    @cached_property
    def scale(self) -> float:
        """The factor between whole networks and the linear model, drawn towards 1; 1 without parts."""
        if not len(self.parts.values_S):
            return 1.0
        residual_N = np.log(self.values_N / self._linear(self.work_NF)[0])[1:]
        return float(np.exp(residual_N.sum() / (len(residual_N) + SCALE_PRIOR)))

    @cached_property
    def held_out(self) -> np.ndarray:
        """Prediction of each of the latest networks, but the teacher, by a model fitted without it."""
        return np.array([self._without(at).predict(self.work_NF[at, None])[0] for at in self._latest])

    @property
    def held_out_errors(self) -> np.ndarray:
        """Relative errors of these predictions."""
        errors: np.ndarray = self.held_out / self.values_N[self._latest] - 1
        return errors

    @property
    def _latest(self) -> list[int]:
        return list(range(max(1, len(self.values_N) - MOST_HELD_OUT), len(self.values_N)))

    @cached_property
    def error(self) -> float:
        """Relative error that half of all new networks stay below, from leave-one-out cross-validation; 1 if unknown.

        Of few networks it is above their median error, so that the statement holds (Vovk et al. 2005, Algorithmic
        Learning in a Random World, ch. 2).
        """
        errors = np.sort(np.abs(self.held_out_errors))
        return float(errors[math.ceil((len(errors) + 1) / 2) - 1]) if len(errors) else 1.0

    def words(self) -> str:
        """Describe what was measured, and how well it predicts networks that it was not fitted on."""
        count = len(self.values_N) - 1
        measured = f"{count} networks" + (f" and {len(self.parts.values_S)} parts" if len(self.parts.values_S) else "")
        if not count:
            return f"{self.name} is predicted from the teacher"
        errors = np.abs(self.held_out_errors)
        ranked = count >= LEAST_FOR_CORRELATION
        rank = f", rank correlation {spearmanr(self.held_out, self.values_N[self._latest])[0]:.2f}" if ranked else ""
        return (
            f"{self.name} is predicted from {measured}; each network by the others: median error "
            f"{np.median(errors):.1%}{rank}"
        )

    def foreseen(self, parts: Parts) -> np.ndarray:
        """Return the predicted cost of each network, shape (N,)."""
        return self.predict(self.work_of(parts))

    def predict(self, work_MF: np.ndarray) -> np.ndarray:
        """Return the predicted cost of networks with the given work, shape (M,)."""
        linear_M, features_MK = self._linear(work_MF)
        linear_N, features_NK = self._linear(self.work_NF)
        distances_MN = (features_MK**2).sum(1)[:, None] + (features_NK**2).sum(1) - 2 * features_MK @ features_NK.T
        kernel_MN = np.exp(-distances_MN / (2 * KERNEL_BANDWIDTH**2))
        residual_N = np.log(self.values_N / (linear_N * self.scale))
        smoothed_M = kernel_MN @ residual_N / (kernel_MN.sum(1) + PRIOR_NETWORKS)
        predicted: np.ndarray = linear_M * self.scale * np.exp(smoothed_M)
        return predicted

    def _linear(self, work_MF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the cost by the linear model, and features for the kernel: each kind's share of it, and its log."""
        each_MF = work_MF * self.coefficients_F
        total_M = np.maximum(each_MF.sum(1), 1e-12)
        return total_M, np.column_stack([each_MF / total_M[:, None], np.log(total_M)])

    def _without(self, at: int) -> LatencyModel:
        """Return the model fitted without one network."""
        work_NF, values_N = np.delete(self.work_NF, at, 0), np.delete(self.values_N, at)
        return replace(self, work_NF=work_NF, values_N=values_N, weight=self.network_weight)

    def with_measurement(self, parts: Parts, value: float) -> LatencyModel:
        """Return the model fitted with one more network and its measured cost."""
        more_NF = np.vstack([self.work_NF, self.work_of(parts)])
        return replace(self, work_NF=more_NF, values_N=np.append(self.values_N, value))


def _coefficients(rows_SF: np.ndarray, targets_S: np.ndarray) -> np.ndarray:
    """Return the non-negative coefficients with the smallest squared errors.

    References
    ----------
    Lawson & Hanson 1974, Solving Least Squares Problems, ch. 23.
    """
    scale_F = np.maximum(np.abs(rows_SF).max(0), 1e-12)
    steps = 100 * len(scale_F)  # far above the default of 3 per coefficient, because the fit fails at the bound
    coefficients_F, _ = nnls(rows_SF / scale_F, targets_S, maxiter=steps)
    scaled: np.ndarray = coefficients_F / scale_F
    return scaled
