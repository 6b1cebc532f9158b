"""Refit the weights of a layer by least squares after its inputs have changed.

Legend: as in `spaces.network.statistics`; `S` kept columns, `T` removed columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spaces.network.statistics import DAMPING, Moments, show_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from spaces.network.tensors import Inputs


def refit(module: nn.Module, seen: Moments, removed: Sequence[int]) -> None:
    """Refit in place the weights of the kept inputs, by least squares, before the other inputs are removed.

    With H the second moment of the inputs, the new weights are W[:, S] + W[:, T] H[T, S] H[S, S]^-1. With a bias the
    moments are centred, and the bias takes up the mean that is lost (He et al. 2017, arXiv:1707.06168, §3.1).

    Parameters
    ----------
    module
        A convolution or linear layer with all of its inputs.
    seen
        The moments of all of its inputs.
    removed
        The input channels that will be removed afterwards, the same number from every group.
    """
    weight = module.get_parameter("weight").detach()
    bias: Tensor | None = module.bias  # type: ignore[assignment]
    groups, columns = seen.mean_GD.shape
    lost_GD = torch.zeros(groups, columns // seen.block, dtype=torch.bool, device=weight.device)
    lost_GD.view(-1)[list(removed)] = True
    lost_GD = lost_GD.repeat_interleave(seen.block, 1)
    flat = columns_of(weight, seen.block)
    full = torch.zeros_like(flat)
    shares = zip(*(x.chunk(groups) for x in (flat, full)), lost_GD, seen.mean_GD, seen.second_GDD, strict=True)
    for index, (old, new, lost, mean, second) in enumerate(shares):
        centred = second if bias is None else second - torch.outer(mean, mean)
        new[:, ~lost] = old[:, ~lost] + _correction(old[:, lost], centred[lost][:, ~lost], centred[~lost][:, ~lost])
        if bias is not None:
            own = bias.data.chunk(groups)[index]
            own += ((old - new) @ mean).reshape(len(own), -1).sum(1)
    weight.copy_(weight_of(full, weight, seen.block))


def input_rows(model: nn.Module, example: Inputs, names: Iterable[str]) -> dict[str, tuple[Tensor, int]]:
    """Return a sample of the inputs of layers that mix channels, shape (G, N, D), with the block of their columns.

    Inputs of the same shape are sampled at the same positions, so that the rows of two networks correspond. Where a
    layer is called more than once, the first call counts.
    """
    found: dict[str, tuple[Tensor, int]] = {}

    def note(name: str, rows_GND: Tensor, block: int) -> None:
        if name not in found:
            found[name] = rows_GND.clone(), block  # later operations may overwrite the input in place

    show_rows(model, example, names, note)
    return found


def refit_to_new_inputs(module: nn.Module, before_GND: Tensor, after_GND: Tensor, block: int) -> None:
    """Refit the weights in place, by least squares, so that the new inputs give the old outputs.

    With x the inputs before and z after, the new weights are W E[x z^T] E[z z^T]^-1; with a bias the moments are
    centred.

    Parameters
    ----------
    module
        A convolution or linear layer.
    before_GND, after_GND
        Its inputs at the same positions, as `input_rows` returns them.
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


def _correction(weight_OT: Tensor, across_TS: Tensor, kept_SS: Tensor) -> Tensor:
    """Return W H[T, S] H[S, S]^-1; the linear system is solved for the smaller number of rows."""
    if len(weight_OT) < len(across_TS):
        solved: Tensor = torch.linalg.solve(kept_SS, weight_OT @ across_TS, left=False)
        return solved
    across: Tensor = torch.linalg.solve(kept_SS, across_TS, left=False)
    return weight_OT @ across


def columns_of(weight: Tensor, block: int) -> Tensor:
    """Return the weight as a matrix whose columns are those of `Moments` with this block."""
    outputs, inputs = weight.shape[:2]
    if block > 1 or weight[0, 0].numel() == 1:
        return weight.reshape(outputs, -1)
    return weight.reshape(outputs, inputs, -1).transpose(1, 2).reshape(-1, inputs)


def weight_of(columns: Tensor, like: Tensor, block: int) -> Tensor:
    """Invert `columns_of`: return the weight in the shape of `like`."""
    if block > 1 or like[0, 0].numel() == 1:
        return columns.reshape(like.shape)
    return columns.reshape(like.shape[0], -1, like.shape[1]).transpose(1, 2).reshape(like.shape)
