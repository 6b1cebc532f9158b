"""Leave branches of a network out, and the modules that replace their layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spaces.network.layers import CONVOLUTIONS, SHAPE_PRESERVING, TRANSPOSED, replace_module
from spaces.network.stand_ins import WithoutNorm

if TYPE_CHECKING:
    from spaces.network.anatomy import Branch


class ZeroOutput(nn.Module):
    """Replaces a module of a branch that is left out, or that nothing reads, by zeros of the shape of its output.

    Parameters
    ----------
    module
        A linear layer, a convolution, transposed or not, or a module that keeps the shape of its input, as a norm.
    sums_left_out
        Number of sums that are left out with the module; costs read it (`objectives.layers.LeftOut`).

    Raises
    ------
    ValueError
        If it is none of these, such as a layer that was factorized or quantized before.
    """

    def __init__(self, module: nn.Module, sums_left_out: int = 0) -> None:
        super().__init__()
        self.sums_left_out = sums_left_out
        self.channels = 0
        self.windows: tuple[tuple[int, int, int], ...] = ()  # of each spatial dimension: factor, added size, stride
        if isinstance(module, nn.Linear):
            self.channels = module.out_features
        elif isinstance(module, CONVOLUTIONS):
            self.channels = module.out_channels
            padding = module._reversed_padding_repeated_twice[::-1]  # noqa: SLF001 - handles padding="same"
            sizes = zip(module.kernel_size, module.dilation, module.stride, strict=True)
            self.windows = tuple(
                (1, sum(padding[2 * at : 2 * at + 2]) - dilation * (size - 1) - 1, stride)
                for at, (size, dilation, stride) in enumerate(sizes)
            )
        elif isinstance(module, TRANSPOSED):
            self.channels = module.out_channels
            assert not isinstance(module.padding, str)
            sides = zip(module.stride, module.padding, module.output_padding, strict=True)
            extents = [
                dilation * (size - 1) for size, dilation in zip(module.kernel_size, module.dilation, strict=True)
            ]
            self.windows = tuple(
                (stride, extent + more - stride - 2 * padding, 1)
                for extent, (stride, padding, more) in zip(extents, sides, strict=True)
            )
        elif not isinstance(module, SHAPE_PRESERVING):
            raise _wrong_order_error(module)

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros."""
        shape = list(x.shape)
        if self.channels:
            shape[-1 - len(self.windows)] = self.channels
        for at, (factor, added, stride) in enumerate(self.windows):
            dimension = at - len(self.windows)
            shape[dimension] = (shape[dimension] * factor + added) // stride + 1
        return x.new_zeros(shape)


class PassThrough(nn.Module):
    """Replaces a layer that is left out where there is no shortcut, and returns a copy of its input.

    The copy is contiguous, and the next module may write into it, as into the output of a layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return a copy of the input."""
        return x.clone(memory_format=torch.contiguous_format)


LEFT_OUT = (ZeroOutput, PassThrough)  # types of the modules that replace layers that are left out


def leave_out(model: nn.Module, branch: Branch) -> None:
    """Leave a branch out, in place: zeros replace its output where there is a shortcut, else its input does.

    Parameters
    ----------
    model
        A copy that may be changed. Its layers keep their names, as `ZeroOutput` or `PassThrough`, so that later steps
        find them.
    branch
        A branch that was traced on this network, or on the one from which it was pruned.

    Raises
    ------
    ValueError
        If a straight branch was pruned differently before and after, or if its layers were factorized or quantized.
    """
    _pass_input_through(model, branch) if branch.straight else _zero_outputs(model, branch)


def _pass_input_through(model: nn.Module, branch: Branch) -> None:
    """Replace the layers of a branch and their norms, in place, by modules that return their input."""
    layers = [model.get_submodule(name) for name in branch.layers]
    for layer in layers:
        if not isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
            raise _wrong_order_error(layer)
    before, after = _width(layers[0], "in"), _width(layers[-1], "out")
    if before != after:
        raise ValueError(
            f"{branch.name!r} cannot be left out where it is given {before} channels and gives {after}; "
            "Space.suggest prunes both to the same number"
        )
    for name, layer in zip(branch.layers, layers, strict=True):
        replace_module(model, name, PassThrough().train(layer.training))
    for name in branch.others:
        norm = model.get_submodule(name)
        replace_module(model, name, WithoutNorm(norm).train(norm.training))


def _width(layer: nn.Module, side: str) -> int:
    return int(getattr(layer, f"{side}_{'features' if isinstance(layer, nn.Linear) else 'channels'}"))


def _wrong_order_error(module: nn.Module) -> ValueError:
    return ValueError(f"branches must be left out before ranks and bits, but got {type(module).__name__} in a branch")


def _zero_outputs(model: nn.Module, branch: Branch) -> None:
    """Replace the modules and parameters of a branch, in place, by zeros."""
    for name in (*branch.layers, *branch.others):
        owner, _, leaf = name.rpartition(".")
        holder = model.get_submodule(owner)
        bare = dict(holder.named_parameters(recurse=False)).get(leaf)
        if bare is None:
            old = model.get_submodule(name)
            replace_module(model, name, ZeroOutput(old, int(name == branch.name)).train(old.training))
        else:
            delattr(holder, leaf)
            holder.register_buffer(leaf, torch.zeros_like(bare), persistent=False)
