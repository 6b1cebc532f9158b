"""What tables need of a study, without its network and its data: names, directions, limits. It is stored in the study.

`StudySpec` has all of it too, so functions that print take either.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol, Self

from objectives.objective import Limit, Metric
from search.study.errors import UserError
from search.study.records import OUTLINE

if TYPE_CHECKING:
    from optuna import Study
    from torch import nn

    from objectives.data import Data
    from objectives.objective import Direction, Objective


class Named(Protocol):
    """A runtime, of which only the name is needed."""

    @property
    def name(self) -> str:
        """Its name on the command line."""
        ...


class Outline(Protocol):
    """The attributes of a study that its tables need; see `search.study.spec.StudySpec`."""

    @property
    def name(self) -> str:
        """The name of the study in its storage."""
        ...

    @property
    def goal(self) -> str:
        """Its goal in words, empty if it has none."""
        ...

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives that are optimized."""
        ...

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The bounds on objectives, with those of the goal."""
        ...

    @property
    def measured(self) -> tuple[Objective, ...]:
        """All objectives that are measured."""
        ...

    @property
    def runtime(self) -> Named:
        """The runtime of its files."""
        ...


@dataclass(frozen=True, slots=True)
class StoredRuntime:
    """A runtime as it was stored: its name, and its text with all settings."""

    name: str
    text: str

    @classmethod
    def of(cls, runtime: Named) -> Self:
        """Describe a runtime."""
        return cls(runtime.name, repr(runtime))


@dataclass(frozen=True, slots=True)
class StoredObjective:
    """An objective as it was stored: how it is called and which way is better; it measures nothing."""

    name: str
    direction: Direction
    is_cost: bool
    runtime: StoredRuntime | None = None

    def __call__(self, model: nn.Module) -> float:
        """Refuse to measure: that needs the study.

        Raises
        ------
        UserError
            Always.
        """
        raise UserError(f"{self.name} of a stored study cannot measure {type(model).__name__}; load the study")


class StoredMetric(StoredObjective):
    """A metric as it was stored."""

    def on(self, examples: Data) -> StoredMetric:
        """Return itself: it has no examples."""
        del examples
        return self


@dataclass(frozen=True, slots=True)
class StoredStudy:
    """The outline of a study, read from its storage."""

    name: str
    goal: str
    objectives: tuple[Objective, ...]
    limits: tuple[Limit, ...]
    measured: tuple[Objective, ...]
    runtime: StoredRuntime


def outline_record(spec: Outline) -> dict[str, Any]:
    """Return the outline of a study, as JSON."""
    return {
        "name": spec.name,
        "goal": spec.goal,
        "runtime": asdict(StoredRuntime.of(spec.runtime)),
        "objectives": [objective.name for objective in spec.objectives],
        "limits": [{"objective": limit.objective.name, **_bounds(limit)} for limit in spec.limits],
        "measured": [_described(objective) for objective in spec.measured],
    }


def stored_outline(study: Study) -> StoredStudy | None:
    """Return the outline that a stored study has; None for a study that an earlier version stored."""
    record = study.user_attrs.get(OUTLINE)
    if record is None:
        return None
    measured = {entry["name"]: _objective(entry) for entry in record["measured"]}
    limits = [
        Limit(measured[entry["objective"]], **{key: value for key, value in entry.items() if key != "objective"})
        for entry in record["limits"]
    ]
    return StoredStudy(
        name=record["name"],
        goal=record["goal"],
        objectives=tuple(measured[name] for name in record["objectives"]),
        limits=tuple(limits),
        measured=tuple(measured.values()),
        runtime=StoredRuntime(**record["runtime"]),
    )


def _bounds(limit: Limit) -> dict[str, float]:
    """Return the bound of a limit by the name of its parameter."""
    given = {field.name: getattr(limit, field.name) for field in fields(limit) if field.init}
    return {name: value for name, value in given.items() if name not in {"objective", "teacher"} and value is not None}


def _described(objective: Objective) -> dict[str, Any]:
    """Return what is stored of an objective."""
    runtime = getattr(objective, "runtime", None)
    return {
        "name": objective.name,
        "direction": objective.direction,
        "is_cost": objective.is_cost,
        "metric": isinstance(objective, Metric),
        "runtime": None if runtime is None else asdict(StoredRuntime.of(runtime)),
    }


def _objective(entry: dict[str, Any]) -> StoredObjective:
    """Return the objective that `_described` has described."""
    kind = StoredMetric if entry["metric"] else StoredObjective
    runtime = entry["runtime"] and StoredRuntime(**entry["runtime"])
    return kind(entry["name"], entry["direction"], entry["is_cost"], runtime)
