"""What the layers of a network see, and what follows for their weights.

Legend: `G` groups of a convolution (1 for other layers), `O` output and `I` input channels of one group, `K` kernel
positions, `N` rows (examples times positions), `D` = I*K, or I where the kernel positions are pooled.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from spaces.network.cache import cached
from spaces.network.layers import CONVOLUTIONS, LAYER_TYPES, NORMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch.utils.hooks import RemovableHandle

MOST_ROWS = 16384  # rows beyond this change the moments by less than the damping does
MOST_COLUMNS = 1152  # 128 channels of 3x3; above it the kernel positions are pooled
DAMPING = 0.01  # of the mean diagonal, as in Frantar & Alistarh 2022 (arXiv:2208.11580)


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """First and second moment of the inputs of one layer, those of each group by themselves.

    Attributes
    ----------
    mean_GD
        Mean input, shape (G, D).
    second_GDD
        Damped mean outer product, shape (G, D, D).
    block
        How many neighbouring columns belong to one input channel: K, or 1 where the positions are pooled.
    """

    mean_GD: Tensor
    second_GDD: Tensor
    block: int

    @property
    def channels_GII(self) -> Tensor:  # noqa: N802 - the suffix names the dimensions
        """The second moment between channels, mean over the kernel positions, shape (G, I, I)."""
        groups, columns = self.mean_GD.shape
        size = columns // self.block
        blocks = self.second_GDD.reshape(groups, size, self.block, size, self.block)
        return blocks.diagonal(dim1=2, dim2=4).mean(-1)

    def without(self, gone: Iterable[int]) -> Moments:
        """Return the moments of the inputs that stay when these channels go, from every group equally many."""
        groups, columns = self.mean_GD.shape
        kept_GD = torch.ones(groups, columns // self.block, dtype=torch.bool, device=self.mean_GD.device)
        kept_GD.view(-1)[list(gone)] = False
        kept_GD = kept_GD.repeat_interleave(self.block, 1)
        mean = self.mean_GD[kept_GD].reshape(groups, -1)
        both = kept_GD[:, :, None] & kept_GD[:, None]
        return Moments(mean, self.second_GDD[both].reshape(groups, mean.shape[1], mean.shape[1]), self.block)


def inherit(model: nn.Module, smaller: nn.Module, gone: Mapping[str, Iterable[int]]) -> None:
    """Let what is left of a network take its moments from what that network saw.

    Parameters
    ----------
    model, smaller
        The network, and a copy of it that has lost channels.
    gone
        Which input channels each layer lost; the others lost none.
    """
    _heritage(smaller).append((model, gone))


def _heritage(model: nn.Module) -> list[tuple[nn.Module, Mapping[str, Iterable[int]]]]:
    return cached(model, "heritage", list)


def moments(model: nn.Module, example: Tensor, names: Iterable[str]) -> dict[str, Moments]:
    """Measure the inputs of the named layers on a batch, once a layer.

    Layers that read one channel a group are left out: it has no others to go together with. A network that was pruned
    is told from the one that it was: what stays is fitted to see what it saw, and nothing is run again.

    Parameters
    ----------
    model
        The network; it is not changed.
    example
        Calibration inputs, shape (B, ...).
    names
        Names of convolution or linear layers.
    """
    wanted = list(names)
    known: dict[str, Moments | None] = cached(model, ("moments", example), dict)
    missing = [name for name in dict.fromkeys(wanted) if name not in known]
    for before, gone in _heritage(model) if missing else ():
        had = moments(before, example, missing)
        known |= {name: had[name].without(gone.get(name, ())) for name in missing if name in had}
        missing = [name for name in missing if name not in known]
    if missing:
        known |= dict.fromkeys(missing) | _moments(model, example, missing)
    return {name: seen for name in wanted if (seen := known[name]) is not None}


def _moments(model: nn.Module, example: Tensor, names: Sequence[str]) -> dict[str, Moments]:
    sums: dict[str, tuple[int, Tensor, Tensor, int]] = {}

    def note(name: str, rows_GND: Tensor, block: int) -> None:
        count, total, products = rows_GND.shape[1], rows_GND.sum(1), rows_GND.transpose(1, 2) @ rows_GND
        if name in sums:  # a layer that is called again
            before = sums[name]
            count, total, products = count + before[0], total + before[1], products + before[2]
        sums[name] = count, total, products, block

    show_rows(model, example, names, note)
    found = {}
    for name, (count, total, products, block) in sums.items():
        second = products / count
        diagonal = second.diagonal(dim1=1, dim2=2)
        diagonal.add_(diagonal.mean(1, keepdim=True).clamp_min(1e-8) * DAMPING)
        found[name] = Moments(total / count, second, block)
    return found


def show_rows(
    model: nn.Module, example: Tensor, names: Iterable[str], note: Callable[[str, Tensor, int], None]
) -> None:
    """Run the model once and show the inputs of layers that mix channels, at every call, as `rows_of` gives them.

    Parameters
    ----------
    model, example
        The network, which is not changed, and inputs for it.
    names
        Names of convolution or linear layers; those that mix no channels are left out.
    note
        Called with the name, the rows, shape (G, N, D), which may be a view of what the network goes on with, and the
        block.
    """

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        return module.register_forward_pre_hook(lambda _, inputs: note(name, *rows_of(module, inputs[0].detach())))

    layers = {name: model.get_submodule(name) for name in names}
    handles = [watch(name, module) for name, module in layers.items() if _mixes(module)]
    try:
        forward_in_eval(model, example)
    finally:
        for handle in handles:
            handle.remove()


def _mixes(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, CONVOLUTIONS) and module.groups < module.in_channels)


def rows_of(module: nn.Module, inputs: Tensor) -> tuple[Tensor, int]:
    """Return the inputs as the kernel meets them, shape (G, N, D), and the block."""
    if not isinstance(module, CONVOLUTIONS):
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        return rows[:: max(1, len(rows) // MOST_ROWS)][None], 1
    size, groups = math.prod(module.kernel_size), module.groups
    space = inputs.dim() - 2
    if inputs.shape[1] * size > MOST_COLUMNS * math.sqrt(groups):  # no more numbers than of a dense layer
        rows = inputs.movedim(1, -1).reshape(-1, inputs.shape[1]).float()
        return _by_group(rows[:: max(1, len(rows) // MOST_ROWS)], groups), 1
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    around = module._reversed_padding_repeated_twice  # noqa: SLF001 - knows padding="same"
    padded = F.pad(inputs.float(), around, mode)
    for axis in range(space):
        reach = (module.kernel_size[axis] - 1) * module.dilation[axis] + 1
        padded = padded.unfold(2 + axis, reach, module.stride[axis])
    for axis, step in enumerate(module.dilation):  # the windows came last, one dimension each
        padded = padded[(slice(None),) * (2 + space + axis) + (slice(None, None, step),)]
    many = padded.shape[0] * math.prod(padded.shape[2 : 2 + space])
    skip = max(1, math.ceil((many / MOST_ROWS) ** (1 / space)))
    windows = padded[(slice(None), slice(None), *[slice(None, None, skip)] * space)]
    return _by_group(windows.movedim(1, 1 + space).reshape(-1, inputs.shape[1] * size), groups), size


def _by_group(rows: Tensor, groups: int) -> Tensor:
    return rows.reshape(len(rows), groups, -1).transpose(0, 1)


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


def inputs_of(model: nn.Module, example: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """Return some of the numbers that each of the layers reads, flat; what `reestimate` saw need not be run again."""
    seen: dict[str, list[Tensor]] = cached(model, ("inputs", example), dict)
    missing = {name: model.get_submodule(name) for name in names if name not in seen}
    if missing:
        with _noting(missing, seen):
            forward_in_eval(model, example)
    return {name: torch.cat(seen[name]) for name in names if name in seen}


@contextlib.contextmanager
def _noting(modules: Mapping[str, nn.Module], seen: dict[str, list[Tensor]]) -> Iterator[None]:
    """Note, of every call of a layer, some of the numbers that it reads."""

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: seen.setdefault(name, []).append(subsample(inputs[0]).clone())

    layers = {name: module for name, module in modules.items() if isinstance(module, LAYER_TYPES)}
    handles = [module.register_forward_pre_hook(note(name)) for name, module in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def subsample(values: Tensor, most: int = 16384) -> Tensor:
    """Return about `most` of the values, evenly spaced, as a flat view where that is possible."""
    flat = values.detach().flatten()
    return flat[:: max(1, len(flat) // most)]


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
    seen: dict[str, list[Tensor]] = cached(model, ("inputs", example), dict)
    seen.clear()
    with torch.no_grad(), _noting(dict(model.named_modules()), seen):
        for part in example.split(batch):
            if len(part) > 1:
                model(part)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, mode in modes.items():
        module.training = mode
