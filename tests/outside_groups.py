"""A second axis that is not ours: dense convolutions become grouped ones, so that a layer has other groups than before.

Nothing in spaces, search or objectives refers to it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from spaces.network.layers import replace_module
from spaces.network.statistics import reestimate
from spaces.plan import Choice, summarize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.trial import BaseTrial
    from torch import Tensor

    from spaces import Anatomy, Layer
    from spaces.costs.architectures import Architectures
    from spaces.costs.effects import Layers
    from spaces.costs.frame import Frame

CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d


@dataclass(frozen=True, slots=True)
class GroupCount:
    """The number of groups, 1, 2 or 4; for kept channels that it does not divide, the largest that does."""

    of: ClassVar[Literal["layer"]] = "layer"

    def untouched(self, frame: Frame) -> np.ndarray:
        return np.ones(len(frame.layers))

    def apply(self, chosen: np.ndarray, layers: Layers) -> None:
        outputs, inputs, _ = layers.channels()
        groups = np.where(layers.settle_splits(), 1, _possible(outputs, inputs, chosen))
        layers.shapes = layers.shapes._replace(groups=layers.shapes.groups * groups)


@dataclass(frozen=True, slots=True)
class SplitIntoGroups:
    """Keep the blocks on the diagonal of each weight; `counts` are pairs of (layer, groups)."""

    counts: tuple[tuple[str, int], ...]

    def apply(self, model: nn.Module, example: Tensor) -> nn.Module:
        split = copy.deepcopy(model)
        if not self.words():
            return split
        for name, count in self.counts:
            layer = split.get_submodule(name)
            if isinstance(layer, CONVOLUTIONS):
                groups = int(_possible(layer.out_channels, layer.in_channels, count))
                if groups > 1:
                    replace_module(split, name, _grouped(layer, groups).train(layer.training))
        reestimate(split, example)
        return split

    def apply_to_shapes(self, architectures: Architectures, row: int) -> None:
        if self.counts:
            names, counts = zip(*self.counts, strict=True)
            architectures.write(row, GroupCount(), names, counts)

    def choices(self, anatomy: Anatomy) -> dict[str, dict[str, Choice]]:
        del anatomy
        return {"groups": {name: Choice(count, math.log2(count) / 2, f"{count}x") for name, count in self.counts}}

    def words(self) -> str:
        chosen = tuple((name, f"{count}x") for name, count in self.counts if count > 1)
        return f"groups {summarize(chosen)}" if chosen else ""


@dataclass(frozen=True, slots=True)
class Groups:
    """How many groups dense convolutions get."""

    def suggest(self, trial: BaseTrial, anatomy: Anatomy) -> SplitIntoGroups:
        exponents = ((layer.name, trial.suggest_int(f"groups/{layer.name}", 0, 2)) for layer in _layers(anatomy))
        return SplitIntoGroups(tuple((name, 2**exponent) for name, exponent in exponents))

    def uniform(self, anatomy: Anatomy, strength: float) -> dict[str, float]:
        return {f"groups/{layer.name}": round(2 * strength) for layer in _layers(anatomy)}

    def acts_on(self, anatomy: Anatomy) -> Mapping[str, str]:
        acting = {layer.name for layer in _layers(anatomy)}
        return {
            layer.name: "1, 2 or 4 groups" if layer.name in acting else "no: it is not dense, or its channels are odd"
            for layer in anatomy.layers
        }


def _possible(outputs: Any, inputs: Any, count: Any) -> Any:
    """Return the largest of 1, 2 and 4 groups, at most `count`, that divides both numbers of channels."""
    two = (count >= 2) & (outputs % 2 == 0) & (inputs % 2 == 0)
    four = (count >= 4) & (outputs % 4 == 0) & (inputs % 4 == 0)
    return np.where(four, 4, np.where(two, 2, 1))


def _layers(anatomy: Anatomy) -> list[Layer]:
    dense = [layer for layer in anatomy.layers if layer.kernel and layer.groups == 1 and not layer.transposed]
    even = [layer for layer in dense if layer.inputs % 2 == layer.outputs % 2 == 0]
    return [layer for layer in even if not (layer.tied or layer.stays)]


def _grouped(layer: Any, groups: int) -> nn.Module:
    kind = next(kind for kind in CONVOLUTIONS if isinstance(layer, kind))
    split = kind(
        layer.in_channels, layer.out_channels, layer.kernel_size, stride=layer.stride, padding=layer.padding,
        dilation=layer.dilation, groups=groups, bias=layer.bias is not None, padding_mode=layer.padding_mode,
    )  # fmt: skip
    rows = layer.weight.detach().chunk(groups, 0)
    split.weight.data = torch.cat([row.chunk(groups, 1)[at] for at, row in enumerate(rows)]).clone()
    if layer.bias is not None and split.bias is not None:
        split.bias.data = layer.bias.detach().clone()
    return split.to(layer.weight.device)
