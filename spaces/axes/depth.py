"""Leave out whole branches beside a shortcut, and layers that keep the shape: which may be chosen, and the act."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spaces.axes.refit import readers_rows, readjust
from spaces.costs.architectures import Setting
from spaces.network.anatomy import select
from spaces.network.omission import LEFT_OUT, leave_out
from spaces.network.statistics import reestimate
from spaces.plan import Choice

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.trial import BaseTrial
    from torch import Tensor, nn

    from spaces.costs.architectures import Architectures
    from spaces.network.anatomy import Anatomy, Branch


KEPT = Setting("kept_NL", 1.0)


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

        The layers keep their names, as `ZeroOutput` or `PassThrough`, so that later steps find them.

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
            leave_out(shallower, branch)
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

    def apply_to_shapes(self, architectures: Architectures, row: int) -> None:
        """Write which layers are left."""
        for branch, out in self.branches:
            architectures.write(row, KEPT, branch.layers, not out)

    def choices(self, anatomy: Anatomy) -> dict[str, dict[str, Choice]]:  # noqa: ARG002 - as all steps
        """Return 1 for each layer that is left out, 0 for the others that could be."""
        return {
            "layer removed": {
                name: Choice(float(out), float(out), f"{out:.0%}")
                for branch, out in self.branches
                for name in branch.layers
            }
        }

    def words(self) -> str:
        """Say which branches are left out."""
        gone = [branch.name for branch, out in self.branches if out]
        return f"without {', '.join(gone)}" if gone else ""


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
        return select("branch", anatomy.branches, self.only)
