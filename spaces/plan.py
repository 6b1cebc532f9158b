"""What was decided, as frozen data, and the space that decides it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from spaces.costs.architectures import Architectures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna.trial import BaseTrial
    from torch import Tensor, nn

    from spaces.costs.architectures import Frame
    from spaces.network.anatomy import Anatomy


class Choice(NamedTuple):
    """What a step chooses for one layer.

    Attributes
    ----------
    value
        The number that was chosen.
    strength
        How strongly it compresses, from 0 (not at all) to 1 (as far as the axis goes).
    word
        The number as a picture shows it, such as `50%`.
    """

    value: float
    strength: float
    word: str


class Step(Protocol):
    """One decided act on a network."""

    def apply(self, model: nn.Module, example: Tensor) -> nn.Module:
        """Return a new model; the given one is not changed.

        Parameters
        ----------
        model
            The network so far, its layers under the names of the teacher.
        example
            Calibration inputs, shape (B, ...), without labels.
        """
        ...

    def apply_to_shapes(self, architectures: Architectures, row: int) -> None:
        """Write what the step chooses into a row of a batch of architectures, from which costs are computed."""
        ...

    def choices(self, anatomy: Anatomy) -> dict[str, dict[str, Choice]]:
        """Return what was chosen for each layer, by the title of the choice, such as `weight bits`."""
        ...

    def words(self) -> str:
        """Say in a few words what is done, empty where nothing is."""
        ...


@runtime_checkable
class Removing(Protocol):
    """A step that takes layers out of the network."""

    @property
    def removed(self) -> frozenset[str]:
        """The layers that are not there after it."""
        ...


@runtime_checkable
class Sparing(Protocol):
    """A step that can be told of layers that another one removes, so that plans are equal which do the same."""

    def sparing(self, gone: frozenset[str], anatomy: Anatomy) -> Step:
        """Return the step without what it would do to these layers."""
        ...


class Recovery(Protocol):
    """How accuracy is won back."""

    def loss(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of the student's outputs (B, classes), given the teacher's and the labels (B,)."""
        ...

    def words(self) -> str:
        """Say in a few words what is done."""
        ...


class Axis(Protocol):
    """One way of making a network smaller, layer by layer."""

    def suggest(self, trial: BaseTrial, anatomy: Anatomy) -> Step:
        """Draw a step from the trial; which parameters exist depends on the anatomy alone."""
        ...

    def uniform(self, anatomy: Anatomy, strength: float) -> dict[str, float]:
        """Return the parameters that compress every layer alike, from 0 (leave it) to 1 (as far as the axis goes)."""
        ...

    def acts_on(self, anatomy: Anatomy) -> Mapping[str, str]:
        """Say for every layer what the axis can do, or `no: ` and why not."""
        ...


class RecoveryAxis(Protocol):
    """What may vary in how accuracy is won back."""

    def suggest(self, trial: BaseTrial) -> Recovery:
        """Draw a recovery from the trial."""
        ...

    def usual(self) -> dict[str, float]:
        """Return the parameters that one would take without a search."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps, in order, and the recovery that follows them.

    Equal plans are equal and hash alike, whichever trial drew them.
    """

    steps: tuple[Step, ...]
    recovery: Recovery

    def apply(self, model: nn.Module, example: Tensor) -> nn.Module:
        """Return the smaller network; `model` is not changed.

        Parameters
        ----------
        model
            The teacher.
        example
            Calibration inputs, shape (B, ...).
        """
        doing = [step for step in self.steps if step.words()]
        for step in doing:  # what does nothing is not asked for a copy, of which all would have to be found out again
            model = step.apply(model, example)
        return model if doing else copy.deepcopy(model)

    def choices(self, anatomy: Anatomy) -> dict[str, dict[str, Choice]]:
        """Return what was chosen for each layer, by the title of the choice."""
        return {title: chosen for step in self.steps for title, chosen in step.choices(anatomy).items()}

    def words(self) -> str:
        """Say in one line what is done to the network, and how accuracy is won back."""
        done = "; ".join(filter(None, (step.words() for step in self.steps))) or "nothing removed"
        return f"{done}; distil {self.recovery.words()}"


@dataclass(frozen=True, slots=True)
class Space:
    """The axes in the order in which their steps are applied, and the axis of the recovery.

    Prune first, then factorize what is left, then quantize: each later step works on what the earlier ones left.

    Examples
    --------
    >>> from spaces import BitWidths, PruneRatios, Ranks, Temperatures
    >>> space = Space(steps=(PruneRatios(), Ranks(), BitWidths()), recovery=Temperatures())
    """

    steps: tuple[Axis, ...]
    recovery: RecoveryAxis

    def suggest(self, trial: BaseTrial, anatomy: Anatomy) -> Plan:
        """Draw a plan. With Optuna's `FixedTrial(params)` this rebuilds a past one."""
        steps = [axis.suggest(trial, anatomy) for axis in self.steps]
        gone = frozenset[str]().union(*(step.removed for step in steps if isinstance(step, Removing)))
        if gone:
            steps = [step.sparing(gone, anatomy) if isinstance(step, Sparing) else step for step in steps]
        return Plan(tuple(steps), self.recovery.suggest(trial))

    def uniform(self, anatomy: Anatomy, strengths: tuple[float, ...]) -> dict[str, float]:
        """Return the parameters of the plan with one strength an axis, each in [0, 1]."""
        params: dict[str, float] = {}
        for axis, strength in zip(self.steps, strengths, strict=True):
            params |= axis.uniform(anatomy, strength)
        return params | self.recovery.usual()


def nearest_offered(value: float, offered: tuple[float, ...]) -> float:
    """Return the offered value nearest to `value`.

    Parameters are ordinal ranges, so that a sampler knows 4 lies between 2 and 8; what lies between the rungs of the
    ladder is taken to the nearest rung.
    """
    return min(offered, key=lambda rung: abs(rung - value))


def summarize(pairs: tuple[tuple[str, object], ...], most: int = 4) -> str:
    """Word what was chosen for the layers, the rarest choices named, the commonest counted."""
    groups: dict[str, list[str]] = {}
    for name, choice in pairs:
        groups.setdefault(str(choice), []).append(name)
    parts = []
    for choice, names in sorted(groups.items(), key=lambda item: len(item[1])):
        parts.append(f"{choice} {', '.join(names)}" if len(names) <= most else f"{choice} ({len(names)} layers)")
    return ", ".join(parts)


def architectures_of(frame: Frame, plans: Sequence[Plan | None]) -> Architectures:
    """Return the architectures of plans, a row a plan; None is the teacher."""
    architectures = Architectures(frame, len(plans))
    for row, plan in enumerate(plans):
        for step in plan.steps if plan is not None else ():
            step.apply_to_shapes(architectures, row)
    return architectures
