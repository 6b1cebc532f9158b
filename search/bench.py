"""What all trials of a study share."""

from __future__ import annotations

import copy
import functools
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from optuna.trial import FixedTrial
from torch import Tensor

from objectives import SizeBytes
from objectives.runtimes import ExportError
from search.errors import UserError
from search.foresight import Foresight
from search.progress import console
from search.rates import LOWEST
from search.recover import Teacher, recover
from search.score import Score
from search.shares import BUILDING, MEASURING, TRAINING, Shares
from spaces import deployed, opened, trace
from spaces.anatomy import first_line
from spaces.trace import copied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

    from objectives import Examples, Objective
    from objectives.runtimes import Runtime
    from search.rates import Rate
    from search.spec import Recipe, StudySpec
    from spaces import Anatomy, Plan
    from spaces.plan import Step

STEPS_TIMED = 10
FEW = 128  # calibration inputs of a network that is only scored


class Bench:
    """All that trials share: the teacher, opened, on its device; its anatomy, its answers, the calibration inputs.

    Parameters
    ----------
    spec
        The study.
    device
        Where networks are trained and measured.

    Raises
    ------
    UserError
        If the teacher does not run on the data, an axis names what it does not have, or a label is out of range.
    """

    def __init__(self, spec: StudySpec, device: torch.device) -> None:
        self.spec = spec
        self.device = device
        self.example: Tensor = spec.example().to(device)
        self._few = self.example[:FEW].clone()  # one tensor, under which statistics are remembered
        try:
            self.model: nn.Module = opened(copied(spec.teacher).to(device).eval(), self.example)
            self.anatomy: Anatomy = trace(self.model, self.example)
            spec.space.uniform(self.anatomy, (0.0,) * len(spec.space.steps))
        except ValueError as error:
            raise UserError(str(error)) from error
        with torch.no_grad():
            answer = self.model(self.example[:2])
        self.classes = _classes(answer, classified=spec.splits.train.classified)
        check_labels("training", spec.splits.train, self.classes)
        check_labels("validation", spec.splits.validation, self.classes)
        self.teacher = Teacher(self.model, spec.splits.train)
        self._check_loss(answer)
        self.shares = Shares()
        self._weighed = False
        self._costs: dict[tuple[Step, ...], dict[str, float]] = {}  # of networks that were measured

    def _check_loss(self, answer: Tensor) -> None:
        """Compute the loss of the teacher's answer to two examples, where what does not fit shows itself."""
        recovery = self.spec.space.recovery.suggest(FixedTrial(self.spec.space.recovery.usual()))
        labels = self.spec.splits.train.labels[:2].to(self.device)
        try:
            recovery.loss(answer, answer, labels)
        except Exception as error:
            raise UserError(
                f"the loss must take the teacher's outputs, of shape {tuple(answer.shape)}, and the labels, "
                f"{labels.dtype} of shape {tuple(labels.shape)}, but: {first_line(error)}; class labels are int64 of "
                "shape (N,)"
            ) from error

    def plan(self, params: Mapping[str, Any]) -> Plan:
        """Return the plan of a study's parameters, with the usual recovery where they name none."""
        return self.spec.space.suggest(FixedTrial({**self.spec.space.recovery.usual(), **params}), self.anatomy)

    def build(self, plan: Plan) -> nn.Module:
        """Return the network of a plan, not yet trained."""
        with self.shares.spending(BUILDING):
            return plan.apply(self.model, self.example)

    def sketch(self, plan: Plan) -> nn.Module:
        """Return nearly the same, fitted on fewer inputs: for a score among hundreds."""
        return plan.apply(self.model, self._few)

    def finish(self, model: nn.Module) -> nn.Module:
        """Return the form of a network that is shipped."""
        return deployed(model, self.example)

    @functools.cached_property
    def finished(self) -> nn.Module:
        """The teacher as it would be shipped."""
        return self.finish(self.model)

    @functools.cached_property
    def foresight(self) -> Foresight:
        """What the plans of this study would cost."""
        return Foresight(self.model, self.example, self.finished, self.spec.costs)

    def weigh(self, path: Path) -> None:
        """Put right what is told of files by the teacher's own; once, and before anything is told.

        Parameters
        ----------
        path
            The teacher's file for the study's runtime; for another one it is exported here, and where that fails its
            sizes stay as they are told.
        """
        if self._weighed or "foresight" in vars(self):
            return
        self._weighed = True
        right = {}
        for objective in self.spec.measured:
            if isinstance(objective, SizeBytes):
                try:
                    size = functools.partial(self._bytes, objective.runtime, path)
                    right[objective.name] = objective.weighed(self.finished, size)
                except (ExportError, ImportError) as error:
                    console.print(f"{objective.name} is told without the teacher's file: {first_line(error)}")
        self.spec = self.spec.with_objectives(right)

    def _bytes(self, runtime: Runtime, path: Path) -> int:
        if runtime == self.spec.runtime:
            return path.stat().st_size
        with tempfile.TemporaryDirectory() as folder:
            other = Path(folder) / "teacher"
            self.export_teacher(runtime, other)
            return other.stat().st_size

    def export_teacher(self, runtime: Runtime, path: Path) -> None:
        """Write the teacher's file for a runtime."""
        runtime.export(copy.deepcopy(self.finished).cpu(), self.example.cpu(), path)

    def measured(self, model: nn.Module, objectives: Iterable[Objective]) -> dict[str, float]:
        """Measure a network that is not finished yet."""
        with self.shares.spending(MEASURING):
            finished = self.finish(model)
            return {objective.name: objective(finished) for objective in objectives}

    def costs(self, plan: Plan, model: nn.Module, costs: Iterable[Objective]) -> dict[str, float]:
        """Measure what training does not change of the network of a plan, each cost once in this process."""
        known = self._costs.setdefault(plan.steps, {})
        wanted = list(costs)
        if unknown := [cost for cost in wanted if cost.name not in known]:
            known |= self.measured(model, unknown)
        return {cost.name: known[cost.name] for cost in wanted}

    def train(
        self, model: nn.Module, plan: Plan, recipe: Recipe, seed: int, told: Callable[[float], None] | None = None
    ) -> None:
        """Train the network of a plan in place."""
        calls = () if told is None else (told,)
        with self.shares.spending(TRAINING):
            recover(model, self.teacher, self.spec.splits.train, plan.recovery, recipe, seed, *calls)

    def rated(self, recipe: Recipe, model: nn.Module, rate: Rate | None) -> Recipe:
        """Return the recipe with a learning rate for a network: its own, or one told from a range test."""
        if recipe.learning_rate is not None or rate is None:
            return recipe
        return recipe.at_rate(rate.at(self.score(model), recipe.steps(len(self.spec.splits.train))))

    @functools.cached_property
    def score(self) -> Score:
        """How good a network is before it is trained."""
        return Score(self)

    def seconds_a_candidate(self, recipe: Recipe, plan: Plan) -> tuple[float, float]:
        """Return the CPU seconds of a training step, and of building and measuring, both from one network."""
        train = self.spec.splits.train
        one = replace(recipe.longer(1 / recipe.steps(len(train))), learning_rate=LOWEST)
        started = time.process_time()
        model = self.build(plan)
        values = self.measured(model, self.spec.measured)
        besides = time.process_time() - started
        self._costs.setdefault(plan.steps, {cost.name: values[cost.name] for cost in self.spec.costs})
        with self.shares.spending(TRAINING):
            recover(model, self.teacher, train, plan.recovery, one, 0)
            started = time.process_time()
            recover(model, self.teacher, train, plan.recovery, one.longer(STEPS_TIMED), 0)
        return (time.process_time() - started) / STEPS_TIMED, besides


def _classes(answer: object, *, classified: bool) -> int:
    """Return how many classes the teacher's answer tells apart, 0 where the labels are no classes."""
    if not isinstance(answer, Tensor) or (classified and answer.dim() < 2):  # noqa: PLR2004
        got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise UserError(
            f"the teacher must return one tensor, of shape (B, classes, ...) for class labels, but got {got}; wrap it "
            "so that it does"
        )
    return int(answer.shape[1]) if classified else 0


def check_labels(name: str, examples: Examples, classes: int) -> None:
    """Check that every label is one of the teacher's classes; 0 classes are a task without any.

    Raises
    ------
    UserError
        If not, with the range and the way out.
    """
    if not classes:
        return
    if not examples.classified:
        raise UserError(f"the training labels are integers, but those of the {name} split are {examples.labels.dtype}")
    low, high = int(examples.labels.min()), int(examples.labels.max())
    if low < 0 or high >= classes:
        raise UserError(
            f"labels must be in [0, {classes}), the teacher's {classes} outputs, but the {name} split has labels from "
            f"{low} to {high}; renumber them or take a teacher with more outputs"
        )
