"""Cut channels out of modules by slicing their tensors at the positions that a group lists."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spaces.network.layers import CHANNEL_NORMS, CONVOLUTIONS, EMBEDDINGS, TRANSPOSED, depthwise

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from spaces.network.anatomy import Group, Side


def cut(model: nn.Module, kept: Iterable[tuple[Group, Sequence[int]]]) -> None:
    """Remove from `model`, in place, all units of the groups except the kept ones.

    Parameters
    ----------
    model
        A copy that may be changed; its layers have the widths with which the groups were traced.
    kept
        Pairs of a group and its units that are kept.
    """
    modules = dict(model.named_modules())
    for (name, side, dimension), positions in removed_positions(kept).items():
        if not positions:
            continue
        owner, _, leaf = name.rpartition(".")
        if side == "parameter":
            _cut_parameter(modules[owner], leaf, dimension, positions)
        elif side == "number":
            setattr(modules[owner], leaf, getattr(modules[owner], leaf) - len(positions))
        elif side == "in":
            _cut_inputs(modules[name], positions)
        else:
            _cut_outputs(modules[name], positions)


def removed_positions(kept: Iterable[tuple[Group, Sequence[int]]]) -> dict[tuple[str, Side, int], set[int]]:
    """Return the positions of all units except the kept ones, by layer, side and dimension."""
    positions: defaultdict[tuple[str, Side, int], set[int]] = defaultdict(set)
    for group, units in kept:
        removed = set(range(group.units)).difference(units)
        for member in group.members:
            positions[member.layer, member.side, member.dimension].update(
                position for unit in removed for position in member.positions[unit]
            )
    return positions


def _kept_indices(size: int, removed: set[int]) -> Tensor:
    return torch.tensor([index for index in range(size) if index not in removed], dtype=torch.long)


def _slice(module: nn.Module, leaf: str, dimension: int, removed: set[int]) -> int:
    """Slice the tensor called `leaf` along `dimension`; return its new size there."""
    old: Tensor | None = getattr(module, leaf)
    if old is None:
        return 0
    kept = _kept_indices(old.shape[dimension], removed)
    new = old.detach().index_select(dimension, kept.to(old.device)).contiguous()
    setattr(module, leaf, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
    return len(kept)


def _cut_parameter(module: nn.Module, leaf: str, dimension: int, removed: set[int]) -> None:
    """Slice a bare parameter or buffer; its module may state the size too, as `normalized_shape` of a norm does."""
    old = getattr(module, leaf).shape[dimension]
    new = _slice(module, leaf, dimension, removed)
    for name, stated in list(vars(module).items()):
        if type(stated) is int and stated == old:
            setattr(module, name, new)
        elif type(stated) in {tuple, list, torch.Size} and old in stated and all(type(size) is int for size in stated):
            setattr(module, name, type(stated)([new if size == old else size for size in stated]))


def _cut_outputs(module: nn.Module, removed: set[int]) -> None:
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) and depthwise(module):
        module.in_channels = module.groups = module.out_channels = _slice(module, "weight", 0, removed)
        _slice(module, "bias", 0, removed)
    elif isinstance(module, CONVOLUTIONS):
        module.out_channels = _slice(module, "weight", 0, removed)
        _slice(module, "bias", 0, removed)
    elif isinstance(module, TRANSPOSED):
        width = module.out_channels // module.groups  # all groups store their outputs at the same positions
        module.out_channels = module.groups * _slice(module, "weight", 1, {position % width for position in removed})
        _slice(module, "bias", 0, removed)
    elif isinstance(module, nn.Linear):
        module.out_features = _slice(module, "weight", 0, removed)
        _slice(module, "bias", 0, removed)
    elif isinstance(module, EMBEDDINGS):
        module.embedding_dim = _slice(module, "weight", 1, removed)
    else:
        _cut_norm(module, removed)


def _cut_norm(module: nn.Module, removed: set[int]) -> None:
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        if hasattr(module, leaf):
            _slice(module, leaf, 0, removed)
    if isinstance(module, CHANNEL_NORMS):
        module.num_features -= len(removed)
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = (module.normalized_shape[0] - len(removed),)
    elif isinstance(module, nn.GroupNorm):
        if module.num_groups == module.num_channels:
            module.num_groups -= len(removed)
        module.num_channels -= len(removed)
    elif isinstance(module, nn.PReLU):
        module.num_parameters -= len(removed)


def _cut_inputs(module: nn.Module, removed: set[int]) -> None:
    if isinstance(module, nn.Linear):
        module.in_features = _slice(module, "weight", 1, removed)
    elif isinstance(module, TRANSPOSED):
        module.in_channels = _slice(module, "weight", 0, removed)
    elif isinstance(module, CONVOLUTIONS) and module.groups == 1:
        module.in_channels = _slice(module, "weight", 1, removed)
    elif isinstance(module, CONVOLUTIONS) and module.groups == module.in_channels:
        module.in_channels -= len(removed)  # the kernels that read them are cut as outputs
        module.groups = module.in_channels
    elif isinstance(module, CONVOLUTIONS):
        _cut_grouped_inputs(module, removed)
    else:
        _cut_norm(module, removed)


def _cut_grouped_inputs(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, removed: set[int]) -> None:
    """Remove from every group of the convolution its own inputs, the same number from each."""
    width = module.in_channels // module.groups
    parts = []
    for index, part in enumerate(module.weight.detach().chunk(module.groups)):
        local = {position - index * width for position in removed if index * width <= position < (index + 1) * width}
        parts.append(part.index_select(1, _kept_indices(width, local).to(part.device)))
    module.weight = nn.Parameter(torch.cat(parts).contiguous(), module.weight.requires_grad)
    module.in_channels -= len(removed)
