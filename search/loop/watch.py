"""The state of the loop between two trials: what it shows, and when it stops."""

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
from search.loop.schedule import FRONT_SHARE, approach, expected_seconds, prolong
from search.proposals.proxy_correlation import is_misleading
from search.study.console import EVERY_SECONDS, bar, console, duration
from search.study.errors import Diverged, MachineFault, UserError, reason_of
from search.study.failed_plans import FIRST_FAILURES
from search.study.front import front, trained_count
from search.study.queue import enqueue
from search.study.records import ASKED, INTERRUPTED, PLAN, REASON

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from optuna import Study, Trial

    from search.evaluation.context import Context
    from search.study.budget_clock import BudgetClock
    from search.study.spec import Recipe
    from search.training.learning_rate import Rate

TRIALS_BEFORE_TIME = 3  # trained trials after which the time that is left is shown (chosen)
MAX_FRUITLESS = 300  # rejected or replayed plans in a row; then no new plan meets the limits (chosen)


@dataclass
class Watch:
    """The state of the loop between two trials."""

    study: Study
    context: Context
    folder: Path
    recipe: Recipe
    rate: Rate | None
    clock: BudgetClock
    reserve: Callable[[], float] | None = None
    stopped: bool = False
    exhausted: bool = False
    prolonged: bool = False
    fruitless: int = 0
    started: float = field(default_factory=time.monotonic)
    printed: float = field(default_factory=time.monotonic)
    exits: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        """Show the progress bar and handle Ctrl-C."""
        self.at_start = self.done = trained_count(self.study)
        self.began = self.clock.spent  # before this, the draft took time
        self.progress = self.exits.enter_context(bar("best"))
        self.task = self.progress.add_task("trials", total=self._total(), best="", completed=self.at_start)
        self.exits.enter_context(_gentle_stop(self))
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the progress bar and the signal handlers."""
        self.exits.close()

    def objective(self, trial: Trial) -> tuple[float, ...]:
        """Run one trial; if it fails, record the reason, and if it is interrupted, enqueue its plan again."""
        try:
            return run_trial(
                trial,
                self.context,
                self.folder,
                self._recipe_for(trial.user_attrs.get(ASKED)),
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
            console.print(f"trial {trial.number} failed: {error}", markup=False)
            raise
        except Exception as error:
            try:
                reason = reason_of(error)
            except MachineFault:  # the plan is tried again when the machine works
                trial.set_user_attr(INTERRUPTED, value=True)
                enqueue(self.study, trial.params, trial.user_attrs.get(ASKED))
                raise
            trial.set_user_attr(REASON, reason)
            words = trial.user_attrs.get(PLAN, "its plan could not be drawn")
            console.print(f"trial {trial.number} failed: {reason} ({words})", markup=False)
            raise Diverged(reason) from error

    def _recipe_for(self, epochs: float | None) -> Recipe:
        """Return the recipe of a trial; one that is trained for longer than in a search is trained as in `confirm`."""
        spec = self.context.spec
        longer = epochs is not None and epochs > spec.recipe.epochs
        recipe = spec.confirmation_recipe.at_rate(spec.recipe.learning_rate) if longer else self.recipe
        return recipe.of_length(epochs)

    def over(self) -> bool:
        """Whether to stop before the next trial."""
        trials = self.context.spec.budget.trials
        enough = trials is not None and self.done >= trials
        # at least one is trained; then the run ends where it comes nearest to its time
        late = self.done > 0 and (self.clock.spent >= 1 or self.clock.left <= expected_seconds(self.study) / 2)
        return self.stopped or self.exhausted or late or enough

    def _total(self) -> float:
        """Return the estimated final number of trials."""
        new = self.done - self.at_start
        elapsed = self.clock.spent - self.began
        in_time = self.done + (1 - self.clock.spent) / elapsed * new if new and elapsed > 0 else math.inf
        total = min(in_time, math.inf if self.context.spec.budget.trials is None else self.context.spec.budget.trials)
        return max(self.done, total) if math.isfinite(total) else self.done + 1

    def update(self) -> None:
        """Show the result of the last trial; stop if no trial succeeds.

        Raises
        ------
        UserError
            If the first trials all fail.
        """
        done = trained_count(self.study)
        self.fruitless = 0 if done > self.done else self.fruitless + 1
        self.done = done
        self.progress.update(self.task, completed=done, best=best_points(self.study))
        failed = self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        reasons = [trial.user_attrs[REASON] for trial in failed if REASON in trial.user_attrs]
        if not done and len(reasons) >= FIRST_FAILURES:
            raise UserError(f"the first {len(reasons)} trials all failed; the last error was: {reasons[-1]}")
        if self.fruitless >= MAX_FRUITLESS:
            console.print(f"stopping: the last {MAX_FRUITLESS} plans all exceeded a limit or had been evaluated before")
            self.exhausted = True
        if self.reserve is not None and done and self.clock.timed:
            self.clock.reserved = self.reserve()
        self._prolong()
        self._print(done)

    def _prolong(self) -> None:
        """Enqueue candidates for further training in the last share of the time.

        These are members of the front, if trainings were shortened, or, if none meets a limit, the nearest ones.
        """
        if self.prolonged or not self.done or self.clock.spent < 1 - FRONT_SHARE:
            return
        self.prolonged = True
        short = self.recipe.epochs < self.context.spec.recipe.epochs
        if short and (count := prolong(self.study, self.context.spec, self.clock.left)):
            console.print(f"the remaining time is used to train {count} members of the front further")
        elif count := approach(self.study, self.context.spec, self.clock.left):
            console.print(
                f"no candidate meets all limits yet; the remaining time is used to train the nearest further: {count}"
            )

    def _print(self, done: int) -> None:
        """Print a line of progress, at intervals, if there is no terminal."""
        now = time.monotonic()
        total = self._total()
        if console.is_terminal or (now - self.printed < EVERY_SECONDS and done < total - 1):
            return
        self.printed = now
        known = done - self.at_start >= TRIALS_BEFORE_TIME
        left = (now - self.started) / max(1, done - self.at_start) * (total - done)
        of_total = f"{done}/{total:.0f} trained, {duration(left)} left" if known else f"{done} trained"
        console.print(f"{of_total}, {best_points(self.study)}")


def best_points(study: Study, count: int = 3) -> str:
    """Describe the front in words: its size, and a few members from one end to the other."""
    members = front(study)
    if not members:
        return "no feasible candidate yet"
    picked = sorted({round(i * (len(members) - 1) / max(1, count - 1)) for i in range(count)})
    points = [" / ".join(f"{value:.4g}" for value in members[index].values) for index in picked]
    return f"front of {len(members)}: {', '.join(points)}"


@contextlib.contextmanager
def _gentle_stop(watch: Watch) -> Iterator[None]:
    """Handle Ctrl-C: the first finishes the trial under way, the second stops at once and repeats it on resume."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        if watch.stopped:
            raise KeyboardInterrupt
        watch.stopped = True
        console.print(
            "stopping after the trial under way (interrupt again to stop now; the trial will be rerun on resume)"
        )

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
