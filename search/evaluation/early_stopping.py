"""Stop a training early that is expected to miss a limit, or to be worse than another network that is no larger."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from optuna import TrialPruned
from optuna.trial import TrialState

from objectives import Metric
from search.study.cpu_profile import MEASURING
from search.study.records import REASON, RUNG, STOPPED

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna import Trial
    from torch import nn

    from search.evaluation.context import Context

CHECK = 0.25  # of the training: when a network is measured
CHECK_EXAMPLES = 1000  # of the validation split, at most
LEAST_TRIALS = 8  # that were trained: fewer do not tell what the rest of a training brings


class EarlyStopping:
    """Called after each step with the share of the training that is done, as `fine_tune` does.

    Parameters
    ----------
    trial, context, model
        What is trained.
    values
        What is known of the network before training, by objective.
    epochs
        Length of the training; only those of one length are compared.
    progress
        Called with the share too.
    strict
        Whether to stop it where another is merely not expected to be beaten, and not only where it is out of reach.
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
        few = context.spec.splits.validation.take(
            torch.arange(min(CHECK_EXAMPLES, len(context.spec.splits.validation)))
        )
        self._objectives = [
            (at, x.on(few) if isinstance(x, Metric) else x)
            for at, x in enumerate(context.spec.objectives)
            if not x.is_cost
        ]
        self._costs = {at: values[x.name] for at, x in enumerate(context.spec.objectives) if x.is_cost}
        self._over = not (self._objectives and self._costs)

    def __call__(self, share: float) -> None:
        """Pass it on, and measure once.

        Raises
        ------
        TrialPruned
            If the network is expected to be dominated, or to miss a limit.
        """
        self._progress(share)
        if self._over or not CHECK <= share < 1:
            return
        self._over = True
        with self._context.cpu_profile.charge(MEASURING):
            finished = self._context.subject.finish(self._model)
            now = {str(at): float(objective(finished)) for at, objective in self._objectives}
        self._trial.set_user_attr(RUNG, {"epochs": self._epochs, "values": now})
        reason = self._stopping(now)
        if reason is not None:
            self._trial.set_user_attr(STOPPED, value=True)
            self._trial.set_user_attr(REASON, f"at a quarter of its training, {reason}")
            raise TrialPruned

    def _stopping(self, now: dict[str, float]) -> str | None:
        """Return why a limit is out of reach, or a trained trial that costs no more; None where neither is."""
        over = self._trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        alike = [trial for trial in over if trial.user_attrs.get(RUNG, {}).get("epochs") == self._epochs]
        if len(alike) < LEAST_TRIALS:
            return None
        reached = {}
        for at, objective in self._objectives:
            gains = np.array([trial.values[at] - trial.user_attrs[RUNG]["values"][str(at)] for trial in alike])
            sign = -self._sign(at)
            best = sign * (now[str(at)] + np.median(gains)) + (0 if self._strict else gains.std())
            reached[at] = sign, best
            for limit in self._context.spec.limits:
                sided = (limit.at_most is None) == (sign > 0)
                if limit.objective.name == objective.name and sided and limit.excess(sign * best) > 0:
                    return f"{limit} is {'not expected to be held' if self._strict else 'out of its reach'}"
        for trial in alike:
            costs = all(self._sign(at) * trial.values[at] <= self._sign(at) * cost for at, cost in self._costs.items())
            if costs and all(sign * trial.values[at] > best for at, (sign, best) in reached.items()):
                how = "not expected to be beaten" if self._strict else "out of its reach"
                return f"trial {trial.number}, which costs no more, is {how}"
        return None

    def _sign(self, at: int) -> int:
        """Return what makes an objective one that is to be small."""
        return 1 if self._context.spec.objectives[at].direction == "minimize" else -1
