"""The tables and notes that the commands print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from objectives import Metric
from search.results.candidates import feasible
from search.results.file_records import SHARE, SIZE, Member, file_table, file_value, is_confirmed, measuring_runtime
from search.results.goal import meets_all, relative_columns, standings
from search.study.attributes import numbers_of
from search.study.front import non_dominated
from search.study.records import EPOCHS, PLAN, PREDICTED, TEACHER, VALUES
from spaces.network.messages import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study

    from search.study.outline import Outline

LEAST_FILES_FOR_CORRELATION = 5  # files; a rank correlation over fewer says nothing


def front_table(study: Study, spec: Outline, members: Sequence[Member]) -> pd.DataFrame:
    """Return one row for the teacher and one for every member of the front.

    The columns are `trial`, the measured objectives, the values of limits relative to the teacher
    (`<name>_of_teacher`, `<name>_lost`), the costs that a model predicted before the network was built
    (`predicted_<cost>`), the measurements of the exported file, `feasible` and `plan`, the plan in words.
    `file_<metric>`, `agreement_percent`, `file_bytes`, `file_latency_ms` and `latency_ratio` (over the teacher's file,
    on the study's runtime) are measured on the file and empty if the member is not verified; `file_front` says whether
    the file is on the front of the files, `file_feasible` whether it meets all limits.
    """
    names = [objective.name for objective in spec.measured]
    metrics = [objective.name for objective in spec.measured if isinstance(objective, Metric)]
    teacher = study.user_attrs.get(TEACHER, {})
    files = file_table(members, spec)
    modelled = dict.fromkeys(name for trial, _ in members for name in numbers_of(trial, PREDICTED))
    on_file_front = dict(zip(files["number"], np.where(files["on_front"], "yes", "no"), strict=True))
    rows: list[dict[str, Any]] = [
        {
            "trial": str(trial.number),
            **{name: numbers_of(trial, VALUES)[name] for name in names},
            **relative_columns(study, spec, trial),
            **{f"predicted_{name}": numbers_of(trial, PREDICTED).get(name) for name in modelled},
            **{f"file_{name}": record.get(f"{name}_file") for name in metrics},
            "agreement_percent": record.get("agreement_percent"),
            "file_bytes": record.get("file_bytes"),
            "file_latency_ms": record.get("latency", {}).get("cpu_ms"),
            "latency_ratio": record.get("latency", {}).get("ratio"),
            "file_front": on_file_front.get(trial.number, ""),
            **_file_feasible(study, spec, Member(trial, record)),
            "feasible": "yes" if feasible(trial) else "no",
            "plan": trial.user_attrs[PLAN],
        }
        for trial, record in members
    ]
    teacher_row = {
        "trial": "teacher", **{name: teacher.get(name) for name in names}, **relative_columns(study, spec, None),
        "latency_ratio": 1.0, "file_front": "", **({"file_feasible": ""} if spec.limits else {}), "feasible": "",
        "plan": "the network as it was given", **teacher_file_columns(members),
    }  # fmt: skip
    columns = list((rows or [teacher_row])[0])  # the teacher's row has fewer
    return pd.DataFrame([teacher_row, *rows], columns=columns).infer_objects()


def teacher_file_columns(members: Sequence[Member]) -> dict[str, float | None]:
    """Return what is known of the teacher's file, from the verification of a member's."""
    record: dict[str, Any] = next((record for _, record in members if record), {})
    latency = record.get("latency", {}).get("reference_cpu_ms")
    return {"file_bytes": record.get("teacher_file_bytes"), "file_latency_ms": latency}


def _file_feasible(study: Study, spec: Outline, member: Member) -> dict[str, str]:
    """Return the cell that says whether a member's file meets all limits, if the study has limits."""
    if not spec.limits:
        return {}
    met = "yes" if meets_all(standings(study, spec, member)) else "no"
    return {"file_feasible": met if member.record else ""}


def files_note(spec: Outline, members: Sequence[Member]) -> str:
    """Describe how the files were timed, which timings were noisy, and how well the costs of files were predicted."""
    verified = [member for member in members if member.record]
    untrained = _untrained([member for member in members if not is_confirmed(member)])
    if not verified:
        name = spec.runtime.name
        how = f"verify without training: slimfront confirm STUDY --runtime {name} --seeds 0"
        return "\n".join([f"no {name} file is verified yet; {how}", *untrained])
    first = verified[0].record
    latency = first["latency"]
    noisy = [str(trial.number) for trial, record in verified if record["latency"]["noisy"]]
    in_search = ", which the search measured as latency_share" if SHARE in {one.name for one in spec.measured} else ""
    timing = (
        f"latency_ratio: CPU time of the file over that of the teacher's file{in_search}, interleaved, median of "
        f"{latency['rounds']} rounds; {first['runtime']}, {latency['threads']} thread, batch {latency['batch']}; "
        f"the teacher takes {latency['reference_cpu_ms']:.3g} ms"
        f"{f'; the machine was noisy while it timed {_trials(noisy)}' if noisy else ''}"
    )
    return "\n".join(
        [timing, *_predictions(spec, verified), *_not_on_file_front(spec, verified), *_confirmed(verified), *untrained]
    )


def _untrained(members: Sequence[Member]) -> list[str]:
    """Say which members were measured as they were compressed."""
    numbers = [str(trial.number) for trial, _ in members if trial.user_attrs.get(EPOCHS) == 0]
    how = "slimfront confirm STUDY trains members of a study with a confirmation=Recipe(epochs=...)"
    return [f"measured without training: {_trials(numbers)}; {how}"] if numbers else []


def _trials(numbers: Sequence[str]) -> str:
    return f"trial{'s' * (len(numbers) > 1)} {', '.join(numbers)}"


def _not_on_file_front(spec: Outline, members: Sequence[Member]) -> list[str]:
    """Say which members another one beats on what the files measured."""
    files = file_table(members, spec)
    beaten = [str(number) for number, kept in zip(files["number"], files["on_front"], strict=True) if not kept]
    if not beaten:
        return []
    return [f"file_front is no for {_trials(beaten)}: another file is at least as good in all objectives"]


def _confirmed(members: Sequence[Member]) -> list[str]:
    """Say which files have other weights than those that the search measured."""
    numbers = [str(trial.number) for trial, record in members if is_confirmed(Member(trial, record))]
    if not numbers:
        return []
    words = "have the weights that `confirm` trained with its first seed; metrics without file_ are of the search"
    return [f"the files of {_trials(numbers)} {words}; `slimfront report` shows what they reach on the test split"]


def confirmed_note(records: Sequence[dict[str, Any]]) -> str:
    """Say what the words of the table of confirmed members mean."""
    beaten = "kept: no other member is at least as good in the means of all objectives, on validation"
    if max((record["n"] for record in records), default=0) <= 1:
        return f"n: trainings of a member; {beaten}"
    return f"n: trainings of a member, each with another seed; ±: standard deviation over them; {beaten}"


def _predictions(spec: Outline, members: Sequence[Member]) -> list[str]:
    """Describe the errors of predicted sizes and of costs that a model predicted, against the files."""
    lines = []
    for objective in spec.measured:
        if measuring_runtime(objective) != spec.runtime:
            continue
        attribute = VALUES if objective.name == SIZE else PREDICTED
        pairs = [
            (numbers_of(trial, attribute)[objective.name], file_value(record, trial, objective))
            for trial, record in members
            if objective.name in numbers_of(trial, attribute)
        ]
        if pairs:
            predicted, measured = np.array(pairs).T
            errors = abs(predicted / measured - 1)
            varied = np.ptp(predicted) > 0 and np.ptp(measured) > 0
            ranked = len(pairs) >= LEAST_FILES_FOR_CORRELATION and varied
            correlation = f", rank correlation {_rank_correlation(predicted, measured):.2f}" if ranked else ""
            lines.append(
                f"{objective.name} was predicted with an error of at most {errors.max():.1%} on "
                f"{number_of(len(errors), 'file')}, "
                f"median {np.median(errors):.1%}{correlation}"
            )
    return lines


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return Spearman's rank correlation; importing that of scipy takes longer than all else that a table needs."""
    return float(np.corrcoef(pd.Series(first).rank(), pd.Series(second).rank())[0, 1])


def confirmed_table(
    records: list[dict[str, Any]], teacher: dict[str, float], spec: Outline, study: Study
) -> pd.DataFrame:
    """Return one row for the teacher and one for every member: costs, and each metric on validation and test.

    Metrics are mean ± standard deviation over the `n` trainings. A member is `kept` unless another is at least as good
    in the confirmed means of all objectives and better in one.
    """
    costs = [objective.name for objective in spec.measured if objective.is_cost]
    values = study.user_attrs.get(TEACHER, {})
    rows: list[dict[str, Any]] = [
        {"trial": "teacher", "n": 1, **{name: values.get(name) for name in costs}}
        | {name: f"{value:.2f}" for name, value in teacher.items()}
        | {"kept": "", "plan": "the network as it was given"}
    ]
    means = [[_mean(record, objective.name) for objective in spec.objectives] for record in records]
    for record, kept in zip(records, non_dominated(means, spec), strict=True):
        row: dict[str, Any] = {"trial": str(record["trial"]), "n": record["n"]}
        row |= {name: record["searched"][name] for name in costs}
        for name, value in record.items():
            if isinstance(value, dict) and "mean" in value:
                row[name] = f"{value['mean']:.2f}" + (f" ± {value['spread']:.2f}" if record["n"] > 1 else "")
        row["kept"] = "yes" if kept else "no"
        row["plan"] = study.trials[record["trial"]].user_attrs[PLAN]
        rows.append(row)
    return pd.DataFrame(rows)


def _mean(record: dict[str, Any], name: str) -> float:
    """Return the confirmed mean of an objective on validation, or the value of the search if it was not confirmed."""
    confirmed = record.get(f"validation_{name}")
    return float(confirmed["mean"] if confirmed else record["searched"][name])
