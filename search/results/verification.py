"""Verify an exported file: read it back from disk and compare it with the network that was exported."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from objectives import Metric
from objectives.examples import outputs
from objectives.layers import inputs_of_file
from objectives.runtimes.isolated_process import IsolatedProcess
from search.study import machine
from search.study.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from search.study.spec import StudySpec

# Tolerances of a verification; they are chosen, not fitted.
LARGEST_TOP1_DIFFERENCE = 0.5  # percentage points between file and torch network; one sample may always differ
LARGEST_RELATIVE_DIFFERENCE = 0.01  # share of a metric without classes; share of the standard deviation of its outputs
FLOAT_TOLERANCE = 1e-9  # in the unit of the difference: a difference equal to the bound is allowed
LEAST_AGREEMENT = 99.0  # percent of the samples (outputs, without classes) that must agree


class Disagreement(UserError):
    """A file whose outputs differ from those of its network by more than the tolerances."""


class FromFile(nn.Module):
    """An exported file as a module, so that every metric can be measured on it.

    Parameters
    ----------
    run
        The function that `load` of a runtime returned.
    """

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs of the file."""
        return self.run(inputs)


def verify(model: nn.Module, path: Path, spec: StudySpec, reference: Path) -> dict[str, Any]:
    """Load a file in a new process, run the validation split through it, and compare it with the torch network.

    Parameters
    ----------
    model
        The trained network, in evaluation mode, on the CPU.
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
        equal answers, the signal-to-quantization-noise ratio in dB, bytes, the shape of one input of the file, latency,
        and the machine.

    Raises
    ------
    Disagreement
        With class labels: if top-1 differs by more than 0.5 points and more than one sample, or the predicted class
        differs on more than 1% of the samples. Otherwise: if a metric differs by more than 1% of itself, or more than
        1% of the outputs differ by more than 1% of their standard deviation.
    """
    with IsolatedProcess(spec.runtime, path) as file:
        return _verified(model, file, path, spec, reference)


def _verified(model: nn.Module, file: IsolatedProcess, path: Path, spec: StudySpec, reference: Path) -> dict[str, Any]:
    """Return the record of a file that runs in another process; see `verify`."""
    examples = spec.splits.validation
    file_model = FromFile(lambda inputs: file(inputs_of_file(model, inputs)))
    first = spec.example()[:1]
    taken = inputs_of_file(model, first)
    expected, actual = outputs(model, examples.inputs), outputs(file_model, examples.inputs)
    record: dict[str, Any] = {"runtime": spec.runtime.name, "samples": len(examples)}
    for metric in spec.measured:
        if isinstance(metric, Metric):
            measure = metric.on(examples)
            record |= {f"{metric.name}_torch": measure(model), f"{metric.name}_file": measure(file_model)}
    if examples.classified:
        record |= {"top1_torch": _top1(expected, examples.labels), "top1_file": _top1(actual, examples.labels)}
    record |= {
        "agreement_percent": _agreement(expected, actual, classified=examples.classified),
        "sqnr_db": _sqnr(expected, actual),
        "file_bytes": path.stat().st_size,
        "teacher_file_bytes": reference.stat().st_size,
        "file_input_shape": list(taken.shape[1:]),
        "latency": dataclasses.asdict(file.compare(reference, first, own=taken)),
        "machine": machine.words(),
    }
    _require_agreement(record, classified=examples.classified)
    return record


def record_words(record: dict[str, Any]) -> str:
    """Describe a verification record in one line."""
    latency = record["latency"]
    names = [name.removesuffix("_file") for name in record if name.endswith("_file")]
    names = ["top1"] if "top1" in names else names
    shown = ", ".join(
        f"{'top-1' if name == 'top1' else name} {_number(name, record[f'{name}_file'])} from the file "
        f"({_number(name, record[f'{name}_torch'])} in torch, agreement {record['agreement_percent']:.2f}% of "
        f"{record['samples']})"
        for name in names
    )
    return (
        f"{shown}, {record['file_bytes']:,} bytes (teacher {record['teacher_file_bytes']:,}), latency "
        f"{latency['ratio']:.2f}x the teacher's ({latency['cpu_ms']:.3f} ms, batch {latency['batch']}, "
        f"{latency['threads']} thread){', on a noisy machine' if latency['noisy'] else ''}"
    )


def _number(name: str, value: float) -> str:
    """Format a metric; top-1 and top-k are percentages."""
    return f"{value:.2f}%" if name.startswith("top") else f"{value:.5g}"


def _require_agreement(record: dict[str, Any], *, classified: bool) -> None:
    """Raise `Disagreement` if the values of file and torch network differ by more than the tolerances."""
    pairs = {name.removesuffix("_file"): (value, record[name.removesuffix("_file") + "_torch"])
             for name, value in record.items() if name.endswith("_file")}  # fmt: skip
    if classified:
        pairs = {"top1": pairs["top1"]}
        difference = abs(pairs["top1"][0] - pairs["top1"][1])
        bound = max(LARGEST_TOP1_DIFFERENCE, 100 / record["samples"])
    else:
        difference = max((abs(a - b) / max(abs(b), 1e-12) for a, b in pairs.values()), default=0.0)
        bound = LARGEST_RELATIVE_DIFFERENCE
    if difference > bound + FLOAT_TOLERANCE or record["agreement_percent"] < LEAST_AGREEMENT:
        shown = ", ".join(f"{name} is {a:.5g} instead of {b:.5g}" for name, (a, b) in pairs.items())
        raise Disagreement(
            f"the exported file must give the outputs of the torch network, but its {shown} and they agree on "
            f"{record['agreement_percent']:.2f}% of {record['samples']} samples; nothing was written; please report "
            "the plan"
        )


def _top1(scores: Tensor, labels: Tensor) -> float:
    """Return the percentage of samples whose highest score is that of the label."""
    return 100 * float((scores.argmax(1) == labels).double().mean())


def _agreement(expected: Tensor, actual: Tensor, *, classified: bool) -> float:
    """Return the percentage of equal predicted classes, or of outputs within 1% of their standard deviation."""
    if classified:
        return 100 * float((expected.argmax(1) == actual.argmax(1)).double().mean())
    tolerance = LARGEST_RELATIVE_DIFFERENCE * expected.double().std()
    return 100 * float(((expected - actual).abs() <= tolerance).double().mean())


def _sqnr(expected: Tensor, actual: Tensor) -> float:
    """Return the signal-to-quantization-noise ratio in dB."""
    noise = float((expected - actual).double().pow(2).sum())
    signal = float(expected.double().pow(2).sum())
    return float(10 * torch.log10(torch.tensor(signal / max(noise, 1e-30))))
