"""Factorize layers: which ranks may be chosen, and the step that factorizes."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from spaces.axes.decompositions import Decomposition, Tucker2
from spaces.costs.factors import shapes_of
from spaces.network.anatomy import select
from spaces.network.layer_runs import layers_of
from spaces.network.layers import LAYER_TYPES, TRANSPOSED, replace_module
from spaces.network.messages import unknown_name
from spaces.network.omission import LEFT_OUT
from spaces.network.statistics import moments, reestimate
from spaces.network.tensors import some
from spaces.plan import LEAST_STEP, Choice, nearest_offered, summarize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.trial import BaseTrial
    from torch import nn

    from spaces.costs.architectures import Architectures
    from spaces.costs.effects import Layers
    from spaces.costs.frame import Frame
    from spaces.network.anatomy import Anatomy, Layer
    from spaces.network.tensors import Inputs


@dataclass(frozen=True, slots=True)
class RankFractions:
    """The fraction of the full rank that each layer keeps, and the decomposition that splits it."""

    decomposition: Decomposition
    of: ClassVar[Literal["layer"]] = "layer"

    def untouched(self, frame: Frame) -> np.ndarray:
        """Return 1 for every layer."""
        return np.ones(len(frame.layers))

    def apply(self, chosen: np.ndarray, layers: Layers) -> None:
        """Split the layers whose fraction is below 1."""
        assert layers.splitting is None, "all rows must share one decomposition"
        layers.splitting, layers.fractions_NL = self.decomposition, chosen


@dataclass(frozen=True, slots=True)
class Factorize:
    """Replace layers by products of thinner ones.

    Attributes
    ----------
    ranks
        Pairs of (layer, fraction of its full rank, in (0, 1]). A layer is unchanged at fraction 1, and where the
        fraction saves no multiply-adds on the layer as earlier steps left it.
    decomposition
        How layers are split.
    """

    ranks: tuple[tuple[str, float], ...]
    decomposition: Decomposition = field(default_factory=Tucker2)

    def __post_init__(self) -> None:
        """Check the fractions."""
        for name, fraction in self.ranks:
            if not 0 < fraction <= 1:
                raise ValueError(f"rank must be a fraction in (0, 1], but got {fraction} for layer {name!r}")

    def apply(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Return a network with these layers split; its BatchNorm statistics are those of the example."""
        thinner = copy.deepcopy(model)
        layers = dict(thinner.named_modules())
        for name, _ in self.ranks:
            if name not in layers:
                raise ValueError(unknown_name("layer", name, layers))
            if isinstance(layers[name], LEFT_OUT):
                continue
            if not isinstance(layers[name], LAYER_TYPES) or isinstance(layers[name], TRANSPOSED):
                raise ValueError(
                    f"only convolutions and linear layers can be factorized, but layer {name!r} is {layers[name]}"
                )
        if all(fraction == 1 for _, fraction in self.ranks):
            return thinner
        current = {layer.name: layer for layer in layers_of(model, some(example, slice(1)))}
        selected = [
            (name, fraction, current[name])
            for name, fraction in self.ranks
            if name in current and saves(self.decomposition, current[name], fraction)
        ]
        if not selected:
            return thinner
        seen = moments(model, example, [name for name, _, _ in selected])
        for name, fraction, layer in selected:
            original = model.get_submodule(name)  # not its copy: factors are cached with it, for other ranks
            split = self.decomposition.split(original, layer, seen.get(name), fraction)
            replace_module(thinner, name, split.train(layers[name].training))
        reestimate(thinner, example)
        return thinner

    def apply_to_shapes(self, architectures: Architectures, row: int) -> None:
        """Write the fractions; whether they save multiply-adds is decided on the layers that pruning leaves."""
        if not self.ranks:
            return
        names, fractions = zip(*self.ranks, strict=True)
        architectures.write(row, RankFractions(self.decomposition), names, fractions)

    def choices(self, anatomy: Anatomy) -> dict[str, dict[str, Choice]]:  # noqa: ARG002 - the signature of all steps
        """Return the fraction of its full rank that each layer keeps."""
        return {"rank kept": {name: Choice(kept, 1 - kept, f"{kept:.0%}") for name, kept in self.ranks}}

    def sparing(self, removed: frozenset[str], anatomy: Anatomy) -> Factorize:  # noqa: ARG002 - the signature of all steps
        """Return the step that leaves the removed layers at full rank."""
        ranks = ((name, 1.0 if name in removed else fraction) for name, fraction in self.ranks)
        return replace(self, ranks=tuple(ranks))

    def words(self) -> str:
        """Summarize the ranks of the factorized layers."""
        chosen = tuple((name, f"{fraction:.0%}") for name, fraction in self.ranks if fraction < 1)
        return f"rank {summarize(chosen)}" if chosen else ""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which fractions of the full rank a layer may keep; those that save no multiply-adds are not offered.

    Parameters
    ----------
    lowest
        The smallest fraction offered, in (0, 1).
    step
        The distance between the fractions offered.
    decomposition
        See `Factorize`.
    only
        Names of the layers to act on; empty for all.
    """

    lowest: float = 0.125
    step: float = 0.125
    decomposition: Decomposition = field(default_factory=Tucker2)
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (0 < self.lowest < 1 and LEAST_STEP <= self.step < 1):
            raise ValueError(
                f"0 < lowest < 1 and {LEAST_STEP} <= step < 1 must hold, but got lowest={self.lowest}, step={self.step}"
            )

    def suggest(self, trial: BaseTrial, anatomy: Anatomy) -> Factorize:
        """Draw a fraction for every layer that has a choice, as `rank/<layer>`."""
        ranks = []
        for layer in self._layers(anatomy):
            offered = self.offered(layer)
            if len(offered) > 1:
                drawn = trial.suggest_float(f"rank/{layer.name}", self.lowest, self._largest(), step=self.step)
                ranks.append((layer.name, nearest_offered(drawn, offered)))
        return Factorize(tuple(ranks), self.decomposition)

    def uniform(self, anatomy: Anatomy, strength: float) -> dict[str, float]:
        """Return the same fraction for every layer."""
        steps = round((self._largest() - self.lowest) / self.step)
        value = round(self._largest() - round(strength * steps) * self.step, 9)
        return {f"rank/{x.name}": value for x in self._layers(anatomy) if len(self.offered(x)) > 1}

    def acts_on(self, anatomy: Anatomy) -> Mapping[str, str]:
        """Return which fractions each layer may keep, or the reason why it is not factorized."""
        acting = {layer.name for layer in self._layers(anatomy)}
        texts = {}
        for layer in anatomy.layers:
            offered = self.offered(layer)
            if layer.name not in acting:
                texts[layer.name] = f"no: {layer.name} is not among only={self.only}"
            elif _refusal_reason(layer):
                texts[layer.name] = f"no: {_refusal_reason(layer)}"
            elif len(offered) == 1:
                texts[layer.name] = "no: no rank in the range saves multiply-adds"
            else:
                texts[layer.name] = f"{offered[0]:.0%}-{offered[-2]:.0%} of the full rank, or all"
        return texts

    def offered(self, layer: Layer) -> tuple[float, ...]:
        """Return the fractions that the layer may keep, ascending; the last is 1, which leaves it unchanged."""
        fractions = [self.lowest + index * self.step for index in range(round((1 - self.lowest) / self.step) + 1)]
        if _refusal_reason(layer):
            return (1.0,)
        return (*(f for f in fractions if f < 1 and saves(self.decomposition, layer, f)), 1.0)

    def _largest(self) -> float:
        """Return the end of the range: 1, or the first step above 1 where 1 is not a whole number of steps away."""
        steps = -(-(1 - self.lowest) // self.step)
        return round(self.lowest + steps * self.step, 9)  # rounded, since to Optuna 1.0000000000000002 is not a step

    def _layers(self, anatomy: Anatomy) -> tuple[Layer, ...]:
        return select("layer", anatomy.layers, self.only)


@functools.lru_cache(maxsize=65536)
def saves(decomposition: Decomposition, layer: Layer, fraction: float) -> bool:
    """Whether this fraction of the rank needs fewer multiply-adds than the layer; cached, since it is called often."""
    return fraction < 1 and bool(decomposition.factors(shapes_of(layer), fraction).macs < layer.macs)


def _refusal_reason(layer: Layer) -> str:
    """Return why the layer cannot be factorized; an empty string where it can."""
    if layer.transposed:
        return "a transposed convolution cannot be factorized"
    return "another module holds the same weight" if layer.tied else layer.stays
