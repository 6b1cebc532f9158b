"""How well the bytes of a runtime's files are told before there is a file.

    python -m studies.file_sizes --runtime executorch
    python -m studies.file_sizes --runtime executorch --files 60 --fit convolution linear

Plans of every strength (pruning, depth, ranks and bits) for four small networks that are not trained, since no size
depends on that; half of them with the same widths in all layers, as most of what is found. Sizes are told as in a
study: put right by the file of the network as it was. With `--fit` parts of the runtime's `FileLayout` are read off the
same files anew, by least squares on shares of their size, for whoever changes how files are written. What a format
fixes, such as 4 bytes for a scale, is better kept.
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

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {  # and the shape of one input
    "digits": (digits.Net, (1, 8, 8)),
    "introductory": (fashion_mnist.Introductory, (1, 28, 28)),
    "ResNet-8": (lambda: fashion_mnist.Residual(1), (1, 28, 28)),
    "DS-CNN": (speech_digits.DsCnn, (1, 49, 20)),
}
PARTS = tuple(
    field.name for field in fields(named("onnx").layout) if not field.name.endswith(("_bits", "codebook", "graph"))
)


@dataclass(frozen=True, slots=True)
class Laid:
    """Stands for a runtime whose files are laid out otherwise."""

    layout: FileLayout


class File(NamedTuple):
    """A finished network and the bytes of its file, and the same of what it was made of."""

    network: str
    model: nn.Module
    size: float
    teacher: nn.Module
    teacher_size: float


def candidates(runtime: Runtime, count: int, seed: int) -> Iterator[tuple[str, nn.Module, nn.Module, torch.Tensor]]:
    """Yield the name of a network, what a plan makes of it, what it was, both finished, and its calibration inputs."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    widths = BitWidths(runtime=runtime)
    space = Space((PruneRatios(0.875, round_to=runtime.channels), Depth(), Ranks(), widths), Temperatures())
    teachers = {}
    for name, (make, shape) in NETWORKS.items():
        teacher, inputs = make().eval(), torch.randn(32, *shape)
        for module in teacher.modules():
            if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
                nn.init.normal_(bias)  # equal ones may be written once
        teachers[name] = teacher, inputs, trace(teacher, inputs[:1]), deployed(teacher, inputs)
    study = optuna.create_study(sampler=StratifiedRandom(seed=seed))
    for place in range(count):
        name = tuple(NETWORKS)[place % len(NETWORKS)]
        teacher, inputs, anatomy, finished = teachers[name]
        with torch.no_grad():
            trial = study.ask()
            plan = space.suggest(trial, anatomy)
            if place // len(NETWORKS) % 2:
                alike = widths.uniform(anatomy, random.uniform(0.5, 1.0))
                plan = space.suggest(FixedTrial(trial.params | alike), anatomy)
            yield name, deployed(plan.apply(teacher, inputs).eval(), inputs), finished, inputs


def exported(runtime: Runtime, count: int, seed: int) -> Iterator[File]:
    """Yield the same with the bytes of their files."""
    sizes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model.{runtime.suffix}"

        def size(model: nn.Module, inputs: torch.Tensor) -> float:
            runtime.export(model, inputs, path)
            return float(path.stat().st_size)

        for name, model, teacher, inputs in candidates(runtime, count, seed):
            if name not in sizes:
                sizes[name] = size(teacher, inputs)
            yield File(name, model, size(model, inputs), teacher, sizes[name])


def fitted(layout: FileLayout, parts: list[str], files: list[File]) -> FileLayout:
    """Return the layout, these parts of it anew, that tells sizes with the least squared error, in shares of them."""
    real = np.array([file.size for file in files])
    nothing = _with(layout, dict.fromkeys(parts, 0.0))
    numbers = told(nothing, files)
    each = {name: (told(_with(nothing, {name: 1000.0}), files) - numbers) / 1000 for name in parts}
    seen = {name: bytes_N for name, bytes_N in each.items() if bytes_N.any()}
    found, *_ = np.linalg.lstsq(np.stack(list(seen.values()), 1) / real[:, None], (real - numbers) / real)
    return _with(layout, {name: round(float(value), 1) for name, value in zip(seen, found, strict=True)})


def _with(layout: FileLayout, parts: dict[str, float]) -> FileLayout:
    return replace(layout, **parts)  # type: ignore[arg-type]  # these parts are numbers


def told(layout: FileLayout, files: list[File]) -> np.ndarray:
    """Return the bytes told of some files, as `SizeBytes.weighed` puts them right."""
    size = alone(layout)
    return np.array([size(file.model) + file.teacher_size - size(file.teacher) for file in files])


def alone(layout: FileLayout) -> SizeBytes:
    """Return the size that a layout alone tells."""
    return SizeBytes(cast("Runtime", Laid(layout)))  # all that it asks of a runtime


def main() -> int:
    """Export the networks, and print how far what was told is from the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=sorted(RUNTIMES), default="onnx", help="whose files")
    parser.add_argument("--files", type=int, default=20, metavar="N", help="how many, of the networks in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the plans")
    parser.add_argument(
        "--fit", nargs="+", choices=PARTS, default=[], metavar="PART", help=f"read anew, of: {', '.join(PARTS)}"
    )
    parsed = parser.parse_args()
    runtime = named(parsed.runtime)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = []
    with track("files") as done:
        for file in exported(runtime, parsed.files, parsed.seed):
            found.append(file)
            done(len(found) / parsed.files)
    layouts = {"as it is": runtime.layout}
    if parsed.fit:
        layouts["read off anew"] = fitted(runtime.layout, parsed.fit, found)
    real = np.array([file.size for file in found])
    for title, layout in layouts.items():
        errors = pd.Series(told(layout, found) / real - 1, index=[file.network for file in found])
        by_network = errors.groupby(level=0).agg(["min", "median", "max"])
        sys.stdout.write(
            f"{title}: {layout}\n"
            f"median error {errors.abs().median():.1%}, largest {errors.abs().max():.1%}, n = {len(errors)}\n"
            f"{by_network.map('{:+.1%}'.format).to_string()}\n\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
