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
AT_ONCE = 1 << 17  # weights that are tried at several scales together: they stay in the cache
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
    together = max(1, AT_ONCE // weight_OX.numel())  # small layers take no longer than their arithmetic
    for offsets in (COARSE, FINE):  # a good one of few, then the best beside it
        for some in offsets.to(weight_OX.device).split(together):
            shrink_SO = (around + some[:, None]).clamp_(SMALLEST, 1.0)
            scale_SO1 = (largest * shrink_SO)[..., None]
            near = rounded(weight_OX / scale_SO1, levels).mul_(scale_SO1)
            error, first = near.sub_(weight_OX).square_().sum(2).min(0)
            shrink = shrink_SO.gather(0, first[None])[0]
            best = torch.where(error < least, shrink, best)
            least = torch.minimum(error, least)
        around = best
    return largest * best


def nearest(values: Tensor, levels: Tensor) -> Tensor:
    """Return the index of the nearest level to each value; ties go to the lower."""
    step = _even(levels)
    return _searched(values, levels) if step is None else _places(values, levels, step).long()


def rounded(values: Tensor, levels: Tensor) -> Tensor:
    """Return the nearest level to each value, `levels[nearest(values, levels)]` but for its last digit.

    Evenly spaced levels are computed: faster than looking them up, and training does it in every step.
    """
    step = _even(levels)
    if step is None:
        return levels[_searched(values, levels)]
    return _places(values, levels, step).add_((levels[0] / step).round_()).mul_(step)  # so zero stays zero


def _even(levels: Tensor) -> Tensor | None:
    """Return the step between the levels if it is always the same and zero is one of them."""
    if len(levels) < 2:  # noqa: PLR2004 - there is no step
        return None
    step = (levels[-1] - levels[0]) / (len(levels) - 1)
    even = levels / step
    return step if bool(((even - even.round()).abs() < EVEN).all() & (levels.diff() > 0).all()) else None


def _places(values: Tensor, levels: Tensor, step: Tensor) -> Tensor:
    return (values - levels[0]).div_(step).sub_(0.5).ceil_().clamp_(0, len(levels) - 1)


def _searched(values: Tensor, levels: Tensor) -> Tensor:
    return torch.bucketize(values, (levels[1:] + levels[:-1]) / 2)
