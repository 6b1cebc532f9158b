"""How the search went: the front over time, predictions against measurements, and where the time went."""

from __future__ import annotations

import functools
import math
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna._hypervolume import compute_hypervolume
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from search.proposals.draft_records import Drafted, choices_in, draft_of
from search.proposals.proxy_correlation import changed_by_training
from search.results.page.columns import file_values
from search.study.attributes import numbers_of
from search.study.cpu_profile import SHOWN_NAMES
from search.study.front import trained
from search.study.history import read
from search.study.records import PREDICTED, SECONDS, SPENT, TRAINED_LOSS, VALUES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from objectives import Objective
    from search.results.file_records import Member
    from search.results.page.columns import Column
    from search.study.spec import StudySpec

LEAST_TRIALS_FOR_IMPORTANCE = 8  # trained trials; from fewer the importance of some 20 parameters is noise (chosen)
SHOWN_PARAMETERS = 12  # of the importance, those that matter most (chosen)


def course(
    study: Study, spec: StudySpec, teacher: Mapping[str, float], members: Sequence[Member], columns: Sequence[Column]
) -> dict[str, Any]:
    """Describe how the search of a study went, as the page shows it.

    Returns
    -------
    dict
        `hypervolume`: CPU seconds, value and number of each trained trial. `predicted`: by column, triples of a trial's
        number, its predicted and its measured value. `proxy`: triples of number, proxy loss before and after training.
        `time`: CPU seconds by activity. `importance`: by objective, pairs of parameter and share. `trained`: how many
        trials were.
    """
    return {
        "hypervolume": hypervolumes(study, spec, teacher),
        "predicted": _predicted(study, members, columns),
        "proxy": _proxies(study),
        "time": _time(study),
        "importance": _importances(study, spec),
        "trained": len(trained(study)),
    }


def hypervolumes(study: Study, spec: StudySpec, teacher: Mapping[str, float]) -> list[tuple[float, float, int]]:
    """Return, after each trained trial, the CPU seconds of all so far and the hypervolume of their front.

    It is the share of a box that spans, in each cost, from that of the teacher to the smallest one that was trained, on
    a logarithmic scale; and in each metric from the worst that was trained to that of the teacher. So 1 would be the
    teacher's quality at the smallest cost, and what is no better than the teacher in any cost adds nothing.
    """
    trials = sorted(
        trained(study), key=lambda trial: trial.datetime_complete.timestamp() if trial.datetime_complete else 0
    )
    scaled = [_scaled(one, [trial.values[at] for trial in trials], teacher) for at, one in enumerate(spec.objectives)]
    if not trials or any(column is None for column in scaled):
        return []
    points = np.array(scaled).T
    found, spent = [], 0.0
    feasible: list[int] = []
    for number, trial in enumerate(trials):
        spent += trial.user_attrs.get(SECONDS, 0.0)
        feasible += [number] if all(value <= 0 for value in trial.constraints.values()) else []
        volume = float(compute_hypervolume(points[feasible], np.ones(points.shape[1]))) if feasible else 0.0
        found.append((spent, volume, trial.number))
    return found


def _end(trial: FrozenTrial) -> float:
    """Return when a trained trial ended."""
    return 0.0 if trial.datetime_complete is None else trial.datetime_complete.timestamp()


def _scaled(objective: Objective, values: list[float], teacher: Mapping[str, float]) -> list[float] | None:
    """Return values between 0, the best, and 1; None if the teacher's value is not known."""
    own = teacher.get(objective.name)
    if own is None or not values:
        return None
    if objective.is_cost and objective.direction == "minimize" and min(*values, own) > 0:
        values, own = [math.log(value) for value in values], math.log(own)
        best, worst = min(values), own
    elif objective.is_cost:
        best, worst = (max(values), own) if objective.direction == "maximize" else (min(values), own)
    else:
        best, worst = own, (min(values) if objective.direction == "maximize" else max(values))
    if best == worst:
        return [0.0] * len(values)
    return [min(max((value - best) / (worst - best), 0.0), 1.0) for value in values]


def _predicted(
    study: Study, members: Sequence[Member], columns: Sequence[Column]
) -> dict[str, list[tuple[int, float, float]]]:
    """Return predicted and measured costs: of models over all trials, and of formulas on the files of the front."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    for trial in study.get_trials(deepcopy=False):
        predicted, measured = numbers_of(trial, PREDICTED), numbers_of(trial, VALUES)
        for name in predicted.keys() & measured.keys():
            found.setdefault(name, []).append((trial.number, predicted[name], measured[name]))
    costs = {column.key for column in columns if column.kind == "cost"} - found.keys()
    for member in members:
        for name, value in file_values(member, columns).items():
            if name in costs:
                pair = numbers_of(member.trial, VALUES)[name], value
                found.setdefault(name, []).append((member.trial.number, *pair))
    return dict(sorted(found.items()))


def _proxies(study: Study) -> list[tuple[int, float, float]]:
    """Return the proxy loss before and after training, of each trained plan of the draft."""
    draft = draft_of(study)
    if draft is None:
        return []
    plans = read(draft, Drafted)
    changed = filter(changed_by_training, trained(study))
    both = ((trial, plans.values.get(choices_in(trial, plans.names))) for trial in changed)
    return [
        (trial.number, before[0], trial.user_attrs[TRAINED_LOSS])
        for trial, before in both
        if before is not None and TRAINED_LOSS in trial.user_attrs
    ]


def _time(study: Study) -> dict[str, float]:
    """Return the CPU seconds of all runs by activity, the largest first."""
    total: Counter[str] = Counter()
    for name, seconds in study.user_attrs.items():
        if name.startswith(SPENT):
            total.update(seconds)
    return {SHOWN_NAMES.get(name, name): seconds for name, seconds in total.most_common()}


def _value(column: int, trial: FrozenTrial) -> float:
    """Return one objective of a trial."""
    return float(trial.values[column])


def _importances(study: Study, spec: StudySpec) -> dict[str, list[tuple[str, float]]]:
    """Return the importance of the parameters for each objective (fANOVA), over the trained trials, if they are enough.

    Hutter, Hoos and Leyton-Brown 2014, An Efficient Approach for Assessing Hyperparameter Importance.
    """
    if len(trained(study)) < LEAST_TRIALS_FOR_IMPORTANCE:
        return {}
    found = {}
    for at, objective in enumerate(spec.objectives):
        if len({trial.values[at] for trial in trained(study)}) == 1:
            continue  # nothing depends on anything
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            shares = get_param_importances(
                study, evaluator=FanovaImportanceEvaluator(seed=0), target=functools.partial(_value, at)
            )
        found[objective.name] = list(shares.items())[:SHOWN_PARAMETERS]
    return found
