"""Verify an exported file: read it back from disk and compare it with the network that was exported."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from objectives import Agreement, Loss, Metric, Top1, TopK
from objectives.arena import HasArena
from objectives.runtimes.isolated_process import IsolatedProcess
from objectives.runtimes.versions import HasVersions
from objectives.trees import at, leaves, rebuilt, run
from search.evaluation.comparison import Comparison, Rounded
from search.results.file_at_sizes import ensure_free_sizes, signatures_record
from search.results.file_records import ARENA
from search.study import machine
from search.study.errors import UserError
from spaces import Imitations

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from objectives import Data
    from objectives.trees import Tree
    from search.results.interface import Interface
    from search.study.spec import StudySpec

OLDEST_VERSION = "oldest_version"  # key of a record: of the runtime, of those that were tried
# Tolerances of a verification; they are chosen, not fitted.
LARGEST_TOP1_DIFFERENCE = 0.5  # percentage points between file and torch network; one sample may always differ
LARGEST_RELATIVE_DIFFERENCE = 0.01  # share of a metric without classes
ROUNDING_SHARE = 2.0  # times the change of a metric by 8-bit rounding that is allowed, if that is more
ROUNDING_NOISE_DB = 6.0  # below the noise of a rounded network against itself that a file may be: four times as much
FLOAT_TOLERANCE = 1e-9  # in the unit of the difference: a difference equal to the bound is allowed
LEAST_AGREEMENT = 99.0  # percent of the samples whose class must be the same


class Disagreement(UserError):
    """A file whose outputs differ from those of its network by more than the tolerances."""


class FromFile(nn.Module):
    """An exported file as a module, so that every metric can be measured on it.

    Parameters
    ----------
    run
        The function that `load` of a runtime returned.
    structure
        An output of the network, whose structure the outputs get; None for one tensor.
    """

    def __init__(self, run: Callable[[Tree], Tree], structure: Tree = None) -> None:
        super().__init__()
        self.run, self.structure = run, structure

    def forward(self, *inputs: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever the network takes
        """Return the outputs of the file."""
        found = self.run(named or (inputs[0] if len(inputs) == 1 else inputs))
        return found if self.structure is None else rebuilt(self.structure, leaves(found))


def verify(used: Interface, path: Path, spec: StudySpec, reference: Path) -> dict[str, Any]:
    """Load a file in a new process, run the validation split through it, and compare it with the torch network.

    Parameters
    ----------
    used
        The trained network, in evaluation mode, on the CPU, and what the file takes and gives.
    path
        Its exported file.
    spec
        The study; its validation split, metrics and runtime are used.
    reference
        The teacher's file, to compare the latency with.

    Returns
    -------
    dict
        Every metric of the study as `<name>_torch` and `<name>_file`, for class labels also `top1`; the percentage of
        equal answers, the signal-to-quantization-noise ratio in dB, bytes, for TFLite Micro those of its RAM, the
        oldest version of the runtime that takes the file, as far as older ones were tried, types, shapes and grids of
        the inputs and outputs of the file and of each of its entry points, if it has several, latency, and the machine.

    Raises
    ------
    Disagreement
        With class labels: if top-1 differs by more than 0.5 points and more than one sample, or the predicted class
        differs on more than 1% of the samples; for a network that rounds its inputs, if that is more, on twice as many
        as it differs from itself with results that differ in their last bits. Otherwise: if a metric differs by more
        than 1% of itself and more than twice what rounding every tensor to 8 bits changes, or if the outputs have more
        than four times the noise of such rounding. Networks without rounded inputs may have 1% of the standard
        deviation of the outputs as noise.
    """
    with IsolatedProcess(spec.runtime, path) as file:
        return _verified(used, file, path, spec, reference)


def _verified(used: Interface, file: IsolatedProcess, path: Path, spec: StudySpec, reference: Path) -> dict[str, Any]:
    """Return the record of a file that runs in another process; see `verify`."""
    examples, model = used.examples, used.network
    first = examples.example()
    with torch.no_grad():
        file_model = FromFile(lambda inputs: used.give(file(used.take(inputs))), run(model, first))
    comparison = Comparison(model, of_classes=_has_classes(spec), coded=used.coded())
    for inputs, labels in examples.batches():
        with torch.no_grad():
            comparison.add(inputs, run(model, inputs), run(file_model, inputs), labels)
    record: dict[str, Any] = {"runtime": spec.runtime.name, "samples": len(examples)}
    for metric in spec.measured:
        if isinstance(metric, Metric):
            measure = metric.on(examples)
            record |= {f"{metric.name}_torch": measure(model), f"{metric.name}_file": measure(file_model)}
    record |= {
        **comparison.record(),
        "file_bytes": path.stat().st_size,
        **({ARENA: spec.runtime.arena_bytes(path)} if isinstance(spec.runtime, HasArena) else {}),
        **({OLDEST_VERSION: spec.runtime.oldest_version(path)} if isinstance(spec.runtime, HasVersions) else {}),
        "teacher_file_bytes": reference.stat().st_size,
        **used.record(path, spec.runtime, file),
        "latency": dataclasses.asdict(file.compare(reference, at(spec.example(), slice(1)), own=used.take(first))),
        "machine": machine.words(),
    }
    if record["agreement_percent"] is not None and not _classes_agree(record):
        record |= comparison.of_itself(examples)
    require_agreement(record, used, spec)
    record |= signatures_record(used, path, spec.runtime, file)
    ensure_free_sizes(used, spec.runtime, file)
    return record


def _has_classes(spec: StudySpec) -> bool:
    """Return whether integer labels may be classes; with a loss of its own they may be identities of embeddings."""
    of_classes = any(isinstance(one, Top1 | TopK | Loss | Agreement) for one in spec.measured)
    return of_classes or not isinstance(spec.space.recovery, Imitations)


def record_words(record: dict[str, Any]) -> str:
    """Describe a verification record in one line."""
    latency = record["latency"]
    version = f"for {record['runtime']} {record[OLDEST_VERSION]} and newer, " if OLDEST_VERSION in record else ""
    arena = f"{record[ARENA]:,} bytes of RAM, " if ARENA in record else ""
    names = [name.removesuffix("_file") for name in record if name.endswith("_file")]
    names = ["top1"] if "top1" in names else names
    shown = ", ".join(
        f"{'top-1' if name == 'top1' else name} {_number(name, record[f'{name}_file'])} from the file "
        f"({_number(name, record[f'{name}_torch'])} in torch, {_agreement_words(record)})"
        for name in names
    )
    return (
        f"{shown}, {record['file_bytes']:,} bytes (teacher {record['teacher_file_bytes']:,}), {arena}{version}latency "
        f"{latency['ratio']:.2f}x the teacher's ({latency['cpu_ms']:.3f} ms, batch {latency['batch']}, "
        f"{latency['threads']} thread){', on a noisy machine' if latency['noisy'] else ''}"
    )


def _number(name: str, value: float) -> str:
    """Format a metric; top-1 and top-k are percentages."""
    return f"{value:.2f}%" if name.startswith("top") else f"{value:.5g}"


def _agreement_words(record: dict[str, Any]) -> str:
    if record["agreement_percent"] is None:
        return f"signal to noise {record['sqnr_db']:.0f} dB on {record['samples']}"
    return f"agreement {record['agreement_percent']:.2f}% of {record['samples']}"


def require_agreement(record: dict[str, Any], used: Interface, spec: StudySpec) -> None:
    """Raise `Disagreement` if the values of file and torch network differ by more than the tolerances."""
    pairs = {name.removesuffix("_file"): (value, record[name.removesuffix("_file") + "_torch"])
             for name, value in record.items() if name.endswith("_file")}  # fmt: skip
    if record["agreement_percent"] is not None:
        pairs = {"top1": pairs["top1"]}
        by_rounding = _rounding_differs(record)
        agrees, least = _classes_agree(record, by_rounding), min(LEAST_AGREEMENT, 100 - by_rounding)
        how = f"agree on {record['agreement_percent']:.2f}% of {record['samples']} samples, of at least {least:.2f}%"
    else:
        metrics = {one.name: one for one in spec.measured if isinstance(one, Metric)}
        agrees = record["sqnr_db"] >= record["allowed_sqnr_db"] - FLOAT_TOLERANCE
        agrees = agrees and all(
            is_near(metrics[name], *values, used.network, used.examples) for name, values in pairs.items()
        )
        how = f"have a signal-to-noise ratio of {record['sqnr_db']:.1f} dB, of at least {record['allowed_sqnr_db']:.1f}"
    if not agrees:
        shown = ", ".join(f"{name} is {a:.5g} instead of {b:.5g}" for name, (a, b) in pairs.items())
        raise Disagreement(
            f"the exported file must give the outputs of the torch network, but its {shown} and they {how}; nothing "
            "was written; please report the plan"
        )


def _classes_agree(record: dict[str, Any], by_rounding: float = 0.0) -> bool:
    """Return whether classes and top-1 differ by at most the tolerances, and what rounding changes in percent."""
    difference, least = abs(record["top1_torch"] - record["top1_file"]), min(LEAST_AGREEMENT, 100 - by_rounding)
    bound = max(LARGEST_TOP1_DIFFERENCE, 100 / record["samples"], by_rounding)
    return bool(difference <= bound + FLOAT_TOLERANCE and record["agreement_percent"] >= least - FLOAT_TOLERANCE)


def _rounding_differs(record: dict[str, Any]) -> float:
    """Return on how many percent of the samples rounding alone may give another class; 0 where that was not asked.

    It is 0 too if the file has more noise.

    A deep network of integers computed twice, with sums that differ in their last bits, differs from itself as much
    as rounding does: a number on the border between two codes moves others in the next layer (studies/LOG.md).
    """
    if "own_sqnr_db" not in record or record["sqnr_db"] < record["own_sqnr_db"] - ROUNDING_NOISE_DB:
        return 0.0
    return float(ROUNDING_SHARE * (100 - record["own_agreement_percent"]))


def is_near(metric: Metric, found: float, expected: float, model: nn.Module, examples: Data) -> bool:
    """Return whether a metric of a network or its file is the expected one, but for what rounding to 8 bits changes."""
    difference = abs(found - expected)
    if difference <= LARGEST_RELATIVE_DIFFERENCE * abs(expected) + FLOAT_TOLERANCE:
        return True
    if not math.isfinite(difference):
        return False
    return difference <= ROUNDING_SHARE * abs(metric.on(examples)(Rounded(model)) - expected)
