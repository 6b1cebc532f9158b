"""Latency on a runtime, as a ratio to a reference that is timed at the same moments."""

from __future__ import annotations

import copy
import math
import os
import time
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, ClassVar

from objectives.runtimes.runtime import executable

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from objectives.objective import Direction
    from objectives.runtimes.runtime import Runtime

    Run = Callable[[Tensor], Tensor]

# Beyond these, other work on the machine has been in the way: half the interval over the ratio, wall over CPU time.
_NOISY_INTERVAL = 0.05
_NOISY_WALL = 1.25
_NORMAL_95 = 1.96
ROUNDS, BLOCK_MS = 40, 4.0


@dataclass(frozen=True, slots=True)
class LatencyRatio:
    """What comparing two files has shown.

    Parameters
    ----------
    ratio
        Time of the candidate over that of the reference, median over rounds, of CPU time.
    low, high
        95% interval of that median, from the order statistics of the rounds.
    wall_ms, cpu_ms, reference_cpu_ms
        Milliseconds a batch, medians over rounds: of the candidate by the clock and by the CPU, of the reference by
        the CPU.
    threads, batch, rounds
        Threads of the runtime, examples in a batch, blocks timed of each file.
    noisy
        Whether the interval is wider than 5% to a side, or the clock saw a quarter more than the CPU: repeat it on a
        quiet machine.
    """

    ratio: float
    low: float
    high: float
    wall_ms: float
    cpu_ms: float
    reference_cpu_ms: float
    threads: int
    batch: int
    rounds: int
    noisy: bool


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


def compare(
    candidate: Run, reference: Run, batch: Tensor, rounds: int = ROUNDS, block_ms: float = BLOCK_MS, threads: int = 1
) -> LatencyRatio:
    """Time two loaded files in turns, block by block.

    Parameters
    ----------
    candidate, reference
        What a runtime's `load` returned.
    batch
        What they are given, shape (B, ...), on the CPU.
    rounds, block_ms
        See `Latency`.
    threads
        Of the runtime, for the record.
    """
    runs = (candidate, reference)
    calls = [_calls_in_block(run, batch, block_ms) for run in runs]
    pairs = [[(0.0, 0.0), (0.0, 0.0)] for _ in range(rounds)]
    for index, pair in enumerate(pairs):
        for side in (0, 1) if index % 2 else (1, 0):  # whoever comes second meets the caches of the first
            pair[side] = _time_block(runs[side], batch, calls[side])
    ratios = sorted(candidate_cpu / reference_cpu for (candidate_cpu, _), (reference_cpu, _) in pairs)
    low, high = _median_interval(ratios)
    ratio, cpu_ms = median(ratios), median(pair[0][0] for pair in pairs)
    wall_ms = median(pair[0][1] for pair in pairs)
    return LatencyRatio(
        ratio=ratio,
        low=low,
        high=high,
        wall_ms=wall_ms,
        cpu_ms=cpu_ms,
        reference_cpu_ms=median(pair[1][0] for pair in pairs),
        threads=threads,
        batch=len(batch),
        rounds=rounds,
        noisy=(high - low) / 2 > _NOISY_INTERVAL * ratio or wall_ms > _NOISY_WALL * cpu_ms,
    )


def _calls_in_block(run: Run, batch: Tensor, block_ms: float) -> int:
    """Warm up, and return how many calls fill a block."""
    calls = 1
    run(batch)
    while True:
        cpu_ms, _ = _time_block(run, batch, calls)
        if cpu_ms * calls >= block_ms / 2:
            return max(1, math.ceil(block_ms / cpu_ms))
        calls *= 2


def _time_block(run: Run, batch: Tensor, calls: int) -> tuple[float, float]:
    """Return the CPU and the wall-clock milliseconds of one call, over ``calls`` of them."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        run(batch)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return 1e3 * cpu / calls, 1e3 * wall / calls


def _median_interval(ordered: list[float]) -> tuple[float, float]:
    """Return the 95% interval of the median, by the binomial law of how many values lie below it."""
    rank = int((len(ordered) - _NORMAL_95 * math.sqrt(len(ordered))) / 2)
    index = max(rank - 1, 0)
    return ordered[index], ordered[-1 - index]
