"""Compare the predicted sizes of a runtime's files with the sizes of exported files.

    python -m studies.file_sizes --runtime executorch
    python -m studies.file_sizes --runtime executorch --files 60 --fit convolution linear

The files hold plans of every strength (pruning, depth, ranks and bits) for four small networks. The networks are not
trained, since no size depends on training. Half of the plans have the same bit widths in all layers, as most plans that
a search finds. Sizes are calibrated on the file of the uncompressed network alone, which
shows the layout; a study may correct more. With `--fit`,
parts of the runtime's `FileLayout` are fitted to the same files by least squares on relative errors; this is for
developers who change how files are written. Do not fit what a format fixes, such as 4 bytes for a scale.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.trial import FixedTrial
from torch import nn

from objectives import SizeBytes
from objectives.runtimes import RUNTIMES, named
from search.proposals.stratified import StratifiedRandom
from search.study.console import track
from spaces import BitWidths, Depth, PruneRatios, Ranks, Space, Temperatures, deployed, trace
from studies import digits, fashion_mnist, speech_digits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from objectives.runtimes import Runtime
    from objectives.runtimes.file_layout import FileLayout

MEASURED_NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {  # constructor, shape of one input
    "digits": (digits.Net, (1, 8, 8)),
    "introductory": (fashion_mnist.Introductory, (1, 28, 28)),
    "ResNet-8": (lambda: fashion_mnist.Residual(1), (1, 28, 28)),
    "DS-CNN": (speech_digits.DsCnn, (1, 49, 20)),
}
PARTS = tuple(
    field.name for field in fields(named("onnx").layout) if not field.name.endswith(("_bits", "codebook", "graph"))
)
HIGHEST_RATIO = 0.875  # of pruning
CALIBRATION_INPUTS = 32
PROBE = 1000.0  # bytes: a value of a part, from which the number of times that a file contains the part is computed


@dataclass(frozen=True, slots=True)
class LayoutOnly:
    """A stand-in for a runtime: the layout of its files, which is all that `SizeBytes` reads."""

    layout: FileLayout


class File(NamedTuple):
    """A finished network and the bytes of its file, and the same for the network before compression."""

    network: str
    model: nn.Module
    size: float
    teacher: nn.Module
    teacher_size: float


def candidates(runtime: Runtime, count: int, seed: int) -> Iterator[tuple[str, nn.Module, nn.Module, torch.Tensor]]:
    """Yield the name of a network, the finished compressed network, the finished teacher, and calibration inputs."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    widths = BitWidths(runtime=runtime)
    space = Space((PruneRatios(HIGHEST_RATIO, round_to=runtime.channels), Depth(), Ranks(), widths), Temperatures())
    teachers = {}
    for name, (make, shape) in MEASURED_NETWORKS.items():
        teacher, inputs = make().eval(), torch.randn(CALIBRATION_INPUTS, *shape)
        for module in teacher.modules():
            if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
                nn.init.normal_(bias)  # files may store equal biases once
        teachers[name] = teacher, inputs, trace(teacher, inputs[:1]), deployed(teacher, inputs)
    study = optuna.create_study(sampler=StratifiedRandom(seed=seed))
    for index in range(count):
        name = tuple(MEASURED_NETWORKS)[index % len(MEASURED_NETWORKS)]
        teacher, inputs, anatomy, finished = teachers[name]
        with torch.no_grad():
            trial = study.ask()
            plan = space.suggest(trial, anatomy)
            if index // len(MEASURED_NETWORKS) % 2:
                equal_widths = widths.uniform(anatomy, generator.uniform(0.5, 1.0))
                plan = space.suggest(FixedTrial(trial.params | equal_widths), anatomy)
            yield name, deployed(plan.apply(teacher, inputs).eval(), inputs), finished, inputs


def exported(runtime: Runtime, count: int, seed: int) -> Iterator[File]:
    """Yield the candidates with the bytes of their files."""
    teacher_sizes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model.{runtime.suffix}"

        def size(model: nn.Module, inputs: torch.Tensor) -> float:
            runtime.export(model, inputs, path)
            return float(path.stat().st_size)

        for name, model, teacher, inputs in candidates(runtime, count, seed):
            if name not in teacher_sizes:
                teacher_sizes[name] = size(teacher, inputs)
            yield File(name, model, size(model, inputs), teacher, teacher_sizes[name])


def fitted(layout: FileLayout, parts: list[str], files: list[File]) -> FileLayout:
    """Return the layout with these parts fitted to the files: the least sum of squared relative errors."""
    sizes = np.array([file.size for file in files])
    zeroed = _with(layout, dict.fromkeys(parts, 0.0))
    rest = predicted_sizes(zeroed, files)
    counts = {name: (predicted_sizes(_with(zeroed, {name: PROBE}), files) - rest) / PROBE for name in parts}
    present = {name: count_N for name, count_N in counts.items() if count_N.any()}
    found, *_ = np.linalg.lstsq(np.stack(list(present.values()), 1) / sizes[:, None], (sizes - rest) / sizes)
    return _with(layout, {name: round(float(value), 1) for name, value in zip(present, found, strict=True)})


def _with(layout: FileLayout, parts: dict[str, float]) -> FileLayout:
    return replace(layout, **parts)  # type: ignore[arg-type]  # these parts are numbers


def predicted_sizes(layout: FileLayout, files: list[File]) -> np.ndarray:
    """Return the predicted bytes of each file, calibrated on the teacher's file."""
    size = uncalibrated(layout)
    return np.array([size(file.model) + file.teacher_size - size(file.teacher) for file in files])


def uncalibrated(layout: FileLayout) -> SizeBytes:
    """Return the size that is predicted from a layout without calibration."""
    return SizeBytes(cast("Runtime", LayoutOnly(layout)))


def main() -> int:
    """Export the networks, and print the errors of the predicted sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=sorted(RUNTIMES), default="onnx", help="the runtime of the files")
    parser.add_argument("--files", type=int, default=20, metavar="N", help="number of files; the networks take turns")
    parser.add_argument("--seed", type=int, default=0, help="seed of the plans")
    parser.add_argument(
        "--fit", nargs="+", choices=PARTS, default=[], metavar="PART", help=f"parts to fit, of: {', '.join(PARTS)}"
    )
    options = parser.parse_args()
    runtime = named(options.runtime)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    files = []
    with track("files") as progress:
        for file in exported(runtime, options.files, options.seed):
            files.append(file)
            progress(len(files) / options.files)
    layouts = {"current layout": runtime.layout}
    if options.fit:
        layouts["fitted layout"] = fitted(runtime.layout, options.fit, files)
    sizes = np.array([file.size for file in files])
    for title, layout in layouts.items():
        errors = pd.Series(predicted_sizes(layout, files) / sizes - 1, index=[file.network for file in files])
        by_network = errors.groupby(level=0).agg(["min", "median", "max"])
        sys.stdout.write(
            f"{title}: {layout}\n"
            f"median error {errors.abs().median():.1%}, largest {errors.abs().max():.1%}, n = {len(errors)}\n"
            f"{by_network.map('{:+.1%}'.format).to_string()}\n\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
