"""Many workers of one study on PostgreSQL, whose trials sleep instead of training.

    python -m studies.simulated_workers --workers 8 64 512 1000 --seconds 300
    python -m studies.simulated_workers --workers 64 --url postgresql://user@host/empty_database

Everything that a worker does with the storage is done as in a run, of a network with 73 parameters: tickets, proposals
by the default sampler, attributes, results, the front. Without `--url` a server of its own is started, as by the tests.
Each worker has a connection and a cache of its own; up to four are threads of one process, since a process takes 30 MB
of its own, though all are forked from one that has imported all. They start one after the other within the length of a
trial. Once the last one has begun its first trial it is measured for some minutes what all do; then they are killed.
Each size starts with an empty database, unless `--url` names one. With `--proxy` (it needs grpcio, of the extra
`peers`) all reach the database through one gRPC proxy of Optuna, whose CPU time counts as that of the workers.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import math
import multiprocessing
import os
import pkgutil
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pandas as pd
import torch

from search.evaluation.context import Context
from search.evaluation.subject import Subject
from search.evaluation.trial import key_of
from search.proposals.joint_tpe import JointTPE
from search.study.attributes import put_constraints, put_numbers
from search.study.database import database_storage, database_url
from search.study.front import front, trained_count
from search.study.history import ByPlan, read
from search.study.notes import note_trial
from search.study.queue import QUEUE, ask, rerun_abandoned
from search.study.records import EPOCHS, EXCESS, KEY, PLAN, SECONDS, VALUES
from search.study.seeded_sampler import SeededSampler
from search.study.workers import Workers
from studies.synthetic_trials import spec_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from optuna import Study
    from optuna.storages import BaseStorage

NAME = "simulated"
THREADS = 4  # workers of a process, at most (chosen)


def simulated(
    url: str, count: int, seconds: float, minutes: float, *, queue: bool, server: int | None, proxy: bool = False
) -> dict[str, Any]:
    """Return what so many workers do together.

    Parameters
    ----------
    url
        An empty database.
    count
        Number of workers.
    seconds
        Length of a trial.
    minutes
        How long they are measured, once all have begun.
    queue
        Whether each proposal takes a turn at the queue.
    server
        Process of the server, None if it is unknown.
    proxy
        Whether the workers reach the database through a gRPC proxy.
    """
    torch.set_num_threads(1)
    spec = spec_of(17)
    context = Context(spec, Subject(spec, torch.device("cpu")))
    forked = multiprocessing.get_context("fork")
    study = study_in(database_storage(url, create=True), 0)  # before a proxy creates the tables
    with tempfile.TemporaryDirectory() as name, _proxy(url) if proxy else contextlib.nullcontext() as port:
        folder, started, where = Path(name), time.monotonic(), url if port is None else port
        work(study, folder, context, lambda: None, lambda _: None, queue=queue, trials=1)
        del study
        gc.collect()
        gc.freeze()  # a collection would write to all pages, which the workers share with this process
        now, several = time.monotonic(), math.ceil(count / THREADS)
        starts = {number: now + number * seconds / count for number in range(count)}
        workers = [
            forked.Process(
                target=_process,
                args=(where, folder, context, dict(list(starts.items())[at::several]), seconds, queue),
                daemon=True,
            )
            for at in range(several)
        ]
        for worker in workers:
            worker.start()
        while not all(_lines(folder, number) for number in range(count)):
            if not all(worker.is_alive() for worker in workers):
                sys.exit("a process ended before its first trial; there may be too little memory")
            time.sleep(1)
        begun, cpu = time.monotonic(), (_seconds(os.getpid()), _seconds(server))
        time.sleep(60 * minutes)
        ended, used = time.monotonic(), (_seconds(os.getpid()) - cpu[0], _seconds(server) - cpu[1])
        for worker in workers:
            worker.kill()
        found = [_lines(folder, number) for number in range(count)]
    trials = [one for lines in found for one in lines if begun <= one.get("end", -math.inf) <= ended]
    opened = [lines[0]["opened"] for lines in found if "opened" in lines[0]]
    done = max(1, len(trials))
    return {
        "workers": count,
        "trials": len(trials),
        "trials_a_second": len(trials) / (ended - begun),
        "efficiency": len(trials) / (ended - begun) / (count / seconds),
        "ask_ms": 1000 * statistics.median([one["ask"] for one in trials] or [math.nan]),
        "between_trials_s": statistics.median([one["between"] for one in trials] or [math.nan]),
        "worker_cpu_ms": 1000 * used[0] / done,
        "server_cpu_ms": 1000 * used[1] / done,
        "open_cpu_ms": 1000 * statistics.median(opened or [math.nan]),
        "start_s": begun - started,
        "errors": sum("error" in one for lines in found for one in lines),
    }


def _lines(folder: Path, number: int) -> list[dict[str, Any]]:
    """Return what a worker has recorded."""
    path = folder / f"{number}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def study_in(storage: BaseStorage, seed: int) -> Study:
    """Return the study in a storage, as a worker with this seed sees it."""
    return optuna.create_study(
        storage=storage, study_name=NAME, directions=["maximize", "minimize"], load_if_exists=True,
        sampler=SeededSampler(JointTPE, seed),
    )  # fmt: skip


@contextlib.contextmanager
def _proxy(url: str) -> Iterator[int]:
    """Yield the port of a proxy of the database, which is a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]

    def serve() -> None:
        # Optuna's own cache: ours writes what one thread drew, and here any thread answers the next request of a worker
        storage = optuna.storages.get_storage(database_url(url).render_as_string(hide_password=False))
        optuna.storages.run_grpc_proxy_server(storage, host="127.0.0.1", port=port, thread_pool=ThreadPoolExecutor(64))

    process = multiprocessing.get_context("fork").Process(target=serve, daemon=True)
    process.start()
    try:
        yield port
    finally:
        process.kill()
        process.join()


def _reached(where: str | int) -> BaseStorage:
    """Return the storage at a URL, or behind the proxy at a port."""
    if isinstance(where, str):
        return database_storage(where, create=True)
    storage = optuna.storages.GrpcStorageProxy(host="127.0.0.1", port=where)
    storage.wait_server_ready(timeout=60)
    return storage


def _process(
    where: str | int,
    folder: Path,
    context: Context,
    starts: dict[int, float],
    seconds: float,
    queue: bool,  # noqa: FBT001
) -> None:
    """Be some of the workers, from these moments on, and record what they do."""

    def begin(number: int) -> None:
        time.sleep(max(0.0, starts[number] - time.monotonic()))
        with (folder / f"{number}.jsonl").open("w", buffering=1) as record:

            def note(what: dict[str, Any]) -> None:
                record.write(json.dumps(what) + "\n")

            try:
                study = study_in(_reached(where), number)
                work(study, folder, context, lambda: time.sleep(seconds), note, queue=queue)
            except Exception as error:  # noqa: BLE001 - counted, and the others go on
                note({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"})
                sys.stderr.write(f"{error}\n")

    for thread in [threading.Thread(target=begin, args=(number,)) for number in starts]:
        thread.start()


def work(
    study: Study,
    folder: Path,
    context: Context,
    train: Callable[[], object],
    note: Callable[[dict[str, Any]], object],
    *,
    queue: bool,
    trials: int | None = None,
) -> None:
    """Be a worker for so many trials, without end if it is None; `train` takes the place of a training.

    `note` is called with the CPU seconds until the first training, and after each trial with the time, the seconds that
    it took without its training, and those of its proposal.
    """
    rng = random.Random(str(time.monotonic()))  # noqa: S311 - results
    (limit,) = context.spec.limits
    opened = False
    with Workers(study, folder) as workers:
        for _ in itertools.count() if trials is None else range(trials):
            started = time.monotonic()
            rerun_abandoned(study, workers)
            with workers.ticket("one of the budget's trials") as ticket:
                ticket.ahead()
                trained_count(study)
                with workers.turn(QUEUE) if queue else contextlib.nullcontext():
                    study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
                asking = time.monotonic()
                trial = ask(study, workers)
                plan = context.spec.space.suggest(trial, context.subject.anatomy)
                key = key_of(plan)
                trial.set_user_attr(KEY, key)
                asked = time.monotonic() - asking
                trial.set_user_attr(PLAN, plan.words())
                with workers.ticket(f"train {key} for 4 epochs") as training:
                    training.ahead()
                    read(study, ByPlan).of(key)
                    put_numbers(trial, VALUES, {"macs": 500.0})
                    trial.set_user_attr(EPOCHS, 4)
                    if not opened:
                        opened = True
                        note({"opened": time.thread_time()})
                    before = time.monotonic() - started
                    train()
                    after = time.monotonic()
                    size = 3000 * rng.lognormvariate(0, 1)
                    values = {"top1": 90 + rng.gauss(0, 3), "size_bytes": size, "macs": 500.0}
                    put_numbers(trial, VALUES, values)
                    put_numbers(trial, EXCESS, {str(limit): -0.5})
                    put_constraints(trial, [-0.5])
                    trial.set_user_attr(SECONDS, after - started - before)
                note_trial(study, study.tell(trial, [values["top1"], values["size_bytes"]]))
                trained_count(study)
                front(study)
            end = time.monotonic()
            note({"end": end, "between": before + end - after, "ask": asked})


def _seconds(process: int | None) -> float:
    """Return the CPU seconds of a process and those that it started, also of those that have ended."""
    if process is None:
        return float("nan")
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = path.read_text().rpartition(")")
            fields = rest.split()
            if int(name.split()[0]) == process:
                ticks += sum(map(int, fields[11:15]))  # of its ended processes, too
            elif int(fields[1]) == process:
                ticks += sum(map(int, fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _server(url: str | None) -> Iterator[tuple[Any, int | None]]:
    """Yield what returns the URL of an empty database, and the process of the server."""
    if url is not None:
        yield (lambda: url), None
        return
    settings = {"max_connections": "1100", "shared_buffers": "256MB", "synchronous_commit": "on"}
    with pkgutil.resolve_name("tests.postgresql_server:Server")(settings) as server:
        yield server.database, server._process.pid  # noqa: SLF001


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", nargs="+", type=int, default=(8, 64, 512, 1000), help="numbers of workers")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a trial (default: 60)")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long each number is measured (default: 2)")
    parser.add_argument("--queue", action="store_true", help="take a turn at the queue for each proposal")
    parser.add_argument("--proxy", action="store_true", help="reach the database through a gRPC proxy")
    parser.add_argument("--url", help="an empty database; by default that of a server that is started")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    rows = []
    with _server(options.url) as (database, process):
        for count in options.workers:
            how = {"queue": options.queue, "server": process, "proxy": options.proxy}
            rows.append(simulated(database(), count, options.seconds, options.minutes, **how))
            sys.stdout.write(json.dumps(rows[-1]) + "\n")
            sys.stdout.flush()
    sys.stdout.write(pd.DataFrame(rows).round(3).to_string(index=False) + "\n")


if __name__ == "__main__":
    main()
