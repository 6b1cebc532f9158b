"""Importance: the order in which the units of a group are removed.

Each of the three criteria returns one order, and every pruning ratio removes a prefix of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from spaces.axes.refit import columns_of
from spaces.dependency.trace import trace
from spaces.network.layers import EMBEDDINGS, TRANSPOSED
from spaces.network.statistics import moments
from spaces.network.tensors import run, tensors

if TYPE_CHECKING:
    from spaces.network.anatomy import Group, Member
    from spaces.network.statistics import Moments
    from spaces.network.tensors import Inputs


# removals between two updates of the full matrices: with more, each removal takes longer; with fewer, the updates do
REMOVALS_PER_UPDATE = 32


class Importance(Protocol):
    """A criterion that says which units of a group matter least."""

    def order(self, model: nn.Module, example: Inputs, group: Group) -> tuple[int, ...]:
        """Return all units of the group in the order in which they are removed."""
        ...


@dataclass(frozen=True, slots=True)
class Magnitude:
    """The norm of all weights that are removed with a unit (Li et al. 2017, arXiv:1608.08710; Fang et al. 2023).

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

    def order(self, model: nn.Module, example: Inputs, group: Group) -> tuple[int, ...]:  # noqa: ARG002 - weights only
        """Return the units by the sum of their norms, smallest first; the norms of each layer are scaled to mean 1."""
        total = torch.zeros(group.units)
        for member in group.members:
            if member.side not in {"in", "out"}:
                continue
            module = model.get_submodule(member.layer)
            weight = getattr(module, "weight", None)
            if weight is None or weight.dim() < 2:  # noqa: PLR2004 - the scale of a norm says little about its channel
                continue
            side = 0 if (member.side == "out") != isinstance(module, (*TRANSPOSED, *EMBEDDINGS)) else 1
            width = weight.shape[side]
            powers = weight.detach().abs().float().pow(self.norm).transpose(0, side).flatten(1).sum(1).cpu()
            # the weight of a grouped convolution has one index for the inputs of all groups, hence `% width`
            norms = torch.stack([powers[[p % width for p in at]].sum() for at in member.positions]).pow(1 / self.norm)
            total += norms / norms.mean().clamp_min(1e-12)
        return tuple(int(unit) for unit in total.argsort(stable=True))


@dataclass(frozen=True, slots=True)
class SecondOrder:
    """The error of the consumers' outputs after a unit is removed and the others are refitted, greedily unit by unit.

    This is the optimal brain surgeon on blocks, with the second moment of the consumer's inputs as the Hessian
    (Hassibi & Stork 1993; Frantar & Alistarh 2022, arXiv:2208.11580, §4). Groups without consumers, such as queries and
    keys, and groups whose consumers are all grouped convolutions fall back to `Magnitude`.
    """

    def order(self, model: nn.Module, example: Inputs, group: Group) -> tuple[int, ...]:
        """Return the units in the order in which a greedy search removes them."""
        consumers = [_Consumer(model, member, seen) for member, seen in _dense_consumers(model, example, group)]
        if not consumers:
            return Magnitude().order(model, example, group)
        removed: list[int] = []
        left = torch.arange(group.units)
        while len(left):
            kept = torch.ones(len(left), dtype=torch.bool)
            for _ in range(min(REMOVALS_PER_UPDATE, len(left))):
                losses = torch.stack([consumer.losses() for consumer in consumers]).sum(0)
                place = int(losses.masked_fill(~kept, torch.inf).argmin())
                kept[place] = False
                removed.append(int(left[place]))
                for consumer in consumers:
                    consumer.remove(place)
            left = left[kept]
            for consumer in consumers:
                consumer.apply_pending(kept)
        return tuple(removed)


def _dense_consumers(model: nn.Module, example: Inputs, group: Group) -> list[tuple[Member, Moments]]:
    """Return the consumers that mix all of their inputs, with the moments of these inputs.

    The moments of all consumers of the network are measured in the same forward pass, for the other groups.
    """
    groups = (*trace(model, example).groups, group)
    seen = moments(model, example, [member.layer for other in groups for member in other.consumers])
    known = [(member, seen[member.layer]) for member in group.consumers if member.layer in seen]
    return [(member, inputs) for member, inputs in known if len(inputs.mean_GD) == 1 and any(member.positions)]


class _Consumer:
    """A consumer of a group while the units of its inputs are removed one after the other.

    It holds only the inverse H^-1 and the products W'W for the columns of the group: the losses depend on nothing else,
    whatever the number of outputs. Removing columns a changes both by terms of low rank,

        H^-1 -= F' R            with F = H^-1[a], R = H^-1[a, a]^-1 F
        W'W  -= Y' R + R' Y     with Y = W'W[a] - W'W[a, a] R / 2

    These terms are kept pending until several are subtracted in one pass over memory; until then only the diagonal
    blocks, one for each unit, are up to date. Double precision keeps the errors of hundreds of removals small.

    Legend: `U` units, `B` columns of a unit, `C` = U*B.
    """

    def __init__(self, model: nn.Module, member: Member, seen: Moments) -> None:
        weight = columns_of(model.get_parameter(f"{member.layer}.weight").detach(), seen.block).double()
        second = seen.second_GDD[0].double()
        products = weight.T @ weight
        self.energy = (products * second).sum().clamp_min(1e-12)
        self.width = max(map(len, member.positions)) * seen.block
        at, end = [], len(second)  # units with fewer columns are padded with columns that do not affect the losses
        for positions in member.positions:
            own = [position * seen.block + offset for position in positions for offset in range(seen.block)]
            at += [*own, *range(end, end := end + self.width - len(own))]
        padding = end - len(second)
        eye = torch.eye(padding, dtype=second.dtype, device=second.device)
        self.inverse_CC = torch.block_diag(torch.linalg.inv(second), eye)[at][:, at]
        self.products_CC = torch.block_diag(products, 0 * eye)[at][:, at]
        self._copy_diagonal_blocks()

    def _copy_diagonal_blocks(self) -> None:
        """Copy the diagonal blocks from the full matrices, and start without pending terms."""
        width, count = self.width, len(self.inverse_CC) // self.width
        shape = count, width, count, width
        inverse, products = self.inverse_CC.reshape(shape), self.products_CC.reshape(shape)
        self.inverse_UBB = inverse.diagonal(dim1=0, dim2=2).movedim(-1, 0).contiguous()
        self.products_UBB = products.diagonal(dim1=0, dim2=2).movedim(-1, 0).contiguous()
        self.pending = self.inverse_CC.new_empty(3, min(REMOVALS_PER_UPDATE, count) * width, count * width)  # F, R, Y
        self.pending_columns = 0

    def losses(self) -> Tensor:
        """Return the relative loss of each unit, shape (U,); the losses of removed units are meaningless."""
        solved: Tensor = torch.linalg.solve(self._damped(self.inverse_UBB), self.products_UBB)
        return (solved.diagonal(dim1=1, dim2=2).sum(1) / self.energy).float().cpu()

    def _damped(self, block: Tensor) -> Tensor:
        return block + 1e-12 * torch.eye(self.width, dtype=block.dtype, device=block.device)

    def remove(self, place: int) -> None:
        """Remove the columns of a unit and refit the others; the full matrices are updated later."""
        width = self.width
        at = slice(place * width, (place + 1) * width)
        f, r, y = self.pending[:, : self.pending_columns]
        f_BC = self.inverse_CC[at] - f[:, at].T @ r
        y_BC = self.products_CC[at] - y[:, at].T @ r - r[:, at].T @ y
        r_BC = torch.linalg.solve(self._damped(f_BC[:, at]), f_BC)
        y_BC -= y_BC[:, at] @ r_BC / 2
        for terms, new in zip(self.pending, (f_BC, r_BC, y_BC), strict=True):
            terms[self.pending_columns : self.pending_columns + width] = new
        self.pending_columns += width
        f_UBB, r_UBB, y_UBB = (x.reshape(width, -1, width).transpose(0, 1) for x in (f_BC, r_BC, y_BC))
        self.inverse_UBB.baddbmm_(f_UBB.transpose(1, 2), r_UBB, alpha=-1)
        change_UBB = y_UBB.transpose(1, 2) @ r_UBB
        self.products_UBB -= change_UBB + change_UBB.transpose(1, 2)
        self.inverse_UBB[place] = torch.eye(width)

    def apply_pending(self, kept: Tensor) -> None:
        """Subtract the pending terms from the full matrices, and drop all units but the kept ones, a mask (U,)."""
        at = kept.repeat_interleave(self.width).nonzero()[:, 0].to(self.inverse_CC.device)
        f, r, y = self.pending[:, : self.pending_columns, at]
        self.inverse_CC = self.inverse_CC[at][:, at].addmm_(f.T, r, alpha=-1)
        self.products_CC = self.products_CC[at][:, at].addmm_(y.T, r, alpha=-1)
        self.products_CC.addmm_(r.T, y, alpha=-1)
        self._copy_diagonal_blocks()


@dataclass(frozen=True, slots=True)
class Taylor:
    """The squared first-order change of the log-likelihood when the activation of a unit is set to zero.

    This is the Fisher form, with labels that are drawn from the network itself, so that no labels are needed: the mean
    over examples of (sum over positions of activation times gradient) squared (Theis et al. 2018, arXiv:1801.05787,
    §2.2). Groups without consumers, such as queries and keys, fall back to `Magnitude`.
    """

    def order(self, model: nn.Module, example: Inputs, group: Group) -> tuple[int, ...]:
        """Return the units by the sum of their Fisher scores over the consumers, smallest first."""
        if not group.consumers:
            return Magnitude().order(model, example, group)
        total = torch.zeros(group.units)
        for member in group.consumers:
            scores = _fisher(model, example, member.layer)
            total += torch.stack([scores[list(at)].sum() for at in member.positions])
        return tuple(int(unit) for unit in total.argsort(stable=True))


def _fisher(model: nn.Module, example: Inputs, name: str) -> Tensor:
    """Return the Fisher score of every input channel of the layer, shape (I,), with `I` input channels."""
    layer = model.get_submodule(name)
    activations: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # a copy in the graph, not a new leaf: a later call of the layer may depend on this one
        watched = inputs[0].clone() if inputs[0].requires_grad else inputs[0].detach().requires_grad_(True)  # noqa: FBT003 - torch's own
        activations.append(watched)
        return (watched, *inputs[1:])

    handle = layer.register_forward_pre_hook(note)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.enable_grad():
            output = torch.cat([x.flatten(1) for x in tensors(run(model, example)) if x.is_floating_point()], 1)
            labels = torch.multinomial(
                output.detach().softmax(1).cpu(), 1, generator=torch.Generator().manual_seed(0)
            ).to(output.device)
            log_likelihood = output.log_softmax(1).gather(1, labels).sum()
            gradients = torch.autograd.grad(log_likelihood, activations)
    finally:
        handle.remove()
        for module, mode in modes.items():
            module.training = mode
    channel = -1 if isinstance(layer, nn.Linear) else 1
    total = sum(
        (value.detach() * gradient).movedim(channel, -1).reshape(len(value), -1, value.shape[channel]).sum(1)
        for value, gradient in zip(activations, gradients, strict=True)
    )
    assert isinstance(total, Tensor)
    return total.pow(2).mean(0).cpu()
