"""The values that a quantized weight may take: a row of levels in [-1, 1], scaled channel by channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from sklearn.cluster import KMeans as ScikitKMeans
from torch import Tensor

SMALLEST = 0.25  # share of the largest weight
COARSE = torch.linspace(SMALLEST, 1.0, 11)
FINE = torch.tensor([-0.05, -0.025, 0.025, 0.05])
EVEN = 1e-3  # of a step: levels that lie so near to evenly spaced ones are those


class Grid(Protocol):
    """Where the levels lie."""

    @property
    def uniform(self) -> bool:
        """Whether the levels are evenly spaced, so that the codes are plain integers."""
        ...

    def entries(self, bits: int) -> int:
        """Return how many levels there are."""
        ...

    def levels(self, normal: Tensor, bits: int) -> Tensor:
        """Return the levels, ascending, at most 2**bits of them.

        Parameters
        ----------
        normal
            The weights of one layer, each output channel divided by its largest magnitude.
        bits
            Width of a code.
        """
        ...


@dataclass(frozen=True, slots=True)
class Uniform:
    """Evenly spaced and symmetric: -q/q ... q/q with q = 2**(bits-1) - 1, so that 2 bits are three values."""

    @property
    def uniform(self) -> bool:
        """True."""
        return True

    def entries(self, bits: int) -> int:
        """Return 2q + 1."""
        return (1 << bits) - 1

    def levels(self, normal: Tensor, bits: int) -> Tensor:
        """Return 2q + 1 levels."""
        q = 2 ** (bits - 1) - 1
        levels: Tensor = torch.arange(-q, q + 1, device=normal.device) / q
        return levels


@dataclass(frozen=True, slots=True)
class PowersOfTwo:
    """Zero and plus or minus 1, 1/2, 1/4, ...: a product becomes a shift (Zhou et al. 2017, arXiv:1702.03044)."""

    @property
    def uniform(self) -> bool:
        """False."""
        return False

    def entries(self, bits: int) -> int:
        """Return 2**bits - 1."""
        return (1 << bits) - 1

    def levels(self, normal: Tensor, bits: int) -> Tensor:
        """Return 2**bits - 1 levels."""
        magnitudes = 2.0 ** -torch.arange(2 ** (bits - 1) - 1, device=normal.device)
        return torch.cat([-magnitudes, magnitudes.new_zeros(1), magnitudes.flip(0)])


@dataclass(frozen=True, slots=True)
class KMeans:
    """A codebook of its own for every layer, found by k-means (Han et al. 2016, arXiv:1510.00149, §3).

    Parameters
    ----------
    sample
        At most so many weights are clustered.
    """

    sample: int = 8192

    @property
    def uniform(self) -> bool:
        """False."""
        return False

    def entries(self, bits: int) -> int:
        """Return 2**bits."""
        return 1 << bits

    def levels(self, normal: Tensor, bits: int) -> Tensor:
        """Return 2**bits centres; the highest is repeated where the layer has fewer distinct weights."""
        flat = normal.detach().flatten().cpu().double().numpy()
        flat = flat[:: max(1, len(flat) // self.sample)]
        count = min(2**bits, len(np.unique(flat)))
        start = np.quantile(flat, (np.arange(count) + 0.5) / count)  # deterministic, and every cell starts non-empty
        found = ScikitKMeans(count, init=start[:, None], n_init=1, max_iter=50).fit(flat[:, None])
        centres = np.pad(np.sort(found.cluster_centers_[:, 0]), (0, 2**bits - count), mode="edge")
        return torch.from_numpy(centres).to(normal)


def scales(weight_OX: Tensor, levels: Tensor) -> Tensor:
    """Return for each output channel the scale whose rounding error is smallest, shape (O,).

    Parameters
    ----------
    weight_OX
        The weights, one row an output channel.
    levels
        See `Grid.levels`.
    """
    largest = weight_OX.abs().amax(1).clamp_min(1e-8)
    best, least = torch.ones_like(largest), torch.full_like(largest, torch.inf)
    around = torch.zeros_like(best)
    for offsets in (COARSE, FINE):  # a good one of few, then the best beside it
        for offset in offsets.to(weight_OX.device):
            shrink = (around + offset).clamp_(SMALLEST, 1.0)
            scale = (largest * shrink)[:, None]
            error = (levels[nearest(weight_OX / scale, levels)] * scale).sub_(weight_OX).square_().sum(1)
            best = torch.where(error < least, shrink, best)
            least = torch.minimum(error, least)
        around = best
    return largest * best


def nearest(values: Tensor, levels: Tensor) -> Tensor:
    """Return the index of the nearest level to each value; ties go to the lower.

    Evenly spaced levels are computed: faster than searching them, and training does it in every step.
    """
    steps = levels.diff()
    if len(steps) and bool(((steps - steps[0]).abs() < EVEN * steps[0]).all()):
        places = (values - levels[0]).div_(steps.mean()).sub_(0.5).ceil_()
        return places.clamp_(0, len(steps)).long()
    return torch.bucketize(values, (levels[1:] + levels[:-1]) / 2)
