"""Between two trials: what the loop keeps in mind, shows, and stops for."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import optuna
from optuna.trial import TrialState

from search.evaluation.trial import run_trial
from search.loop.schedule import LAST_SHARE, prolong
from search.proposals.proxy_correlation import is_misleading
from search.study.console import EVERY_SECONDS, bar, console, duration
from search.study.errors import Diverged, UserError
from search.study.front import front, spent
from search.study.queue import enqueue
from search.study.records import ASKED, INTERRUPTED, REASON

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from optuna import Study, Trial

    from search.evaluation.context import Context
    from search.study.budget_clock import BudgetClock
    from search.study.spec import Recipe
    from search.training.learning_rate import Rate

FRUITLESS = 300  # proposals in a row that exceed a limit or are known: the space is exhausted or the limits too tight
FIRST_FAILURES = 3  # failed trials with not one trained: not bad luck, but something that is wrong


@dataclass
class Watch:
    """What the loop keeps in mind between two trials."""

    study: Study
    context: Context
    folder: Path
    recipe: Recipe
    rate: Rate | None
    clock: BudgetClock
    stopped: bool = False
    exhausted: bool = False
    prolonged: bool = False
    fruitless: int = 0
    started: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)
    exits: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        """Show the bar, and take Ctrl-C."""
        self.at_start = self.done = spent(self.study)
        self.began = self.clock.spent  # the draft had that
        self.progress = self.exits.enter_context(bar("best"))
        self.task = self.progress.add_task("trials", total=self._total(), best="", completed=self.at_start)
        self.exits.enter_context(_gentle_stop(self))
        return self

    def __exit__(self, *_: object) -> None:
        """Give both back."""
        self.exits.close()

    def objective(self, trial: Trial) -> tuple[float, ...]:
        """Run one trial; whatever ends it leaves a reason, and an interrupted plan is enqueued again."""
        try:
            return run_trial(
                trial,
                self.context,
                self.folder,
                self.recipe.of_length(trial.user_attrs.get(ASKED)),
                lambda share: self.progress.update(self.task, completed=self.done + share, total=self._total()),
                rate=self.rate,
                strict=is_misleading(self.study, self.context.spec),
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
        trials = self.context.spec.budget.trials
        enough = trials is not None and spent(self.study) >= trials
        return self.stopped or self.exhausted or self.clock.spent >= 1 or enough

    def _total(self) -> float:
        """Return how many trials there will be, as far as is known."""
        new = self.done - self.at_start
        passed = self.clock.spent - self.began
        in_time = self.done + (1 - self.clock.spent) / passed * new if new and passed > 0 else math.inf
        total = min(in_time, math.inf if self.context.spec.budget.trials is None else self.context.spec.budget.trials)
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
            console.print(f"{FRUITLESS} proposals in a row exceeded a limit or were known already: stopping here")
            self.exhausted = True
        self._prolong()
        self._say(done)

    def _prolong(self) -> None:
        """Once the last part of the time begins, train on what is best, if trainings were shortened."""
        short = self.recipe.epochs < self.context.spec.recipe.epochs
        if not self.prolonged and short and self.clock.spent >= 1 - LAST_SHARE:
            self.prolonged = True
            count = prolong(self.study, self.context.spec, self.clock.left)
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
def _gentle_stop(watch: Watch) -> Iterator[None]:
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
