"""Cut channels out of modules: plain slicing, by the positions that a group names."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from spaces.anatomy import Group, Side

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORMS = (*BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYER_TYPES = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


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
    for (name, side, dimension), positions in gone(kept).items():
        if not positions:
            continue
        if side == "parameter":
            owner, _, leaf = name.rpartition(".")
            _slice(modules[owner], leaf, dimension, positions)
        elif side == "in":
            _cut_inputs(modules[name], positions)
        else:
            _cut_outputs(modules[name], positions)


def gone(kept: Iterable[tuple[Group, Sequence[int]]]) -> dict[tuple[str, Side, int], set[int]]:
    """Return the positions that go with all units of the groups but the kept ones, by layer, side and dimension."""
    positions: defaultdict[tuple[str, Side, int], set[int]] = defaultdict(set)
    for group, units in kept:
        lost = set(range(group.units)).difference(units)
        for member in group.members:
            positions[member.layer, member.side, member.dimension].update(
                position for unit in lost for position in member.positions[unit]
            )
    return positions


def without_norm(norm: nn.Module) -> nn.Module:
    """Return what is left of a norm once a layer does its work, or none has to: nothing, or its activation."""
    return nn.Sequential(*norm.children()) if any(norm.children()) else nn.Identity()


def does_no_more(norm: nn.Module, inputs: Tensor, output: Tensor) -> bool:
    """Whether a norm is torch's own, or of a class that only calls its children after it, as timm's activate."""
    assert isinstance(norm, BATCH_NORMS)
    if type(norm).forward is nn.BatchNorm2d.forward:
        return True
    plain = nn.functional.batch_norm(
        inputs, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=norm.eps
    )
    return torch.equal(without_norm(norm)(plain), output)


def holders(model: nn.Module) -> Counter[int]:
    """Return how many modules hold each parameter, by the parameter's id; one of two names is one module."""
    return Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one of that name, under every other name too by which the network knows it."""
    old = model.get_submodule(name)
    for alike in [other for other, held in model.named_modules(remove_duplicate=False) if held is old]:
        model.set_submodule(alike, module)


def depthwise(module: nn.Module) -> bool:
    """Whether the module is a convolution with one kernel for every channel, which it keeps apart."""
    return (
        isinstance(module, CONVOLUTIONS)
        and module.groups > 1
        and module.groups == module.in_channels == module.out_channels
    )


def plain(module: nn.Module) -> bool:
    """Whether the weight of a layer is simply a parameter, not computed from others before every forward."""
    return "weight" in dict(module.named_parameters(recurse=False))


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
