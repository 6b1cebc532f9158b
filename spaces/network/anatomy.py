"""The parts of a network as plain data: layers, groups of channels, branches and matrix products."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from spaces.network.messages import unknown_name
from spaces.network.web_table import web_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Side = Literal["out", "in", "parameter", "number"]
Joins = tuple[()] | tuple[str, str]


class Run(NamedTuple):
    """One call of a layer on one example.

    Attributes
    ----------
    times
        Number of inputs: 1, or the number of windows or frames that the network moved into the batch; for a linear
        layer the number of tokens.
    before, after
        Spatial size of the input and of the output; empty for a linear layer.
    """

    times: int
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or linear layer of the network, as it ran on the example.

    Attributes
    ----------
    name
        Its name in the network's `named_modules`.
    kind
        Name of its class, such as `Conv2d` or `Linear`.
    outputs, inputs
        Number of channels (features for a linear layer).
    kernel, stride
        One number for each spatial dimension; empty for a linear layer.
    groups
        Number of groups of a convolution; 1 for a linear layer.
    runs
        The calls in one forward pass on which an output depends, one or more.
    tied
        Whether another module of the network holds the same weight too.
    recurrent
        Whether it is part of a recurrent layer.
    stays
        Why the layer cannot be replaced by a factorized or quantized one; empty where it can.
    failing
        Pairs of (bits of weights, bits of inputs) at which a runtime was tried in this place, and failed.
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
    recurrent: bool = False
    stays: str = ""
    failing: tuple[tuple[int, int], ...] = field(default=(), repr=False)

    @property
    def transposed(self) -> bool:
        """Whether the layer is a transposed convolution, whose kernel is applied at every pixel of the input."""
        return self.kind.startswith("ConvTranspose")

    @property
    def positions(self) -> int:
        """Number of kernel applications for one example, over all calls: output pixels (or input pixels), or tokens."""
        return sum(run.times * math.prod(run.before if self.transposed else run.after) for run in self.runs)

    @property
    def macs(self) -> int:
        """Multiply-adds for one example (one multiply-add counts as 1)."""
        return self.positions * self.outputs * self.inputs // self.groups * math.prod(self.kernel)

    @property
    def depthwise(self) -> bool:
        """Whether every channel has exactly one kernel of its own."""
        return 1 < self.groups == self.inputs == self.outputs


@dataclass(frozen=True, slots=True)
class Member:
    """The channels that one layer loses when units of its group are removed.

    Attributes
    ----------
    layer
        Name of a module; of a bare parameter or buffer when `side` is `parameter`; of an attribute, after the name of
        its module, when `side` is `number`.
    side
        `out` channels of the module, `in` channels, a dimension of a bare parameter, or a number that a module states,
        such as that of its heads.
    dimension
        The dimension of a bare parameter; 0 otherwise.
    positions
        For each unit of the group, the indices along that side that are removed with it.
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
        The first layer, in order of execution, whose output channels belong to the group.
    units
        Number of units; each can be removed independently of the others.
    members
        All layers and bare parameters that lose channels with a unit.
    """

    name: str
    units: int
    members: tuple[Member, ...]

    @property
    def producers(self) -> tuple[str, ...]:
        """The layers whose output channels belong to the group, in order of execution."""
        return tuple(member.layer for member in self.members if member.side == "out")

    @property
    def consumers(self) -> tuple[Member, ...]:
        """The members whose input channels belong to the group."""
        return tuple(member for member in self.members if member.side == "in")


@dataclass(frozen=True, slots=True)
class Extent:
    """The sizes of a parameter tensor or of a matrix product, and the groups of channels that shrink it.

    Attributes
    ----------
    sizes
        Size of each dimension, as traced; the product is the number of parameters, or of multiply-adds.
    cuts
        Triples of (dimension, name of a group, amount by which removing one unit of that group shrinks the dimension).
    branch
        Name of the branch that it is left out with; empty for none.
    """

    sizes: tuple[int, ...]
    cuts: tuple[tuple[int, str, int], ...]
    branch: str = ""


@dataclass(frozen=True, slots=True)
class InputSize:
    """A size of the input at which the network was tried, and what ran there.

    Attributes
    ----------
    size
        Height and width.
    runs
        The calls of each layer, in the order of the layers of the anatomy; empty where the size is refused.
    products
        The sizes of each matrix product, in the order of the products of the anatomy.
    saved_macs
        Multiply-adds that this size saves outside of layers and of these products.
    refusal
        Why the network cannot be used at this size; empty where it can.
    """

    size: tuple[int, ...]
    runs: tuple[tuple[Run, ...], ...] = ()
    products: tuple[tuple[int, ...], ...] = ()
    saved_macs: int = 0
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Branch:
    """A part that the network can run without: one side of a sum, or layers that keep the shape of their input.

    Attributes
    ----------
    name
        Name of its first layer.
    layers
        Its layers, in order of execution.
    others
        Names of everything else in it that has weights: norms, activations with slopes, bare parameters.
    readers
        The layers outside of it that read the sum: directly, through further sums, or through layers that mix no
        channels.
    straight
        Whether there is no shortcut around the branch; where it is left out, its input replaces its output.
    joins
        For a straight branch, the groups of channels before and after it, which must lose the same units where it is
        left out; empty where both are the same group, or where there is none.
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
    """The reason why the channels of a layer are kept; it is recorded, so that no layer is skipped silently."""

    layer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Everything that the axes need to know about a network, traced once.

    Attributes
    ----------
    layers
        Convolutions and linear layers in order of execution.
    groups
        The groups of channels whose cuts were tried on the network and passed.
    refusals
        The layers whose output channels cannot be pruned, and why.
    others
        Modules with weights of their own that no axis acts on, as (name, kind).
    products
        Matrix products outside of layers, such as those of attention, that shrink with the groups.
    branches
        The branches that can be left out, in order of execution.
    sizes
        The sizes of the input at which the network was tried, the size of the example first; empty where no axis asked
        for it (`spaces.plan.Surveying`).
    unread
        Layers that run although no output depends on them, such as heads that only training returns. They are not among
        `layers`, and deployed networks do not have them.
    """

    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    refusals: tuple[Refusal, ...]
    others: tuple[tuple[str, str], ...]
    products: tuple[Extent, ...]
    branches: tuple[Branch, ...] = ()
    sizes: tuple[InputSize, ...] = field(default=(), repr=False)
    unread: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        """Return a table of the layers, for notebooks."""
        total = sum(layer.macs for layer in self.layers) or 1
        rows = [
            (layer.name, layer.kind, f"{layer.inputs} to {layer.outputs}", "x".join(map(str, layer.kernel)), layer.macs,
             f"{100 * layer.macs / total:.1f}")
            for layer in self.layers
        ]  # fmt: skip
        words = f"{len(self.layers)} layers, {len(self.groups)} groups of channels, {len(self.branches)} branches"
        return web_table(f"Anatomy: {words}", ("layer", "kind", "channels", "kernel", "macs", "macs_percent"), rows)

    def without(self, failing: Mapping[str, Iterable[tuple[int, int]]]) -> Anatomy:
        """Return the anatomy with pairs of bits that fail, by the names of their layers."""
        layers = (replace(x, failing=tuple(failing[x.name])) if x.name in failing else x for x in self.layers)
        return replace(self, layers=tuple(layers))

    def layer(self, name: str) -> Layer:
        """Return the layer with this name.

        Raises
        ------
        ValueError
            If there is none; the message lists the nearest names.
        """
        return select("layer", self.layers, (name,))[0]

    def group(self, name: str) -> Group:
        """Return the group with this name.

        Raises
        ------
        ValueError
            If there is none; the message lists the nearest names.
        """
        return select("group of channels", self.groups, (name,))[0]


def select(what: str, parts: Iterable[Part], only: tuple[str, ...]) -> tuple[Part, ...]:
    """Return the layers, groups or branches with these names; all of them where no name is given.

    Raises
    ------
    ValueError
        If a name does not exist; the message lists the nearest names.
    """
    known = {part.name: part for part in parts}
    for name in only:
        if name not in known:
            raise ValueError(unknown_name(what, name, known))
    return tuple(part for name, part in known.items() if not only or name in only)
