"""How well the bytes of a runtime's files are told before there is a file.

    python -m studies.file_sizes --runtime executorch
    python -m studies.file_sizes --runtime executorch --files 60 --fit graph convolution linear

Plans of every strength (pruning, depth, ranks and bits) for four small networks that are not trained, since no size
depends on that; half of them with the same widths in all layers, as most of what is found. With `--fit` parts of the
runtime's `FileLayout` are read off the same files anew, by least squares on shares of their size, for whoever changes
how files are written. What a format fixes, such as 4 bytes for a scale, is better kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.trial import FixedTrial
from torch import nn

from objectives import SizeBytes
from objectives.runtimes import RUNTIMES, named
from search.progress import track
from search.stratified import StratifiedRandom
from spaces import BitWidths, Depth, PruneRatios, Ranks, Space, Temperatures, deployed, trace
from studies import digits, fashion_mnist, speech_digits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from objectives.runtimes import Runtime
    from objectives.runtimes.layout import FileLayout

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {  # and the shape of one input
    "digits": (digits.Net, (1, 8, 8)),
    "introductory": (fashion_mnist.Introductory, (1, 28, 28)),
    "ResNet-8": (lambda: fashion_mnist.Residual(1), (1, 28, 28)),
    "DS-CNN": (speech_digits.DsCnn, (1, 49, 20)),
}
PARTS = tuple(field.name for field in fields(named("onnx").layout) if not field.name.endswith(("_bits", "codebook")))


@dataclass(frozen=True, slots=True)
class Laid:
    """Stands for a runtime whose files are laid out otherwise."""

    layout: FileLayout


def candidates(runtime: Runtime, count: int, seed: int) -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    """Yield the name of a network, what a plan makes of it, finished, and its calibration inputs."""
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
        teachers[name] = teacher, inputs, trace(teacher, inputs[:1])
    study = optuna.create_study(sampler=StratifiedRandom(seed=seed))
    for place in range(count):
        name = tuple(NETWORKS)[place % len(NETWORKS)]
        teacher, inputs, anatomy = teachers[name]
        with torch.no_grad():
            trial = study.ask()
            plan = space.suggest(trial, anatomy)
            if place // len(NETWORKS) % 2:
                alike = widths.uniform(anatomy, random.uniform(0.5, 1.0))
                plan = space.suggest(FixedTrial(trial.params | alike), anatomy)
            yield name, deployed(plan.apply(teacher, inputs).eval(), inputs), inputs


def fitted(layout: FileLayout, parts: list[str], models: list[nn.Module], real: np.ndarray) -> FileLayout:
    """Return the layout, these parts of it anew, that tells sizes with the least squared error, in shares of them."""
    nothing = _with(layout, dict.fromkeys(parts, 0.0))
    numbers = told(nothing, models)
    each = {name: (told(_with(nothing, {name: 1000.0}), models) - numbers) / 1000 for name in parts}
    seen = {name: bytes_N for name, bytes_N in each.items() if bytes_N.any()}
    found, *_ = np.linalg.lstsq(np.stack(list(seen.values()), 1) / real[:, None], (real - numbers) / real)
    return _with(layout, {name: round(float(value), 1) for name, value in zip(seen, found, strict=True)})


def _with(layout: FileLayout, parts: dict[str, float]) -> FileLayout:
    return replace(layout, **parts)  # type: ignore[arg-type]  # these parts are numbers


def told(layout: FileLayout, models: list[nn.Module]) -> np.ndarray:
    """Return the bytes told of the files of some networks."""
    size = SizeBytes(cast("Runtime", Laid(layout)))  # all that it asks of a runtime
    return np.array([size(model) for model in models])


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
    names, models, sizes = [], [], []
    with tempfile.TemporaryDirectory() as folder, track("files") as done:
        path = Path(folder) / f"model.{runtime.suffix}"
        for name, model, inputs in candidates(runtime, parsed.files, parsed.seed):
            runtime.export(model, inputs, path)
            names.append(name)
            models.append(model)
            sizes.append(path.stat().st_size)
            done(len(sizes) / parsed.files)
    real = np.array(sizes, float)
    layouts = {"as it is": runtime.layout}
    if parsed.fit:
        layouts["read off anew"] = fitted(runtime.layout, parsed.fit, models, real)
    for title, layout in layouts.items():
        errors = pd.Series(told(layout, models) / real - 1, index=names)
        by_network = errors.groupby(level=0).agg(["min", "median", "max"])
        sys.stdout.write(
            f"{title}: {layout}\n"
            f"median error {errors.abs().median():.1%}, largest {errors.abs().max():.1%}, n = {len(errors)}\n"
            f"{by_network.map('{:+.1%}'.format).to_string()}\n\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
