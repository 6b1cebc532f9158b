"""Export random plans for twenty networks, and compare each file with its network, and its size with the prediction.

    python -m studies.random_files --runtime executorch --plans 10
    python -m studies.random_files --runtime litert --networks U-Net DenseNet --plans 3

Plans draw pruning ratios, ranks and the precisions of the runtime at random, layer by layer, without those that a study
finds to fail before it searches. The networks are not trained. A file counts as right if its noise is at most that
which verification allows. Sizes are predicted as in a study, calibrated on the files of the whole network and of three
other plans. Rows are printed as they come; `--out FILE.csv` keeps them.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pandas as pd
import torch
from optuna.trial import FixedTrial

from objectives import Examples, SizeBytes
from objectives.layers import inputs_of_file
from objectives.runtimes import RUNTIMES, named
from objectives.runtimes.isolated_process import IsolatedProcess
from search import Splits, StudySpec
from search.evaluation.comparison import COMPARED, compared
from search.evaluation.context import Context
from search.evaluation.size_calibration import calibrated
from search.evaluation.subject import Subject
from search.evaluation.tried_precisions import try_precisions
from spaces import BitWidths, PruneRatios, Ranks, Space, Temperatures
from studies.unlike_networks import NETWORKS, network_and_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from objectives.runtimes import Runtime

HIGHEST_RATIO = 0.75  # of pruning
UNKNOWN = {"sqnr_db": math.nan, "allowed_sqnr_db": math.nan}  # of a network whose answers are not finite
SHOWN_CHARACTERS = 200  # of a reason


def rows(name: str, runtime: Runtime, plans: int, seed: int, path: Path) -> Iterator[dict[str, Any]]:
    """Yield what happened to the file of the whole network, and to those of each plan."""
    spec = _study(name, runtime)
    subject = Subject(spec, torch.device("cpu"))
    inputs, space, whole = subject.example, spec.space, subject.finished
    first = _tried(whole, inputs, runtime, path)
    yield {"network": name, "plan": "whole"} | first
    if "bytes" not in first:
        return
    (size,) = calibrated(spec, subject, path).objectives
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    started = time.perf_counter()
    try_precisions(study, Context(spec, subject))
    left_out = {layer.name: layer.failing for layer in subject.anatomy.layers if layer.failing}
    yield {"network": name, "plan": "tries", "failed": f"left out: {left_out}" if left_out else "",
           "seconds": time.perf_counter() - started}  # fmt: skip
    widths = next(axis for axis in space.steps if isinstance(axis, BitWidths))
    for number in range(plans):
        trial = study.ask()
        plan = space.suggest(trial, subject.anatomy)
        if number % 2:  # the same widths everywhere, as many plans have that a search finds
            equal = widths.uniform(subject.anatomy, 1.0 if number % 4 == 1 else 0.6)
            plan = space.suggest(FixedTrial(trial.params | equal), subject.anatomy)
        finished = subject.finish(subject.build(plan).eval())
        yield {"network": name, "plan": str(number), "predicted": size(finished)} | _tried(
            finished, inputs, runtime, path
        )


def _study(name: str, runtime: Runtime) -> StudySpec:
    """Return a study of the network, without labels."""
    network, inputs = network_and_inputs(name)
    examples = Examples(inputs, None)
    axes = PruneRatios(HIGHEST_RATIO, round_to=runtime.channels), Ranks(), BitWidths(runtime=runtime)
    return StudySpec(
        name=name,
        teacher=network,
        splits=Splits(examples, examples, examples),
        space=Space(axes, Temperatures()),
        objectives=(SizeBytes(runtime),),
        runtime=runtime,
    )


def _tried(finished: nn.Module, inputs: Tensor, runtime: Runtime, path: Path) -> dict[str, Any]:
    """Return the noise of a file and its bytes, or why there is none."""
    started, few = time.perf_counter(), inputs[:COMPARED]
    try:
        runtime.export(finished, inputs_of_file(finished, inputs), path)
        with IsolatedProcess(runtime, path) as file:
            found = compared(finished, few, file) or UNKNOWN
    except Exception as error:  # noqa: BLE001 - a runtime may refuse a network in any way, and that is what is counted
        return {
            "failed": f"{type(error).__name__}: {error}"[:SHOWN_CHARACTERS],
            "seconds": time.perf_counter() - started,
        }
    wrong = found["sqnr_db"] < found["allowed_sqnr_db"]
    return {
        "bytes": path.stat().st_size,
        "sqnr_db": found["sqnr_db"],
        "allowed_db": found["allowed_sqnr_db"],
        "failed": "answers wrongly" if wrong else "",
        "seconds": time.perf_counter() - started,
    }


def summary(table: pd.DataFrame) -> str:
    """Return how many files failed, and the errors of predicted sizes by network."""
    whole, planned = table[table.plan == "whole"], table[~table.plan.isin(["whole", "tries"])]
    failed, without = (int((part.failed != "").sum()) for part in (planned, whole))
    errors = (planned.predicted / planned.bytes - 1).abs().dropna()
    by_network = errors.groupby(planned.network).agg(["median", "max"])
    return (
        f"{failed} of {len(planned)} files failed, and {without} of {len(whole)} of whole networks\n"
        f"predicted sizes: median error {errors.median():.1%}, largest {errors.max():.1%}, n = {len(errors)}\n"
        f"{by_network.map('{:.1%}'.format).to_string()}\n"
    )


def main() -> int:
    """Export, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=sorted(RUNTIMES), default="onnx", help="the runtime of the files")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--plans", type=int, default=10, metavar="N", help="plans for each network")
    parser.add_argument("--seed", type=int, default=0, help="seed of the plans")
    parser.add_argument("--out", type=Path, help="a .csv file for the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    runtime, found = named(options.runtime), []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            for row in rows(name, runtime, options.plans, options.seed, Path(folder) / f"model.{runtime.suffix}"):
                found.append(row)
                shown = ", ".join(f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float))
                sys.stdout.write(f"{name} {row['plan']}: {shown} {row['failed']}\n")
                sys.stdout.flush()
                if options.out:
                    pd.DataFrame(found).to_csv(options.out, index=False)
    sys.stdout.write(summary(pd.DataFrame(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
