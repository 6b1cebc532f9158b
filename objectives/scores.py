"""Metrics of any task: functions of outputs and labels, and the metrics of torchmetrics."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from objectives.outputs import answers
from objectives.trees import leaves

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from objectives.data import Data
    from objectives.objective import Direction
    from objectives.trees import Tree

Converter: TypeAlias = "Callable[[Any, Any], tuple[Any, ...]]"  # of outputs and labels


@runtime_checkable
class Accumulating(Protocol):
    """A metric that is updated batch by batch, as those of torchmetrics."""

    def reset(self) -> None:
        """Forget all batches."""
        ...

    def update(self, *batch: Any) -> None:  # noqa: ANN401 - what the metric takes
        """Add a batch."""
        ...

    def compute(self) -> Any:  # noqa: ANN401 - a number, or several by name
        """Return the value of all batches."""
        ...


@dataclass(frozen=True, slots=True)
class Score:
    """A metric of your own, for any outputs and labels.

    Parameters
    ----------
    examples
        The examples it is measured on.
    name
        A column name that ends in the unit, such as `miou_percent`.
    metric
        A function of outputs and labels that returns the mean of a batch; the score is the mean over all examples. Or
        an object with `reset`, `update` and `compute`, such as a metric of torchmetrics, which is copied.
    direction
        Which way is better.
    convert
        Returns what the metric takes, given outputs and labels; by default it takes these.
    read
        Returns a number, given the result of `compute` or the mean.

    Examples
    --------
    >>> import torch
    >>> from objectives import Examples, Score
    >>> validation = Examples(torch.zeros(4, 2), torch.ones(4, 2))
    >>> score = Score(validation, "error", lambda outputs, labels: (outputs - labels).abs().mean(), "minimize")
    >>> score(torch.nn.Identity())
    1.0
    """

    examples: Data
    name: str
    metric: Callable[[Any, Any], Any] | Accumulating
    direction: Direction = "maximize"
    convert: Converter | None = None
    read: Callable[[Any], float] = float
    is_cost: ClassVar[bool] = False

    def __call__(self, model: nn.Module) -> float:
        """Return the score of a network."""
        if isinstance(self.metric, Accumulating):
            metric = copy.deepcopy(self.metric)
            metric.reset()
            for outputs, labels in answers(model, self.examples):
                metric.update(*self._taken(outputs, labels))
            return float(self.read(metric.compute()))
        total = counted = 0.0
        for outputs, labels in answers(model, self.examples):
            count = len(leaves(outputs)[0])
            total += count * float(self.metric(*self._taken(outputs, labels)))
            counted += count
        return float(self.read(total / counted))

    def _taken(self, outputs: Tree, labels: Tree) -> tuple[Any, ...]:
        return (outputs, labels) if self.convert is None else self.convert(outputs, labels)

    def on(self, examples: Data) -> Score:
        """Return the score on other examples."""
        return replace(self, examples=examples)
