"""The loop: trials until the budget is spent, with what is best so far in sight, and a way to stop without loss."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import optuna
import torch
from optuna.trial import TrialState

from objectives.runtimes import ExportError
from search.clock import Clock
from search.errors import REASON, Diverged, UserError
from search.faith import misleading
from search.front import front, spent
from search.learned import AHEAD, learn, recall
from search.progress import EVERY_SECONDS, bar, console, duration
from search.schedule import LAST, affordable, prolong, promote, rated
from search.shares import MEASURING
from search.storage import ASKED, INTERRUPTED, enqueue, requeue_abandoned
from search.stratified import ENDS
from search.trial import run_trial

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from optuna import Study, Trial
    from torch import nn

    from objectives import Objective
    from search.bench import Bench
    from search.rates import Rate
    from search.spec import Recipe, StudySpec

ANCHORS = "anchors"
TEACHER = "teacher"
FRUITLESS = 300  # proposals in a row that are over a limit or known: the space is exhausted or the limits too tight
FIRST_FAILURES = 3  # failed trials with not one trained: not bad luck, but something that is wrong


def run(spec: StudySpec, study: Study, bench: Bench, folder: Path) -> bool:
    """Train candidates until the budget is spent; return whether it was (and not stopped before).

    Parameters
    ----------
    spec, study, bench
        The study.
    folder
        Where the weights of the candidates go.

    Raises
    ------
    UserError
        If the limits cannot be met, or nothing can be trained.
    """
    clock = Clock(spec.budget)
    lost = requeue_abandoned(study)
    if lost:
        console.print(f"{lost} trial(s) of a process that is gone: will be run again")
    if ANCHORS not in study.user_attrs:
        study.set_user_attr(ENDS, _ends(bench))
        plans = spec.start(bench, study, clock)
        if ANCHORS not in study.user_attrs:  # another worker may have been faster
            study.set_user_attr(ANCHORS, value=True)
            for params in plans:
                enqueue(study, params)
    done = spent(study)
    if spec.budget.trials is not None and done >= spec.budget.trials:
        console.print(f"{done} of {spec.budget.trials} trials are done; --trials asks for more")
        return True
    if AHEAD in study.user_attrs:  # what was learned when the study started
        learn(bench, 0.0)
    rate = rated(study, bench)
    recipe = affordable(study, bench, clock, bench.spec.recipe)
    if count := promote(study, recipe.epochs):
        console.print(f"{count} members of the front were trained for clearly less than there is time for: training on")
    with _Watch(study, spec, bench, folder, recipe, rate, clock) as watch, warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        with contextlib.suppress(KeyboardInterrupt):
            while not watch.over():
                recall(study, bench)
                study.optimize(watch.objective, n_trials=1, catch=(Diverged,))
                watch.look()
    return not watch.stopped


def _ends(bench: Bench) -> dict[str, list[float]]:
    """Return the values of each parameter that leave the network alone and that compress it most."""
    space, anatomy = bench.spec.space, bench.anatomy
    weak, strong = (space.uniform(anatomy, (strength,) * len(space.steps)) for strength in (0.0, 1.0))
    return {name: [value, strong[name]] for name, value in weak.items() if name not in space.recovery.usual()}


def measure_teacher(study: Study, bench: Bench) -> dict[str, float]:
    """Return what every objective says of the teacher, measured once a study: the point to compare with."""
    if TEACHER not in study.user_attrs:
        with bench.shares.spending(MEASURING):
            said = {objective.name: _first(objective, bench.finished) for objective in bench.spec.measured}
        study.set_user_attr(TEACHER, said)
    return dict(study.user_attrs[TEACHER])


def _first(objective: Objective, finished: nn.Module) -> float:
    """Measure the teacher, where an objective that cannot work shows itself."""
    try:
        value = float(objective(finished))
    except ExportError:
        raise
    except Exception as error:
        raise UserError(f"the objective {objective.name} fails on the teacher: {error!r}; mend it") from error
    if not math.isfinite(value):
        raise UserError(f"every objective must be finite, but {objective.name} of the teacher is {value}; mend it")
    return value


@dataclass
class _Watch:
    """What the loop keeps in mind between two trials."""

    study: Study
    spec: StudySpec
    bench: Bench
    folder: Path
    recipe: Recipe
    rate: Rate | None
    clock: Clock
    stopped: bool = False
    exhausted: bool = False
    prolonged: bool = False
    fruitless: int = 0
    started: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)
    exits: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        self.at_start = self.done = spent(self.study)
        self.began = self.clock.spent  # the draft had that
        self.progress = self.exits.enter_context(bar("best"))
        self.task = self.progress.add_task("trials", total=self._total(), best="", completed=self.at_start)
        self.exits.enter_context(_gentle_stop(self))
        return self

    def __exit__(self, *_: object) -> None:
        self.exits.close()

    def objective(self, trial: Trial) -> tuple[float, ...]:
        """Run one trial; whatever ends it leaves a reason, and an interrupted plan is enqueued again."""
        try:
            return run_trial(
                trial,
                self.bench,
                self.folder,
                self.recipe.of_length(trial.user_attrs.get(ASKED)),
                lambda share: self.progress.update(self.task, completed=self.done + share, total=self._total()),
                rate=self.rate,
                strict=misleading(self.study, self.spec),
            )
        except KeyboardInterrupt:
            trial.set_user_attr(INTERRUPTED, value=True)
            enqueue(self.study, trial.params, trial.user_attrs.get(ASKED))
            raise
        except optuna.TrialPruned:
            raise
        except Diverged as error:
            trial.set_user_attr(REASON, str(error))
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
            trial.set_user_attr(REASON, reason)
            console.print(f"trial {trial.number} failed: {reason}")
            raise Diverged(reason) from error

    def over(self) -> bool:
        """Whether to stop before the next trial."""
        trials = self.spec.budget.trials
        enough = trials is not None and spent(self.study) >= trials
        return self.stopped or self.exhausted or self.clock.spent >= 1 or enough

    def _total(self) -> float:
        """Return how many trials there will be, as far as can be told."""
        new = self.done - self.at_start
        passed = self.clock.spent - self.began
        in_time = self.done + (1 - self.clock.spent) / passed * new if new and passed > 0 else math.inf
        total = min(in_time, math.inf if self.spec.budget.trials is None else self.spec.budget.trials)
        return max(self.done, total) if math.isfinite(total) else self.done + 1

    def look(self) -> None:
        """Show what the last trial brought; give up where nothing comes of any."""
        done = spent(self.study)
        self.fruitless = 0 if done > self.done else self.fruitless + 1
        self.done = done
        self.progress.update(self.task, completed=done, best=best_points(self.study))
        failed = self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        reasons = [trial.user_attrs[REASON] for trial in failed if REASON in trial.user_attrs]
        if not done and len(reasons) >= FIRST_FAILURES:
            raise UserError(f"the first {len(reasons)} trials all failed, the last with: {reasons[-1]}")
        if self.fruitless >= FRUITLESS:
            console.print(f"{FRUITLESS} proposals in a row were over a limit or known already: stopping here")
            self.exhausted = True
        self._prolong()
        self._say(done)

    def _prolong(self) -> None:
        """Once the last part of the time begins, train on what is best, if trainings were shortened."""
        short = self.recipe.epochs < self.spec.recipe.epochs
        if not self.prolonged and short and self.clock.spent >= 1 - LAST:
            self.prolonged = True
            count = prolong(self.study, self.spec, self.clock.left)
            if count:
                console.print(f"the last of the time is for {count} members of the front: training on")

    def _say(self, done: int) -> None:
        now = time.monotonic()
        total = self._total()
        if console.is_terminal or (now - self.said < EVERY_SECONDS and done < total - 1):
            return
        self.said = now
        new = max(1, done - self.at_start)
        left = (now - self.started) / new * (total - done)
        console.print(f"{done}/{total:.0f} trained, {duration(left)} left, {best_points(self.study)}")


def best_points(study: Study, most: int = 3) -> str:
    """Word the front: how many members, and a few of them from one end to the other."""
    members = front(study)
    if not members:
        return "no feasible candidate yet"
    places = sorted({round(i * (len(members) - 1) / max(1, most - 1)) for i in range(most)})
    points = [" / ".join(f"{value:.4g}" for value in members[place].values) for place in places]
    return f"front of {len(members)}: {', '.join(points)}"


@contextlib.contextmanager
def _gentle_stop(watch: _Watch) -> Iterator[None]:
    """First Ctrl-C: finish the trial under way. Second: stop now, that trial is run again on resume."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        if watch.stopped:
            raise KeyboardInterrupt
        watch.stopped = True
        console.print("stopping after the trial under way (again to stop now: it will be run again on resume)")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def device_named(name: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` means on this machine.

    Raises
    ------
    UserError
        If there is no GPU for `cuda`.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda needs a GPU that torch can use, and there is none; take --device auto or cpu")
    return torch.device(name)
