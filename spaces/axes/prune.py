"""Remove channels physically: which ratios may be chosen, and the cut itself."""

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
from spaces.plan import Choice, summarize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.trial import BaseTrial
    from torch import Tensor, nn

    from spaces.costs.architectures import Architectures, Frame, Layers
    from spaces.network.anatomy import Anatomy, Group


@dataclass(frozen=True, slots=True)
class KeptUnits:
    """How many units of each group of channels are kept."""

    of: ClassVar[Literal["group of channels"]] = "group of channels"

    def untouched(self, frame: Frame) -> np.ndarray:
        """Return all of them."""
        return frame.units

    def apply(self, chosen: np.ndarray, layers: Layers) -> None:
        """Remove the others."""
        layers.units_NG = chosen


@dataclass(frozen=True, slots=True)
class Prune:
    """Remove a share of the units of each group of channels, then refit what reads the rest.

    Attributes
    ----------
    ratios
        Pairs of (group, share of its units to remove, in [0, 1)).
    round_to
        Kept units are rounded up to a multiple of this (never above the number there are).
    importance
        Says which units go first.
    refit
        Whether the consumers' weights are fitted anew by least squares.
    joined
        Pairs of (group, another one behind it that loses the same units, since all between them is left out).
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

    def apply(self, model: nn.Module, example: Tensor) -> nn.Module:
        """Return a network without those channels; its BatchNorm statistics are those of the example."""
        anatomy = trace(model, example)
        leads = {behind: first for first, behind in self.joined}
        kept = [
            (group, self._kept(model, example, anatomy.group(leads.get(name, name)), count))
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

    def _kept(self, model: nn.Module, example: Tensor, group: Group, count: int) -> tuple[int, ...]:
        order = cached(
            model,
            ("order", group.name, self.importance, example),
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
        """Return the share of its units that each group loses, for every layer whose output channels it holds."""
        layers = {layer.name for layer in anatomy.layers}
        return {
            "channels removed": {
                name: Choice(ratio, ratio, f"{ratio:.0%}")
                for group, ratio in self.ratios
                for name in anatomy.group(group).producers
                if name in layers
            }
        }

    def sparing(self, gone: frozenset[str], anatomy: Anatomy) -> Prune:
        """Return the same without the groups in removed layers alone, and with those around straight ones alike."""
        layers = {layer.name for layer in anatomy.layers}
        places = {group.name: layers.intersection(member.layer for member in group.members) for group in anatomy.groups}
        idle = {name for name, its in places.items() if its and gone.issuperset(its)}
        joined = [branch.joins for branch in anatomy.branches if branch.joins and branch.name in gone]
        ratios, leads = dict(self.ratios), dict[str, str]()
        for before, behind in joined:  # in order of execution
            leads[behind] = leads.get(before, before)
            if before in ratios or behind in ratios:
                ratios[behind] = ratios.get(before, 0.0)
        for name in idle.intersection(ratios).difference(before for before, _ in joined):
            ratios[name] = 0.0
        return replace(
            self, ratios=tuple(ratios.items()), joined=tuple((first, behind) for behind, first in leads.items())
        )

    def words(self) -> str:
        """Say which share of which groups is removed."""
        chosen = tuple((name, f"-{ratio:.0%}") for name, ratio in self.ratios if ratio > 0)
        return f"channels {summarize(chosen)}" if chosen else ""


@dataclass(frozen=True, slots=True)
class PruneRatios:
    """How large a share of the channels may go, group by group.

    Parameters
    ----------
    highest
        The largest ratio offered, in (0, 1).
    step
        The distance between the ratios offered.
    round_to
        See `Prune`; 8 is what the kernels of most runtimes want.
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
        """Check the ladder."""
        if not 0 < self.step <= self.highest < 1:
            raise ValueError(f"0 < step <= highest < 1 must hold, but got step={self.step}, highest={self.highest}")
        if self.round_to < 1:
            raise ValueError(f"round_to must be at least 1, but got {self.round_to}")

    def suggest(self, trial: BaseTrial, anatomy: Anatomy) -> Prune:
        """Draw a ratio for every group, as `prune/<group>`."""
        top = self._top()
        ratios = []
        for group in self._groups(anatomy):
            drawn = trial.suggest_float(f"prune/{group.name}", 0.0, top, step=self.step)
            ratios.append((group.name, self._least(group.units, drawn)))
        return Prune(tuple(ratios), self.round_to, self.importance, self.refit)

    def uniform(self, anatomy: Anatomy, strength: float) -> dict[str, float]:
        """Return the same ratio for every group."""
        ratio = round(round(strength * self._top() / self.step) * self.step, 9)
        return {f"prune/{group.name}": ratio for group in self._groups(anatomy)}

    def acts_on(self, anatomy: Anatomy) -> Mapping[str, str]:
        """Say how far each layer's channels can go and with whom, or why they stay."""
        said = {layer.name: "no: its channels were not found in any group" for layer in anatomy.layers}
        said |= {refusal.layer: f"no: {refusal.reason}" for refusal in anatomy.refusals}
        acting = {group.name for group in self._groups(anatomy)}
        for group in anatomy.groups:
            for name in group.producers:
                if name not in said:
                    continue
                if group.name not in acting:
                    said[name] = f"no: {group.name} is not among only={self.only}"
                    continue
                least = kept_units(group.units, self._top(), self.round_to)
                others = [other for other in group.producers if other != name and other in said]
                tied = f", together with {', '.join(others)}" if others else ""
                said[name] = f"{least}-{group.units} of {group.units} units{tied}"
        return said

    def _least(self, units: int, drawn: float) -> float:
        """Return the least ratio that leaves as many units: what rounding makes equal is one plan, or none."""
        kept = kept_units(units, drawn, self.round_to)
        ladder = (round(rung * self.step, 9) for rung in range(round(drawn / self.step)))
        return next((ratio for ratio in ladder if kept_units(units, ratio, self.round_to) == kept), drawn)

    def _top(self) -> float:
        # rounded, since Optuna takes 0.7000000000000001 for no multiple of 0.1
        return round(math.floor(self.highest / self.step + 1e-9) * self.step, 9)

    def _groups(self, anatomy: Anatomy) -> tuple[Group, ...]:
        return select("group of channels", anatomy.groups, self.only)


@overload
def kept_units(units: int, ratio: float, round_to: int) -> int: ...
@overload
def kept_units(units: np.ndarray, ratio: np.ndarray, round_to: int) -> np.ndarray: ...
def kept_units(units: int | np.ndarray, ratio: float | np.ndarray, round_to: int) -> int | np.ndarray:
    """Return how many of the units stay: at least one, rounded up to a multiple of `round_to`; numbers or arrays."""
    kept = np.maximum(1.0, units - np.rint(ratio * units))
    if round_to > 1:
        kept = np.minimum(units, np.ceil(kept / round_to) * round_to)
    return kept if isinstance(units, np.ndarray) else int(kept)


def _refit(model: nn.Module, smaller: nn.Module, example: Tensor, inputs: dict[str, set[int]]) -> None:
    """Refit in place what each layer has left when it loses these input channels."""
    readers = [member.layer for group in trace(model, example).groups for member in group.consumers]
    seen = moments(model, example, dict.fromkeys(readers))
    for name, positions in inputs.items():
        if name in seen:
            refit(smaller.get_submodule(name), seen[name], sorted(positions))
