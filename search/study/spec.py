"""What a study is made of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from objectives.runtimes import OnnxRuntime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from optuna.samplers import BaseSampler
    from torch import Generator, Tensor, nn

    from objectives import Examples, Limit, Objective
    from objectives.runtimes import Runtime
    from spaces import Space


@dataclass(frozen=True, slots=True)
class Splits:
    """Three disjoint sets of examples.

    Attributes
    ----------
    train
        What candidates are trained on.
    validation
        What the search measures on.
    test
        Read once, by `confirm`.
    """

    train: Examples
    validation: Examples
    test: Examples


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained.

    Attributes
    ----------
    epochs
        Passes over the training set; a part of one is one over as many examples.
    batch_size
        Examples a step.
    learning_rate
        The highest; it rises over the first 5% of the steps and falls along a cosine to zero. None: each
        training's is told from a range test, which is made once a study (see `search.training.learning_rate`).
    weight_decay
        As the optimizer takes it.
    optimizer
        Called with the parameters, `lr=` and `weight_decay=`.
    augment
        Called with a batch of inputs (B, ...) and a generator on the CPU, returns inputs; without it the teacher's
        outputs are computed once for all trials. What served the teacher may be too much for a small network
        (studies/LOG.md).
    """

    epochs: float = 3
    batch_size: int = 128
    learning_rate: float | None = None
    weight_decay: float = 1e-4
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    augment: Callable[[Tensor, Generator], Tensor] | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("epochs", "batch_size", "learning_rate"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, but got {value}")

    def longer(self, times: float) -> Recipe:
        """Return the recipe with so many times the epochs."""
        return replace(self, epochs=self.epochs * times)

    def of_length(self, epochs: float | None) -> Recipe:
        """Return the recipe with that many epochs, itself for None."""
        return self if epochs is None else replace(self, epochs=epochs)

    def at_rate(self, learning_rate: float | None) -> Recipe:
        """Return the recipe with that learning rate, unless it has one."""
        return self if self.learning_rate is not None else replace(self, learning_rate=learning_rate)

    def batch(self, examples: int) -> int:
        """Return how many examples a step sees of so many: all where they are fewer than a batch."""
        return min(self.batch_size, examples)

    def steps(self, examples: int) -> int:
        """Return how many steps it takes on so many examples."""
        return max(1, round(self.epochs * (examples // self.batch(examples))))


@dataclass(frozen=True, slots=True)
class Budget:
    """What a study may spend.

    Attributes
    ----------
    trials
        Trained candidates in all; refused and repeated plans are not counted. None for no bound.
    minutes
        Wall time of this run, or None for no bound; the trial under way is finished.
    cpu_seconds
        CPU time of this run in this process, or None.
    """

    trials: int | None = 40
    minutes: float | None = None
    cpu_seconds: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        bounds = {name: getattr(self, name) for name in ("trials", "minutes", "cpu_seconds")}
        if any(bound is not None and bound <= 0 for bound in bounds.values()):
            raise ValueError(
                f"a budget must be positive, but got {', '.join(f'{name}={bound}' for name, bound in bounds.items())}"
            )
        if all(bound is None for bound in bounds.values()):
            raise ValueError("a budget must have a bound: trials, minutes or cpu_seconds")


@dataclass(frozen=True, slots=True)
class StudySpec:
    """A whole study, as a function in a file returns it; a variant is `dataclasses.replace`.

    Attributes
    ----------
    name
        Letters, digits, `.`, `_` and `-`; names the study in its storage and the folder below `runs/`.
    teacher
        The trained network: one input tensor, one output tensor (B, classes).
    splits
        The data.
    space
        What may be done to the teacher.
    objectives
        What is optimized, two or three as a rule.
    limits
        What must hold.
    reported
        What is measured on every candidate beside that, and shown.
    recipe
        How a candidate is trained in the search.
    confirmation
        How it is trained by `confirm`; by default four times as long.
    budget
        What `run` may spend.
    sampler
        Any class or function that makes an Optuna sampler when called with `seed=`; None for `DraftSampler`.
    start
        Returns the plans to start with, as parameters, when called with the context of the study
        (`search.evaluation.context.Context`), the Optuna study and the budget's clock; None for `DraftStart()`.
    runtime
        What the files are exported to and verified on.
    calibration
        How many training inputs the steps are fitted on.
    seed
        With one worker, the same seed gives the same plans and the same values.
    """

    name: str
    teacher: nn.Module
    splits: Splits
    space: Space
    objectives: tuple[Objective, ...]
    limits: tuple[Limit, ...] = ()
    reported: tuple[Objective, ...] = ()
    recipe: Recipe = field(default_factory=Recipe)
    confirmation: Recipe | None = None
    budget: Budget = field(default_factory=Budget)
    sampler: Callable[..., BaseSampler] | None = None
    start: Callable[..., list[dict[str, float]]] | None = None
    runtime: Runtime = field(default_factory=OnnxRuntime)
    calibration: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what would otherwise show only after the study has started."""
        if not isinstance(self.objectives, tuple) or not self.objectives:
            raise ValueError(f"objectives must be a tuple of at least one objective, but got {self.objectives!r}")
        if not isinstance(self.limits, tuple):
            raise ValueError(f"limits must be a tuple, such as (limit,), but got {type(self.limits).__name__}")
        seen: dict[str, str] = {}
        for objective in (*self.objectives, *(limit.objective for limit in self.limits), *self.reported):
            name, words = objective.name, repr(objective)
            if objective.direction not in {"minimize", "maximize"}:
                raise ValueError(f"direction must be minimize or maximize, but {name} has {objective.direction!r}")
            if seen.setdefault(name, words) != words:
                raise ValueError(
                    f"objectives of one name must be the same, but {name!r} is {seen[name]} and {words}; rename one"
                )

    @property
    def costs(self) -> tuple[Objective, ...]:
        """What is measured and known before training; each name once."""
        return tuple(objective for objective in self.measured if objective.is_cost)

    @property
    def measured(self) -> tuple[Objective, ...]:
        """All objectives, then what is limited, then what is only reported; each name once."""
        everything = (*self.objectives, *(limit.objective for limit in self.limits), *self.reported)
        first: dict[str, Objective] = {}
        for objective in everything:
            first.setdefault(objective.name, objective)
        return tuple(first.values())

    def with_objectives(self, others: Mapping[str, Objective]) -> StudySpec:
        """Return the study with other objectives in the place of those of the same names, wherever they stand."""
        return replace(
            self,
            objectives=tuple(others.get(old.name, old) for old in self.objectives),
            limits=tuple(
                replace(limit, objective=others.get(limit.objective.name, limit.objective)) for limit in self.limits
            ),
            reported=tuple(others.get(old.name, old) for old in self.reported),
        )

    def example(self) -> Tensor:
        """Return the calibration inputs: a seeded draw from the training set, shape (calibration, ...)."""
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(self.splits.train), generator=generator)[: self.calibration]
        return self.splits.train.inputs[chosen]


def names(objectives: Iterable[Objective]) -> list[str]:
    """Return the names of the objectives."""
    return [objective.name for objective in objectives]
