"""Early stopping: end a training that is expected to miss a limit or to be dominated by a trained network."""

from __future__ import annotations

import bisect
import math
from typing import TYPE_CHECKING

import numpy as np
from optuna import TrialPruned
from optuna.trial import TrialState

from search.study.attributes import content_of, put_content
from search.study.cpu_profile import MEASURING
from search.study.history import read
from search.study.records import EARLY_CHECK, LIMIT, REASON, STOPPED, TRIAL, UNDONE

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna import Trial
    from optuna.trial import FrozenTrial
    from torch import nn

    from search.evaluation.context import Context

CHECK_SHARE = 0.25  # share of the training after which early stopping measures the network (chosen)
MIN_TRIALS = 8  # trained trials; with fewer the gain in the rest of a training cannot be estimated (chosen)


class EarlyStopping:
    """A callback for `fine_tune`, called after each step with the share of the training that is done.

    Parameters
    ----------
    trial, context, model
        The trial, the context of the study, and the network that is trained.
    values
        The network's costs, by objective.
    epochs
        Length of the training; only trainings of the same length are compared.
    progress
        Called with the same share.
    strict
        If true, stop a training that is not expected to beat another network or meet a limit; if false, stop it only
        if it is expected to fall short by more than one standard deviation of past gains.
    """

    def __init__(
        self,
        trial: Trial,
        context: Context,
        model: nn.Module,
        values: dict[str, float],
        epochs: float,
        progress: Callable[[float], None],
        *,
        strict: bool = False,
    ) -> None:
        self._trial, self._context, self._model, self._progress = trial, context, model, progress
        self._epochs, self._strict = epochs, strict
        self._objectives = context.early_objectives
        self._costs = {at: values[x.name] for at, x in enumerate(context.spec.objectives) if x.is_cost}
        # a trial that is run again may have passed the check before
        self._done = content_of(trial, EARLY_CHECK) is not None or not (self._objectives and self._costs)

    def __call__(self, share: float) -> None:
        """Report the progress, and measure the network once, when a quarter of the training is done.

        Raises
        ------
        TrialPruned
            If the network is expected to be dominated or to miss a limit.
        """
        self._progress(share)
        if self._done or not CHECK_SHARE <= share < 1:
            return
        self._done = True
        with self._context.cpu_profile.charge(MEASURING):
            finished = self._context.subject.finish(self._model)
            now = {str(at): float(objective(finished)) for at, objective in self._objectives}
        put_content(self._trial, EARLY_CHECK, {"epochs": self._epochs, "values": now})
        stopping = self._stopping(now)
        if stopping is not None:
            kind, reason = stopping
            self._trial.set_user_attr(STOPPED, kind)
            self._trial.set_user_attr(REASON, f"stopped after a quarter of its training: {reason}")
            raise TrialPruned

    def _stopping(self, now: dict[str, float]) -> tuple[str, str] | None:
        """Return what is out of reach, LIMIT or TRIAL, and the reason in words; None if the training should go on."""
        comparable = read(self._trial.study, _Comparable, self._epochs)
        if len(comparable.numbers) < MIN_TRIALS:
            return None
        nearest, values_NV = comparable.nearest, np.array(comparable.values)
        predictions = {}
        for at, objective in self._objectives:
            gains = values_NV[:, at] - np.array([check[str(at)] for check in comparable.checks])
            sign = -self._sign(at)
            best = sign * (now[str(at)] + np.median(gains)) + (0 if self._strict else gains.std())
            predictions[at] = sign, best
            for limit in self._context.spec.limits:
                right_side = limit.is_upper == (sign < 0)
                if limit.objective.name != objective.name or not right_side:
                    continue
                if limit.excess(sign * best) > max(0.0, nearest):  # while none meets the limits, the nearest is to beat
                    reach = "not expected to be met" if self._strict else "out of reach"
                    rival = ", and the nearest candidate is nearer" if nearest > 0 else ""
                    return LIMIT, f"the limit {limit.words} is {reach}{rival}"
        beaten = np.ones(len(values_NV), dtype=bool)
        for at, cost in self._costs.items():
            beaten &= self._sign(at) * values_NV[:, at] <= self._sign(at) * cost
        for at, (sign, best) in predictions.items():
            beaten &= sign * values_NV[:, at] > best
        if beaten.any():
            how = "not expected to be beaten" if self._strict else "out of reach"
            return TRIAL, f"trial {comparable.numbers[beaten.argmax()]}, which costs no more, is {how}"
        return None

    def _sign(self, at: int) -> int:
        """Return 1 for a minimized objective, -1 for a maximized one."""
        return 1 if self._context.spec.objectives[at].direction == "minimize" else -1


class _Comparable:
    """The trials whose early check was after as many epochs, by number, and what is compared of them.

    Parameters
    ----------
    epochs
        Length of their training.
    """

    def __init__(self, epochs: float) -> None:
        self._epochs = epochs
        self.numbers: list[int] = []
        self.values: list[list[float]] = []
        self.checks: list[dict[str, float]] = []
        self.nearest = math.inf  # the smallest of their largest excesses over a limit

    def add(self, trial: FrozenTrial) -> None:
        """Keep what is compared."""
        check = content_of(trial, EARLY_CHECK) or {}
        comparable = trial.state == TrialState.COMPLETE and UNDONE not in trial.user_attrs
        if comparable and check.get("epochs") == self._epochs:
            at = bisect.bisect(self.numbers, trial.number)
            self.numbers.insert(at, trial.number)
            self.values.insert(at, trial.values)
            self.checks.insert(at, check["values"])
            self.nearest = min(self.nearest, max(trial.constraints.values(), default=0.0))
