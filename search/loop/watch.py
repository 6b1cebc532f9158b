"""The state of the loop between two trials: what it shows, and when it stops."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from search.evaluation.failing_kinds import FailingKinds
from search.evaluation.trial import run_trial
from search.loop.board import Board
from search.loop.schedule import FRONT_SHARE, approach, expected_seconds, prolong
from search.proposals.proxy_correlation import is_misleading
from search.study.console import console
from search.study.errors import Diverged, MachineFault, UserError, reason_of
from search.study.failed_plans import FIRST_FAILURES
from search.study.front import trained_words
from search.study.notes import note_trial
from search.study.queue import QUEUE, give_back
from search.study.records import ASKED, PLAN, REASON, REPLAY
from search.study.stop_signals import handled_by
from search.study.trial_words import trial_words
from search.study.workers import waits
from spaces.network.messages import number_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from optuna import Study, Trial

    from search.evaluation.context import Context
    from search.study.budget_clock import BudgetClock
    from search.study.spec import Recipe
    from search.study.workers import Ticket
    from search.training.learning_rate import Rate

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
    failing: FailingKinds = field(default_factory=lambda: FailingKinds("the study"))
    exits: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        """Show the progress bar and handle Ctrl-C."""
        self.board = self.exits.enter_context(Board(self.study, self.clock, quiet=self.clock.workers > 1))
        self.exits.enter_context(handled_by(self._stop))
        self.failing.read(self.study, self.context, before=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the progress bar and the signal handlers."""
        self.exits.close()

    def run_one(self, trial: Trial) -> None:
        """Run one trial and record how it ended; if it was interrupted, its plan is enqueued again.

        Raises
        ------
        MachineFault
            If the machine failed; the plan is enqueued again.
        """
        try:
            values, state = self._values(trial)
        except BaseException:  # the plan is not to blame: the next worker that looks runs it again
            give_back(self.study, trial.number, self.context.workers)
            raise
        try:
            finished = self.study.tell(trial, values, state)
            note_trial(self.study, finished)
            console.detail(trial_words(finished))
        except MachineFault:
            raise
        except (UpdateFinishedTrialError, ValueError):
            console.print(f"trial {trial.number} was given to another worker, since this one had stalled too long")

    def _values(self, trial: Trial) -> tuple[tuple[float, ...] | None, TrialState]:
        """Return the values and the end of a trial; if it fails, record the reason."""
        of_plan = ""
        try:
            self.failing.refuse(trial, self.context)
            with self.board.trial(trial.number) as progress:
                values = run_trial(
                    trial,
                    self.context,
                    self.folder,
                    self._recipe_for(trial.user_attrs.get(ASKED)),
                    progress,
                    rate=self.rate,
                    strict=is_misleading(self.study, self.context.spec),
                )
        except optuna.TrialPruned:
            return None, TrialState.PRUNED
        except Diverged as error:
            reason = str(error)
        except UpdateFinishedTrialError:  # `run_one` says why
            return None, TrialState.FAIL
        except Exception as error:  # noqa: BLE001 - a plan may fail in any way
            reason, of_plan = reason_of(error), f" ({trial.user_attrs.get(PLAN, 'its plan could not be drawn')})"
        else:
            return values, TrialState.COMPLETE
        with contextlib.suppress(UpdateFinishedTrialError):  # `run_one` says why
            trial.set_user_attr(REASON, reason)
        console.print(f"trial {trial.number} failed: {reason}{of_plan}")
        return None, TrialState.FAIL

    def wait(self, ticket: Ticket) -> None:
        """Wait until the trials of other workers use up the budget, or one of them ends without using a part of it."""
        trials = self.context.spec.budget.trials
        assert trials is not None
        for _ in waits():
            ahead = ticket.ahead()
            if self.stopped or self.board.count() >= trials or ahead + self.board.done < trials:
                return

    def _recipe_for(self, epochs: float | None) -> Recipe:
        """Return the recipe of a trial; one that is trained for longer than in a search is trained as in `confirm`."""
        spec = self.context.spec
        longer = epochs is not None and epochs > spec.recipe.epochs
        recipe = spec.confirmation_recipe.at_rate(spec.recipe.learning_rate) if longer else self.recipe
        return recipe.of_length(epochs)

    def over(self) -> bool:
        """Whether to stop before the next trial."""
        trials = self.context.spec.budget.trials
        enough = trials is not None and self.board.done >= trials
        # at least one is trained; then the run ends where it comes nearest to its time
        late = self.board.done > 0 and (self.clock.spent >= 1 or self.clock.left <= expected_seconds(self.study) / 2)
        return self.stopped or self.exhausted or late or enough

    def report_end(self) -> None:
        """Say which bound of the budget ended the search; other ends were told when they happened."""
        budget, done = self.clock.budget, self.board.done
        if self.stopped or self.exhausted or not console.leads:
            return
        if budget.trials is not None and done >= budget.trials:
            console.print(f"the search ends: {trained_words(self.study)}, of {budget.trials}")
        else:
            used = " and ".join(self.clock.words())
            kept = "; the rest is for the files of the front" if self.clock.reserved and not self.clock.exceeded else ""
            console.print(f"the search ends: {trained_words(self.study)}, and its time is used ({used}{kept})")

    def update(self) -> None:
        """Show the result of the last trial; stop if no trial succeeds.

        Raises
        ------
        UserError
            If the first trials all fail, or many in a row.
        """
        before, done = self.board.done, self.board.count()
        self.fruitless = 0 if done > before else self.fruitless + 1
        failed = [] if done else self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        reasons = [x.user_attrs[REASON] for x in failed if REASON in x.user_attrs and REPLAY not in x.user_attrs]
        if len(reasons) >= FIRST_FAILURES:
            raise UserError(f"the first {len(reasons)} trials all failed; the last error was: {reasons[-1]}")
        self.failing.read(self.study, self.context)
        if self.fruitless >= MAX_FRUITLESS:
            console.print(
                f"stopping: the last {MAX_FRUITLESS} plans all exceeded a limit, were of a kind that fails, "
                "or had been evaluated before"
            )
            self.exhausted = True
        if self.reserve is not None and done and self.clock.timed:
            self.clock.reserved = self.reserve()
        self._prolong()
        self.board.show()

    def _prolong(self) -> None:
        """Enqueue candidates for further training in the last share of the time.

        These are members of the front, if trainings were shortened, or, if none meets a limit, the nearest ones.
        """
        if self.prolonged or not self.board.done or self.clock.spent < 1 - FRONT_SHARE:
            return
        self.prolonged = True
        short = self.recipe.epochs < self.context.spec.recipe.epochs
        seconds = self.clock.left * self.clock.workers
        with self.context.workers.turn(QUEUE):
            if short and (count := prolong(self.study, self.context.spec, seconds)):
                console.print(f"the remaining time is used to train {number_of(count, 'member')} of the front further")
            elif count := approach(self.study, self.context.spec, seconds):
                console.print(
                    "no candidate meets all limits yet; the remaining time is used to train the nearest further: "
                    f"{count}"
                )

    def _stop(self, *_: object) -> None:
        """Handle Ctrl-C: the first finishes the trial under way, the second stops at once and repeats it on resume."""
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True
        console.print(
            "stopping after the trial under way (interrupt again to stop now; the trial will be rerun on resume)"
        )
