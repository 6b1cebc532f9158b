"""Compute with smaller images: which sizes of the input may be chosen, and the step that resizes it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from torch import Tensor

from spaces.costs.frame import NETWORK
from spaces.dependency.input_sizes import try_input_sizes
from spaces.dependency.trace import known_anatomy, trace
from spaces.network.cache import cached
from spaces.network.resizing import InputResize, resize_input
from spaces.network.statistics import reestimate
from spaces.network.tensors import identity_of
from spaces.plan import LEAST_STEP, Choice, nearest_offered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.trial import BaseTrial
    from torch import nn

    from spaces.costs.architectures import Architectures
    from spaces.costs.effects import Layers
    from spaces.costs.frame import Frame
    from spaces.network.anatomy import Anatomy
    from spaces.network.tensors import Inputs


@dataclass(frozen=True, slots=True)
class InputSizeNumber:
    """The number of the size of the input, 0 for the whole size; the shapes at every size were traced."""

    in_file: bool
    of: ClassVar[Literal["network"]] = "network"

    def untouched(self, frame: Frame) -> np.ndarray:  # noqa: ARG002 - the signature of all effects
        """Return the whole size."""
        return np.zeros(1)

    def apply(self, chosen: np.ndarray, layers: Layers) -> None:
        """Let every network run at its size."""
        layers.run_at(chosen[:, 0].astype(int))
        layers.resized_N = (chosen[:, 0] > 0) * float(self.in_file)


@dataclass(frozen=True, slots=True)
class Resize:
    """Resize the input before the first layer, bilinearly, so that the network computes with smaller images.

    The network still takes the original inputs in training and in every measurement.

    Attributes
    ----------
    size
        Height and width with which the network computes.
    share
        Share of the original height that this is; 1 changes nothing.
    in_file
        Whether an exported file takes the original inputs and resizes them; otherwise it takes resized ones.

    References
    ----------
    Howard et al. 2017, MobileNets, arXiv:1704.04861, section 3.4: the resolution multiplier.
    """

    size: tuple[int, ...]
    share: float
    in_file: bool = True

    def apply(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Return a network that resizes its input; its BatchNorm statistics are those of the resized example."""
        return copy.deepcopy(self._resized(model, example) if self.words() else model)

    def shared(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Return the network that `apply` copies, so that later steps find their statistics of an earlier plan."""
        if not self.words():
            return model
        resized = self._resized(model, example)
        known_anatomy(resized, example, trace(model, self._input_resize.resized(example[:1])))
        return resized

    def _resized(self, model: nn.Module, example: Inputs) -> nn.Module:
        def resized() -> nn.Module:
            smaller = copy.deepcopy(model)
            resize_input(smaller, self._input_resize)
            reestimate(smaller, example)
            return smaller

        return cached(model, ("resized", self._input_resize, identity_of(example)), resized)

    @property
    def _input_resize(self) -> InputResize:
        return InputResize(self.size, self.in_file)

    def apply_to_shapes(self, architectures: Architectures, row: int) -> None:
        """Write the number of the size.

        Raises
        ------
        ValueError
            If the network was not traced at this size.
        """
        numbers = architectures.frame.sizes.numbers
        if self.size in numbers:  # the whole size is written too: effects act in the order in which they are written
            architectures.write(row, InputSizeNumber(self.in_file), (NETWORK,), numbers[self.size])
        elif self.words():
            raise ValueError(
                f"the costs are known for inputs of {', '.join(map(_by, numbers)) or 'no other size'}, but not of "
                f"{_by(self.size)}; trace the network with Space.trace, and draw the step from its anatomy"
            )

    def choices(self, anatomy: Anatomy) -> dict[str, dict[str, Choice]]:
        """Return the share of the height for each layer that is applied less often at another size."""
        choice = Choice(self.share, 1 - self.share, f"{self.share:.0%}")
        return {"input size": dict.fromkeys(_sized_layers(anatomy), choice)}

    def words(self) -> str:
        """Name the size, and whether a file takes inputs of it."""
        if self.share == 1:
            return ""
        return f"input {_by(self.size)} ({self.share:.0%}){'' if self.in_file else ', resized outside of the file'}"


@dataclass(frozen=True, slots=True)
class Resolution:
    """Which smaller sizes of the input the network may compute with, where the input is an image.

    A size is offered if the network was run at it, with outputs of the same shape, and if all groups of channels and
    all branches could be removed there as well. That needs a pooling to a fixed size before the linear layers. The
    axis precedes all others, which are fitted on the resized inputs.

    For every size a copy of the teacher and its statistics are kept in memory.

    Parameters
    ----------
    lowest
        The smallest share of the height and width offered, in (0, 1).
    step
        The distance between the shares offered; they are counted down from 1.
    resize_in_file
        Whether exported files take the original inputs and resize them. Otherwise they take resized inputs: then
        resizing is up to you, and latencies do not contain it.
    """

    lowest: float = 0.5
    step: float = 0.125
    resize_in_file: bool = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (0 < self.lowest < 1 and LEAST_STEP <= self.step <= 1 - self.lowest):
            raise ValueError(
                f"0 < lowest < 1 and {LEAST_STEP} <= step <= 1 - lowest must hold, but got lowest={self.lowest}, "
                f"step={self.step}"
            )

    def survey(self, model: nn.Module, example: Inputs, anatomy: Anatomy) -> Anatomy:
        """Return the anatomy with every size that could be offered, tried on the network."""
        whole = tuple(example.shape[2:]) if isinstance(example, Tensor) else ()
        sizes = dict.fromkeys(_scaled(whole, share) for share in self._shares())
        sizes.pop(whole, None)
        return replace(anatomy, sizes=try_input_sizes(model, example, anatomy, tuple(sizes)))

    def suggest(self, trial: BaseTrial, anatomy: Anatomy) -> Resize:
        """Draw a share of the height and width, as `resolution/<first layer>`, if a smaller size is offered."""
        offered = self.offered(anatomy)
        share = 1.0
        if len(offered) > 1:
            drawn = trial.suggest_float(self._parameter(anatomy), self._shares()[0], 1.0, step=self.step)
            share = nearest_offered(drawn, tuple(offered))
        return Resize(offered[share], share, self.resize_in_file)

    def uniform(self, anatomy: Anatomy, strength: float) -> dict[str, float]:
        """Return the size of this strength."""
        shares = self._shares()
        share = shares[-1 - round(strength * (len(shares) - 1))]
        return {self._parameter(anatomy): share} if len(self.offered(anatomy)) > 1 else {}

    def acts_on(self, anatomy: Anatomy) -> Mapping[str, str]:
        """Return the sizes of the input for every layer that is applied less often at them, or why there is none."""
        offered = self.offered(anatomy)
        refused: dict[str, list[str]] = {}
        for size in anatomy.sizes:
            if size.refusal:
                refused.setdefault(size.refusal, []).append(_by(size.size))
        reasons = "; ".join(f"not {', '.join(sizes)}: {reason}" for reason, sizes in refused.items())
        names = [layer.name for layer in anatomy.layers]
        if len(offered) == 1:
            untried = "no smaller size was tried; trace the network with Space.trace"
            return dict.fromkeys(names, f"no: {reasons.removeprefix('not ') or untried}")
        texts = dict.fromkeys(names, "no: it is applied as often at every size of the input")
        text = f"inputs of {', '.join(map(_by, offered.values()))}, one size for all layers"
        texts |= dict.fromkeys(_sized_layers(anatomy), f"{text}; {reasons}" if reasons else text)
        return texts

    def offered(self, anatomy: Anatomy) -> dict[float, tuple[int, ...]]:
        """Return the sizes that were tried and passed, by their share of the height, ascending; the last is whole."""
        known = {size.size for size in anatomy.sizes if not size.refusal}
        whole = anatomy.sizes[0].size if anatomy.sizes else ()
        shares = {_scaled(whole, share): share for share in self._shares()}  # of equal sizes, the largest share
        return {share: size for size, share in shares.items() if size in known and share < 1} | {1.0: whole}

    def _shares(self) -> tuple[float, ...]:
        """Return the shares, ascending, up to 1."""
        count = int((1 - self.lowest) / self.step + 1e-9)
        return tuple(round(1 - number * self.step, 9) for number in range(count, -1, -1))

    def _parameter(self, anatomy: Anatomy) -> str:
        return f"resolution/{anatomy.layers[0].name}"


def _scaled(whole: tuple[int, ...], share: float) -> tuple[int, ...]:
    return tuple(max(1, round(share * side)) for side in whole)


def _sized_layers(anatomy: Anatomy) -> list[str]:
    """Return the layers that are applied less often at one of the sizes that the network runs at."""
    tried = [size for size in anatomy.sizes if not size.refusal]
    return [
        layer.name
        for at, layer in enumerate(anatomy.layers)
        if any(replace(layer, runs=size.runs[at]).positions < layer.positions for size in tried)
    ]


def _by(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
