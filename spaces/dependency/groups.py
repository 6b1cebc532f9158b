"""Find groups of channels that must be removed together, from the labels of one forward pass, and try them."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from spaces.dependency.checks import RANDOM_OUTPUTS, Trial, has_random_outputs, refuse
from spaces.dependency.guesses import Followed, Guess, group_with_numbers
from spaces.dependency.propagation import LabelPropagation
from spaces.network.anatomy import Extent, Group, Member, Refusal
from spaces.network.messages import first_line
from spaces.network.tensors import run, tensors, twice

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spaces.dependency.label_sets import LabelClasses, LabelSets, Place
    from spaces.network.anatomy import Side
    from spaces.network.tensors import Inputs

# reasons of refusals
ONLY_ALL_AT_ONCE = "they can only be removed all at once"
UNREAD = "no weight of a layer reads them"
ARE_OUTPUTS = "they are outputs of the network"

MOST_GUESSES = 8  # each takes a pass to follow the channels and a few trials

Reach = dict[tuple[str, "Side", int], list[int]]  # positions of a class of channels, by (name, side, dimension)


def channel_groups(
    model: nn.Module, example: Inputs, order: Sequence[str]
) -> tuple[tuple[Group, ...], tuple[Refusal, ...], tuple[Extent, ...]]:
    """Find the groups of channels, the layers whose channels cannot be removed, and the matrix products.

    Parameters
    ----------
    model
        A network in evaluation mode; it is not changed.
    example
        One input, shape (1, ...).
    order
        Names of the layers in order of execution.
    """
    guess, random = Guess(), has_random_outputs(model, example)
    alone: dict[tuple[Member, ...], str | None] = {}
    for number in itertools.count(1):
        try:
            followed = _follow(model, example, guess)
        except Exception as error:  # noqa: BLE001 - an unusual network may raise anything; other axes still work
            return (), refuse(order, order, f"its channels could not be followed: {first_line(error)}"), ()
        reaches, refusals = _removable(followed.sets, followed.classes, order)
        groups = [
            group_with_numbers(model, group) if followed.states_numbers(group) else group
            for group in _groups_of_units(reaches, order)
            if not followed.ran.isdisjoint(group.producers)
        ]
        if random:
            errors = {group.name: RANDOM_OUTPUTS for group in groups}
            break
        trial = Trial.of(model, example, followed.classes.statistics)
        errors = _with_weights_read(trial.check(groups, alone), groups, followed.sets)
        before, guess = guess, guess.after(groups, errors, followed, trial, last=number >= MOST_GUESSES)
        if guess == before or number > MOST_GUESSES:
            break
    valid = tuple(group for group in groups if group.name not in errors)
    refusals += tuple(
        refusal
        for group in groups
        if group.name in errors
        for refusal in refuse(group.producers, order, errors[group.name])
    )
    return valid, refusals, _extents(followed.products, followed.sets.places, followed.classes.classes, valid)


def _with_weights_read(errors: dict[str, str], groups: Sequence[Group], sets: LabelSets) -> dict[str, str]:
    """Add to what is wrong with a group that the network reads the weight of one of its layers outside of it."""
    read = {name.rpartition(".")[0]: name for name in sets.read_outside.values()}
    found = {group.name: next((read[m.layer] for m in group.members if m.layer in read), None) for group in groups}
    return {
        name: f"{reason}: the forward reads {parameter!r} outside of its layer"
        if (parameter := found[name])
        else reason
        for name, reason in errors.items()
    }


def _follow(model: nn.Module, example: Inputs, guess: Guess) -> Followed:
    """Follow the channels through one forward pass."""
    followed = copy.deepcopy(model)
    propagation = LabelPropagation(followed, {key: options[-1].unit for key, options in guess.parts.items()})
    with torch.no_grad(), propagation:
        outputs = tensors(run(followed, example))
    if not outputs:
        raise ValueError("no tensor was found in the output")
    ran, products = frozenset(name for name, _ in propagation.sets.places), tuple(propagation.products)
    outputs += _training_outputs(propagation, followed, example)
    for tensor in outputs:
        propagation.sets.fix(propagation.labels_of(tensor), ARE_OUTPUTS)
    for name, other in _shared_tensors(model).items():
        for (owner, _), labels in propagation.sets.places.items():
            if owner == name:
                propagation.sets.fix(labels, f"the weight of {name!r} is shared with {other!r}")
    for name in guess.tied:
        places = propagation.sets.places
        for part in places[name, "out"].split(len(places[name, "in"])):  # such as queries, keys and values
            propagation.sets.join(places[name, "in"], part, f"the widths around {name!r} must be equal")
    return Followed(propagation.sets, propagation.sets.resolve(), products, ran, guess.numbers)


def _extents(
    products: Sequence[list[Tensor]], places: Mapping[Place, Tensor], classes: np.ndarray, groups: Sequence[Group]
) -> tuple[Extent, ...]:
    """Return, for each matrix product, the groups that shrink its dimensions; drop products that never shrink."""
    owners = np.zeros(classes.max() + 1, dtype=np.int64)  # 0: no group
    for number, group in enumerate(groups, start=1):
        producer = next(member for member in group.members if member.side == "out")
        labels = places[producer.layer, "out"].numpy()
        owners[classes[labels[[position for unit in producer.positions for position in unit]]]] = number
    extents = []
    for edges in products:
        cuts = []
        for dimension, edge in enumerate(edges):
            found = classes[edge.numpy()]
            if (found == found[0]).all():
                continue  # no channels lie along this dimension
            cuts += [
                (dimension, groups[number - 1].name, int(count) // groups[number - 1].units)
                for number, count in enumerate(np.bincount(owners[found]))
                if number and count
            ]
        if cuts:
            extents.append(Extent(tuple(len(edge) for edge in edges), tuple(cuts)))
    return tuple(extents)


def _training_outputs(propagation: LabelPropagation, followed: nn.Module, example: Inputs) -> list[Tensor]:
    """Follow modules and bare parameters that are used only in training; return the outputs in training mode."""
    if not propagation.idle and not propagation.unused_parameters:
        return []
    with contextlib.suppress(Exception), torch.random.fork_rng(devices=[]), torch.no_grad(), propagation:
        return tensors(run(followed.train(), twice(example)))
    return []


def _removable(
    sets: LabelSets, label_classes: LabelClasses, order: Sequence[str]
) -> tuple[dict[int, Reach], tuple[Refusal, ...]]:
    """Return the positions of each class of channels that can be removed, and refusals of layers without one."""
    classes, fixed, equalized, _ = label_classes
    reaches: dict[int, Reach] = defaultdict(dict)
    sizes = np.bincount(classes)
    for (name, side), labels in sets.places.items():
        found = classes[labels.numpy()]
        dimension, positions = (0, found) if side else _varying_dimension(found, sizes[found] == 1)
        if positions is None:
            fixed = dict.fromkeys(np.unique(found).tolist(), f"the parameter {name!r} mixes them") | fixed
            continue
        for position, label in enumerate(positions.tolist()):
            reaches[label].setdefault((name, cast("Side", side or "parameter"), dimension), []).append(position)
    read = sets.summed_classes(classes)
    for label, reach in reaches.items():
        if label not in read and not any(side == "in" for _, side, _ in reach):
            fixed.setdefault(label, UNREAD)
    signatures = {label: _signature(reach) for label, reach in reaches.items()}
    counts = Counter(signature for label, signature in signatures.items() if label not in fixed)
    for label, signature in signatures.items():
        if counts[signature] < 2:  # noqa: PLR2004 - a group of one unit would leave no channel
            fixed.setdefault(
                label, f"{ONLY_ALL_AT_ONCE}: {equalized[label]}" if label in equalized else ONLY_ALL_AT_ONCE
            )
    refusals = []
    for name in order:
        outputs = sets.places.get((name, "out"))
        labels = [] if outputs is None else np.unique(classes[outputs.numpy()]).tolist()
        if all(label in fixed for label in labels):
            reason = fixed[labels[0]] if labels else "its type is not supported"
            refusals.append(Refusal(name, f"its channels stay: {reason}"))
    return {label: reach for label, reach in reaches.items() if label not in fixed}, tuple(refusals)


def _varying_dimension(found: np.ndarray, unused: np.ndarray) -> tuple[int, np.ndarray | None]:
    """Return the only dimension along which the classes of a bare parameter vary, and the class of each index there.

    Elements that nothing uses, such as rows of a table for later positions, belong to the channels of the others.
    """
    used = np.unique(found[~unused])
    if len(used) < 2:  # noqa: PLR2004 - all elements are one class, which is refused for another reason
        return 0, used if len(used) else found.reshape(-1)[:1]
    for dimension, size in enumerate(found.shape):
        by_index, without = (np.moveaxis(array, dimension, 0).reshape(size, -1) for array in (found, unused))
        highest = np.where(without, -1, by_index).max(1)
        lowest = np.where(without, np.iinfo(by_index.dtype).max, by_index).min(1)
        if (lowest >= highest).all():  # one class at each index, or none
            return dimension, np.where(highest < 0, by_index[:, 0], highest)
    return 0, None


def _signature(reach: Reach) -> tuple[Any, ...]:
    return tuple(sorted((*place, len(positions)) for place, positions in reach.items()))


def _groups_of_units(reaches: dict[int, Reach], order: Sequence[str]) -> list[Group]:
    """Join the classes with the same places into groups of units, in order of execution."""
    rank = {name: index for index, name in enumerate(order)}
    by_signature: dict[Any, list[Reach]] = defaultdict(list)
    for reach in reaches.values():
        by_signature[_signature(reach)].append(reach)
    found = []
    for units in by_signature.values():
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
    name_counts: Counter[str] = Counter()
    groups = []
    for first, members, count in found:
        name_counts[first] += 1
        groups.append(Group(first if name_counts[first] == 1 else f"{first}#{name_counts[first]}", count, members))
    return groups


def _shared_tensors(model: nn.Module) -> dict[str, str]:
    """Return, for each module and parameter whose tensor another module holds too, the name of the tensor there."""
    names_by_holder: dict[int, dict[int, str]] = defaultdict(dict)
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            names_by_holder[id(parameter)][id(module)] = name
    shared = {}
    for names in names_by_holder.values():
        for name, other in itertools.permutations(names.values(), 2):
            shared[name] = shared[name.rpartition(".")[0]] = other
    return shared
