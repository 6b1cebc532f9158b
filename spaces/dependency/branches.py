"""Find branches that can be left out: sides of sums that have a shortcut, and layers that keep the shape."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from spaces.network.anatomy import Branch
from spaces.network.layers import BATCH_NORMS, LAYER_TYPES, SHAPE_PRESERVING, count_holders, is_plain_norm
from spaces.network.recurrent import Direction
from spaces.network.tensors import run, tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from spaces.network.anatomy import Group, Joins, Layer
    from spaces.network.tensors import Inputs

    # the groups of the channels of a (layer, side), and the channels of each of their units
    Channels = dict[tuple[str, str], list[tuple[Group, tuple[tuple[int, ...], ...]]]]

NETWORK_INPUT = ""  # name of the network's input among the sources of a tensor
SUM_OPERATIONS = {"add", "add_"}  # names in ATen
Sources = frozenset[str]  # names of the modules and bare parameters from which a tensor was computed


def branches_of(
    model: nn.Module, example: Inputs, layers: Sequence[Layer], groups: Sequence[Group]
) -> tuple[Branch, ...]:
    """Return the branches that could be left out, in order of execution.

    A branch consists of the sources of one side of a sum that the other side does not have, where both sides depend on
    the input. Where both sides have layers, as with a convolution in the shortcut, the one with more multiply-adds is
    the branch. Of nested branches only the inner one is used. Everything with weights in a branch must be used exactly
    once: layers, norms, activations with slopes, bare parameters such as the scale of a block or a position table.

    Outside of these branches, a layer that keeps the shape of its input is a branch by itself, with the BatchNorm that
    directly follows it. A depthwise layer forms one branch with its only reader, if that keeps the shape too, as in
    MobileNets.

    Parameters
    ----------
    model
        A network in evaluation mode; it is not changed.
    example
        One input, shape (1, ...).
    layers
        Layers of the network, in order of execution.
    groups
        Groups of channels of the network.
    """
    tracker = _SourceTracker(model)
    try:
        with torch.no_grad(), tracker:
            run(model, tracker.mark_input(example))
    except Exception:  # noqa: BLE001 - an unusual network may raise anything; other axes still work
        return ()
    finally:
        tracker.remove_hooks()
    read_elsewhere, used_once = tracker.read_elsewhere, tracker.used_once
    # the sum of what a recurrent layer makes of its input and of its state is no shortcut: it needs both
    recurrent = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, Direction)
        for part, _ in module.named_children()
    }
    costs = {
        layer.name: layer.macs
        for layer in layers
        if len(layer.runs) == 1
        and not (layer.tied or layer.stays or layer.transposed)
        and layer.name not in read_elsewhere | recurrent
    }
    found: dict[Sources, None] = {}
    for left, right in tracker.sums:
        sides = [side for side in (left - right, right - left) if side]
        allowed = [side for side in sides if costs.keys() & side and all(x in costs or x in used_once for x in side)]
        if allowed:
            found[max(allowed, key=lambda side: sum(costs.get(name, 0) for name in side))] = None
    taken: set[str] = set()
    branches = []
    for side in sorted(found, key=len):
        removed = taken | side  # no sum may lose both sides
        if taken.isdisjoint(side) and all(
            removed.isdisjoint(x - y) or removed.isdisjoint(y - x) for x, y in tracker.sums
        ):
            taken = removed
            inside = [layer.name for layer in layers if layer.name in side]
            others = sorted(side - set(inside))
            readers = _readers(side, tracker.reads, layers, costs)
            branches.append(Branch(inside[0], tuple(inside), tuple(others), readers))
    for straight, joins in _straight_branches(
        [x for x in layers if x.name in costs.keys() - taken], tracker.reads, groups
    ):
        inside = [layer.name for layer in straight]
        norms = tuple(norm for name in inside if (norm := tracker.norm_after(name)) in used_once - taken)
        readers = _readers(frozenset(inside), tracker.reads, layers, costs)
        branches.append(Branch(inside[0], tuple(inside), norms, readers, straight=True, joins=joins))
    order = {layer.name: index for index, layer in enumerate(layers)}
    return tuple(sorted(branches, key=lambda branch: order[branch.name]))


def _readers(
    side: Sources, reads: dict[str, Sources], layers: Sequence[Layer], known: Collection[str]
) -> tuple[str, ...]:
    """Return the known layers that read the output of a branch, directly or through depthwise layers."""
    mixing = {layer.name for layer in layers if not layer.depthwise}
    found: set[str] = set()
    reached = side
    while reached:
        reached = frozenset(x for x, read in reads.items() if x not in side | found and reached & read)
        found |= reached
        reached -= mixing
    return tuple(layer.name for layer in layers if layer.name in found and layer.name in known)


def _straight_branches(
    layers: Sequence[Layer], reads: dict[str, Sources], groups: Sequence[Group]
) -> Iterator[tuple[tuple[Layer, ...], Joins]]:
    """Yield the layers that keep the shape of their input, with the groups that they join, as `_joined_groups` does.

    A depthwise layer is yielded together with its only reader, if both keep the shape and can be left out together.
    """
    channels: Channels = defaultdict(list)
    for group in groups:
        for member in group.members:
            channels[member.layer, member.side].append((group, member.positions))
    keeping_shape = {
        layer.name: layer
        for layer in layers
        if layer.inputs == layer.outputs and layer.runs[0].before == layer.runs[0].after
    }
    taken: set[str] = set()
    for name, layer in keeping_shape.items():
        if name in taken:
            continue
        readers = [keeping_shape.get(reader) for reader, read in reads.items() if name in read]
        options: list[tuple[Layer, ...]] = [(layer,)]
        if layer.depthwise and len(readers) == 1 and readers[0] and reads[readers[0].name] == {name}:
            options.insert(0, (layer, readers[0]))
        fits = ((straight, joins) for straight in options if (joins := _joined_groups(straight, channels)) is not None)
        for straight, joins in itertools.islice(fits, 1):
            taken |= {each.name for each in straight}
            yield straight, joins


def _joined_groups(straight: Sequence[Layer], channels: Channels) -> Joins | None:
    """Return the groups of channels before and after the layers: empty if they are the same, None if they do not fit.

    They fit if they can lose the same units: their units have the same channels, and the last layer is the first
    producer of the group after it.
    """
    sides = [  # the groups on both sides of each layer; a depthwise layer has only output channels
        (channels[layer.name, "out" if layer.depthwise else "in"], channels[layer.name, "out"]) for layer in straight
    ]
    if any(one[1] != other[0] for one, other in itertools.pairwise(sides)):
        return None
    before, after = sides[0][0], sides[-1][1]
    if [positions for _, positions in before] != [positions for _, positions in after]:
        return None
    names = [(group.name, other.name) for (group, _), (other, _) in zip(before, after, strict=True)]
    if all(one == other for one, other in names):
        return ()
    begins = len(after) == 1 and after[0][0].producers[0] == straight[-1].name
    return names[0] if begins else None


class _SourceTracker(TorchDispatchMode):
    """Records the sources of every tensor: the modules and bare parameters from which it was computed.

    Attributes
    ----------
    sums
        The sources of both sides of each sum of two tensors of the same shape.
    reads
        For each layer, the last layer on every path to its input.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sums: list[tuple[Sources, Sources]] = []
        self.reads: dict[str, Sources] = {}
        self._norms: dict[str, str] = {}  # for a layer, the BatchNorm that reads its output tensor
        self._producers: Any = WeakIdKeyDictionary()
        self._reader_counts: Counter[str] = Counter()  # for a module, the number of reads of its outputs
        self._last_layers: Any = WeakIdKeyDictionary()
        self._sources: Any = WeakIdKeyDictionary()
        self._parameters = {id(p): name for name, p in model.named_parameters()}
        holders = count_holders(model)
        self._shared = {name for name, p in model.named_parameters() if holders[id(p)] > 1}
        self._shape_preserving = {
            name for name, module in model.named_modules() if isinstance(module, SHAPE_PRESERVING)
        }
        self._use_counts: Counter[str] = Counter()  # calls of modules, and reads of parameters outside of them
        # for a parameter, the operations that combine it, or values from parameters alone, with values from the input
        self._meeting_counts: Counter[str] = Counter()
        self._depth = 0  # of nested modules
        self._handles = []
        watched = {name for name, module in model.named_modules() if isinstance(module, LAYER_TYPES)}
        for name, module in model.named_modules():
            state = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            if state and (isinstance(module, BATCH_NORMS) or not list(module.children())):
                watched.add(name)
                self._handles += [
                    module.register_forward_pre_hook(self._enter_module),
                    module.register_forward_hook(self._leave_module(name), always_call=True),
                ]
        self._bare = {  # parameters of containers, which no hook watches
            name
            for name in self._parameters.values()
            if name.rpartition(".")[0] not in watched and "parametrizations" not in name
        }

    def mark_input(self, example: Inputs) -> Inputs:
        """Record the example as the input of the network, and return it."""
        for tensor in tensors(example):
            self._sources[tensor] = frozenset({NETWORK_INPUT})
        return example

    def remove_hooks(self) -> None:
        """Remove all hooks from the network."""
        for handle in self._handles:
            handle.remove()

    def norm_after(self, layer: str) -> str:
        """Return the BatchNorm that is the only reader of a layer and only normalizes; empty where there is none."""
        return self._norms.get(layer, "") if self._reader_counts[layer] == 1 else ""

    @property
    def read_elsewhere(self) -> set[str]:
        """Modules with a parameter that is read outside of the module too."""
        names = self._shared | {name for name in self._parameters.values() if self._use_counts[name]}
        return {name.rpartition(".")[0] for name in names}

    @property
    def used_once(self) -> set[str]:
        """Shape-keeping modules that are called once, and bare parameters that are combined with the input once."""
        return {name for name in self._shape_preserving if self._use_counts[name] == 1} - self.read_elsewhere | {
            name for name in self._bare if self._meeting_counts[name] == 1 and name not in self._shared
        }

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run the operation, and record the sources of its results."""
        given = tensors((args, kwargs or {}))
        sources = [self._sources_of(tensor) for tensor in given]
        if not self._depth:
            self._use_counts.update(name for name in (self._parameters.get(id(tensor)) for tensor in given) if name)
            self._reader_counts.update(self._producers.get(tensor, "") for tensor in given)
        output = function(*args, **(kwargs or {}))
        if not self._depth:
            name = function._schema.name.removeprefix("aten::")  # noqa: SLF001
            sides = [own for own in sources if NETWORK_INPUT in own]
            if name in SUM_OPERATIONS and len(sides) == len(given) == 2 and given[0].shape == given[1].shape:  # noqa: PLR2004
                self.sums.append((sides[0], sides[1]))
            union = frozenset[str]().union(*sources)
            self._count_meetings(sources)
            last = self._last_layers_of(given)
            for result in tensors(output):
                self._sources[result] = union
                self._last_layers[result] = last
                self._producers[result] = ""  # also for tensors that are written in place
        return output

    def _count_meetings(self, sources: Sequence[Sources]) -> None:
        if any(NETWORK_INPUT in own for own in sources):
            self._meeting_counts.update(name for own in sources if NETWORK_INPUT not in own for name in own)

    def _last_layers_of(self, given: Sequence[Tensor]) -> Sources:
        return frozenset[str]().union(*(self._last_layers.get(tensor, ()) for tensor in given))

    def _sources_of(self, tensor: Tensor) -> Sources:
        name = self._parameters.get(id(tensor))
        return frozenset({name}) if name else self._sources.get(tensor, frozenset())

    def _enter_module(self, *_: object) -> None:
        self._depth += 1

    def _leave_module(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def note(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
            given = tensors(inputs)
            if (
                isinstance(module, BATCH_NORMS)
                and module.track_running_stats
                and isinstance(output, Tensor)
                and is_plain_norm(module, given[0], output)
            ):
                self._norms[self._producers.get(given[0], "")] = name
            self._depth -= 1
            self._reader_counts.update(self._producers.get(tensor, "") for tensor in given)
            sources = [self._sources_of(tensor) for tensor in given]
            # a parameter that is passed to a module meets the input there
            self._count_meetings([frozenset({NETWORK_INPUT}), *sources])
            union, last = frozenset({name}).union(*sources), self._last_layers_of(given)
            if isinstance(module, LAYER_TYPES):
                self.reads[name], last = last, frozenset({name})
            for result in tensors(output):
                self._sources[result] = union
                self._last_layers[result] = last
                self._producers[result] = name
            self._use_counts[name] += 1

        return note
