"""In which order the channels of a group should go: three criteria, each one nested order that serves every ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from spaces.axes.refit import columns_of
from spaces.dependency.trace import trace
from spaces.network.layers import TRANSPOSED
from spaces.network.statistics import moments

if TYPE_CHECKING:
    from spaces.network.anatomy import Group, Member
    from spaces.network.statistics import Moments


LAZY = 32  # removals that are worked off together; more make a removal slow, fewer the working off


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
        readers = [_Reader(model, member, seen) for member, seen in _dense_consumers(model, example, group)]
        if not readers:
            return Magnitude().order(model, example, group)
        gone: list[int] = []
        left = torch.arange(group.units)
        while len(left):
            stays = torch.ones(len(left), dtype=torch.bool)
            for _ in range(min(LAZY, len(left))):
                scores = torch.stack([reader.losses() for reader in readers]).sum(0)
                place = int(scores.masked_fill(~stays, torch.inf).argmin())
                stays[place] = False
                gone.append(int(left[place]))
                for reader in readers:
                    reader.remove(place)
            left = left[stays]
            for reader in readers:
                reader.settle(stays)
        return tuple(gone)


def _dense_consumers(model: nn.Module, example: Tensor, group: Group) -> list[tuple[Member, Moments]]:
    """Return the consumers that mix all of their inputs; all layers of the network are measured in one forward."""
    groups = (*trace(model, example).groups, group)
    seen = moments(model, example, [member.layer for other in groups for member in other.consumers])
    known = [(member, seen[member.layer]) for member in group.consumers if member.layer in seen]
    return [(member, its) for member, its in known if len(its.mean_GD) == 1 and any(member.positions)]


class _Reader:
    """A consumer of the group while its inputs go one unit after the other.

    Only the inverse H^-1 and the products W'W are kept, of the group's columns: they are all that the losses need,
    whatever the number of outputs. Removing columns a changes both by terms of low rank,

        H^-1 -= F' R            with F = H^-1[a], R = H^-1[a, a]^-1 F
        W'W  -= Y' R + R' Y     with Y = W'W[a] - W'W[a, a] R / 2

    which are put off until several can be subtracted in one pass over memory; until then only the blocks on the
    diagonal, one a unit, are up to date. Double precision, since the subtractions of hundreds of removals add up.

    Legend: `U` units, `B` columns of a unit, `C` = U*B.
    """

    def __init__(self, model: nn.Module, member: Member, seen: Moments) -> None:
        weight = columns_of(model.get_parameter(f"{member.layer}.weight").detach(), seen.block).double()
        second = seen.second_GDD[0].double()
        products = weight.T @ weight
        self.energy = (products * second).sum().clamp_min(1e-12)
        self.width = max(map(len, member.positions)) * seen.block
        at, free = [], len(second)  # a unit of fewer columns gets columns of its own that nothing depends on
        for positions in member.positions:
            own = [position * seen.block + offset for position in positions for offset in range(seen.block)]
            at += [*own, *range(free, free := free + self.width - len(own))]
        spare = free - len(second)
        eye = torch.eye(spare, dtype=second.dtype, device=second.device)
        self.inverse_CC = torch.block_diag(torch.linalg.inv(second), eye)[at][:, at]
        self.products_CC = torch.block_diag(products, 0 * eye)[at][:, at]
        self._look_anew()

    def _look_anew(self) -> None:
        width, count = self.width, len(self.inverse_CC) // self.width
        shape = count, width, count, width
        inverse, products = self.inverse_CC.reshape(shape), self.products_CC.reshape(shape)
        self.inverse_UBB = inverse.diagonal(dim1=0, dim2=2).movedim(-1, 0).contiguous()
        self.products_UBB = products.diagonal(dim1=0, dim2=2).movedim(-1, 0).contiguous()
        self.pending = self.inverse_CC.new_empty(3, min(LAZY, count) * width, count * width)  # F, R, Y
        self.removed = 0  # columns

    def losses(self) -> Tensor:
        """Return the relative loss of each unit, shape (U,); a removed unit's is meaningless."""
        solved: Tensor = torch.linalg.solve(self._solvable(self.inverse_UBB), self.products_UBB)
        return (solved.diagonal(dim1=1, dim2=2).sum(1) / self.energy).float().cpu()

    def _solvable(self, block: Tensor) -> Tensor:
        return block + 1e-12 * torch.eye(self.width, dtype=block.dtype, device=block.device)

    def remove(self, place: int) -> None:
        """Take the unit's columns out and let the others take over what they can."""
        width = self.width
        at = slice(place * width, (place + 1) * width)
        first, second, third = self.pending[:, : self.removed]
        own_BC = self.inverse_CC[at] - first[:, at].T @ second
        moved_BC = self.products_CC[at] - third[:, at].T @ second - second[:, at].T @ third
        rows_BC = torch.linalg.solve(self._solvable(own_BC[:, at]), own_BC)
        moved_BC -= moved_BC[:, at] @ rows_BC / 2
        for kept, new in zip(self.pending, (own_BC, rows_BC, moved_BC), strict=True):
            kept[self.removed : self.removed + width] = new
        self.removed += width
        own, rows, moved = (x.reshape(width, -1, width).transpose(0, 1) for x in (own_BC, rows_BC, moved_BC))
        self.inverse_UBB.baddbmm_(own.transpose(1, 2), rows, alpha=-1)
        both = moved.transpose(1, 2) @ rows
        self.products_UBB -= both + both.transpose(1, 2)
        self.inverse_UBB[place] = torch.eye(width)

    def settle(self, stays: Tensor) -> None:
        """Subtract what was put off, and keep only the units that stay."""
        at = stays.repeat_interleave(self.width).nonzero()[:, 0].to(self.inverse_CC.device)
        first, second, third = self.pending[:, : self.removed, at]
        self.inverse_CC = self.inverse_CC[at][:, at].addmm_(first.T, second, alpha=-1)
        self.products_CC = self.products_CC[at][:, at].addmm_(third.T, second, alpha=-1)
        self.products_CC.addmm_(second.T, third, alpha=-1)
        self._look_anew()


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
