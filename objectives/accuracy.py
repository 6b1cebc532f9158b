"""Accuracy and loss of a network on labelled examples."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from objectives.outputs import answers, answers_of
from objectives.trees import shape_words

if TYPE_CHECKING:
    from torch import nn

    from objectives.data import Data
    from objectives.objective import Direction
    from objectives.trees import Tree

IGNORED = -100  # the label that torch's losses ignore


@dataclass(frozen=True, slots=True)
class Top1:
    """Share of the labels at which the output of their class is the largest, in percent.

    Parameters
    ----------
    examples
        Examples with class indices (N,), or class maps (N, H, W), each element of which counts.
    ignore_index
        Labels of this value are not counted.
    """

    examples: Data
    ignore_index: int = field(default=IGNORED, metadata={"added": True})
    name: ClassVar[str] = "top1"
    direction: ClassVar[Direction] = "maximize"
    is_cost: ClassVar[bool] = False

    def __call__(self, model: nn.Module) -> float:
        """Return the share in percent."""
        return TopK(self.examples, 1, self.ignore_index)(model)

    def on(self, examples: Data) -> Top1:
        """Return top-1 on other examples."""
        return replace(self, examples=examples)


@dataclass(frozen=True, slots=True)
class TopK:
    """Share of the labels that are among the classes of the k largest outputs, in percent.

    Parameters
    ----------
    examples, ignore_index
        As of `Top1`.
    k
        Number of classes.
    """

    examples: Data
    k: int = 5
    ignore_index: int = field(default=IGNORED, metadata={"added": True})
    direction: ClassVar[Direction] = "maximize"
    is_cost: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the number of classes."""
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"k must be a whole number, at least 1, but got {self.k!r}")

    @property
    def name(self) -> str:
        """`top5` for k = 5."""
        return f"top{self.k}"

    def __call__(self, model: nn.Module) -> float:
        """Return the share in percent; 100 where there are at most k classes.

        Raises
        ------
        ValueError
            If the labels are not class indices of the shape that belongs to the outputs.
        """
        right = counted = 0
        for output, labels in answers(model, self.examples):
            scores, classes = require_classes(self.name, output, labels)
            best = scores.topk(min(self.k, scores.shape[1]), dim=1).indices
            wanted = classes != self.ignore_index
            right += int((best == classes.unsqueeze(1)).any(1)[wanted].sum())
            counted += int(wanted.sum())
        return 100 * right / max(1, counted)

    def on(self, examples: Data) -> TopK:
        """Return top-k on other examples."""
        return replace(self, examples=examples)


@dataclass(frozen=True, slots=True)
class Loss:
    """Mean cross-entropy over the labels, in nats.

    Parameters
    ----------
    examples
        Examples with class indices (N, ...), or with probabilities of the shape of the outputs.
    ignore_index
        Labels of this value are not counted.
    """

    examples: Data
    ignore_index: int = field(default=IGNORED, metadata={"added": True})
    name: ClassVar[str] = "loss_nats"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = False

    def __call__(self, model: nn.Module) -> float:
        """Return the loss in nats.

        Raises
        ------
        ValueError
            If the labels do not belong to the outputs.
        """
        total, counted = 0.0, 0
        for output, labels in answers(model, self.examples):
            soft = isinstance(output, Tensor) and isinstance(labels, Tensor) and labels.is_floating_point()
            if soft and labels.shape == output.shape:
                scores, targets = output, labels.double()
                counted += targets.numel() // targets.shape[1]
            else:
                scores, targets = require_classes(self.name, output, labels)
                counted += int((targets != self.ignore_index).sum())
            total += float(F.cross_entropy(scores.double(), targets, ignore_index=self.ignore_index, reduction="sum"))
        return total / max(1, counted)

    def on(self, examples: Data) -> Loss:
        """Return the loss on other examples."""
        return replace(self, examples=examples)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Share of the answers whose class is the teacher's, in percent; it needs no labels.

    Parameters
    ----------
    examples
        Examples, with or without labels.
    teacher
        A network that returns (B, classes, ...).
    """

    examples: Data
    teacher: nn.Module
    name: ClassVar[str] = "teacher_agreement_percent"
    direction: ClassVar[Direction] = "maximize"
    is_cost: ClassVar[bool] = False

    def __call__(self, model: nn.Module) -> float:
        """Return the share in percent."""
        equal = counted = 0
        for (own, teachers), _ in answers_of((model, self.teacher), self.examples):
            same = own.argmax(1) == teachers.argmax(1)
            equal += int(same.sum())
            counted += same.numel()
        return 100 * equal / counted

    def on(self, examples: Data) -> Agreement:
        """Return the agreement on other examples."""
        return replace(self, examples=examples)


def has_classes(output: Tree, labels: Tree) -> bool:
    """Return whether labels are class indices (N, ...) to which one output tensor (N, classes, ...) belongs."""
    fits = isinstance(output, Tensor) and isinstance(labels, Tensor) and output.dim() > 1
    return fits and not labels.is_floating_point() and labels.shape == output[:, 0].shape


def require_classes(name: str, output: Tree, labels: Tree) -> tuple[Tensor, Tensor]:
    """Return outputs (N, classes, ...) and class indices (N, ...), after a check that each label has its outputs.

    Shapes that broadcast, such as (N, 1) and (N,), would compare each answer with the labels of all examples.

    Raises
    ------
    ValueError
        If the shapes do not belong together, or the labels are not integers.
    """
    if has_classes(output, labels):
        return output, labels.long()
    if labels is None:
        raise ValueError(f"{name} needs labels, but the examples have none; Agreement(examples, teacher) needs none")
    way_out = ""
    if isinstance(output, Tensor) and isinstance(labels, Tensor) and output.dim() > 1:
        if labels.shape == output.shape:
            way_out = "; labels.argmax(1) turns one-hot labels into class indices"
        elif labels.numel() == output[:, 0].numel():
            way_out = "; reshape the labels, such as with labels.flatten()"
    raise ValueError(
        f"{name} needs outputs of shape (N, classes, ...) and class indices of shape (N, ...), but got outputs "
        f"{shape_words(output)} and labels {shape_words(labels)}{way_out}"
    )
