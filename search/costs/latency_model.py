"""The latency model: predicts a cost without a formula, fitted on measured networks and parts of networks.

Suffixes of array names: `N` measured networks, `S` measured parts or equations, `B` resampled models, `M` networks to
predict, `F` kinds of work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import nnls
from scipy.stats import spearmanr

from spaces.network.messages import number_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from objectives.layers import Parts

KERNEL_BANDWIDTH = 0.05  # standard deviation of the smoothing kernel, in shares of a network's cost (fitted)
PRIOR_NETWORKS = 0.3  # weight of a zero residual at every point, as a number of networks (fitted)
SCALE_PRIOR = 0.3  # weight of a scale of 1 between parts and whole networks, as a number of networks (fitted)
NETWORK_WEIGHT = 0.3  # of a network beside parts in the linear model (fitted)
RIDGE = 0.1  # weight of a zero coefficient, where there are parts, over the largest cost of its kind of work (fitted)
RESAMPLES = 30  # linear models whose mean is taken where there are parts (chosen)
CLOCKS = 0.6, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7  # times of the parts may be wrong by such factors (chosen)
FARTHEST_MODEL = 2.0  # factor from the median prediction beyond which a resampled model is left out (chosen)
UNKNOWN = 1.0  # relative error of a prediction of which nothing is known
MOST_NETWORKS = 300  # networks that the model is fitted to, beside the teacher: the latest (chosen)
LEAST_FOR_CLOCK = 3  # networks; with fewer no factor is chosen (chosen)
LEAST_FOR_CORRELATION = 5  # networks; a rank correlation over fewer says nothing


@dataclass(frozen=True)
class MeasuredParts:
    """Measured parts of networks.

    Parameters
    ----------
    work_SF, values_S
        Work and measured cost of each part; none if the cost is only measured on whole networks.
    most_F
        The most work of each kind in a network that may be predicted, 0 if unknown.
    """

    work_SF: np.ndarray
    values_S: np.ndarray
    most_F: np.ndarray | float = 0.0

    @cached_property
    def resamples(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each linear model, equations of the relative errors of as many parts, drawn with replacement."""
        rng, count = np.random.default_rng(0), len(self.values_S)
        rows_SF = self.work_SF / self.values_S[:, None]
        return [_reduced(rows_SF[rng.integers(count, size=count)]) for _ in range(RESAMPLES)]


@dataclass(frozen=True)
class LatencyModel:
    """A linear model of the work in a network, with a kernel smoother on its residuals.

    Each kind of work has a coefficient, fitted by non-negative least squares of relative errors. Where parts of
    networks are measured, they are small networks of their own, and the coefficients are the mean of models that are
    fitted to resampled parts and networks, each drawn a little towards zero (Breiman 1996, Bagging predictors): few
    measurements say little about many kinds of work. What is drawn towards zero is what a kind costs where there is
    most of it: of two kinds that explain the time of a small part equally well, the one of which large networks have a
    thousand times as much would otherwise be charged there for what nobody measured. The mean logarithmic residual of
    the networks then scales all predictions: operators take longer in a large network, where they find the caches
    filled by others. The residuals that remain are smoothed with a kernel over similar networks (Nadaraya 1964, Theory
    of Probability and Its Applications 9(1)); far from all measured networks the smoothed residual is zero.

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
    given_F
        The coefficients, None to fit them.
    """

    name: str
    work_of: Callable[[Parts], np.ndarray]
    work_NF: np.ndarray
    values_N: np.ndarray
    parts: MeasuredParts
    given_F: np.ndarray | None = None

    @property
    def teacher(self) -> float:
        """Cost of the teacher as measured in this process; it may differ in other processes."""
        return float(self.values_N[0])

    @cached_property
    def coefficients_F(self) -> np.ndarray:  # noqa: N802 - suffix of the shape
        """Cost of one unit of each kind of work, in the objective's unit."""
        if self.given_F is not None:
            return self.given_F
        return _mean_of_usual(self._fits[1], self.work_NF)

    @cached_property
    def _fits(self) -> tuple[np.ndarray, np.ndarray]:
        """Which networks each linear model is fitted to, shape (B, N), and its coefficients, shape (B, F)."""
        rows_NF, count = self.work_NF / self.values_N[:, None], len(self.values_N)
        if not len(self.parts.values_S):
            return np.ones((1, count), dtype=bool), coefficients_of(rows_NF, np.ones(count))[None]
        rng = np.random.default_rng(0)
        used_BN, fits = np.zeros((RESAMPLES, count), dtype=bool), []
        for number, (part_rows_SF, part_targets_S) in enumerate(self.parts.resamples):
            drawn_N = np.append(0, 1 + rng.integers(count - 1, size=count - 1)) if count > 1 else np.zeros(1, dtype=int)
            used_BN[number, drawn_N] = True
            weights_N = np.where(drawn_N == 0, 1.0, NETWORK_WEIGHT)
            rows_SF = np.vstack([rows_NF[drawn_N] * weights_N[:, None], part_rows_SF])
            most_F = self.parts.most_F / self.teacher
            fits.append(coefficients_of(rows_SF, np.append(weights_N, part_targets_S), RIDGE, most_F))
        return used_BN, np.stack(fits)

    @cached_property
    def scale(self) -> float:
        """The factor between whole networks and the linear model, drawn towards 1; 1 without parts."""
        if not len(self.parts.values_S):
            return 1.0
        residual_N = np.log(self.values_N / self._linear(self.work_NF)[0])[1:]
        return float(np.exp(residual_N.sum() / (len(residual_N) + SCALE_PRIOR)))

    @cached_property
    def held_out(self) -> np.ndarray:
        """Prediction of each network but the teacher by a model fitted without it, shape (N - 1,)."""
        return np.array([self._without(at).predict(self.work_NF[at, None])[0] for at in range(1, len(self.values_N))])

    @property
    def held_out_errors(self) -> np.ndarray:
        """Relative errors of these predictions."""
        errors: np.ndarray = self.held_out / self.values_N[1:] - 1
        return errors

    @cached_property
    def error(self) -> float:
        """Relative error that half of all new networks stay below, from leave-one-out cross-validation; 1 if unknown.

        A model of too few measurements may be wrong by any factor, so an error above 1 counts as unknown too. Of few
        networks it is above their median error, so that the statement holds (Vovk et al. 2005, Algorithmic
        Learning in a Random World, ch. 2).
        """
        errors = np.sort(np.abs(self.held_out_errors))
        return float(errors[math.ceil((len(errors) + 1) / 2) - 1].clip(max=UNKNOWN)) if len(errors) else UNKNOWN

    def words(self) -> str:
        """Describe what was measured, and how well it predicts networks that it was not fitted on."""
        count = len(self.values_N) - 1
        latest = "the latest " if count == MOST_NETWORKS else ""
        parts = f" and {number_of(len(self.parts.values_S), 'part')}" if len(self.parts.values_S) else ""
        measured = f"{latest}{number_of(count, 'network')}{parts}"
        if not count:
            return f"{self.name} is predicted from the teacher"
        median = np.median(np.abs(self.held_out_errors))
        if median >= UNKNOWN or count == 1:
            return f"{self.name} is predicted from {measured}, too few to tell how well"
        ranked = count >= LEAST_FOR_CORRELATION
        rank = f", rank correlation {spearmanr(self.held_out, self.values_N[1:])[0]:.2f}" if ranked else ""
        return f"{self.name} is predicted from {measured}; each network by the others: median error {median:.1%}{rank}"

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
        """Return the model fitted without one network: of resampled models, those that did not draw it."""
        used_BN, fits_BF = self._fits
        without_B = ~used_BN[:, at]
        given_F = _mean_of_usual(fits_BF[without_B], self.work_NF) if without_B.any() else None
        work_NF, values_N = np.delete(self.work_NF, at, 0), np.delete(self.values_N, at)
        return replace(self, work_NF=work_NF, values_N=values_N, given_F=given_F)

    def with_measurement(self, parts: Parts, value: float) -> LatencyModel:
        """Return the model fitted with one more network and its measured cost, in place of the oldest of very many."""
        first = max(1, len(self.values_N) + 1 - MOST_NETWORKS)
        more_NF = np.vstack([self.work_NF[:1], self.work_NF[first:], self.work_of(parts)])
        return replace(self, work_NF=more_NF, values_N=np.r_[self.values_N[:1], self.values_N[first:], value])


def at_best_clock(model: LatencyModel) -> LatencyModel:
    """Return the model whose parts' times are multiplied by the factor with which left-out networks are predicted best.

    The parts of other studies, or of another hour, were measured while the processor was faster or slower than now.
    """
    if len(model.held_out) < LEAST_FOR_CLOCK or not len(model.parts.values_S):
        return model
    clocked = (replace(model, parts=replace(model.parts, values_S=model.parts.values_S * clock)) for clock in CLOCKS)
    return min(clocked, key=lambda one: float(np.abs(np.log(one.held_out / one.values_N[1:])).mean()))


def _mean_of_usual(fits_BF: np.ndarray, work_NF: np.ndarray) -> np.ndarray:
    """Return the mean of linear models, without those that say something else of a network than most do.

    A kind of work that few of the drawn parts have can get a coefficient of any size.
    """
    totals_BN = np.maximum(fits_BF @ work_NF.T, np.finfo(float).tiny)
    usual_N = np.median(totals_BN, axis=0)
    usual_B = np.abs(np.log(totals_BN / usual_N)).max(1) <= math.log(FARTHEST_MODEL)
    mean: np.ndarray = (fits_BF[usual_B] if usual_B.any() else fits_BF).mean(0)
    return mean


def _reduced(rows_SF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return equations, rows and targets, with the squared errors of `rows @ c = 1`, as few as there are columns."""
    ones_S = np.ones(len(rows_SF))
    if len(rows_SF) <= rows_SF.shape[1]:
        return rows_SF, ones_S
    triangle = np.asarray(np.linalg.qr(np.column_stack([rows_SF, ones_S]), mode="r"))
    return triangle[:, :-1], triangle[:, -1]


def coefficients_of(
    rows_SF: np.ndarray, targets_S: np.ndarray, ridge: float = 0.0, most_F: np.ndarray | float = 0.0
) -> np.ndarray:
    """Return the non-negative coefficients with the smallest squared errors, drawn towards zero by `ridge`.

    It weighs a coefficient times the most work of its kind in an equation or in `most_F`. A kind of work that no
    equation has gets a coefficient of 0: nothing is known of it.

    References
    ----------
    Lawson & Hanson 1974, Solving Least Squares Problems, ch. 23.
    """
    largest_F = np.abs(rows_SF).max(0)
    known_F = largest_F > 0
    scale_F = np.maximum(largest_F, most_F)
    scaled_SF = rows_SF[:, known_F] / scale_F[known_F]
    kinds = scaled_SF.shape[1]
    if not kinds:
        return np.zeros(len(scale_F))
    if ridge:
        scaled_SF = np.vstack([scaled_SF, ridge * np.eye(kinds)])
        targets_S = np.append(targets_S, np.zeros(kinds))
    coefficients_F = np.zeros(len(scale_F))
    # the number of steps is far above the default of 3 per coefficient, because the fit fails at the bound
    coefficients_F[known_F] = nnls(scaled_SF, targets_S, maxiter=100 * kinds)[0] / scale_F[known_F]
    return coefficients_F
