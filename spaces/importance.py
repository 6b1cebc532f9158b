"""In which order the channels of a group should go: three criteria, each one nested order that serves every ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from spaces.statistics import columns_of, moments
from spaces.surgery import TRANSPOSED

if TYPE_CHECKING:
    from spaces.anatomy import Group, Member
    from spaces.statistics import Moments


class Importance(Protocol):
    """Says which units of a group matter least."""

    def order(self, model: nn.Module, example: Tensor, group: Group) -> tuple[int, ...]:
        """Return all units of the group, the first to be removed first."""
        ...


@dataclass(frozen=True, slots=True)
class Magnitude:
    """The norm of all weights that a unit takes with it (Li et al. 2017, arXiv:1608.08710; Fang et al. 2023).

    Parameters
    ----------
    norm
        1 for L1, 2 for L2.
    """

    norm: int = 2

    def __post_init__(self) -> None:
        """Check the norm."""
        if self.norm not in {1, 2}:
            raise ValueError(f"norm must be 1 or 2, but got {self.norm}")

    def order(self, model: nn.Module, example: Tensor, group: Group) -> tuple[int, ...]:  # noqa: ARG002 - weights only
        """Return the units by the sum of their norms, each layer's share scaled to a mean of 1."""
        total = torch.zeros(group.units)
        for member in group.members:
            if member.side == "parameter":
                continue
            module = model.get_submodule(member.layer)
            weight = getattr(module, "weight", None)
            if weight is None or weight.dim() < 2:  # noqa: PLR2004 - a norm's scale says little about its channel
                continue
            side = 0 if (member.side == "out") != isinstance(module, TRANSPOSED) else 1
            width = weight.shape[side]
            powers = weight.detach().abs().float().pow(self.norm).transpose(0, side).flatten(1).sum(1).cpu()
            # the inputs of a grouped convolution are stored once for all groups
            share = torch.stack([powers[[p % width for p in at]].sum() for at in member.positions]).pow(1 / self.norm)
            total += share / share.mean().clamp_min(1e-12)
        return tuple(int(unit) for unit in total.argsort(stable=True))


@dataclass(frozen=True, slots=True)
class SecondOrder:
    """The loss in the consumers' outputs after a unit is gone and the rest is refitted, greedily unit by unit.

    This is optimal brain surgery on blocks, with the second moment of the consumer's inputs as the Hessian
    (Hassibi & Stork 1993; Frantar & Alistarh 2022, arXiv:2208.11580, §4). Groups whose consumers are all grouped
    convolutions, or that have none, as queries and keys, fall back to `Magnitude`.
    """

    def order(self, model: nn.Module, example: Tensor, group: Group) -> tuple[int, ...]:
        """Return the units in the order in which the least of them was removed again and again."""
        seen = moments(model, example, [member.layer for member in group.consumers])
        dense = [m for m in group.consumers if m.layer in seen and len(seen[m.layer].mean_GD) == 1]
        readers = [_Reader(model, member, seen[member.layer]) for member in dense]
        if not readers:
            return Magnitude().order(model, example, group)
        gone: list[int] = []
        for _ in range(group.units):
            scores = torch.stack([reader.losses() for reader in readers]).sum(0)
            scores[gone] = torch.inf
            unit = int(scores.argmin())
            gone.append(unit)
            for reader in readers:
                reader.remove(unit)
        return tuple(gone)


class _Reader:
    """A consumer of the group while its inputs go one unit after the other.

    Only the products W'W (D, D) are kept: they are all that the losses need, whatever the number of outputs. Double
    precision, since the subtractions of hundreds of removals add up.
    """

    def __init__(self, model: nn.Module, member: Member, seen: Moments) -> None:
        weight = columns_of(model.get_parameter(f"{member.layer}.weight").detach(), seen.block).double()
        second = seen.second_GDD[0].double()
        self.products = weight.T @ weight
        self.inverse = torch.linalg.inv(second)
        self.energy = (self.products * second).sum().clamp_min(1e-12)
        span = torch.arange(seen.block)
        positions = [torch.tensor(at, dtype=torch.long) for at in member.positions]
        self.columns = [(at[:, None] * seen.block + span).flatten() for at in positions]

    def losses(self) -> Tensor:
        """Return the relative loss of each unit, shape (units,); a removed unit's is meaningless."""
        if len({len(columns) for columns in self.columns}) == 1:
            lost = self._lost(torch.stack(self.columns))
        else:
            lost = torch.cat([self._lost(at[None]) for at in self.columns])
        return (lost / self.energy).float().cpu()

    def _lost(self, at: Tensor) -> Tensor:
        """Return the loss of each row of columns, shape (units,)."""
        block = self.inverse[at[:, :, None], at[:, None, :]]
        block = block + 1e-12 * torch.eye(at.shape[1], dtype=block.dtype, device=block.device)
        solved: Tensor = torch.linalg.solve(block, self.products[at[:, :, None], at[:, None, :]])
        return solved.diagonal(dim1=1, dim2=2).sum(1)

    def remove(self, unit: int) -> None:
        """Take the unit's columns out and let the others take over what they can."""
        at = self.columns[unit]
        if not len(at):
            return
        block = self.inverse[at][:, at]
        block = block + 1e-12 * torch.eye(len(at), dtype=block.dtype, device=block.device)
        rows = torch.linalg.solve(block, self.inverse[at])
        moved = self.products[:, at] @ rows
        self.products += rows.T @ (self.products[at][:, at] @ rows) - moved - moved.T
        self.inverse -= self.inverse[:, at] @ rows
        for matrix in (self.products, self.inverse):
            matrix[:, at] = 0
            matrix[at] = 0


@dataclass(frozen=True, slots=True)
class Taylor:
    """The squared first-order change of the log-likelihood when a unit's activation is set to zero.

    The Fisher form with labels drawn from the network itself, so that no labels are needed: the mean over the
    examples of (sum over positions of activation times gradient) squared (Theis et al. 2018, arXiv:1801.05787, §2.2).
    Groups without a consumer, as queries and keys, fall back to `Magnitude`.
    """

    def order(self, model: nn.Module, example: Tensor, group: Group) -> tuple[int, ...]:
        """Return the units by the sum of their Fisher scores over the consumers."""
        if not group.consumers:
            return Magnitude().order(model, example, group)
        total = torch.zeros(group.units)
        for member in group.consumers:
            scores = _fisher(model, example, member.layer)
            total += torch.stack([scores[list(at)].sum() for at in member.positions])
        return tuple(int(unit) for unit in total.argsort(stable=True))


def _fisher(model: nn.Module, example: Tensor, name: str) -> Tensor:
    """Return the score of every input channel of the layer, shape (I,)."""
    layer = model.get_submodule(name)
    kept: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # a copy in the graph, not a new leaf: the layer may be called again on what follows from this call
        watched = inputs[0].clone() if inputs[0].requires_grad else inputs[0].detach().requires_grad_(True)  # noqa: FBT003 - torch's own
        kept.append(watched)
        return (watched, *inputs[1:])

    handle = layer.register_forward_pre_hook(note)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.enable_grad():
            output = model(example).flatten(1)
            drawn = torch.multinomial(
                output.detach().softmax(1).cpu(), 1, generator=torch.Generator().manual_seed(0)
            ).to(output.device)
            likelihood = output.log_softmax(1).gather(1, drawn).sum()
            gradients = torch.autograd.grad(likelihood, kept)
    finally:
        handle.remove()
        for module, mode in modes.items():
            module.training = mode
    channel = -1 if isinstance(layer, nn.Linear) else 1
    total = sum(
        (value.detach() * gradient).movedim(channel, -1).reshape(len(value), -1, value.shape[channel]).sum(1)
        for value, gradient in zip(kept, gradients, strict=True)
    )
    assert isinstance(total, Tensor)
    return total.pow(2).mean(0).cpu()
