"""What a network is made of, as plain data: its layers, and the channels that must go together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from spaces.network.messages import unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterable

Side = Literal["out", "in", "parameter"]
Joins = tuple[()] | tuple[str, str]


class Run(NamedTuple):
    """One call of a layer on one example.

    Attributes
    ----------
    times
        How many inputs it got: 1, or the windows or frames that the network had moved into the batch; the tokens of a
        linear layer.
    before, after
        Size of the input and of the output in space; empty for a linear layer.
    """

    times: int
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution or linear layer of the network, as it ran on the example.

    Attributes
    ----------
    name
        Its name in the network's `named_modules`.
    kind
        The class, such as `Conv2d` or `Linear`.
    outputs, inputs
        Channels (features for a linear layer).
    kernel, stride
        One number a spatial dimension; empty for a linear layer.
    groups
        Groups of a convolution; 1 for a linear layer.
    runs
        The calls of one forward, one or more.
    tied
        Whether the network holds the same weight under another name too.
    stays
        Why no other module, split or rounded, can stand in its place; empty where one can.
    """

    name: str
    kind: str
    outputs: int
    inputs: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int
    runs: tuple[Run, ...]
    tied: bool
    stays: str = ""

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution, whose kernel is applied at every pixel of the input."""
        return self.kind.startswith("ConvTranspose")

    @property
    def positions(self) -> int:
        """How many times the kernel is applied to one example, over all calls: output pixels, or tokens."""
        return sum(run.times * math.prod(run.before if self.transposed else run.after) for run in self.runs)

    @property
    def macs(self) -> int:
        """Multiply-adds of one example (1 a multiply-add)."""
        return self.positions * self.outputs * self.inputs // self.groups * math.prod(self.kernel)

    @property
    def depthwise(self) -> bool:
        """Whether every channel has a kernel of its own, and each has one."""
        return 1 < self.groups == self.inputs == self.outputs


@dataclass(frozen=True, slots=True)
class Member:
    """What one layer loses when a unit of its group goes.

    Attributes
    ----------
    layer
        Name of a module, or of a bare parameter when `side` is `parameter`.
    side
        `out` channels of the module, `in` channels, or a dimension of a bare parameter.
    dimension
        Which dimension of a bare parameter; 0 otherwise.
    positions
        For each unit of the group, the indices along that side which go with it.
    """

    layer: str
    side: Side
    dimension: int
    positions: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that can only be removed together, in units of one or more channels.

    Attributes
    ----------
    name
        The first layer in order of execution whose outputs the group covers.
    units
        How many independently removable units there are.
    members
        Every place that a unit reaches.
    """

    name: str
    units: int
    members: tuple[Member, ...]

    @property
    def producers(self) -> tuple[str, ...]:
        """The layers whose output channels go, in order of execution."""
        return tuple(member.layer for member in self.members if member.side == "out")

    @property
    def consumers(self) -> tuple[Member, ...]:
        """The members whose input channels go."""
        return tuple(member for member in self.members if member.side == "in")


@dataclass(frozen=True, slots=True)
class Extent:
    """The sizes of a tensor of parameters or of a matrix product, and which groups of channels they shrink with.

    Attributes
    ----------
    sizes
        Of its dimensions, as traced; their product is the number of parameters, or of multiply-adds.
    cuts
        Triples of (dimension, name of a group, by how much the dimension shrinks when a unit of that group goes).
    branch
        Name of the branch that it goes with; empty for none.
    """

    sizes: tuple[int, ...]
    cuts: tuple[tuple[int, str, int], ...]
    branch: str = ""


@dataclass(frozen=True, slots=True)
class Branch:
    """What a network can do without: one side of a sum, or layers that give the shape that they are given.

    Attributes
    ----------
    name
        Its first layer.
    layers
        The layers that are in it, in order of execution.
    others
        All else in it that has weights, by name: norms, activations with slopes, bare parameters.
    readers
        The layers outside of it that read the sum, at once, along further sums, or through what mixes no channels.
    straight
        Whether there is no way around it, so that what it is given goes on in its place.
    joins
        Of a straight one the groups of channels before and behind it, which have to lose the same where it is left out;
        empty where they are one, or none.
    """

    name: str
    layers: tuple[str, ...]
    others: tuple[str, ...]
    readers: tuple[str, ...] = ()
    straight: bool = False
    joins: Joins = ()


Part = TypeVar("Part", Layer, Group, Branch)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why channels of a layer stay: named, so that nothing is skipped silently."""

    layer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Anatomy:
    """All that the axes need to know of a network, traced once.

    Attributes
    ----------
    layers
        Convolutions and linear layers in order of execution.
    groups
        The groups of channels that were tried on the network and held.
    refusals
        The layers whose outputs cannot be pruned, and why.
    others
        Modules with weights of their own that no axis acts on, as (name, kind).
    products
        Matrix products beside the layers, such as those of attention, that shrink with the groups.
    branches
        What can be left out whole, in order of execution.
    """

    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    refusals: tuple[Refusal, ...]
    others: tuple[tuple[str, str], ...]
    products: tuple[Extent, ...]
    branches: tuple[Branch, ...] = ()

    def layer(self, name: str) -> Layer:
        """Return the layer of that name.

        Raises
        ------
        ValueError
            If there is none; the nearest names are listed.
        """
        found = {layer.name: layer for layer in self.layers}
        if name not in found:
            raise ValueError(unknown_name("layer", name, found))
        return found[name]

    def group(self, name: str) -> Group:
        """Return the group of that name.

        Raises
        ------
        ValueError
            If there is none; the nearest names are listed.
        """
        found = {group.name: group for group in self.groups}
        if name not in found:
            raise ValueError(unknown_name("group of channels", name, found))
        return found[name]


def select(what: str, parts: Iterable[Part], only: tuple[str, ...]) -> tuple[Part, ...]:
    """Return the layers, groups or branches that an axis acts on: those of these names, or all where there are none.

    Raises
    ------
    ValueError
        If there is no such one; the nearest names are listed.
    """
    known = {part.name: part for part in parts}
    for name in only:
        if name not in known:
            raise ValueError(unknown_name(what, name, known))
    return tuple(part for name, part in known.items() if not only or name in only)
