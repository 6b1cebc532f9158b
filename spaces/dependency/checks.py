"""Cut groups of channels on the network, at several counts that differ from group to group.

The outputs must equal those of the network in which every layer that reads the removed channels gets zeros. Both run
with other weights, in which a wrong cut shows, and without the statistics of norms, which depend on the number of
channels, and with one scale of attention; then the network itself must run with all groups cut.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spaces.dependency.attention_scale import FixedScale
from spaces.dependency.comparing import difference, light_copy, shape_difference
from spaces.dependency.norm_rules import WithoutStatistics
from spaces.dependency.propagation import KERNEL_LAYERS, channel_dimension
from spaces.dependency.redrawn import redrawn
from spaces.network.anatomy import Refusal
from spaces.network.cutting import cut
from spaces.network.messages import first_line
from spaces.network.tensors import moved, run, seeded_outputs, tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from spaces.network.anatomy import Group, Member
    from spaces.network.tensors import Inputs

    Cuts = list[tuple[Group, tuple[int, ...]]]  # groups, and the units of each that are kept

# reasons of refusals
RANDOM_OUTPUTS = (
    "its channels stay: no cut can be tried, because the outputs of the network differ from call to call in evaluation "
    "mode, as with F.dropout without training=self.training"
)
CUT_TRIED = "cutting it was tried, but"

KEPT_SHARES = (0.5, 0.75, 0.25, 0.9, 0.6, 0.1, 0.35)  # of the units of a group, from group to group and trial to trial
JOINT_TRIALS = 3  # trials in which all groups are cut
LARGEST_CYCLE = 8  # of this many neighbouring groups, each is cut without each other one in some trial


def has_random_outputs(model: nn.Module, example: Inputs) -> bool:
    """Whether the outputs differ from call to call, so that no cut can be tried."""
    with torch.no_grad():
        return difference(tensors(run(model, example)), tensors(run(model, example))) is not None


@dataclass(frozen=True)
class Trial:
    """Cuts groups of a network with other weights, and of the network itself.

    Attributes
    ----------
    model, drawn
        The network in evaluation mode, and a copy with other weights; neither is changed.
    example
        One input, shape (1, ...).
    statistics
        The statistics of norms that the network computes, as `LabelClasses` names them.
    """

    model: nn.Module
    drawn: nn.Module
    example: Inputs
    statistics: frozenset[tuple[str, int]]

    @classmethod
    def of(cls, model: nn.Module, example: Inputs, statistics: frozenset[tuple[str, int]]) -> Trial:
        """Draw other weights for a network."""
        with _comparable(), WithoutStatistics(statistics):
            return cls(model, redrawn(model, example), example, statistics)

    def check(self, groups: Sequence[Group], alone: dict[tuple[Member, ...], str | None]) -> dict[str, str]:
        """Return what goes wrong with those groups that cannot be cut at any count, whatever is cut of others.

        Parameters
        ----------
        groups
            The groups, in order of execution.
        alone
            What went wrong with groups that were cut alone before, by their members; new ones are added.
        """
        trials = list(_trials(groups))
        errors: dict[str, str] = {}
        if self.error(trials[-1]) is not None:
            new = [group for group in groups if group.members not in alone]
            found = _shape_errors(self.model, self.example, new)
            alone |= {group.members: found.get(group.name) for group in new}
            errors |= {group.name: reason for group in groups if (reason := alone[group.members])}
        for cuts in trials:
            left = [(group, kept) for group, kept in cuts if group.name not in errors]
            reason = self.error(left, itself=len(cuts) == len(groups))
            if reason is not None:
                errors |= _culprits(self, left, [], reason)[1]
        return {name: f"{CUT_TRIED} {reason}" for name, reason in errors.items()}

    def together(self, first: Group, second: Group, units: Sequence[int]) -> bool:
        """Whether two groups can be cut if unit `units[u]` of the second goes with unit u of the first."""
        kept = _kept(first.units, 0, 1)
        return self.error([(first, kept), (second, tuple(sorted(units[unit] for unit in kept)))]) is None

    def error(self, cuts: Cuts, *, itself: bool = True) -> str | None:
        """Keep only these units, also of the network itself; return what is wrong with the outputs, or None."""
        if not cuts:
            return None
        smaller, masked = light_copy(self.drawn), light_copy(self.drawn)
        try:
            cut(smaller, cuts)
            for group, units in cuts:
                _zero_inputs(masked, group, units)
            with torch.no_grad(), _comparable():
                with WithoutStatistics(self.statistics):
                    got = tensors(run(smaller, self.example))
                with WithoutStatistics(self.statistics):
                    expected = tensors(run(masked, self.example))
            reason = difference(got, expected)
            if reason is None and itself:
                own = light_copy(self.model)
                cut(own, cuts)
                seeded_outputs(own, self.example)
        except Exception as error:  # noqa: BLE001 - a wrong cut may raise anything
            return f"the forward pass failed: {first_line(error)}"
        return reason


def _trials(groups: Sequence[Group]) -> Iterator[Cuts]:
    """Yield cuts of some groups, each cut with and without each of its neighbours, then cuts of all groups."""
    bits = (min(len(groups), LARGEST_CYCLE) - 1).bit_length()
    for number in range(2 * bits):
        yield [
            (group, _kept(group.units, index, number))
            for index, group in enumerate(groups)
            if (index % LARGEST_CYCLE >> number // 2) % 2 == number % 2
        ]
    for number in range(2 * bits, 2 * bits + JOINT_TRIALS):
        yield [(group, _kept(group.units, index, number)) for index, group in enumerate(groups)]


def _kept(units: int, index: int, number: int) -> tuple[int, ...]:
    """Return the units that a group keeps in a trial: the first ones in the first trial, random ones afterwards."""
    share = KEPT_SHARES[(index + number) % len(KEPT_SHARES)]
    count = min(max(round(units * share), 1), units - 1)
    if not number:
        return tuple(range(count))
    random = torch.Generator().manual_seed(1000 * index + number)
    return tuple(sorted(torch.randperm(units, generator=random)[:count].tolist()))


def _culprits(trial: Trial, cuts: Cuts, passed: Cuts, reason: str) -> tuple[Cuts, dict[str, str]]:
    """Find the groups whose cuts fail, by bisection, each half together with the cuts that passed before."""
    if len(cuts) == 1:
        return passed, {cuts[0][0].name: reason}
    errors: dict[str, str] = {}
    half = len(cuts) // 2
    for part in (cuts[:half], cuts[half:]):
        wrong = trial.error([*passed, *part])
        if wrong is None:
            passed = [*passed, *part]
        else:
            passed, found = _culprits(trial, part, passed, wrong)
            errors |= found
    return passed, errors


def _shape_errors(model: nn.Module, example: Inputs, groups: Sequence[Group]) -> dict[str, str]:
    """Cut each group alone on meta tensors, which is fast; return what is wrong with the output shapes, by group."""
    errors: dict[str, str] = {}
    shape = moved(example, "meta")
    with contextlib.suppress(Exception), torch.no_grad():  # networks that need values cannot run on meta tensors
        whole = tensors(light_copy(model, "meta")(shape))
        for group in groups:
            try:
                smaller = light_copy(model, "meta")
                cut(smaller, [(group, tuple(range(group.units - 1)))])
                reason = shape_difference(tensors(smaller(shape)), whole)
            except Exception as error:  # noqa: BLE001 - a wrong cut may raise anything
                reason = f"the forward pass failed: {first_line(error)}"
            if reason:
                errors[group.name] = reason
    return errors


@contextlib.contextmanager
def _comparable() -> Iterator[None]:
    """Run attention so that fewer channels change nothing but what is summed over them.

    Torch divides products of queries and keys by the root of their channels, which only changes how sharp attention is.
    The fast path of torch's Transformer layers is one operation that hides their LayerNorms.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FixedScale():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _zero_inputs(model: nn.Module, group: Group, kept: Sequence[int]) -> None:
    """Let every layer read zeros for the units that are not kept."""
    removed = [unit for unit in range(group.units) if unit not in set(kept)]
    for member in group.members:
        if member.side not in {"in", "out"}:
            continue
        module = model.get_submodule(member.layer)
        positions = torch.tensor([position for unit in removed for position in member.positions[unit]])
        if member.side == "in":
            module.register_forward_pre_hook(
                lambda module, inputs, removed=positions: (_with_zeros(module, inputs[0], removed), *inputs[1:])
            )
        elif isinstance(module, KERNEL_LAYERS):  # no weight reads queries and keys; zeros add nothing to their product
            module.register_forward_hook(
                lambda module, _, output, removed=positions: _with_zeros(module, output, removed)
            )


def _with_zeros(module: nn.Module, values: Tensor, positions: Tensor) -> Tensor:
    return values.index_fill(channel_dimension(module, values.dim()), positions.to(values.device), 0)


def refuse(names: Iterable[str], order: Sequence[str], reason: str) -> tuple[Refusal, ...]:
    """Return a refusal with this reason for each of the names that is a layer."""
    return tuple(Refusal(name, reason) for name in dict.fromkeys(names) if name in order)
