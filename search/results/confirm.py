"""Train the members of the front for longer, over several seeds, and read the test split: once, at the end."""

from __future__ import annotations

import functools
import json
import statistics
from typing import TYPE_CHECKING, Any

from objectives import Metric
from search.evaluation.context import check_labels
from search.evaluation.trial import key_of, seed_of
from search.study.console import console, track
from search.study.definition import define_value, differences
from search.study.errors import Diverged
from search.study.files import save_json, save_state, state_path
from search.study.records import RATE, VALUES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from optuna.trial import FrozenTrial
    from torch import nn

    from search.evaluation.context import Context
    from search.study.spec import Recipe, StudySpec
    from search.training.learning_rate import Rate

CONFIRMATION_TIMES = 4  # times the epochs of the search, where the study names no recipe for this


def confirm(
    members: list[FrozenTrial], context: Context, folder: Path, seeds: int, rate: Rate | None = None
) -> list[dict[str, Any]]:
    """Return a record a member: costs, and every metric on validation and test with its mean and spread.

    Each (member, seed) that is done is kept as a file, so that a stopped confirmation goes on where it was.

    Parameters
    ----------
    members
        Trials of the front.
    context
        The study.
    folder
        Of the study's files; the results go to `confirmed/`.
    seeds
        How many trainings a member.
    rate
        What the study's range test gave, where the recipe has no learning rate.
    """
    check_labels("test", context.spec.splits.test, context.classes)
    longer = context.spec.confirmation or context.spec.recipe.longer(CONFIRMATION_TIMES)
    total = max(1, len(members) * seeds)
    records = []
    with track(f"confirming {len(members)} members over {seeds} seeds") as progress:
        for index, trial in enumerate(members):
            runs = []
            for turn in range(seeds):
                done = index * seeds + turn
                share = functools.partial(_report_share, progress, done, total)
                runs.append(_trained_once(trial, context, folder, longer, turn, rate, share))
                progress((done + 1) / total)
            records.append(_record(trial, runs))
    teacher = metrics(context.spec, context.subject.finished)
    save_json(folder / "confirmed" / "front.json", {"teacher": teacher, "members": records})
    return records


def weights_of(folder: Path, trial: FrozenTrial) -> Path:
    """Return the trained state to export: the first confirmation's where there is one, else the search's.

    The first and not the best: picking the best of several seeds would be a choice made on its score.
    """
    confirmed = _path(folder, trial, 0).with_suffix(".safetensors")
    return confirmed if confirmed.exists() else state_path(folder, trial.number)


def metrics(spec: StudySpec, finished: nn.Module) -> dict[str, float]:
    """Measure every metric of the study on validation and test."""
    values = {}
    for objective in spec.measured:
        if isinstance(objective, Metric):
            values[f"validation_{objective.name}"] = objective.on(spec.splits.validation)(finished)
            values[f"test_{objective.name}"] = objective.on(spec.splits.test)(finished)
    return values


def _report_share(progress: Callable[[float], None], done: int, total: int, part: float) -> None:
    progress((done + part) / total)


def _path(folder: Path, trial: FrozenTrial, turn: int) -> Path:
    return folder / "confirmed" / f"{trial.number}-seed{turn}.json"


def _trained_once(
    trial: FrozenTrial,
    context: Context,
    folder: Path,
    recipe: Recipe,
    turn: int,
    rate: Rate | None,
    progress: Callable[[float], None],
) -> dict[str, Any]:
    path = _path(folder, trial, turn)
    recipe = recipe if rate else recipe.at_rate(trial.user_attrs.get(RATE))
    recipe_now = define_value(recipe) | {"range_test": rate and list(rate)}
    if path.exists() and _same_recipe((stored := json.loads(path.read_text()))["recipe"], recipe_now):
        return stored  # type: ignore[no-any-return]
    plan = context.plan(trial.params)
    model = context.build(plan)
    try:
        seed = seed_of(context.spec, key_of(plan), turn + 1)
        context.train(model, plan, context.with_rate(recipe, model, rate), seed, progress)
        values = metrics(context.spec, context.subject.finish(model))
        save_state(model, path.with_suffix(".safetensors"))
    except Diverged as error:
        console.print(f"trial {trial.number}, seed {turn}: {error}")
        values = {}
        path.with_suffix(".safetensors").unlink(missing_ok=True)  # of an earlier recipe: not to be exported as this one
    found = {"trial": trial.number, "seed": turn, "recipe": recipe_now, "values": values}
    save_json(path, found)
    return found


def _same_recipe(stored: dict[str, Any], now: dict[str, Any]) -> bool:
    return not differences(*({name: str(value) for name, value in recipe.items()} for recipe in (stored, now)))


def _record(trial: FrozenTrial, runs: list[dict[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {"trial": trial.number, "searched": trial.user_attrs[VALUES], "n": 0}
    finished = [run["values"] for run in runs if run["values"]]
    record["n"] = len(finished)
    for name in finished[0] if finished else ():
        column = [values[name] for values in finished]
        record[name] = {
            "mean": statistics.fmean(column),
            "spread": statistics.stdev(column) if len(column) > 1 else 0.0,
        }
    return record
