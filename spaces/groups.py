"""Which channels must go together, found by torch-pruning's dependency graph and then tried on the network.

The graph is right for most networks and silently wrong for some (parameter-free shortcuts, for one), so no group is
trusted: half of its units are cut, in three ways, and the result is compared with the same network whose cut inputs
are set to zero.
"""

from __future__ import annotations

import copy
import itertools
import sys
import warnings
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from spaces.anatomy import Group, Member, Refusal, first_line
from spaces.surgery import CONVOLUTIONS, CUTTABLE, NORMS, TRANSPOSED, cut, depthwise

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

TOLERANCE = 1e-3  # relative to the largest output; the two ways round differently, nothing more


def channel_groups(
    model: nn.Module, example: Tensor, order: Sequence[str]
) -> tuple[tuple[Group, ...], tuple[Refusal, ...]]:
    """Find the groups of channels that can be removed together, and the layers whose channels stay.

    Parameters
    ----------
    model
        A network in evaluation mode; it is not changed.
    example
        One input, shape (1, ...).
    order
        Names of the layers in order of execution.

    References
    ----------
    Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", arXiv:2301.12900.
    """
    refusals: list[Refusal] = []
    candidates: list[Group] = []
    try:
        found = _dependencies(copy.deepcopy(model), example)
    except Exception as error:  # noqa: BLE001 - the graph fails in its own ways on unusual networks; the rest is searched
        reason = f"the dependency graph could not be traced: {first_line(error)}"
        return (), tuple(Refusal(name, reason) for name in order)
    shared = _shared(model)
    for root, reached in found:
        group = _group(root, reached, model, order, shared)
        if isinstance(group, Group):
            candidates.append(group)
        else:
            refusals += _refused([root, *(name for name, side, _ in reached if side == "out")], order, group)
    candidates.sort(key=lambda group: _place(group.name, order))
    held, failed = _tried(model, example, candidates, order)
    return tuple(held), tuple(refusals + failed)


def _dependencies(model: nn.Module, example: Tensor) -> list[tuple[str, list[tuple[Any, str, dict[int, set[int]]]]]]:
    """For each root layer, the (module or parameter, side, root channel -> positions) that its channels reach."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # noqa: FBT003 - the graph is read off autograd
    names: dict[Any, str] = {module: name for name, module in model.named_modules()}
    names |= {parameter: name for name, parameter in model.named_parameters()}
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph().build_dependency(model, example, verbose=False)
        groups = list(graph.get_all_groups())
    found = []
    for group in groups:
        members = []
        for item in group.items:
            target = item.dep.target.module
            if target not in names:
                continue  # an operation of the graph, such as a concatenation
            side = "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
            if isinstance(target, nn.Parameter):
                side = f"parameter {item.dep.target.pruning_dim % target.dim()}"
            reach: dict[int, set[int]] = defaultdict(set)
            for position, root in zip(item.idxs, item.root_idxs, strict=True):
                reach[root].add(position)
            members.append((names[target], side, dict(reach)))
        found.append((names[group[0].dep.target.module], members))
    return found


def _group(
    root: str,
    reached: list[tuple[Any, str, dict[int, set[int]]]],
    model: nn.Module,
    order: Sequence[str],
    shared: Mapping[str, str],
) -> Group | str:
    """Return the group, or why it cannot be cut."""
    modules = dict(model.named_modules())
    merged: dict[tuple[str, str], dict[int, set[int]]] = {}
    for name, side, reach in reached:
        if not side.startswith("parameter") and not _cuttable(modules[name]):
            return f"its channels reach {name!r} ({type(modules[name]).__name__}), which cannot be cut"
        if name in shared:
            return f"its channels reach {name!r}, whose weight is also {shared[name]!r}"
        if not side.startswith("parameter") and _acts_on_all_channels_alike(modules[name]):
            side = "out"  # noqa: PLW2901 - a normalization or a depthwise convolution loses one channel, not two
        into = merged.setdefault((name, side), defaultdict(set))
        for channel, positions in reach.items():
            into[channel] |= positions
    if not any(side == "in" for _, side in merged):
        return "its channels are outputs of the network"
    units = _units(merged, modules)
    if len(units) < 2:  # noqa: PLR2004 - one unit is all of the layer
        return "its channels can only go all at once"
    if (uneven := _uneven(units, merged, modules)) is not None:
        return f"its channels lie unevenly in the groups of {uneven!r}"
    members = tuple(
        Member(
            name, *_side(side), tuple(tuple(sorted(set().union(*(reach.get(c, ()) for c in unit)))) for unit in units)
        )
        for (name, side), reach in sorted(merged.items(), key=lambda item: _place(item[0][0], order))
    )
    named = [name for (name, side) in merged if side == "out" and name in order]
    return Group(min(named or [root], key=lambda name: _place(name, order)), len(units), members)


def _refused(names: Iterable[str], order: Sequence[str], reason: str) -> list[Refusal]:
    return [Refusal(name, reason) for name in dict.fromkeys(names) if name in order]


def _side(side: str) -> tuple[Any, int]:
    if side.startswith("parameter"):
        return "parameter", int(side.split()[1])
    return side, 0


def _place(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


def _cuttable(module: nn.Module) -> bool:
    if isinstance(module, nn.LayerNorm):
        return len(module.normalized_shape) == 1  # over several dimensions, it has a weight for every pixel
    return isinstance(module, CUTTABLE)


def _shared(model: nn.Module) -> dict[str, str]:
    """For each module and parameter whose tensor another module holds too, the name under which it does."""
    holders: dict[int, dict[int, str]] = defaultdict(dict)
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            holders[id(parameter)][id(module)] = name
    shared = {}
    for names in holders.values():
        for mine, other in itertools.permutations(names.values(), 2):
            shared[mine] = shared[mine.rpartition(".")[0]] = other
    return shared


def _acts_on_all_channels_alike(module: nn.Module) -> bool:
    return depthwise(module) or isinstance(module, (*NORMS, nn.LayerNorm, nn.GroupNorm, nn.PReLU))


def _units(merged: dict[tuple[str, str], dict[int, set[int]]], modules: dict[str, nn.Module]) -> list[tuple[int, ...]]:
    """Join the channels that no kernel allows to part: those that grouped layers hold at the same place."""
    channels = sorted({channel for reach in merged.values() for channel in reach})
    parent = {channel: channel for channel in channels}

    def head(channel: int) -> int:
        while parent[channel] != channel:
            channel = parent[channel]
        return channel

    for (name, side), reach in merged.items():
        _, width = _parts(name, side, modules)
        owner: dict[int, int] = {}
        for channel, positions in sorted(reach.items()):
            for position in positions:
                parent[head(channel)] = head(owner.setdefault(position % width, channel))
    units: dict[int, list[int]] = defaultdict(list)
    for channel in channels:
        units[head(channel)].append(channel)
    return [tuple(unit) for unit in units.values()]


def _uneven(
    units: Sequence[tuple[int, ...]],
    merged: dict[tuple[str, str], dict[int, set[int]]],
    modules: dict[str, nn.Module],
) -> str | None:
    """Name a module whose equal parts would not lose equally many channels with every unit."""
    for (name, side), reach in merged.items():
        parts, width = _parts(name, side, modules)
        for unit in units:
            lost = Counter(p // width for p in set().union(*(reach.get(channel, ()) for channel in unit)))
            if parts > 1 and lost and len({lost[part] for part in range(parts)}) > 1:
                return name
    return None


def _parts(name: str, side: str, modules: dict[str, nn.Module]) -> tuple[int, int]:
    """Return how many equal parts, which must keep equally many channels, the side falls into, and their width."""
    module = modules.get(name)
    if isinstance(module, nn.GroupNorm):
        return module.num_groups, module.num_channels // module.num_groups
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) and module.groups > 1 and not depthwise(module):
        channels = module.out_channels if side == "out" else module.in_channels
        return module.groups, channels // module.groups
    return 1, sys.maxsize


def _tried(
    model: nn.Module, example: Tensor, groups: list[Group], order: Sequence[str]
) -> tuple[list[Group], list[Refusal]]:
    if not groups or _holds(model, example, groups) is None:
        return groups, []
    held: list[Group] = []
    refused: list[Refusal] = []
    for group in groups:
        reason = _holds(model, example, [*held, group])
        if reason is None:
            held.append(group)
        else:
            refused += _refused(group.producers, order, f"cutting it was tried and {reason}")
    return held, refused


def _holds(model: nn.Module, example: Tensor, groups: Sequence[Group]) -> str | None:
    """Cut half of the units of the groups in three ways; say what is wrong with the result, or None."""
    halves = zip(*(_halves(group.units) for group in groups), strict=True)
    reasons = (_wrong(model, example, list(zip(groups, half, strict=True))) for half in halves)
    return next(filter(None, reasons), None)


def _halves(units: int) -> tuple[tuple[int, ...], ...]:
    """Return every other unit, the first ones, and any: a wrong map passes one of these by symmetry, hardly all."""
    half = (units + 1) // 2
    mixed = torch.randperm(units, generator=torch.Generator().manual_seed(0)).tolist()
    return tuple(range(0, units, 2)), tuple(range(half)), tuple(sorted(mixed[:half]))


def _wrong(model: nn.Module, example: Tensor, kept: Sequence[tuple[Group, tuple[int, ...]]]) -> str | None:
    """Keep only these units; say what is wrong with the result, or None."""
    cut_model, masked = copy.deepcopy(model), copy.deepcopy(model)
    try:
        cut(cut_model, kept)
        for group, units in kept:
            _silence(masked, group, units)
        with torch.no_grad():
            got, want = _tensors(cut_model(example)), _tensors(masked(example))
    except Exception as error:  # noqa: BLE001 - whatever a wrong cut raises is the answer
        return f"the forward failed: {first_line(error)}"
    # A LayerNorm over fewer channels has other statistics, so only the shapes can be compared there.
    mixing = any(isinstance(model.get_submodule(m.layer), (nn.LayerNorm, nn.GroupNorm))
                 for group, _ in kept for m in group.members if m.side != "parameter")  # fmt: skip
    for ours, theirs in zip(got, want, strict=True):
        if ours.shape != theirs.shape:
            return f"the output became {tuple(ours.shape)} instead of {tuple(theirs.shape)}"
        off = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6))
        if not mixing and not off < TOLERANCE:
            return f"the output is off by {off:.1%}"
    return None


def _tensors(output: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _silence(model: nn.Module, group: Group, kept: Sequence[int]) -> None:
    """Set to zero, in place, all that reads a channel that is not kept."""
    gone = [unit for unit in range(group.units) if unit not in set(kept)]
    for member in group.consumers:
        module = model.get_submodule(member.layer)
        positions = [position for unit in gone for position in member.positions[unit]]
        weight = module.get_parameter("weight").detach()
        if isinstance(module, TRANSPOSED):
            weight[positions] = 0
        elif isinstance(module, CONVOLUTIONS) and module.groups > 1:
            width = module.in_channels // module.groups
            rows = module.out_channels // module.groups
            for position in positions:
                part = position // width
                weight[part * rows : (part + 1) * rows, position % width] = 0
        else:
            weight[:, positions] = 0
