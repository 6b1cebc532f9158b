"""The specification of a study: network, data, space, objectives, limits, recipe and budget."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from objectives.runtimes import OnnxRuntime
from search.study.numbers import LARGEST_SEED, check_positive, check_range, check_settings
from spaces.network.web_table import web_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from optuna.samplers import BaseSampler
    from torch import Generator, Tensor, nn

    from objectives import Data, Limit, Objective, Preprocessing
    from objectives.runtimes import Runtime
    from spaces import Space

SomeData = TypeVar("SomeData", bound="Data")
MOST_EPOCHS = 10**6  # (chosen); more is a slip
CONFIRMATION_FACTOR = 4  # epochs of a confirmation, over those of the search, if the study does not say (chosen)


@dataclass(frozen=True, slots=True)
class Splits(Generic[SomeData]):
    """Three disjoint sets of examples, in memory (`Examples`) or streamed (`Examples.of`).

    Attributes
    ----------
    train
        The examples that candidates are trained on.
    validation
        The examples that the search measures metrics on.
    test
        Read only by `confirm`, at the end.
    """

    train: SomeData
    validation: SomeData
    test: SomeData


@dataclass(frozen=True, slots=True)
class Recipe:
    """The training of a network.

    Attributes
    ----------
    epochs
        Passes over the training set; 0.5 is one pass over half of its examples. With 0 nothing is trained: candidates
        are measured as they are compressed.
    batch_size
        Examples per step; a loader as training set keeps its own batch size.
    learning_rate
        The highest rate: the rate rises over the first 5% of the steps and falls to zero along a cosine. None: each
        training gets a rate that is derived from one range test per study (see `search.training.learning_rate`).
    weight_decay
        Passed to the optimizer.
    optimizer
        Called with the parameters, `lr=` and `weight_decay=`.
    augment
        Called with a batch of inputs (B, ...) and a generator on the CPU; returns inputs. Without it the teacher's
        outputs are computed once for all trials. An augmentation that suited the teacher may be too strong for a small
        network (studies/LOG.md).
    """

    epochs: float = 3
    batch_size: int = 128
    learning_rate: float | None = None
    weight_decay: float = 1e-4
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    augment: Callable[[Tensor, Generator], Tensor] | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_settings(self)
        for name in ("batch_size", "learning_rate"):
            check_positive(name, getattr(self, name))
        check_range("epochs", self.epochs, 0, MOST_EPOCHS)
        check_range("weight_decay", self.weight_decay, 0)

    def longer(self, factor: float) -> Recipe:
        """Return the recipe with the epochs multiplied by a factor."""
        return replace(self, epochs=self.epochs * factor)

    def of_steps(self, count: float, train: Data) -> Recipe:
        """Return the recipe with this number of steps on a training set."""
        return replace(self, epochs=count / train.steps(self.batch_size))

    def of_length(self, epochs: float | None) -> Recipe:
        """Return the recipe with a number of epochs, unchanged for None."""
        return self if epochs is None else replace(self, epochs=epochs)

    def at_rate(self, learning_rate: float | None) -> Recipe:
        """Return the recipe with a learning rate, unchanged if it has one already."""
        return self if self.learning_rate is not None else replace(self, learning_rate=learning_rate)

    def batch(self, train: Data) -> int:
        """Return the examples per step on a training set: all if they are fewer; a loader has a size of its own."""
        return train.batch_size(self.batch_size)

    def steps(self, train: Data) -> int:
        """Return the number of training steps on a training set."""
        return max(1, round(self.epochs * train.steps(self.batch_size))) if self.epochs else 0


@dataclass(frozen=True, slots=True)
class Budget:
    """The budget of a study; at least one of the three bounds is given.

    Attributes
    ----------
    trials
        Trained candidates in total, over all runs; rejected and repeated plans are not counted. None for no bound.
    minutes
        Wall time of one run, or None for no bound; the trial that is running at the end is finished.
    cpu_seconds
        CPU time of one run in its process, or None for no bound.
    """

    trials: int | None = 40
    minutes: float | None = None
    cpu_seconds: float | None = None

    def __post_init__(self) -> None:
        """Check that a bound is given and that bounds are positive."""
        check_settings(self)
        bounds = {name: getattr(self, name) for name in ("trials", "minutes", "cpu_seconds")}
        for name, bound in bounds.items():
            check_positive(f"{name} of a budget", bound)
        if all(bound is None for bound in bounds.values()):
            raise ValueError("a budget must have a bound: trials, minutes or cpu_seconds")


@dataclass(frozen=True, slots=True)
class StudySpec:
    """A complete study; the user writes a function that returns one. For variants use `dataclasses.replace`.

    Attributes
    ----------
    name
        Letters, digits, `.`, `_` and `-`; the name of the study in its storage and of its folder below `runs/`.
    teacher
        The trained network. Its inputs and outputs are tensors, or tuples, dicts or dataclasses of tensors.
    splits
        The data.
    space
        The axes that are searched: the ways to compress the teacher, and the recovery of its accuracy.
    objectives
        The objectives to optimize, usually two or three.
    limits
        Bounds on objectives; only candidates that meet all of them can be on the front.
    reported
        Further objectives that are measured on every candidate and shown.
    recipe
        The training of a candidate in the search.
    confirmation
        The training of a candidate by `confirm`, and, if no candidate meets a limit on a trained objective, of the
        nearest ones at the end of a budget of time; by default `recipe` with four times the epochs.
    budget
        The bounds of `run`.
    sampler
        A class or function that creates an Optuna sampler when called with `seed=`; None for `TPESampler`, which then
        starts when the draft's front is used up. A study may continue with another sampler, since what a trial gives
        does not depend on it.
    start
        A function that returns the initial designs, as parameters, when called with the context of the study
        (`search.evaluation.context.Context`), the Optuna study and the budget's clock; None for `DraftStart()`.
    runtime
        The runtime that files are exported for and verified on.
    calibration
        Number of training inputs that the steps are fitted on.
    seed
        The base seed of all random draws; with one worker, the same seed gives the same plans and the same values.
    goal
        Further limits in words, such as "4x smaller, 2x faster, lose at most 1 point" (see `search.study.goal`).
    preprocessing
        What a device does with what its sensor gives; `export --preprocessing` puts it in the file.
    """

    name: str
    teacher: nn.Module
    splits: Splits[Any]
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
    goal: str = ""
    preprocessing: Preprocessing | None = None

    def __post_init__(self) -> None:
        """Check what would otherwise fail only after the study has started."""
        check_settings(self)
        check_range("calibration", self.calibration, 1)
        check_range("seed", self.seed, 0, LARGEST_SEED)
        if self.confirmation is None:
            check_range("epochs of a confirmation", self.recipe.epochs * CONFIRMATION_FACTOR, 0, MOST_EPOCHS)
        if not isinstance(self.objectives, tuple) or not self.objectives:
            raise ValueError(f"objectives must be a tuple of at least one objective, but got {self.objectives!r}")
        if not isinstance(self.limits, tuple):
            raise ValueError(f"limits must be a tuple, such as (limit,), but got {type(self.limits).__name__}")
        known: dict[str, Objective] = {}
        for objective in (*self.objectives, *(limit.objective for limit in self.limits), *self.reported):
            name = objective.name
            if objective.direction not in {"minimize", "maximize"}:
                raise ValueError(f"direction must be minimize or maximize, but {name} has {objective.direction!r}")
            first = known.setdefault(name, objective)
            if first is not objective and repr(first) != repr(objective):  # texts with digests of the data are slow
                raise ValueError(
                    f"objectives of one name must be the same, but {name!r} is {first!r} and {objective!r}; rename one"
                )

    @property
    def confirmation_recipe(self) -> Recipe:
        """The training of a candidate by `confirm`."""
        return self.confirmation or self.recipe.longer(CONFIRMATION_FACTOR)

    @property
    def costs(self) -> tuple[Objective, ...]:
        """The measured objectives that do not depend on training, each name once."""
        return tuple(objective for objective in self.measured if objective.is_cost)

    @property
    def measured(self) -> tuple[Objective, ...]:
        """The objectives, then those of the limits, then the reported ones; each name once."""
        all_objectives = (*self.objectives, *(limit.objective for limit in self.limits), *self.reported)
        first: dict[str, Objective] = {}
        for objective in all_objectives:
            first.setdefault(objective.name, objective)
        return tuple(first.values())

    def with_objectives(self, others: Mapping[str, Objective]) -> StudySpec:
        """Return the study with objectives replaced by name, among objectives, limits and reported objectives."""
        return replace(
            self,
            objectives=tuple(others.get(old.name, old) for old in self.objectives),
            limits=tuple(
                replace(limit, objective=others.get(limit.objective.name, limit.objective)) for limit in self.limits
            ),
            reported=tuple(others.get(old.name, old) for old in self.reported),
        )

    def _repr_html_(self) -> str:
        """Return what is searched for, for notebooks."""
        splits, axes = self.splits, [type(axis).__name__ for axis in (*self.space.steps, self.space.recovery)]
        weights = sum(weight.numel() for weight in self.teacher.parameters())
        bounds = {name: getattr(self.budget, name) for name in ("trials", "minutes", "cpu_seconds")}
        sizes = {name: len(getattr(splits, name)) for name in ("train", "validation", "test")}
        rows = {
            "teacher": f"{type(self.teacher).__name__}, {weights:,} weights",
            "examples": ", ".join(f"{count:,} {name}" for name, count in sizes.items()),
            "axes": ", ".join(axes),
            "objectives": ", ".join(f"{one.name} ({one.direction})" for one in self.objectives),
            "limits": ", ".join(map(str, self.limits)),
            "goal": self.goal,
            "reported": ", ".join(one.name for one in self.reported),
            "budget": ", ".join(f"{bound:g} {name}" for name, bound in bounds.items() if bound is not None),
            "runtime": self.runtime.name,
        }
        return web_table(f"Study {self.name}", (), [row for row in rows.items() if row[1]])

    def example(self) -> Tensor:
        """Return the calibration inputs: a seeded sample of the training inputs, shape (calibration, ...)."""
        return self.splits.train.sample(self.calibration, self.seed).inputs  # type: ignore[no-any-return]
