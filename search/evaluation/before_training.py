"""A network as it was before its training, in case that makes it worse."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from search.study.console import console
from search.study.records import TRAINED_LOSS, UNDONE

if TYPE_CHECKING:
    from collections.abc import Mapping

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
        self._state = {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items()}
        loss = context.validation_loss_of(model)
        self.loss = math.inf if loss is None else loss

    def restored(
        self, model: nn.Module, loss: float | None, values: Mapping[str, float] | None = None
    ) -> dict[str, float] | None:
        """Give the network its weights back if its training raised its loss and improved no metric.

        Parameters
        ----------
        model
            The trained network.
        loss
            Its loss on validation inputs; None if that is not finite.
        values
            Its metrics; by default they are measured if the loss is larger.

        Returns
        -------
        dict of str to float or None
            The metrics before the training; None if the network stays as it was trained.
        """
        if not math.isfinite(self.loss) or (loss is not None and loss <= self.loss):
            return None
        metrics = self._context.metrics
        if values is None:
            values = self._context.measure(model, metrics)
        trained = {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items()}
        model.load_state_dict(self._state)
        before = self._context.measure(model, metrics)
        signs = {metric.name: 1 if metric.direction == "maximize" else -1 for metric in metrics}
        if all(math.isnan(values[name]) or sign * before[name] >= sign * values[name] for name, sign in signs.items()):
            return before
        model.load_state_dict(trained)
        return None

    def words(self, loss: float | None) -> str:
        """Say why a training to this loss is undone."""
        after = "one that is not finite" if loss is None else f"{loss:.2g}"
        return f"training raised its loss from {self.loss:.2g} to {after} and improved no metric, so it is undone"


def metrics_after(trial: Trial, context: Context, model: nn.Module, before: BeforeTraining | None) -> dict[str, float]:
    """Return the metrics of a trained network, which is as it was before if the training made it worse."""
    values, loss = context.measure(model, context.metrics), context.validation_loss_of(model)
    if before is not None and (better := before.restored(model, loss, values)) is not None:
        trial.set_user_attr(UNDONE, value=True)
        console.print(f"trial {trial.number}: {before.words(loss)}")
        values, loss = better, before.loss
    if loss is not None:
        trial.set_user_attr(TRAINED_LOSS, loss)
    return values
