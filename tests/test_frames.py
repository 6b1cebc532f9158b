"""The time of frames that come one by one."""

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
    """A runtime that takes a millisecond a frame, and ten for each tenth frame."""

    name = suffix = "sleeping"
    threads = 1
    channels = 1
    layout = OnnxRuntime().layout

    def precisions(self, kind: str, groups: int) -> tuple[Precision, ...]:
        """Round nothing."""
        return ()

    def export(self, model: nn.Module, example: Tensor, path: Path) -> None:
        """Write nothing that matters."""
        path.touch()

    def load(self, path: Path) -> Callable[[Tensor], Tensor]:
        """Return what checks that one frame comes at a time, and sleeps."""
        seen: list[int] = []

        def run(frame: Tensor) -> Tensor:
            assert len(frame) == 1
            seen.append(int(frame))
            time.sleep(0.01 if len(seen) % 10 == 0 else 0.001)
            return frame

        return run


def test_the_slow_frames_are_what_counts() -> None:
    """A tenth of the frames is slow: the 95th percentile is theirs, and the mean is not."""
    found = FrameTime(Sleeping(), torch.arange(7).float()[:, None], count=100)(nn.Identity())
    assert 10 <= found < 30


def test_frames_a_second_are_a_limit_on_the_time_of_one() -> None:
    limit = fps(OnnxRuntime(), torch.zeros(3, 1), at_least=50)
    assert str(limit) == "frame_p95_ms <= 20"
    assert limit.excess(25.0) == pytest.approx(0.25)


@pytest.mark.parametrize(("frames", "count"), [(0, 100), (5, 3)])
def test_a_percentile_of_next_to_nothing_is_refused(frames: int, count: int) -> None:
    with pytest.raises(ValueError, match="at least 20 frames must be timed, of at least one"):
        FrameTime(OnnxRuntime(), torch.zeros(frames, 1), count=count)
