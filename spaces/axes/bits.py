"""Quantize layers: which widths may be chosen, and the quantization itself."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from spaces.axes.grids import Grid, Uniform
from spaces.axes.quantized_layers import QuantizedLayer
from spaces.costs.architectures import Setting
from spaces.network.anatomy import select
from spaces.network.layers import FLOAT_BITS, LAYER_TYPES, replace_module
from spaces.network.messages import unknown_name
from spaces.network.statistics import inputs_of
from spaces.plan import Choice, nearest_offered, summarize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.trial import BaseTrial
    from torch import Tensor, nn

    from spaces.costs.architectures import Architectures
    from spaces.network.anatomy import Anatomy, Layer


WEIGHT_BITS = Setting("weight_bits_NL", FLOAT_BITS)
INPUT_BITS = Setting("activation_bits_NL", FLOAT_BITS)
LEVELS = Setting("levels_NL", 0)  # entries of a codebook


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
                raise ValueError(unknown_name("layer", name, layers))
            if weight == FLOAT_BITS and activation == FLOAT_BITS:
                continue
            for part, module in layers[name].named_modules(prefix=name):
                if isinstance(module, LAYER_TYPES):
                    wrapped[part] = QuantizedLayer(module, weight, activation, self.grid)
        _calibrate(model, wrapped, example)
        for name, layer in wrapped.items():
            replace_module(rounded, name, layer.train(layers[name].training))
        return rounded

    def apply_to_shapes(self, architectures: Architectures, row: int) -> None:
        """Write the widths, and how many levels must be stored."""
        if not self.widths:
            return
        names, weights, activations = zip(*self.widths, strict=True)
        architectures.write(row, WEIGHT_BITS, names, weights)
        architectures.write(row, INPUT_BITS, names, activations)
        if not self.grid.uniform:
            levels = [0 if bits == FLOAT_BITS else self.grid.entries(bits) for bits in weights]
            architectures.write(row, LEVELS, names, levels)

    def choices(self, anatomy: Anatomy) -> dict[str, dict[str, Choice]]:  # noqa: ARG002 - as all steps
        """Return the widths of each layer."""
        return {
            "weight bits": {name: _choice(bits) for name, bits, _ in self.widths},
            "input bits": {name: _choice(bits) for name, _, bits in self.widths},
        }

    def sparing(self, gone: frozenset[str], anatomy: Anatomy) -> Quantize:  # noqa: ARG002 - as all steps
        """Return the same for the layers that are not removed."""
        return replace(self, widths=tuple((x[0], FLOAT_BITS, FLOAT_BITS) if x[0] in gone else x for x in self.widths))

    def words(self) -> str:
        """Say which layers get how many bits."""
        weights = tuple((name, f"{bits} bit") for name, bits, _ in self.widths if bits < FLOAT_BITS)
        inputs = tuple((name, f"{bits} bit") for name, _, bits in self.widths if bits < FLOAT_BITS)
        parts = [f"weights {summarize(weights)}" if weights else "", f"inputs {summarize(inputs)}" if inputs else ""]
        return "; ".join(filter(None, parts))


class Executes(Protocol):
    """What says at which widths it packs and computes, such as a runtime of `objectives.runtimes`."""

    def precisions(self, kind: str, groups: int) -> tuple[tuple[int, int], ...]:
        """Return pairs of the bits of the weights and of the inputs, for a layer of a class and so many groups."""
        ...


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
    runtime
        What will execute the network: only what it packs and computes with is offered, of the widths above and for each
        kind of layer. None offers all of them to every layer, whatever comes of it in a file.
    """

    weights: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    activations: tuple[int, ...] = (4, 5, 6, 7, 8)
    grid: Grid = field(default_factory=Uniform)
    only: tuple[str, ...] = ()
    runtime: Executes | None = None

    def __post_init__(self) -> None:
        """Check the widths."""
        if not self.weights or not self.activations:
            raise ValueError("weights and activations must each offer a width; to leave one alone, offer (32,)")
        for bits in self.weights:
            _check("weight", bits, 2, "BitWidths")
        for bits in self.activations:
            _check("activation", bits, 4, "BitWidths")

    def suggest(self, trial: BaseTrial, anatomy: Anatomy) -> Quantize:
        """Draw `weight_bits/<layer>` and `activation_bits/<layer>` on logarithmic scales.

        With a runtime, whose widths of weights and inputs go together, draw `precision/<layer>`: a place in the list of
        its pairs, from floating point to the narrowest.
        """
        widths = []
        for layer in self._layers(anatomy):
            if self.runtime is not None:
                pairs = self._pairs(layer)
                widths.append((layer.name, *pairs[trial.suggest_int(f"precision/{layer.name}", 0, len(pairs) - 1)]))
                continue
            drawn = []
            for kind, ladder in self._ladders():
                value = trial.suggest_int(f"{kind}/{layer.name}", ladder[0], FLOAT_BITS, log=True)
                drawn.append(int(nearest_offered(value, ladder)))
            widths.append((layer.name, drawn[0], drawn[1]))
        return Quantize(tuple(widths), self.grid)

    def uniform(self, anatomy: Anatomy, strength: float) -> dict[str, float]:
        """Return the same widths for every layer, as far as it has them."""
        layers = self._layers(anatomy)
        if self.runtime is not None:
            return {f"precision/{x.name}": round(strength * (len(self._pairs(x)) - 1)) for x in layers}
        params: dict[str, float] = {}
        for kind, ladder in self._ladders():
            value = ladder[::-1][round(strength * (len(ladder) - 1))]
            params |= {f"{kind}/{layer.name}": value for layer in layers}
        return params

    def acts_on(self, anatomy: Anatomy) -> Mapping[str, str]:
        """Say which widths each layer may have, or why it keeps 32."""
        acting = {layer.name for layer in self._layers(anatomy)}
        return {
            layer.name: _words(self._pairs(layer)) if layer.name in acting
            else f"no: {_unfit(layer)}" if _unfit(layer)
            else f"no: {layer.name} is not among only={self.only}" if self.only and layer.name not in self.only
            else f"no: {type(self.runtime).__name__} has no narrow widths for {layer.kind}"
            for layer in anatomy.layers
        }  # fmt: skip

    def _layers(self, anatomy: Anatomy) -> tuple[Layer, ...]:
        asked = select("layer", anatomy.layers, self.only)
        return tuple(layer for layer in asked if not _unfit(layer) and len(self._pairs(layer)) > 1)

    def _ladders(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return ("weight_bits", _ladder(self.weights)), ("activation_bits", _ladder(self.activations))

    def _pairs(self, layer: Layer) -> tuple[tuple[int, int], ...]:
        """Return the widths of weights and inputs that the layer may have, floating point first, narrower weights last.

        What a width loses grows in this order, as a rule: a weight's width matters more than that of the inputs.
        """
        (_, weights), (_, inputs) = self._ladders()
        offered = itertools.product(weights[::-1], inputs[::-1])
        if self.runtime is None:
            return tuple(offered)
        packed = {(FLOAT_BITS, FLOAT_BITS), *self.runtime.precisions(layer.kind, layer.groups)}
        return tuple(pair for pair in offered if pair in packed)


def _choice(bits: int) -> Choice:
    return Choice(bits, 0.0 if bits == FLOAT_BITS else 1 - (bits - 2) / 8, f"{bits:g}")


def _words(pairs: tuple[tuple[int, int], ...]) -> str:
    weights, inputs = (sorted({bits for bits in column if bits != FLOAT_BITS}) for column in zip(*pairs, strict=True))
    of = [f"{kind} {'/'.join(map(str, bits))}" for kind, bits in (("weights", weights), ("inputs", inputs)) if bits]
    return f"{', '.join(of)}, or 32"


def _unfit(layer: Layer) -> str:
    if layer.transposed and layer.groups > 1:
        return f"a transposed convolution of {layer.groups} groups is not rounded"
    return "its weight is held under another name too" if layer.tied else layer.stays


def _ladder(widths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({*widths, FLOAT_BITS}))


def _check(kind: str, bits: int, lowest: int, where: str) -> None:
    if bits != FLOAT_BITS and not lowest <= bits <= 8:  # noqa: PLR2004 - a byte
        raise ValueError(f"{kind} bits must be from {lowest} to 8, or 32 for off, but got {bits} for {where}")


def _calibrate(model: nn.Module, wrapped: Mapping[str, QuantizedLayer], example: Tensor) -> None:
    """Show every wrapper the inputs of its layer, of all its calls in one forward of the float model."""
    wanted = [name for name, layer in wrapped.items() if layer.activation_bits < FLOAT_BITS]
    for name, inputs in inputs_of(model, example, wanted).items():
        wrapped[name].calibrate(inputs)
