"""Confirm the front: train its members for longer with several seeds, and measure them on the test split."""

from __future__ import annotations

import functools
import statistics
from typing import TYPE_CHECKING, Any

from objectives import Metric
from search.evaluation.before_training import BeforeTraining
from search.evaluation.first_checks import check_split
from search.evaluation.trial import key_of, seed_of
from search.results.confirmed_elsewhere import share
from search.study.attributes import numbers_of
from search.study.console import console, track
from search.study.definition import define_value, differences
from search.study.errors import Diverged, reason_of
from search.study.files import Damaged, check_digest, load_or_nothing, save_json
from search.study.records import RATE, VALUES, WEIGHTS
from search.study.weights import CHECKPOINTS, CONFIRMED, are_available, save_state, state_path
from search.training.checkpoint import Checkpoint
from spaces.network.messages import number_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from optuna import Study
    from optuna.trial import FrozenTrial
    from torch import nn

    from search.evaluation.context import Context
    from search.study.spec import Recipe, StudySpec
    from search.training.learning_rate import Rate


def confirm(
    members: list[FrozenTrial],
    context: Context,
    folder: Path,
    seeds: int,
    rate: Rate | None = None,
    study: Study | None = None,
) -> list[dict[str, Any]]:
    """Train every member with several seeds; return one record per member.

    Every finished training is stored in a file, so a stopped confirmation continues where it stopped.

    Parameters
    ----------
    members
        Trials of the front.
    context
        The context of the study.
    folder
        The folder of the study's files; the results are written to its folder `confirmed`.
    seeds
        Number of trainings per member, each with a different seed.
    rate
        The result of the study's range test, if the recipe has no learning rate.
    study
        The study, whose other machines see the trainings if it has a store; by default they stay here.

    Returns
    -------
    list of dict
        For each member `trial`; `searched`, the values that the search measured; `n`, the number of trainings that did
        not diverge; and, for every metric on validation and test, its mean and its spread (standard deviation).

    Raises
    ------
    UserError
        If the test split does not fit the classes of the teacher.
    """
    splits = context.spec.splits
    check_split("test", splits.test, splits.train, context.classes, context.ignored_label, context.accepts)
    recipe = context.spec.confirmation_recipe
    total = max(1, len(members) * seeds)
    records = []
    with track(f"confirming {number_of(len(members), 'member')} with {number_of(seeds, 'seed')} each") as progress:
        for index, trial in enumerate(members):
            runs = []
            for seed_number in range(seeds):
                done = index * seeds + seed_number
                report_share = functools.partial(_report_share, progress, done, total)
                runs.append(_confirmation_run(trial, context, folder, recipe, seed_number, rate, report_share, study))
                progress((done + 1) / total)
            records.append(_record(trial, runs))
    teacher = metrics(context.spec, context.subject.finished)
    save_json(folder / CONFIRMED / "front.json", {"teacher": teacher, "members": records})
    return records


def weights_of(folder: Path, trial: FrozenTrial) -> Path:
    """Return the path of the weights to export: those of the first confirmed seed if there are any, else of the search.

    It is the first seed and not the best one: a choice by score would make the score of the exported network too good.
    """
    record = _path(folder, trial, 0)
    confirmed = record.with_suffix(".safetensors")
    there = record.exists() and are_available(trial, confirmed)
    return confirmed if there else state_path(folder, trial.number)


def confirmed_with(weights: Path, trial: FrozenTrial) -> dict[str, Any]:
    """Return what `confirm` measured of a member, over its seeds; empty for weights that are not of `confirm`."""
    if weights.parent.name != CONFIRMED:
        return {}
    paths = sorted(weights.parent.glob(f"{trial.number}-seed*.json"))
    runs = [load_or_nothing(path, {"values": dict}, "it is left out of the card") for path in paths]
    return _record(trial, [run for run in runs if run])


def metrics(spec: StudySpec, finished: nn.Module) -> dict[str, float]:
    """Measure every metric of the study on the validation and the test split."""
    values = {}
    for objective in spec.measured:
        if isinstance(objective, Metric):
            values[f"validation_{objective.name}"] = objective.on(spec.splits.validation)(finished)
            values[f"test_{objective.name}"] = objective.on(spec.splits.test)(finished)
    return values


def _report_share(progress: Callable[[float], None], done: int, total: int, share: float) -> None:
    """Report the progress of all trainings, given the share that is done of the present one."""
    progress((done + share) / total)


def _path(folder: Path, trial: FrozenTrial, seed_number: int) -> Path:
    """Return the path of the record of one training of a member."""
    return folder / CONFIRMED / f"{trial.number}-seed{seed_number}.json"


def _confirmation_run(
    trial: FrozenTrial,
    context: Context,
    folder: Path,
    recipe: Recipe,
    seed_number: int,
    rate: Rate | None,
    progress: Callable[[float], None],
    study: Study | None,
) -> dict[str, Any]:
    """Return the record of one training of a member: the stored one if its recipe is the same, else a new one."""
    path = _path(folder, trial, seed_number)
    recipe = recipe if rate else recipe.at_rate(trial.user_attrs.get(RATE))
    recipe_definition = define_value(recipe) | {"range_test": rate and list(rate)}
    weights = path.with_suffix(".safetensors")
    if (stored := _stored(path, weights)) and _same_recipe(stored["recipe"], recipe_definition):
        return stored
    for old in (path, weights):  # the record first: without it, weights of an earlier recipe are not exported
        old.unlink(missing_ok=True)
    plan = context.plan(trial.params)
    seed = seed_of(context.spec, key_of(plan), seed_number + 1)  # the search used 0
    checkpoint = Checkpoint(folder / CHECKPOINTS / path.with_suffix(".safetensors").name, f"{seed} {recipe_definition}")
    try:
        model = context.build(plan)
        before = BeforeTraining(context, model)
        context.train(model, plan, context.with_rate(recipe, model, rate), seed, progress, checkpoint)
        if before.restored(model, loss := context.validation_loss_of(model)) is not None:
            console.print(f"trial {trial.number}, seed {seed_number}: {before.words(loss)}")
        values = metrics(context.spec, context.subject.finish(model))
        saved = {WEIGHTS: save_state(model, weights)}
    except Exception as error:  # noqa: BLE001 - a training may diverge, and a plan may fail in any way
        reason = str(error) if isinstance(error, Diverged) else reason_of(error)
        console.print(f"trial {trial.number}, seed {seed_number}: {reason}")
        values, saved = {}, {}
    record = {"trial": trial.number, "seed": seed_number, "recipe": recipe_definition, "values": values} | saved
    if study is not None:
        record = share(study, record, weights)
    save_json(path, record)
    checkpoint.remove()
    measured = ", ".join(f"{name} {value:.5g}" for name, value in values.items())
    console.detail(f"trial {trial.number}, seed {seed_number}: {measured or 'no values'}; {plan.words()}")
    return record


def _stored(path: Path, weights: Path) -> dict[str, Any]:
    """Return the record of a training, empty if there is none; if it or its weights are damaged, a line says so."""
    again = "the member is trained again"
    record = load_or_nothing(path, {"recipe": dict, "values": dict}, again)
    try:
        if weights.exists():
            check_digest(weights, record.get(WEIGHTS))
    except (OSError, Damaged) as error:
        console.print(f"{error}; {again}")
        return {}
    return record


def _same_recipe(stored: dict[str, Any], now: dict[str, Any]) -> bool:
    """Return whether a stored recipe equals the present one."""
    return not differences(*({name: str(value) for name, value in recipe.items()} for recipe in (stored, now)))


def _record(trial: FrozenTrial, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarize the trainings of a member; those that diverged are left out."""
    record: dict[str, Any] = {"trial": trial.number, "searched": numbers_of(trial, VALUES), "n": 0}
    finished = [run["values"] for run in runs if run["values"]]
    record["n"] = len(finished)
    for name in finished[0] if finished else ():
        column = [values[name] for values in finished]
        record[name] = {
            "mean": statistics.fmean(column),
            "spread": statistics.stdev(column) if len(column) > 1 else 0.0,
        }
    return record
