"""How much smaller and faster a study's files are than what the runtime's own converter makes of the teacher.

    python -m studies.runtime_benchmark studies/digits.py:study
    python -m studies.runtime_benchmark studies/digits.py:study --set runtime=litert

The study must have been run. Beside its verified files: the teacher in floating point, and the teacher at 8 bits as
the runtime's own tools round it after training (ONNX Runtime's quantize_static; PT2E for LiteRT and ExecuTorch), on as
many calibration inputs. All are measured on the whole validation split, each in a process of its own; latency is CPU
time over the teacher's file, interleaved. `runtime_benchmark.csv` in the study's folder says the same of every file,
with the day and the machine.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from objectives import Top1
from objectives.runtimes import RUNTIMES, named
from objectives.runtimes.isolated_process import IsolatedProcess
from objectives.runtimes.runtime import silence
from search.evaluation.reference import teacher_file
from search.evaluation.subject import Subject
from search.proposals.defaults import resolved
from search.results.file_records import with_records
from search.results.verification import FromFile
from search.study import machine
from search.study.files import folder_of
from search.study.front import front
from search.study.loader import load
from search.study.storage import open_study

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from objectives.runtimes import Runtime
    from search import StudySpec

SEEN = 128  # calibration inputs
# what a member is to reach: points lost at most, share of the 8-bit file, share of the teacher's time
POINTS, BYTES, TIME = 1.0, 0.25, 0.5


def by_onnx_runtime(teacher: nn.Module, inputs: Tensor, path: Path) -> None:
    """Round the teacher by quantize_static, weights by channel."""
    tools: Any = importlib.import_module("onnxruntime.quantization")

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc]
        """Gives one input after another."""

        def __init__(self) -> None:
            self.left: Iterator[Tensor] = iter(inputs.split(1))

        def get_next(self) -> dict[str, Any] | None:
            """Return the next input, None after the last."""
            one = next(self.left, None)
            return None if one is None else {"x": one.numpy()}

    whole = path.with_suffix(".float")
    named("onnx").export(teacher, inputs, whole)
    tools.quantize_static(str(whole), str(path), Reader(), per_channel=True)


def by_litert(teacher: nn.Module, inputs: Tensor, path: Path) -> None:
    """Round the teacher by PT2E with LiteRT's quantizer, weights by channel."""
    tools: Any = importlib.import_module("litert_torch.quantize.pt2e_quantizer")
    config: Any = importlib.import_module("litert_torch.quantize.quant_config")
    quantizer = tools.PT2EQuantizer().set_global(tools.get_symmetric_quantization_config(is_per_channel=True))
    rounded = _by_pt2e(teacher, inputs, quantizer, fold_quantize=False)
    converted = importlib.import_module("litert_torch").convert(
        rounded, (inputs[:1],), quant_config=config.QuantConfig(pt2e_quantizer=quantizer)
    )
    converted.export(str(path))


def by_executorch(teacher: nn.Module, inputs: Tensor, path: Path) -> None:
    """Round the teacher by PT2E with XNNPACK's quantizer, weights by channel."""
    tools: Any = importlib.import_module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    quantizer = tools.XNNPACKQuantizer().set_global(tools.get_symmetric_quantization_config(is_per_channel=True))
    program = torch.export.export(_by_pt2e(teacher, inputs, quantizer), (inputs[:1],), strict=False)
    backend: Any = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    edge = importlib.import_module("executorch.exir").to_edge_transform_and_lower(
        program, partitioner=[backend.XnnpackPartitioner()]
    )
    path.write_bytes(bytes(edge.to_executorch().buffer))


def _by_pt2e(teacher: nn.Module, inputs: Tensor, quantizer: object, **settings: bool) -> nn.Module:
    tools: Any = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    program = torch.export.export(teacher, (inputs[:1],), strict=False)
    prepared = tools.prepare_pt2e(program.module(check_guards=False), quantizer)
    for one in inputs.split(1):
        prepared(one)
    return tools.convert_pt2e(prepared, **settings)  # type: ignore[no-any-return]


BY: dict[str, Callable[[nn.Module, Tensor, Path], None]] = {
    "onnx": by_onnx_runtime,
    "litert": by_litert,
    "executorch": by_executorch,
}


def measured(runtime: Runtime, path: Path, reference: Path, spec: StudySpec) -> dict[str, float]:
    """Return validation top-1, bytes and the latency ratio of a file, measured in a process of its own."""
    with IsolatedProcess(runtime, path) as file:
        top1 = Top1(spec.splits.validation)(FromFile(file))
        ratio = file.compare(reference, spec.example()[:1]).ratio
    return {"top1": top1, "bytes": path.stat().st_size, "latency_ratio": ratio}


def verdict(rows: dict[str, dict[str, float]]) -> str:
    """Say which member reaches all that it is to, or how near the nearest comes."""
    teacher, rounded = rows["teacher"], rows["8 bits"]
    shares = {
        name: (
            max(0.0, teacher["top1"] - row["top1"]) / POINTS,
            row["bytes"] / rounded["bytes"] / BYTES,
            row["latency_ratio"] / TIME,
        )
        for name, row in rows.items()
        if row is not teacher and row is not rounded
    }
    if not shares:
        return "no member is verified on this runtime: slimfront confirm --runtime NAME --seeds 0 does it"
    best = min(shares, key=lambda name: max(shares[name]))
    lost, size, time = shares[best]
    return (
        f"{'reached' if max(shares[best]) <= 1 else 'missed'} (at most {POINTS:g} point, {BYTES:g} of the 8-bit file, "
        f"{TIME:g} of the teacher's time): member {best} loses {lost * POINTS:.2f} points, takes {size * BYTES:.3f} of "
        f"the 8-bit file and {time * TIME:.2f} of the time"
    )


def recorded(table: pd.DataFrame, spec: StudySpec) -> pd.DataFrame:
    """Return the table with what it is of: the study, the runtime, how many inputs, the day and the machine."""
    return table.assign(
        study=spec.name,
        runtime=spec.runtime.name,
        inputs=len(spec.splits.validation),
        date=datetime.now(UTC).date().isoformat(),
        machine=machine.words(),
    )


def main() -> None:
    """Measure, and print the table and the verdict."""
    pd.set_option("display.width", None, "display.max_columns", None)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="as for slimfront")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--folder")
    parser.add_argument("--runtime", choices=RUNTIMES, help="whose verified files (default: the study's runtime)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = resolved(load(options.study, options.set))
    if options.runtime:
        spec = replace(spec, runtime=named(options.runtime))
    folder = folder_of(spec, options.folder)
    study = open_study(spec, folder, None, create=False)
    subject = Subject(spec, torch.device("cpu"))
    reference = teacher_file(subject, spec.runtime, folder)
    rows = {"teacher": measured(spec.runtime, reference, reference, spec)}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"model.{spec.runtime.suffix}"
        with silence(), torch.no_grad():
            BY[spec.runtime.name](subject.finished, spec.example()[:SEEN], path)
        rows["8 bits"] = measured(spec.runtime, path, reference, spec)
    for trial, record in with_records(front(study), spec.runtime, folder):
        if record:
            rows[str(trial.number)] = {
                "top1": record["top1_file"],
                "bytes": record["file_bytes"],
                "latency_ratio": record["latency"]["ratio"],
            }
    table = pd.DataFrame(rows).T.round(3)
    recorded(table, spec).to_csv(folder / "runtime_benchmark.csv", index_label="file")
    sys.stdout.write(f"{spec.name}, {spec.runtime.name}, n = {len(spec.splits.validation)}\n{table}\n{verdict(rows)}\n")


if __name__ == "__main__":
    main()
