"""What one worker and the server do for a trial among many workers on PostgreSQL, in CPU milliseconds.

    python -m studies.worker_among_others --others 8 64 512 1000

A thousand workers need more than one core; one worker among them does not. So only one works, as in
`studies.simulated_workers`. The rows of the others are written for them: during each of its trainings each of the
others ends a trial and begins one. A process holds their locks, as on one machine. The CPU of the server is that of the
processes that serve the worker; what it writes back later is not in it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pkgutil
import statistics
import sys
import tempfile
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pandas as pd
import sqlalchemy
import torch
from filelock import FileLock
from optuna.trial import TrialState, create_trial

from search.evaluation.context import Context
from search.evaluation.subject import Subject
from search.study.database import database_storage
from search.study.machine import running_system
from search.study.patience import CREATED_BY
from search.study.records import KEY, LOCKED_ON, PULSE, TASK, WORKER, WORKERS
from search.study.workers import PRESENT
from studies.simulated_workers import study_in, work
from studies.synthetic_trials import distributions_of, drawn_params, finished_trials, insert_all, spec_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study

TURNS = 5
ENDED = """
    INSERT INTO trial_values (trial_id, objective, value, value_type)
        SELECT trial_id, objective, 100 * random(), 'FINITE' FROM ended, generate_series(0, 1) objective;
    INSERT INTO trial_user_attributes (trial_id, key, value_json)
        SELECT trial_id, key, '-0.5' FROM ended, unnest(ARRAY['measured:a', 'measured:b', 'excess:a', 'seconds']) key;
    UPDATE trials SET state = 'COMPLETE' FROM ended WHERE trials.trial_id = ended.trial_id;
"""
GIVEN_BACK = "UPDATE trials SET state = 'FAIL' FROM ended WHERE trials.trial_id = ended.trial_id;"


class Others:
    """The other workers: their rows.

    Parameters
    ----------
    url
        The database.
    context
        The context of the study.
    count
        How many they are.
    """

    def __init__(self, url: str, context: Context, count: int) -> None:
        self.study = study_in(database_storage(url, create=True), 1)
        self.engine: sqlalchemy.Engine = self.study._storage._backend.engine  # type: ignore[attr-defined]  # noqa: SLF001
        self._tickets = optuna.load_study(study_name=self.study.study_name + WORKERS, storage=self.study._storage)  # noqa: SLF001
        self.names = [f"{at:032x}" for at in range(count)]
        rng, distributions = np.random.default_rng(0), distributions_of(context)
        first = [drawn_params(distributions, rng) for _ in range(count)]
        self._trials = list(finished_trials(context, distributions, first, count, rng))
        present = {TASK: PRESENT, LOCKED_ON: running_system(), PULSE: 0}
        self._add(self._tickets, [present | {WORKER: name} for name in self.names])
        self._kept = self._last()
        self._begin()

    def go_on(self) -> None:
        """End what each of them has begun, and begin another trial."""
        names = ", ".join(f"'\"{name}\"'" for name in self.names)
        for study, ended in ((self.study, ENDED), (self._tickets, GIVEN_BACK)):
            with self.engine.begin() as connection:
                connection.exec_driver_sql(
                    "CREATE TEMPORARY TABLE ended ON COMMIT DROP AS SELECT trial_id FROM trials "  # noqa: S608 - no input
                    f"JOIN trial_user_attributes a USING (trial_id) WHERE study_id = {study._study_id} "  # noqa: SLF001
                    f"AND state = 'RUNNING' AND trial_id > {self._kept} AND key = '{WORKER}' "
                    f"AND value_json IN ({names})"
                )
                for statement in filter(str.strip, ended.split(";")):
                    connection.exec_driver_sql(statement)
        self._begin()

    def _begin(self) -> None:
        """Begin a trial of each, with its two tickets."""
        plans = [f"plan {time.monotonic()} {name}" for name in self.names]
        own = [{WORKER: name, KEY: plan} for name, plan in zip(self.names, plans, strict=True)]
        self._add(self.study, [trial.user_attrs | one for trial, one in zip(self._trials, own, strict=True)])
        for task in ("one of the budget's trials", "train {} for 4 epochs"):
            self._add(self._tickets, [{TASK: task.format(one[KEY]), WORKER: one[WORKER]} for one in own])

    def _add(self, study: Study, attributes: list[dict[str, Any]]) -> None:
        """Add running trials, those of the study itself with parameters."""
        drawn = self._trials if study is self.study else [create_trial(state=TrialState.RUNNING)] * len(attributes)
        trials = [
            create_trial(
                state=TrialState.RUNNING, params=trial.params, distributions=trial.distributions,
                user_attrs=each, system_attrs={CREATED_BY: "0" * 32},
            )
            for trial, each in zip(drawn, attributes, strict=True)
        ]  # fmt: skip
        insert_all(study, self._last() + 1, len(study.get_trials(deepcopy=False)), trials)

    def _last(self) -> int:
        with self.engine.begin() as connection:
            return int(connection.exec_driver_sql("SELECT coalesce(max(trial_id), 0) FROM trials").scalar_one())

    def served(self) -> float:
        """Return the CPU seconds of the server's processes that serve somebody else."""
        query = (
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() "
            "AND datname = current_database()"
        )
        with self.engine.begin() as connection:
            pids = connection.exec_driver_sql(query).scalars().all()
        return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e9


def measured(url: str, count: int) -> dict[str, Any]:
    """Return what a worker does among so many others, for an empty database."""
    torch.set_num_threads(1)
    spec = spec_of(17)
    context = Context(spec, Subject(spec, torch.device("cpu")))
    forked = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = study_in(database_storage(url, create=True), 0)
        work(study, folder, context, lambda: None, lambda _: None, queue=False, trials=1)
        others = Others(url, context, count)
        ready = forked.Event()
        holder = forked.Process(target=_hold, args=(folder / "workers", others.names, ready), daemon=True)
        holder.start()
        ready.wait()
        messages = _counted(study._storage._backend.engine)  # type: ignore[attr-defined]  # noqa: SLF001
        found: list[list[float]] = []
        now: list[float] = []

        def read() -> list[float]:
            return [time.process_time(), others.served(), messages[0]]

        def train() -> None:
            before = read()
            others.go_on()
            after = read()
            now[:] = [
                start + later - earlier for start, earlier, later in zip(now or before, before, after, strict=True)
            ]

        def note(what: dict[str, Any]) -> None:
            if "end" in what:
                end = read()
                found.append([last - first for first, last in zip(now, end, strict=True)])
                now[:] = read()

        work(study, folder, context, train, note, queue=False, trials=TURNS + 2)
        holder.kill()
        holder.join()
    worker, server, sent = zip(*found[2:], strict=True)  # the first turns read what was there
    return {
        "others": count,
        "turns": len(worker),
        "worker_cpu_ms": 1000 * statistics.median(worker),
        "server_cpu_ms": 1000 * statistics.median(server),
        "messages": statistics.median(sent),
    }


def _hold(folder: Path, names: list[str], ready: Any) -> None:  # noqa: ANN401 - an event
    """Hold the locks of the others."""
    with ExitStack() as held:
        for name in names:
            held.enter_context(FileLock(folder / name, thread_local=False))
        ready.set()
        time.sleep(86_400)


def _counted(engine: sqlalchemy.Engine) -> list[int]:
    """Return the number of messages to the server, which goes on counting: statements, and what frames transactions."""
    sent = [0]

    def count(*_: object) -> None:
        sent[0] += 1

    for name in ("before_cursor_execute", "begin", "commit", "checkout"):  # each checkout asks whether the server lives
        sqlalchemy.event.listen(engine, name, count)
    return sent


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--others", nargs="+", type=int, default=(8, 64, 512, 1000), help="numbers of other workers")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    rows = []
    for count in options.others:
        with pkgutil.resolve_name("tests.postgresql_server:Server")({"shared_buffers": "256MB"}) as server:
            rows.append(measured(server.database(), count))
        sys.stdout.write(json.dumps(rows[-1]) + "\n")
        sys.stdout.flush()
    sys.stdout.write(pd.DataFrame(rows).round(1).to_string(index=False) + "\n")


if __name__ == "__main__":
    main()
