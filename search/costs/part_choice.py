"""Which part of a network to measure next: the one that tells most about the networks that are predicted.

Suffixes of array names: `S` measured parts, `C` candidates, `M` networks to predict, `F` kinds of work.
"""

from __future__ import annotations

import numpy as np

from search.costs.latency_model import RIDGE, MeasuredParts, coefficients_of


def most_telling(candidates_CF: np.ndarray, measured: MeasuredParts, networks_MF: np.ndarray, teacher: float) -> int:
    """Return which candidate lowers the variance of the networks' predicted costs most.

    The variance is that of the linear model with its ridge as a Gaussian prior, in the relative errors that it is
    fitted to; what a candidate costs is predicted for it (V-optimal design; Fedorov 1972, Theory of Optimal
    Experiments, ch. 2).

    Parameters
    ----------
    candidates_CF
        Work of the parts that can be measured, shape (C, F).
    measured
        The parts that are measured already.
    networks_MF
        Work of networks that will be predicted, shape (M, F).
    teacher
        Cost of the teacher, in the unit of the measured values.

    Returns
    -------
    int
        The row of the candidate.
    """
    rows_MF = networks_MF / teacher
    if len(measured.values_S):
        rows_SF = measured.work_SF / measured.values_S[:, None]
        costs_C = candidates_CF @ coefficients_of(rows_SF, np.ones(len(rows_SF)), RIDGE, rows_MF.max(0))
        costs_C = np.maximum(costs_C, measured.values_S.min())  # the least that a call takes
    else:
        rows_SF, costs_C = np.zeros((0, rows_MF.shape[1])), np.full(len(candidates_CF), teacher)
    rows_CF = candidates_CF / costs_C[:, None]
    scale_F = np.vstack([rows_SF, rows_CF, rows_MF]).max(0)
    scale_F[scale_F == 0] = 1.0
    scaled_SF, scaled_CF, scaled_MF = (rows / scale_F for rows in (rows_SF, rows_CF, rows_MF))
    covariance_FF = np.linalg.inv(scaled_SF.T @ scaled_SF + RIDGE**2 * np.eye(len(scale_F)))
    moved_FC = covariance_FF @ scaled_CF.T
    gains_C = ((scaled_MF @ moved_FC) ** 2).sum(0) / (1 + (scaled_CF.T * moved_FC).sum(0))
    return int(gains_C.argmax())
