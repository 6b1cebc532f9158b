"""Quantize layers: which bit widths may be chosen, and the step that quantizes."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import TYPE_CHECKING, Protocol

from spaces.axes.grids import Grid, Uniform
from spaces.axes.quantized_layers import QuantizedLayer
from spaces.costs.effects import Setting
from spaces.network.anatomy import select
from spaces.network.layers import FLOAT_BITS, LAYER_TYPES, replace_module
from spaces.network.messages import unknown_name
from spaces.network.statistics import inputs_of
from spaces.plan import Choice, nearest_offered, summarize

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from optuna.trial import BaseTrial
    from torch import nn

    from spaces.costs.architectures import Architectures
    from spaces.network.anatomy import Anatomy, Layer
    from spaces.network.tensors import Inputs


WEIGHT_BITS = Setting("weight_bits_NL", FLOAT_BITS)  # bits of a weight
INPUT_BITS = Setting("activation_bits_NL", FLOAT_BITS)  # bits of an input
FLOAT = (FLOAT_BITS, FLOAT_BITS)  # a layer that is not quantized
RUNTIME_MEMBERS = "precisions", "integers_only"  # of `HasPrecisions`
CODEBOOK_LEVELS = Setting("levels_NL", 0)  # entries of the codebook; 0 where the codes are integers
CONVERTERS_BITS = 8  # of weights and inputs, which the converters of runtimes make without a search


@dataclass(frozen=True, slots=True)
class Quantize:
    """Quantize the weights and inputs of layers.

    Attributes
    ----------
    widths
        Triples of (layer, bits of its weights, bits of its inputs); 32 means not quantized. The widths of a factorized
        layer apply to all its factors.
    grid
        Where the levels of the weights lie.
    """

    widths: tuple[tuple[str, int, int], ...]
    grid: Grid = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        """Check the widths."""
        for name, weight, activation in self.widths:
            _check("weight", weight, 2, f"layer {name!r}")
            _check("activation", activation, 2, f"layer {name!r}")

    def apply(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Return a network with `QuantizedLayer`s; their scales minimize the squared error on the example."""
        quantized = copy.deepcopy(model)
        layers = dict(quantized.named_modules())
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
            replace_module(quantized, name, layer.train(layers[name].training))
        return quantized

    def apply_to_shapes(self, architectures: Architectures, row: int) -> None:
        """Write the widths, and the number of levels that a codebook stores."""
        if not self.widths:
            return
        names, weights, activations = zip(*self.widths, strict=True)
        architectures.write(row, WEIGHT_BITS, names, weights)
        architectures.write(row, INPUT_BITS, names, activations)
        if not self.grid.uniform:
            levels = [0 if bits == FLOAT_BITS else self.grid.entries(bits) for bits in weights]
            architectures.write(row, CODEBOOK_LEVELS, names, levels)

    def choices(self, anatomy: Anatomy) -> dict[str, dict[str, Choice]]:  # noqa: ARG002 - the signature of all steps
        """Return the widths of each layer."""
        return {
            "weight bits": {name: _choice(bits) for name, bits, _ in self.widths},
            "input bits": {name: _choice(bits) for name, _, bits in self.widths},
        }

    def sparing(self, removed: frozenset[str], anatomy: Anatomy) -> Quantize:  # noqa: ARG002 - the signature of all steps
        """Return the step that leaves the removed layers unquantized."""
        widths = ((x[0], FLOAT_BITS, FLOAT_BITS) if x[0] in removed else x for x in self.widths)
        return replace(self, widths=tuple(widths))

    def words(self) -> str:
        """Summarize the bits of the quantized layers."""
        weights = tuple((name, f"{bits} bit") for name, bits, _ in self.widths if bits < FLOAT_BITS)
        inputs = tuple((name, f"{bits} bit") for name, _, bits in self.widths if bits < FLOAT_BITS)
        parts = [f"weights {summarize(weights)}" if weights else "", f"inputs {summarize(inputs)}" if inputs else ""]
        return "; ".join(filter(None, parts))


class HasPrecisions(Protocol):
    """A runtime that reports at which widths it packs and computes, such as those of `objectives.runtimes`."""

    @property
    def integers_only(self) -> bool:
        """Whether layers for which it has precisions are never offered floating point."""
        ...

    def precisions(self, kind: str, groups: int) -> tuple[tuple[int, int], ...]:
        """Return pairs of (bits of weights, bits of inputs) for a layer of this class and number of groups."""
        ...


@dataclass(frozen=True, slots=True)
class BitWidths:
    """Which bit widths the weights and the inputs of each layer may have.

    Floating point, 32 bits, is offered too, except with a runtime of integers alone, such as TFLite Micro: there each
    layer has one of its widths, and if it is the only one, there is nothing to search.

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
        The runtime that will execute the network. For each kind of layer, only those of the widths above are offered
        with which it packs and computes. None offers all of them to every layer, whether or not a file can store them.
    """

    weights: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    activations: tuple[int, ...] = (4, 5, 6, 7, 8)
    grid: Grid = field(default_factory=Uniform)
    only: tuple[str, ...] = ()
    runtime: HasPrecisions | None = None

    def __post_init__(self) -> None:
        """Check the widths."""
        if not self.weights or not self.activations:
            raise ValueError(
                "weights and activations must each offer a width; to quantize only one of them, offer (32,)"
            )
        for bits in self.weights:
            _check("weight", bits, 2, "BitWidths")
        for bits in self.activations:
            _check("activation", bits, 4, "BitWidths")
        missing = [name for name in RUNTIME_MEMBERS if self.runtime is not None and not hasattr(self.runtime, name)]
        if missing:
            raise ValueError(
                f"the runtime of BitWidths must have {' and '.join(missing)}, as `objectives.runtimes.Runtime` says, "
                f"but {type(self.runtime).__name__} has not"
            )

    def suggest(self, trial: BaseTrial, anatomy: Anatomy) -> Quantize:
        """Draw `weight_bits/<layer>` and `activation_bits/<layer>` on logarithmic scales.

        A runtime supports pairs of widths, so with a runtime draw `precision/<layer>` instead: an index into the list
        of its pairs, from floating point to the narrowest.
        """
        widths = []
        for layer in self._layers(anatomy):
            if self.runtime is not None:
                pairs = self._pairs(layer)
                last = len(pairs) - 1
                index = trial.suggest_int(f"precision/{layer.name}", 0, last) if last else 0
                widths.append((layer.name, *pairs[index]))
                continue
            drawn = []
            for kind, offered in self._offered_widths():
                value = trial.suggest_int(f"{kind}/{layer.name}", offered[0], FLOAT_BITS, log=True)
                drawn.append(int(nearest_offered(value, offered)))
            widths.append((layer.name, drawn[0], drawn[1]))
        return Quantize(tuple(widths), self.grid)

    def uniform(self, anatomy: Anatomy, strength: float) -> dict[str, float]:
        """Return the same widths for every layer; with a runtime, the same relative index into its pairs."""
        layers = self._layers(anatomy)
        if self.runtime is not None:
            lasts = {layer.name: len(self._pairs(layer)) - 1 for layer in layers}
            return {f"precision/{name}": round(strength * last) for name, last in lasts.items() if last}
        params: dict[str, float] = {}
        for kind, offered in self._offered_widths():
            value = offered[::-1][round(strength * (len(offered) - 1))]
            params |= {f"{kind}/{layer.name}": value for layer in layers}
        return params

    def converted(self, anatomy: Anatomy) -> dict[str, float]:
        """Return 8 bits for the weights and the inputs of every layer, as far as they are offered."""
        layers = self._layers(anatomy)
        if self.runtime is None:
            offered = dict(self._offered_widths())
            widths = {
                kind: CONVERTERS_BITS if CONVERTERS_BITS in several else FLOAT_BITS for kind, several in offered.items()
            }
            return {f"{kind}/{layer.name}": bits for kind, bits in widths.items() for layer in layers}
        pairs = {layer.name: self._pairs(layer) for layer in layers if len(self._pairs(layer)) > 1}
        usual = {(CONVERTERS_BITS, CONVERTERS_BITS): 0, (CONVERTERS_BITS, FLOAT_BITS): 1}  # by preference
        return {
            f"precision/{name}": min(range(len(several)), key=lambda at: usual.get(several[at], len(usual)))
            for name, several in pairs.items()
        }

    def acts_on(self, anatomy: Anatomy) -> Mapping[str, str]:
        """Return which widths each layer may have, or the reason why it is not quantized."""
        acting = {layer.name for layer in self._layers(anatomy)}
        return {
            layer.name: _pair_words(self._pairs(layer)) + _failing_words(layer) if layer.name in acting
            else f"no: {_refusal_reason(layer)}" if _refusal_reason(layer)
            else f"no: {layer.name} is not among only={self.only}" if self.only and layer.name not in self.only
            else f"no: {type(self.runtime).__name__} failed here with {_listed(layer.failing)} (bits of weights/inputs)"
            if layer.failing
            else f"no: {type(self.runtime).__name__} supports no width below 32 bits for {layer.kind}"
            for layer in anatomy.layers
        }  # fmt: skip

    def offered(self, anatomy: Anatomy) -> dict[str, tuple[tuple[int, int], ...]]:
        """Return, by layer, the pairs of (bits of weights, bits of inputs) that it may have, narrow weights last."""
        return {layer.name: self._pairs(layer) for layer in self._layers(anatomy)}

    def _layers(self, anatomy: Anatomy) -> tuple[Layer, ...]:
        selected = select("layer", anatomy.layers, self.only)
        return tuple(layer for layer in selected if not _refusal_reason(layer) and self._pairs(layer) != (FLOAT,))

    def _offered_widths(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return ("weight_bits", _ascending(self.weights)), ("activation_bits", _ascending(self.activations))

    def _pairs(self, layer: Layer) -> tuple[tuple[int, int], ...]:
        """Return the widths of weights and inputs that the layer may have, floating point first, narrow weights last.

        The error of quantization usually grows in this order: narrow weights lose more than narrow inputs.
        """
        (_, weights), (_, inputs) = self._offered_widths()
        offered = itertools.product(weights[::-1], inputs[::-1])
        if self.runtime is None:
            return tuple(offered)
        supported = {*self.runtime.precisions(layer.kind, layer.groups)}
        if not supported or not self.runtime.integers_only:
            supported.add(FLOAT)
        if layer.recurrent and getattr(self.runtime, "recurrent_operators", False):  # steps one by one are slower
            supported = {pair for pair in supported if pair[1] == FLOAT_BITS}
        found = tuple(pair for pair in offered if pair in supported)
        if layer.failing:  # what was not offered before it was tried fails for another reason
            return tuple(pair for pair in found if pair not in layer.failing) or (FLOAT,)
        if not found:
            raise ValueError(
                f"BitWidths must offer a precision of {type(self.runtime).__name__} for layer {layer.name!r}, a "
                f"{layer.kind}: {_listed(sorted(supported))} (bits of "
                "weights/inputs); add these widths, or name the other layers in only="
            )
        return found


def _choice(bits: int) -> Choice:
    return Choice(bits, 0.0 if bits == FLOAT_BITS else 1 - (bits - 2) / 8, f"{bits:g}")


def _pair_words(pairs: tuple[tuple[int, int], ...]) -> str:
    """Describe the widths of a layer in a few words."""
    weights, inputs = (sorted({bits for bits in column if bits != FLOAT_BITS}) for column in zip(*pairs, strict=True))
    parts = [f"{kind} {'/'.join(map(str, bits))}" for kind, bits in (("weights", weights), ("inputs", inputs)) if bits]
    return ", ".join(parts) + ", or 32" * (FLOAT in pairs)


def _failing_words(layer: Layer) -> str:
    return f", not {_listed(layer.failing)}, which failed here" if layer.failing else ""


def _listed(pairs: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"{weights}/{inputs}" for weights, inputs in pairs)


def _refusal_reason(layer: Layer) -> str:
    """Return why the layer cannot be quantized; an empty string where it can."""
    if layer.transposed and layer.groups > 1:
        return f"a transposed convolution of {layer.groups} groups cannot be quantized"
    return "another module holds the same weight" if layer.tied else layer.stays


def _ascending(widths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({*widths, FLOAT_BITS}))


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)  # numpy's are, too


def _check(kind: str, bits: int, lowest: int, where: str) -> None:
    if not _is_whole(bits) or (bits != FLOAT_BITS and not lowest <= bits <= 8):  # noqa: PLR2004 - codes are stored in a byte
        raise ValueError(f"{kind} bits must be from {lowest} to 8, or 32 for off, but got {bits} for {where}")


def _calibrate(model: nn.Module, wrapped: Mapping[str, QuantizedLayer], example: Inputs) -> None:
    """Calibrate every wrapper on the inputs of its layer, over all calls in one forward pass of the float model."""
    names = [name for name, layer in wrapped.items() if layer.activation_bits < FLOAT_BITS]
    for name, inputs in inputs_of(model, example, names).items():
        wrapped[name].calibrate(inputs)
