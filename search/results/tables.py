"""The tables that the commands print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from objectives import Metric, SizeBytes
from search.results.candidates import feasible
from search.results.file_records import executing, file_table, of_file
from search.study.front import unbeaten
from search.study.records import PLAN, PREDICTED, TEACHER, VALUES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study

    from search.results.file_records import Member
    from search.study.spec import StudySpec

LEAST_FOR_RANKS = 5  # of fewer a rank correlation says nothing


def front_table(study: Study, spec: StudySpec, members: Sequence[Member]) -> pd.DataFrame:
    """Return the teacher and the front: what was measured, what the files measured, feasibility, the plan in words.

    `file_<metric>`, `file_bytes` and `latency_ratio` (to the teacher, on the runtime) are read from the exported file
    and empty where a member was not verified; `file_front` says whether it is still on the front in those numbers.
    """
    names = [objective.name for objective in spec.measured]
    metrics = [objective.name for objective in spec.measured if isinstance(objective, Metric)]
    teacher = study.user_attrs.get(TEACHER, {})
    files = file_table(members, spec)
    stays = dict(zip(files["number"], np.where(files["on_front"], "yes", "no"), strict=True))
    rows: list[dict[str, Any]] = [
        {
            "trial": str(trial.number),
            **{name: trial.user_attrs[VALUES][name] for name in names},
            **{f"file_{name}": record.get(f"{name}_file") for name in metrics},
            "file_bytes": record.get("file_bytes"),
            "latency_ratio": record.get("latency", {}).get("ratio"),
            "file_front": stays.get(trial.number, ""),
            "feasible": "yes" if feasible(trial) else "no",
            "plan": trial.user_attrs[PLAN],
        }
        for trial, record in members
    ]
    first = {"trial": "teacher", **{name: teacher.get(name) for name in names}, "latency_ratio": 1.0, "file_front": "",
             "feasible": "", "plan": "the network as it was given"}  # fmt: skip
    return pd.DataFrame([first, *rows]).infer_objects()


def files_note(spec: StudySpec, members: Sequence[Member]) -> str:
    """Say how the files were timed, for which the machine was noisy, and how well their costs were predicted."""
    found = [member for member in members if member.record]
    if not found:
        name = spec.runtime.name
        return f"no {name} file is verified yet: slimfront confirm --runtime {name} --seeds 0 does that alone"
    first = found[0].record
    latency = first["latency"]
    noisy = [str(trial.number) for trial, record in found if record["latency"]["noisy"]]
    timed = (
        f"latency_ratio: CPU time of the file over that of the teacher's file, interleaved, median of "
        f"{latency['rounds']} rounds; {first['runtime']}, {latency['threads']} thread, batch {latency['batch']}; "
        f"the teacher takes {latency['reference_cpu_ms']:.3g} ms"
        f"{'; the machine was noisy for ' + ', '.join(noisy) if noisy else ''}"
    )
    return "\n".join([timed, *_predictions(spec, found)])


def _predictions(spec: StudySpec, members: Sequence[Member]) -> list[str]:
    """Say how well sizes, and costs that have a model, were predicted before there was a file."""
    lines = []
    for objective in spec.measured:
        if executing(objective) != spec.runtime:
            continue
        attribute = VALUES if isinstance(objective, SizeBytes) else PREDICTED
        pairs = [
            (trial.user_attrs[attribute][objective.name], of_file(record, trial, objective))
            for trial, record in members
            if objective.name in trial.user_attrs.get(attribute, {})
        ]
        if pairs:
            predicted, files = np.array(pairs).T
            off = abs(predicted / files - 1)
            bounds = f"within {off.max():.1%} of {len(off)} files, median {np.median(off):.1%}"
            ranked = len(pairs) >= LEAST_FOR_RANKS and np.ptp(predicted) > 0 and np.ptp(files) > 0
            ranks = f", rank correlation {spearmanr(predicted, files)[0]:.2f}" if ranked else ""
            lines.append(f"{objective.name} was predicted {bounds}{ranks}")
    return lines


def confirmed_table(
    records: list[dict[str, Any]], teacher: dict[str, float], spec: StudySpec, study: Study
) -> pd.DataFrame:
    """Return the teacher and one row a member: costs, and mean and spread of each metric on validation and test.

    A member is `kept` unless another is at least as good in the confirmed mean of every objective and better in one.
    """
    costs = [objective.name for objective in spec.measured if objective.is_cost]
    values = study.user_attrs.get(TEACHER, {})
    rows: list[dict[str, Any]] = [
        {"trial": "teacher", "n": 1, **{name: values.get(name) for name in costs}}
        | {name: f"{value:.2f}" for name, value in teacher.items()}
        | {"kept": "", "plan": "the network as it was given"}
    ]
    means = [[_confirmed(record, objective.name) for objective in spec.objectives] for record in records]
    for record, stays in zip(records, unbeaten(means, spec), strict=True):
        row: dict[str, Any] = {"trial": str(record["trial"]), "n": record["n"]}
        row |= {name: record["searched"][name] for name in costs}
        for name, value in record.items():
            if isinstance(value, dict) and "mean" in value:
                row[name] = f"{value['mean']:.2f} ± {value['spread']:.2f}"
        row["kept"] = "yes" if stays else "no"
        row["plan"] = study.trials[record["trial"]].user_attrs["plan"]
        rows.append(row)
    return pd.DataFrame(rows)


def _confirmed(record: dict[str, Any], name: str) -> float:
    found = record.get(f"validation_{name}")
    return float(found["mean"] if found else record["searched"][name])
