"""The wall-clock time of single frames: whether a network keeps up with a camera."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import quantiles
from typing import TYPE_CHECKING, ClassVar

from objectives.layers import inputs_of_file
from objectives.objective import Limit
from objectives.runtimes.runtime import export_and_load
from objectives.trees import at, length, moved, one_shape

if TYPE_CHECKING:
    from torch import nn

    from objectives.objective import Direction
    from objectives.runtimes.runtime import Runtime
    from objectives.trees import Tree

WARM_UP_FRAMES = 20  # frames executed before timing, to fill caches and prepare the file (chosen); also the least count


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FrameTime:
    """Wall-clock milliseconds in which 95% of the frames are processed.

    Wall-clock time, because a camera does not wait for other work on the machine. The file is executed on one frame
    after another, in order and from the start again, until `count` frames were timed.

    Parameters
    ----------
    runtime
        The runtime that executes the file.
    frames
        Inputs in the order in which they arrive, shape (N, ...).
    count
        Number of frames that are timed.
    """

    runtime: Runtime
    frames: Tree
    count: int = 300
    name: ClassVar[str] = "frame_p95_ms"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the numbers."""
        frames = length(self.frames) or 0
        if not self.count >= WARM_UP_FRAMES or not frames:
            raise ValueError(
                f"count must be at least {WARM_UP_FRAMES} and frames not empty, but got count={self.count} and "
                f"{frames} frames"
            )

    def __call__(self, model: nn.Module) -> float:
        """Return the 95th percentile of the frame times of a finished network, in evaluation mode, in milliseconds."""
        run = export_and_load(self.runtime, model, self.frames)
        taken = inputs_of_file(model, moved(self.frames, "cpu"))
        stream = [at(taken, slice(number, number + 1)) for number in range(length(taken) or 0)]
        times = []
        for number in range(WARM_UP_FRAMES + self.count):
            started = time.perf_counter()
            run(stream[number % len(stream)])
            times.append(1e3 * (time.perf_counter() - started))
        return quantiles(times[WARM_UP_FRAMES:], n=20)[-1]

    def __repr__(self) -> str:
        """Return a text with all that the value depends on, without tensors."""
        return f"FrameTime({self.runtime!r}, {one_shape(self.frames)}, count={self.count})"


def fps(runtime: Runtime, frames: Tree, at_least: float) -> Limit:
    """Return the limit that 95% of the frames take at most 1/`at_least` seconds.

    Parameters
    ----------
    runtime, frames
        See `FrameTime`.
    at_least
        Frame rate of the camera, in frames a second.
    """
    if not at_least > 0:
        raise ValueError(f"at_least must be a number of frames a second above 0, but got {at_least}")
    return Limit(FrameTime(runtime, frames), at_most=1000 / at_least)
