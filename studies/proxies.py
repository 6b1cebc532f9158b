"""How well different proxies rank plans of similar cost, compared with what training gives.

    python -m studies.proxies --study digits --plans 24 --bands 4 --draft-seconds 60 --seed 0

Studies: `digits`, `residual` (Fashion-MNIST), `speech` (DS-CNN on spoken digits) and `photographs` (MobileNetV3-small).
A draft is made as before a search; plans are drawn from it at random in bands of similar cost, which are spread over
the draft's costs. Each plan is judged by every proxy: the sum of the sensitivity table, the loss before training, and
the loss after a few steps of training. Then it is trained by the study's recipe with two seeds. The table shows, for
each proxy, Spearman's rank correlation with the trained result, the mean over the bands, and its CPU seconds per plan.
The results are the first objective on the validation set, and the proxy loss there, which has finer steps; the
correlations with each training are averaged. `mean` is the geometric mean of the table's sum and the
loss before training. The last row is what one training tells of another with another seed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna
import pandas as pd
import torch
from scipy.stats import spearmanr

from objectives.objective import Foreseeable
from search import Budget, DraftStart
from search.evaluation.context import Context
from search.evaluation.proxy_loss import PROXY_INPUTS, ProxyLoss
from search.evaluation.subject import Subject
from search.evaluation.trial import key_of, seed_of
from search.loop.rates import range_tested
from search.proposals.defaults import resolved
from search.proposals.draft_records import MIN_LOSS, draft_of
from search.proposals.sensitivity_table import measured_table
from search.proposals.table_losses import proxy_loss_of
from search.study.budget_clock import BudgetClock
from search.study.console import track
from search.study.storage import open_study
from studies import digits, fashion_mnist, photographs, speech_digits

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.trial import FrozenTrial

    from search import StudySpec

STUDIES: dict[str, Callable[[], StudySpec]] = {
    "digits": digits.study,
    "residual": fashion_mnist.residual,
    "speech": speech_digits.study,
    "photographs": photographs.mobilenet,
}
STEPS = (10, 25, 50, 100)  # of the short trainings
FULL_SEEDS = 2  # trainings of each plan by the recipe
WORST_LOSS = 0.9  # plans of the draft with a larger proxy loss are not drawn: nobody would train them


def measured(spec: StudySpec, plans: int, bands: int, seconds: float, path: Path) -> pd.DataFrame:
    """Return a row for each plan: its band, its cost, the proxies, their CPU seconds, and the trained results.

    The rows are written to a file after each plan.
    """
    spec = resolved(replace(spec, budget=Budget(trials=None, cpu_seconds=seconds)))
    # a cost that is measured would take most of the time here, and does not change how plans of a band are ranked
    spec = replace(spec, objectives=tuple(x for x in spec.objectives if not x.is_cost or isinstance(x, Foreseeable)))
    with tempfile.TemporaryDirectory() as folder:
        study = open_study(spec, Path(folder), None, create=True)
        context = Context(spec, Subject(spec, torch.device("cpu")))
        clock = BudgetClock(spec.budget)
        DraftStart(share=1.0)(context, study, clock)
        table = measured_table(context, study, clock)
        draft = draft_of(study)
        assert draft is not None
        rate = range_tested(study, context)
        held_out = spec.splits.validation
        validation = ProxyLoss(context.subject.model, held_out, context.usual_recovery, 0, len(held_out))
        rows = []
        with track("training plans") as progress:
            chosen = _in_bands(draft.get_trials(deepcopy=False), plans, bands, spec.seed)
            for done, (band, params, cost) in enumerate(chosen):
                plan = context.plan(params)
                row: dict[str, float] = {"band": band, "cost": cost}
                choices = [at.index(params[name]) for name, at in zip(table.names, table.values, strict=True)]
                row["table"], row["table seconds"] = float(table.sums(np.array([choices]))[0]), 0.0
                started = time.process_time()
                row["untrained"] = proxy_loss_of(context, plan, PROXY_INPUTS)
                row["untrained seconds"] = time.process_time() - started
                recipes = {f"{steps} steps": (spec.recipe.of_steps(steps, spec.splits.train), [0]) for steps in STEPS}
                recipes["full"] = spec.recipe, list(range(1, 1 + FULL_SEEDS))
                for name, (recipe, turns) in recipes.items():
                    for turn in turns:
                        started = time.process_time()
                        model = context.build(plan)
                        context.train(
                            model, plan, context.with_rate(recipe, model, rate), seed_of(spec, key_of(plan), turn)
                        )
                        if name == "full":
                            row[f"objective {turn}"] = spec.objectives[0](context.subject.finish(model))
                            row[f"loss {turn}"] = validation(model)
                        else:
                            row[name] = context.proxy_loss(model)
                        row[f"{name} seconds"] = time.process_time() - started
                rows.append(row)
                pd.DataFrame(rows).to_csv(path, index=False)
                progress((done + 1) / len(chosen))
    return pd.DataFrame(rows)


def _in_bands(
    trials: list[FrozenTrial], plans: int, bands: int, seed: int
) -> list[tuple[int, dict[str, float], float]]:
    """Return the band, the parameters and the cost of as many plans in each band, the bands in turns.

    They are drawn from the three times as many that are nearest to the middle of the band in cost.
    """
    rng = np.random.default_rng(seed)
    drafted = [(trial.params, *trial.values[:2]) for trial in trials]  # noqa: PD011 - no pandas
    usable = [(params, cost) for params, loss, cost in drafted if loss < WORST_LOSS]
    costs = np.log([cost for _, cost in usable])
    in_band: list[list[int]] = []
    taken, each = np.zeros(len(usable), dtype=bool), plans // bands
    low, high = np.quantile(costs, (0.05, 0.95))
    for middle in np.linspace(low, high, bands):
        near = np.where(taken, np.inf, np.abs(costs - middle)).argsort()[: 3 * each]
        in_band.append(rng.permutation(near)[:each].tolist())
        taken[in_band[-1]] = True
    return [(band, *usable[at]) for turn in zip(*in_band, strict=True) for band, at in enumerate(turn)]


def correlations(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean rank correlations in bands of each proxy with the objective and with the loss after training."""
    sign = -1 if np.corrcoef(rows["objective 1"], rows["loss 1"])[0, 1] < 0 else 1
    rows = rows.assign(
        mean=np.sqrt(rows["table"].clip(lower=MIN_LOSS) * rows["untrained"].clip(lower=MIN_LOSS)),
        **{"mean seconds": rows["untrained seconds"]},
        **{f"objective {turn}": sign * rows[f"objective {turn}"] for turn in range(1, 1 + FULL_SEEDS)},
    )
    table = {
        name: {
            **{f"with {result}": _with_trainings(rows, name, result) for result in ("objective", "loss")},
            "CPU seconds": rows[f"{name} seconds"].mean(),
        }
        for name in ("table", "untrained", "mean", *(f"{steps} steps" for steps in STEPS))
    }
    table["one training"] = {
        f"with {result}": _in_band(rows, f"{result} 1", f"{result} 2") for result in ("objective", "loss")
    } | {"CPU seconds": rows["full seconds"].mean()}
    return pd.DataFrame(table).T.round(2)


def _with_trainings(rows: pd.DataFrame, proxy: str, result: str) -> float:
    return float(np.mean([_in_band(rows, proxy, f"{result} {turn}") for turn in range(1, 1 + FULL_SEEDS)]))


def _in_band(rows: pd.DataFrame, one: str, other: str) -> float:
    found = [float(spearmanr(band[one], band[other])[0]) for _, band in rows.groupby("band")]
    return float(np.nanmean(found))


def main() -> None:
    """Measure, keep the rows, print the correlations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="digits", choices=STUDIES, help="the study (default: digits)")
    parser.add_argument("--plans", type=int, default=24, help="plans to train (default: 24)")
    parser.add_argument("--bands", type=int, default=4, help="bands of similar cost (default: 4)")
    parser.add_argument("--draft-seconds", type=float, default=60.0, help="CPU seconds of the draft (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the study and the choice of plans (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/proxies"), help="folder of the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    spec = replace(STUDIES[options.study](), seed=options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.study}-{options.seed}.csv"
    rows = measured(spec, options.plans, options.bands, options.draft_seconds, path)
    sys.stdout.write(f"{correlations(rows)}\nn = {len(rows)} plans in {options.bands} bands\n")


if __name__ == "__main__":
    main()
