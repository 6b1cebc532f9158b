"""A complete axis in one file, as a user would write it: it crops kernels to their middle.

A 3x3 kernel becomes its middle row (1x3) or its middle (1x1). Nothing in spaces, search or objectives refers to it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from torch import nn

from spaces.network.layers import replace_module
from spaces.network.statistics import reestimate
from spaces.plan import Choice

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.trial import BaseTrial
    from torch import Tensor

    from spaces import Anatomy, Layer
    from spaces.costs.architectures import Architectures
    from spaces.costs.effects import Layers
    from spaces.costs.frame import Frame

WORDS = "all", "row", "middle"  # of crop 0, 1 and 2


@dataclass(frozen=True, slots=True)
class KernelCrop:
    """0 for a whole kernel, 1 for its middle row, 2 for its middle."""

    of: ClassVar[Literal["layer"]] = "layer"

    def untouched(self, frame: Frame) -> np.ndarray:
        return np.zeros(len(frame.layers))

    def apply(self, chosen: np.ndarray, layers: Layers) -> None:
        shapes = layers.shapes
        height, width = np.where(chosen > 0, 1, shapes.height), np.where(chosen > 1, 1, shapes.width)
        area = np.where(chosen > 0, height * width, shapes.area)
        layers.shapes = shapes._replace(height=height, width=width, area=area, plane=shapes.plane & (chosen == 0))
        layers.padded = np.where(chosen > 1, 0, layers.padded)


@dataclass(frozen=True, slots=True)
class CropKernels:
    """Remove the outer positions of kernels; `crops` are pairs of (layer, 0, 1 or 2)."""

    crops: tuple[tuple[str, int], ...]

    def apply(self, model: nn.Module, example: Tensor) -> nn.Module:
        cropped = copy.deepcopy(model)
        if not self.words():
            return cropped
        for name, crop in self.crops:
            layer = cropped.get_submodule(name)
            if crop and isinstance(layer, nn.Conv2d):
                replace_module(cropped, name, _cropped(layer, crop).train(layer.training))
        reestimate(cropped, example)
        return cropped

    def apply_to_shapes(self, architectures: Architectures, row: int) -> None:
        if self.crops:
            names, crops = zip(*self.crops, strict=True)
            architectures.write(row, KernelCrop(), names, crops)

    def choices(self, anatomy: Anatomy) -> dict[str, dict[str, Choice]]:
        del anatomy
        return {"kernel kept": {name: Choice(crop, crop / 2, WORDS[crop]) for name, crop in self.crops}}

    def words(self) -> str:
        cropped = [f"{name} {WORDS[crop]}" for name, crop in self.crops if crop]
        return f"kernels {', '.join(cropped)}" if cropped else ""


@dataclass(frozen=True, slots=True)
class KernelSizes:
    """Which kernels may lose their outer positions: square ones that keep the size of their input."""

    def suggest(self, trial: BaseTrial, anatomy: Anatomy) -> CropKernels:
        return CropKernels(tuple((x.name, trial.suggest_int(f"kernel/{x.name}", 0, 2)) for x in _layers(anatomy)))

    def uniform(self, anatomy: Anatomy, strength: float) -> dict[str, float]:
        return {f"kernel/{layer.name}": round(2 * strength) for layer in _layers(anatomy)}

    def acts_on(self, anatomy: Anatomy) -> Mapping[str, str]:
        acting = {layer.name for layer in _layers(anatomy)}
        return {
            layer.name: "whole, middle row or middle of its kernel" if layer.name in acting
            else "no: it has no square kernel that keeps the size of its input"
            for layer in anatomy.layers
        }  # fmt: skip


def _layers(anatomy: Anatomy) -> list[Layer]:
    square = [layer for layer in anatomy.layers if layer.kernel in {(3, 3), (5, 5)} and layer.stride == (1, 1)]
    same = [layer for layer in square if all(run.before == run.after for run in layer.runs)]
    return [layer for layer in same if not (layer.tied or layer.stays or layer.transposed)]


def _cropped(layer: nn.Conv2d, crop: int) -> nn.Conv2d:
    middle = layer.kernel_size[0] // 2
    smaller = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        (1, 1 if crop > 1 else layer.kernel_size[1]),
        padding=(0, 0 if crop > 1 else middle * layer.dilation[1]),  # keeps the size of the input
        dilation=(layer.dilation[0], layer.dilation[1]),
        groups=layer.groups,
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
    )
    weight = layer.weight.detach()[:, :, middle : middle + 1]
    smaller.weight.data = (weight[..., middle : middle + 1] if crop > 1 else weight).clone()
    if layer.bias is not None and smaller.bias is not None:
        smaller.bias.data = layer.bias.detach().clone()
    return smaller.to(layer.weight.device)
