"""The layers and groups of the teacher as arrays.

Legend: `L` layers, `G` groups of channels, `C` = 3L: outputs, then inputs, then convolution groups of all layers; `S`
sizes of the input, `E` matrix products, `D` their dimensions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from spaces.costs.extents import Extents, parameters_of
from spaces.costs.factors import Shapes, shapes_of
from spaces.network.messages import unknown_name

if TYPE_CHECKING:
    from torch import nn

    from spaces.network.anatomy import Anatomy


NETWORK = "network"  # name of the network as a whole, for effects with one number


class InputSizes:
    """How often layers and matrix products are applied at each size of the input at which the network runs.

    Parameters
    ----------
    anatomy
        The anatomy of the network.
    shapes, products
        The layers, and the matrix products outside of layers.

    Attributes
    ----------
    numbers
        Number of each size, 0 for the size of the example.
    applications
        For `positions`, `reads` and `columns` of `Shapes`, an array of shape (S, L).
    products_SED
        Sizes of the matrix products, shape (S, E, D).
    saved_macs_S
        Multiply-adds that each size saves outside of layers and of these products.
    """

    def __init__(self, anatomy: Anatomy, shapes: Shapes, products: Extents) -> None:
        tried = [size for size in anatomy.sizes if not size.refusal]
        self.numbers = {size.size: number for number, size in enumerate(tried)}
        at_each = [
            [shapes_of(replace(layer, runs=runs)) for layer, runs in zip(anatomy.layers, size.runs, strict=True)]
            for size in tried
        ]
        self.applications = {
            name: np.array([[getattr(one, name) for one in at_size] for at_size in at_each], dtype=float)
            for name in ("positions", "reads", "columns")
        }
        assert not tried or (self.applications["positions"][0] == shapes.positions).all()
        self.products_SED = products.sizes_ED[None].repeat(len(tried), axis=0)
        for number, size in enumerate(tried):
            for row, sizes in enumerate(size.products):
                self.products_SED[number, row, : len(sizes)] = sizes
        self.saved_macs_S = np.array([float(size.saved_macs) for size in tried])


class Frame:
    """The anatomy of the teacher as arrays, from which batches of architectures are computed.

    Parameters
    ----------
    anatomy
        The anatomy of the teacher.
    finished
        The teacher as `deployed` returns it.
    """

    def __init__(self, anatomy: Anatomy, finished: nn.Module) -> None:
        self.anatomy = anatomy
        layers, groups = anatomy.layers, anatomy.groups
        self.layers = {layer.name: column for column, layer in enumerate(layers)}
        self.groups = {group.name: column for column, group in enumerate(groups)}
        # floats throughout: numpy is three times slower where it converts, and floats hold these counts exactly
        self.units = np.array([group.units for group in groups], dtype=float)
        each = [shapes_of(layer) for layer in layers]
        self.shapes = Shapes(*(np.array(values, dtype=float) for values in zip(*each, strict=True)))
        self.shapes = self.shapes._replace(plane=self.shapes.plane > 0)
        depthwise = np.array([layer.depthwise for layer in layers], dtype=bool)
        outputs = self._channels_per_unit("out")
        inputs = np.where(depthwise, outputs, self._channels_per_unit("in"))  # depthwise inputs are cut as outputs
        alone = np.array([1 < layer.groups == layer.inputs for layer in layers], dtype=bool)  # a group for each input
        self.channels_3L = np.stack((self.shapes.outputs, self.shapes.inputs, self.shapes.groups))
        self.channels_per_unit_GC = np.concatenate((outputs, inputs, inputs * alone), axis=1)
        modules = dict(finished.named_modules())
        finished_layers = [modules[name] for name in self.layers]
        self.biased = np.array([module.bias is not None for module in finished_layers], dtype=float)
        self.linear = np.array([not layer.kernel for layer in layers], dtype=bool)
        self.strided = np.array([max(layer.stride, default=1) > 1 for layer in layers], dtype=float)
        self.padded = np.array([_padded(module) for module in finished_layers], dtype=float)
        self.joined_groups = [  # columns of a straight branch, of the group before it and of the group after it
            (self.layers[branch.name], *(self.groups[name] for name in branch.joins))
            for branch in self.anatomy.branches
            if branch.joins
        ]
        self.branch_columns = [self.layers[branch.name] for branch in self.anatomy.branches if not branch.straight]
        self._columns: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}
        self.products = Extents(self.anatomy.products, self.groups, self.layers)
        self.parameters = Extents(parameters_of(finished, self.anatomy), self.groups, self.layers)
        self.sizes = InputSizes(anatomy, self.shapes, self.products)

    def _channels_per_unit(self, side: str) -> np.ndarray:
        """Return the number of channels on this side of each layer that one unit of each group has, shape (G, L)."""
        channels = np.zeros((len(self.groups), len(self.layers)))
        for row, group in enumerate(self.anatomy.groups):
            for member in group.members:
                if member.side == side and member.layer in self.layers:
                    channels[row, self.layers[member.layer]] += len(member.positions[0])
        return channels

    def columns(self, what: str, names: tuple[str, ...]) -> np.ndarray:
        """Return the columns of the named layers or groups, or of the network as a whole.

        Parameters
        ----------
        what
            `layer`, `group of channels` or `network`.
        names
            The names, in the order of the columns to return.

        Raises
        ------
        ValueError
            If a layer or group does not exist; the message lists the nearest names.
        """
        if (what, names) not in self._columns:  # cached: nearly all calls ask for the same names
            known = {"layer": self.layers, "group of channels": self.groups, NETWORK: {NETWORK: 0}}[what]
            for name in names:
                if name not in known:
                    raise ValueError(unknown_name(what, name, known))
            self._columns[what, names] = np.array([known[name] for name in names])
        return self._columns[what, names]


def _padded(layer: nn.Module) -> bool:
    padding = getattr(layer, "padding", ())
    return padding == "same" or (not isinstance(padding, str) and any(padding))
