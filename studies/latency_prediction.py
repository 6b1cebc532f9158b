"""How well latency is predicted before anything is built: random joint plans, predicted and measured.

    python -m studies.latency_prediction --network mobilenet_v3_small --runtime onnx --plans 20 --seconds 120 --seed 0

Networks: `mobilenet_v3_small` (width 0.5, 64x64 pixels), `resnet18` (224x224 pixels) and `ds_cnn` (`studies/speech_
digits.py`), with random weights, on which latency does not depend. First networks and parts of networks are measured
for that many CPU seconds, as before a search; nothing that was measured before is used, unless `--kept` is given. Then
plans of all axes and of every strength are predicted, built, exported and timed in turns with the teacher's file, and
the errors are printed. Measured plans are written to `runs/latency_prediction`, and another run with the same seed does
not measure them again.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import torch
from scipy.stats import spearmanr
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18

from objectives import Examples, Latency, LatencyShare, Top1
from objectives.runtimes import RUNTIMES, named
from search import Splits, StudySpec
from search.evaluation.context import Context
from search.evaluation.measured_parts import MEASUREMENTS_VARIABLE
from search.evaluation.profiling import fit_before_search
from search.evaluation.subject import Subject
from search.proposals.stratified import StratifiedRandom
from search.study import machine
from search.study.files import load_json, save_json
from search.study.records import RANGES
from spaces import BitWidths, PruneRatios, Ranks, Space, Temperatures
from spaces.plan import architectures_of
from studies.speech_digits import DsCnn

if TYPE_CHECKING:
    from collections.abc import Callable

    from spaces import Plan

FOLDER = Path("runs/latency_prediction")
EXAMPLES = 16
CLASSES = 10
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "mobilenet_v3_small": (lambda: mobilenet_v3_small(width_mult=0.5, num_classes=CLASSES), (3, 64, 64)),
    "resnet18": (resnet18, (3, 224, 224)),
    "ds_cnn": (DsCnn, (1, 49, 20)),
}


def spec_of(network: str, runtime: str) -> StudySpec:
    """Return a study of a network with random weights, with the limit of no plan, for latency over the teacher's."""
    build, shape = NETWORKS[network]
    torch.manual_seed(0)
    teacher = build()
    inputs = torch.randn(EXAMPLES, *shape)
    with torch.no_grad():
        for _ in range(3):
            teacher.train()(inputs)  # gives BatchNorm statistics of these inputs
    teacher.eval()
    examples = Examples(inputs, torch.zeros(EXAMPLES, dtype=torch.int64))
    executes = named(runtime)
    latency = LatencyShare(Latency(executes, teacher, inputs[:1]))
    return StudySpec(
        f"latency-{network}-{runtime}",
        teacher,
        Splits(examples, examples, examples),
        Space(steps=(PruneRatios(), Ranks(), BitWidths(runtime=executes)), recovery=Temperatures()),
        objectives=(Top1(examples), latency),
        runtime=executes,
    )


def random_plans(context: Context, count: int, seed: int) -> list[tuple[dict[str, Any], Plan]]:
    """Return the parameters of plans of every strength, and the plans."""
    space, anatomy = context.spec.space, context.subject.anatomy
    study = optuna.create_study(sampler=StratifiedRandom(seed=seed))
    weak, strong = (space.uniform(anatomy, (strength,) * len(space.steps)) for strength in (0.0, 1.0))
    ranges = {name: [value, strong[name]] for name, value in weak.items() if name not in space.recovery.usual()}
    study.set_user_attr(RANGES, ranges)
    plans = []
    for _ in range(count):
        trial = study.ask()  # draws a strength, so the plan must be drawn before the next trial
        plan = space.suggest(trial, anatomy)
        plans.append((trial.params, plan))
    return plans


def measured(context: Context, plans: list[tuple[dict[str, Any], Plan]], path: Path) -> np.ndarray:
    """Return the measured latency of each plan over the teacher's; those in the file are not measured again."""
    known: list[float] = load_json(path)["known"] if path.exists() else []
    (latency,) = context.spec.costs
    for _, plan in plans[len(known) :]:
        known.append(latency(context.subject.finish(context.subject.build_roughly(plan))))
        save_json(path, {"known": known})
    return np.array(known[: len(plans)])


def main() -> None:
    """Fit, predict, measure and print."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--runtime", choices=RUNTIMES, default="onnx")
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="CPU time that measuring before the search may take"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the plans that are predicted")
    parser.add_argument("--kept", action="store_true", help="use and keep the machine's measurements")
    options = parser.parse_args()
    torch.set_num_threads(1)
    context = Context(spec := spec_of(options.network, options.runtime), Subject(spec, torch.device("cpu")))
    with tempfile.TemporaryDirectory() as fresh:
        if not options.kept:
            os.environ[MEASUREMENTS_VARIABLE] = fresh
        started = time.process_time()
        fit_before_search(context, options.seconds)
        seconds = time.process_time() - started
    plans = random_plans(context, options.plans, options.seed)
    batch = architectures_of(context.cost_model.frame, [plan for _, plan in plans])
    (name,) = context.cost_model.models
    predicted = context.cost_model.of(batch)[name]
    values = measured(context, plans, FOLDER / f"{spec.name}-{options.seed}.json")
    errors = np.abs(predicted / values - 1)
    for at, plan in enumerate(plans):
        sys.stdout.write(f"{at:3d}  predicted {predicted[at]:.3f}  measured {values[at]:.3f}  {plan[1].words()[:80]}\n")
    sys.stdout.write(
        f"{spec.name}: {len(plans)} plans, seed {options.seed}, {seconds:.0f} CPU s of measuring: median error "
        f"{np.median(errors):.1%}, largest {errors.max():.1%}, rank correlation "
        f"{spearmanr(predicted, values)[0]:.3f}; measured from {values.min():.2f} to {values.max():.2f} of the "
        f"teacher's time; the model expects {context.cost_model.models[name].error:.1%}; {machine.words()}\n"
    )


if __name__ == "__main__":
    main()
