"""The methods that `studies.peers` compares: what each makes of a network, as files with their accuracies and costs."""

from __future__ import annotations

import copy
import itertools
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from objectives import Macs, Top1
from objectives.runtimes import named
from objectives.runtimes.isolated_process import IsolatedProcess
from objectives.runtimes.runtime import import_extra, silence
from search.proposals.draft_records import draft_of
from search.proposals.table_losses import LARGEST_LOSS
from search.results.verification import FromFile
from search.study.storage import open_study
from search.training.fine_tuning import fine_tune
from spaces.network.copying import compressible_copy
from spaces.network.messages import first_line
from studies.fronts import SHARES
from studies.runtime_benchmark import CALIBRATION_INPUTS, by_onnx_runtime
from studies.search_benchmark import searched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor, nn

    from objectives import Examples
    from search import Recipe, StudySpec
    from search.evaluation.context import Context
    from search.training.learning_rate import Rate
    from spaces import Plan

NETWORKS_PER_METHOD = 8
PRUNED_SHARES = (0.9, 0.75, 0.6, 0.45, 0.3, 0.2, 0.1, 0.05)  # of multiply-adds
PRUNING_STEPS, MOST_PRUNED = 100, 0.95  # of Torch-Pruning: steps, and the largest share of channels
NNCF_OPSET = 17
TIMED_STEPS = 5  # of training, to find out how many fit in the time


@dataclass
class Bench:
    """What all methods share.

    Attributes
    ----------
    context, rate
        The context of the study, and the result of its range test.
    reference
        The teacher's file.
    seconds
        CPU seconds of a search.
    folder
        Folder for files.
    splits
        Examples on which files are measured, by name.
    """

    context: Context
    rate: Rate | None
    reference: Path
    seconds: float
    folder: Path
    splits: dict[str, Examples]

    @property
    def spec(self) -> StudySpec:
        """The study."""
        return self.context.spec

    def fine_tuned(self, model: nn.Module, extra_seconds: float, turn: int) -> nn.Module:
        """Train a network by the confirmation recipe, for as many CPU seconds longer; return its finished form."""
        recipe = self.context.with_rate(self.spec.confirmation_recipe, model, self.rate)
        if extra_seconds:
            train, timed = self.spec.splits.train, copy.deepcopy(model)
            short = recipe.of_steps(TIMED_STEPS, train)
            self._train(timed, short, turn)  # also computes the teacher's outputs for these examples
            started = time.process_time()
            self._train(timed, short, turn)
            step_seconds = (time.process_time() - started) / TIMED_STEPS
            recipe = recipe.of_steps(recipe.steps(train) + extra_seconds / step_seconds, train)
        self._train(model, recipe, turn)
        return self.context.subject.finish(model)

    def _train(self, model: nn.Module, recipe: Recipe, turn: int) -> None:
        recovery = self.context.usual_recovery
        fine_tune(model, self.context.teacher, self.spec.splits.train, recovery, recipe, self.spec.seed + turn)

    def row(self, path: Path, finished: nn.Module, words: str) -> dict[str, Any]:
        """Return accuracies and costs of a file, measured in a process of its own."""
        with IsolatedProcess(self.spec.runtime, path) as file:
            network = FromFile(file)
            accuracy = {name: Top1(examples)(network) for name, examples in self.splits.items()}
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
    """Search, fine-tune what is best at some share of some cost, export; see `_best_at_shares`."""
    folder = bench.folder / "search"
    found, _ = searched(bench.spec, bench.seconds, folder)
    if not found:
        return []
    context = found[0].context
    draft = draft_of(open_study(context.spec, folder, None, create=False))
    scored = [] if draft is None else [trial for trial in draft.trials if trial.values[0] < LARGEST_LOSS]
    candidates = [  # trained ones, and plans of the draft by their proxy loss
        *((one.plan, context.measure_costs(one.plan, context.build(one.plan), context.spec.costs)) for one in found),
        *((plan, _predicted(context, plan)) for plan in (context.plan(trial.params) for trial in scored)),
    ]
    # trained ones first
    ranks = [(1, one.accuracy) for one in found] + [(0, -trial.values[0]) for trial in scored]
    teacher = context.measure(context.subject.model, context.spec.costs)
    rows = []
    for turn, at in enumerate(_best_at_shares([costs for _, costs in candidates], ranks, teacher)):
        plan = candidates[at][0]
        rows.append(bench.exported(bench.fine_tuned(context.build(plan), 0.0, turn), plan.words()))
    return rows


def _predicted(context: Context, plan: Plan) -> dict[str, float]:
    costs = context.cost_model.predict(plan)
    return costs.exact | costs.modelled


def _best_at_shares(
    costs: list[dict[str, float]], ranks: list[tuple[int, float]], teacher: dict[str, float]
) -> list[int]:
    """Return the positions of the candidates that rank highest within a share of a cost, from the largest share on.

    They are eight at most.
    """
    chosen: dict[int, None] = {}
    for share, name in itertools.product(SHARES, teacher):
        inside = [at for at, own in enumerate(costs) if own.get(name, np.inf) <= share * teacher[name]]
        if inside:
            chosen[max(inside, key=ranks.__getitem__)] = None
    return list(chosen)[:NETWORKS_PER_METHOD]


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
    rows = _at_8_bits(bench, bench.context.subject.finished, "teacher")
    for turn, (share, model) in enumerate(pruned(bench)):
        words = f"pruned to {share:.2f} of the multiply-adds"
        finished = bench.fine_tuned(model, bench.seconds / NETWORKS_PER_METHOD, turn)
        rows += [bench.exported(finished, words), *_at_8_bits(bench, finished, words)]
    return rows


def pruned(bench: Bench) -> Iterator[tuple[float, nn.Module]]:
    """Yield Torch-Pruning's networks before fine-tuning, with their share of the teacher's multiply-adds."""
    tools: Any = import_extra("peers", "torch_pruning")
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
    nncf, onnx, converter = (import_extra("peers", name) for name in ("nncf", "onnx", "onnx.version_converter"))
    named("onnx").export(network, inputs, path)
    dataset = nncf.Dataset(list(inputs.split(1)), lambda example: {"x": example.numpy()})
    older = converter.convert_version(onnx.load(str(path)), NNCF_OPSET)
    onnx.save(nncf.quantize(older, dataset, subset_size=len(inputs)), str(path))


METHODS: dict[str, Callable[[Bench], list[dict[str, Any]]]] = {
    "ours": ours,
    "torch-pruning": torch_pruning,
    "uniform": uniform,
}
