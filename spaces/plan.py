"""Plans, the steps and recoveries that they consist of, and the space from which they are drawn."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from spaces.costs.architectures import Architectures
from spaces.dependency.trace import trace
from spaces.network.messages import listed
from spaces.network.web_table import web_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna.trial import BaseTrial
    from torch import Tensor, nn

    from spaces.costs.frame import Frame
    from spaces.network.anatomy import Anatomy
    from spaces.network.tensors import Inputs


LEAST_STEP = 1e-3  # between two ratios or fractions that an axis offers (chosen); a table tries each of them


class Choice(NamedTuple):
    """The choice of a step for one layer.

    Attributes
    ----------
    value
        The chosen number.
    strength
        How strongly it compresses, from 0 (not at all) to 1 (the most that the axis offers).
    word
        The number as a plot shows it, such as `50%`.
    """

    value: float
    strength: float
    word: str


class Step(Protocol):
    """One change of a network."""

    def apply(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Return a new model; `model` is not changed.

        Parameters
        ----------
        model
            The network after the earlier steps; its layers have the names of the teacher's layers.
        example
            Calibration inputs, shape (B, ...), without labels.
        """
        ...

    def apply_to_shapes(self, architectures: Architectures, row: int) -> None:
        """Write the choices of the step into one row of a batch of architectures, from which costs are computed."""
        ...

    def choices(self, anatomy: Anatomy) -> dict[str, dict[str, Choice]]:
        """Return the choice for each layer, by the title of the choice, such as `weight bits`."""
        ...

    def words(self) -> str:
        """Summarize the step in a few words; return an empty string where it changes nothing."""
        ...


@runtime_checkable
class Removing(Protocol):
    """A step that removes layers from the network."""

    @property
    def removed(self) -> frozenset[str]:
        """Names of the layers that the step removes."""
        ...


@runtime_checkable
class Sparing(Protocol):
    """A step that can drop its choices for layers that another step removes, so that equivalent plans are equal."""

    def sparing(self, removed: frozenset[str], anatomy: Anatomy) -> Step:
        """Return the step without its choices for the removed layers."""
        ...


@runtime_checkable
class Shared(Protocol):
    """A step after which later steps can start from one network, on which statistics and factors are cached."""

    def shared(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Return the network that `apply` copies, the same object for the same network; it must not be changed."""
        ...


class Recovery(Protocol):
    """The loss of the fine-tuning."""

    def loss(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of the student's outputs (B, classes), given the teacher's outputs and labels (B,)."""
        ...

    def words(self) -> str:
        """Summarize the recovery in a few words."""
        ...


class Axis(Protocol):
    """What may be searched: one way to compress a network, layer by layer."""

    def suggest(self, trial: BaseTrial, anatomy: Anatomy) -> Step:
        """Draw a step from the trial; which parameters exist depends on the anatomy alone."""
        ...

    def uniform(self, anatomy: Anatomy, strength: float) -> dict[str, float]:
        """Return the parameters that compress all layers equally, from strength 0 (not at all) to 1 (the most)."""
        ...

    def acts_on(self, anatomy: Anatomy) -> Mapping[str, str]:
        """Return for every layer what the axis can do, or `no: ` and the reason why it does nothing."""
        ...


@runtime_checkable
class Surveying(Protocol):
    """An axis that has to try something on the network before it knows what it can offer."""

    def survey(self, model: nn.Module, example: Inputs, anatomy: Anatomy) -> Anatomy:
        """Return the anatomy with what was found; `model` is not changed."""
        ...


@runtime_checkable
class Converting(Protocol):
    """An axis of which a runtime's own converter makes one choice for all layers, without a search."""

    def converted(self, anatomy: Anatomy) -> dict[str, float]:
        """Return the parameters of that choice."""
        ...


class RecoveryAxis(Protocol):
    """Which recoveries may be chosen."""

    def suggest(self, trial: BaseTrial) -> Recovery:
        """Draw a recovery from the trial."""
        ...

    def usual(self) -> dict[str, float]:
        """Return the default parameters, for use without a search."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What was chosen: the steps, in order, and the recovery that follows them.

    Plans with equal steps and recoveries are equal and have the same hash, whichever trials drew them.
    """

    steps: tuple[Step, ...]
    recovery: Recovery

    def apply(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Return the smaller network; `model` is not changed.

        Parameters
        ----------
        model
            The teacher.
        example
            Calibration inputs, shape (B, ...).
        """
        active = [step for step in self.steps if step.words()]
        for step in active:  # an inactive step would only return a copy, for which no results are cached
            later_steps_copy = step is not active[-1]
            model = (step.shared if later_steps_copy and isinstance(step, Shared) else step.apply)(model, example)
        return model if active else copy.deepcopy(model)

    def choices(self, anatomy: Anatomy) -> dict[str, dict[str, Choice]]:
        """Return the choices of all steps for each layer, by the title of the choice."""
        choices: dict[str, dict[str, Choice]] = {}
        for step in self.steps:
            for title, chosen in step.choices(anatomy).items():
                choices.setdefault(title, {}).update(chosen)
        return choices

    def words(self) -> str:
        """Summarize the steps and the recovery in one line."""
        steps = "; ".join(filter(None, (step.words() for step in self.steps))) or "nothing removed"
        return f"{steps}; distil {self.recovery.words()}"

    def _repr_html_(self) -> str:
        """Return a table of the steps, for notebooks."""
        steps = [(type(step).__name__, step.words() or "changes nothing") for step in self.steps]
        return web_table("Plan", (), [*steps, (type(self.recovery).__name__, self.recovery.words())])


@dataclass(frozen=True, slots=True)
class Space:
    """The axes, in the order in which their steps are applied, and the axis of the recovery.

    Prune first, then factorize, then quantize: each step acts on the network that the earlier steps left.

    Examples
    --------
    >>> from spaces import BitWidths, PruneRatios, Ranks, Temperatures
    >>> space = Space(steps=(PruneRatios(), Ranks(), BitWidths()), recovery=Temperatures())
    """

    steps: tuple[Axis, ...]
    recovery: RecoveryAxis

    def trace(self, model: nn.Module, example: Inputs) -> Anatomy:
        """Return the anatomy of a network, with all that these axes have to know.

        Parameters
        ----------
        model
            The teacher, in evaluation mode; it is not changed.
        example
            Inputs, shape (B, ...).

        Raises
        ------
        ValueError
            If the forward pass fails on the example, or there is no layer that an axis can act on.
        """
        anatomy = trace(model, example)
        if not anatomy.layers:
            raise ValueError(_without_layers(anatomy))
        for axis in self.steps:
            if isinstance(axis, Surveying):
                anatomy = axis.survey(model, example, anatomy)
        return anatomy

    def suggest(self, trial: BaseTrial, anatomy: Anatomy) -> Plan:
        """Draw a plan; with Optuna's `FixedTrial(params)`, rebuild an earlier plan."""
        steps = [axis.suggest(trial, anatomy) for axis in self.steps]
        removed = frozenset[str]().union(*(step.removed for step in steps if isinstance(step, Removing)))
        if removed:
            steps = [step.sparing(removed, anatomy) if isinstance(step, Sparing) else step for step in steps]
        return Plan(tuple(steps), self.recovery.suggest(trial))

    def uniform(self, anatomy: Anatomy, strengths: tuple[float, ...]) -> dict[str, float]:
        """Return the parameters of a plan that compresses all layers equally, with one strength in [0, 1] per axis."""
        params: dict[str, float] = {}
        for axis, strength in zip(self.steps, strengths, strict=True):
            params |= axis.uniform(anatomy, strength)
        return params | self.recovery.usual()

    def converted(self, anatomy: Anatomy) -> dict[str, float]:
        """Return the parameters of the plan that a runtime's own converter makes; of the whole network without any."""
        params = self.uniform(anatomy, (0.0,) * len(self.steps))
        for axis in self.steps:
            if isinstance(axis, Converting):
                params |= axis.converted(anatomy)
        return params


def _without_layers(anatomy: Anatomy) -> str:
    """Return the sentence that refuses a network without layers."""
    weights = listed(f"{name or 'the network itself'} ({kind})" for name, kind in anatomy.others)
    held = f"its weights are in {weights}" if weights else "it has no weights"
    return (
        "axes act on convolutions, linear and recurrent layers that the forward pass calls as modules, but the network "
        f"has none: {held}; nothing can be compressed, unless such weights move into a layer of torch.nn"
    )


def nearest_offered(value: float, offered: tuple[float, ...]) -> float:
    """Return the offered value that is nearest to `value`.

    Parameters are numeric ranges, so that a sampler knows that 4 lies between 2 and 8; values between two offered ones
    are rounded to the nearest.
    """
    return min(offered, key=lambda option: abs(option - value))


def summarize(pairs: tuple[tuple[str, object], ...], most: int = 4) -> str:
    """Summarize the choices for layers, rare choices first: up to `most` layers by name, more by their number."""
    layers_by_choice: dict[str, list[str]] = {}
    for name, choice in pairs:
        layers_by_choice.setdefault(str(choice), []).append(name)
    parts = []
    for choice, names in sorted(layers_by_choice.items(), key=lambda item: len(item[1])):
        parts.append(f"{choice} {', '.join(names)}" if len(names) <= most else f"{choice} ({len(names)} layers)")
    return ", ".join(parts)


def architectures_of(frame: Frame, plans: Sequence[Plan | None]) -> Architectures:
    """Return the architectures of plans, one row for each plan; None stands for the teacher."""
    architectures = Architectures(frame, len(plans))
    for row, plan in enumerate(plans):
        for step in plan.steps if plan is not None else ():
            step.apply_to_shapes(architectures, row)
    return architectures
