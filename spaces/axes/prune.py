"""Prune channels, which makes the layers smaller: which ratios may be chosen, and the step that cuts."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, overload

import numpy as np

from spaces.axes.importance import Importance, SecondOrder
from spaces.axes.refit import refit
from spaces.dependency.trace import trace
from spaces.network.anatomy import select
from spaces.network.cache import cached
from spaces.network.cutting import cut, removed_positions
from spaces.network.statistics import inherit, moments, reestimate
from spaces.network.tensors import identity_of
from spaces.plan import LEAST_STEP, Choice, summarize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.trial import BaseTrial
    from torch import nn

    from spaces.costs.architectures import Architectures
    from spaces.costs.effects import Layers
    from spaces.costs.frame import Frame
    from spaces.network.anatomy import Anatomy, Group
    from spaces.network.tensors import Inputs


@dataclass(frozen=True, slots=True)
class KeptUnits:
    """The number of units that each group of channels keeps."""

    of: ClassVar[Literal["group of channels"]] = "group of channels"

    def untouched(self, frame: Frame) -> np.ndarray:
        """Return the number of units of every group."""
        return frame.units

    def apply(self, chosen: np.ndarray, layers: Layers) -> None:
        """Set the kept units of every network."""
        layers.units_NG = chosen


@dataclass(frozen=True, slots=True)
class Prune:
    """Remove a share of the units of each group of channels, then refit the layers that read the kept units.

    Attributes
    ----------
    ratios
        Pairs of (group, share of its units to remove, in [0, 1)).
    round_to
        The number of kept units is rounded up to a multiple of this, but never above the number of units.
    importance
        Determines which units are removed first.
    refit
        Whether the weights of the consumers are refitted by least squares.
    joined
        Pairs of (group, later group that loses the same units, since the layers between them are left out).
    """

    ratios: tuple[tuple[str, float], ...]
    round_to: int = 1
    importance: Importance = field(default_factory=SecondOrder)
    refit: bool = True
    joined: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Check the ratios."""
        for name, ratio in self.ratios:
            if not 0 <= ratio < 1:
                raise ValueError(f"ratio must be in [0, 1), but got {ratio} for group {name!r}")

    def apply(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Return a network without those channels; its BatchNorm statistics are those of the example."""
        anatomy = trace(model, example)
        first_of = {later: first for first, later in self.joined}
        kept = [
            (group, self._kept(model, example, anatomy.group(first_of.get(name, name)), count))
            for name, ratio in self.ratios
            if (count := kept_units((group := anatomy.group(name)).units, ratio, self.round_to)) < group.units
        ]
        smaller = copy.deepcopy(model)
        if not kept:
            return smaller
        inputs = {name: positions for (name, side, _), positions in removed_positions(kept).items() if side == "in"}
        if self.refit:
            _refit(model, smaller, example, inputs)
        cut(smaller, kept)
        if self.refit:
            inherit(model, smaller, inputs)
        reestimate(smaller, example)
        return smaller

    def _kept(self, model: nn.Module, example: Inputs, group: Group, count: int) -> tuple[int, ...]:
        """Return the `count` most important units of the group, ascending."""
        order = cached(
            model,
            ("order", group.name, self.importance, identity_of(example)),
            lambda: self.importance.order(model, example, group),
        )
        return tuple(sorted(order[group.units - count :]))

    def apply_to_shapes(self, architectures: Architectures, row: int) -> None:
        """Write how many units of each group are kept."""
        if not self.ratios:
            return
        names, ratios = zip(*self.ratios, strict=True)
        units = architectures.frame.units[architectures.frame.columns(KeptUnits.of, names)]
        architectures.write(row, KeptUnits(), names, kept_units(units, np.array(ratios), self.round_to))

    def choices(self, anatomy: Anatomy) -> dict[str, dict[str, Choice]]:
        """Return the share of units that each group loses, for every layer whose output channels belong to it."""
        layers = {layer.name for layer in anatomy.layers}
        return {
            "channels removed": {
                name: Choice(ratio, ratio, f"{ratio:.0%}")
                for group, ratio in self.ratios
                for name in anatomy.group(group).producers
                if name in layers
            }
        }

    def sparing(self, removed: frozenset[str], anatomy: Anatomy) -> Prune:
        """Return the step that prunes no group inside removed layers, and prunes before and after them equally."""
        layers = {layer.name for layer in anatomy.layers}
        members = {
            group.name: layers.intersection(member.layer for member in group.members) for group in anatomy.groups
        }
        idle = {name for name, names in members.items() if names and removed.issuperset(names)}
        joined = [branch.joins for branch in anatomy.branches if branch.joins and branch.name in removed]
        ratios, first_of = dict(self.ratios), dict[str, str]()
        for before, after in joined:  # in order of execution
            first_of[after] = first_of.get(before, before)
            if before in ratios or after in ratios:
                ratios[after] = ratios.get(before, 0.0)
        for name in idle.intersection(ratios).difference(before for before, _ in joined):
            ratios[name] = 0.0
        return replace(
            self, ratios=tuple(ratios.items()), joined=tuple((first, later) for later, first in first_of.items())
        )

    def words(self) -> str:
        """Summarize the share of units that each pruned group loses."""
        chosen = tuple((name, f"-{ratio:.0%}") for name, ratio in self.ratios if ratio > 0)
        return f"channels {summarize(chosen)}" if chosen else ""


@dataclass(frozen=True, slots=True)
class PruneRatios:
    """Which shares of the units of each group of channels may be removed.

    Parameters
    ----------
    highest
        The largest ratio offered, in (0, 1).
    step
        The distance between the ratios offered.
    round_to
        See `Prune`; the kernels of most runtimes work best with multiples of 8.
    importance, refit
        See `Prune`.
    only
        Names of the groups to act on; empty for all.
    """

    highest: float = 0.75
    step: float = 0.125
    round_to: int = 1
    importance: Importance = field(default_factory=SecondOrder)
    refit: bool = True
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not LEAST_STEP <= self.step <= self.highest < 1:
            raise ValueError(
                f"{LEAST_STEP} <= step <= highest < 1 must hold, but got step={self.step}, highest={self.highest}"
            )
        if isinstance(self.round_to, bool) or not isinstance(self.round_to, int) or self.round_to < 1:
            raise ValueError(f"round_to must be a whole number, at least 1, but got {self.round_to!r}")

    def suggest(self, trial: BaseTrial, anatomy: Anatomy) -> Prune:
        """Draw a ratio for every group, as `prune/<group>`."""
        largest = self._largest_ratio()
        ratios = []
        for group in self._groups(anatomy):
            drawn = trial.suggest_float(f"prune/{group.name}", 0.0, largest, step=self.step)
            ratios.append((group.name, self._least_equivalent(group.units, drawn)))
        return Prune(tuple(ratios), self.round_to, self.importance, self.refit)

    def uniform(self, anatomy: Anatomy, strength: float) -> dict[str, float]:
        """Return the same ratio for every group."""
        ratio = round(round(strength * self._largest_ratio() / self.step) * self.step, 9)
        return {f"prune/{group.name}": ratio for group in self._groups(anatomy)}

    def acts_on(self, anatomy: Anatomy) -> Mapping[str, str]:
        """Return the range of kept units of each layer and the layers that share them, or why none is removed."""
        texts = {layer.name: "no: its channels belong to no group" for layer in anatomy.layers}
        texts |= {refusal.layer: f"no: {refusal.reason}" for refusal in anatomy.refusals}
        acting = {group.name for group in self._groups(anatomy)}
        layers = set(texts)
        for group in anatomy.groups:
            for name in layers.intersection(group.producers) or {group.name}:  # an embedding is no layer
                if group.name not in acting:
                    texts[name] = f"no: {group.name} is not among only={self.only}"
                    continue
                least = kept_units(group.units, self._largest_ratio(), self.round_to)
                others = [other for other in group.producers if other != name and other in layers]
                tied = f", together with {', '.join(others)}" if others else ""
                texts[name] = f"{least}-{group.units} of {group.units} units{tied}"
        return texts

    def _least_equivalent(self, units: int, drawn: float) -> float:
        """Return the smallest ratio that keeps as many units, so that ratios that rounding makes equal are one plan."""
        kept = kept_units(units, drawn, self.round_to)
        smaller = (round(index * self.step, 9) for index in range(round(drawn / self.step)))
        return next((ratio for ratio in smaller if kept_units(units, ratio, self.round_to) == kept), drawn)

    def _largest_ratio(self) -> float:
        # rounded, since to Optuna 0.7000000000000001 is not a multiple of 0.1
        return round(math.floor(self.highest / self.step + 1e-9) * self.step, 9)

    def _groups(self, anatomy: Anatomy) -> tuple[Group, ...]:
        return select("group of channels", anatomy.groups, self.only)


@overload
def kept_units(units: int, ratio: float, round_to: int) -> int: ...
@overload
def kept_units(units: np.ndarray, ratio: np.ndarray, round_to: int) -> np.ndarray: ...
def kept_units(units: int | np.ndarray, ratio: float | np.ndarray, round_to: int) -> int | np.ndarray:
    """Return the number of kept units, at least 1, rounded up to a multiple of `round_to`; for numbers or arrays."""
    kept = np.maximum(1.0, units - np.rint(ratio * units))
    if round_to > 1:
        kept = np.minimum(units, np.ceil(kept / round_to) * round_to)
    return kept if isinstance(units, np.ndarray) else int(kept)


def _refit(model: nn.Module, smaller: nn.Module, example: Inputs, inputs: dict[str, set[int]]) -> None:
    """Refit in place the weights that each layer keeps when it loses these input channels."""
    consumers = [member.layer for group in trace(model, example).groups for member in group.consumers]
    seen = moments(model, example, dict.fromkeys(consumers))
    for name, positions in inputs.items():
        if name in seen:
            refit(smaller.get_submodule(name), seen[name], sorted(positions))
