"""What all trials of a study share."""

from __future__ import annotations

import functools
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from optuna.trial import FixedTrial
from torch import Tensor

from search.costs.cost_model import CostModel
from search.evaluation.proxy_loss import ProxyLoss
from search.study.cpu_profile import BUILDING, MEASURING, TRAINING, CpuProfile
from search.study.errors import UserError
from search.training.fine_tuning import TeacherOutputs, fine_tune
from search.training.learning_rate import LOWEST
from spaces.network.messages import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

    from objectives import Examples, Objective
    from search.evaluation.subject import Subject
    from search.study.spec import Recipe, StudySpec
    from search.training.learning_rate import Rate
    from spaces import Plan, Recovery
    from spaces.plan import Step

STEPS_TIMED = 10


class Context:
    """A study, its teacher, and what is computed of them once: outputs, proxy losses, models of costs.

    Parameters
    ----------
    spec
        The study.
    subject
        Its teacher, ready to be compressed.

    Attributes
    ----------
    spec, subject
        As given; neither changes.
    classes
        How many classes the teacher tells apart, 0 where the labels are no classes.
    teacher
        Its outputs for the training set.
    cpu_profile
        Where the CPU time of this process goes.

    Raises
    ------
    UserError
        If the loss does not take the teacher's answers, or a label is out of range.
    """

    def __init__(self, spec: StudySpec, subject: Subject) -> None:
        self.spec = spec
        self.subject = subject
        with torch.no_grad():
            answer = subject.model(subject.example[:2])
        train = spec.splits.train
        self.classes = _classes(answer, classified=train.classified)
        check_labels("training", train, self.classes)
        check_labels("validation", spec.splits.validation, self.classes)
        self.teacher = TeacherOutputs(subject.model, train)
        _check_loss(self.usual_recovery, answer, train.labels[:2].to(subject.device))
        self.cpu_profile = CpuProfile()
        self._measured: dict[tuple[Step, ...], dict[str, float]] = {}  # costs, by the steps of a plan

    @functools.cached_property
    def usual_recovery(self) -> Recovery:
        """The recovery that one would take without a search."""
        recovery = self.spec.space.recovery
        return recovery.suggest(FixedTrial(recovery.usual()))

    @functools.cached_property
    def cost_model(self) -> CostModel:
        """The costs of plans before anything is built."""
        return CostModel(self.subject.anatomy, self.subject.finished, self.spec.costs)

    @functools.cached_property
    def proxy_loss(self) -> ProxyLoss:
        """How far a network is from the teacher before it is trained."""
        return ProxyLoss(self.subject.model, self.spec.splits.train, self.usual_recovery, self.spec.seed + 1)

    def plan(self, params: Mapping[str, Any]) -> Plan:
        """Return the plan of a study's parameters, with the usual recovery where they name none."""
        space = self.spec.space
        return space.suggest(FixedTrial({**space.recovery.usual(), **params}), self.subject.anatomy)

    def build(self, plan: Plan) -> nn.Module:
        """Return the network of a plan, not yet trained."""
        with self.cpu_profile.charge(BUILDING):
            return self.subject.build(plan)

    def measure(self, model: nn.Module, objectives: Iterable[Objective]) -> dict[str, float]:
        """Measure a network that is not finished yet."""
        with self.cpu_profile.charge(MEASURING):
            finished = self.subject.finish(model)
            return {objective.name: objective(finished) for objective in objectives}

    def measure_costs(self, plan: Plan, model: nn.Module, costs: Iterable[Objective]) -> dict[str, float]:
        """Measure what training does not change of the network of a plan, each cost once in this process."""
        known = self._measured.setdefault(plan.steps, {})
        wanted = list(costs)
        if missing := [cost for cost in wanted if cost.name not in known]:
            known |= self.measure(model, missing)
        return {cost.name: known[cost.name] for cost in wanted}

    def train(
        self, model: nn.Module, plan: Plan, recipe: Recipe, seed: int, progress: Callable[[float], None] | None = None
    ) -> None:
        """Train the network of a plan in place; `progress` is called with the share that is done."""
        calls = () if progress is None else (progress,)
        with self.cpu_profile.charge(TRAINING):
            fine_tune(model, self.teacher, self.spec.splits.train, plan.recovery, recipe, seed, *calls)

    def with_rate(self, recipe: Recipe, model: nn.Module, rate: Rate | None) -> Recipe:
        """Return the recipe with a learning rate for a network: its own, or one that follows from a range test."""
        if recipe.learning_rate is not None or rate is None:
            return recipe
        return recipe.at_rate(rate.at(self.proxy_loss(model), recipe.steps(len(self.spec.splits.train))))

    def seconds_a_candidate(self, recipe: Recipe, plan: Plan) -> tuple[float, float]:
        """Return the CPU seconds of a training step, and of building and measuring, both from one network."""
        train = self.spec.splits.train
        one = replace(recipe.longer(1 / recipe.steps(len(train))), learning_rate=LOWEST)
        started = time.process_time()
        model = self.build(plan)
        values = self.measure(model, self.spec.measured)
        besides = time.process_time() - started
        self._measured.setdefault(plan.steps, {cost.name: values[cost.name] for cost in self.spec.costs})
        with self.cpu_profile.charge(TRAINING):
            fine_tune(model, self.teacher, train, plan.recovery, one, 0)
            started = time.process_time()
            fine_tune(model, self.teacher, train, plan.recovery, one.longer(STEPS_TIMED), 0)
        return (time.process_time() - started) / STEPS_TIMED, besides


def _check_loss(recovery: Recovery, answer: Tensor, labels: Tensor) -> None:
    """Compute the loss of the teacher's answer to two examples, where what does not fit shows itself."""
    try:
        recovery.loss(answer, answer, labels)
    except Exception as error:
        raise UserError(
            f"the loss must take the teacher's outputs, of shape {tuple(answer.shape)}, and the labels, "
            f"{labels.dtype} of shape {tuple(labels.shape)}, but: {first_line(error)}; class labels are int64 of "
            "shape (N,)"
        ) from error


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
