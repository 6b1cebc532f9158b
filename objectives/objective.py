"""The protocols of objectives, and limits on them."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from objectives.data import Data
    from objectives.layers import Parts

Direction = Literal["minimize", "maximize"]
LARGEST = sys.float_info.max  # the largest finite number
WHOLE_FROM = 1e5  # from here six digits have no decimals
ROUNDING = 1e-12  # relative difference that comes from computing a bound: 98.3 - 1 is a little more than 97.3


def in_digits(value: float) -> str:
    """Return a value as people read it: six digits, and all digits of a larger number.

    >>> in_digits(1_219_072.0), in_digits(99.1666667), in_digits(0.0000123)
    ('1,219,072', '99.1667', '1.23e-05')
    """
    return f"{value:,.0f}" if abs(value) >= WHOLE_FROM else f"{value:,.6g}"


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

    def on(self, examples: Data) -> Metric:
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
class Referenced(Objective, Protocol):
    """An objective that is measured in turns with a reference, the teacher, so that the machine matters less."""

    def of_reference(self) -> float:
        """Return the value of the reference in this process."""
        ...


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
    """A bound on one objective, absolute or relative to the teacher; exactly one of the four bounds is given.

    A limit relative to the teacher has a bound once the teacher's value is known (`against`).

    Parameters
    ----------
    objective
        The objective that is limited; it need not be among the objectives of the study.
    at_most, at_least
        The bound, positive, in the unit of the objective.
    of_teacher
        A share of the teacher's value, positive: at most this share of an objective that is minimized, at least this
        share of one that is maximized.
    lose_at_most
        By how much the value may be worse than the teacher's, zero or more, in the unit of the objective.

    Attributes
    ----------
    teacher
        The teacher's value of the objective, None as long as it is not known.

    Examples
    --------
    >>> from objectives import Limit, Parameters
    >>> limit = Limit(Parameters(), of_teacher=0.25)
    >>> str(limit)
    "parameters <= 0.25 of the teacher's"
    >>> limit.against(1000).bound
    250.0
    """

    objective: Objective
    at_most: float | None = None
    at_least: float | None = None
    of_teacher: float | None = field(default=None, metadata={"added": True})
    lose_at_most: float | None = field(default=None, metadata={"added": True})
    teacher: float | None = field(default=None, kw_only=True, metadata={"found": True})

    def __post_init__(self) -> None:
        """Check the bounds."""
        names = ("at_most", "at_least", "of_teacher", "lose_at_most")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if len(given) != 1:
            shown = ", ".join(f"{name}={value}" for name, value in given.items()) or "none"
            raise ValueError(
                f"a limit takes exactly one of {', '.join(names[:-1])} and {names[-1]}, but got {shown} for "
                f"{self.objective.name!r}"
            )
        ((name, value),) = given.items()
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            raise ValueError(
                f"{name} of a limit must be a finite number, but got {value!r} for {self.objective.name!r}"
            )
        if value < 0 or (value == 0 and name != "lose_at_most"):
            kind = "zero or more" if name == "lose_at_most" else "positive"
            raise ValueError(f"{name} of a limit must be {kind}, but got {value} for {self.objective.name!r}")

    @property
    def is_relative(self) -> bool:
        """Whether the bound depends on the teacher's value."""
        return self.of_teacher is not None or self.lose_at_most is not None

    @property
    def is_upper(self) -> bool:
        """Whether values above the bound exceed it, and not those below."""
        return self.objective.direction == "minimize" if self.is_relative else self.at_most is not None

    @property
    def bound(self) -> float:
        """The bound in the unit of the objective.

        Raises
        ------
        ValueError
            If it is relative to the teacher, whose value is not known yet.
        """
        absolute = self.at_least if self.at_most is None else self.at_most
        if absolute is not None:
            return float(absolute)
        if self.teacher is None:
            raise ValueError(f"the limit {self} has no bound before the teacher's value is known; call against(value)")
        if self.of_teacher is not None:
            return self.of_teacher * self.teacher
        assert self.lose_at_most is not None
        return self.teacher + self.lose_at_most if self.is_upper else self.teacher - self.lose_at_most

    def against(self, teacher: float) -> Limit:
        """Return the limit with the teacher's value, unchanged if it is not relative to the teacher.

        Raises
        ------
        ValueError
            If it is a share of a value that is not positive.
        """
        if not self.is_relative:
            return self
        if self.of_teacher is not None and teacher <= 0:
            raise ValueError(
                f"of_teacher takes a share of a positive value, but {self.objective.name} of the teacher is "
                f"{teacher:g}; use lose_at_most"
            )
        return replace(self, teacher=float(teacher))

    def excess(self, value: float) -> float:
        """Return by how much the value misses the bound, relative to the bound; at most zero where the limit holds.

        With `lose_at_most` the bound may be near zero, so the excess is relative to the larger of bound and teacher.
        """
        if self.is_relative and math.isclose(value, self.bound, rel_tol=ROUNDING):
            return 0.0
        missed = value - self.bound if self.is_upper else self.bound - value
        scale = abs(self.bound) if self.lose_at_most is None else max(abs(self.bound), abs(self.teacher or 0.0))
        return missed / scale if scale else missed

    def __str__(self) -> str:
        """Return the limit as an inequality, such as `macs <= 200` or `macs <= 0.25 of the teacher's`.

        The text is the same on every machine: stored studies name their limits by it.
        """
        if self.of_teacher is not None:
            right = f"{self.of_teacher:g} of the teacher's"
        elif self.lose_at_most is not None:
            sign = "+" if self.is_upper else "-"
            right = f"the teacher's {sign} {self.lose_at_most:g}" if self.lose_at_most else "the teacher's"
        else:
            right = f"{self.bound:g}"
        return f"{self.objective.name} {'<=' if self.is_upper else '>='} {right}"

    @property
    def words(self) -> str:
        """The limit as an inequality; if it is relative to a known teacher, with the bound in brackets."""
        return f"{self} ({in_digits(self.bound)})" if self.is_relative and self.teacher is not None else str(self)
