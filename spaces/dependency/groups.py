"""Which channels must go together, read off the labels of one forward and then tried on the network."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from spaces.dependency.checks import refused, tried
from spaces.dependency.propagation import Follow
from spaces.network.anatomy import Extent, Group, Member, Refusal
from spaces.network.messages import first_line
from spaces.network.tensors import tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spaces.dependency.label_sets import LabelSets, Place, Settled
    from spaces.network.anatomy import Side

ALL_AT_ONCE = "they can only go all at once"
UNREAD = "no weight of a layer reads them"
OUTPUTS = "they are outputs of the network"

Reach = dict[tuple[str, "Side", int], list[int]]  # the positions of a class of channels in each (name, side, dimension)


def channel_groups(
    model: nn.Module, example: Tensor, order: Sequence[str]
) -> tuple[tuple[Group, ...], tuple[Refusal, ...], tuple[Extent, ...]]:
    """Find the groups of channels that can be removed together, the layers whose channels stay, and matrix products.

    Parameters
    ----------
    model
        A network in evaluation mode; it is not changed.
    example
        One input, shape (1, ...).
    order
        Names of the layers in order of execution.
    """
    followed = copy.deepcopy(model)
    follow = Follow(followed)
    try:
        with torch.no_grad(), follow:
            outputs = tensors(followed(example))
    except Exception as error:  # noqa: BLE001 - whatever an unusual network raises here; its other axes are searched
        return (), refused(order, order, f"its channels could not be followed: {first_line(error)}"), ()
    if not outputs:
        return (), refused(order, order, "its channels could not be followed: no tensor was found in the output"), ()
    ran = {name for name, _ in follow.sets.places}
    products = tuple(follow.products)
    outputs += _in_training(follow, followed, example)
    for tensor in outputs:
        follow.sets.fix(follow.of(tensor), OUTPUTS)
    for name, other in _shared(model).items():
        for (owner, _), labels in follow.sets.places.items():
            if owner == name:
                follow.sets.fix(labels, f"the weight of {name!r} is also {other!r}")
    summarize = follow.sets.settle()
    reaches, refusals = _classes(follow.sets, summarize, order)
    groups = [group for group in _grouped(reaches, order) if not ran.isdisjoint(group.producers)]
    held, failed = tried(model, example, groups, order)
    return held, refusals + failed, _extents(products, follow.sets.places, summarize.classes, held)


def _extents(
    products: Sequence[list[Tensor]], places: Mapping[Place, Tensor], classes: np.ndarray, groups: Sequence[Group]
) -> tuple[Extent, ...]:
    """Say of each matrix product which of its dimensions shrink with which groups; drop those that never do."""
    owners = np.zeros(classes.max() + 1, dtype=np.int64)  # 0: no group
    for number, group in enumerate(groups, start=1):
        maker = next(member for member in group.members if member.side == "out")
        labels = places[maker.layer, "out"].numpy()
        owners[classes[labels[[position for unit in maker.positions for position in unit]]]] = number
    extents = []
    for edges in products:
        cuts = []
        for dimension, edge in enumerate(edges):
            found = classes[edge.numpy()]
            if (found == found[0]).all():
                continue  # the channels do not lie along this dimension
            cuts += [
                (dimension, groups[number - 1].name, int(count) // groups[number - 1].units)
                for number, count in enumerate(np.bincount(owners[found]))
                if number and count
            ]
        if cuts:
            extents.append(Extent(tuple(len(edge) for edge in edges), tuple(cuts)))
    return tuple(extents)


def _in_training(follow: Follow, followed: nn.Module, example: Tensor) -> list[Tensor]:
    """Follow what runs only in training too, such as auxiliary heads, that it may be cut along; return the outputs."""
    if not follow.idle:
        return []
    with contextlib.suppress(Exception), torch.random.fork_rng(devices=[]), torch.no_grad(), follow:
        return tensors(followed.train()(torch.cat([example, example])))
    return []


def _classes(sets: LabelSets, summarize: Settled, order: Sequence[str]) -> tuple[dict[int, Reach], tuple[Refusal, ...]]:
    """Return what each class of channels that can go reaches, and the layers none of whose channels can."""
    classes, fixed, levelled = summarize
    reaches: dict[int, Reach] = defaultdict(dict)
    for (name, side), labels in sets.places.items():
        found = classes[labels.numpy()]
        dimension, positions = (0, found) if side else _along(found)
        if positions is None:
            fixed = dict.fromkeys(np.unique(found).tolist(), f"the parameter {name!r} mixes them") | fixed
            continue
        for position, label in enumerate(positions.tolist()):
            reaches[label].setdefault((name, cast("Side", side or "parameter"), dimension), []).append(position)
    read = sets.read(classes)
    for label, reach in reaches.items():
        if label not in read and not any(side == "in" for _, side, _ in reach):
            fixed.setdefault(label, UNREAD)
    signatures = {label: _signature(reach) for label, reach in reaches.items()}
    counts = Counter(signature for label, signature in signatures.items() if label not in fixed)
    for label, signature in signatures.items():
        if counts[signature] < 2:  # noqa: PLR2004 - one unit is all there is
            fixed.setdefault(label, f"{ALL_AT_ONCE}: {levelled[label]}" if label in levelled else ALL_AT_ONCE)
    refusals = []
    for name in order:
        made = sets.places.get((name, "out"))
        labels = [] if made is None else np.unique(classes[made.numpy()]).tolist()
        if all(label in fixed for label in labels):
            why = fixed[labels[0]] if labels else "it is not of a kind that is followed"
            refusals.append(Refusal(name, f"its channels stay: {why}"))
    return {label: reach for label, reach in reaches.items() if label not in fixed}, tuple(refusals)


def _along(found: np.ndarray) -> tuple[int, np.ndarray | None]:
    """Return the one dimension along which the classes of a bare parameter vary, and the class of each index there."""
    varying = [d for d in range(found.ndim) if found.shape[d] > 1 and (found != found.take([0], axis=d)).any()]
    if not varying:  # all of it is one class, which cannot go for a reason of its own
        return 0, found.reshape(-1)[:1]
    if len(varying) > 1:
        return 0, None
    return varying[0], found.transpose(varying[0], *(d for d in range(found.ndim) if d != varying[0])).reshape(
        found.shape[varying[0]], -1
    )[:, 0]


def _signature(reach: Reach) -> tuple[Any, ...]:
    return tuple(sorted((*place, len(positions)) for place, positions in reach.items()))


def _grouped(reaches: dict[int, Reach], order: Sequence[str]) -> list[Group]:
    """Join the classes that reach the same places into groups of units, in order of execution."""
    rank = {name: index for index, name in enumerate(order)}
    alike: dict[Any, list[Reach]] = defaultdict(list)
    for reach in reaches.values():
        alike[_signature(reach)].append(reach)
    found = []
    for units in alike.values():
        units.sort(key=lambda reach: min(reach.items())[1])
        places = sorted(units[0], key=lambda place: (rank.get(place[0], len(rank)), place))
        members = tuple(
            Member(name, side, dimension, tuple(tuple(unit[name, side, dimension]) for unit in units))
            for name, side, dimension in places
        )
        first = next((member.layer for member in members if member.side == "out"), None)
        if first is not None:
            found.append((first, members, len(units)))
    found.sort(key=lambda item: rank.get(item[0], len(rank)))
    named: Counter[str] = Counter()
    groups = []
    for first, members, count in found:
        named[first] += 1
        groups.append(Group(first if named[first] == 1 else f"{first}#{named[first]}", count, members))
    return groups


def _shared(model: nn.Module) -> dict[str, str]:
    """For each module and parameter whose tensor another module holds too, the name under which it does."""
    count_holders: dict[int, dict[int, str]] = defaultdict(dict)
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            count_holders[id(parameter)][id(module)] = name
    shared = {}
    for names in count_holders.values():
        for mine, other in itertools.permutations(names.values(), 2):
            shared[mine] = shared[mine.rpartition(".")[0]] = other
    return shared
