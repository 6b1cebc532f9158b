"""Leave layers of a network out: modules that stand in their places."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spaces.network.layers import CONVOLUTIONS, SHAPELESS, replace_module, without_norm

if TYPE_CHECKING:
    from spaces.network.anatomy import Branch


class ZeroOutput(nn.Module):
    """Stands for a module of a branch that is left out: gives zeros of the shape that it would give.

    Parameters
    ----------
    module
        A linear layer, a convolution, or what keeps the shape of its input, such as a norm.
    sums_left_out
        How many sums of the network go with it, which costs ask for (`objectives.layers.LeftOut`).

    Raises
    ------
    ValueError
        If it is none of these, as a layer that was split or rounded before.
    """

    def __init__(self, module: nn.Module, sums_left_out: int = 0) -> None:
        super().__init__()
        self.sums_left_out = sums_left_out
        self.channels = 0
        self.windows: tuple[tuple[int, int], ...] = ()
        if isinstance(module, nn.Linear):
            self.channels = module.out_features
        elif isinstance(module, CONVOLUTIONS):
            self.channels = module.out_channels
            around = module._reversed_padding_repeated_twice[::-1]  # noqa: SLF001 - knows padding="same"
            sizes = zip(module.kernel_size, module.dilation, module.stride, strict=True)
            self.windows = tuple(
                (sum(around[2 * at : 2 * at + 2]) - dilation * (size - 1) - 1, stride)
                for at, (size, dilation, stride) in enumerate(sizes)
            )
        elif not isinstance(module, SHAPELESS):
            raise _too_late(module)

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros."""
        shape = list(x.shape)
        if self.channels:
            shape[-1 - len(self.windows)] = self.channels
        for at, (more, stride) in enumerate(self.windows):
            place = at - len(self.windows)
            shape[place] = (shape[place] + more) // stride + 1
        return x.new_zeros(shape)


class PassThrough(nn.Module):
    """Stands for a layer that is left out where no shortcut is: gives what it is given, as a layer does.

    That is a tensor of its own, contiguous, which what comes behind may write into.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return a copy of the input."""
        return x.clone(memory_format=torch.contiguous_format)


LEFT_OUT = (ZeroOutput, PassThrough)


def leave_out(model: nn.Module, branch: Branch) -> None:
    """Leave a branch out of a network, in place: zeros stand for it beside a shortcut, its input where there is none.

    Parameters
    ----------
    model
        A copy that may be changed; its layers keep their names, as `ZeroOutput` or `PassThrough`, so that
        later steps find them.
    branch
        As traced on the network, or on the one from which it was pruned.

    Raises
    ------
    ValueError
        If a straight branch was pruned otherwise behind it than before it, or layers in it are split or rounded.
    """
    _pass(model, branch) if branch.straight else _silence(model, branch)


def _pass(model: nn.Module, branch: Branch) -> None:
    """Let layers, and the norms behind them, give what they are given, in a network that may be changed."""
    layers = [model.get_submodule(name) for name in branch.layers]
    for layer in layers:
        if not isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
            raise _too_late(layer)
    before, behind = _width(layers[0], "in"), _width(layers[-1], "out")
    if before != behind:
        raise ValueError(
            f"{branch.name!r} cannot be left out where it is given {before} channels and gives {behind}; "
            "Space.suggest prunes them alike"
        )
    for name, layer in zip(branch.layers, layers, strict=True):
        replace_module(model, name, PassThrough().train(layer.training))
    for name in branch.others:
        norm = model.get_submodule(name)
        replace_module(model, name, without_norm(norm).train(norm.training))


def _width(layer: nn.Module, side: str) -> int:
    return int(getattr(layer, f"{side}_{'features' if isinstance(layer, nn.Linear) else 'channels'}"))


def _too_late(module: nn.Module) -> ValueError:
    return ValueError(f"branches are left out before ranks and bits, but got {type(module).__name__} in one")


def _silence(model: nn.Module, branch: Branch) -> None:
    """Put zeros in the place of all in a branch, of a network that may be changed."""
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
