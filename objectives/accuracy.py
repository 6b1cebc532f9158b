"""Accuracy and loss of a network on labelled examples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from torch.nn import functional as F  # noqa: N812 - the usual name

from objectives.examples import Examples, outputs

if TYPE_CHECKING:
    from torch import nn

    from objectives.objective import Direction


@dataclass(frozen=True, slots=True)
class Top1:
    """Share of the examples whose largest output is at their label, in percent."""

    examples: Examples
    name: ClassVar[str] = "top1"
    direction: ClassVar[Direction] = "maximize"
    is_cost: ClassVar[bool] = False

    def __call__(self, model: nn.Module) -> float:
        """Return the share in percent."""
        return TopK(self.examples, 1)(model)

    def on(self, examples: Examples) -> Top1:
        """Return top-1 on other examples."""
        return replace(self, examples=examples)


@dataclass(frozen=True, slots=True)
class TopK:
    """Share of the examples whose label is among the k largest outputs, in percent."""

    examples: Examples
    k: int = 5
    direction: ClassVar[Direction] = "maximize"
    is_cost: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """`top5` for k = 5."""
        return f"top{self.k}"

    def __call__(self, model: nn.Module) -> float:
        """Return the share in percent; 100 where there are at most k classes."""
        scores = outputs(model, self.examples.inputs)
        best = scores.topk(min(self.k, scores.shape[1]), dim=1).indices
        return 100 * float((best == self.examples.labels[:, None]).any(1).double().mean())

    def on(self, examples: Examples) -> TopK:
        """Return top-k on other examples."""
        return replace(self, examples=examples)


@dataclass(frozen=True, slots=True)
class Loss:
    """Mean cross-entropy over the examples, in nats."""

    examples: Examples
    name: ClassVar[str] = "loss_nats"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = False

    def __call__(self, model: nn.Module) -> float:
        """Return the loss in nats."""
        return float(F.cross_entropy(outputs(model, self.examples.inputs).double(), self.examples.labels))

    def on(self, examples: Examples) -> Loss:
        """Return the loss on other examples."""
        return replace(self, examples=examples)
