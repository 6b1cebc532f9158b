"""What is done to what a sensor gives before the network sees it, as a part of the file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from objectives.data import Data

SMALLEST_ENERGY = 1e-6  # added before the logarithm (chosen)


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """What a device would do with what its sensor gives; `slimfront export --preprocessing` puts it in the file.

    Parameters
    ----------
    module
        Returns the inputs of the network for a batch of what the sensor gives, such as a `torch.nn.Sequential` of
        transforms of `torchvision.transforms.v2`, or `LogMel`.
    examples
        What the sensor gave for the validation split, such as images in bytes, with the same labels in the same order.
        The file is verified on it.
    """

    module: nn.Module
    examples: Data


class LogMel(nn.Module):
    """Logarithms of mel energies (B, 1, frames, bands) of sounds (B, samples), in operators that all runtimes have.

    Frames are not padded. The Fourier transform of a frame is computed in two steps of small matrices (Cooley and Tukey
    1965, Mathematics of Computation 19, 297-301), so that the file holds few constants.

    Parameters
    ----------
    filters
        The weight of each frequency in each band, shape (window // 2 + 1, bands).
    window, hop
        Samples of a frame, weighted by a Hann window, and between two frames.
    full_scale
        The sample that stands for 1: 32768 for 16 bits.
    mean, deviation
        Subtracted from the logarithms, and their divisor.
    """

    weights: Tensor
    filters: Tensor
    first_cos: Tensor
    first_sin: Tensor
    between_cos: Tensor
    between_sin: Tensor
    second_cos: Tensor
    second_sin: Tensor

    def __init__(
        self,
        filters: Tensor,
        window: int,
        hop: int,
        full_scale: float = 1.0,
        mean: float = 0.0,
        deviation: float = 1.0,
    ) -> None:
        super().__init__()
        if len(filters) != window // 2 + 1:
            raise ValueError(
                f"filters must have a row for each of the {window // 2 + 1} frequencies of a window of {window} "
                f"samples, but got {len(filters)}"
            )
        self.window, self.hop, self.mean, self.deviation = window, hop, mean, deviation
        first = max(size for size in range(1, math.isqrt(window) + 1) if window % size == 0)
        second = window // first
        self.sizes = first, second
        places = torch.arange(window).double().reshape(first, second)
        one, two = torch.arange(first).double(), torch.arange(second).double()
        kept = two[: second // 2 + 1]  # the other frequencies mirror these
        weights = torch.hann_window(window, dtype=torch.float64) / full_scale
        self.register_buffer("weights", weights.reshape(places.shape).float())
        for name, turns in (
            ("first", torch.outer(one, one) / first),
            ("between", torch.outer(one, two) / window),
            ("second", torch.outer(two, kept) / second),
        ):
            self.register_buffer(f"{name}_cos", torch.cos(2 * math.pi * turns).float())
            self.register_buffer(f"{name}_sin", -torch.sin(2 * math.pi * turns).float())
        frequency = (one[:, None] + first * kept).long()
        rows = torch.zeros(max(int(frequency.max()) + 1, len(filters)), filters.shape[1])
        rows[: len(filters)] = filters
        self.register_buffer("filters", rows[frequency.flatten()])

    def extra_repr(self) -> str:
        """Return the sizes, for the text of the module."""
        return f"window={self.window}, hop={self.hop}, bands={self.filters.shape[1]}"

    def forward(self, sounds: Tensor) -> Tensor:
        """Return the features of sounds of any number type."""
        frames = self._frames(sounds.float())
        frames = frames.reshape(*frames.shape[:2], *self.sizes) * self.weights
        # over the first of the two places of a sample, which are side by side in rows
        real, imaginary = self.first_cos @ frames, self.first_sin @ frames
        real, imaginary = (
            real * self.between_cos - imaginary * self.between_sin,
            real * self.between_sin + imaginary * self.between_cos,
        )
        energy = (real @ self.second_cos - imaginary @ self.second_sin).square() + (
            real @ self.second_sin + imaginary @ self.second_cos
        ).square()
        bands = energy.flatten(2) @ self.filters
        return ((torch.log(bands + SMALLEST_ENERGY) - self.mean) / self.deviation)[:, None]

    def _frames(self, sounds: Tensor) -> Tensor:
        """Return the frames (B, frames, window), joined of the largest blocks of which windows and hops are made."""
        if sounds.shape[1] < self.window:
            raise ValueError(f"sounds must have at least {self.window} samples, but got {sounds.shape[1]}")
        size = math.gcd(self.window, self.hop)
        count, step = (sounds.shape[1] - self.window) // self.hop + 1, self.hop // size
        blocks = sounds[:, : sounds.shape[1] // size * size].reshape(len(sounds), -1, size)
        parts = [blocks[:, first : first + (count - 1) * step + 1 : step] for first in range(self.window // size)]
        return torch.cat(parts, 2)
