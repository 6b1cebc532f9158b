"""Levels of quantized weights, in [-1, 1], and their scales, one for each output channel.

Legend: `O` output channels, `X` weights of one channel, `S` scales that are tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from sklearn.cluster import KMeans as ScikitKMeans
from torch import Tensor

from spaces.network.statistics import even_stride

# scales are searched as shares of the largest weight of a channel: a coarse search, then offsets around the best share
SMALLEST_SCALE = 0.25
COARSE_SCALES = torch.linspace(SMALLEST_SCALE, 1.0, 11)
FINE_SCALE_OFFSETS = torch.tensor([-0.05, -0.025, 0.025, 0.05])
SCALE_SEARCH_WEIGHTS = 1 << 17  # weights, times scales, that are rounded in one operation: they fit in the cache
SPACING_TOLERANCE = 1e-3  # steps: levels that deviate less from evenly spaced ones count as evenly spaced


class Grid(Protocol):
    """A rule that places the levels."""

    @property
    def uniform(self) -> bool:
        """Whether the levels are evenly spaced, so that codes are plain integers and no codebook is stored."""
        ...

    def entries(self, bits: int) -> int:
        """Return the number of levels."""
        ...

    def levels(self, normal: Tensor, bits: int) -> Tensor:
        """Return the levels, ascending, at most 2**bits of them.

        Parameters
        ----------
        normal
            The weights of one layer, with each output channel divided by its largest magnitude.
        bits
            Width of a code.
        """
        ...


@dataclass(frozen=True, slots=True)
class Uniform:
    """Evenly spaced, symmetric levels: -q/q ... q/q with q = 2**(bits-1) - 1, so that 2 bits have three levels."""

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
    """Zero and plus or minus 1, 1/2, 1/4, ...: multiplications become shifts (Zhou et al. 2017, arXiv:1702.03044)."""

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
    """A separate codebook for every layer, found by k-means (Han et al. 2016, arXiv:1510.00149, §3).

    Parameters
    ----------
    sample
        Approximate number of weights to cluster; larger layers are subsampled.
    """

    sample: int = 8192

    def __post_init__(self) -> None:
        """Check the number of weights."""
        if isinstance(self.sample, bool) or not isinstance(self.sample, int) or self.sample < 1:
            raise ValueError(f"sample must be a whole number, at least 1, but got {self.sample!r}")

    @property
    def uniform(self) -> bool:
        """False."""
        return False

    def entries(self, bits: int) -> int:
        """Return 2**bits."""
        return 1 << bits

    def levels(self, normal: Tensor, bits: int) -> Tensor:
        """Return 2**bits centres; the highest is repeated if the layer has fewer distinct weights."""
        flat = normal.detach().flatten().cpu().double().numpy()
        flat = flat[:: even_stride(len(flat), self.sample)]
        count = min(2**bits, len(np.unique(flat)))
        start = np.quantile(flat, (np.arange(count) + 0.5) / count)  # deterministic, and no cluster starts empty
        found = ScikitKMeans(count, init=start[:, None], n_init=1, max_iter=50).fit(flat[:, None])
        centres = np.pad(np.sort(found.cluster_centers_[:, 0]), (0, 2**bits - count), mode="edge")
        return torch.from_numpy(centres).to(normal)


def scales(weight_OX: Tensor, levels: Tensor) -> Tensor:
    """Return for each output channel the scale with the smallest rounding error, shape (O,).

    Parameters
    ----------
    weight_OX
        The weights, one row for each output channel.
    levels
        See `Grid.levels`.
    """
    largest = weight_OX.abs().amax(1).clamp_min(1e-8)
    best_share, least_error = torch.ones_like(largest), torch.full_like(largest, torch.inf)
    centre = torch.zeros_like(best_share)
    scales_per_pass = max(1, SCALE_SEARCH_WEIGHTS // weight_OX.numel())  # several: saves overhead on small layers
    for offsets in (COARSE_SCALES, FINE_SCALE_OFFSETS):
        for some in offsets.to(weight_OX.device).split(scales_per_pass):
            share_SO = (centre + some[:, None]).clamp_(SMALLEST_SCALE, 1.0)
            scale_SO1 = (largest * share_SO)[..., None]
            near = rounded(weight_OX / scale_SO1, levels).mul_(scale_SO1)
            error, first = near.sub_(weight_OX).square_().sum(2).min(0)
            share = share_SO.gather(0, first[None])[0]
            best_share = torch.where(error < least_error, share, best_share)
            least_error = torch.minimum(error, least_error)
        centre = best_share
    return largest * best_share


def nearest(values: Tensor, levels: Tensor, *, even: bool | None = None) -> Tensor:
    """Return the index of the level nearest to each value; ties are rounded to the lower level.

    Parameters
    ----------
    values
        Any values.
    levels
        Levels, ascending.
    even
        Whether they are `evenly_spaced`, if that is known; to find out, the device has to be waited for.
    """
    if evenly_spaced(levels) if even is None else even:
        return _computed_index(values, levels, _step(levels)).long()
    return _searched_index(values, levels)


def rounded(values: Tensor, levels: Tensor, *, even: bool | None = None) -> Tensor:
    """Return the level nearest to each value: `levels[nearest(values, levels)]`, except for the last digit.

    Evenly spaced levels are computed, which is faster than a lookup; training does it in every step. The parameters are
    those of `nearest`.
    """
    if evenly_spaced(levels) if even is None else even:
        step = _step(levels)
        # a multiple of the step, so that zero is exact
        return _computed_index(values, levels, step).add_((levels[0] / step).round_()).mul_(step)
    return levels[_searched_index(values, levels)]


def evenly_spaced(levels: Tensor) -> bool:
    """Whether levels, ascending, are evenly spaced and include zero."""
    if len(levels) < 2:  # noqa: PLR2004 - there is no step
        return False
    multiples = levels / _step(levels)
    return bool(((multiples - multiples.round()).abs() < SPACING_TOLERANCE).all() & (levels.diff() > 0).all())


def _step(levels: Tensor) -> Tensor:
    return (levels[-1] - levels[0]) / (len(levels) - 1)


def _computed_index(values: Tensor, levels: Tensor, step: Tensor) -> Tensor:
    return (values - levels[0]).div_(step).sub_(0.5).ceil_().clamp_(0, len(levels) - 1)


def _searched_index(values: Tensor, levels: Tensor) -> Tensor:
    return torch.bucketize(values, (levels[1:] + levels[:-1]) / 2)
