"""Guess what operations do not show: what can be removed of parts, which widths are equal, which numbers are stated."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from spaces.network.anatomy import Group, Member

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from torch import nn

    from spaces.dependency.checks import Trial
    from spaces.dependency.label_sets import Division, LabelSets


class Option(NamedTuple):
    """What may be removed of parts: a dimension of the division, and whether a module states their number."""

    unit: int
    counted: bool = False


@dataclass(frozen=True)
class Guess:
    """A guess, which is tried by cutting; each is made after the groups that failed by the one before.

    Attributes
    ----------
    parts
        For divisions of channels into parts, by number, all that was tried to remove, the current guess last. First
        these are the channels of every part, or what the network leaves open, then whole parts, as attention with a
        stated size of its heads needs, then whole parts that a module counts. Where nothing passes, it is the first.
    tied
        Layers whose input and output channels are removed together, since the network reshapes one to the width of the
        other.
    given_up
        Layers with which this failed too.
    """

    parts: Mapping[int, tuple[Option, ...]] = field(default_factory=dict)
    tied: frozenset[str] = frozenset()
    given_up: frozenset[str] = frozenset()

    @property
    def numbers(self) -> frozenset[int]:
        """The divisions whose parts are counted by a module."""
        return frozenset(number for number, options in self.parts.items() if options[-1].counted)

    def after(
        self, groups: Sequence[Group], errors: Collection[str], sets: LabelSets, classes: np.ndarray, trial: Trial
    ) -> Guess:
        """Return the next guess, or an equal one if there is none.

        Parameters
        ----------
        groups
            The groups of this guess.
        errors
            The names of those that could not be cut.
        sets, classes
            The labels, and the class of each.
        trial
            Tries to cut two groups together.
        """
        failed = [group for group in groups if group.name in errors]
        found = [classes_of(group, sets, classes) for group in failed]
        valid = set[int]().union(*(classes_of(group, sets, classes) for group in groups if group.name not in errors))
        further = replace(self, parts=self._further_parts(set[int]().union(*found), valid, sets, classes))
        if further != self:
            return further
        wrong = frozenset(name for name in self.tied if valid.isdisjoint(_classes(name, "in", sets, classes)))
        if wrong:
            return replace(self, tied=self.tied - wrong, given_up=self.given_up | wrong)
        between = [
            name
            for name, side in sets.places
            if side == "in"
            and name not in self.given_up | self.tied
            and (name, "out") in sets.places
            and sets.places[name, "in"].shape == sets.places[name, "out"].shape
            and all(any(own & _classes(name, end, sets, classes) for own in found) for end in ("in", "out"))
        ]
        passing = [name for name in between if any(trial.together(*pair) for pair in _around(name, failed))]
        return replace(self, tied=self.tied.union(passing or between))

    def _further_parts(
        self, failed: set[int], valid: set[int], sets: LabelSets, classes: np.ndarray
    ) -> dict[int, tuple[Option, ...]]:
        further = dict(self.parts)
        for division in sets.divisions:
            before = self.parts.get(division.number, (Option(division.unit),))
            own = set(np.unique(classes[division.labels.numpy()]).tolist())
            if own & failed or (len(before) > 1 and own.isdisjoint(valid)):
                options = _options(division)
                untried = [option for option in options if option not in before]
                if untried or before[-1] != options[0]:
                    further[division.number] = (*before, untried[0] if untried else options[0])
        return further


def _options(division: Division) -> list[Option]:
    last = len(division.dimensions) - 1
    whole = [Option(unit) for unit in range(last - 1, -1, -1)]
    return [Option(last), whole[0], Option(last - 1, counted=True), *whole[1:]]


def _around(name: str, failed: Sequence[Group]) -> Iterator[tuple[Group, Group, tuple[int, ...]]]:
    """Yield two failed groups, one before and one after a layer, whose units are the same channels of it.

    The units of the second are yielded in the order of the first.
    """
    for first in failed:
        before = next((m.positions for m in first.members if (m.layer, m.side) == (name, "in")), None)
        for second in failed:
            after = next((m.positions for m in second.members if (m.layer, m.side) == (name, "out")), None)
            if before and after and first is not second and sorted(before) == sorted(after):
                place = {positions: unit for unit, positions in enumerate(after)}
                yield first, second, tuple(place[positions] for positions in before)


def classes_of(group: Group, sets: LabelSets, classes: np.ndarray) -> set[int]:
    """Return the classes of the labels of all members of a group."""
    sides = {
        (member.layer, "" if member.side == "parameter" else member.side)
        for member in group.members
        if member.side != "number"
    }
    return set().union(*(_classes(name, side, sets, classes) for name, side in sides))


def _classes(name: str, side: str, sets: LabelSets, classes: np.ndarray) -> set[int]:
    return set(np.unique(classes[sets.places[name, side].numpy()]).tolist())


def group_with_numbers(model: nn.Module, group: Group) -> Group:
    """Return the group with the numbers that the modules of its producers state: of its units, and of their channels.

    Attention with both a number and a size of its heads can be cut by whole heads if the former is changed.
    """
    sides = [member for member in group.members if member.side in {"in", "out"}]
    part = min(len(member.positions[0]) for member in sides)  # channels of one head
    widths = {group.units * len(member.positions[0]): len(member.positions[0]) for member in sides}
    counts = {width // part: size // part for width, size in widths.items() if not size % part}
    found = []
    for owner in dict.fromkeys(name.rpartition(".")[0] for name in group.producers):
        for name, number in vars(model.get_submodule(owner)).items():
            if type(number) is not int:
                continue
            is_size = any(word in name for word in ("dim", "size", "width", "features", "channels"))
            each = widths.get(number, 0 if is_size else counts.get(number, 0))
            if each:
                positions = tuple(tuple(range(unit * each, (unit + 1) * each)) for unit in range(group.units))
                found.append(Member(f"{owner}.{name}" if owner else name, "number", 0, positions))
    return replace(group, members=(*group.members, *found))
