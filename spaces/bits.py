"""Quantize layers: which widths may be chosen, and the quantization itself."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spaces.anatomy import unknown
from spaces.grids import Grid, Uniform
from spaces.plan import settled, snap
from spaces.quantized import OFF, QuantizedLayer
from spaces.statistics import inputs_of
from spaces.surgery import LAYER_TYPES, put

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.trial import BaseTrial
    from torch import Tensor, nn

    from spaces.anatomy import Anatomy, Layer
    from spaces.outline import Outline


@dataclass(frozen=True, slots=True)
class Quantize:
    """Round the weights and inputs of layers.

    Attributes
    ----------
    widths
        Triples of (layer, bits of its weights, bits of its inputs); 32 leaves either alone. A layer that was split
        gives its widths to all of its parts.
    grid
        Where the weight levels lie.
    """

    widths: tuple[tuple[str, int, int], ...]
    grid: Grid = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        """Check the widths."""
        for name, weight, activation in self.widths:
            _check("weight", weight, 2, f"layer {name!r}")
            _check("activation", activation, 2, f"layer {name!r}")

    def apply(self, model: nn.Module, example: Tensor) -> nn.Module:
        """Return a network of `QuantizedLayer`; scales are those of least squared error on the example."""
        rounded = copy.deepcopy(model)
        layers = dict(rounded.named_modules())
        wrapped: dict[str, QuantizedLayer] = {}
        for name, weight, activation in self.widths:
            if name not in layers:
                raise ValueError(unknown("layer", name, layers))
            if weight == OFF and activation == OFF:
                continue
            for part, module in layers[name].named_modules(prefix=name):
                if isinstance(module, LAYER_TYPES):
                    wrapped[part] = QuantizedLayer(module, weight, activation, self.grid)
        _calibrate(model, wrapped, example)
        for name, layer in wrapped.items():
            put(rounded, name, layer.train(layers[name].training))
        return rounded

    def sketch(self, outline: Outline, row: int) -> None:
        """Write the widths, and how many levels must be stored."""
        if not self.widths:
            return
        names, weights, activations = zip(*self.widths, strict=True)
        columns = outline.frame.columns("layer", names)
        outline.weight_bits_NL[row, columns] = weights
        outline.activation_bits_NL[row, columns] = activations
        if not self.grid.uniform:
            outline.levels_NL[row, columns] = [0 if bits == OFF else self.grid.entries(bits) for bits in weights]

    def choices(self) -> dict[str, dict[str, float]]:
        """Return the widths of each layer."""
        return {
            "weight bits": {name: bits for name, bits, _ in self.widths},
            "input bits": {name: bits for name, _, bits in self.widths},
        }

    def words(self) -> str:
        """Say which layers get how many bits."""
        weights = tuple((name, f"{bits} bit") for name, bits, _ in self.widths if bits < OFF)
        inputs = tuple((name, f"{bits} bit") for name, _, bits in self.widths if bits < OFF)
        parts = [f"weights {settled(weights)}" if weights else "", f"inputs {settled(inputs)}" if inputs else ""]
        return "; ".join(filter(None, parts))


@dataclass(frozen=True, slots=True)
class BitWidths:
    """How many bits the weights and the inputs of each layer may have; 32, off, is always offered.

    Parameters
    ----------
    weights
        Widths of the weights, from 2 to 8.
    activations
        Widths of the inputs, from 4 to 8.
    grid
        See `Quantize`.
    only
        Names of the layers to act on; empty for all.
    """

    weights: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    activations: tuple[int, ...] = (4, 5, 6, 7, 8)
    grid: Grid = field(default_factory=Uniform)
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the widths."""
        if not self.weights or not self.activations:
            raise ValueError("weights and activations must each offer a width; to leave one alone, offer (32,)")
        for bits in self.weights:
            _check("weight", bits, 2, "BitWidths")
        for bits in self.activations:
            _check("activation", bits, 4, "BitWidths")

    def suggest(self, trial: BaseTrial, anatomy: Anatomy) -> Quantize:
        """Draw `weight_bits/<layer>` and `activation_bits/<layer>` on logarithmic scales."""
        widths = []
        for layer in self._layers(anatomy):
            drawn = []
            for kind, ladder in (("weight_bits", self.weights), ("activation_bits", self.activations)):
                value = trial.suggest_int(f"{kind}/{layer.name}", min(ladder), OFF, log=True)
                drawn.append(int(snap(value, _ladder(ladder))))
            widths.append((layer.name, drawn[0], drawn[1]))
        return Quantize(tuple(widths), self.grid)

    def uniform(self, anatomy: Anatomy, strength: float) -> dict[str, float]:
        """Return the same widths for every layer."""
        params: dict[str, float] = {}
        for kind, ladder in (("weight_bits", self.weights), ("activation_bits", self.activations)):
            rungs = sorted(_ladder(ladder), reverse=True)
            value = rungs[round(strength * (len(rungs) - 1))]
            params |= {f"{kind}/{layer.name}": value for layer in self._layers(anatomy)}
        return params

    def acts_on(self, anatomy: Anatomy) -> Mapping[str, str]:
        """Say which widths each layer may have, or why it keeps 32."""
        widths = f"weights {'/'.join(map(str, self.weights))}, inputs {'/'.join(map(str, self.activations))}, or 32"
        chosen = {layer.name for layer in self._layers(anatomy)}
        return {
            layer.name: widths if layer.name in chosen
            else f"no: {_unfit(layer)}" if _unfit(layer)
            else f"no: {layer.name} is not among only={self.only}"
            for layer in anatomy.layers
        }  # fmt: skip

    def _layers(self, anatomy: Anatomy) -> tuple[Layer, ...]:
        for name in self.only:
            anatomy.layer(name)
        return tuple(x for x in anatomy.layers if not _unfit(x) and (not self.only or x.name in self.only))


def _unfit(layer: Layer) -> str:
    if layer.transposed and layer.groups > 1:
        return f"a transposed convolution of {layer.groups} groups is not rounded"
    return "its weight is held under another name too" if layer.tied else layer.stays


def _ladder(widths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({*widths, OFF}))


def _check(kind: str, bits: int, lowest: int, where: str) -> None:
    if bits != OFF and not lowest <= bits <= 8:  # noqa: PLR2004 - a byte
        raise ValueError(f"{kind} bits must be from {lowest} to 8, or 32 for off, but got {bits} for {where}")


def _calibrate(model: nn.Module, wrapped: Mapping[str, QuantizedLayer], example: Tensor) -> None:
    """Show every wrapper the inputs of its layer, of all its calls in one forward of the float model."""
    wanted = [name for name, layer in wrapped.items() if layer.activation_bits < OFF]
    for name, inputs in inputs_of(model, example, wanted).items():
        wrapped[name].calibrate(inputs)
