"""Paired timing of two loaded files: in turns, block by block."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from objectives.trees import length

if TYPE_CHECKING:
    from collections.abc import Callable

    from objectives.trees import Tree

    Run = Callable[[Tree], Tree]


# Limits beyond which other work has disturbed the measurement (chosen); both are ratios without a unit:
_NOISY_INTERVAL = 0.05  # half the width of the 95% interval, over the ratio
_NOISY_WALL = 1.25  # wall-clock time over CPU time
_NORMAL_95 = 1.96  # standard deviations: 95% of a normal distribution lie within them
TIMING_ROUNDS = 40  # blocks timed of each file: the error of the median is about 3% (measured)
BLOCK_MS = 4.0  # least CPU time of a block, in milliseconds (chosen)


@dataclass(frozen=True, slots=True)
class LatencyRatio:
    """The result of timing a candidate against a reference.

    Parameters
    ----------
    ratio
        CPU time of the candidate over that of the reference, the median over rounds.
    low, high
        95% interval of that median, from the order statistics of the rounds.
    wall_ms, cpu_ms, reference_cpu_ms
        Milliseconds a batch, medians over rounds: wall-clock and CPU time of the candidate, CPU time of the reference.
    threads, batch, rounds
        Threads of the runtime, examples in a batch, blocks timed of each file.
    noisy
        Whether the interval is wider than 5% to a side, or wall-clock time exceeds CPU time by a quarter: repeat the
        measurement on a quiet machine.
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
    candidate: Run,
    reference: Run,
    batch: Tree,
    rounds: int = TIMING_ROUNDS,
    block_ms: float = BLOCK_MS,
    threads: int = 1,
) -> LatencyRatio:
    """Time two loaded files in turns, block by block.

    Parameters
    ----------
    candidate, reference
        Functions that `Runtime.load` returned.
    batch
        Inputs of both, shape (B, ...), on the CPU.
    rounds, block_ms
        See `Latency`.
    threads
        Threads of the runtime; only recorded in the result.
    """
    runs = (candidate, reference)
    calls = [_calls_in_block(run, batch, block_ms) for run in runs]
    pairs = [[(0.0, 0.0), (0.0, 0.0)] for _ in range(rounds)]
    for index, pair in enumerate(pairs):
        for side in (0, 1) if index % 2 else (1, 0):  # alternate: the second finds the caches of the first
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
        batch=length(batch) or 1,
        rounds=rounds,
        noisy=(high - low) / 2 > _NOISY_INTERVAL * ratio or wall_ms > _NOISY_WALL * cpu_ms,
    )


def _calls_in_block(run: Run, batch: Tree, block_ms: float) -> int:
    """Warm up, and return the number of calls that fill a block."""
    calls = 1
    run(batch)
    while True:
        cpu_ms, _ = _time_block(run, batch, calls)
        if cpu_ms * calls >= block_ms / 2:
            return max(1, math.ceil(block_ms / cpu_ms))
        calls *= 2


def _time_block(run: Run, batch: Tree, calls: int) -> tuple[float, float]:
    """Return the CPU and the wall-clock milliseconds of one call, averaged over ``calls``."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        run(batch)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return 1e3 * cpu / calls, 1e3 * wall / calls


def _median_interval(ordered: list[float]) -> tuple[float, float]:
    """Return the 95% interval of the median: the number of values below it is binomial, here approximately normal."""
    rank = int((len(ordered) - _NORMAL_95 * math.sqrt(len(ordered))) / 2)
    index = max(rank - 1, 0)
    return ordered[index], ordered[-1 - index]
