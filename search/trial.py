"""One trial: choose a plan, build it, refuse it early or train it, measure it."""

from __future__ import annotations

import functools
import hashlib
import math
import time
from typing import TYPE_CHECKING

import torch
from optuna import TrialPruned
from optuna.trial import FixedTrial, TrialState
from safetensors.torch import load_file, save_file
from torch import Tensor

from search.errors import REASON, Diverged, UserError
from search.foresight import Foresight
from search.rates import LOWEST
from search.recover import Teacher, recover
from search.rungs import RUNG, STOPPED, Rung
from search.score import Score
from search.shares import BUILDING, MEASURING, TRAINING, Shares
from search.storage import WORKER, worker
from spaces import deployed, opened, trace
from spaces.anatomy import first_line
from spaces.trace import copied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from optuna import Study, Trial
    from optuna.trial import FrozenTrial
    from torch import nn

    from objectives import Examples, Objective
    from search.rates import Rate
    from search.spec import Recipe, StudySpec
    from spaces import Anatomy, Plan

KEY, PLAN, VALUES, EXCESS, SECONDS, REPLAY = "plan_key", "plan", "measured", "excess", "cpu_seconds", "replay_of"
EPOCHS, RATE = "epochs", "learning_rate"
STEPS_TIMED = 5
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

    def measured(self, model: nn.Module, objectives: Iterable[Objective]) -> dict[str, float]:
        """Measure a network that is not finished yet."""
        with self.shares.spending(MEASURING):
            finished = self.finish(model)
            return {objective.name: objective(finished) for objective in objectives}

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

    def seconds_a_step(self, recipe: Recipe) -> float:
        """Return the time of a training step of the teacher, told from a few of them."""
        train = self.spec.splits.train
        one = recipe.longer(1 / recipe.steps(len(train))).at_rate(LOWEST)
        recovery = self.spec.space.recovery.suggest(FixedTrial(self.spec.space.recovery.usual()))
        model = copied(self.model)
        recover(model, self.teacher, train, recovery, one, 0)
        started = time.process_time()
        recover(model, self.teacher, train, recovery, one.longer(STEPS_TIMED), 0)
        return (time.process_time() - started) / STEPS_TIMED


def key_of(plan: Plan) -> str:
    """Return a digest that equal plans share in every process."""
    return hashlib.sha256(repr(plan).encode()).hexdigest()[:16]


def seed_of(spec: StudySpec, key: str, turn: int = 0) -> int:
    """Return the training seed of a plan: it depends on the plan and not on when it is trained."""
    return int(hashlib.sha256(f"{spec.seed}:{key}:{turn}".encode()).hexdigest()[:8], 16)


def run_trial(
    trial: Trial,
    bench: Bench,
    folder: Path,
    recipe: Recipe,
    told: Callable[[float], None],
    *,
    rate: Rate | None = None,
    strict: bool = False,
) -> tuple[float, ...]:
    """Return the values of the study's objectives for the plan that the trial draws.

    Parameters
    ----------
    trial, bench
        The trial, and what all share.
    folder
        Where its weights go.
    recipe
        How it is trained.
    told
        Called with the share of the training that is done.
    rate
        What a range test gave, where the recipe has no learning rate.
    strict
        See `Rung`.

    Raises
    ------
    TrialPruned
        If a limit is missed before training, or a network that costs no more is out of its reach.
    Diverged
        If training leaves the finite numbers.
    """
    spec = bench.spec
    trial.set_user_attr(WORKER, worker())
    started = time.process_time()
    plan = spec.space.suggest(trial, bench.anatomy)
    key = key_of(plan)
    trial.set_user_attr(KEY, key)
    trial.set_user_attr(PLAN, plan.words())
    earlier = _same_plan(trial.study, key, trial.number, recipe.epochs)
    if earlier is not None:
        return _replay(trial, earlier)
    foreseen = bench.foresight.told(plan)
    _refuse(trial, spec, foreseen)
    model = bench.build(plan)
    values = bench.measured(model, spec.costs)
    bench.foresight.check(foreseen, values)
    _refuse(trial, spec, values)
    _note(trial, spec, values)
    trial.set_user_attr(EPOCHS, recipe.epochs)
    shorter = _shorter(trial.study, key, folder)
    if shorter is not None:
        model.load_state_dict(load_file(shorter))
    recipe = bench.rated(recipe, model, rate)
    trial.set_user_attr(RATE, recipe.learning_rate)
    rung = Rung(trial, bench, model, values, recipe.epochs, told, strict=strict)
    try:
        bench.train(model, plan, recipe, seed_of(spec, key), rung)
    except TrialPruned:
        _constrain(trial, spec, _excess(spec, values))
        trial.set_user_attr(SECONDS, time.process_time() - started)
        raise
    values |= bench.measured(model, [objective for objective in spec.measured if not objective.is_cost])
    _constrain(trial, spec, _note(trial, spec, values))
    save_state(model, state_path(folder, trial.number))
    trial.set_user_attr(SECONDS, time.process_time() - started)
    return tuple(values[objective.name] for objective in spec.objectives)


def state_path(folder: Path, number: int) -> Path:
    """Return where the trained weights of a trial lie."""
    return folder / "candidates" / f"{number}.safetensors"


def save_state(model: nn.Module, path: Path) -> None:
    """Write the network's tensors as safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}, path)


def _note(trial: Trial, spec: StudySpec, values: dict[str, float]) -> dict[str, float]:
    """Record what was measured and by how much each limit is missed, relative to it; return the latter."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise Diverged(f"the objective {name} is {value}")
    trial.set_user_attr(VALUES, values)
    excess = _excess(spec, values)
    trial.set_user_attr(EXCESS, excess)
    return excess


def _refuse(trial: Trial, spec: StudySpec, values: dict[str, float]) -> None:
    """End the trial if a limit is missed already; only then is anything recorded."""
    missed = [limit for limit, excess in _excess(spec, values).items() if excess > 0]
    if missed:
        _constrain(trial, spec, _note(trial, spec, values))
        trial.set_user_attr(REASON, f"over the limit {', '.join(missed)}")
        raise TrialPruned


def _excess(spec: StudySpec, values: dict[str, float]) -> dict[str, float]:
    return {str(x): x.excess(values[x.objective.name]) for x in spec.limits if x.objective.name in values}


def _constrain(trial: Trial, spec: StudySpec, excess: dict[str, float]) -> None:
    """Tell Optuna, once a trial and always all limits in one order; one that was not measured yet counts as held."""
    for limit in spec.limits:
        trial.set_constraint(str(limit), excess.get(str(limit), 0.0))


def _same_plan(study: Study, key: str, number: int, epochs: float) -> FrozenTrial | None:
    """Return an earlier trial of the plan that was trained as long, or needs no training to be told."""
    over = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    for earlier in study.get_trials(deepcopy=False, states=over):
        settled = earlier.state != TrialState.FAIL or REASON in earlier.user_attrs
        long = earlier.user_attrs.get(EPOCHS, epochs) >= epochs
        if earlier.number != number and settled and long and earlier.user_attrs.get(KEY) == key:
            return earlier
    return None


def _shorter(study: Study, key: str, folder: Path) -> Path | None:
    """Return the weights that an earlier, shorter training of the plan ended with: training goes on from there."""
    over = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    alike = [state_path(folder, trial.number) for trial in over if trial.user_attrs.get(KEY) == key]
    return next((path for path in reversed(alike) if path.exists()), None)


def _replay(trial: Trial, earlier: FrozenTrial) -> tuple[float, ...]:
    """End as the earlier trial of the same plan did, without building or training anything."""
    for name in (VALUES, EXCESS, REASON, EPOCHS, RUNG, STOPPED):
        if name in earlier.user_attrs:
            trial.set_user_attr(name, earlier.user_attrs[name])
    trial.set_user_attr(REPLAY, earlier.user_attrs.get(REPLAY, earlier.number))
    for limit, value in earlier.constraints.items():
        trial.set_constraint(limit, value)
    if earlier.state == TrialState.PRUNED:
        raise TrialPruned
    if earlier.state == TrialState.FAIL:
        raise Diverged(earlier.user_attrs[REASON])
    return tuple(earlier.values)


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
