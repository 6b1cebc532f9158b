"""Latency on a runtime, as a ratio to a reference that is timed at the same moments."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from objectives.runtimes.runtime import executable
from objectives.runtimes.timing import BLOCK_MS, ROUNDS, LatencyRatio, compare

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from objectives.objective import Direction
    from objectives.runtimes.runtime import Runtime

    Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Latency:
    """Milliseconds a batch on a runtime: CPU time, median, relative to the reference.

    The candidate and the reference are executed from their files in turns, block by block, and the median of the
    ratios of their CPU times is multiplied by the milliseconds of the reference, which are measured once a process.
    CPU time does not see pre-emption and the ratio does not see the frequency, so values of different moments can be
    compared.

    Parameters
    ----------
    runtime
        What executes the files; with one thread, unless the CPU times of several are wanted.
    reference
        The network to compare with, in evaluation mode: the teacher.
    example
        One batch, shape (B, ...); its size is the batch that is timed.
    rounds
        Blocks timed of each file. 40 give the median to about 3%, 80 to 1.6%.
    block_ms
        Least CPU time of a block.
    """

    runtime: Runtime
    reference: nn.Module
    example: Tensor
    rounds: int = ROUNDS
    block_ms: float = BLOCK_MS
    _baselines: dict[int, tuple[Run, float]] = field(default_factory=dict, init=False)
    name: ClassVar[str] = "latency_ms"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.rounds < 1 or self.block_ms <= 0:
            raise ValueError(
                f"rounds must be at least 1 and block_ms positive, but got rounds={self.rounds}, "
                f"block_ms={self.block_ms}"
            )

    def __call__(self, model: nn.Module) -> float:
        """Return the milliseconds a batch of a finished network, in evaluation mode."""
        return self.share(model) * self._baseline()[1]

    def share(self, model: nn.Module) -> float:
        """Return the time of a finished network, in evaluation mode, over that of the reference."""
        reference, _ = self._baseline()
        return self._compare(executable(self.runtime, model, self.example), reference).ratio

    def __repr__(self) -> str:
        """Name what the value depends on, without tensors or addresses."""
        return (
            f"Latency({self.runtime!r}, {type(self.reference).__name__}, {tuple(self.example.shape)}, "
            f"rounds={self.rounds}, block_ms={self.block_ms:g})"
        )

    def _baseline(self) -> tuple[Run, float]:
        """Return the reference and its milliseconds a batch, exported and timed once in this process."""
        if os.getpid() not in self._baselines:
            reference = executable(self.runtime, copy.deepcopy(self.reference).eval(), self.example)
            self._baselines[os.getpid()] = (reference, self._compare(reference, reference).reference_cpu_ms)
        return self._baselines[os.getpid()]

    def _compare(self, candidate: Run, reference: Run) -> LatencyRatio:
        batch, threads = self.example.detach().cpu(), self.runtime.threads
        return compare(candidate, reference, batch, self.rounds, self.block_ms, threads)


@dataclass(frozen=True, slots=True)
class LatencyShare:
    """Time on a runtime as a share of the reference's: 0.5 is twice as fast.

    What a limit that is to hold on every machine, and in every run, is best put on.

    Parameters
    ----------
    latency
        How it is measured, and beside what.
    """

    latency: Latency
    name: ClassVar[str] = "latency_share"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True

    def __call__(self, model: nn.Module) -> float:
        """Return the share of a finished network, in evaluation mode."""
        return self.latency.share(model)
