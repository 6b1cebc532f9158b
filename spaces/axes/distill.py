"""Win accuracy back by distillation: the losses, and which of their parameters may be chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

if TYPE_CHECKING:
    from optuna.trial import BaseTrial
    from torch import Tensor


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
    """

    temperature: float = 4.0
    weight: float = 0.7

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, but got {self.temperature}")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight must be in [0, 1], but got {self.weight}")

    def loss(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss, a mean over examples and positions.

        Parameters
        ----------
        student, teacher
            Outputs (B, classes, ...).
        labels
            Class indices (B, ...).
        """
        hard = F.cross_entropy(student, labels)
        if self.weight == 0:
            return hard
        soft = F.kl_div(
            F.log_softmax(student / self.temperature, 1),
            F.log_softmax(teacher / self.temperature, 1),
            log_target=True,
            reduction="sum",
        ) / (student.numel() / student.shape[1])
        return self.weight * self.temperature**2 * soft + (1 - self.weight) * hard

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
    """

    lowest: float = 1.0
    highest: float = 8.0
    heaviest: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.lowest <= self.highest:
            raise ValueError(f"0 < lowest <= highest must hold, but got {self.lowest} and {self.highest}")
        if not 0 <= self.heaviest <= 1:
            raise ValueError(f"heaviest must be in [0, 1], but got {self.heaviest}")

    def suggest(self, trial: BaseTrial) -> Distill:
        """Draw `distill/temperature` and `distill/weight`."""
        temperature = trial.suggest_float("distill/temperature", self.lowest, self.highest, log=True)
        return Distill(temperature, trial.suggest_float("distill/weight", 0.0, self._largest_weight(), step=0.1))

    def usual(self) -> dict[str, float]:
        """Return T = 4 and weight 0.7, or the nearest values in the ranges."""
        temperature = min(max(4.0, self.lowest), self.highest)
        return {"distill/temperature": temperature, "distill/weight": min(0.7, self._largest_weight())}

    def _largest_weight(self) -> float:
        return math.floor(self.heaviest * 10 + 1e-9) / 10


@dataclass(frozen=True, slots=True)
class Imitate:
    """For tasks without classes: a weighted sum of the errors to the labels and to the teacher's outputs.

    loss = weight * mean |student - teacher|^norm + (1 - weight) * mean |student - labels|^norm

    Attributes
    ----------
    weight
        Share of the teacher in [0, 1]; 0 is training on the labels alone.
    norm
        1 for the absolute error, 2 for the squared error.
    """

    weight: float = 0.5
    norm: int = 2

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.weight <= 1 or self.norm not in {1, 2}:
            raise ValueError(f"weight must be in [0, 1] and norm 1 or 2, but got {self.weight} and {self.norm}")

    def loss(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of the student's outputs, given the teacher's outputs and labels of the same shape."""
        hard, soft = ((student - target).abs().pow(self.norm).mean() for target in (labels, teacher))
        return self.weight * soft + (1 - self.weight) * hard

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
    """

    norm: int = 2

    def suggest(self, trial: BaseTrial) -> Imitate:
        """Draw `distill/weight`."""
        return Imitate(trial.suggest_float("distill/weight", 0.0, 1.0, step=0.1), self.norm)

    def usual(self) -> dict[str, float]:
        """Return weight 0.5."""
        return {"distill/weight": 0.5}
