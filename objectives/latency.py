"""Latency on a runtime, as a ratio to a reference that is timed at the same moments."""

from __future__ import annotations

import copy
import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from objectives.layers import inputs_of_file
from objectives.runtimes.runtime import export_and_load
from objectives.runtimes.timing import BLOCK_MS, TIMING_ROUNDS, LatencyRatio, compare
from objectives.trees import length, moved, one_shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from objectives.objective import Direction
    from objectives.runtimes.runtime import Runtime
    from objectives.trees import Tree

    Run = Callable[[Tree], Tree]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Latency:
    """CPU milliseconds a batch on a runtime, the median, measured relative to the reference.

    The files of the candidate and of the reference are executed in turns, block by block. The median of the ratios of
    their CPU times is multiplied by the milliseconds of the reference, which are measured once per process. CPU time
    does not include pre-emption, and the clock frequency cancels in the ratio, so values measured at different times
    can be compared.

    Parameters
    ----------
    runtime
        The runtime that executes the files; with one thread, unless the CPU time summed over several is wanted.
    reference
        The network to compare with, in evaluation mode: the teacher.
    example
        One batch, shape (B, ...), as it is timed.
    rounds
        Number of blocks timed of each file. The error of the median is about 3% for 40 and 1.6% for 80.
    block_ms
        Least CPU time of a block, in milliseconds.
    """

    runtime: Runtime
    reference: nn.Module
    example: Tree
    rounds: int = TIMING_ROUNDS
    block_ms: float = BLOCK_MS
    _baselines: dict[int, tuple[Run, float]] = field(default_factory=dict, init=False)
    name: ClassVar[str] = "latency_ms"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not (self.rounds >= 1 and 0 < self.block_ms < math.inf):
            raise ValueError(
                f"rounds must be at least 1 and block_ms positive, but got rounds={self.rounds}, "
                f"block_ms={self.block_ms}"
            )

    def __call__(self, model: nn.Module) -> float:
        """Return the CPU milliseconds a batch of a finished network, in evaluation mode."""
        return self.share(model) * self._baseline()[1]

    def share(self, model: nn.Module) -> float:
        """Return the CPU time of a finished network, in evaluation mode, divided by that of the reference."""
        reference, _ = self._baseline()
        run, batch = export_and_load(self.runtime, model, self.example), inputs_of_file(model, self.example)
        batch = moved(batch, "cpu")
        return self._compare(lambda _: run(batch), reference).ratio

    def of_reference(self) -> float:
        """Return the CPU milliseconds a batch of the reference in this process."""
        return self._baseline()[1]

    @property
    def conditions(self) -> str:
        """The runtime and the size of a batch."""
        return f"{self.runtime!r}, batch {self.batch}"

    @property
    def batch(self) -> int:
        """Number of examples in a batch."""
        return length(self.example) or 1

    def part_ms(self, part: nn.Module, inputs: Tensor) -> float:
        """Return the CPU milliseconds of a module of a finished network, for the inputs that it takes for a batch.

        The module is exported to a file of its own, which is timed in turns with the reference.
        """
        reference, reference_ms = self._baseline()
        run, batch = export_and_load(self.runtime, part, inputs), inputs.detach().cpu().contiguous()
        return self._compare(lambda _: run(batch), reference).ratio * reference_ms

    def of_ms(self, milliseconds: float) -> float:
        """Return the milliseconds."""
        return milliseconds

    def __repr__(self) -> str:
        """Return a text with all that the value depends on, without tensors or addresses."""
        return (
            f"Latency({self.runtime!r}, {type(self.reference).__name__}, {one_shape(self.example)}, "
            f"rounds={self.rounds}, block_ms={self.block_ms:g})"
        )

    def _baseline(self) -> tuple[Run, float]:
        """Return the reference and its milliseconds a batch; it is exported and timed once in this process."""
        if os.getpid() not in self._baselines:
            reference = export_and_load(self.runtime, copy.deepcopy(self.reference).eval(), self.example)
            self._baselines[os.getpid()] = (reference, self._compare(reference, reference).reference_cpu_ms)
        return self._baselines[os.getpid()]

    def _compare(self, candidate: Run, reference: Run) -> LatencyRatio:
        batch, threads = moved(self.example, "cpu"), self.runtime.threads
        return compare(candidate, reference, batch, self.rounds, self.block_ms, threads)


@dataclass(frozen=True, slots=True)
class LatencyShare:
    """CPU time on a runtime as a share of that of the reference: 0.5 is twice as fast.

    Use it for a limit that should hold on every machine and in every run.

    Parameters
    ----------
    latency
        The measurement, with its runtime and its reference.
    """

    latency: Latency
    name: ClassVar[str] = "latency_share"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True

    def __call__(self, model: nn.Module) -> float:
        """Return the share of a finished network, in evaluation mode."""
        return self.latency.share(model)

    @property
    def runtime(self) -> Runtime:
        """The runtime that executes the files."""
        return self.latency.runtime

    def of_reference(self) -> float:
        """Return the share of the reference: 1 by definition."""
        return 1.0

    @property
    def conditions(self) -> str:
        """The runtime and the size of a batch."""
        return self.latency.conditions

    @property
    def batch(self) -> int:
        """Number of examples in a batch."""
        return self.latency.batch

    def part_ms(self, part: nn.Module, inputs: Tensor) -> float:
        """Return the CPU milliseconds of a module of a finished network; see `Latency.part_ms`."""
        return self.latency.part_ms(part, inputs)

    def of_ms(self, milliseconds: float) -> float:
        """Return the milliseconds as a share of those of the reference."""
        return milliseconds / self.latency.of_reference()
