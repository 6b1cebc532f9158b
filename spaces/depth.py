"""Leave out whole branches beside a shortcut, and layers that keep the shape: which may be chosen, and the act."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spaces.anatomy import acted_on
from spaces.branches import SHAPELESS
from spaces.calls import tensors
from spaces.refit import readers_rows, readjust
from spaces.statistics import reestimate
from spaces.surgery import CONVOLUTIONS, put, without_norm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.trial import BaseTrial

    from spaces.anatomy import Anatomy, Branch
    from spaces.outline import Outline


class Silent(nn.Module):
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


class Passed(nn.Module):
    """Stands for a layer that is left out where no shortcut is: gives what it is given, as a layer does.

    That is a tensor of its own, contiguous, which what comes behind may write into.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return a copy of the input."""
        return x.clone(memory_format=torch.contiguous_format)


LEFT_OUT = (Silent, Passed)


@dataclass(frozen=True, slots=True)
class Skip:
    """Leave branches out, so that only what goes around them is left, or what straight ones are given.

    Attributes
    ----------
    branches
        Pairs of (branch, whether it is left out).
    refit
        Whether the weights of what reads a sum are fitted anew, by least squares, to what is left of it.

    References
    ----------
    Veit et al. 2016, NeurIPS, section 4.1: residual networks lose little by single blocks.
    """

    branches: tuple[tuple[Branch, bool], ...]
    refit: bool = True

    def apply(self, model: nn.Module, example: Tensor) -> nn.Module:
        """Return a network without those branches; its BatchNorm statistics are those of the example.

        The layers keep their names, as `Silent` or `Passed`, so that later steps find them.

        Raises
        ------
        ValueError
            If a straight one was pruned otherwise behind it than before it, or layers in a branch are split or rounded.
        """
        shallower = copy.deepcopy(model)
        gone = [branch for branch, out in self.branches if out]
        read = [name for branch in gone for name in branch.readers]
        before = readers_rows(model, example, dict.fromkeys(read)) if self.refit else {}
        for branch in gone:  # those behind see what is left of those before, refitted
            _pass(shallower, branch) if branch.straight else _silence(shallower, branch)
            left = [
                name
                for name in branch.readers
                if name in before and not isinstance(shallower.get_submodule(name), LEFT_OUT)
            ]
            for name, (after_GND, block) in readers_rows(shallower, example, left).items():
                readjust(shallower.get_submodule(name), before[name][0], after_GND, block)
        if gone:
            reestimate(shallower, example)
        return shallower

    @property
    def removed(self) -> frozenset[str]:
        """The layers that are left out."""
        return frozenset(name for branch, out in self.branches if out for name in branch.layers)

    def sketch(self, outline: Outline, row: int) -> None:
        """Write which layers are left."""
        for branch, out in self.branches:
            outline.kept_NL[row, outline.frame.columns("layer", branch.layers)] = not out

    def choices(self) -> dict[str, dict[str, float]]:
        """Return 1 for each layer that is left out, 0 for the others that could be."""
        return {"layer removed": {name: float(out) for branch, out in self.branches for name in branch.layers}}

    def words(self) -> str:
        """Say which branches are left out."""
        gone = [branch.name for branch, out in self.branches if out]
        return f"without {', '.join(gone)}" if gone else ""


def dispensable(model: nn.Module, example: Tensor, branches: tuple[Branch, ...]) -> tuple[Branch, ...]:
    """Return the branches without which a network, as it is in evaluation mode, was seen to give numbers.

    A norm of an own class may want more than its input, or change its shape; code may read its weight, or divide by it.
    """
    if not branches:
        return ()
    with torch.no_grad():
        wanted = [x.shape for x in tensors(model(example))]

    def runs_without(some: tuple[Branch, ...]) -> bool:
        try:
            left = Skip(tuple((branch, True) for branch in some), refit=False).apply(model, example).eval()
            with torch.no_grad():
                given = tensors(left(example))
        except Exception:  # noqa: BLE001 - whatever the network does with what it no longer has
            return False
        return [x.shape for x in given] == wanted and all(bool(x.isfinite().all()) for x in given)

    return branches if runs_without(branches) else tuple(branch for branch in branches if runs_without((branch,)))


@dataclass(frozen=True, slots=True)
class Depth:
    """Whether each branch beside a shortcut stays, such as the main path of a residual block, or attention.

    Where no shortcut is, a layer that gives the shape that it is given may go too, such as a block of MobileNetV1; what
    is pruned before and behind it is then the same channels.

    Its step comes after pruning, which works on the channels of the whole network, and before ranks and bits. Products
    of attention count in multiply-adds even where they are of zeros, as they are in torch; no file computes them.

    Parameters
    ----------
    only
        First layers of the branches to act on; empty for all.
    refit
        See `Skip`.
    """

    only: tuple[str, ...] = ()
    refit: bool = True

    def suggest(self, trial: BaseTrial, anatomy: Anatomy) -> Skip:
        """Draw whether each branch is left out, as `skip/<first layer>`."""
        branches = self._branches(anatomy)
        return Skip(
            tuple((branch, trial.suggest_int(f"skip/{branch.name}", 0, 1) == 1) for branch in branches), self.refit
        )

    def uniform(self, anatomy: Anatomy, strength: float) -> dict[str, float]:
        """Leave all branches of sums out from half of the strength on, and ever more straight ones, from the last.

        What goes around a branch still holds a network together; where every straight layer is gone nothing does.
        """
        branches = self._branches(anatomy)
        straight = [branch.name for branch in branches if branch.straight]
        gone = straight[round(len(straight) * min(1.0, 2 - 2 * strength)) :]
        return {
            f"skip/{branch.name}": int(branch.name in gone if branch.straight else strength > 0.5)  # noqa: PLR2004
            for branch in branches
        }

    def acts_on(self, anatomy: Anatomy) -> Mapping[str, str]:
        """Say of each branch, at its first layer, what goes with it."""
        acting = {branch.name for branch in self._branches(anatomy)}
        said = {
            layer.name: "no: it is in no branch of a sum, and what it is given cannot take its place"
            for layer in anatomy.layers
        }
        for branch in anatomy.branches:
            others = branch.layers[1:]
            if branch.name not in acting:
                said |= dict.fromkeys(branch.layers, f"no: {branch.name} is not among only={self.only}")
                continue
            said[branch.name] = f"left out or not, with {', '.join(others)}" if others else "left out or not"
            said |= dict.fromkeys(others, f"left out with {branch.name}, or not")
        return said

    def _branches(self, anatomy: Anatomy) -> tuple[Branch, ...]:
        return acted_on("branch", anatomy.branches, self.only)


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
        put(model, name, Passed().train(layer.training))
    for name in branch.others:
        norm = model.get_submodule(name)
        put(model, name, without_norm(norm).train(norm.training))


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
            put(model, name, Silent(old, int(name == branch.name)).train(old.training))
        else:
            delattr(holder, leaf)
            holder.register_buffer(leaf, torch.zeros_like(bare), persistent=False)
