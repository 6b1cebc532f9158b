"""Processes that are killed at random moments: nothing is lost, and nothing is done twice.

    python -m studies.kills equal --kills 20 --seed 0     one worker: the same front as without any kill, bit for bit
    python -m studies.kills soak --minutes 30 --seed 0    several workers, of which one is killed now and then

`equal` runs a small study of the digits to its end, then again in another folder with a kill -9 after a random time,
until as many kills were survived as asked; each run goes on where the one before was killed. `soak` lets a run of
several workers go on for the time, kills a random worker at random intervals, and follows memory and open files of
each process: what the workers held at several ages, and a slope of what each process held after its first minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.trial import TrialState

from search.proposals.draft_records import draft_of
from search.study.files import RUNS
from search.study.front import front, trained, trained_count
from search.study.journal import storage_at
from search.study.records import KEY, PLAN

STUDY = "digits"
ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 240.0  # seconds of a process before the slope of its memory: imports, the table, the largest networks
LEAST_FOLLOWED = 120.0  # seconds after these for which a slope is fitted
AGES = 1, 2, 4, 8, 16  # minutes at which the memory of workers is told
LOOK_SECONDS = 2.0
LONGEST_RUN = 3600.0  # seconds
MEGABYTE = 2**20


class Seen(NamedTuple):
    """What a process held at one moment: its age in seconds, resident bytes, open files."""

    age: float
    resident: int
    files: int


def command(*words: str) -> list[str]:
    """Return the command line of a run of the digits, without verification."""
    return [
        sys.executable,
        "-m",
        "search",
        "run",
        str(ROOT / "studies" / "digits.py") + ":study",
        "--unverified",
        *words,
    ]


def opened(folder: Path) -> optuna.Study:
    """Return the study that was run in a folder."""
    return optuna.load_study(study_name=STUDY, storage=storage_at(folder / RUNS / STUDY, None, create=False))


def outcome(study: optuna.Study) -> list[tuple[Any, ...]]:
    """Return the plan, the parameters and the values of each member of the front."""
    return sorted((trial.user_attrs[KEY], tuple(trial.params.items()), tuple(trial.values)) for trial in front(study))


def faults(study: optuna.Study) -> dict[str, int]:
    """Return how many plans were trained or scored twice, and how many trials are still running."""
    draft = draft_of(study)
    scored = Counter(trial.user_attrs[PLAN] for trial in draft.trials) if draft is not None else Counter()
    taught = Counter(trial.user_attrs[KEY] for trial in trained(study))
    return {
        "trained": trained_count(study),
        "trained twice": sum(count - 1 for count in taught.values()),
        "scored twice": sum(count - 1 for count in scored.values()),
        "left running": len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))),
    }


def equal(kills: int, seed: int, trials: int) -> dict[str, Any]:
    """Compare a study that is killed with one that is not; return what was found."""
    rng = random.Random(seed)  # noqa: S311 - moments of kills
    survived = differing = lost = 0
    with tempfile.TemporaryDirectory() as temporary:
        whole, words = Path(temporary) / "whole", command("--trials", str(trials), "--seed", str(seed))
        whole.mkdir()
        started = time.monotonic()
        subprocess.run(words, cwd=whole, check=True, capture_output=True, timeout=LONGEST_RUN)  # noqa: S603
        seconds = time.monotonic() - started
        expected = outcome(opened(whole))
        number = 0
        while survived < kills:
            number += 1
            folder = Path(temporary) / str(number)
            folder.mkdir()
            while True:
                process = subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # noqa: S603
                try:
                    process.communicate(timeout=rng.uniform(0.2, 1.0) * seconds if survived < kills else LONGEST_RUN)
                    break
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                    survived += 1
            assert process.returncode == 0, f"run {number} ended with {process.returncode}"
            study = opened(folder)
            found = outcome(study)
            differing += found != expected
            for one in [member for member in found if member not in expected]:
                print(f"  only after kills: {one}", flush=True)  # noqa: T201
            lost += trials - trained_count(study)
            print(f"study {number}: {survived} kills so far, {differing} fronts differ", flush=True)  # noqa: T201
    return {"kills": survived, "studies": number, "fronts that differ": differing, "lost trials": lost}


def soak(minutes: float, seed: int, workers: int, every: float) -> dict[str, Any]:
    """Kill random workers of a run for some minutes; return what was found."""
    rng = random.Random(seed)  # noqa: S311 - moments of kills
    seen: dict[int, list[Seen]] = defaultdict(list)
    born: dict[int, float] = {}
    kills = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        words = command("--minutes", str(minutes), "--workers", str(workers), "--seed", str(seed))
        with (folder / "log").open("wb") as log:
            run = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log)  # noqa: S603
            next_kill = time.monotonic() + rng.uniform(0.5, 1.5) * every
            until = time.monotonic() + 60 * minutes - every / 2  # the last ones end by themselves
            while run.poll() is None:
                now = time.monotonic()
                alive = workers_of(run.pid)
                for pid in [run.pid, *alive]:
                    with contextlib.suppress(OSError, ValueError, IndexError):
                        seen[pid].append(held(pid, now - born.setdefault(pid, now)))
                if alive and next_kill < now < until:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(rng.choice(alive), signal.SIGKILL)
                        kills += 1
                    next_kill = now + rng.uniform(0.5, 1.5) * every
                time.sleep(LOOK_SECONDS)
        found = faults(opened(folder))
        tail = (folder / "log").read_text(errors="replace").splitlines()[-8:]
    lives = [life for pid, life in seen.items() if pid != run.pid]
    return {
        "minutes": minutes,
        "kills": kills,
        "exit code": run.returncode,
        **found,
        "lives of workers": len(lives),
        "worker MB at ages": "".join(f" {age} min {at_age(lives, 60 * age):.0f}," for age in AGES),
        "worker MB a minute": slope(lives, "resident") * 60 / MEGABYTE,
        "worker files a minute": slope(lives, "files") * 60,
        "run MB a minute": slope([seen[run.pid]], "resident") * 60 / MEGABYTE,
        "largest worker MB": max((one.resident for life in lives for one in life), default=0) / MEGABYTE,
        "last lines": "\n".join(["", *tail]),
    }


def workers_of(run: int) -> list[int]:
    """Return the processes of the workers of a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == run and b"--crew" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return sorted(found)


def held(pid: int, age: float) -> Seen:
    """Return what a process holds now."""
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Seen(age, resident, len(list(Path(f"/proc/{pid}/fd").iterdir())))


def at_age(lives: list[list[Seen]], age: float) -> float:
    """Return the median memory in MB of the processes that reached an age in seconds, at that age."""
    held_then = [next(one.resident for one in life if one.age >= age) for life in lives if life[-1].age >= age]
    return statistics.median(held_then) / MEGABYTE if held_then else float("nan")


def slope(lives: list[list[Seen]], of: str) -> float:
    """Return the median over the lives of processes of a fitted slope, per second, after the warm-up of each."""
    slopes = []
    for life in lives:
        later = [one for one in life if one.age > WARM_UP]
        if life[-1].age > WARM_UP + LEAST_FOLLOWED:
            slopes.append(float(np.polyfit([one.age for one in later], [getattr(one, of) for one in later], 1)[0]))
    return statistics.median(slopes) if slopes else float("nan")


def main() -> None:
    """Read the arguments and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True, dest="kind")
    one = kinds.add_parser("equal")
    one.add_argument("--kills", type=int, default=20)
    one.add_argument("--trials", type=int, default=8)
    two = kinds.add_parser("soak")
    two.add_argument("--minutes", type=float, default=30.0)
    two.add_argument("--workers", type=int, default=2)
    two.add_argument("--every", type=float, default=150.0, help="seconds between two kills, on average")
    for each in (one, two):
        each.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.kind == "equal":
        found = equal(options.kills, options.seed, options.trials)
    else:
        found = soak(options.minutes, options.seed, options.workers, options.every)
    for name, value in found.items():
        print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")  # noqa: T201


if __name__ == "__main__":
    main()
