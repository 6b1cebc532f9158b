"""Statistics of the inputs of layers: their moments, samples of them, and running statistics of norms.

Legend: `G` groups of a convolution (1 for other layers), `O` output and `I` input channels of one group, `K` kernel
positions, `N` rows (examples times positions), `D` columns: I*K, or I where the kernel positions are pooled.
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
from spaces.network.layers import CHANNEL_NORMS, CONVOLUTIONS, LAYER_TYPES, computes_as_torch
from spaces.network.tensors import count_of, identity_of, run, some

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch.utils.hooks import RemovableHandle

    from spaces.network.tensors import Inputs

MOST_ROWS = 16384  # rows that moments are computed from; more would change them by less than the damping does
MOST_COLUMNS = 1152  # columns: 128 channels of 3x3 kernels; above it the kernel positions are pooled
DAMPING = 0.01  # share of the mean diagonal added to it, as in Frantar & Alistarh 2022 (arXiv:2208.11580)


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """First and second moments of the inputs of one layer, separately for each group.

    Attributes
    ----------
    mean_GD
        Mean input, shape (G, D).
    second_GDD
        Damped mean outer product, shape (G, D, D).
    block
        Number of neighbouring columns that belong to one input channel: K, or 1 where kernel positions are pooled.
    """

    mean_GD: Tensor
    second_GDD: Tensor
    block: int

    @property
    def channels_GII(self) -> Tensor:  # noqa: N802 - the suffix names the dimensions
        """Second moment between channels, averaged over the kernel positions, shape (G, I, I)."""
        groups, columns = self.mean_GD.shape
        size = columns // self.block
        blocks = self.second_GDD.reshape(groups, size, self.block, size, self.block)
        return blocks.diagonal(dim1=2, dim2=4).mean(-1)

    def without(self, removed: Iterable[int]) -> Moments:
        """Return the moments of the inputs that are left without these channels, the same number from every group."""
        groups, columns = self.mean_GD.shape
        kept_GD = torch.ones(groups, columns // self.block, dtype=torch.bool, device=self.mean_GD.device)
        kept_GD.view(-1)[list(removed)] = False
        kept_GD = kept_GD.repeat_interleave(self.block, 1)
        mean = self.mean_GD[kept_GD].reshape(groups, -1)
        kept_GDD = kept_GD[:, :, None] & kept_GD[:, None]
        return Moments(mean, self.second_GDD[kept_GDD].reshape(groups, mean.shape[1], mean.shape[1]), self.block)


def inherit(model: nn.Module, smaller: nn.Module, removed: Mapping[str, Iterable[int]]) -> None:
    """Let a pruned copy derive its moments from those of the original network.

    Parameters
    ----------
    model, smaller
        The network, and a pruned copy of it.
    removed
        The input channels that each layer lost; layers that are not listed lost none.
    """
    _originals(smaller).append((model, removed))


def _originals(model: nn.Module) -> list[tuple[nn.Module, Mapping[str, Iterable[int]]]]:
    return cached(model, "originals", list)


def moments(model: nn.Module, example: Inputs, names: Iterable[str]) -> dict[str, Moments]:
    """Measure the moments of the inputs of the named layers on a batch, once for each layer.

    Layers that read one channel per group are omitted: they mix no channels. The moments of a pruned network are
    derived from those of the original network, without running it: its kept layers are fitted to the original inputs.

    Parameters
    ----------
    model
        The network; it is not changed.
    example
        Calibration inputs, shape (B, ...).
    names
        Names of convolution or linear layers.
    """
    requested = list(names)
    known: dict[str, Moments | None] = cached(model, ("moments", identity_of(example)), dict)
    missing = [name for name in dict.fromkeys(requested) if name not in known]
    for original, removed in _originals(model) if missing else ():
        inherited = moments(original, example, missing)
        known |= {name: inherited[name].without(removed.get(name, ())) for name in missing if name in inherited}
        missing = [name for name in missing if name not in known]
    if missing:
        known |= dict.fromkeys(missing) | _measure_moments(model, example, missing)
    return {name: found for name in requested if (found := known[name]) is not None}


def _measure_moments(model: nn.Module, example: Inputs, names: Sequence[str]) -> dict[str, Moments]:
    sums: dict[str, tuple[int, Tensor, Tensor, int]] = {}

    def note(name: str, rows_GND: Tensor, block: int) -> None:
        count, total, products = rows_GND.shape[1], rows_GND.sum(1), rows_GND.transpose(1, 2) @ rows_GND
        if name in sums:  # the layer was called before
            earlier = sums[name]
            count, total, products = count + earlier[0], total + earlier[1], products + earlier[2]
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
    model: nn.Module, example: Inputs, names: Iterable[str], note: Callable[[str, Tensor, int], None]
) -> None:
    """Run the model once and pass the inputs of layers that mix channels, at every call, to `note`.

    Parameters
    ----------
    model, example
        The network, which is not changed, and inputs for it.
    names
        Names of convolution or linear layers; those that mix no channels are omitted.
    note
        Called with the name, the rows, shape (G, N, D), and the block, as `rows_of` returns them. The rows may be a
        view of a tensor that the network still uses.
    """

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        return module.register_forward_pre_hook(lambda _, inputs: note(name, *rows_of(module, inputs[0].detach())))

    layers = {name: model.get_submodule(name) for name in names}
    handles = [watch(name, module) for name, module in layers.items() if _mixes_channels(module)]
    try:
        forward_in_eval(model, example)
    finally:
        for handle in handles:
            handle.remove()


def _mixes_channels(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, CONVOLUTIONS) and module.groups < module.in_channels)


def rows_of(module: nn.Module, inputs: Tensor) -> tuple[Tensor, int]:
    """Return the inputs of a layer, one row for each kernel application, shape (G, N, D), and the block."""
    if not isinstance(module, CONVOLUTIONS):
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        return rows[:: even_stride(len(rows), MOST_ROWS)][None], 1
    size, groups = math.prod(module.kernel_size), module.groups
    space = inputs.dim() - 2
    too_many = inputs.shape[1] * size > MOST_COLUMNS * math.sqrt(groups)  # bounds G * D * D by MOST_COLUMNS squared
    if too_many or not computes_as_torch(module):  # a class of its own may pad its inputs, so the windows are unknown
        rows = inputs.movedim(1, -1).reshape(-1, inputs.shape[1]).float()
        return _by_group(rows[:: even_stride(len(rows), MOST_ROWS)], groups), 1
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padding = module._reversed_padding_repeated_twice  # noqa: SLF001 - handles padding="same"
    padded = F.pad(inputs.float(), padding, mode)
    for axis in range(space):
        extent = (module.kernel_size[axis] - 1) * module.dilation[axis] + 1
        padded = padded.unfold(2 + axis, extent, module.stride[axis])
    for axis, step in enumerate(module.dilation):  # `unfold` appended the dimensions of the windows
        padded = padded[(slice(None),) * (2 + space + axis) + (slice(None, None, step),)]
    row_count = padded.shape[0] * math.prod(padded.shape[2 : 2 + space])
    skip = max(1, math.ceil((row_count / MOST_ROWS) ** (1 / space)))
    windows = padded[(slice(None), slice(None), *[slice(None, None, skip)] * space)]
    return _by_group(windows.movedim(1, 1 + space).reshape(-1, inputs.shape[1] * size), groups), size


def _by_group(rows: Tensor, groups: int) -> Tensor:
    return rows.reshape(len(rows), groups, -1).transpose(0, 1)


def forward_in_eval(model: nn.Module, example: Inputs) -> None:
    """Run the model once in evaluation mode without gradients, then restore its mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            run(model, example)
    finally:
        for module, mode in modes.items():
            module.training = mode


def inputs_of(model: nn.Module, example: Inputs, names: Iterable[str]) -> dict[str, Tensor]:
    """Return a flat sample of the inputs of each layer; samples that `reestimate` took are reused."""
    seen: dict[str, list[Tensor]] = cached(model, ("inputs", identity_of(example)), dict)
    missing = {name: model.get_submodule(name) for name in names if name not in seen}
    if missing:
        with _sampling_inputs(missing, seen):
            forward_in_eval(model, example)
    return {name: torch.cat(seen[name]) for name in names if name in seen}


@contextlib.contextmanager
def _sampling_inputs(modules: Mapping[str, nn.Module], seen: dict[str, list[Tensor]]) -> Iterator[None]:
    """Add a sample of the inputs of a layer to `seen` at every call."""

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
    """Return about `most` values, evenly spaced, as a flat view where possible."""
    flat = values.detach().flatten()
    return flat[:: even_stride(len(flat), most)]


def even_stride(count: int, most: int) -> int:
    """Return the distance between about `most` of `count` values, without a common divisor with the count.

    With one, the values of a few columns of all images would be taken, such as the dark ones at the left edge.
    """
    wanted = max(1, count // most)
    nearest = sorted(range(1, 2 * wanted + 1), key=lambda stride: abs(stride - wanted))  # 1 has none with any count
    return next(stride for stride in nearest if math.gcd(stride, count) == 1)


def reestimate(model: nn.Module, example: Inputs, batch: int = 256) -> None:
    """Set the running statistics of every BatchNorm to those of the example, in place; do nothing if there is none.

    After an earlier layer has changed, the old statistics are wrong, and scores of the network are meaningless until
    they are estimated again (Li et al. 2020, EagleEye, arXiv:2007.02491).
    """
    norms = [m for m in model.modules() if isinstance(m, CHANNEL_NORMS) and m.track_running_stats]
    if not norms or count_of(example) < 2:  # noqa: PLR2004 - one example has no variance
        return
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # None: the mean over all batches
        norm.train()
    seen: dict[str, list[Tensor]] = cached(model, ("inputs", identity_of(example)), dict)
    seen.clear()
    with torch.no_grad(), _sampling_inputs(dict(model.named_modules()), seen):
        for start in range(0, count_of(example) - 1, batch):  # a last batch of one example has no variance
            run(model, some(example, slice(start, start + batch)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, mode in modes.items():
        module.training = mode
