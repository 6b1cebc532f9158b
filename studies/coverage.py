"""Which networks can be compressed, by which axis, and why the rest cannot: one row a network.

    python -m studies.coverage                     every classification and video builder of torchvision
    python -m studies.coverage resnet18 swin_t     these
    python -m studies.coverage --no-export vgg     every builder whose name contains `vgg`, without the ONNX file
    python -m studies.coverage timm:levit_128s     one of timm, where that is installed

The weights are random: what is measured is structure, time and agreement, not accuracy.
"""

from __future__ import annotations

import argparse
import copy
import csv
import importlib
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torchvision
from optuna.trial import FixedTrial

from objectives import Bops, Macs, Parameters
from objectives.runtimes import OnnxRuntime
from search.costs.cost_model import CostModel
from spaces import BitWidths, Magnitude, PruneRatios, Ranks, Space, Temperatures, deployed, trace, unfuse_attention
from spaces.network.messages import first_line
from spaces.network.tensors import tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from objectives import Objective
    from spaces import Anatomy, Axis

LARGEST = 100e6  # parameters
HIDES = 1e-4
STRENGTH = 0.4  # of every axis, in the plan that is applied
SMALLEST = {"inception_v3": 299, "alexnet": 96, "vit": 224, "swin": 224, "maxvit": 224}  # else 64
TIMM = "timm:"
VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d")
SPACE = Space(
    steps=(
        PruneRatios(importance=Magnitude(), refit=False),
        Ranks(),
        BitWidths(weights=(4, 8), activations=(8,)),
    ),
    recovery=Temperatures(),
)


COLUMNS = (
    "model",
    "prune_percent",  # share of the multiply-adds in layers on which the axis can act
    "rank_percent",
    "bits_percent",
    "trace_s",  # CPU seconds to look at the network
    "apply_s",  # and to build the compressed one
    "foreseen",  # whether the costs of the compressed one were told exactly before it was built
    "macs_left",  # of the compressed network, as a share of the teacher's
    "parameters_left",
    "trains",  # whether gradients reach every weight of the compressed network, but for modules idle in the teacher
    "untouched",  # whether the teacher is to the bit what it was
    "agreement",  # largest difference between the exported file and torch, as a share of the largest output
    "refused",  # how often each reason was given, the commonest first
)


def build(name: str) -> nn.Module:
    """Return the network of that name with random weights of which none starts at nothing."""
    torch.manual_seed(0)
    if name.startswith(TIMM):
        model: nn.Module = importlib.import_module("timm").create_model(name.removeprefix(TIMM))
    else:
        extra: dict[str, Any] = {"init_weights": True} if name in {"inception_v3", "googlenet"} else {}
        model = torchvision.models.get_model(name, weights=None, **extra)
    for parameter in model.parameters():  # a head or a scale that starts at nothing hides whatever is before it
        if float(parameter.detach().abs().max()) < HIDES:
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


def example(name: str) -> Tensor:
    """Return two inputs of the smallest size at which the network makes sense; for timm, of its own size."""
    if name.startswith(TIMM):
        size = importlib.import_module("timm").create_model(name.removeprefix(TIMM)).default_cfg["input_size"]
        return torch.randn(2, *size)
    if name in VIDEO:
        return torch.randn(2, 3, *((16, 224, 224) if name == "s3d" else (8, 64, 64)))
    size = next((size for key, size in SMALLEST.items() if name.startswith(key)), 64)
    return torch.randn(2, 3, size, size)


def look(name: str, *, export: bool) -> tuple[str, ...]:
    """Trace, compress, and export one network; return its row."""
    inputs = example(name)
    model = unfuse_attention(build(name), inputs)
    untouched = copy.deepcopy(model.state_dict())
    started = time.process_time()
    anatomy = trace(model, inputs)
    traced = time.process_time()
    plan = SPACE.suggest(FixedTrial(SPACE.uniform(anatomy, (STRENGTH,) * 3)), anatomy)
    smaller = plan.apply(model, inputs)
    applied = time.process_time()
    finished, teacher = deployed(smaller, inputs), deployed(model, inputs)
    costs: tuple[Objective, ...] = (Macs(inputs), Bops(inputs), Parameters())
    foreseen = CostModel(anatomy, teacher, costs).exact([plan])
    before, after = ({cost.name: cost(network) for cost in costs} for network in (teacher, finished))
    said = [reason for axis in SPACE.steps for reason in axis.acts_on(anatomy).values() if reason.startswith("no: ")]
    numbers = (
        *(share(anatomy, axis, before["macs"]) for axis in SPACE.steps),
        traced - started,
        applied - traced,
    )
    left = (after["macs"] / before["macs"], after["parameters"] / before["parameters"])
    exact = all(float(foreseen[name][0]) == value for name, value in after.items())
    unused = tuple(name.rpartition(".")[0] for name in idle(model, inputs))
    trains = all(name.startswith(unused) for name in idle(smaller, inputs))
    alike = all(torch.equal(tensor, untouched[key]) for key, tensor in model.state_dict().items())
    agreed = f"{agreement(finished, inputs):.1e}" if export else ""
    refused = "; ".join(f"{count} x {reason[4:]}" for reason, count in Counter(said).most_common(3))
    held = ("yes" if held else "NO" for held in (trains, alike))
    return (name, *map(_short, numbers), "exact" if exact else "NOT", *map(_short, left), *held, agreed, refused)


def _short(number: float) -> str:
    return f"{number:.3g}"


def idle(model: nn.Module, inputs: Tensor) -> list[str]:
    """Return the parameters that get no finite gradient in training."""
    tried = copy.deepcopy(model).train()
    with torch.enable_grad():
        torch.stack([output.square().mean() for output in tensors(tried(inputs))]).sum().backward()
    grads = {name: parameter.grad for name, parameter in tried.named_parameters()}
    return [name for name, grad in grads.items() if grad is None or not bool(grad.isfinite().all())]


def share(anatomy: Anatomy, axis: Axis, total: float) -> float:
    """Return the percentage of all multiply-adds that lie in layers whose inputs or outputs the axis can thin."""
    said = axis.acts_on(anatomy)
    reached = {name for name, words in said.items() if not words.startswith("no: ")}
    if isinstance(axis, PruneRatios):  # a layer whose inputs go has fewer multiply-adds too
        reached |= {member.layer for group in anatomy.groups for member in group.consumers}
    return 100 * sum(x.macs for x in anatomy.layers if x.name in reached) / total


def agreement(model: nn.Module, inputs: Tensor) -> float:
    """Return the largest difference between the exported file, read back, and the network, relative to its outputs."""
    runtime = OnnxRuntime()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        runtime.export(model, inputs, path)
        want, got = model(inputs), runtime.load(path)(inputs)
    return float((want - got).abs().max() / want.abs().max())


def builders(wanted: list[str]) -> list[str]:
    """Return the names of the builders that are asked for and not too large, then those of timm."""
    others = [name for name in wanted if name.startswith(TIMM)]
    wanted = [name for name in wanted if name not in others]
    if others and not wanted:
        return others
    names = [*torchvision.models.list_models(module=torchvision.models), *VIDEO]
    chosen = [name for name in names if not wanted or name in wanted or any(word in name for word in wanted)]
    sizes = {name: torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"] for name in chosen}
    return [name for name in chosen if sizes[name] <= LARGEST] + others


def main() -> None:
    """Print the table as CSV, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="builders, or parts of their names")
    parser.add_argument("--no-export", action="store_true", help="leave out the ONNX file, the slowest part")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # torchvision's own
    table = csv.writer(sys.stdout)
    table.writerow(COLUMNS)
    for name in builders(options.names):
        try:
            table.writerow(look(name, export=not options.no_export))
        except Exception as error:  # noqa: BLE001 - a network that fails is a row, not the end of the table
            reason = f"FAILED {type(error).__name__}: {first_line(error)[:200]}"
            table.writerow([name, *[""] * (len(COLUMNS) - 2), reason])
        sys.stdout.flush()


if __name__ == "__main__":
    main()
