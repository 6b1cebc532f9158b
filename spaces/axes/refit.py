"""New weights for a layer whose inputs have changed, by least squares.

Legend: as in `spaces.network.statistics`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spaces.network.statistics import DAMPING, Moments, show_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def refit(module: nn.Module, seen: Moments, gone: Sequence[int]) -> None:
    """Set in place the weights on the inputs that stay to the least-squares best, given that the others go.

    With inputs of second moment H, kept columns S and columns T that go, it is W[:, S] + W[:, T] H[T, S] H[S, S]^-1.
    With a bias the moments are centred and the bias takes up what the mean loses (He et al. 2017, arXiv:1707.06168,
    §3.1).

    Parameters
    ----------
    module
        A convolution or linear layer with all of its inputs.
    seen
        What it sees with all of its inputs.
    gone
        The input channels that will be removed afterwards, from every group equally many.
    """
    weight = module.get_parameter("weight").detach()
    bias: Tensor | None = module.bias  # type: ignore[assignment]
    groups, columns = seen.mean_GD.shape
    lost_GD = torch.zeros(groups, columns // seen.block, dtype=torch.bool, device=weight.device)
    lost_GD.view(-1)[list(gone)] = True
    lost_GD = lost_GD.repeat_interleave(seen.block, 1)
    flat = columns_of(weight, seen.block)
    full = torch.zeros_like(flat)
    shares = zip(*(x.chunk(groups) for x in (flat, full)), lost_GD, seen.mean_GD, seen.second_GDD, strict=True)
    for index, (old, new, lost, mean, second) in enumerate(shares):
        centred = second if bias is None else second - torch.outer(mean, mean)
        new[:, ~lost] = old[:, ~lost] + _taken_over(old[:, lost], centred[lost][:, ~lost], centred[~lost][:, ~lost])
        if bias is not None:
            own = bias.data.chunk(groups)[index]
            own += ((old - new) @ mean).reshape(len(own), -1).sum(1)
    weight.copy_(weight_of(full, weight, seen.block))


def readers_rows(model: nn.Module, example: Tensor, names: Iterable[str]) -> dict[str, tuple[Tensor, int]]:
    """Return some inputs of layers that mix channels, as their kernels meet them, shape (G, N, D), and the block.

    The same places are taken of inputs of the same shape. Of a layer that is called more than once, the first call.
    """
    found: dict[str, tuple[Tensor, int]] = {}

    def note(name: str, rows_GND: Tensor, block: int) -> None:
        if name not in found:
            found[name] = rows_GND.clone(), block  # the network may write into what it read

    show_rows(model, example, names, note)
    return found


def readjust(module: nn.Module, before_GND: Tensor, after_GND: Tensor, block: int) -> None:
    """Set in place the weights to the least-squares best, that from other inputs the outputs become what they were.

    With inputs x before and z after it is W E[x z^T] E[z z^T]^-1; with a bias the moments are centred.

    Parameters
    ----------
    module
        A convolution or linear layer.
    before_GND, after_GND
        Its inputs at the same places, as from `readers_rows`.
    block
        See `Moments`.
    """
    weight = module.get_parameter("weight").detach()
    bias: Tensor | None = module.bias  # type: ignore[assignment]
    flat = columns_of(weight, block)
    groups, rows = before_GND.shape[:2]
    means = before_GND.mean(1), after_GND.mean(1)
    parts = []
    for index, (old, before, after) in enumerate(zip(flat.chunk(groups), before_GND, after_GND, strict=True)):
        seen = [x if bias is None else x - mean[index] for x, mean in zip((before, after), means, strict=True)]
        second = seen[1].T @ seen[1] / rows
        second.diagonal().add_(second.diagonal().mean().clamp_min(1e-8) * DAMPING)
        new: Tensor = torch.linalg.solve(second, old @ (seen[0].T @ seen[1] / rows), left=False)
        parts.append(new)
        if bias is not None:
            own = bias.data.chunk(groups)[index]
            own += (old @ means[0][index] - new @ means[1][index]).reshape(len(own), -1).sum(1)
    weight.copy_(weight_of(torch.cat(parts), weight, block))


def _taken_over(weight_OT: Tensor, across_TS: Tensor, kept_SS: Tensor) -> Tensor:
    """Return W H[T, S] H[S, S]^-1, solved for the smaller number of rows."""
    if len(weight_OT) < len(across_TS):
        solved: Tensor = torch.linalg.solve(kept_SS, weight_OT @ across_TS, left=False)
        return solved
    across: Tensor = torch.linalg.solve(kept_SS, across_TS, left=False)
    return weight_OT @ across


def columns_of(weight: Tensor, block: int) -> Tensor:
    """Return the weight as a matrix whose columns are those of `Moments` with that block."""
    outputs, inputs = weight.shape[:2]
    if block > 1 or weight[0, 0].numel() == 1:
        return weight.reshape(outputs, -1)
    return weight.reshape(outputs, inputs, -1).transpose(1, 2).reshape(-1, inputs)


def weight_of(columns: Tensor, like: Tensor, block: int) -> Tensor:
    """Undo `columns_of` into the shape of `like`."""
    if block > 1 or like[0, 0].numel() == 1:
        return columns.reshape(like.shape)
    return columns.reshape(like.shape[0], -1, like.shape[1]).transpose(1, 2).reshape(like.shape)
