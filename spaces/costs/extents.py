"""Parameters and matrix products outside of layers that shrink with the groups, for many plans at once.

Legend: `N` plans, `L` layers, `G` groups of channels, `E` extents, `D` dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spaces.network.anatomy import Extent
from spaces.network.layers import EMBEDDINGS, TRANSPOSED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from spaces.network.anatomy import Anatomy


class Extents:
    """Many `Extent`s as arrays.

    Parameters
    ----------
    extents
        The parameter tensors or matrix products.
    groups, layers
        Column of each group and of each layer, by name.
    """

    def __init__(self, extents: Sequence[Extent], groups: dict[str, int], layers: dict[str, int]) -> None:
        most = max((len(extent.sizes) for extent in extents), default=1)
        self.sizes_ED = np.ones((len(extents), most), dtype=np.int64)
        self.loss_GED = np.zeros((len(groups), len(extents), most))
        self.of_branches_E = np.array([bool(extent.branch) for extent in extents], dtype=bool)
        self.branches_E = np.array([layers[extent.branch] for extent in extents if extent.branch], dtype=np.int64)
        for row, extent in enumerate(extents):
            self.sizes_ED[row, : len(extent.sizes)] = extent.sizes
            for dimension, name, count in extent.cuts:
                self.loss_GED[groups[name], row, dimension] += count

    def total(self, removed_NG: np.ndarray, kept_NL: np.ndarray, sizes_NED: np.ndarray | None = None) -> np.ndarray:
        """Return the number of parameters, or of multiply-adds, that the plans leave of all extents, shape (N,).

        Parameters
        ----------
        removed_NG
            Removed units of each group.
        kept_NL
            1 for a layer that is kept, 0 for one that is left out.
        sizes_NED
            The sizes before channels are removed, shape (N or 1, E, D); by default those of the extents.
        """
        if not self.sizes_ED.size:
            return np.zeros(len(removed_NG))
        lost = removed_NG @ self.loss_GED.reshape(len(self.loss_GED), self.sizes_ED.size)  # not -1: G may be 0
        left = (self.sizes_ED if sizes_NED is None else sizes_NED) - lost.reshape(len(removed_NG), *self.sizes_ED.shape)
        left_NE = left.prod(2)
        if self.branches_E.size:
            left_NE[:, self.of_branches_E] *= kept_NL[:, self.branches_E]
        total: np.ndarray = left_NE.sum(1)
        return total

    def count_left_out(self, kept_NL: np.ndarray) -> np.ndarray:
        """Return the number of extents that are removed with the branches that are left out, shape (N,)."""
        count: np.ndarray = (1 - kept_NL[:, self.branches_E]).sum(1)
        return count


def parameters_of(finished: nn.Module, anatomy: Anatomy) -> list[Extent]:
    """Return the parameters outside of traced layers that plans change: of norms, of auxiliary heads, bare parameters.

    Parameters
    ----------
    finished
        The network as `deployed` returns it, in which most norms are folded into their layers.
    anatomy
        The anatomy of the network from which it was made.
    """
    layers = {layer.name for layer in anatomy.layers}
    cuts: dict[str, list[tuple[str, int, str, int]]] = {}
    for group in anatomy.groups:
        for member in group.members:
            cut = (member.side, member.dimension, group.name, len(member.positions[0]))
            cuts.setdefault(member.layer, []).append(cut)
    branches = {name: branch.name for branch in anatomy.branches for name in branch.others}
    found = []
    for name, parameter in finished.named_parameters():
        owner = name.rpartition(".")[0]
        if owner in layers:
            continue
        swapped = isinstance(finished.get_submodule(owner), (*TRANSPOSED, *EMBEDDINGS))
        own_cuts = [
            (dimension if side == "parameter" else int((side == "in") != swapped and parameter.dim() > 1), group, count)
            for side, dimension, group, count in cuts.get(name, cuts.get(owner, []))
            if parameter.dim() > 1 or side != "in"  # a bias has no inputs
        ]
        branch = branches.get(name, branches.get(owner, ""))
        if own_cuts or branch:
            found.append(Extent(tuple(parameter.shape), tuple(own_cuts), branch))
    return found
