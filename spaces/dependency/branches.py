"""What a network can do without: branches that end in a sum with what went around them, and what keeps its shape."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from spaces.network.anatomy import Branch
from spaces.network.layers import BATCH_NORMS, LAYER_TYPES, SHAPELESS, count_holders, is_plain_norm
from spaces.network.tensors import tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from spaces.network.anatomy import Group, Joins, Layer

    # the groups that a side of a layer has channels of, and which of its channels go with each unit of them
    Channels = dict[tuple[str, str], list[tuple[Group, tuple[tuple[int, ...], ...]]]]

INPUT = ""  # what the network was given, among what a tensor was made by
SUMS = {"add", "add_"}
Made = frozenset[str]


def branches_of(
    model: nn.Module, example: Tensor, layers: Sequence[Layer], groups: Sequence[Group]
) -> tuple[Branch, ...]:
    """Return what the network could do without, in order of execution.

    A branch is what one side of a sum was made by and the other was not, where the other side comes from the input too.
    Of two that were made by layers each, as beside a convolution in the shortcut, the one with more multiply-adds is
    offered; of nested ones the inner. All that has weights in it must be used once: layers, norms, activations with
    slopes, bare parameters such as the scale of a block or a table of positions.

    Outside of all branches a layer that gives the shape that it is given is offered by itself, with the BatchNorm right
    behind it; a depthwise one with the only layer that reads it, if that keeps the shape too, as in MobileNets.

    Parameters
    ----------
    model
        A network in evaluation mode; it is not changed.
    example
        One input, shape (1, ...).
    layers
        Its layers, in order of execution.
    groups
        Its groups of channels.
    """
    follow = _Follow(model)
    try:
        with torch.no_grad(), follow:
            model(follow.given(example))
    except Exception:  # noqa: BLE001 - whatever an unusual network raises there; its other axes are searched
        return ()
    finally:
        follow.stop()
    apart, once = follow.apart, follow.once
    costs = {
        layer.name: layer.macs
        for layer in layers
        if len(layer.runs) == 1 and not (layer.tied or layer.stays or layer.transposed) and layer.name not in apart
    }
    found: dict[Made, None] = {}
    for one, other in follow.sums:
        sides = [side for side in (one - other, other - one) if side]
        allowed = [side for side in sides if costs.keys() & side and all(x in costs or x in once for x in side)]
        if allowed:
            found[max(allowed, key=lambda side: sum(costs.get(name, 0) for name in side))] = None
    taken: set[str] = set()
    branches = []
    for side in sorted(found, key=len):
        gone = taken | side  # of no sum both sides
        if taken.isdisjoint(side) and all(gone.isdisjoint(x - y) or gone.isdisjoint(y - x) for x, y in follow.sums):
            taken = gone
            inside = [layer.name for layer in layers if layer.name in side]
            others = sorted(side - set(inside))
            readers = _readers(side, follow.reads, layers, costs)
            branches.append(Branch(inside[0], tuple(inside), tuple(others), readers))
    for straight, joins in _straight([x for x in layers if x.name in costs.keys() - taken], follow.reads, groups):
        inside = [layer.name for layer in straight]
        norms = tuple(norm for name in inside if (norm := follow.norm_of(name)) in once - taken)
        readers = _readers(frozenset(inside), follow.reads, layers, costs)
        branches.append(Branch(inside[0], tuple(inside), norms, readers, straight=True, joins=joins))
    order = {layer.name: place for place, layer in enumerate(layers)}
    return tuple(sorted(branches, key=lambda branch: order[branch.name]))


def _readers(side: Made, reads: dict[str, Made], layers: Sequence[Layer], known: Collection[str]) -> tuple[str, ...]:
    """Return the layers, of those that are known, that read what a branch gives, also through depthwise ones."""
    mixing = {layer.name for layer in layers if not layer.depthwise}
    found: set[str] = set()
    reached = side
    while reached:
        reached = frozenset(x for x, read in reads.items() if x not in side | found and reached & read)
        found |= reached
        reached -= mixing
    return tuple(layer.name for layer in layers if layer.name in found and layer.name in known)


def _straight(
    layers: Sequence[Layer], reads: dict[str, Made], groups: Sequence[Group]
) -> Iterator[tuple[tuple[Layer, ...], Joins]]:
    """Yield those of the layers that give the shape that they are given, and what they join, as from `_joined`.

    Depthwise ones with the layer that alone reads them, if it is another of these, and that can be.
    """
    channels: Channels = defaultdict(list)
    for group in groups:
        for member in group.members:
            channels[member.layer, member.side].append((group, member.positions))
    alike = {
        layer.name: layer
        for layer in layers
        if layer.inputs == layer.outputs and layer.runs[0].before == layer.runs[0].after
    }
    taken: set[str] = set()
    for name, layer in alike.items():
        if name in taken:
            continue
        behind = [alike.get(reader) for reader, read in reads.items() if name in read]
        together: list[tuple[Layer, ...]] = [(layer,)]
        if layer.depthwise and len(behind) == 1 and behind[0] and reads[behind[0].name] == {name}:
            together.insert(0, (layer, behind[0]))
        fits = ((straight, joins) for straight in together if (joins := _joined(straight, channels)) is not None)
        for straight, joins in itertools.islice(fits, 1):
            taken |= {each.name for each in straight}
            yield straight, joins


def _joined(straight: Sequence[Layer], channels: Channels) -> Joins | None:
    """Return the groups of channels before and behind layers, if they can lose the same; none where they are one.

    They can where channel by channel the one takes the place of the other, and the one behind begins here.
    """
    sides = [  # what is known of both sides of each; a depthwise layer has one
        (channels[layer.name, "out" if layer.depthwise else "in"], channels[layer.name, "out"]) for layer in straight
    ]
    if any(one[1] != other[0] for one, other in itertools.pairwise(sides)):
        return None
    before, behind = sides[0][0], sides[-1][1]
    if [positions for _, positions in before] != [positions for _, positions in behind]:
        return None
    names = [(group.name, other.name) for (group, _), (other, _) in zip(before, behind, strict=True)]
    if all(one == other for one, other in names):
        return ()
    begins = len(behind) == 1 and behind[0][0].producers[0] == straight[-1].name
    return names[0] if begins else None


class _Follow(TorchDispatchMode):
    """Notes of every tensor which modules and bare parameters it was made by, and the sums of two of them.

    Attributes
    ----------
    sums
        Of both sides of each sum of two tensors of one shape, what they were made by.
    reads
        For each layer the last layers on all ways to its input.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sums: list[tuple[Made, Made]] = []
        self.reads: dict[str, Made] = {}
        self._norms: dict[str, str] = {}  # for a layer, the BatchNorm that is given the very tensor that it gave
        self._given_by: Any = WeakIdKeyDictionary()
        self._takers: Counter[str] = Counter()  # of what a module gave
        self._last: Any = WeakIdKeyDictionary()
        self._made: Any = WeakIdKeyDictionary()
        self._parameters = {id(p): name for name, p in model.named_parameters()}
        holding = count_holders(model)
        self._shared = {name for name, p in model.named_parameters() if holding[id(p)] > 1}
        self._shapeless = {name for name, module in model.named_modules() if isinstance(module, SHAPELESS)}
        self._uses: Counter[str] = Counter()  # calls of modules, and what else reads a parameter
        self._meets: Counter[str] = Counter()  # where what is made of parameters alone meets what the input made
        self._inside = 0
        self._handles = []
        known = {name for name, module in model.named_modules() if isinstance(module, LAYER_TYPES)}
        for name, module in model.named_modules():
            held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            if held and (isinstance(module, BATCH_NORMS) or not list(module.children())):
                known.add(name)
                self._handles += [
                    module.register_forward_pre_hook(self._enter),
                    module.register_forward_hook(self._leave(name), always_call=True),
                ]
        self._bare = {  # of containers, not of what is called itself
            name
            for name in self._parameters.values()
            if name.rpartition(".")[0] not in known and "parametrizations" not in name
        }

    def given(self, example: Tensor) -> Tensor:
        """Return the input of the network, known as such."""
        self._made[example] = frozenset({INPUT})
        return example

    def stop(self) -> None:
        """Look no longer."""
        for handle in self._handles:
            handle.remove()

    def norm_of(self, layer: str) -> str:
        """Return the BatchNorm that alone is given what a layer gives, and does no more; empty where there is none."""
        return self._norms.get(layer, "") if self._takers[layer] == 1 else ""

    @property
    def apart(self) -> set[str]:
        """Modules of whose parameters one is read elsewhere too."""
        held = self._shared | {name for name in self._parameters.values() if self._uses[name]}
        return {name.rpartition(".")[0] for name in held}

    @property
    def once(self) -> set[str]:
        """Modules that keep the shape of their input and are called once, and bare parameters that meet it once."""
        return {name for name in self._shapeless if self._uses[name] == 1} - self.apart | {
            name for name in self._bare if self._meets[name] == 1 and name not in self._shared
        }

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Do the operation, and note what its results were made by."""
        given = tensors((args, kwargs or {}))
        before = [self._of(tensor) for tensor in given]
        if not self._inside:
            self._uses.update(name for name in (self._parameters.get(id(tensor)) for tensor in given) if name)
            self._takers.update(self._given_by.get(tensor, "") for tensor in given)
        output = function(*args, **(kwargs or {}))
        if not self._inside:
            name = function._schema.name.removeprefix("aten::")  # noqa: SLF001
            sides = [made for made in before if INPUT in made]
            if name in SUMS and len(sides) == len(given) == 2 and given[0].shape == given[1].shape:  # noqa: PLR2004
                self.sums.append((sides[0], sides[1]))
            by = frozenset[str]().union(*before)
            self._met(before)
            last = self._before(given)
            for result in tensors(output):
                self._made[result] = by
                self._last[result] = last
                self._given_by[result] = ""  # also of what is written in place
        return output

    def _met(self, given: Sequence[Made]) -> None:
        if any(INPUT in made for made in given):
            self._meets.update(name for made in given if INPUT not in made for name in made)

    def _before(self, given: Sequence[Tensor]) -> Made:
        return frozenset[str]().union(*(self._last.get(tensor, ()) for tensor in given))

    def _of(self, tensor: Tensor) -> Made:
        own = self._parameters.get(id(tensor))
        return frozenset({own}) if own else self._made.get(tensor, frozenset())

    def _enter(self, *_: object) -> None:
        self._inside += 1

    def _leave(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def note(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
            given = tensors(inputs)
            if (
                isinstance(module, BATCH_NORMS)
                and module.track_running_stats
                and isinstance(output, Tensor)
                and is_plain_norm(module, given[0], output)
            ):
                self._norms[self._given_by.get(given[0], "")] = name
            self._inside -= 1
            self._takers.update(self._given_by.get(tensor, "") for tensor in given)
            made = [self._of(tensor) for tensor in given]
            self._met([frozenset({INPUT}), *made])  # a parameter that a module is given meets the input there
            by, last = frozenset({name}).union(*made), self._before(given)
            if isinstance(module, LAYER_TYPES):
                self.reads[name], last = last, frozenset({name})
            for result in tensors(output):
                self._made[result] = by
                self._last[result] = last
                self._given_by[result] = name
            self._uses[name] += 1

        return note
