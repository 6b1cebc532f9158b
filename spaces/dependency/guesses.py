"""Guess what operations do not show: what can be removed of parts, which widths are equal, which numbers are stated."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from spaces.network.anatomy import Group, Member

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from spaces.dependency.checks import Trial
    from spaces.dependency.label_sets import Division, LabelClasses, LabelSets, ReshapeKey


SIZE_WORDS = ("dim", "size", "width", "features", "channels")  # in names of numbers that are not counts


class Followed(NamedTuple):
    """The labels of a network after one forward pass.

    Attributes
    ----------
    sets, classes
        The labels, and the classes of equal ones.
    products
        For each matrix product outside of layers, the labels along each dimension.
    ran
        The names of modules and bare parameters that ran.
    numbers
        The divisions whose number of parts is taken to be stated by a module.
    """

    sets: LabelSets
    classes: LabelClasses
    products: tuple[list[Tensor], ...]
    ran: frozenset[str]
    numbers: frozenset[ReshapeKey]

    def classes_of(self, group: Group) -> set[int]:
        """Return the classes of the labels of all members of a group."""
        sides = {
            (member.layer, "" if member.side == "parameter" else member.side)
            for member in group.members
            if member.side != "number"
        }
        return set[int]().union(*(self.classes_at(name, side) for name, side in sides))

    def classes_at(self, name: str, side: str) -> set[int]:
        """Return the classes of the labels at a place."""
        return set(np.unique(self.classes.classes[self.sets.places[name, side].numpy()]).tolist())

    def may_reshape_to_input(self, name: str) -> bool:
        """Whether a layer has as many outputs as inputs, or a multiple that is divided, as queries, keys and values."""
        inputs, outputs = self.sets.places[name, "in"], self.sets.places[name, "out"]
        if len(inputs) == len(outputs):
            return True
        divided = (torch.isin(outputs, division.labels).all() for division in self.sets.divisions)
        return not len(outputs) % len(inputs) and any(divided)

    def classes_in(self, division: Division) -> set[int]:
        """Return the classes of the labels that were divided."""
        return set(np.unique(self.classes.classes[division.labels.numpy()]).tolist())

    def states_numbers(self, group: Group) -> bool:
        """Whether the group holds parts of a division whose number of parts is taken to be stated."""
        own = self.classes_of(group)
        return any(
            division.key in self.numbers and not own.isdisjoint(self.classes_in(division))
            for division in self.sets.divisions
        )


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
        For divisions of channels into parts, by their key, all that was tried to remove, the current guess last. First
        these are the channels of every part, or what the network leaves open, then whole parts, as attention with a
        stated size of its heads needs, then whole parts that a module counts. Where nothing passes, it is the first.
    tied
        Layers whose input and output channels are removed together, since the network reshapes one to the width of the
        other.
    given_up
        Layers with which this failed too.
    """

    parts: Mapping[ReshapeKey, tuple[Option, ...]] = field(default_factory=dict)
    tied: frozenset[str] = frozenset()
    given_up: frozenset[str] = frozenset()

    @property
    def numbers(self) -> frozenset[ReshapeKey]:
        """The divisions whose parts are counted by a module."""
        return frozenset(key for key, options in self.parts.items() if options[-1].counted)

    def after(
        self, groups: Sequence[Group], errors: Collection[str], followed: Followed, trial: Trial, *, last: bool
    ) -> Guess:
        """Return the next guess, or an equal one if there is none.

        Parameters
        ----------
        groups, errors
            The groups of this guess, and the names of those that could not be cut.
        followed
            What was seen with this guess.
        trial
            Tries to cut two groups together.
        last
            Whether the next guess is the last one, so that it only takes back what failed.
        """
        failed = [group for group in groups if group.name in errors]
        found = [followed.classes_of(group) for group in failed]
        valid = set[int]().union(*(followed.classes_of(group) for group in groups if group.name not in errors))
        further = replace(self, parts=self._further_parts(set[int]().union(*found), valid, followed, last=last))
        wrong = frozenset(name for name in self.tied if valid.isdisjoint(followed.classes_at(name, "in")))
        if last or (wrong and further == self):
            return replace(further, tied=self.tied - wrong, given_up=self.given_up | wrong)
        if further != self:
            return further
        places = followed.sets.places
        between = [
            name
            for name, side in places
            if side == "in"
            and name not in self.given_up | self.tied
            and (name, "out") in places
            and followed.may_reshape_to_input(name)
            and all(any(own & followed.classes_at(name, end) for own in found) for end in ("in", "out"))
        ]
        passing = [name for name in between if any(trial.together(*pair) for pair in _around(name, failed))]
        tied = self.tied.union(passing or between)
        again = {
            division.key
            for division in followed.sets.divisions
            if tied != self.tied and not followed.classes_in(division).isdisjoint(set[int]().union(*found))
        }
        return replace(self, tied=tied, parts={key: tried for key, tried in self.parts.items() if key not in again})

    def _further_parts(
        self, failed: set[int], valid: set[int], followed: Followed, *, last: bool
    ) -> dict[ReshapeKey, tuple[Option, ...]]:
        further = dict(self.parts)
        for division in followed.sets.divisions:
            before, options = self.parts.get(division.key, (Option(division.unit),)), _options(division)
            own = followed.classes_in(division)
            if own & failed or (len(before) > 1 and own.isdisjoint(valid)):
                untried = [] if last else [option for option in options if option not in before]
                if untried or before[-1] != options[0]:
                    further[division.key] = (*before, untried[0] if untried else options[0])
        return further


def _options(division: Division) -> list[Option]:
    last = len(division.dimensions) - 1
    whole = [Option(unit) for unit in range(last - 1, -1, -1)]
    return [Option(last), whole[0], Option(last - 1, counted=True), *whole[1:2]]


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
        stated = {name: number for name, number in vars(model.get_submodule(owner)).items() if type(number) is int}
        sizes = {name for name in stated if any(word in name for word in SIZE_WORDS)}
        each = {name: widths.get(stated[name], 0) for name in sizes}
        counting = {name: widths.get(stated[name], counts.get(stated[name], 0)) for name in stated if name not in sizes}
        heads = {name: number for name, number in counting.items() if number and "head" in name}
        for name, number in (each | (heads or counting)).items():  # where several numbers fit, those of heads
            if number:
                positions = tuple(tuple(range(unit * number, (unit + 1) * number)) for unit in range(group.units))
                found.append(Member(f"{owner}.{name}" if owner else name, "number", 0, positions))
    return replace(group, members=(*group.members, *found))
