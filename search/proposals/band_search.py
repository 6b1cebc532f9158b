"""Search a sensitivity table for the plans with the best sums of losses at every cost, without building networks.

Suffixes of array names: `N` plans, `P` parameters, `C` costs, `D` directions, `S` sets of axes, `E` single changes,
`K` cells.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from search.proposals.cells import Cells, Plans

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TRIED = 8  # most promising changes that a greedy step evaluates (chosen)
GENERATION_PLANS = 2000  # mutated plans in a generation, half of them of plans of all axes together (chosen)
MOVES = 1.0, 2.0, 4.0  # mean numbers of changed parameters of mutants; at least one is changed (chosen)
SWAPPED = 0.3  # share of its parameters that a mutant takes from its mate, if it has one (chosen)
PATIENCE = 40  # generations without a better plan in any cell, after which an evolution ends (chosen)
MIN_GENERATIONS, MAX_GENERATIONS = 20, 400  # bounds on the generations of an evolution (chosen)
MAX_EVOLUTIONS = 4  # evolutions, each with the range of costs that the one before found (chosen)
MUTATED = 4_000_000  # numbers in all mutants of an evolution, which bounds its time (chosen)
SMALLEST_SHARE = 1e-9  # of the unchanged network's cost; smaller costs are not distinguished


class Evaluation(NamedTuple):
    """Costs of plans, positive, shape (N, C), and by how much each exceeds the limits, at most 0: not, shape (N,)."""

    costs_NC: np.ndarray
    excess_N: np.ndarray


def band_search(
    losses: Sequence[np.ndarray],
    axes: Sequence[int],
    evaluate: Callable[[np.ndarray], Evaluation],
    seed: int = 0,
    starts: np.ndarray | None = None,
) -> np.ndarray:
    """Return the choices with the best sums of losses at every cost, for every set of axes, within the limits.

    Plans are kept in cells: for every set of axes, every direction of the costs, and every band. A direction is one
    cost alone, or the mean of all costs relative to the unchanged network's. Its range, from the largest to the
    smallest cost that is found within the limits, is divided into bands of equal ratio. A cell keeps the plan that
    exceeds the limits least; of several within the limits the one with the smallest sum of losses, then the cheapest.

    First, a greedy path is followed for every set of axes and every direction: always the change with the smallest
    loss for its saving, until no change makes the network cheaper. Then the plans of all cells are mutated and crossed
    with their neighbours, until no cell gets a better plan. Only ratios of costs and ratios of losses matter, so that
    other units give the same plans.

    Parameters
    ----------
    losses
        For each parameter, the loss that each choice adds, nondecreasing and starting at 0.
    axes
        For each parameter, the number of its axis.
    evaluate
        Returns the costs of plans, given the choices in each row, shape (N, P).
    seed
        Seed of the mutations.
    starts
        Plans to begin with, besides those of the greedy paths, shape (plans, P).

    Returns
    -------
    np.ndarray
        Distinct rows of choices that change something and meet the limits, shape (plans, P). Any number of first rows
        spans the range of costs: first the plans of all axes together, in alternating bands, then those of fewer axes.

    References
    ----------
    Deb 2002, IEEE Trans. Evolutionary Computation 6(2), section VI: of plans over a limit, the nearest is kept.
    Mouret & Clune 2015, arXiv:1504.04909: an evolution that keeps the best plan of every cell.
    """
    if all(len(added) == 1 for added in losses):
        return np.zeros((0, len(losses)), dtype=int)  # nothing can be changed
    search = _Search(losses, axes, evaluate)
    rng = np.random.default_rng(seed)
    most = min(MAX_GENERATIONS, max(MIN_GENERATIONS, MUTATED // (GENERATION_PLANS * len(losses))))
    found = search.greedy_paths()
    begun = search.plans(starts) if starts is not None and len(starts) else None
    cells = Cells(search.sets_S, *search.range(), found)
    if begun is not None:
        cells.add(begun)
    for _ in range(MAX_EVOLUTIONS):
        quiet = 0
        for _ in range(most):
            quiet = 0 if cells.add(search.mutants(cells, rng)) else quiet + 1
            if quiet >= PATIENCE:
                break
        while search.has_few_pairs(cells) and cells.add(search.pairs(cells)):
            pass
        outdated = cells.outdated(*search.range())  # cheaper plans, or the first ones within the limits, were found
        cells = Cells(search.sets_S, *search.range(), cells.plans())
        if not outdated:
            break
    return cells.spread()


class _Search:
    """The table, and what is computed from it once."""

    def __init__(
        self, losses: Sequence[np.ndarray], axes: Sequence[int], evaluate: Callable[[np.ndarray], Evaluation]
    ) -> None:
        self.counts_P = np.array([len(added) for added in losses])
        self._losses, self._evaluate = losses, evaluate
        self._bit_P = 1 << np.unique(axes, return_inverse=True)[1]
        self.all_axes = int(np.bitwise_or.reduce(self._bit_P))
        self.sets_S = np.array(sorted(range(1, self.all_axes + 1), key=lambda bits: -bits.bit_count()))
        unchanged_C = evaluate(np.zeros((1, len(losses)), dtype=int)).costs_NC[0]
        self._unit_C = np.where(unchanged_C > 0, unchanged_C, 1.0)
        self._ends: dict[float, tuple[np.ndarray, np.ndarray]] = {}  # by the largest excess that is included
        count = len(self._unit_C)
        self.weights_DC = np.vstack([np.eye(count), np.full((int(count > 1), count), 1 / count)])
        self.free_SP = (self.sets_S[:, None] & self._bit_P) > 0
        self.plans(np.zeros((1, len(losses)), dtype=int))

    def plans(self, rows_NP: np.ndarray) -> Plans:
        """Return the plans of these rows."""
        costs_NC, excess_N = self._evaluate(rows_NP)
        losses_N = self._each_loss(rows_NP).sum(1)
        relative_ND = costs_NC / self._unit_C @ self.weights_DC.T
        logs_ND = np.log(np.maximum(relative_ND, SMALLEST_SHARE))
        for key, logs in ((0.0, logs_ND[excess_N <= 0]), (np.inf, logs_ND)):
            if len(logs):
                low_D, high_D = self._ends.get(key, (logs[0], logs[0]))
                self._ends[key] = np.minimum(low_D, logs.min(0)), np.maximum(high_D, logs.max(0))
        sets_N = np.bitwise_or.reduce(np.where(rows_NP > 0, self._bit_P, 0), axis=1)
        return Plans(rows_NP, losses_N, logs_ND, np.maximum(excess_N, 0.0), sets_N)

    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the smallest and the largest logarithm in each direction, of all plans within the limits so far."""
        low_D, high_D = self._ends[0.0 if 0.0 in self._ends else np.inf]
        return low_D, np.maximum(np.minimum(high_D, 0.0), low_D + 1e-9)

    def greedy_paths(self) -> Plans:
        """Return all plans on the greedy paths of every set of axes and every direction, and each single change.

        The saving of a change is estimated by its saving when it was last evaluated, and the most promising ones are
        evaluated (lazy evaluation: Minoux 1978).
        """
        column_E = np.repeat(np.arange(len(self.counts_P)), self.counts_P - 1)
        choice_E = np.concatenate([np.arange(1, count) for count in self.counts_P])
        single_EP = np.zeros((len(column_E), len(self.counts_P)), dtype=int)
        single_EP[np.arange(len(column_E)), column_E] = choice_E
        found = [self.plans(single_EP)]
        paths = itertools.product(range(len(self.sets_S)), range(len(self.weights_DC)))
        set_N, direction_N = np.array(list(paths)).T
        free_NE = self.free_SP[set_N][:, column_E]
        saved_NE = 1 - np.exp(found[0].logs_ND).T[direction_N]  # shares of the cost before the change
        rows_NP = np.zeros((len(set_N), len(self.counts_P)), dtype=int)
        cost_N = np.exp(self.plans(rows_NP[:1]).logs_ND[0, direction_N])
        active = np.arange(len(set_N))
        while len(active):
            rows, saved_AE = rows_NP[active], saved_NE[active]
            added_AE = found[0].losses_N - self._each_loss(rows)[:, column_E]
            usable_AE = free_NE[active] & (choice_E > rows[:, column_E]) & (saved_AE > SMALLEST_SHARE)
            tried = _cheapest(added_AE, saved_AE, usable_AE)[:, :TRIED]
            width = tried.shape[1]
            base, change = np.repeat(active, width), tried.ravel()
            changed = rows_NP[base]
            changed[np.arange(len(base)), column_E[change]] = choice_E[change]
            plans = self.plans(changed)
            cost = np.exp(plans.logs_ND[np.arange(len(base)), direction_N[base]])
            saving = (1 - cost / cost_N[base]).reshape(-1, width)
            saved_NE[active[:, None], tried] = saving
            helps = np.take_along_axis(usable_AE, tried, 1) & (saving > SMALLEST_SHARE)
            best = _cheapest(np.take_along_axis(added_AE, tried, 1), saving, helps)[:, 0]
            moved = helps[np.arange(len(best)), best]
            picked = (np.arange(len(best)) * width + best)[moved]
            rows_NP[active[moved]], cost_N[active[moved]] = changed[picked], cost[picked]
            found.append(plans.only(picked))
            active = active[moved | usable_AE.any(1)]  # a path ends when nothing can save anything
        return Plans(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))

    def _each_loss(self, rows_NP: np.ndarray) -> np.ndarray:
        """Return the loss that each parameter adds, shape (N, P)."""
        return np.stack([added[rows_NP[:, at]] for at, added in enumerate(self._losses)], axis=1)

    def has_few_pairs(self, cells: Cells) -> bool:
        """Whether all pairs of changes of the best plans can be evaluated in the time of an evolution."""
        changes = int((self.counts_P - 1).sum())
        return bool(changes**2 / 2 * cells.taken_K[: cells.size].sum() * len(self.counts_P) <= MUTATED)

    def pairs(self, cells: Cells) -> Plans:
        """Return the best plans of all axes together with every one and every two parameters changed."""
        rows = cells.best.rows_NP[: cells.size][cells.taken_K[: cells.size]]
        choices = [(at, choice) for at, count in enumerate(self.counts_P) for choice in range(count)]
        two = [(*a, *b) for a, b in itertools.combinations_with_replacement(choices, 2) if a == b or a[0] != b[0]]
        changed = np.tile(rows, (len(two), 1))
        first, value, second, other = np.repeat(np.array(two), len(rows), axis=0).T
        changed[np.arange(len(changed)), first] = value
        changed[np.arange(len(changed)), second] = other
        return self.plans(np.unique(changed, axis=0))

    def mutants(self, cells: Cells, rng: np.random.Generator) -> Plans:
        """Return mutated plans of every cell; half of them are crossed with a plan of a cell that is near."""
        taken = np.flatnonzero(cells.taken_K)
        parents = np.concatenate(
            [rng.choice(some, GENERATION_PLANS // 2) for some in (taken, taken[taken < cells.size])]
        )
        rows = cells.best.rows_NP[parents]
        free = self.free_SP[parents // cells.size]
        mates = cells.near(parents, rng.integers(-2, 3, size=len(parents)))
        crossed = (rng.random(rows.shape) < SWAPPED) & (rng.random((len(rows), 1)) < 1 / 2)
        rows = np.where(crossed, cells.best.rows_NP[mates], rows)
        scores = np.where(free, rng.random(rows.shape), 2.0)
        share = rng.choice(MOVES, size=len(rows)) / free.sum(1)
        moved = scores < np.maximum(share, scores.min(1) * (1 + 1e-12))[:, None]
        small = rows + rng.choice([-1, 1], size=rows.shape)
        anywhere = rng.integers(0, self.counts_P, size=rows.shape)
        changed = np.where(rng.random(rows.shape) < 1 / 2, small, anywhere)
        rows = np.clip(np.where(moved, changed, rows), 0, self.counts_P - 1)
        return self.plans(rows)


def _cheapest(added: np.ndarray, saved: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Return for each row the order of the changes by their loss for a saving; of those without loss, by the saving."""
    rates = np.full(added.shape, np.inf)
    np.divide(added, saved, out=rates, where=usable)
    order: np.ndarray = np.lexsort((-saved, rates), axis=1)
    return order
