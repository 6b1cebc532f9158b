"""Win accuracy back by distillation: the losses, and which of their parameters may be chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from spaces.network.tensors import tensors

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

LossOfTask: TypeAlias = Callable[[Any, Any], Tensor]  # of outputs and labels, both of any structure
IGNORED = -100  # the label that torch's losses ignore


@dataclass(frozen=True, slots=True)
class Distill:
    """A weighted sum of the cross-entropy with the labels and the divergence from the teacher's softened outputs.

    loss = weight * T^2 * KL(teacher / T || student / T) + (1 - weight) * CE (Hinton et al. 2015, arXiv:1503.02531, §2;
    T^2 keeps the gradients of both terms at a similar size).

    Attributes
    ----------
    temperature
        T, positive.
    weight
        Share of the soft targets in [0, 1]; 0 is training on the labels alone.
    ignore_index
        Places whose label has this value do not count. It is the same in all plans of a study, so it is not in the text
        that identifies a plan.
    """

    temperature: float = 4.0
    weight: float = 0.7
    ignore_index: int = field(default=IGNORED, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, but got {self.temperature}")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight must be in [0, 1], but got {self.weight}")

    def loss(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """Return the scalar loss, a mean over examples and positions.

        Parameters
        ----------
        student, teacher
            Outputs (B, classes, ...).
        labels
            Class indices (B, ...), or probabilities (B, classes, ...). Without labels only the soft targets count.
        """
        if labels is None:
            return self.temperature**2 * self._soft(student, teacher)
        counted = None if labels.is_floating_point() else labels != self.ignore_index
        if counted is not None and not counted.all():
            if not counted.any():
                return 0 * student.sum()
            student, teacher, labels = (_places(tensor, counted) for tensor in (student, teacher, labels.unsqueeze(1)))
            labels = labels[:, 0]
        hard = F.cross_entropy(student, labels)
        if self.weight == 0:
            return hard
        return self.weight * self.temperature**2 * self._soft(student, teacher) + (1 - self.weight) * hard

    def _soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the divergence from the teacher's softened outputs."""
        return F.kl_div(
            F.log_softmax(student / self.temperature, 1),
            F.log_softmax(teacher / self.temperature, 1),
            log_target=True,
            reduction="sum",
        ) / (student.numel() / student.shape[1])

    def words(self) -> str:
        """Return the temperature and the weight as text."""
        return f"T={self.temperature:g}, weight {self.weight:g}" if self.weight else "labels only"


@dataclass(frozen=True, slots=True)
class Temperatures:
    """Which temperatures and weights of the soft targets may be chosen; weight 0 turns soft targets off.

    Parameters
    ----------
    lowest, highest
        Range of the temperature, drawn on a logarithmic scale.
    heaviest
        Largest weight, in [0, 1]; weights are drawn in steps of 0.1 from 0, so it is rounded down to a tenth.
    ignore_index
        Places whose label has this value do not count, such as pixels without a class.
    """

    lowest: float = 1.0
    highest: float = 8.0
    heaviest: float = 1.0
    ignore_index: int = field(default=IGNORED, kw_only=True, metadata={"added": True})

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.lowest <= self.highest < math.inf:
            raise ValueError(
                f"0 < lowest <= highest must hold, and both be finite, but got {self.lowest} and {self.highest}"
            )
        if not 0 <= self.heaviest <= 1:
            raise ValueError(f"heaviest must be in [0, 1], but got {self.heaviest}")

    def suggest(self, trial: BaseTrial) -> Distill:
        """Draw `distill/temperature` and `distill/weight`."""
        temperature = trial.suggest_float("distill/temperature", self.lowest, self.highest, log=True)
        weight = trial.suggest_float("distill/weight", 0.0, self._largest_weight(), step=0.1)
        return Distill(temperature, weight, ignore_index=self.ignore_index)

    def usual(self) -> dict[str, float]:
        """Return T = 4 and weight 0.7, or the nearest values in the ranges."""
        temperature = min(max(4.0, self.lowest), self.highest)
        return {"distill/temperature": temperature, "distill/weight": min(0.7, self._largest_weight())}

    def _largest_weight(self) -> float:
        return math.floor(self.heaviest * 10 + 1e-9) / 10


@dataclass(frozen=True, slots=True)
class Imitate:
    """For tasks without classes: a weighted sum of the loss of the task and the distance from the teacher's outputs.

    weight * mean |student - teacher|^norm + (1 - weight) * mean |student - labels|^norm; or, with a loss of the task,
    (1 - weight) times that. With a loss, and for several outputs, an error is the mean over the output tensors of their
    error over the deviations of the teacher from its mean, so that every output counts alike, whatever its unit.

    Attributes
    ----------
    weight
        Share of the teacher in [0, 1]; 0 is training on the labels alone.
    norm
        1 for the absolute error, 2 for the squared error.
    loss_of
        The loss of the task, a function of outputs and labels; None for the error to labels of the shape of the output.
    """

    weight: float = 0.5
    norm: int = 2
    loss_of: LossOfTask | None = field(default=None, repr=False)  # the same in all plans of a study

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.weight <= 1 or self.norm not in {1, 2}:
            raise ValueError(f"weight must be in [0, 1] and norm 1 or 2, but got {self.weight} and {self.norm}")

    def loss(self, student: Any, teacher: Any, labels: Any) -> Tensor:  # noqa: ANN401 - trees of tensors
        """Return the scalar loss of the student's outputs, given the teacher's outputs and labels.

        Raises
        ------
        ValueError
            If outputs are compared that differ in shape: they would be compared each with each.
        """
        soft = self._distance(student, teacher, "the teacher's outputs")
        if labels is None:
            return soft
        hard = self._distance(student, labels, "labels") if self.loss_of is None else self.loss_of(student, labels)
        return self.weight * soft + (1 - self.weight) * hard

    def _distance(self, student: Any, target: Any, name: str) -> Tensor:  # noqa: ANN401 - trees of tensors
        """Return the error of one output in its unit, or the mean of those of several outputs without their units."""
        if self.loss_of is None and isinstance(student, Tensor):
            return self._error(student, target, name)
        pairs = list(zip(tensors(student), tensors(target), strict=True))
        pairs = [(own, other) for own, other in pairs if other.is_floating_point()]
        scales = [(other - other.mean()).abs().pow(self.norm).mean() for _, other in pairs]
        errors = [
            self._error(own, other, name) / scale.clamp_min(torch.finfo(scale.dtype).eps)
            for (own, other), scale in zip(pairs, scales, strict=True)
        ]
        return torch.stack(errors).mean()

    def _error(self, student: Tensor, target: Tensor, name: str) -> Tensor:
        if student.shape != target.shape:
            reshaped = ""
            if student.numel() == target.numel():
                reshaped = f"; reshape the labels to (N, {', '.join(map(str, student.shape[1:]))})".replace(", )", ",)")
            raise ValueError(
                f"outputs and {name} must have the same shape, but got {tuple(student.shape)} and "
                f"{tuple(target.shape)}, which would compare each with each{reshaped}"
            )
        return (student - target).abs().pow(self.norm).mean()

    def words(self) -> str:
        """Return the weight as text."""
        return f"weight {self.weight:g}" if self.weight else "labels only"


@dataclass(frozen=True, slots=True)
class Imitations:
    """Which weights of the teacher may be chosen for tasks without classes, in steps of 0.1; 0 turns it off.

    Parameters
    ----------
    norm
        See `Imitate`.
    loss
        The loss of the task, a function of outputs and labels that returns a scalar; None for the error to the labels.
    """

    norm: int = 2
    loss: LossOfTask | None = field(default=None, metadata={"added": True})

    def __post_init__(self) -> None:
        """Check the norm."""
        if self.norm not in {1, 2}:
            raise ValueError(f"norm must be 1 or 2, but got {self.norm}")

    def suggest(self, trial: BaseTrial) -> Imitate:
        """Draw `distill/weight`."""
        return Imitate(trial.suggest_float("distill/weight", 0.0, 1.0, step=0.1), self.norm, self.loss)

    def usual(self) -> dict[str, float]:
        """Return weight 0.5."""
        return {"distill/weight": 0.5}


def _places(tensor: Tensor, counted: Tensor) -> Tensor:
    """Return the values (N, C) of a tensor (B, C, ...) at the places (B, ...) that count."""
    return tensor.movedim(1, -1)[counted]
