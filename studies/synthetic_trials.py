"""Fill the storage of a study with finished trials that look like real ones, without training anything."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import torch
from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState, create_trial
from torch import nn

from objectives import Examples, Limit, Macs, SizeBytes, Top1
from search import Budget, Recipe, Splits, StudySpec
from search.evaluation.trial import key_of
from search.proposals.defaults import resolved
from search.proposals.draft_records import create_draft
from search.study import machine
from search.study.attributes import CONSTRAINTS, keyed, numbers_of
from search.study.queue import QUEUE
from search.study.records import (
    EPOCHS,
    EXCESS,
    INPUTS,
    KEY,
    PLAN,
    PROXY_LOSS,
    RATE,
    REASON,
    RELATIVE,
    REPLAY,
    SECONDS,
    STARTED,
    STOPPED,
    TASK,
    TRAINED_LOSS,
    TRIAL,
    VALUES,
    WORKER,
    WORKERS,
)
from search.study.storage import open_study
from spaces import BitWidths, PruneRatios, Ranks, Space, Temperatures

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.evaluation.context import Context

DRAFTED = 1000  # plans of the draft, as a long study has
TRAINED_OF_DRAFT = 300  # of these plans that were trained
REPLAYED, STOPPED_EARLY, REJECTED, FAILED = 0.04, 0.08, 0.08, 0.01  # shares of the trials, about those of real studies
WORKED_BY = "0123456789abcdef0123456789abcdef"  # a worker that is gone
BATCH = 500  # trials that are written together
ADDED, PARAMETER, ENDED, ATTRIBUTE, SYSTEM = 4, 5, 6, 8, 9  # codes of Optuna's journal


def spec_of(blocks: int) -> StudySpec:
    """Return the study of an untrained network of so many convolutions; each has about four parameters."""
    torch.manual_seed(0)
    layers = [
        nn.Sequential(nn.Conv2d(8 if at else 1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for at in range(blocks)
    ]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()
    data = Examples(torch.randn(64, 1, 8, 8), torch.arange(64) % 10)
    macs = Macs(data.inputs[:1])
    return resolved(
        StudySpec(
            name="scale",
            teacher=net,
            splits=Splits(data, data, data),
            space=Space((PruneRatios(), Ranks(), BitWidths(weights=(2, 4, 8), activations=(8,))), Temperatures()),
            objectives=(Top1(data), SizeBytes()),
            limits=(Limit(macs, at_most=0.6 * macs(net)),),
            recipe=Recipe(epochs=4),
            budget=Budget(trials=10**6),
            calibration=32,
        )
    )


def filled(context: Context, folder: Path, url: str | None, trials: int) -> Study:
    """Return a new study with finished trials and a draft in the journal of a folder, or in the database at a URL."""
    spec = context.spec
    study = open_study(spec, folder, url, create=True)
    study.set_user_attr(STARTED, value=True)
    draft = create_draft(study, [PROXY_LOSS, SizeBytes().name])
    draft.set_user_attr(INPUTS, 256)
    rng = np.random.default_rng(0)
    distributions = distributions_of(context)
    drafted = list(_drafted(context, distributions, rng))
    _add(draft, folder, url, drafted)
    first = [trial.params | spec.space.recovery.usual() for trial in drafted[:TRAINED_OF_DRAFT]]
    finished = list(finished_trials(context, distributions, first, trials, rng))
    _add(study, folder, url, finished)
    tickets = optuna.create_study(storage=study._storage, study_name=spec.name + WORKERS, load_if_exists=True)  # noqa: SLF001
    _add(tickets, folder, url, list(_tickets(finished)))
    return open_study(spec, folder, url, create=False)


def finished_trials(
    context: Context,
    distributions: dict[str, Any],
    first: list[dict[str, Any]],
    count: int,
    rng: np.random.Generator,
) -> Iterator[FrozenTrial]:
    """Yield finished trials, with the attributes that `search.evaluation.trial` writes; the first have given plans."""
    (limit,) = context.spec.limits
    earlier: list[FrozenTrial] = []
    for number in range(count):
        kind = rng.random()
        replays = kind < REPLAYED and earlier
        source = earlier[int(rng.integers(len(earlier)))] if replays else None
        given = first[number] if number < len(first) else drawn_params(distributions, rng)
        params = given if source is None else source.params
        plan = context.plan(params)
        size = int(800 * math.exp(4 * rng.random()))
        top1 = min(99.5, 62 + 4.2 * math.log(size) + rng.normal())
        values = [round(top1, 2), float(size)]
        macs = 6_000 * size / 44_000
        attributes: dict[str, Any] = {WORKER: WORKED_BY, KEY: key_of(plan), PLAN: plan.words()}
        excess = {str(limit): -float(rng.random()) * 0.9}
        state = TrialState.COMPLETE
        if source is not None:
            attributes |= {EPOCHS: 4, REPLAY: earlier.index(source)}
            values, excess, measured = list(source.values), numbers_of(source, EXCESS), numbers_of(source, VALUES)
        elif kind < REPLAYED + REJECTED:
            state, excess = TrialState.PRUNED, {str(limit): float(rng.random())}
            measured = {"macs": macs}
            attributes |= {REASON: f"exceeds the limit {limit.words}"}
        elif kind < REPLAYED + REJECTED + STOPPED_EARLY:
            state = TrialState.PRUNED
            measured = {"macs": macs, "size_bytes": size}
            attributes |= {EPOCHS: 4, RATE: 0.003}
            attributes |= {STOPPED: TRIAL, REASON: "stopped after a quarter of its training", SECONDS: 0.9}
        elif kind < REPLAYED + REJECTED + STOPPED_EARLY + FAILED:
            state = TrialState.FAIL
            measured = {"macs": macs}
            attributes |= {EPOCHS: 4, RATE: 0.003, REASON: "the loss became nan"}
        else:
            measured = {"top1": values[0], "size_bytes": values[1], "macs": macs}
            attributes |= {RELATIVE: json.dumps([{}, machine.words()]), EPOCHS: 4, RATE: 0.003}
            attributes |= {TRAINED_LOSS: float(rng.random()), SECONDS: 2 + float(rng.random())}
        trial = create_trial(
            state=state,
            params=params,
            distributions=distributions,
            values=values if state == TrialState.COMPLETE else None,
            user_attrs=attributes | keyed(VALUES, measured) | keyed(EXCESS, excess),
            system_attrs={CONSTRAINTS: list(excess.values())},
        )
        if state == TrialState.COMPLETE and source is None:
            earlier.append(trial)
        else:
            earlier.append(earlier[-1] if earlier else trial)
        yield trial


def distributions_of(context: Context) -> dict[str, Any]:
    """Return the distribution of every parameter of the study's space."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    context.spec.space.suggest(trial, context.subject.anatomy)
    return dict(trial.distributions)


def drawn_params(distributions: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Return a value of each parameter, uniform in its distribution."""
    drawn = {}
    for name, distribution in distributions.items():
        low, high = float(distribution.low), float(distribution.high)
        log = distribution.log
        value = math.exp(rng.uniform(math.log(low), math.log(high))) if log else rng.uniform(low, high)
        if distribution.step:
            value = low + round((value - low) / distribution.step) * distribution.step
        drawn[name] = int(value) if isinstance(distribution, optuna.distributions.IntDistribution) else float(value)
    return drawn


def _drafted(context: Context, distributions: dict[str, Any], rng: np.random.Generator) -> Iterator[FrozenTrial]:
    """Yield the trials of a draft."""
    searched = {name: one for name, one in distributions.items() if name not in context.spec.space.recovery.usual()}
    for _ in range(DRAFTED):
        params = drawn_params(searched, rng)
        size = 800 * math.exp(4 * rng.random())
        loss = 0.02 * 44_000 / size * math.exp(rng.normal() / 4)
        yield create_trial(
            params=params,
            distributions=searched,
            values=[loss, size],
            user_attrs={WORKER: WORKED_BY, PLAN: context.plan(params | context.spec.space.recovery.usual()).words()},
        )


def _tickets(trials: list[FrozenTrial]) -> Iterator[FrozenTrial]:
    """Yield the tickets that a worker drew for these trials (see `search.study.workers`)."""
    for trial in trials:
        for task in ("one of the budget's trials", QUEUE, f"train {trial.user_attrs[KEY]} for 4 epochs"):
            yield create_trial(state=TrialState.FAIL, user_attrs={TASK: task, WORKER: WORKED_BY})


def _add(study: Study, folder: Path, url: str | None, trials: list[FrozenTrial]) -> None:
    first = _count(study)
    if url is None:
        with (folder / "journal.log").open("a") as file:
            for at, trial in enumerate(trials, first):
                file.writelines(f"{json.dumps(r, separators=(',', ':'))}\n" for r in _records(study, at, trial))
    else:
        for start in range(0, len(trials), BATCH):
            insert_all(study, first + 1 + start, start, trials[start : start + BATCH])


def _count(study: Study) -> int:
    """Return the number of trials in a new storage, of all studies; the ids of the next ones follow from it."""
    storage = study._storage  # noqa: SLF001
    return sum(len(storage.get_all_trials(one._study_id, deepcopy=False)) for one in storage.get_all_studies())  # noqa: SLF001


def _records(study: Study, number: int, trial: FrozenTrial) -> Iterator[dict[str, Any]]:
    """Yield the records that a worker writes of one trial."""
    now = datetime.now(tz=UTC).isoformat(timespec="microseconds")
    by = {"worker_id": "00000000-0000-0000-0000-000000000000-140000000000000"}
    yield {"op_code": ADDED, **by, "study_id": study._study_id, "datetime_start": now}  # noqa: SLF001
    of = by | {"trial_id": number}
    for name, distribution in trial.distributions.items():
        drawn = {
            "param_name": name,
            "param_value_internal": distribution.to_internal_repr(trial.params[name]),
            "distribution": distribution_to_json(distribution),
        }
        yield {"op_code": PARAMETER, **of, **drawn}
    for name, value in trial.user_attrs.items():
        yield {"op_code": ATTRIBUTE, **of, "user_attr": {name: value}}
    for name, value in trial.system_attrs.items():
        yield {"op_code": SYSTEM, **of, "system_attr": {name: value}}
    yield {"op_code": ENDED, **of, "state": int(trial.state), "values": trial.values, "datetime_complete": now}


def insert_all(study: Study, first: int, number: int, trials: list[FrozenTrial]) -> None:
    """Insert trials into a database, with ids and numbers from these on; all have times of a beginning and an end."""
    with study._storage._backend.engine.begin() as connection:  # type: ignore[attr-defined]  # noqa: SLF001
        now = datetime.now()  # noqa: DTZ005 - Optuna's columns have no zone
        rows: dict[Any, list[dict[str, Any]]] = {
            models.TrialModel: [], models.TrialParamModel: [], models.TrialValueModel: [],
            models.TrialUserAttributeModel: [], models.TrialSystemAttributeModel: [],
        }  # fmt: skip
        for at, trial in enumerate(trials):
            of = {"trial_id": first + at}
            times = {"datetime_start": now, "datetime_complete": now}
            rows[models.TrialModel].append(
                of | times | {"number": number + at, "study_id": study._study_id, "state": trial.state}  # noqa: SLF001
            )
            rows[models.TrialParamModel] += [
                of
                | {
                    "param_name": name,
                    "param_value": distribution.to_internal_repr(trial.params[name]),
                    "distribution_json": distribution_to_json(distribution),
                }
                for name, distribution in trial.distributions.items()
            ]
            rows[models.TrialValueModel] += [
                of | {"objective": place, "value": value, "value_type": models.TrialValueModel.TrialValueType.FINITE}
                for place, value in enumerate(trial.values or ())
            ]
            for table, attributes in (
                (models.TrialUserAttributeModel, trial.user_attrs),
                (models.TrialSystemAttributeModel, trial.system_attrs),
            ):
                rows[table] += [of | {"key": name, "value_json": json.dumps(v)} for name, v in attributes.items()]
        for table, several in rows.items():
            if several:
                connection.execute(table.__table__.insert(), several)
        if connection.dialect.name == "postgresql":  # it does not count the ids that were given
            connection.exec_driver_sql(
                "SELECT setval(pg_get_serial_sequence('trials', 'trial_id'), max(trial_id)) FROM trials"
            )
