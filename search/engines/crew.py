"""The crew: the workers of one run, started, watched, started again if they die, and stopped together."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from search.command_parser import EXIT_STOPPED
from search.loop.board import Board
from search.proposals.draft_start import DRAFT_SAYS
from search.study.console import DONE_IN, console
from search.study.errors import UserError
from search.study.stop_signals import handled_by

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna import Study

    from search.engines.engine import Engine, Started
    from search.study.budget_clock import BudgetClock

LOOK_SECONDS = 0.5  # seconds between two looks at the workers (chosen)
ENDING_SECONDS = 20.0  # seconds in which workers can give back their trials when the run ends with an error (chosen)
MOST_DEATHS = 3  # times that a worker dies while no worker has trained a candidate; then the run ends (chosen)
ERROR = "slimfront: "  # how a worker's last line starts if an error ended it


class Crew:
    """The workers of one run.

    Parameters
    ----------
    engine
        What starts them.
    count
        Number of workers.
    arguments
        Returns the arguments of `slimfront` for the worker with a number, at the present moment.
    environment
        Environment variables of the workers.
    study, clock
        The study and the clock of the whole run.
    """

    def __init__(
        self,
        engine: Engine,
        count: int,
        arguments: Callable[[int], Sequence[str]],
        environment: dict[str, str],
        study: Study,
        clock: BudgetClock,
    ) -> None:
        self._engine, self._arguments, self._environment = engine, arguments, environment
        self._numbers = list(range(count))
        self._study, self._clock = study, clock
        self._running: dict[int, Started] = {}
        self._said: set[str] = set()
        self._errors: dict[int, str] = {}  # of each worker that runs, its last line about an error
        self._deaths: Counter[int] = Counter()
        self._asked_to_stop = self._trained = 0
        self._spent = False  # whether a worker has found that the budget is spent

    def work(self) -> bool:
        """Let the workers work until the budget is spent; return False if the user stopped them before.

        Raises
        ------
        UserError
            If an error ends a worker, or workers die one after the other; the others are stopped before.
        """
        try:
            with Board(self._study, self._clock) as board, handled_by(self._stop):
                for number in self._numbers:
                    self._start(number)
                while self._running:
                    time.sleep(LOOK_SECONDS)
                    if board.count() > self._trained:
                        self._deaths.clear()
                    self._trained = board.done
                    self._look()
                    board.show()
                    if self._spent and all(started.waits for started in self._running.values()):
                        break  # there is nothing left to do for those that no machine was free for
        finally:
            self._end()
        return not self._asked_to_stop

    def _end(self) -> None:
        """End the workers that still run: ask them to stop at once, then kill them."""
        for started in [*self._running.values()] * 2:
            started.stop()
        until = time.monotonic() + ENDING_SECONDS
        while time.monotonic() < until and any(started.ended() is None for started in self._running.values()):
            time.sleep(LOOK_SECONDS)
        for started in self._running.values():
            started.kill()

    def _start(self, number: int) -> None:
        self._running[number] = self._engine.start(number, self._arguments(number), self._environment)

    def _look(self) -> None:
        """Print what the workers say, each kind of line once; start those that have died again."""
        for number, started in list(self._running.items()):
            code = started.ended()
            for line in started.lines():
                if line.startswith(ERROR):
                    self._errors[number] = line
                elif (kind := _kind(line)) not in self._said:
                    self._said.add(kind)
                    console.print(line)
            if code is None:
                continue
            del self._running[number]
            error = self._errors.pop(number, "")
            self._spent |= code == 0
            if code not in {0, EXIT_STOPPED}:
                self._after_death(number, started.end_in_words(), error)

    def _after_death(self, number: int, how: str, error: str) -> None:
        """Start a worker again that has died; after an error end the run.

        Raises
        ------
        UserError
            If it ended with an error, or too many have died.
        """
        if error:
            raise UserError(error.removeprefix(ERROR))
        self._deaths[number] += 1
        if self._deaths[number] >= MOST_DEATHS:
            raise UserError(
                f"worker {number + 1} died {MOST_DEATHS} times while no candidate was trained; the last time it {how}; "
                "if memory is short, use fewer --workers"
            )
        if not self._asked_to_stop:
            console.print(f"worker {number + 1} {how}: it is started again, and its trial is run again")
            self._start(number)

    def _stop(self, *_: object) -> None:
        """Handle Ctrl-C or SIGTERM: the first lets the workers finish their trials, the next stops them at once."""
        self._asked_to_stop += 1
        if self._asked_to_stop == 1:
            console.print(
                "stopping after the trials under way (interrupt again to stop now; they will be rerun on resume)"
            )
        for started in self._running.values():
            started.stop()


def _kind(line: str) -> str:
    """Return what is the same in the lines of all workers; they took part in common work, each for another time."""
    return DRAFT_SAYS if line.startswith(DRAFT_SAYS) else line.partition(DONE_IN)[0]
