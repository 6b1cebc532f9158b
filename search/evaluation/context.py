"""The context: everything that all trials of a study share."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from optuna.trial import FixedTrial

from objectives import Examples, Metric
from objectives.outputs import outputs
from search.costs.cost_model import CostModel
from search.evaluation.first_checks import (
    check_answers,
    check_recipe,
    check_split,
    floats_note,
    other_runtime_note,
    untrainable_note,
)
from search.evaluation.input_time import input_seconds_of
from search.evaluation.label_checks import check_loss, check_probabilities, classes_of, few
from search.evaluation.proxy_loss import PROXY_INPUTS, ProxyLoss
from search.study import machine
from search.study.console import console
from search.study.cpu_profile import BUILDING, MEASURING, TRAINING, CpuProfile
from search.study.workers import Alone
from search.training.fine_tuning import TeacherOutputs, fine_tune
from search.training.learning_rate import MIN_RATE
from spaces.axes.distill import Distill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

    from objectives import Objective
    from objectives.data import Held
    from search.evaluation.subject import Subject
    from search.study.spec import Recipe, StudySpec
    from search.study.weights import Store
    from search.study.workers import Workers
    from search.training.checkpoint import Checkpoint
    from search.training.learning_rate import Rate
    from spaces import Plan, Recovery
    from spaces.plan import Step

VALIDATION_INPUTS = 1024  # most validation inputs on which a trained network's loss is measured (chosen)
EARLY_EXAMPLES = 1000  # most validation examples of the early check (chosen)
CHECKED_EXAMPLES = 5  # examples on which the loss is tried (chosen)
TIMED_PASS_SHARE = 1 / 8  # of the time for timing: a forward pass this long tells the time of an input (chosen)
TIMED_STEPS = 10  # training steps whose time is averaged (chosen)


class Context:
    """A study, its teacher, and what is computed once for all trials: teacher outputs, proxy loss, cost model.

    Parameters
    ----------
    spec
        The study.
    subject
        The study's teacher, ready to be compressed.

    Attributes
    ----------
    spec, subject
        The arguments; neither is changed.
    classes
        Number of the teacher's classes, 0 if the labels are not classes.
    teacher
        The teacher's outputs for the training set.
    store
        Where trained weights are uploaded to; `search.loop.run` takes it from the study.
    cpu_profile
        The CPU time of this process by activity.
    measuring_seconds
        CPU seconds that building and measuring the last network took; 0 before the first one.
    scored_inputs
        Inputs that the study's draft scored each plan on; of a large network in a short time few, so that the losses of
        candidates are measured on few too.
    workers
        This process among the workers of the study, which `search.loop.run` lets it join; before, it works alone.

    Raises
    ------
    UserError
        If the loss does not accept the teacher's outputs, or a label is out of range.
    """

    def __init__(self, spec: StudySpec, subject: Subject) -> None:
        machine.keep_freed_memory()
        self.spec = subject.referred_to(spec)
        self.subject = subject
        self.classes = self._checked_classes()
        self.teacher = TeacherOutputs(subject.model, spec.splits.train)
        self.cpu_profile = CpuProfile()
        self.measuring_seconds = 0.0
        self.scored_inputs = PROXY_INPUTS
        self.workers: Workers | Alone = Alone()
        self.store: Store | None = None
        self._measured: dict[tuple[Step, ...], dict[str, float]] = {}  # costs, by the steps of a plan
        self._kept: dict[tuple[Step, ...], nn.Module] = {}  # a network that will be needed again, if any

    def _checked_classes(self) -> int:
        """Return the number of classes, after a check that all data fit the teacher and the loss."""
        splits, on_classes = self.spec.splits, isinstance(self.usual_recovery, Distill)
        checked = few(splits.train, CHECKED_EXAMPLES)
        check_answers(outputs(self.subject.model, self.subject.example))
        output = outputs(self.subject.model, checked.inputs)
        classes = classes_of(output, checked.labels) if on_classes and checked.classified else 0
        for name, split in (("training", splits.train), ("validation", splits.validation)):
            check_split(name, split, splits.train, classes, self.ignored_label, self.accepts)
        if on_classes:
            check_probabilities(output, checked.labels)
        check_loss(self.usual_recovery, output, checked.labels)
        check_recipe(self.spec.recipe, self.subject.model, few(splits.train, CHECKED_EXAMPLES).inputs)
        untrainable = untrainable_note(self.subject.model, checked, self.usual_recovery, self.subject.device)
        for note in filter(None, (untrainable, floats_note(self.spec), other_runtime_note(self.spec))):
            console.print(note)
        return classes

    def accepts(self, examples: Held) -> bool:
        """Whether a loss of the user's own is finite for examples whose labels are not, as if these were missing."""
        if getattr(self.usual_recovery, "loss_of", None) is None:
            return False
        output = outputs(self.subject.model, examples.inputs)
        try:
            return math.isfinite(float(self.usual_recovery.loss(output, output, examples.labels)))
        except Exception:  # noqa: BLE001 - labels for the metrics may not be labels for the loss
            return False

    @property
    def ignored_label(self) -> int | None:
        """The label of places without a class, as the recovery names it; None if its labels are not classes."""
        return self.usual_recovery.ignore_index if isinstance(self.usual_recovery, Distill) else None

    @functools.cached_property
    def usual_recovery(self) -> Recovery:
        """The default recovery, which is used without a search."""
        recovery = self.spec.space.recovery
        return recovery.suggest(FixedTrial(recovery.usual()))

    @functools.cached_property
    def cost_model(self) -> CostModel:
        """The costs of plans before anything is built."""
        return CostModel(self.subject.anatomy, self.subject.finished, self.spec.costs)

    @functools.cached_property
    def proxy_loss(self) -> ProxyLoss:
        """The proxy loss: the distance of an untrained network's outputs from the teacher's."""
        return ProxyLoss(self.subject.model, self.spec.splits.train, self.usual_recovery, self.spec.seed + 1)

    @functools.cached_property
    def _validation_loss(self) -> ProxyLoss:
        validation, recovery = self.spec.splits.validation, self.usual_recovery
        count = VALIDATION_INPUTS if isinstance(validation, Examples) else PROXY_INPUTS  # of a stream, few are held
        return ProxyLoss(self.subject.model, validation, recovery, self.spec.seed + 1, count)

    def rating_loss(self, model: nn.Module) -> float:
        """Return the proxy loss of a network, by which learning rates are found and scaled."""
        return self.proxy_loss(model, self.scored_inputs)

    @property
    def metrics(self) -> list[Objective]:
        """The objectives that training changes, then those of limits and the reported ones."""
        return [objective for objective in self.spec.measured if not objective.is_cost]

    @property
    def _validation_inputs(self) -> int:
        """Inputs on which the loss of a trained network is measured."""
        most = VALIDATION_INPUTS * self.scored_inputs // min(PROXY_INPUTS, len(self.spec.splits.train))
        return max(1, min(most, len(self.spec.splits.validation)))

    @functools.cached_property
    def early_objectives(self) -> list[tuple[int, Objective]]:
        """The objectives that training changes, each with its position, for the early check of a training."""
        examples = self.spec.splits.validation.head(EARLY_EXAMPLES)
        return [
            (at, objective.on(examples) if isinstance(objective, Metric) else objective)
            for at, objective in enumerate(self.spec.objectives)
            if not objective.is_cost
        ]

    def validation_loss_of(self, model: nn.Module) -> float | None:
        """Return the proxy loss of a trained network on validation examples; None if the loss cannot take them."""
        with self.cpu_profile.charge(MEASURING):
            try:
                loss = self._validation_loss(model, self._validation_inputs)
            except Exception:  # noqa: BLE001 - labels for the metrics may not be labels for the loss
                return None
        return loss if math.isfinite(loss) else None

    def plan(self, params: Mapping[str, Any]) -> Plan:
        """Return the plan of a study's parameters, with the default recovery if they contain none."""
        space = self.spec.space
        return self.recovering(space.suggest(FixedTrial({**space.recovery.usual(), **params}), self.subject.anatomy))

    def recovering(self, plan: Plan) -> Plan:
        """Return the plan, with the default recovery if the search trains nothing: then plans do not differ by it."""
        return plan if self.spec.recipe.epochs else replace(plan, recovery=self.usual_recovery)

    def build(self, plan: Plan, *, again: bool = False) -> nn.Module:
        """Return the untrained network of a plan; if it will be built `again` next, a copy saves doing it twice."""
        with self.cpu_profile.charge(BUILDING):
            model = self._kept.pop(plan.steps, None) or self.subject.build(plan)
            self._kept = {plan.steps: copy.deepcopy(model)} if again else {}
            machine.spare_memory()
            return model

    def measure(self, model: nn.Module, objectives: Iterable[Objective]) -> dict[str, float]:
        """Measure objectives on the finished form of a network."""
        with self.cpu_profile.charge(MEASURING):
            finished = self.subject.finish(model)
            values = {objective.name: objective(finished) for objective in objectives}
            machine.spare_memory()
            return values

    def measure_costs(self, plan: Plan, model: nn.Module, costs: Iterable[Objective]) -> dict[str, float]:
        """Measure the costs of a plan's network, each once per process, because training does not change them."""
        known = self._measured.setdefault(plan.steps, {})
        requested = list(costs)
        if missing := [cost for cost in requested if cost.name not in known]:
            known |= self.measure(model, missing)
        return {cost.name: known[cost.name] for cost in requested}

    def train(
        self,
        model: nn.Module,
        plan: Plan,
        recipe: Recipe,
        seed: int,
        progress: Callable[[float], None] = lambda _: None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Train the network of a plan in place; see `search.training.fine_tuning.fine_tune`."""
        with self.cpu_profile.charge(TRAINING):
            fine_tune(model, self.teacher, self.spec.splits.train, plan.recovery, recipe, seed, progress, checkpoint)

    def with_rate(self, recipe: Recipe, model: nn.Module, rate: Rate | None) -> Recipe:
        """Return the recipe with a learning rate for a network: the recipe's own, or `rate` scaled to the network."""
        if recipe.learning_rate is not None or rate is None or not recipe.epochs:
            return recipe
        return recipe.at_rate(rate.at(self.rating_loss(model), recipe.steps(self.spec.splits.train)))

    def seconds_a_candidate(self, recipe: Recipe, plan: Plan, most: float = math.inf) -> tuple[float, float, float]:
        """Return the CPU seconds of parts of a trial, timed on one plan's network.

        Parameters
        ----------
        recipe, plan
            How and what is trained.
        most
            CPU seconds that timing may take, more or less: the steps, and all measurements that training changes. The
            latter are estimated by the time of a part of the inputs if they take longer.

        Returns
        -------
        float
            One training step.
        float
            Building the network and measuring it.
        float
            All else that is measured on it: its proxy loss, the early check, and its loss on validation inputs before
            and after training.
        """
        for loss, count in ((self.proxy_loss, self.scored_inputs), (self._validation_loss, self._validation_inputs)):
            with contextlib.suppress(Exception):  # labels for the metrics may not be labels for the loss
                loss.answer(count)
        started = time.process_time()
        model = self.build(plan, again=True)
        costs = self.measure(model, self.spec.costs)  # also where they are known, for the time
        self._measured.setdefault(plan.steps, costs)
        building = time.process_time() - started
        rated = recipe.learning_rate is None
        validation = len(self.spec.splits.validation)
        judged = self.scored_inputs * rated + len(self.early_objectives) * min(EARLY_EXAMPLES, validation)
        judged += 2 * self._validation_inputs
        input_seconds = input_seconds_of(model, self.subject.example, TIMED_PASS_SHARE * most)
        if (judged + len(self.metrics) * validation) * input_seconds > most:
            building += len(self.metrics) * validation * input_seconds
            judging = judged * input_seconds
        else:
            started = time.process_time()
            self.measure(model, self.metrics)
            building += time.process_time() - started
            started = time.process_time()
            if rated:
                self.rating_loss(model)
            self.measure(model, [objective for _, objective in self.early_objectives])
            for _ in ("before training", "after it"):
                self.validation_loss_of(model)
            judging = time.process_time() - started
        with self.cpu_profile.charge(TRAINING):
            return self.step_seconds(model, plan, recipe, TIMED_STEPS, most), building, judging

    def step_seconds(self, model: nn.Module, plan: Plan, recipe: Recipe, count: int, most: float) -> float:
        """Return the CPU seconds of one training step of a copy of the network.

        They are the mean of `count` steps after a first one, which is slower; or those of the first one, if `count` of
        them would take more than `most` seconds.
        """
        train, student = self.spec.splits.train, copy.deepcopy(model)
        one_step = replace(recipe.of_steps(1, train), learning_rate=MIN_RATE)
        started = time.process_time()
        fine_tune(student, self.teacher, train, plan.recovery, one_step, 0)
        first = time.process_time() - started
        if count * first > most:
            return first
        started = time.process_time()
        fine_tune(student, self.teacher, train, plan.recovery, one_step.longer(count), 0)
        return (time.process_time() - started) / count
