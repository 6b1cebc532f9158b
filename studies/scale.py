"""What one turn of a run costs as its study grows: CPU milliseconds and memory at several numbers of finished trials.

    python -m studies.scale --trials 100 1000 10000
    python -m studies.scale --trials 10000 --storage sqlite postgresql

The trials are synthetic, written as a run writes them (`studies.synthetic_trials`). Each size runs in a process of its
own. Of the turn, the median of several is taken; each adds a trial, so that nothing can be kept from the turn before.
"""

from __future__ import annotations

import argparse
import json
import pkgutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pandas as pd
import torch
from optuna.trial import TrialState

from search.evaluation.context import Context
from search.evaluation.earlier_trials import same_plan, shorter_training
from search.evaluation.profiling import refit
from search.evaluation.subject import Subject
from search.evaluation.trial import key_of
from search.loop.schedule import expected_seconds
from search.loop.watch import Watch
from search.proposals.gaps import fill_widest_gap
from search.proposals.proxy_correlation import is_misleading
from search.proposals.refusals import turn_after_refusals
from search.study.attributes import keyed, put, put_constraints
from search.study.budget_clock import BudgetClock
from search.study.front import front, trained_count
from search.study.notes import note_trial
from search.study.queue import QUEUE, ask, enqueue, rerun_abandoned
from search.study.records import EPOCHS, EXCESS, KEY, PLAN, RATE, SECONDS, TRAINED_LOSS, VALUES
from search.study.storage import open_study
from search.study.workers import Workers
from studies.synthetic_trials import filled, spec_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna import Study, Trial

BLOCKS = 17, 49  # convolutions; about 70 and 200 parameters
MEBIBYTE = 2**20
TURNS = 5


def measured(blocks: int, trials: int, storage: str, folder: Path) -> dict[str, Any]:
    """Fill a study, and measure what its turns cost."""
    context = _context(blocks)
    found: dict[str, Any] = {"storage": storage, "trials": trials}
    with ExitStack() as stack:
        url = _database(storage, folder, stack)
        study = filled(context, folder, url, trials)
        del study
        command = [sys.executable, "-m", "studies.scale", "--only", str(blocks), str(folder), url or ""]
        for turn in ("first", "second"):
            lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603
            last = json.loads(lines.splitlines()[-1])
            found |= last if turn == "first" else {"open_again_ms": last["open_ms"]}
    return found


def _database(storage: str, folder: Path, stack: ExitStack) -> str | None:
    """Return the address of an empty database, None for the journal; a server of PostgreSQL is started for it."""
    if storage == "postgresql":
        server: str = stack.enter_context(pkgutil.resolve_name("tests.postgresql_server:Server")({})).database()
        return server
    return f"sqlite:///{folder}/study.db" if storage == "sqlite" else None


def turns_of(blocks: int, folder: Path, url: str | None) -> dict[str, float]:
    """Open the study in this process, take some turns, and return the medians."""
    context = _context(blocks)
    before = _memory()
    started, wall = time.process_time(), time.perf_counter()
    study = open_study(context.spec, folder, url, create=True)
    opening = time.process_time() - started, time.perf_counter() - wall
    row = {"parameters": float(len(study.get_trials(deepcopy=False)[-1].params))}
    row |= {"open_ms": 1000 * opening[0], "open_wall_ms": 1000 * opening[1], "open_mb": _memory() - before}
    columns: dict[str, list[float]] = {}
    watch = Watch(study, context, folder, context.spec.recipe, None, BudgetClock(context.spec.budget))
    with Workers(study, folder) as workers, watch:
        context.workers = workers
        for turn in range(TURNS + 1):
            times = _turn(study, context, folder, watch, workers, enqueued=turn == TURNS)
            if turn:  # the first one reads all trials
                for name, milliseconds in times.items():
                    columns.setdefault(name, []).append(milliseconds)
            else:
                row["first_turn_ms"] = sum(times.values())
    row |= {name: statistics.median(several) for name, several in columns.items()}
    row["turn_ms"] = sum(v for name, v in row.items() if name in columns and name not in {"ask_queued", "front"})
    row["held_mb"] = _memory() - before
    return row


def _turn(
    study: Study, context: Context, folder: Path, watch: Watch, workers: Workers, *, enqueued: bool
) -> dict[str, float]:
    """Take one turn of `search.loop.run`, without training; return the CPU milliseconds of each part."""
    found: dict[str, float] = {}

    def timed(name: str, act: Callable[[], Any]) -> Any:  # noqa: ANN401 - of any act
        started = time.process_time()
        given = act()
        found[name] = found.get(name, 0.0) + 1000 * (time.process_time() - started)
        return given

    def asked() -> Trial:
        trial = ask(study, workers)
        context.spec.space.suggest(trial, context.subject.anatomy)
        return trial

    def ticket(task: str) -> None:
        with workers.ticket(task) as drawn:
            drawn.ahead()

    timed("over", watch.over)
    timed("abandoned", lambda: rerun_abandoned(study, workers))
    for task in ("one of the budget's trials", QUEUE, "train it for 4 epochs"):
        timed("tickets", lambda task=task: ticket(task))  # type: ignore[misc]
    timed("refit", lambda: refit(study, context))
    timed("refusals", lambda: turn_after_refusals(study, context))
    timed("gap", lambda: fill_widest_gap(study, context))
    if enqueued:
        enqueue(study, study.get_trials(deepcopy=False)[-2].params)
    else:  # the draft's plans are not what is measured
        while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            study.tell(study.ask(), state=TrialState.FAIL)
    trial = timed("ask_queued" if enqueued else "ask", asked)
    plan = context.plan(trial.params)
    timed("misleading", lambda: is_misleading(study, context.spec))
    timed("same_plan", lambda: same_plan(study, key_of(plan), trial.number, context.spec.recipe.epochs))
    timed("same_plan", lambda: shorter_training(study, key_of(plan), folder))
    values = {"top1": 91.0 + trial.number % 7, "size_bytes": 3000.0 + trial.number, "macs": 500.0}
    (limit,) = context.spec.limits

    def record() -> None:
        put(trial, {KEY: key_of(plan), PLAN: plan.words()})
        trial.set_user_attr(EPOCHS, 4)
        trial.set_user_attr(RATE, 0.1)
        put(trial, {TRAINED_LOSS: 0.4, SECONDS: 2.0} | keyed(VALUES, values) | keyed(EXCESS, {str(limit): -0.5}))
        put_constraints(trial, [-0.5])

    timed("record", record)
    timed("tell", lambda: note_trial(study, study.tell(trial, [values["top1"], values["size_bytes"]])))
    timed("update", watch.update)
    timed("front", lambda: front(study))
    timed("count", lambda: trained_count(study))
    timed("expected", lambda: expected_seconds(study))
    return found


def _context(blocks: int) -> Context:
    spec = spec_of(blocks)
    return Context(spec, Subject(spec, torch.device("cpu")))


def _memory() -> float:
    """Return the memory of this process, in mebibytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / MEBIBYTE


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", nargs="+", type=int, default=(100, 1000, 10000), help="finished trials")
    parser.add_argument("--blocks", nargs="+", type=int, default=BLOCKS[:1], help="convolutions of the network")
    parser.add_argument("--storage", nargs="+", choices=("journal", "sqlite", "postgresql"), default=("journal",))
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if options.only:
        blocks, folder, url = options.only
        sys.stdout.write(json.dumps(turns_of(int(blocks), Path(folder), url or None)) + "\n")
        return
    rows = []
    for storage in options.storage:
        for blocks in options.blocks:
            for trials in options.trials:
                with tempfile.TemporaryDirectory() as folder:
                    rows.append(measured(blocks, trials, storage, Path(folder)))
        sys.stdout.write(pd.DataFrame(rows).round(1).T.to_string(header=False) + "\n\n")


if __name__ == "__main__":
    main()
