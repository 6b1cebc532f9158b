"""Try on the network what the axes would do to it: cut groups, replace layers, leave branches out.

For every group, half of its units are cut, in three ways; the outputs must equal those of the network in which every
layer that reads these channels gets zeros. Every layer is replaced by another module that computes the same.
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
from spaces.network.layers import computes_as_torch, has_plain_weight, replace_module
from spaces.network.messages import first_line
from spaces.network.omission import leave_out
from spaces.network.statistics import reestimate
from spaces.network.tensors import seeded_outputs, tensors
from spaces.network.tried_layer import TriedLayer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from spaces.network.anatomy import Group

# reasons of refusals
COMPUTED_WEIGHT = (
    "its weight is computed in every forward pass; torch.nn.utils.parametrize.remove_parametrizations makes it a "
    "parameter"
)
RANDOM_OUTPUTS = (
    "its channels stay: no cut can be tried, because the outputs of the network differ from call to call in evaluation "
    "mode, as with F.dropout without training=self.training"
)
REPLACEMENT_TRIED = "another module was put in its place, but"
CUT_TRIED = "cutting it was tried, but"

CUT_TOLERANCE = 1e-3  # relative to the largest output; only the rounding may differ


def check_groups(
    model: nn.Module, example: Tensor, groups: Sequence[Group], order: Sequence[str]
) -> tuple[tuple[Group, ...], tuple[Refusal, ...]]:
    """Return the groups that can be cut, and the refusals of the others."""
    if not groups or _error_of_cuts(model, example, groups) is None:
        return tuple(groups), ()
    with torch.no_grad():
        if _difference(tensors(model(example)), tensors(model(example))):
            return (), refuse((name for group in groups for name in group.producers), order, RANDOM_OUTPUTS)
    errors = _shape_errors(model, example, groups)
    failed = [
        refusal
        for group in groups
        if group.name in errors
        for refusal in refuse(group.producers, order, f"{CUT_TRIED} {errors[group.name]}")
    ]
    valid, others = _check_by_halves(model, example, [group for group in groups if group.name not in errors], order)
    return valid, (*failed, *others)


def irreplaceable_layers(model: nn.Module, example: Tensor, names: Sequence[str]) -> dict[str, str]:
    """Return the layers that cannot be replaced by a factorized or quantized one, and why.

    Parameters
    ----------
    model
        A network in evaluation mode; it is not changed.
    example
        One input, shape (1, ...).
    names
        Names of convolutions and linear layers.
    """
    reasons = {name: COMPUTED_WEIGHT for name in names if not has_plain_weight(model.get_submodule(name))}
    others = [name for name in names if name not in reasons]
    reasons |= _custom_forwards(model, example, others)
    others = [name for name in names if name not in reasons]
    expected = seeded_outputs(_light_copy(model), example)
    parts = [others]
    while parts:
        part = parts.pop()
        reason = _error_of_replacement(model, example, part, expected) if part else None
        if reason and len(part) == 1:
            reasons[part[0]] = f"{REPLACEMENT_TRIED} {reason}"
        elif reason:
            half = len(part) // 2
            parts += [part[:half], part[half:]]
    return reasons


def _custom_forwards(model: nn.Module, example: Tensor, names: Sequence[str]) -> dict[str, str]:
    """Return the layers whose class computes something else than torch's, seen at the outputs of the layers.

    The outputs of the network would not reveal a layer that hardly changes them.
    """
    custom = [name for name in names if not computes_as_torch(model.get_submodule(name))]
    if not custom:
        return {}
    reasons: dict[str, str] = {}

    def note(layer: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        if inputs and isinstance(output, Tensor):
            try:
                reason = _difference([TriedLayer(layer)(inputs[0])], [output])
            except Exception as error:  # noqa: BLE001 - a layer that pads its input first may not run without
                reason = f"it fails: {first_line(error)}"
            if reason:
                reasons[names_of[layer]] = f"{REPLACEMENT_TRIED} {reason}"

    watched = _light_copy(model)
    names_of = {watched.get_submodule(name): name for name in custom}
    for layer in names_of:
        layer.register_forward_hook(note)
    seeded_outputs(watched, example)
    return reasons


def _error_of_replacement(
    model: nn.Module, example: Tensor, names: Sequence[str], expected: list[Tensor]
) -> str | None:
    """Replace these layers by other modules; return what is wrong with the outputs, or None."""
    changed = _light_copy(model)
    for name in names:
        replace_module(changed, name, TriedLayer(changed.get_submodule(name)))
    try:
        outputs = seeded_outputs(changed, example)
        new_nan = any(bool(x.isnan().any() and not y.isnan().any()) for x, y in zip(outputs, expected, strict=True))
        return "the forward reads its weight" if new_nan else _difference(outputs, expected)
    except Exception as error:  # noqa: BLE001 - a network that reads attributes of its layers may raise anything
        return f"the forward pass failed: {first_line(error)}"


def _check_by_halves(
    model: nn.Module, example: Tensor, groups: Sequence[Group], order: Sequence[str], valid: tuple[Group, ...] = ()
) -> tuple[tuple[Group, ...], tuple[Refusal, ...]]:
    """Check the groups by bisection, each half together with the groups that passed before."""
    reason = _error_of_cuts(model, example, (*valid, *groups)) if groups else None
    if reason is None:
        return (*valid, *groups), ()
    if len(groups) == 1:
        return valid, refuse(groups[0].producers, order, f"{CUT_TRIED} {reason}")
    half = len(groups) // 2
    valid, failed = _check_by_halves(model, example, groups[:half], order, valid)
    valid, others = _check_by_halves(model, example, groups[half:], order, valid)
    return valid, failed + others


def _shape_errors(model: nn.Module, example: Tensor, groups: Sequence[Group]) -> dict[str, str]:
    """Cut each group alone on meta tensors, which is fast; return what is wrong with the output shapes, by group."""
    errors: dict[str, str] = {}
    shape = example.to("meta")
    with contextlib.suppress(Exception), torch.no_grad():  # networks that need values cannot run on meta tensors
        whole = tensors(_light_copy(model, "meta")(shape))
        for group in groups:
            try:
                smaller = _light_copy(model, "meta")
                cut(smaller, [(group, _halves(group.units)[0])])
                reason = _shape_difference(tensors(smaller(shape)), whole)
            except Exception as error:  # noqa: BLE001 - a wrong cut may raise anything
                reason = f"the forward pass failed: {first_line(error)}"
            if reason:
                errors[group.name] = reason
    return errors


def _shape_difference(got: list[Tensor], expected: list[Tensor]) -> str | None:
    wrong = (f"the output has the shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}"
             for ours, theirs in zip(got, expected, strict=True) if ours.shape != theirs.shape)  # fmt: skip
    return next(wrong, None)


def _error_of_cuts(model: nn.Module, example: Tensor, groups: Sequence[Group]) -> str | None:
    """Cut half of the units of the groups in three ways; return what is wrong with the outputs, or None."""
    halves = zip(*(_halves(group.units) for group in groups), strict=True)
    reasons = (_error_of_cut(model, example, list(zip(groups, half, strict=True))) for half in halves)
    return next(filter(None, reasons), None)


def _halves(units: int) -> tuple[tuple[int, ...], ...]:
    """Return every other unit, the first half, and a random half: a wrong group may pass one by symmetry, not all."""
    half = (units + 1) // 2
    shuffled = torch.randperm(units, generator=torch.Generator().manual_seed(0)).tolist()
    return tuple(range(0, units, 2)), tuple(range(half)), tuple(sorted(shuffled[:half]))


def _error_of_cut(model: nn.Module, example: Tensor, kept: Sequence[tuple[Group, tuple[int, ...]]]) -> str | None:
    """Keep only these units; return what is wrong with the outputs, or None."""
    cut_model, masked = _light_copy(model), _light_copy(model)
    try:
        cut(cut_model, kept)
        for group, units in kept:
            _zero_inputs(masked, group, units)
        with torch.no_grad(), _without_fast_path(), WithoutStatistics():  # type: ignore[no-untyped-call]
            got, expected = tensors(cut_model(example)), tensors(masked(example))
    except Exception as error:  # noqa: BLE001 - a wrong cut may raise anything
        return f"the forward pass failed: {first_line(error)}"
    return _difference(got, expected)


def _difference(got: list[Tensor], expected: list[Tensor]) -> str | None:
    reason = _shape_difference(got, expected)
    if reason:
        return reason
    for ours, theirs in zip(got, expected, strict=True):
        error = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6))
        if bool(theirs.isfinite().all()) and not error < CUT_TOLERANCE:
            return f"the output is wrong by {error:.1%}"
    return None


def _light_copy(model: nn.Module, device: str | None = None) -> nn.Module:
    """Return a copy with new modules that share the tensors of the model; none of these is changed in place."""
    shared: dict[int, Tensor] = {id(buffer): buffer.to(device or buffer.device) for buffer in model.buffers()}
    for p in model.parameters():
        shared[id(p)] = nn.Parameter(p.detach().to(device), requires_grad=False) if device else p
    return copy.deepcopy(model, shared)


@contextlib.contextmanager
def _without_fast_path() -> Iterator[None]:
    """Turn off the fast path of torch's Transformer layers, one operation that hides their LayerNorms."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class WithoutStatistics(TorchDispatchMode):
    """Let LayerNorm and GroupNorm only scale and shift, since their statistics depend on the number of channels."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run the operation, without statistics if it is one of these two."""
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


def _zero_inputs(model: nn.Module, group: Group, kept: Sequence[int]) -> None:
    """Let every layer read zeros for the units that are not kept."""
    removed = [unit for unit in range(group.units) if unit not in set(kept)]
    for member in group.members:
        if member.side == "parameter":
            continue
        module = model.get_submodule(member.layer)
        positions = torch.tensor([position for unit in removed for position in member.positions[unit]])
        if member.side == "in":
            module.register_forward_pre_hook(
                lambda module, inputs, removed=positions: (_with_zeros(module, inputs[0], removed), *inputs[1:])
            )
        elif isinstance(module, nn.Linear):  # no weight reads queries and keys; zeros add nothing to their product
            module.register_forward_hook(
                lambda module, _, output, removed=positions: _with_zeros(module, output, removed)
            )


def _with_zeros(module: nn.Module, values: Tensor, positions: Tensor) -> Tensor:
    return values.index_fill(channel_dimension(module, values.dim()), positions.to(values.device), 0)


def refuse(names: Iterable[str], order: Sequence[str], reason: str) -> tuple[Refusal, ...]:
    """Return a refusal with this reason for each of the names that is a layer."""
    return tuple(Refusal(name, reason) for name in dict.fromkeys(names) if name in order)


def removable_branches(model: nn.Module, example: Tensor, branches: tuple[Branch, ...]) -> tuple[Branch, ...]:
    """Return the branches without which the network runs in evaluation mode, with finite outputs of the same shape.

    Others fail: a norm of a custom class may take further inputs or change the shape; code may read a weight of the
    branch, or divide by its output.
    """
    if not branches:
        return ()
    with torch.no_grad():
        shapes = [x.shape for x in tensors(model(example))]

    def runs_without(some: tuple[Branch, ...]) -> bool:
        try:
            shallower = copy.deepcopy(model)
            for branch in some:
                leave_out(shallower, branch)
            reestimate(shallower, example)
            with torch.no_grad():
                outputs = tensors(shallower.eval()(example))
        except Exception:  # noqa: BLE001 - code that needs the branch may raise anything
            return False
        return [x.shape for x in outputs] == shapes and all(bool(x.isfinite().all()) for x in outputs)

    return branches if runs_without(branches) else tuple(branch for branch in branches if runs_without((branch,)))
