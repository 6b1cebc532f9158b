"""What the search before training costs on networks of several sizes: the sensitivity table, a plan, the seeds, memory.

    python -m studies.search_cost --networks mobilenet_v3_small-64 resnet18-224 --inputs 16
    python -m studies.search_cost --device cuda

The weights are random: times do not depend on them. Each network runs in a process of its own, on one thread, with
inputs made on the fly. The table is that of three values of each parameter, which is what a short budget measures; its
time is the mean of some entries times their number, with the statistics of the teacher, which are computed once. On a
CPU seconds are CPU time and memory is that of the process; on a GPU they are wall time and the memory of its tensors.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torchvision

from objectives import Examples, Macs, SizeBytes, Top1
from search import Recipe, Splits, StudySpec
from search.evaluation.context import Context
from search.evaluation.subject import Subject
from search.proposals.defaults import resolved
from search.proposals.seeds import seeds_within_limits
from search.proposals.sensitivity_table import sensitivity_table, single_changes
from search.proposals.table_losses import WANTED_VALUES, proxy_loss_of
from search.study.machine import device_named
from spaces import BitWidths, PruneRatios, Ranks, Space, Temperatures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

CLASSES = 10
LEAST_FOR_GROWTH = 5  # networks, to fit three numbers
MEBIBYTE = 2**20  # bytes
MEBIBYTE_KB = 1024  # kilobytes, the unit of the peak memory on Linux, in a mebibyte
NETWORKS = (
    "mobilenet_v3_small-64", "mobilenet_v3_small-224", "resnet18-64", "mobilenet_v2-224", "resnet18-224",
    "resnet50-224", "vit_b_16-224",
)  # fmt: skip


def build(name: str, examples: int) -> tuple[nn.Module, Tensor]:
    """Return the network of this name and images of its size; MobileNetV3 has half its width."""
    kind, _, size = name.rpartition("-")
    torch.manual_seed(0)
    width = {"width_mult": 0.5} if kind == "mobilenet_v3_small" else {}
    net = torchvision.models.get_model(kind, weights=None, num_classes=CLASSES, **width)
    return net.eval(), torch.randn(examples, 3, int(size), int(size))


def measured(name: str, inputs: int, entries: int, device: torch.device) -> dict[str, Any]:
    """Return one row of the table."""
    net, images = build(name, 4 * inputs)
    data = Examples(images, torch.arange(len(images)) % CLASSES)
    space = Space((PruneRatios(), Ranks(), BitWidths(weights=(2, 4, 8), activations=(8,))), Temperatures())
    costs = (SizeBytes(), Macs(images[:1]))
    spec = resolved(
        StudySpec(name, net, Splits(data, data, data), space, (Top1(data), *costs), recipe=Recipe(), calibration=inputs)
    )
    context = Context(spec, Subject(spec, device))
    changes = single_changes(context)
    random = np.random.default_rng(0)
    some = [changes[at].plans[-1] for at in random.permutation(len(changes))[:entries]]
    joint = [
        context.plan(space.uniform(context.subject.anatomy, (strength,) * len(space.steps))) for strength in (0.3, 0.6)
    ]
    statistics = _seconds(context, [*some, *joint], inputs) - _seconds(context, [*some, *joint], inputs)
    entry, plan = _seconds(context, some, inputs) / len(some), _seconds(context, joint, inputs) / len(joint)
    values = sum(min(WANTED_VALUES, len(change.plans) - 1) for change in changes)
    losses = [np.array([0.0, *random.lognormal(size=len(change.plans) - 1)]).cumsum() for change in changes]
    table = sensitivity_table(context, changes, losses)
    clock = _clock(device)
    started = clock()
    seeds = len(seeds_within_limits(context, table, [cost.name for cost in costs]))
    return {
        "network": name,
        "mega_macs": costs[1](context.subject.finished) / 1e6,
        "layers": len(context.subject.anatomy.layers),
        "parameters": len(changes),
        "entries": sum(len(change.plans) - 1 for change in changes),
        "statistics_s": statistics,
        "entry_s": entry,
        "table_s": statistics + values * entry,
        "plan_s": plan,
        "seeds": seeds,
        "seeds_s": clock() - started,
        "peak_mb": _peak_memory(device),
    }


def _peak_memory(device: torch.device) -> float:
    """Return the most memory that was used, in mebibytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MEBIBYTE
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEBIBYTE_KB


def _clock(device: torch.device) -> Callable[[], float]:
    return time.perf_counter if device.type == "cuda" else time.process_time


def _seconds(context: Context, plans: Sequence[Any], inputs: int) -> float:
    """Return the seconds of scoring these plans; a proxy loss is a number, so no work of the device is left over."""
    clock = _clock(context.subject.device)
    started = clock()
    for plan in plans:
        proxy_loss_of(context, plan, inputs)
    return clock() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", nargs="*", default=NETWORKS, help=f"any of {', '.join(NETWORKS)} (default: all)")
    parser.add_argument("--inputs", type=int, default=16, help="inputs of a proxy loss (default: 16)")
    parser.add_argument("--entries", type=int, default=10, help="entries of the table that are timed (default: 10)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only:
        torch.set_num_threads(1)
        sys.stdout.write(
            json.dumps(measured(options.only, options.inputs, options.entries, device_named(options.device)))
        )
        return
    rows = []
    for name in options.networks:
        command = [sys.executable, "-m", "studies.search_cost", "--only", name, "--inputs", str(options.inputs)]
        command += ["--entries", str(options.entries), "--device", options.device]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))  # noqa: S603
        sys.stdout.write(pd.DataFrame(rows).round(2).to_string(index=False) + "\n\n")
    if len(rows) >= LEAST_FOR_GROWTH:
        sys.stdout.write(f"{growth(pd.DataFrame(rows))}\n")


def growth(rows: pd.DataFrame) -> str:
    """Say with which power of multiply-adds and of layers the time of a plan grows, by least squared log errors."""
    factors = np.log(rows[["mega_macs", "layers"]].to_numpy())
    solved = np.linalg.lstsq(np.column_stack([factors, np.ones(len(rows))]), np.log(rows["plan_s"]), rcond=None)
    by_macs, by_layers, _ = solved[0]
    return (
        f"seconds of a plan grow as multiply-adds to the power {by_macs:.2f} times layers to the power {by_layers:.2f}"
    )


if __name__ == "__main__":
    main()
