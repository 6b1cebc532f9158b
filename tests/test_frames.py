"""The time of single frames."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from objectives import FrameTime, fps
from objectives.runtimes import OnnxRuntime, Precision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Sleeping:
    """A runtime that takes 1 ms for a frame, and 10 ms for every tenth frame."""

    name = suffix = "sleeping"
    threads = 1
    channels = 1
    layout = OnnxRuntime().layout

    integers_only = False

    def precisions(self, kind: str, groups: int) -> tuple[Precision, ...]:
        """Return no precisions."""
        return ()

    def export(self, model: nn.Module, example: Tensor, path: Path) -> None:
        """Write an empty file."""
        path.touch()

    def load(self, path: Path) -> Callable[[Tensor], Tensor]:
        """Return a function that checks that it receives one frame, and sleeps."""
        seen: list[int] = []

        def run(frame: Tensor) -> Tensor:
            assert len(frame) == 1
            seen.append(int(frame))
            time.sleep(0.01 if len(seen) % 10 == 0 else 0.001)
            return frame

        return run


def test_the_value_is_that_of_the_slow_frames() -> None:
    """A tenth of the frames is slow: the 95th percentile is their time, the mean is not."""
    result = FrameTime(Sleeping(), torch.arange(7).float()[:, None], count=100)(nn.Identity())
    assert 10 <= result < 30


def test_fps_is_a_limit_on_the_time_of_a_frame() -> None:
    limit = fps(OnnxRuntime(), torch.zeros(3, 1), at_least=50)
    assert str(limit) == "frame_p95_ms <= 20"
    assert limit.excess(25.0) == pytest.approx(0.25)


@pytest.mark.parametrize(("frames", "count"), [(0, 100), (5, 3)])
def test_too_few_frames_are_an_error(frames: int, count: int) -> None:
    with pytest.raises(
        ValueError, match=f"^count must be at least 20 and frames not empty, but got count={count} and {frames} frames$"
    ):
        FrameTime(OnnxRuntime(), torch.zeros(frames, 1), count=count)
