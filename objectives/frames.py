"""Whether a network keeps up with a camera: the time of a frame, by the clock, as frames come one by one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import quantiles
from typing import TYPE_CHECKING, ClassVar

from objectives.objective import Limit
from objectives.runtimes.runtime import executable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from objectives.objective import Direction
    from objectives.runtimes.runtime import Runtime

WARM_UP = 20  # frames that are not counted: files are prepared and caches filled by them


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FrameTime:
    """Milliseconds within which 95% of the frames are answered, by the clock: a camera does not wait for other work.

    The file is executed on one frame after another, from first to last and over again until enough were seen.

    Parameters
    ----------
    runtime
        What executes the file.
    frames
        Inputs in the order in which they come, shape (N, ...).
    count
        How many frames are timed.
    """

    runtime: Runtime
    frames: Tensor
    count: int = 300
    name: ClassVar[str] = "frame_p95_ms"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.count < WARM_UP or not len(self.frames):
            raise ValueError(
                f"at least {WARM_UP} frames must be timed, of at least one, but got count={self.count} and "
                f"{len(self.frames)} frames"
            )

    def __call__(self, model: nn.Module) -> float:
        """Return the 95th percentile of a finished network, in evaluation mode."""
        run = executable(self.runtime, model, self.frames)
        stream = self.frames.detach().cpu().split(1)
        times = []
        for number in range(WARM_UP + self.count):
            started = time.perf_counter()
            run(stream[number % len(stream)])
            times.append(1e3 * (time.perf_counter() - started))
        return quantiles(times[WARM_UP:], n=20)[-1]

    def __repr__(self) -> str:
        """Name what the value depends on, without tensors."""
        return f"FrameTime({self.runtime!r}, {tuple(self.frames.shape)}, count={self.count})"


def fps(runtime: Runtime, frames: Tensor, at_least: float) -> Limit:
    """Return the limit that 95% of the frames are answered in time for so many frames a second.

    Parameters
    ----------
    runtime, frames
        See `FrameTime`.
    at_least
        Frames a second, as the camera gives them.
    """
    return Limit(FrameTime(runtime, frames), at_most=1000 / at_least)
