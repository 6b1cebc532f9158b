"""The best plans of a sensitivity table in cells: for every set of axes, every direction of the costs, every band.

Suffixes of array names: `N` plans, `P` parameters, `D` directions, `K` cells.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BANDS = 16  # bands of equal ratio between the unchanged network's cost and the smallest one (chosen)


class Plans(NamedTuple):
    """Plans of a sensitivity table.

    Attributes
    ----------
    rows_NP
        Choices of each parameter, from 0, which changes nothing.
    losses_N
        Sums of losses.
    logs_ND
        Logarithms of the costs relative to the unchanged network, in every direction.
    excess_N
        By how much the limits are exceeded, 0 if they are met.
    sets_N
        Bits of the axes that are used; 0 for the unchanged network.
    """

    rows_NP: np.ndarray
    losses_N: np.ndarray
    logs_ND: np.ndarray
    excess_N: np.ndarray
    sets_N: np.ndarray

    def only(self, chosen: np.ndarray) -> Plans:
        """Return some of the plans."""
        return Plans(*(array[chosen] for array in self))


class Cells:
    """The best plan of every cell, numbered by set of axes, direction and band, in this order.

    Parameters
    ----------
    sets_S
        Bits of the axes of each set; the first is that of all axes, whose cells take any plan.
    low_D, high_D
        Ends of the bands in each direction, as logarithms; plans beyond an end belong to its band.
    plans
        The first plans.

    Attributes
    ----------
    best
        The plan of each cell; rows of empty cells have no meaning.
    taken_K
        Which cells have a plan.
    size
        Number of cells of one set of axes.
    """

    def __init__(self, sets_S: np.ndarray, low_D: np.ndarray, high_D: np.ndarray, plans: Plans) -> None:
        self._low_D, self._high_D = low_D, high_D
        self._place_of_set = np.argsort(sets_S)  # the sets are all numbers from 1 on
        self._shape = len(sets_S), len(low_D), BANDS
        self.size = len(low_D) * BANDS
        count = len(sets_S) * self.size
        self.best = Plans(
            rows_NP=np.zeros((count, plans.rows_NP.shape[1]), dtype=int),
            losses_N=np.full(count, np.inf),
            logs_ND=np.zeros((count, len(low_D))),
            excess_N=np.full(count, np.inf),
            sets_N=np.zeros(count, dtype=int),
        )
        self.add(plans)

    @property
    def taken_K(self) -> np.ndarray:  # noqa: N802 - suffix of the shape
        """Which cells have a plan."""
        taken: np.ndarray = np.isfinite(self.best.excess_N)
        return taken

    def add(self, plans: Plans) -> bool:
        """Keep the plans that are better than those of their cells; return whether there are any."""
        plans = plans.only(plans.sets_N > 0)
        share = (self._high_D - plans.logs_ND) / (self._high_D - self._low_D)
        band_ND = np.clip((share * BANDS).astype(int), 0, BANDS - 1)
        better = False
        order = np.lexsort((plans.logs_ND.sum(1), plans.losses_N, plans.excess_N))
        own_set = self._place_of_set[plans.sets_N - 1]
        for direction in range(plans.logs_ND.shape[1]):
            for sets in (np.zeros_like(own_set), own_set):
                cell = sets * self.size + direction * BANDS + band_ND[:, direction]
                cells, first = np.unique(cell[order], return_index=True)
                better |= self._replace(cells, plans.only(order[first]))
        return better

    def _replace(self, cells: np.ndarray, plans: Plans) -> bool:
        old = self.best.only(cells)
        ranks = (
            (plans.excess_N, old.excess_N),
            (plans.losses_N, old.losses_N),
            (plans.logs_ND.sum(1), old.logs_ND.sum(1)),
        )
        better, equal = np.zeros(len(cells), dtype=bool), np.ones(len(cells), dtype=bool)
        for new, now in ranks:
            better |= equal & (new < now)
            equal &= new == now
        for array, new in zip(self.best, plans, strict=True):
            array[cells[better]] = new[better]
        return bool(better.any())

    def near(self, cells: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Return the cell that is some bands away, or the same cell where that is empty or in another direction."""
        others = cells + offsets
        fits = (others // BANDS == cells // BANDS) & (others >= 0)
        others = np.where(fits, others, cells)
        near: np.ndarray = np.where(self.taken_K[others], others, cells)
        return near

    def outdated(self, low_D: np.ndarray, high_D: np.ndarray) -> bool:
        """Whether an end of this range of the costs differs by more than a band."""
        moved_D = np.maximum(np.abs(self._low_D - low_D), np.abs(self._high_D - high_D))
        return bool((moved_D > (self._high_D - self._low_D) / BANDS).any())

    def plans(self) -> Plans:
        """Return the plans of all cells."""
        return self.best.only(self.taken_K)

    def spread(self) -> np.ndarray:
        """Return the rows of the plans within the limits, so that any number of first rows spans the costs."""
        numbers = np.arange(self.best.excess_N.size).reshape(self._shape)
        bits = (BANDS - 1).bit_length()
        bands = sorted(range(BANDS), key=lambda band: f"{band:0{bits}b}"[::-1])
        order = numbers[:, :, bands].transpose(0, 2, 1).ravel()
        order = order[self.best.excess_N[order] <= 0]
        rows = self.best.rows_NP[order]
        first = np.sort(np.unique(rows, axis=0, return_index=True)[1])
        return rows[first]
