"""Try on the network what the axes would do to it: cutting is the same as reading zeros, a layer can be replaced.

No group is trusted: half of its units are cut, in three ways, and the result is compared with the same network in which
every layer that read them is given zeros. Nor is a layer: another module that computes the same is put in its place.
"""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from spaces.dependency.propagation import channel_dimension
from spaces.network.anatomy import Branch, Refusal
from spaces.network.cutting import cut
from spaces.network.layers import LAYER_TYPES, has_plain_weight, replace_module, run_layer
from spaces.network.messages import first_line
from spaces.network.omission import leave_out
from spaces.network.statistics import reestimate
from spaces.network.tensors import tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from spaces.network.anatomy import Group

COMPUTED = (
    "its weight is computed before every forward; torch.nn.utils.parametrize.remove_parametrizations makes it a "
    "parameter"
)
UNSTEADY = (
    "its channels stay: no cut can be tried, since the network answers differently each time in evaluation, as with "
    "F.dropout without training=self.training"
)
REPLACED = "another module was put in its place and"
USUAL = {kind.forward for kind in LAYER_TYPES}
TOLERANCE = 1e-3  # relative to the largest output; the two ways round differently, nothing more


def tried(
    model: nn.Module, example: Tensor, groups: Sequence[Group], order: Sequence[str]
) -> tuple[tuple[Group, ...], tuple[Refusal, ...]]:
    """Return which of the groups hold, and the refusals of the others."""
    if not groups or _failure(model, example, groups) is None:
        return tuple(groups), ()
    with torch.no_grad():
        if _unlike(tensors(model(example)), tensors(model(example))):
            return (), refused((name for group in groups for name in group.producers), order, UNSTEADY)
    reasons = _shapes(model, example, groups)
    failed = [
        refusal
        for group in groups
        if group.name in reasons
        for refusal in refused(group.producers, order, f"cutting it was tried and {reasons[group.name]}")
    ]
    held, others = _halved(model, example, [group for group in groups if group.name not in reasons], order)
    return held, (*failed, *others)


def irreplaceable(model: nn.Module, example: Tensor, names: Sequence[str]) -> dict[str, str]:
    """Return the layers in whose place no other module can stand, split or rounded, and why.

    Parameters
    ----------
    model
        A network in evaluation mode; it is not changed.
    example
        One input, shape (1, ...).
    names
        Convolutions and linear layers.
    """
    reasons = {name: COMPUTED for name in names if not has_plain_weight(model.get_submodule(name))}
    others = [name for name in names if name not in reasons]
    reasons |= _of_own_ways(model, example, others)
    others = [name for name in names if name not in reasons]
    want = _answer(_light_copy(model), example)
    parts = [others]
    while parts:
        part = parts.pop()
        reason = _changed(model, example, part, want) if part else None
        if reason and len(part) == 1:
            reasons[part[0]] = f"{REPLACED} {reason}"
        elif reason:
            half = len(part) // 2
            parts += [part[:half], part[half:]]
    return reasons


def _of_own_ways(model: nn.Module, example: Tensor, names: Sequence[str]) -> dict[str, str]:
    """Return the layers whose class computes something else, seen at their own outputs.

    The answers of the network would not give away one that hardly moves them as it was given.
    """
    own = [name for name in names if type(model.get_submodule(name)).forward not in USUAL]
    if not own:
        return {}
    reasons: dict[str, str] = {}

    def note(layer: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        if inputs and isinstance(output, Tensor):
            reason = _unlike([_StandIn(layer)(inputs[0])], [output])
            if reason:
                reasons[named[layer]] = f"{REPLACED} {reason}"

    watched = _light_copy(model)
    named = {watched.get_submodule(name): name for name in own}
    for layer in named:
        layer.register_forward_hook(note)
    _answer(watched, example)
    return reasons


def _changed(model: nn.Module, example: Tensor, names: Sequence[str], want: list[Tensor]) -> str | None:
    """Put other modules in the place of these layers; say what is wrong with the result, or None."""
    changed = _light_copy(model)
    for name in names:
        replace_module(changed, name, _StandIn(changed.get_submodule(name)))
    try:
        return _unlike(_answer(changed, example), want)
    except Exception as error:  # noqa: BLE001 - whatever a network raises that looks into its layers
        return f"the forward failed: {first_line(error)}"


def _answer(model: nn.Module, example: Tensor) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # some networks draw numbers in evaluation too
        return tensors(model(example))


class _StandIn(nn.Module):
    """What computes the same as a layer, by its class's own way, and is not of its class."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inner = layer

    def forward(self, inputs: Tensor) -> Tensor:
        return run_layer(self.inner, inputs, self.inner.get_parameter("weight"))


def _halved(
    model: nn.Module, example: Tensor, groups: Sequence[Group], order: Sequence[str], held: tuple[Group, ...] = ()
) -> tuple[tuple[Group, ...], tuple[Refusal, ...]]:
    """Do it half by half, each beside those that were held before."""
    reason = _failure(model, example, (*held, *groups)) if groups else None
    if reason is None:
        return (*held, *groups), ()
    if len(groups) == 1:
        return held, refused(groups[0].producers, order, f"cutting it was tried and {reason}")
    half = len(groups) // 2
    held, failed = _halved(model, example, groups[:half], order, held)
    held, others = _halved(model, example, groups[half:], order, held)
    return held, failed + others


def _shapes(model: nn.Module, example: Tensor, groups: Sequence[Group]) -> dict[str, str]:
    """Cut each group alone on tensors without numbers, which is quick; say what is wrong with the shapes, by group."""
    reasons: dict[str, str] = {}
    shape = example.to("meta")
    with contextlib.suppress(Exception), torch.no_grad():  # what needs numbers to run is only tried with them
        whole = tensors(_light_copy(model, "meta")(shape))
        for group in groups:
            try:
                smaller = _light_copy(model, "meta")
                cut(smaller, [(group, _halves(group.units)[0])])
                reason = _misshapen(tensors(smaller(shape)), whole)
            except Exception as error:  # noqa: BLE001 - whatever a wrong cut raises is the answer
                reason = f"the forward failed: {first_line(error)}"
            if reason:
                reasons[group.name] = reason
    return reasons


def _misshapen(got: list[Tensor], want: list[Tensor]) -> str | None:
    wrong = (f"the output became {tuple(ours.shape)} instead of {tuple(theirs.shape)}"
             for ours, theirs in zip(got, want, strict=True) if ours.shape != theirs.shape)  # fmt: skip
    return next(wrong, None)


def _failure(model: nn.Module, example: Tensor, groups: Sequence[Group]) -> str | None:
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
    cut_model, masked = _light_copy(model), _light_copy(model)
    try:
        cut(cut_model, kept)
        for group, units in kept:
            _silence(masked, group, units)
        with torch.no_grad(), _step_by_step(), WithoutStatistics():  # type: ignore[no-untyped-call]
            got, want = tensors(cut_model(example)), tensors(masked(example))
    except Exception as error:  # noqa: BLE001 - whatever a wrong cut raises is the answer
        return f"the forward failed: {first_line(error)}"
    return _unlike(got, want)


def _unlike(got: list[Tensor], want: list[Tensor]) -> str | None:
    reason = _misshapen(got, want)
    if reason:
        return reason
    for ours, theirs in zip(got, want, strict=True):
        off = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6))
        if bool(theirs.isfinite().all()) and not off < TOLERANCE:
            return f"the output is off by {off:.1%}"
    return None


def _light_copy(model: nn.Module, device: str | None = None) -> nn.Module:
    """Return a copy whose modules are its own and whose tensors are those of the model: none is changed in place."""
    shared: dict[int, Tensor] = {id(buffer): buffer.to(device or buffer.device) for buffer in model.buffers()}
    for own in model.parameters():
        shared[id(own)] = nn.Parameter(own.detach().to(device), requires_grad=False) if device else own
    return copy.deepcopy(model, shared)


@contextlib.contextmanager
def _step_by_step() -> Iterator[None]:
    """Keep torch's Transformer layers from doing all in one operation, in which no LayerNorm is seen."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class WithoutStatistics(TorchDispatchMode):
    """Let LayerNorm and GroupNorm only scale and shift: over fewer channels they would find other statistics."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Do the operation, but for these two."""
        name = function._schema.name  # noqa: SLF001
        if name == "aten::native_layer_norm":
            x, _, weight, bias, _ = args
        elif name == "aten::native_group_norm":
            x, weight, bias, *_ = args
            weight, bias = (None if p is None else p.reshape(-1, *[1] * (x.dim() - 2)) for p in (weight, bias))
        else:
            return function(*args, **(kwargs or {}))
        scaled = x if weight is None else x * weight
        return scaled if bias is None else scaled + bias, x.new_zeros(1), x.new_ones(1)


def _silence(model: nn.Module, group: Group, kept: Sequence[int]) -> None:
    """Let every layer read zeros for the channels that are not kept."""
    gone = [unit for unit in range(group.units) if unit not in set(kept)]
    for member in group.members:
        if member.side == "parameter":
            continue
        module = model.get_submodule(member.layer)
        positions = torch.tensor([position for unit in gone for position in member.positions[unit]])
        if member.side == "in":
            module.register_forward_pre_hook(
                lambda module, inputs, gone=positions: (_zeroed(module, inputs[0], gone), *inputs[1:])
            )
        elif isinstance(module, nn.Linear):  # queries and keys are read by no weight: as zeros they add nothing
            module.register_forward_hook(lambda module, _, output, gone=positions: _zeroed(module, output, gone))


def _zeroed(module: nn.Module, given: Tensor, positions: Tensor) -> Tensor:
    return given.index_fill(channel_dimension(module, given.dim()), positions.to(given.device), 0)


def refused(names: Iterable[str], order: Sequence[str], reason: str) -> tuple[Refusal, ...]:
    """Refuse those of the names that are layers, for one reason."""
    return tuple(Refusal(name, reason) for name in dict.fromkeys(names) if name in order)


def dispensable(model: nn.Module, example: Tensor, branches: tuple[Branch, ...]) -> tuple[Branch, ...]:
    """Return the branches without which a network, as it is in evaluation mode, was seen to give numbers.

    A norm of an own class may want more than its input, or change its shape; code may read its weight, or divide by it.
    """
    if not branches:
        return ()
    with torch.no_grad():
        wanted = [x.shape for x in tensors(model(example))]

    def runs_without(some: tuple[Branch, ...]) -> bool:
        try:
            left = copy.deepcopy(model)
            for branch in some:
                leave_out(left, branch)
            reestimate(left, example)
            with torch.no_grad():
                given = tensors(left.eval()(example))
        except Exception:  # noqa: BLE001 - whatever the network does with what it no longer has
            return False
        return [x.shape for x in given] == wanted and all(bool(x.isfinite().all()) for x in given)

    return branches if runs_without(branches) else tuple(branch for branch in branches if runs_without((branch,)))
