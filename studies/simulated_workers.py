"""Many workers of one study on PostgreSQL, whose trials sleep instead of training.

    python -m studies.simulated_workers --workers 8 64 512 1000
    python -m studies.simulated_workers --workers 64 --url postgresql://user@host/empty_database

Everything that a worker does with the storage is done as in a run, of a network with 73 parameters: tickets, proposals
by the default sampler, attributes, results, the front. Without `--url` a server of its own is started, as by the tests.
Workers are threads of several processes; the threads of a process share a connection pool and a cache, as the workers
of a machine could. Each size starts with an empty database and ends by itself. With `--proxy` (it needs grpcio, of the
extra `peers`) all processes reach the database through one gRPC proxy of Optuna.
"""

from __future__ import annotations

import argparse
import contextlib
import json
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
    from collections.abc import Iterator, Sequence

    from optuna import Study
    from optuna.storages import BaseStorage

NAME = "simulated"
MOST_PROCESSES = 16  # in which workers are threads (chosen)
GRACE = 10.0  # seconds that a trial under way may take at the end (chosen)


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
        How long they work.
    queue
        Whether each proposal takes a turn at the queue, as in a run.
    server
        Process of the server, None if it is unknown.
    proxy
        Whether the workers reach the database through a gRPC proxy.
    """
    torch.set_num_threads(1)
    spec = spec_of(17)
    context = Context(spec, Subject(spec, torch.device("cpu")))
    _study(database_storage(url, create=True), 0)
    processes = min(count, MOST_PROCESSES)
    shares = [count // processes + (at < count % processes) for at in range(processes)]
    forked = multiprocessing.get_context("fork")
    results = forked.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder, _proxy(url) if proxy else contextlib.nullcontext() as port:
        started, until = _server_seconds(server), time.monotonic() + 60 * minutes
        reached = url if port is None else port
        workers = [
            forked.Process(
                target=_process, args=(reached, Path(folder), context, share, at, seconds, until, queue, results)
            )
            for at, share in enumerate(shares)
        ]
        for worker in workers:
            worker.start()
        found = [results.get() for _ in workers]
        for worker in workers:
            worker.join()
    ends = [end for each in found for end in each["ends"]]
    window = [end for end in ends if until - 30 * minutes <= end <= until]  # the second half, when all have begun
    rate = len(window) / (30 * minutes)
    between = [one for each in found for one in each["between"]]
    asks = [one for each in found for one in each["asks"]]
    done = max(1, len(ends))
    return {
        "workers": count,
        "trials": len(ends),
        "trials_a_second": rate,
        "efficiency": rate / (count / seconds),
        "ask_ms": 1000 * statistics.median(asks) if asks else float("nan"),
        "between_trials_s": statistics.median(between) if between else float("nan"),
        "worker_cpu_ms": 1000 * sum(each["cpu"] for each in found) / done,
        "server_cpu_ms": 1000 * (_server_seconds(server) - started) / done,
        "errors": sum(each["errors"] for each in found),
    }


def _study(storage: BaseStorage, seed: int) -> Study:
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
    share: int,
    at: int,
    seconds: float,
    until: float,
    queue: bool,  # noqa: FBT001
    results: Any,  # noqa: ANN401
) -> None:
    """Be some of the workers, and put what they did into a queue."""
    storage = _reached(where)
    done: dict[str, Any] = {"ends": [], "between": [], "asks": [], "errors": 0}

    def work(number: int) -> None:
        rng = random.Random(f"{at} {number}")  # noqa: S311 - when it begins
        try:
            _work(_study(storage, at * 1000 + number), folder, context, rng, seconds, until, done, queue=queue)
        except Exception as error:  # noqa: BLE001 - counted, and the others go on
            done["errors"] += 1
            sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}\n")

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(share)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until + GRACE - time.monotonic()))
    results.put(done | {"cpu": time.process_time()})
    os._exit(0)  # the heartbeats of workers that failed go on


def _work(
    study: Study,
    folder: Path,
    context: Context,
    rng: random.Random,
    seconds: float,
    until: float,
    done: dict[str, Any],
    *,
    queue: bool,
) -> None:
    time.sleep(rng.random() * seconds)
    (limit,) = context.spec.limits
    with Workers(study, folder) as workers:
        while time.monotonic() < until:
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
                done["asks"].append(time.monotonic() - asking)
                trial.set_user_attr(PLAN, plan.words())
                with workers.ticket(f"train {key} for 4 epochs") as training:
                    training.ahead()
                    read(study, ByPlan).of(key)
                    put_numbers(trial, VALUES, {"macs": 500.0})
                    trial.set_user_attr(EPOCHS, 4)
                    before = time.monotonic() - started
                    time.sleep(seconds)
                    after = time.monotonic()
                    size = 3000 * rng.lognormvariate(0, 1)
                    values = {"top1": 90 + rng.gauss(0, 3), "size_bytes": size, "macs": 500.0}
                    put_numbers(trial, VALUES, values)
                    put_numbers(trial, EXCESS, {str(limit): -0.5})
                    put_constraints(trial, [-0.5])
                    trial.set_user_attr(SECONDS, seconds)
                note_trial(study, study.tell(trial, [values["top1"], values["size_bytes"]]))
                trained_count(study)
                front(study)
            done["ends"].append(time.monotonic())
            done["between"].append(before + time.monotonic() - after)


def _server_seconds(process: int | None) -> float:
    """Return the CPU seconds of a server and its processes, those that have ended included."""
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
    settings = {"max_connections": "600", "shared_buffers": "256MB", "synchronous_commit": "on"}
    with pkgutil.resolve_name("tests.postgresql_server:Server")(settings) as server:
        yield server.database, server._process.pid  # noqa: SLF001


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", nargs="+", type=int, default=(8, 64, 512, 1000), help="numbers of workers")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a trial (default: 20)")
    parser.add_argument("--minutes", type=float, default=1.5, help="how long each number works (default: 1.5)")
    parser.add_argument(
        "--queue", action="store_true", help="take a turn at the queue for each proposal, as a run does"
    )
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
