"""Train the members of the front for longer, over several seeds, and read the test split: once, at the end."""

from __future__ import annotations

import functools
import json
import statistics
from typing import TYPE_CHECKING, Any

from objectives import Metric
from search.bench import check_labels
from search.definition import define_value
from search.errors import Diverged
from search.export import plan_of
from search.progress import console, track
from search.storage import save_json
from search.trial import RATE, VALUES, key_of, save_state, seed_of, state_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from optuna.trial import FrozenTrial
    from torch import nn

    from search.bench import Bench
    from search.rates import Rate
    from search.spec import Recipe

LONGER = 4  # times the epochs of the search, where the study names no recipe for this


def confirm(
    members: list[FrozenTrial], bench: Bench, folder: Path, seeds: int, rate: Rate | None = None
) -> list[dict[str, Any]]:
    """Return a record a member: costs, and every metric on validation and test with its mean and spread.

    Each (member, seed) that is done is kept as a file, so that a stopped confirmation goes on where it was.

    Parameters
    ----------
    members
        Trials of the front.
    bench
        The study.
    folder
        Of the study's files; the results go to `confirmed/`.
    seeds
        How many trainings a member.
    rate
        What the study's range test gave, where the recipe has no learning rate.
    """
    check_labels("test", bench.spec.splits.test, bench.classes)
    longer = bench.spec.confirmation or bench.spec.recipe.longer(LONGER)
    total = max(1, len(members) * seeds)
    records = []
    with track(f"confirming {len(members)} members over {seeds} seeds") as told:
        for index, trial in enumerate(members):
            runs = []
            for turn in range(seeds):
                done = index * seeds + turn
                share = functools.partial(_tell_share, told, done, total)
                runs.append(_trained_once(trial, bench, folder, longer, turn, rate, share))
                told((done + 1) / total)
            records.append(_record(trial, runs))
    teacher = metrics(bench, bench.finished)
    save_json(folder / "confirmed" / "front.json", {"teacher": teacher, "members": records})
    return records


def weights_of(folder: Path, trial: FrozenTrial) -> Path:
    """Return the trained state to export: the first confirmation's where there is one, else the search's.

    The first and not the best: picking the best of several seeds would be a choice made on its score.
    """
    confirmed = _path(folder, trial, 0).with_suffix(".safetensors")
    return confirmed if confirmed.exists() else state_path(folder, trial.number)


def metrics(bench: Bench, finished: nn.Module) -> dict[str, float]:
    """Measure every metric of the study on validation and test."""
    values = {}
    for objective in bench.spec.measured:
        if isinstance(objective, Metric):
            values[f"validation_{objective.name}"] = objective.on(bench.spec.splits.validation)(finished)
            values[f"test_{objective.name}"] = objective.on(bench.spec.splits.test)(finished)
    return values


def _tell_share(told: Callable[[float], None], done: int, total: int, part: float) -> None:
    told((done + part) / total)


def _path(folder: Path, trial: FrozenTrial, turn: int) -> Path:
    return folder / "confirmed" / f"{trial.number}-seed{turn}.json"


def _trained_once(
    trial: FrozenTrial,
    bench: Bench,
    folder: Path,
    recipe: Recipe,
    turn: int,
    rate: Rate | None,
    told: Callable[[float], None],
) -> dict[str, Any]:
    path = _path(folder, trial, turn)
    recipe = recipe if rate else recipe.at_rate(trial.user_attrs.get(RATE))
    recipe_now = define_value(recipe) | {"range_test": rate and list(rate)}
    if path.exists() and (stored := json.loads(path.read_text()))["recipe"] == recipe_now:
        return stored  # type: ignore[no-any-return]
    plan = plan_of(trial, bench)
    model = bench.build(plan)
    try:
        bench.train(model, plan, bench.rated(recipe, model, rate), seed_of(bench.spec, key_of(plan), turn + 1), told)
        values = metrics(bench, bench.finish(model))
        save_state(model, path.with_suffix(".safetensors"))
    except Diverged as error:
        console.print(f"trial {trial.number}, seed {turn}: {error}")
        values = {}
        path.with_suffix(".safetensors").unlink(missing_ok=True)  # of an earlier recipe: not to be exported as this one
    found = {"trial": trial.number, "seed": turn, "recipe": recipe_now, "values": values}
    save_json(path, found)
    return found


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
