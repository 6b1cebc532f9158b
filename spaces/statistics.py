"""What the layers of a network see, and what follows for their weights.

Legend: `O` output channels, `I` input channels, `K` kernel positions, `N` rows (examples times positions),
`D` = I*K, or I where the kernel positions are pooled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from spaces.memory import remembered
from spaces.surgery import CONVOLUTIONS, NORMS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch.utils.hooks import RemovableHandle

MOST_ROWS = 16384  # rows beyond this change the moments by less than the damping does
MOST_COLUMNS = 1152  # 128 channels of 3x3; above it the kernel positions are pooled
DAMPING = 0.01  # of the mean diagonal, as in Frantar & Alistarh 2022 (arXiv:2208.11580)


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """First and second moment of the inputs of one layer.

    Attributes
    ----------
    mean_D
        Mean input, shape (D,).
    second_DD
        Damped mean outer product, shape (D, D).
    block
        How many neighbouring columns belong to one input channel: K, or 1 where the positions are pooled.
    """

    mean_D: Tensor
    second_DD: Tensor
    block: int

    @property
    def channels_II(self) -> Tensor:  # noqa: N802 - the suffix names the dimensions
        """The second moment between channels, mean over the kernel positions, shape (I, I)."""
        size = len(self.mean_D) // self.block
        blocks = self.second_DD.reshape(size, self.block, size, self.block)
        return blocks.diagonal(dim1=1, dim2=3).mean(-1)


def moments(model: nn.Module, example: Tensor, names: Iterable[str]) -> dict[str, Moments]:
    """Measure the inputs of the named layers on a batch, once a model; grouped convolutions are left out.

    Parameters
    ----------
    model
        The network; it is not changed.
    example
        Calibration inputs, shape (B, ...).
    names
        Names of convolution or linear layers.
    """
    wanted = tuple(names)
    return remembered(model, ("moments", wanted, example), lambda: _moments(model, example, wanted))


def _moments(model: nn.Module, example: Tensor, names: Sequence[str]) -> dict[str, Moments]:
    sums: dict[str, tuple[int, Tensor, Tensor, int]] = {}

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows, block = _rows(module, inputs[0].detach())
            count, total, products = len(rows), rows.sum(0), rows.T @ rows
            if name in sums:  # a layer that is called again
                before = sums[name]
                count, total, products = count + before[0], total + before[1], products + before[2]
            sums[name] = count, total, products, block

        return module.register_forward_pre_hook(note)

    layers = {name: model.get_submodule(name) for name in names}
    handles = [watch(name, module) for name, module in layers.items() if _dense(module)]
    try:
        forward_in_eval(model, example)
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for name, (count, total, products, block) in sums.items():
        second = products / count
        second.diagonal().add_(second.diagonal().mean().clamp_min(1e-8) * DAMPING)
        found[name] = Moments(total / count, second, block)
    return found


def _dense(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, CONVOLUTIONS) and module.groups == 1)


def _rows(module: nn.Module, inputs: Tensor) -> tuple[Tensor, int]:
    """Return the inputs as the kernel meets them, shape (N, D), and the block."""
    if not isinstance(module, CONVOLUTIONS):
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        return rows[:: max(1, len(rows) // MOST_ROWS)], 1
    size = math.prod(module.kernel_size)
    space = inputs.dim() - 2
    if inputs.shape[1] * size > MOST_COLUMNS:
        rows = inputs.movedim(1, -1).reshape(-1, inputs.shape[1]).float()
        return rows[:: max(1, len(rows) // MOST_ROWS)], 1
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    around = module._reversed_padding_repeated_twice  # noqa: SLF001 - knows padding="same"
    padded = F.pad(inputs.float(), around, mode)
    for axis in range(space):
        reach = (module.kernel_size[axis] - 1) * module.dilation[axis] + 1
        padded = padded.unfold(2 + axis, reach, module.stride[axis])
    for axis in range(space):  # the windows came last, one dimension each
        each = torch.arange(0, padded.shape[2 + space + axis], module.dilation[axis], device=padded.device)
        padded = padded.index_select(2 + space + axis, each)
    many = padded.shape[0] * math.prod(padded.shape[2 : 2 + space])
    skip = max(1, math.ceil((many / MOST_ROWS) ** (1 / space)))
    windows = padded[(slice(None), slice(None), *[slice(None, None, skip)] * space)]
    return windows.movedim(1, 1 + space).reshape(-1, inputs.shape[1] * size), size


def forward_in_eval(model: nn.Module, example: Tensor) -> None:
    """Run the model once without gradients in evaluation mode; its mode is put back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            model(example)
    finally:
        for module, mode in modes.items():
            module.training = mode


def refit(module: nn.Module, seen: Moments, gone: Sequence[int]) -> None:
    """Set in place the weights on the inputs that stay to the least-squares best, given that the others go.

    With inputs x of second moment H, the best W' on the kept columns S solves W' H[S, S] = W H[:, S]; with a bias the
    moments are centred and the bias takes up what the mean loses (He et al. 2017, arXiv:1707.06168, §3.1).

    Parameters
    ----------
    module
        A dense convolution or linear layer with all of its inputs.
    seen
        What it sees with all of its inputs.
    gone
        The input channels that will be removed afterwards.
    """
    weight = module.get_parameter("weight").detach()
    bias: Tensor | None = module.bias  # type: ignore[assignment]
    kept = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    kept[list(gone)] = False
    columns = kept.repeat_interleave(seen.block)
    flat = columns_of(weight, seen.block)
    mean, second = seen.mean_D, seen.second_DD
    if bias is not None:
        second = second - torch.outer(mean, mean)
    wanted = flat @ second[:, columns]
    new = torch.linalg.solve(second[columns][:, columns], wanted, left=False)
    if bias is not None:
        shift = flat @ mean - new @ mean[columns]
        bias.data += shift.reshape(len(bias), -1).sum(1)
    full = torch.zeros_like(flat)
    full[:, columns] = new
    weight.copy_(weight_of(full, weight, seen.block))


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


def reestimate(model: nn.Module, example: Tensor, batch: int = 256) -> None:
    """Set in place the running statistics of every BatchNorm to those of the example; without one, do nothing.

    After a layer upstream has changed, the old statistics are wrong, and no score of the network means anything
    before they are put right (Li et al. 2020, EagleEye, arXiv:2007.02491).
    """
    norms = [m for m in model.modules() if isinstance(m, NORMS) and m.track_running_stats]
    if not norms or len(example) < 2:  # noqa: PLR2004 - one example has no variance
        return
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches
        norm.train()
    with torch.no_grad():
        for part in example.split(batch):
            if len(part) > 1:
                model(part)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, mode in modes.items():
        module.training = mode
