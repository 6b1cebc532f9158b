"""A network as it was before its training, in case that makes it worse."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from search.study.console import console
from search.study.records import TRAINED_LOSS, UNDONE

if TYPE_CHECKING:
    from optuna import Trial
    from torch import nn

    from search.evaluation.context import Context


class BeforeTraining:
    """The weights and the loss of a network before its training.

    A few steps at a rate that is too high ruin a network that is nearly right, such as a large one whose weights were
    only rounded, and there is seldom time to find a better rate.

    Parameters
    ----------
    context, model
        The context of the study, and the network.

    Attributes
    ----------
    loss
        Its loss on validation inputs; infinite if it is not known.
    """

    def __init__(self, context: Context, model: nn.Module) -> None:
        self._context = context
        self._state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        loss = context.validation_loss_of(model)
        self.loss = math.inf if loss is None else loss

    def restored(self, model: nn.Module, loss: float | None, values: dict[str, float]) -> dict[str, float]:
        """Give the network its weights back if the training made its loss and every metric worse, or no better.

        Parameters
        ----------
        model
            The trained network.
        loss, values
            Its loss on validation inputs, None if it is not known, and its metrics.

        Returns
        -------
        dict of str to float
            The metrics before the training; empty if the network stays as it was trained.
        """
        if loss is None or loss <= self.loss:
            return {}
        trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self._state)
        metrics = self._context.metrics
        before = self._context.measure(model, metrics)
        signs = {metric.name: 1 if metric.direction == "maximize" else -1 for metric in metrics}
        if all(sign * before[name] >= sign * values[name] for name, sign in signs.items()):
            return before
        model.load_state_dict(trained)
        return {}


def metrics_after(trial: Trial, context: Context, model: nn.Module, before: BeforeTraining | None) -> dict[str, float]:
    """Return the metrics of a trained network, which is as it was before if the training made it worse."""
    values, loss = context.measure(model, context.metrics), context.validation_loss_of(model)
    if before is not None and (better := before.restored(model, loss, values)):
        trial.set_user_attr(UNDONE, value=True)
        console.print(
            f"trial {trial.number}: training raised its loss from {before.loss:.2g} to {loss:.2g} and improved no "
            "metric, so it is undone"
        )
        values, loss = better, before.loss
    if loss is not None:
        trial.set_user_attr(TRAINED_LOSS, loss)
    return values
