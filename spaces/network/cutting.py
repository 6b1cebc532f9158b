"""Cut channels out of modules: plain slicing, by the positions that a group names."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spaces.network.layers import CONVOLUTIONS, NORMS, TRANSPOSED, depthwise

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from spaces.network.anatomy import Group, Side


def cut(model: nn.Module, kept: Iterable[tuple[Group, Sequence[int]]]) -> None:
    """Remove from `model`, in place, all units of the groups but the kept ones.

    Parameters
    ----------
    model
        A copy that may be changed; its layers have the widths that the groups were traced with.
    kept
        Pairs of a group and the units of it that stay.
    """
    modules = dict(model.named_modules())
    for (name, side, dimension), positions in removed_positions(kept).items():
        if not positions:
            continue
        if side == "parameter":
            owner, _, leaf = name.rpartition(".")
            _slice(modules[owner], leaf, dimension, positions)
        elif side == "in":
            _cut_inputs(modules[name], positions)
        else:
            _cut_outputs(modules[name], positions)


def removed_positions(kept: Iterable[tuple[Group, Sequence[int]]]) -> dict[tuple[str, Side, int], set[int]]:
    """Return the positions that go with all units of the groups but the kept ones, by layer, side and dimension."""
    positions: defaultdict[tuple[str, Side, int], set[int]] = defaultdict(set)
    for group, units in kept:
        lost = set(range(group.units)).difference(units)
        for member in group.members:
            positions[member.layer, member.side, member.dimension].update(
                position for unit in lost for position in member.positions[unit]
            )
    return positions


def _left(size: int, gone: set[int]) -> Tensor:
    return torch.tensor([index for index in range(size) if index not in gone], dtype=torch.long)


def _slice(module: nn.Module, leaf: str, dimension: int, gone: set[int]) -> int:
    """Slice the tensor called `leaf` along `dimension`; return how much is left of it."""
    old: Tensor | None = getattr(module, leaf)
    if old is None:
        return 0
    left = _left(old.shape[dimension], gone)
    new = old.detach().index_select(dimension, left.to(old.device)).contiguous()
    setattr(module, leaf, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
    return len(left)


def _cut_outputs(module: nn.Module, gone: set[int]) -> None:
    if isinstance(module, CONVOLUTIONS):
        alone = depthwise(module)
        module.out_channels = _slice(module, "weight", 0, gone)
        _slice(module, "bias", 0, gone)
        if alone:
            module.in_channels = module.groups = module.out_channels
    elif isinstance(module, TRANSPOSED):
        width = module.out_channels // module.groups  # the outputs of all groups are stored at the same places
        module.out_channels = module.groups * _slice(module, "weight", 1, {position % width for position in gone})
        _slice(module, "bias", 0, gone)
    elif isinstance(module, nn.Linear):
        module.out_features = _slice(module, "weight", 0, gone)
        _slice(module, "bias", 0, gone)
    else:
        _cut_norm(module, gone)


def _cut_norm(module: nn.Module, gone: set[int]) -> None:
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        if hasattr(module, leaf):
            _slice(module, leaf, 0, gone)
    if isinstance(module, NORMS):
        module.num_features -= len(gone)
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = (module.normalized_shape[0] - len(gone),)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels -= len(gone)
    elif isinstance(module, nn.PReLU):
        module.num_parameters -= len(gone)


def _cut_inputs(module: nn.Module, gone: set[int]) -> None:
    if isinstance(module, nn.Linear):
        module.in_features = _slice(module, "weight", 1, gone)
    elif isinstance(module, TRANSPOSED):
        module.in_channels = _slice(module, "weight", 0, gone)
    elif isinstance(module, CONVOLUTIONS) and module.groups == 1:
        module.in_channels = _slice(module, "weight", 1, gone)
    elif isinstance(module, CONVOLUTIONS):
        _cut_grouped_inputs(module, gone)
    else:
        _cut_norm(module, gone)


def _cut_grouped_inputs(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, gone: set[int]) -> None:
    """Every group of the convolution loses its own inputs, all of them equally many."""
    width = module.in_channels // module.groups
    parts = []
    for index, part in enumerate(module.weight.detach().chunk(module.groups)):
        local = {position - index * width for position in gone if index * width <= position < (index + 1) * width}
        parts.append(part.index_select(1, _left(width, local).to(part.device)))
    module.weight = nn.Parameter(torch.cat(parts).contiguous(), module.weight.requires_grad)
    module.in_channels -= len(gone)
