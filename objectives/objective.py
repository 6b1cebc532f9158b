"""The protocols of objectives, and limits on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from objectives.examples import Examples
    from objectives.layers import Parts

Direction = Literal["minimize", "maximize"]


class Objective(Protocol):
    """One number measured on a finished network, the form that is shipped.

    Implementations are frozen dataclasses whose `repr` is the same in every process: it is part of the definition
    against which a stored study is checked.
    """

    @property
    def name(self) -> str:
        """A column name that ends in the unit, such as `latency_ms`."""
        ...

    @property
    def direction(self) -> Direction:
        """Which way is better."""
        ...

    @property
    def is_cost(self) -> bool:
        """Whether the value depends on the structure alone, so that it is known before any training."""
        ...

    def __call__(self, model: nn.Module) -> float:
        """Measure a finished network, in evaluation mode, on its own device."""
        ...


@runtime_checkable
class Metric(Objective, Protocol):
    """An objective that is measured on examples, and can be measured on others."""

    def on(self, examples: Examples) -> Metric:
        """Return the same metric on other examples."""
        ...


class CostFormula(Protocol):
    """A formula for the cost of many networks at once, from the shapes of their layers, before any network is built."""

    def foreseen(self, parts: Parts) -> np.ndarray:
        """Return the cost of each network, shape (N,), up to a constant that all networks of one teacher share."""
        ...


@runtime_checkable
class Foreseeable(Objective, CostFormula, Protocol):
    """A cost that has an exact formula."""


@runtime_checkable
class Partwise(Objective, Protocol):
    """A cost that can also be measured on a part of a network, in milliseconds that all studies of a machine share."""

    @property
    def conditions(self) -> str:
        """What the milliseconds of a part depend on, besides the part and the machine."""
        ...

    @property
    def batch(self) -> int:
        """Number of examples in a batch."""
        ...

    def part_ms(self, part: nn.Module, inputs: Tensor) -> float:
        """Return the milliseconds of a module of a finished network, for what it takes for one batch."""
        ...

    def of_ms(self, milliseconds: float) -> float:
        """Return the cost of so many milliseconds."""
        ...


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound on one objective; exactly one of the two bounds is given.

    Parameters
    ----------
    objective
        The objective that is limited; it need not be among the objectives of the study.
    at_most, at_least
        The bound, positive.
    """

    objective: Objective
    at_most: float | None = None
    at_least: float | None = None

    def __post_init__(self) -> None:
        """Check the bounds."""
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError(
                f"a limit takes exactly one of at_most and at_least, but got at_most={self.at_most}, "
                f"at_least={self.at_least} for {self.objective.name!r}"
            )
        if self.bound <= 0:
            raise ValueError(f"a limit must be positive, but got {self.bound} for {self.objective.name!r}")

    @property
    def bound(self) -> float:
        """The bound that was given."""
        bound = self.at_least if self.at_most is None else self.at_most
        assert bound is not None
        return float(bound)

    def excess(self, value: float) -> float:
        """Return by how much the value misses the bound, relative to the bound; at most zero where the limit holds."""
        return (value - self.bound) / self.bound if self.at_least is None else (self.bound - value) / self.bound

    def __str__(self) -> str:
        """Return the limit as an inequality, such as `macs <= 200`."""
        return f"{self.objective.name} {'<=' if self.at_least is None else '>='} {self.bound:g}"
