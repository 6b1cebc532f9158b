"""Compare joint search with other tools, at equal CPU time and the same fine-tuning, from the exported files.

    python -m studies.peers --networks mobilenet --cpu-seconds 600 --seeds 1
    python -m studies.peers --networks residual mobilenet efficientnet speech --seeds 3 --out runs/peers

Needs the extra [peers] for the other tools. Networks: `residual` (ResNet-8 of Fashion-MNIST), `mobilenet` (half of
MobileNetV3-small on photographs of 64x64 pixels, trained here), `efficientnet` (EfficientNet-Lite0 with its ImageNet
weights at 224x224; its accuracy is the agreement with the teacher, and top-1 is in the records) and `speech` (DS-CNN on
spoken digits).

What is compared:

- `ours`: a search of that many CPU seconds for small files with few multiply-adds and little latency, then the
  fine-tuning of the members of its front that are the best on validation at some share of some cost, at most eight;
  where no member is that cheap, the plan of the draft with the smallest proxy loss.
- `torch-pruning`: Torch-Pruning's global pruning of groups by their L2 norm to eight shares of multiply-adds, as
  floating point, by the runtime's own static int8, and by NNCF's.
- `uniform`: our plans that compress all layers equally, at eight strengths.

Every network that was built is fine-tuned by the confirmation recipe of the study, before tools convert it to 8 bits:
the same loss with the teacher's answers, the same optimizer, schedule and range test. The searches' CPU seconds go to
fine-tuning in the methods that do not search, an eighth to each network. Every file is measured on the whole validation
and test split, in a process of its own; latency is CPU time over that of the teacher's file, interleaved. The table
shows, for each cost and share of the teacher's, the test accuracy of the file with the best validation accuracy, the
mean over seeds; all methods have the teacher itself, and a cell is empty if a method has no file that cheap with some
seed. On EfficientNet-Lite0 the fine-tuning of all methods is the search's recipe of two epochs.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pandas as pd
import torch

from objectives import Latency, LatencyShare
from search.evaluation.context import Context
from search.evaluation.reference import teacher_file
from search.evaluation.subject import Subject
from search.loop.rates import range_tested
from search.proposals.defaults import resolved
from search.study import machine
from search.study.files import load_json, save_json
from search.study.storage import open_study
from studies import fashion_mnist, imagenet_sample, photographs, speech_digits
from studies.fronts import SHARES
from studies.peer_methods import METHODS, Bench

if TYPE_CHECKING:
    from collections.abc import Callable

    from objectives import Examples
    from search import StudySpec

COSTS = ("macs", "bytes", "latency")


def residual() -> StudySpec:
    """Return the study of ResNet-8 on Fashion-MNIST, with its limit as a cost."""
    spec = fashion_mnist.deployed()
    (limit,) = spec.limits
    return replace(spec, name="peers-residual", objectives=(*spec.objectives, limit.objective), limits=())


def speech() -> StudySpec:
    """Return the study of DS-CNN on spoken digits with latency."""
    spec = speech_digits.study()
    latency = LatencyShare(Latency(spec.runtime, spec.teacher, spec.splits.validation.inputs[:1]))
    return replace(spec, name="peers-speech", objectives=(*spec.objectives, latency))


def efficientnet() -> StudySpec:
    """Return the study of EfficientNet-Lite0 with the search's recipe for all: a confirmation takes 20 CPU minutes."""
    spec = imagenet_sample.efficientnet()
    return replace(spec, confirmation=spec.recipe)


NETWORKS: dict[str, Callable[[], StudySpec]] = {
    "residual": residual,
    "mobilenet": photographs.mobilenet,
    "efficientnet": efficientnet,
    "speech": speech,
}


LABELLED_TESTS: dict[str, Callable[[], Examples]] = {  # where the study's labels are the teacher's answers
    "efficientnet": lambda: imagenet_sample.splits().test
}


def measured(network: str, method: str, seed: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Run a method on a network; return the record of its files."""
    spec = NETWORKS[network]()
    spec = replace(spec, objectives=(*spec.objectives, *spec.reported), reported=())  # all three costs are compared
    spec = resolved(replace(spec, seed=seed))
    context = Context(spec, Subject(spec, torch.device("cpu")))
    rate_folder = folder / "rate"
    rate_folder.mkdir()
    study = open_study(spec, rate_folder, None, create=True)
    reference = teacher_file(context.subject, spec.runtime, folder)
    examples = {"validation": spec.splits.validation, "test": spec.splits.test}
    if network in LABELLED_TESTS:
        examples["labelled test"] = LABELLED_TESTS[network]()
    bench = Bench(context, range_tested(study, context), reference, seconds, folder, examples)
    teacher = bench.row(reference, context.subject.finished, "teacher")
    started = time.process_time()
    rows = METHODS[method](bench)
    return {
        "network": network,
        "method": method,
        "seed": seed,
        "budget": seconds,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine.words(),
        "cpu_seconds": time.process_time() - started,
        "teacher": teacher,
        "rows": rows,
    }


def accuracies(record: dict[str, Any]) -> pd.DataFrame:
    """Return, for each cost and share, test accuracy of the best file on validation; NaN if none is that cheap."""
    teacher = record["teacher"] | {"latency": 1.0}  # every method has the teacher itself
    table = {}
    for cost in COSTS:
        best = []
        for share in SHARES:
            inside = [row for row in [teacher, *record["rows"]] if row[cost] <= share * teacher[cost]]
            best.append(max(inside, key=lambda row: row["validation"])["test"] if inside else np.nan)
        table[cost] = best
    return pd.DataFrame(table, index=[f"1/{1 / share:.0f}" for share in SHARES]).T


def tables(records: list[dict[str, Any]]) -> str:
    """Return, for each network, the mean accuracies of all methods at shares of the costs."""
    parts = []
    for network in dict.fromkeys(record["network"] for record in records):
        own = [record for record in records if record["network"] == network]
        methods = {
            method: [accuracies(record) for record in own if record["method"] == method]
            for method in dict.fromkeys(record["method"] for record in own)
        }
        means = pd.concat({name: sum(runs[1:], runs[0]) / len(runs) for name, runs in methods.items()})
        means = means.swaplevel().sort_index(level=0, sort_remaining=False).round(2)
        counts = {name: len(runs) for name, runs in methods.items()}
        parts.append(f"{network}: teacher {own[0]['teacher']['test']:.2f}; runs {counts}\n{means}")
    return "\n\n".join(parts)


def main() -> None:
    """Make every missing run, each in a process of its own; print the tables."""
    pd.set_option("display.width", None, "display.max_columns", None)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS, help="default: all")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS, help="default: all")
    parser.add_argument("--cpu-seconds", type=float, default=600.0, help="of each search (default: 600)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("runs/peers"), help="folder of the records")
    parser.add_argument("--only", nargs=3, metavar=("NETWORK", "METHOD", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.out / f"{options.cpu_seconds:g}"
    if options.only:
        network, method, seed = options.only
        torch.set_num_threads(1)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        with tempfile.TemporaryDirectory() as scratch:
            record = measured(network, method, int(seed), options.cpu_seconds, Path(scratch))
        save_json(folder / f"{network}-{method}-{seed}.json", record)
        return
    command = [sys.executable, "-m", "studies.peers", "--cpu-seconds", str(options.cpu_seconds), "--out"]
    failed = []
    for seed, network, method in itertools.product(range(options.seeds), options.networks, options.methods):
        if not (folder / f"{network}-{method}-{seed}.json").exists():
            only = [str(options.out), "--only", network, method, str(seed)]
            if subprocess.run([*command, *only], check=False).returncode:  # noqa: S603 - this command again
                failed.append(f"{method} on {network} with seed {seed}")
    records = [load_json(path) for path in sorted(folder.glob("*.json"))]
    sys.stdout.write(f"{tables(records)}\n")
    if failed:
        sys.exit(f"these runs failed: {', '.join(failed)}; the same command repeats them")


if __name__ == "__main__":
    main()
