"""Report which networks each axis can compress, and why it cannot compress the rest: one row per network.

    python -m studies.coverage                     every classification and video builder of torchvision
    python -m studies.coverage resnet18 swin_t     these two
    python -m studies.coverage --no-export vgg     every builder whose name contains `vgg`, without the ONNX file
    python -m studies.coverage timm                TIMM: 20 networks of timm
    python -m studies.coverage timm:levit_128s     any other network of timm
    python -m studies.coverage own                 the structures in `studies.structures`, one for each difficulty
    python -m studies.coverage hf                  the encoders of the transformers package in `studies.encoders`
    python -m studies.coverage hf:bert:eager       one of them, with attention that is computed step by step

timm and transformers come with the extra `coverage`. The weights are random: the rows show structure, time and
agreement, not accuracy.
"""

from __future__ import annotations

import argparse
import copy
import csv
import importlib
import math
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torchvision
from optuna.trial import FixedTrial

from objectives import Bops, Macs, Parameters
from objectives.runtimes import OnnxRuntime
from objectives.trees import leaves
from search.costs.cost_model import CostModel
from spaces import BitWidths, Magnitude, PruneRatios, Ranks, Space, Temperatures, deployed, trace, with_plain_layers
from spaces.network.messages import first_line
from spaces.network.normalizing import normalized
from spaces.network.tensors import run, seeded_outputs, tensors
from studies import encoders
from studies.structures import STRUCTURES

if TYPE_CHECKING:
    from torch import nn

    from objectives import Objective
    from objectives.trees import Tree
    from spaces import Anatomy, Axis

MAX_PARAMETERS = 100e6  # larger networks are skipped
NEAR_ZERO = 1e-4  # largest absolute value in a tensor below which the tensor is initialized again
UNINITIALIZED = 1e3  # largest absolute value above which it is initialized again
STRENGTH = 0.4  # of every axis in the plan that is applied, in [0, 1]
DEFAULT_SIZE = 64  # pixels: height and width of the inputs
SIZES = {"inception_v3": 299, "alexnet": 96, "vit": 224, "swin": 224, "maxvit": 224}  # pixels, by beginning of the name
TIMM_PREFIX, HF_PREFIX, OWN_PREFIX = PREFIXES = "timm:", "hf:", "own:"
TIMM = (
    "cait_xxs24_224", "convnextv2_atto", "cspresnet50", "edgenext_xx_small", "efficientvit_b0", "fastvit_t8",
    "ghostnet_100", "inception_next_atto", "levit_128s", "mixer_s32_224", "mobilenetv4_conv_small", "mobilevit_xxs",
    "nf_regnet_b0", "poolformer_s12", "pvt_v2_b0", "repvgg_a0", "swin_tiny_patch4_window7_224", "tiny_vit_5m_224",
    "vit_tiny_patch16_224", "xcit_nano_12_p16_224",
)  # fmt: skip
ATTENTIONS = ("sdpa", "eager")  # of the encoders of transformers
RATIOS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75)  # of the channels of a group
RANDOM_PLANS = 10  # of channels alone, each group at a ratio of its own
VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d")
MOST_REASONS = 3  # reasons of refusals in a row of the table
SPACE = Space(
    steps=(
        PruneRatios(importance=Magnitude(), refit=False),
        Ranks(),
        BitWidths(weights=(4, 8), activations=(8,)),
    ),
    recovery=Temperatures(),
)

TABLE_COLUMNS = (
    "model",
    "prune_percent",  # percentage of the multiply-adds in layers on which the axis can act
    "rank_percent",
    "bits_percent",
    "trace_s",  # CPU seconds to trace the network
    "apply_s",  # CPU seconds to build the compressed network
    "foreseen",  # whether the costs computed before building equal those of the compressed network
    "macs_left",  # of the compressed network, as a fraction of the teacher's
    "parameters_left",  # the same
    "trains",  # whether gradients reach every weight of the compressed network, except modules unused in the teacher
    "untouched",  # whether the teacher is unchanged, bit for bit
    "crashes",  # of random unequal plans of channels: how many could not be built or run
    "agreement",  # largest difference between the exported file and torch, relative to the largest output
    "refused",  # the most frequent reasons of refusals, each with its count
)


@dataclass(frozen=True)
class Compressed:
    """A network that was compressed by all three axes at once, and what holds of it.

    Attributes
    ----------
    anatomy
        Of the teacher.
    finished
        The compressed network as it is shipped.
    before, after
        The costs of the teacher and of the compressed network, by name.
    exact, trains, untouched
        As in the table.
    trace_s, apply_s
        CPU seconds to trace the teacher, and to build the compressed network.
    """

    anatomy: Anatomy
    finished: nn.Module
    before: dict[str, float]
    after: dict[str, float]
    exact: bool
    trains: bool
    untouched: bool
    trace_s: float
    apply_s: float


def build(name: str) -> nn.Module:
    """Return the network of that name with random weights, none of them initialized to zero."""
    torch.manual_seed(0)
    if name.startswith(TIMM_PREFIX):
        model: nn.Module = importlib.import_module("timm").create_model(name.removeprefix(TIMM_PREFIX))
    elif name.startswith(HF_PREFIX):
        model = encoders.encoder(*name.removeprefix(HF_PREFIX).split(":"))
    elif name.startswith(OWN_PREFIX):
        model = STRUCTURES[name.removeprefix(OWN_PREFIX)].network()
    else:
        extra: dict[str, Any] = {"init_weights": True} if name in {"inception_v3", "googlenet"} else {}
        model = torchvision.models.get_model(name, weights=None, **extra)
    return without_zeros(model).eval()


def without_zeros(model: nn.Module) -> nn.Module:
    """Return the network itself; zero heads and scales, which would hide errors before them, are drawn anew.

    So are weights that their network leaves uninitialized.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point() and not NEAR_ZERO <= float(parameter.detach().abs().max()) <= UNINITIALIZED:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def example(name: str) -> Tree:
    """Return two inputs of the smallest size that suits the network; a network of timm gets its own input size."""
    torch.manual_seed(0)
    if name.startswith(TIMM_PREFIX):
        size = importlib.import_module("timm").create_model(name.removeprefix(TIMM_PREFIX)).default_cfg["input_size"]
        return torch.randn(2, *size)
    if name.startswith(HF_PREFIX):
        return encoders.encoder_inputs(name.split(":")[1])
    if name.startswith(OWN_PREFIX):
        return STRUCTURES[name.removeprefix(OWN_PREFIX)].inputs()
    if name in VIDEO:
        return torch.randn(2, 3, *((16, 224, 224) if name == "s3d" else (8, 64, 64)))
    size = next((size for key, size in SIZES.items() if name.startswith(key)), DEFAULT_SIZE)
    return torch.randn(2, 3, size, size)


def compressed(model: nn.Module, inputs: Tree) -> Compressed:
    """Trace a network with plain layers and compress it; two examples or more."""
    state_before = copy.deepcopy(model.state_dict())
    started = time.process_time()
    anatomy = SPACE.trace(model, inputs)
    traced = time.process_time()
    plan = SPACE.suggest(FixedTrial(SPACE.uniform(anatomy, (STRENGTH,) * 3)), anatomy)
    smaller = plan.apply(model, inputs)
    applied = time.process_time()
    finished, teacher = deployed(smaller, inputs), deployed(model, inputs)
    costs: tuple[Objective, ...] = (Macs(inputs), Bops(inputs), Parameters())
    computed = CostModel(anatomy, teacher, costs).exact([plan])
    before, after = ({cost.name: cost(network) for cost in costs} for network in (teacher, finished))
    unused = tuple(name.rpartition(".")[0] for name in without_gradient(model, inputs))
    return Compressed(
        anatomy,
        finished,
        before,
        after,
        exact=all(float(computed[name][0]) == value for name, value in after.items()),
        trains=all(name.startswith(unused) for name in without_gradient(smaller, inputs)),
        untouched=all(torch.equal(tensor, state_before[key]) for key, tensor in model.state_dict().items()),
        trace_s=traced - started,
        apply_s=applied - traced,
    )


def coverage(name: str, *, export: bool) -> tuple[str, ...]:
    """Trace, compress and export one network; return its row of the table."""
    inputs = example(name)
    model = with_plain_layers(normalized(build(name), inputs).model, inputs)  # as a run does
    found = compressed(model, inputs)
    refusals = [
        text for axis in SPACE.steps for text in axis.acts_on(found.anatomy).values() if text.startswith("no: ")
    ]
    numbers = (
        *(acting_percent(found.anatomy, axis, found.before["macs"]) for axis in SPACE.steps),
        found.trace_s,
        found.apply_s,
    )
    crashes = str(sum(bool(crash(model, inputs, number)) for number in range(RANDOM_PLANS)))
    return (
        name,
        *map(_short, numbers),
        "exact" if found.exact else "NOT",
        *(_short(found.after[cost] / found.before[cost]) for cost in ("macs", "parameters")),
        *("yes" if holds else "NO" for holds in (found.trains, found.untouched)),
        crashes,
        f"{agreement(found.finished, inputs):.1e}" if export else "",
        "; ".join(f"{count} x {text[4:]}" for text, count in Counter(refusals).most_common(MOST_REASONS)),
    )


def _short(number: float) -> str:
    return f"{number:.3g}"


def without_gradient(model: nn.Module, inputs: Tree) -> list[str]:
    """Return the names of the parameters that get no gradient in training, or one that is not finite."""
    training = copy.deepcopy(model).train()
    with torch.enable_grad():
        answers = [output for output in tensors(run(training, inputs)) if output.requires_grad]
        torch.stack([output.square().mean() for output in answers]).sum().backward()
    grads = {name: parameter.grad for name, parameter in training.named_parameters()}
    return [name for name, grad in grads.items() if grad is None or not bool(grad.isfinite().all())]


def acting_percent(anatomy: Anatomy, axis: Axis, total: float) -> float:
    """Return the percentage of all multiply-adds that are in layers and products which the axis can reduce."""
    acting = {name for name, text in axis.acts_on(anatomy).items() if not text.startswith("no: ")}
    if isinstance(axis, PruneRatios):  # removed input channels reduce the multiply-adds of a layer too
        acting |= {member.layer for group in anatomy.groups for member in group.consumers}
    found = sum(layer.macs for layer in anatomy.layers if layer.name in acting)
    if isinstance(axis, PruneRatios):
        found += sum(math.prod(product.sizes) for product in anatomy.products)
    return 100 * found / total


def crash(model: nn.Module, inputs: Tree, seed: int) -> str:
    """Return why a random plan, with a ratio of its own for each group of channels, cannot be built or run, or ``."""
    dice, axis, anatomy = random.Random(seed), SPACE.steps[0], trace(model, inputs)  # noqa: S311 - not a secret
    values = {name: dice.choice(RATIOS) for name in axis.uniform(anatomy, STRENGTH)}
    try:
        expected = seeded_outputs(model, inputs)
        got = seeded_outputs(axis.suggest(FixedTrial(values), anatomy).apply(model, inputs), inputs)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
        return f"{type(error).__name__}: {first_line(error)}"
    if [tensor.shape for tensor in got] != [tensor.shape for tensor in expected]:
        return "the outputs have another shape"
    finite = all(
        bool(ours.isfinite().all()) for ours, theirs in zip(got, expected, strict=True) if theirs.isfinite().all()
    )
    return "" if finite else "the outputs are not finite"


def agreement(model: nn.Module, inputs: Tree) -> float:
    """Return the largest difference between the exported file and the network, relative to the largest output."""
    runtime = OnnxRuntime()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        runtime.export(model, inputs, path)
        expected, answered = seeded_outputs(model, inputs), leaves(runtime.load(path)(inputs))
    return max(
        float((ours.double() - theirs.double()).abs().max() / ours.double().abs().max().clamp_min(1e-12))
        for ours, theirs in zip(expected, answered, strict=True)
    )


def builders(wanted: list[str]) -> list[str]:
    """Return the names of the wanted builders: those of torchvision that are not too large, then others."""
    families = {
        "timm": [TIMM_PREFIX + name for name in TIMM],
        "hf": [f"{HF_PREFIX}{name}:{attention}" for name in encoders.CONFIGURATIONS for attention in ATTENTIONS],
        "own": [OWN_PREFIX + name for name in STRUCTURES],
    }
    others = [name for word in wanted for name in families.get(word, [word] if word.startswith(PREFIXES) else [])]
    wanted = [word for word in wanted if word not in families and word not in others]
    if others and not wanted:
        return others
    names = [*torchvision.models.list_models(module=torchvision.models), *VIDEO]
    chosen = [name for name in names if not wanted or name in wanted or any(word in name for word in wanted)]
    sizes = {name: torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"] for name in chosen}
    return [name for name in chosen if sizes[name] <= MAX_PARAMETERS] + others


def main() -> None:
    """Print the table as CSV, each row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names of builders, or parts of such names (default: all)")
    parser.add_argument("--no-export", action="store_true", help="do not write the ONNX file, which takes longest")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # torchvision and the exporters warn about their own code
    table = csv.writer(sys.stdout)
    table.writerow(TABLE_COLUMNS)
    for name in builders(options.names):
        try:
            table.writerow(coverage(name, export=not options.no_export))
        except Exception as error:  # noqa: BLE001 - one network that fails must not end the table
            reason = f"FAILED {type(error).__name__}: {first_line(error)[:200]}"
            table.writerow([name, *[""] * (len(TABLE_COLUMNS) - 2), reason])
        sys.stdout.flush()


if __name__ == "__main__":
    main()
