"""One trial: choose a plan, build it, refuse it early or train it, measure it."""

from __future__ import annotations

import hashlib
import math
import time
from typing import TYPE_CHECKING

from optuna import TrialPruned
from optuna.trial import TrialState
from safetensors.torch import load_file, save_file

from search import machine
from search.errors import REASON, Diverged
from search.rungs import RUNG, STOPPED, Rung
from search.storage import WORKER, worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from optuna import Study, Trial
    from optuna.trial import FrozenTrial
    from torch import nn

    from search.bench import Bench
    from search.rates import Rate
    from search.spec import Recipe, StudySpec
    from spaces import Plan

KEY, PLAN, VALUES, EXCESS, SECONDS, REPLAY = "plan_key", "plan", "measured", "excess", "cpu_seconds", "replay_of"
EPOCHS, RATE, ABOUT = "epochs", "learning_rate", "told_about"
RELATIVE = "measured_over_teacher"  # what is learned of its costs, and on which machine


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
    about = bench.foresight.about(plan)
    if about:
        trial.set_user_attr(ABOUT, about)
    foreseen = bench.foresight.told(plan)
    _refuse(trial, spec, foreseen)
    shorter = _shorter(trial.study, key, folder)
    if shorter is None:
        _doubt(trial, bench, about)
        model = bench.build(plan)
        values = bench.costs(plan, model, spec.costs)
        if relative := bench.foresight.relative(values):
            trial.set_user_attr(RELATIVE, (relative, machine.words()))
    else:
        model = bench.build(plan)
        model.load_state_dict(load_file(state_path(folder, shorter.number)))
        values = _costs(shorter, spec)
    bench.foresight.check(foreseen, values)
    _refuse(trial, spec, values)
    _note(trial, spec, values)
    trial.set_user_attr(EPOCHS, recipe.epochs)
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


def _doubt(trial: Trial, bench: Bench, about: dict[str, float]) -> None:
    """End the trial, unmeasured, if a limit is missed by more than what is told of its cost is usually wrong."""
    over = {}
    for limit in bench.spec.limits:
        name = limit.objective.name
        if name in about:
            over[str(limit)] = limit.excess(about[name] * (1 - bench.foresight.doubt(limit)))
    missed = [limit for limit, excess in over.items() if excess > 0]
    if missed:
        _constrain(trial, bench.spec, over)
        trial.set_user_attr(REASON, f"told to be over the limit {', '.join(missed)}, and not measured")
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


def _shorter(study: Study, key: str, folder: Path) -> FrozenTrial | None:
    """Return an earlier, shorter training of the plan, if its weights are there: training goes on from those."""
    over = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    alike = [trial for trial in over if trial.user_attrs.get(KEY) == key]
    return next((trial for trial in reversed(alike) if state_path(folder, trial.number).exists()), None)


def _costs(earlier: FrozenTrial, spec: StudySpec) -> dict[str, float]:
    """Return what an earlier trial of the plan measured before its training, which changes none of it."""
    return {objective.name: earlier.user_attrs[VALUES][objective.name] for objective in spec.costs}


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
