"""Which channels must go together, found by torch-pruning's dependency graph and then tried on the network.

The graph is right for most networks and silently wrong for some (parameter-free shortcuts, for one), so no group is
trusted: half of its units are cut and the result is compared with the same network whose cut inputs are set to zero.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
import torch_pruning
from torch import Tensor, nn

from spaces.anatomy import Group, Member, Refusal
from spaces.surgery import CONVOLUTIONS, CUTTABLE, NORMS, TRANSPOSED, cut

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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
        return (), tuple(Refusal(name, f"the dependency graph could not be traced: {error}") for name in order)
    for name, members in found:
        group = _group(name, members, model, order)
        if isinstance(group, Refusal):
            refusals.append(group)
        else:
            candidates.append(group)
    candidates.sort(key=lambda group: order.index(group.name))
    held, failed = _tried(model, example, candidates)
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
    root: str, reached: list[tuple[Any, str, dict[int, set[int]]]], model: nn.Module, order: Sequence[str]
) -> Group | Refusal:
    modules = dict(model.named_modules())
    merged: dict[tuple[str, str], dict[int, set[int]]] = {}
    for name, side, reach in reached:
        if not side.startswith("parameter") and not isinstance(modules[name], CUTTABLE):
            return Refusal(root, f"its channels reach {name!r} ({type(modules[name]).__name__}), which cannot be cut")
        if not side.startswith("parameter") and _acts_on_all_channels_alike(modules[name]):
            side = "out"  # noqa: PLW2901 - a normalization or a depthwise convolution loses one channel, not two
        into = merged.setdefault((name, side), defaultdict(set))
        for channel, positions in reach.items():
            into[channel] |= positions
    if not any(side == "in" for _, side in merged):
        return Refusal(root, "its channels are outputs of the network")
    units = _units(merged, modules)
    if len(units) < 2:  # noqa: PLR2004 - one unit is all of the layer
        return Refusal(root, "its channels can only go all at once")
    members = tuple(
        Member(name, *_side(side), tuple(tuple(sorted(set().union(*(reach.get(c, ()) for c in unit)))) for unit in units))
        for (name, side), reach in sorted(merged.items(), key=lambda item: _place(item[0][0], order))
    )
    named = [name for (name, side) in merged if side == "out" and name in order]
    return Group(min(named or [root], key=lambda name: _place(name, order)), len(units), members)


def _side(side: str) -> tuple[Any, int]:
    if side.startswith("parameter"):
        return "parameter", int(side.split()[1])
    return side, 0


def _place(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


def _acts_on_all_channels_alike(module: nn.Module) -> bool:
    if isinstance(module, CONVOLUTIONS):
        return module.groups > 1 and module.groups == module.in_channels == module.out_channels
    return isinstance(module, (*NORMS, nn.LayerNorm, nn.GroupNorm, nn.PReLU))


def _units(merged: dict[tuple[str, str], dict[int, set[int]]], modules: dict[str, nn.Module]) -> list[tuple[int, ...]]:
    """Join the channels that no kernel allows to part: those that grouped layers hold at the same place."""
    channels = sorted({channel for reach in merged.values() for channel in reach})
    parent = {channel: channel for channel in channels}

    def head(channel: int) -> int:
        while parent[channel] != channel:
            channel = parent[channel]
        return channel

    for (name, side), reach in merged.items():
        parts = 1 if side.startswith("parameter") else _parts(modules[name], side)
        size = 1 + max(position for positions in reach.values() for position in positions)
        owner: dict[int, int] = {}
        for channel, positions in sorted(reach.items()):
            for position in positions:
                key = position % (size // parts) if parts > 1 else position
                parent[head(channel)] = head(owner.setdefault(key, channel))
    units: dict[int, list[int]] = defaultdict(list)
    for channel in channels:
        units[head(channel)].append(channel)
    return [tuple(unit) for unit in units.values()]


def _parts(module: nn.Module, side: str) -> int:
    """How many equal parts the side falls into, each of which must keep equally many channels."""
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) and not (side == "out" and _acts_on_all_channels_alike(module)):
        return module.groups
    return 1


def _tried(model: nn.Module, example: Tensor, groups: list[Group]) -> tuple[list[Group], list[Refusal]]:
    if not groups or _holds(model, example, groups) is None:
        return groups, []
    held: list[Group] = []
    refused = []
    for group in groups:
        reason = _holds(model, example, [*held, group])
        if reason is None:
            held.append(group)
        else:
            refused.append(Refusal(group.name, f"cutting it was tried and {reason}"))
    return held, refused


def _holds(model: nn.Module, example: Tensor, groups: Iterable[Group]) -> str | None:
    """Cut every other unit of the groups; say what is wrong with the result, or None."""
    cut_model, masked = copy.deepcopy(model), copy.deepcopy(model)
    kept = [(group, tuple(range(0, group.units, 2))) for group in groups]
    try:
        cut(cut_model, kept)
        for group, units in kept:
            _silence(masked, group, units)
        with torch.no_grad():
            got, want = cut_model(example), masked(example)
    except Exception as error:  # noqa: BLE001 - whatever a wrong cut raises is the answer
        return f"the forward failed: {str(error).splitlines()[0]}"
    if not isinstance(got, Tensor):
        return None  # several outputs: that the forward runs is all that can be said
    if got.shape != want.shape:
        return f"the output became {tuple(got.shape)} instead of {tuple(want.shape)}"
    mixing = any(isinstance(model.get_submodule(m.layer), (nn.LayerNorm, nn.GroupNorm))
                 for group, _ in kept for m in group.members if m.side != "parameter")  # fmt: skip
    error = float((got - want).abs().max() / want.abs().max().clamp_min(1e-6))
    # A LayerNorm over fewer channels has other statistics, so only the shape can be compared there.
    return None if mixing or error < TOLERANCE else f"the output is off by {error:.1%}"


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
