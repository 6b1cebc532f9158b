"""Compare a study's files with the teacher in floating point and at 8 bits, as the runtime's own tools convert it.

    python -m studies.runtime_benchmark studies/digits.py:study
    python -m studies.runtime_benchmark studies/digits.py:study --set runtime=litert

Run the study first. The benchmark takes its verified files as they are. The runtime's own tools quantize the teacher
after training (ONNX Runtime's quantize_static; PT2E for LiteRT and ExecuTorch), on 128 calibration inputs. Every file
is measured on the whole validation split, in a process of its own. Latency is CPU time over that of the teacher's file,
interleaved. The table is printed and written to `runtime_benchmark.csv` in the study's folder, with the date and the
machine.
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
from objectives.runtimes import named
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

CALIBRATION_INPUTS = 128  # for the runtime's own tools
MAX_LOSS = 1.0  # the aim: points of top-1 below the teacher
MAX_SIZE = 0.25  # the aim: bytes over those of the 8-bit file
MAX_LATENCY = 0.5  # the aim: latency over the teacher's


def by_onnx_runtime(teacher: nn.Module, inputs: Tensor, path: Path) -> None:
    """Quantize the teacher with quantize_static, weights per channel."""
    tools: Any = importlib.import_module("onnxruntime.quantization")

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc]
        """The calibration inputs, one by one."""

        def __init__(self) -> None:
            self.remaining: Iterator[Tensor] = iter(inputs.split(1))

        def get_next(self) -> dict[str, Any] | None:
            """Return the next input, or None after the last one."""
            example = next(self.remaining, None)
            return None if example is None else {"x": example.numpy()}

    float_path = path.with_suffix(".float")
    named("onnx").export(teacher, inputs, float_path)
    tools.quantize_static(str(float_path), str(path), Reader(), per_channel=True)


def by_litert(teacher: nn.Module, inputs: Tensor, path: Path) -> None:
    """Quantize the teacher with PT2E and LiteRT's quantizer, weights per channel."""
    tools: Any = importlib.import_module("litert_torch.quantize.pt2e_quantizer")
    config: Any = importlib.import_module("litert_torch.quantize.quant_config")
    quantizer = tools.PT2EQuantizer().set_global(tools.get_symmetric_quantization_config(is_per_channel=True))
    quantized = _by_pt2e(teacher, inputs, quantizer, fold_quantize=False)
    converted = importlib.import_module("litert_torch").convert(
        quantized, (inputs[:1],), quant_config=config.QuantConfig(pt2e_quantizer=quantizer)
    )
    converted.export(str(path))


def by_executorch(teacher: nn.Module, inputs: Tensor, path: Path) -> None:
    """Quantize the teacher with PT2E and XNNPACK's quantizer, weights per channel."""
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
    for example in inputs.split(1):
        prepared(example)
    return tools.convert_pt2e(prepared, **settings)  # type: ignore[no-any-return]


QUANTIZERS: dict[str, Callable[[nn.Module, Tensor, Path], None]] = {  # by the name of the runtime
    "onnx": by_onnx_runtime,
    "litert": by_litert,
    "executorch": by_executorch,
}


def measured(runtime: Runtime, path: Path, reference: Path, spec: StudySpec) -> dict[str, float]:
    """Measure validation top-1, bytes and the latency ratio of a file in a process of its own."""
    with IsolatedProcess(runtime, path) as file:
        top1 = Top1(spec.splits.validation)(FromFile(file))
        ratio = file.compare(reference, spec.example()[:1]).ratio
    return {"top1": top1, "bytes": path.stat().st_size, "latency_ratio": ratio}


def verdict(rows: dict[str, dict[str, float]]) -> str:
    """Say which member reaches the aim, or which one comes closest to it."""
    teacher, quantized = rows["teacher"], rows["8 bits"]
    shares = {
        name: (
            max(0.0, teacher["top1"] - row["top1"]) / MAX_LOSS,
            row["bytes"] / quantized["bytes"] / MAX_SIZE,
            row["latency_ratio"] / MAX_LATENCY,
        )
        for name, row in rows.items()
        if row is not teacher and row is not quantized
    }
    if not shares:
        return (
            "no member of the front has a verified file for this runtime; verify them with: slimfront confirm "
            "--runtime NAME --seeds 0"
        )
    best = min(shares, key=lambda name: max(shares[name]))
    loss, size, latency = shares[best]
    return (
        f"aim {'reached' if max(shares[best]) <= 1 else 'missed'} (at most {MAX_LOSS:g} point lost, {MAX_SIZE:g} of "
        f"the 8-bit file, {MAX_LATENCY:g} of the teacher's latency): member {best} loses {loss * MAX_LOSS:.2f} points "
        f"and takes {size * MAX_SIZE:.3f} of the 8-bit file and {latency * MAX_LATENCY:.2f} of the latency"
    )


def recorded(table: pd.DataFrame, spec: StudySpec) -> pd.DataFrame:
    """Return the table with the study, the runtime, the number of inputs, the date and the machine."""
    return table.assign(
        study=spec.name,
        runtime=spec.runtime.name,
        inputs=len(spec.splits.validation),
        date=datetime.now(UTC).date().isoformat(),
        machine=machine.words(),
    )


def main() -> None:
    """Measure the files, print the table and the verdict, and write the table to the study's folder."""
    pd.set_option("display.width", None, "display.max_columns", None)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="file.py:function or package.module:function that returns a StudySpec")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an argument of that function")
    parser.add_argument("--folder", help="the study's files (default: runs/<name of the study>)")
    parser.add_argument("--runtime", choices=QUANTIZERS, help="the runtime of the files (default: the study's)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = resolved(load(options.study, options.set))
    if options.runtime:
        spec = replace(spec, runtime=named(options.runtime))
    if spec.runtime.name not in QUANTIZERS:
        parser.error(
            f"there are no 8-bit tools for the runtime {spec.runtime.name}; the runtimes are {', '.join(QUANTIZERS)}"
        )
    folder = folder_of(spec, options.folder)
    study = open_study(spec, folder, None, create=False)
    subject = Subject(spec, torch.device("cpu"))
    reference = teacher_file(subject, spec.runtime, folder)
    rows = {"teacher": measured(spec.runtime, reference, reference, spec)}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"model.{spec.runtime.suffix}"
        with silence(), torch.no_grad():
            QUANTIZERS[spec.runtime.name](subject.finished, spec.example()[:CALIBRATION_INPUTS], path)
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
