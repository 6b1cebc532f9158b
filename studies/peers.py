"""Compare joint search with other tools, at equal CPU time and the same fine-tuning, from the exported files.

    python -m studies.peers --networks mobilenet --cpu-seconds 600 --seeds 1
    python -m studies.peers --networks residual mobilenet efficientnet speech --seeds 3 --out runs/peers

Needs the extra [peers] for the other tools. Networks: `residual` (ResNet-8 of Fashion-MNIST), `mobilenet` (half of
MobileNetV3-small on photographs of 64x64 pixels, trained here), `efficientnet` (EfficientNet-Lite0 with its ImageNet
weights at 224x224, whose accuracy is the agreement with the teacher) and `speech` (DS-CNN on spoken digits).

Methods
-------
- `ours`: a search of that many CPU seconds, then the fine-tuning of the members of its front that are the best on
  validation at some share of some cost, at most eight.
- `torch-pruning`: Torch-Pruning's global pruning of groups by their L2 norm to eight shares of multiply-adds, as
  floating point, by the runtime's own static int8, and by NNCF's.
- `uniform`: our plans that compress all layers equally, at eight strengths.

Every network is fine-tuned by the confirmation recipe of the study: the same loss with the teacher's answers, the same
optimizer, schedule and range test. The searches' CPU seconds go to fine-tuning in the methods that do not search, an
eighth to each network. Every file is measured on the whole validation and test split, in a process of its own; latency
is CPU time over that of the teacher's file, interleaved. The table shows, for each cost and share of the teacher's, the
test accuracy of the file with the best validation accuracy, the mean over seeds.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pandas as pd
import torch

from objectives import Latency, LatencyShare, Macs, Top1
from objectives.runtimes import named
from objectives.runtimes.isolated_process import IsolatedProcess
from objectives.runtimes.runtime import silence
from search.evaluation.context import Context
from search.evaluation.reference import teacher_file
from search.evaluation.subject import Subject
from search.loop.schedule import range_tested
from search.proposals.defaults import resolved
from search.results.verification import FromFile
from search.study import machine
from search.study.files import save_json
from search.study.storage import open_study
from search.training.fine_tuning import fine_tune
from spaces.network.copying import compressible_copy
from spaces.network.messages import first_line
from studies import fashion_mnist, imagenet_sample, photographs, speech_digits
from studies.runtime_benchmark import CALIBRATION_INPUTS, by_onnx_runtime
from studies.search_benchmark import searched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from search import Recipe, StudySpec
    from search.training.learning_rate import Rate

COSTS = ("macs", "bytes", "latency")
SHARES = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)  # of the teacher's cost
NETWORKS_PER_METHOD = 8
PRUNED_SHARES = (0.9, 0.75, 0.6, 0.45, 0.3, 0.2, 0.1, 0.05)  # of multiply-adds
PRUNING_STEPS, MOST_PRUNED = 100, 0.95  # of Torch-Pruning: steps, and the largest share of channels
SLACK = 1e-3  # of a share: the teacher's own file is timed anew
NNCF_OPSET = 17
TIMED_STEPS = 5  # of training, to find out how many fit in the time


def residual() -> StudySpec:
    """Return the study of ResNet-8 on Fashion-MNIST without its limit."""
    return replace(fashion_mnist.deployed(), name="peers-residual", limits=())


def speech() -> StudySpec:
    """Return the study of DS-CNN on spoken digits with latency."""
    spec = speech_digits.study()
    latency = LatencyShare(Latency(spec.runtime, spec.teacher, spec.splits.validation.inputs[:1]))
    top1, size, macs = spec.objectives
    return replace(spec, name="peers-speech", objectives=(top1, size, latency), reported=(macs,))


NETWORKS: dict[str, Callable[[], StudySpec]] = {
    "residual": residual,
    "mobilenet": photographs.mobilenet,
    "efficientnet": imagenet_sample.efficientnet,
    "speech": speech,
}


@dataclass
class Bench:
    """What all methods share: the context, the learning rate, the teacher's file, the time and a folder."""

    context: Context
    rate: Rate | None
    reference: Path
    seconds: float
    folder: Path

    @property
    def spec(self) -> StudySpec:
        """The study."""
        return self.context.spec

    def fine_tuned(self, model: nn.Module, extra_seconds: float, turn: int) -> nn.Module:
        """Train a network by the confirmation recipe, for as many CPU seconds longer; return its finished form."""
        recipe = self.context.with_rate(self.spec.confirmation_recipe, model, self.rate)
        if extra_seconds:
            steps = recipe.steps(len(self.spec.splits.train))
            started = time.process_time()
            self._train(model, recipe.longer(TIMED_STEPS / steps), turn)
            step_seconds = (time.process_time() - started) / TIMED_STEPS
            recipe = recipe.longer(1 + extra_seconds / step_seconds / steps)
        self._train(model, recipe, turn)
        return self.context.subject.finish(model)

    def _train(self, model: nn.Module, recipe: Recipe, turn: int) -> None:
        recovery = self.context.usual_recovery
        fine_tune(model, self.context.teacher, self.spec.splits.train, recovery, recipe, self.spec.seed + turn)

    def row(self, path: Path, finished: nn.Module, words: str) -> dict[str, Any]:
        """Return accuracies and costs of a file, measured in a process of its own."""
        with IsolatedProcess(self.spec.runtime, path) as file:
            network = FromFile(file)
            accuracy = {
                name: Top1(examples)(network)
                for name, examples in (("validation", self.spec.splits.validation), ("test", self.spec.splits.test))
            }
            ratio = file.compare(self.reference, self.spec.example()[:1]).ratio
        macs = Macs(self.spec.splits.validation.inputs)(finished)
        return {**accuracy, "bytes": path.stat().st_size, "latency": ratio, "macs": macs, "words": words}

    def exported(self, finished: nn.Module, words: str) -> dict[str, Any]:
        """Export a finished network and return its row."""
        path = self.folder / f"file.{self.spec.runtime.suffix}"
        with silence(), torch.no_grad():
            self.spec.runtime.export(finished, self.spec.example(), path)
        return self.row(path, finished, words)


def ours(bench: Bench) -> list[dict[str, Any]]:
    """Search, fine-tune what is best at some share of some cost, export."""
    found, _ = searched(bench.spec, bench.seconds, bench.folder / "search")
    names = [objective.name for objective in bench.spec.objectives]
    context = found[0].context
    teacher = context.measure(context.subject.model, bench.spec.costs)
    chosen: dict[int, None] = {}
    values = [context.measure_costs(member.plan, context.build(member.plan), bench.spec.costs) for member in found]
    for name in (*names[1:], *(objective.name for objective in bench.spec.reported)):
        for share in SHARES:
            inside = [at for at, costs in enumerate(values) if costs[name] <= share * teacher[name]]
            if inside:
                chosen[max(inside, key=lambda at: found[at].accuracy)] = None
    rows = []
    for turn, at in enumerate(list(chosen)[:NETWORKS_PER_METHOD]):
        member = found[at]
        student = context.build(member.plan)
        recipe = context.with_rate(bench.spec.confirmation_recipe, student, bench.rate)
        context.train(student, member.plan, recipe, bench.spec.seed + turn)
        rows.append(bench.exported(context.subject.finish(student), member.plan.words()))
    return rows


def uniform(bench: Bench) -> list[dict[str, Any]]:
    """Compress all layers equally at eight strengths, fine-tune, export."""
    space, anatomy = bench.spec.space, bench.context.subject.anatomy
    rows = []
    for turn, strength in enumerate(np.linspace(0, 1, NETWORKS_PER_METHOD + 1)[1:]):
        plan = bench.context.plan(space.uniform(anatomy, (float(strength),) * len(space.steps)))
        finished = bench.fine_tuned(bench.context.build(plan), bench.seconds / NETWORKS_PER_METHOD, turn)
        rows.append(bench.exported(finished, plan.words()))
    return rows


def torch_pruning(bench: Bench) -> list[dict[str, Any]]:
    """Prune by Torch-Pruning, fine-tune, and export as floating point and at 8 bits; the teacher at 8 bits, too."""
    teacher = bench.context.subject.finished
    rows = [bench.exported(teacher, "teacher"), *_at_8_bits(bench, teacher, "teacher")]
    for turn, (share, model) in enumerate(pruned(bench)):
        words = f"pruned to {share:.2f} of the multiply-adds"
        finished = bench.fine_tuned(model, bench.seconds / NETWORKS_PER_METHOD, turn)
        rows += [bench.exported(finished, words), *_at_8_bits(bench, finished, words)]
    return rows


def pruned(bench: Bench) -> Iterator[tuple[float, nn.Module]]:
    """Yield Torch-Pruning's networks before fine-tuning, with their share of the teacher's multiply-adds."""
    tools: Any = importlib.import_module("torch_pruning")
    example = bench.spec.example()[:1]
    for wanted in PRUNED_SHARES:
        model = compressible_copy(bench.context.subject.model)
        layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
        pruner = tools.pruner.BasePruner(
            model,
            example,
            importance=tools.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=MOST_PRUNED,
            iterative_steps=PRUNING_STEPS,
            ignored_layers=layers[-1:],
            round_to=bench.spec.runtime.channels,
        )
        whole = macs = tools.utils.count_ops_and_params(model, example)[0]
        for _ in range(PRUNING_STEPS):
            if macs <= wanted * whole:
                break
            pruner.step()
            macs = tools.utils.count_ops_and_params(model, example)[0]
        yield macs / whole, model


def _at_8_bits(bench: Bench, finished: nn.Module, words: str) -> list[dict[str, Any]]:
    """Return the rows of a network that the runtime's own tools and NNCF quantize."""
    inputs = bench.spec.example()[:CALIBRATION_INPUTS]
    rows = []
    for name, quantize in (("int8", by_onnx_runtime), ("NNCF", by_nncf)):
        path = bench.folder / "file.onnx"
        try:
            with silence(), torch.no_grad():
                quantize(finished, inputs, path)
        except Exception as error:  # noqa: BLE001 - another tool's failure is one of its results
            sys.stderr.write(f"{name} failed on {words}: {first_line(error)}\n")
            continue
        rows.append(bench.row(path, finished, f"{words}, {name}"))
    return rows


def by_nncf(network: nn.Module, inputs: Tensor, path: Path) -> None:
    """Quantize a network by NNCF's static 8 bits, in opset 17: of later ones it writes files that do not load."""
    nncf, onnx, converter = (importlib.import_module(name) for name in ("nncf", "onnx", "onnx.version_converter"))
    named("onnx").export(network, inputs, path)
    dataset = nncf.Dataset(list(inputs.split(1)), lambda example: {"x": example.numpy()})
    older = converter.convert_version(onnx.load(str(path)), NNCF_OPSET)
    onnx.save(nncf.quantize(older, dataset, subset_size=len(inputs)), str(path))


METHODS: dict[str, Callable[[Bench], list[dict[str, Any]]]] = {
    "ours": ours,
    "torch-pruning": torch_pruning,
    "uniform": uniform,
}


def measured(network: str, method: str, seed: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Run a method on a network; return the record of its files."""
    spec = resolved(replace(NETWORKS[network](), seed=seed))
    context = Context(spec, Subject(spec, torch.device("cpu")))
    rate_folder = folder / "rate"
    rate_folder.mkdir()
    study = open_study(spec, rate_folder, None, create=True)
    reference = teacher_file(context.subject, spec.runtime, folder)
    bench = Bench(context, range_tested(study, context), reference, seconds, folder)
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
    teacher = record["teacher"]
    table = {}
    for cost in COSTS:
        best = []
        for share in SHARES:
            inside = [row for row in record["rows"] if row[cost] <= share * teacher[cost] * (1 + SLACK)]
            best.append(max(inside, key=lambda row: row["validation"])["test"] if inside else np.nan)
        table[cost] = best
    return pd.DataFrame(table, index=[f"1/{1 / share:.0f}" for share in SHARES]).T


def tables(records: list[dict[str, Any]]) -> str:
    """Return, for each network, the mean accuracies of all methods at shares of the costs."""
    parts = []
    for network in dict.fromkeys(record["network"] for record in records):
        own = [record for record in records if record["network"] == network]
        teacher = own[0]["teacher"]
        by_method = {
            method: pd.concat([accuracies(record) for record in own if record["method"] == method])
            for method in dict.fromkeys(record["method"] for record in own)
        }
        means = pd.concat({name: table.groupby(level=0).mean() for name, table in by_method.items()})
        means = means.swaplevel().sort_index(level=0, sort_remaining=False).round(2)
        counts = {name: len(table) // len(COSTS) for name, table in by_method.items()}
        parts.append(f"{network}: teacher {teacher['test']:.2f}; runs {counts}\n{means}")
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
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    sys.stdout.write(f"{tables(records)}\n")
    if failed:
        sys.exit(f"these runs failed: {', '.join(failed)}; the same command repeats them")


if __name__ == "__main__":
    main()
