"""Time two loaded files in turns, block by block."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

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
