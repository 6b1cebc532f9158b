"""Read an exported file back from disk and compare it with the network that it came from."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from objectives import Metric
from objectives.examples import outputs
from objectives.runtimes.isolated_process import IsolatedProcess
from search.study import machine
from search.study.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from search.study.spec import StudySpec

LARGEST_LOSS = 0.5  # points of top-1 between the file and the torch network; one answer of few is more, and allowed
LARGEST_SHARE = 0.01  # of a metric of another task, and of the spread of its outputs
ROUNDING = 1e-9
LEAST_AGREEMENT = 99.0  # percent of the answers that must be the same


class Disagreement(UserError):
    """The file does not answer as the network does."""


class FromFile(nn.Module):
    """A file as a network, so that every metric can be measured on it.

    Parameters
    ----------
    run
        What a runtime's `load` returned.
    """

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the file answers."""
        return self.run(inputs)


def verify(model: nn.Module, path: Path, spec: StudySpec, reference: Path) -> dict[str, Any]:
    """Load the file in a fresh process, run the whole validation split through it, and compare with the torch network.

    Parameters
    ----------
    model
        The trained network, in evaluation mode, on the CPU.
    path
        Its file.
    spec
        The study: its validation split, metrics and runtime.
    reference
        The teacher's file.

    Returns
    -------
    dict
        Every metric of the study as `<name>_torch` and `<name>_file`, for class labels `top1` too; the share of equal
        answers, bytes, latency.

    Raises
    ------
    Disagreement
        If top-1 differs by more than 0.5 points and one answer, or the first class on more than 1% of the samples;
        without classes, if a metric differs by more than 1% of itself or more than 1% of the outputs by more than 1% of
        their spread.
    """
    with IsolatedProcess(spec.runtime, path) as file:
        return _verified(model, file, path, spec, reference)


def _verified(model: nn.Module, file: IsolatedProcess, path: Path, spec: StudySpec, reference: Path) -> dict[str, Any]:
    examples = spec.splits.validation
    read = FromFile(file)
    want, got = outputs(model, examples.inputs), outputs(read, examples.inputs)
    record: dict[str, Any] = {"runtime": spec.runtime.name, "samples": len(examples)}
    for metric in spec.measured:
        if isinstance(metric, Metric):
            on = metric.on(examples)
            record |= {f"{metric.name}_torch": on(model), f"{metric.name}_file": on(read)}
    if examples.classified:
        record |= {"top1_torch": _top1(want, examples.labels), "top1_file": _top1(got, examples.labels)}
    record |= {
        "agreement_percent": _agreement(want, got, classified=examples.classified),
        "sqnr_db": _sqnr(want, got),
        "file_bytes": path.stat().st_size,
        "teacher_file_bytes": reference.stat().st_size,
        "latency": dataclasses.asdict(file.compare(reference, spec.example()[:1])),
        "machine": machine.words(),
    }
    _must_agree(record, classified=examples.classified)
    return record


def record_words(record: dict[str, Any]) -> str:
    """Word a verification in one line."""
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
    return f"{value:.2f}%" if name.startswith("top") else f"{value:.5g}"


def _must_agree(record: dict[str, Any], *, classified: bool) -> None:
    pairs = {name.removesuffix("_file"): (value, record[name.removesuffix("_file") + "_torch"])
             for name, value in record.items() if name.endswith("_file")}  # fmt: skip
    if classified:
        pairs = {"top1": pairs["top1"]}
        worst, bound = abs(pairs["top1"][0] - pairs["top1"][1]), max(LARGEST_LOSS, 100 / record["samples"])
    else:
        worst, bound = max((abs(a - b) / max(abs(b), 1e-12) for a, b in pairs.values()), default=0.0), LARGEST_SHARE
    if worst > bound + ROUNDING or record["agreement_percent"] < LEAST_AGREEMENT:
        shown = ", ".join(f"{name} is {a:.5g} instead of {b:.5g}" for name, (a, b) in pairs.items())
        raise Disagreement(
            f"the exported file must answer as the network does, but its {shown} and they agree on "
            f"{record['agreement_percent']:.2f}% of {record['samples']} samples; nothing was written; please report "
            "the plan"
        )


def _top1(scores: Tensor, labels: Tensor) -> float:
    return 100 * float((scores.argmax(1) == labels).double().mean())


def _agreement(want: Tensor, got: Tensor, *, classified: bool) -> float:
    """Return the percentage of equal first classes, or of outputs that differ by at most 1% of their spread."""
    if classified:
        return 100 * float((want.argmax(1) == got.argmax(1)).double().mean())
    return 100 * float(((want - got).abs() <= LARGEST_SHARE * want.double().std()).double().mean())


def _sqnr(want: Tensor, got: Tensor) -> float:
    noise = float((want - got).double().pow(2).sum())
    signal = float(want.double().pow(2).sum())
    return float(10 * torch.log10(torch.tensor(signal / max(noise, 1e-30))))
