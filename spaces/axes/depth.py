"""Leave out branches that have a shortcut, and layers that keep the shape: which may be chosen, and the step."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spaces.axes.refit import input_rows, refit_to_new_inputs
from spaces.costs.effects import Setting
from spaces.network.anatomy import select
from spaces.network.omission import LEFT_OUT, leave_out
from spaces.network.statistics import reestimate
from spaces.plan import Choice

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.trial import BaseTrial
    from torch import nn

    from spaces.costs.architectures import Architectures
    from spaces.network.anatomy import Anatomy, Branch
    from spaces.network.tensors import Inputs


LAYER_KEPT = Setting("kept_NL", 1.0)  # 1 for a layer that is kept, 0 for one that is left out


@dataclass(frozen=True, slots=True)
class Skip:
    """Leave branches out: only the shortcut is kept, or, where there is none, the input replaces the output.

    Attributes
    ----------
    branches
        Pairs of (branch, whether it is left out).
    refit
        Whether the weights of the layers that read a sum are refitted, by least squares, to what is left of the sum.

    References
    ----------
    Veit et al. 2016, NeurIPS, section 4.1: residual networks lose little accuracy without single blocks.
    """

    branches: tuple[tuple[Branch, bool], ...]
    refit: bool = True

    def apply(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Return a network without these branches; its BatchNorm statistics are those of the example.

        The layers keep their names, as `ZeroOutput` or `PassThrough`, so that later steps find them.

        Raises
        ------
        ValueError
            If a straight branch was pruned differently before and after, or if its layers were factorized or quantized.
        """
        shallower = copy.deepcopy(model)
        left_out = [branch for branch, out in self.branches if out]
        readers = [name for branch in left_out for name in branch.readers]
        before = input_rows(model, example, dict.fromkeys(readers)) if self.refit else {}
        for branch in left_out:  # in order of execution: later readers are refitted to the refitted earlier ones
            leave_out(shallower, branch)
            kept_readers = [
                name
                for name in branch.readers
                if name in before and not isinstance(shallower.get_submodule(name), LEFT_OUT)
            ]
            for name, (after_GND, block) in input_rows(shallower, example, kept_readers).items():
                refit_to_new_inputs(shallower.get_submodule(name), before[name][0], after_GND, block)
        if left_out:
            reestimate(shallower, example)
        return shallower

    @property
    def removed(self) -> frozenset[str]:
        """Names of the layers that are left out."""
        return frozenset(name for branch, out in self.branches if out for name in branch.layers)

    def apply_to_shapes(self, architectures: Architectures, row: int) -> None:
        """Write which layers are kept."""
        for branch, out in self.branches:
            architectures.write(row, LAYER_KEPT, branch.layers, not out)

    def choices(self, anatomy: Anatomy) -> dict[str, dict[str, Choice]]:  # noqa: ARG002 - the signature of all steps
        """Return 1 for each layer that is left out, 0 for each other layer of the branches."""
        return {
            "layer removed": {
                name: Choice(float(out), float(out), f"{out:.0%}")
                for branch, out in self.branches
                for name in branch.layers
            }
        }

    def words(self) -> str:
        """Name the branches that are left out."""
        left_out = [branch.name for branch, out in self.branches if out]
        return f"without {', '.join(left_out)}" if left_out else ""


@dataclass(frozen=True, slots=True)
class Depth:
    """Which branches are left out: those with a shortcut, such as the main path of a residual block, or attention.

    A straight branch, without a shortcut, can be left out where its output has the shape of its input, such as a block
    of MobileNetV1; the same channels are then pruned before and after it.

    The step follows pruning, which works on the channels of the whole network, and precedes ranks and bits. Matrix
    products of attention whose inputs are zeros still count as multiply-adds, since torch computes them; the exported
    files do not.

    Parameters
    ----------
    only
        Names of the branches to act on, which are their first layers; empty for all.
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
        """Return parameters that, above strength 0.5, leave out all branches with a shortcut and some straight ones.

        The number of straight branches grows with the strength, from the last to the first: no shortcut replaces them.
        """
        branches = self._branches(anatomy)
        straight = [branch.name for branch in branches if branch.straight]
        left_out = straight[round(len(straight) * min(1.0, 2 - 2 * strength)) :]
        return {
            f"skip/{branch.name}": int(branch.name in left_out if branch.straight else strength > 0.5)  # noqa: PLR2004
            for branch in branches
        }

    def acts_on(self, anatomy: Anatomy) -> Mapping[str, str]:
        """Return for each layer of a branch which layers are left out with it, or the reason why it is kept."""
        acting = {branch.name for branch in self._branches(anatomy)}
        texts = {
            layer.name: "no: it is in no branch that has a shortcut, and its input cannot replace its output"
            for layer in anatomy.layers
        }
        for branch in anatomy.branches:
            others = branch.layers[1:]
            if branch.name not in acting:
                texts |= dict.fromkeys(branch.layers, f"no: {branch.name} is not among only={self.only}")
                continue
            texts[branch.name] = f"left out or kept, with {', '.join(others)}" if others else "left out or kept"
            texts |= dict.fromkeys(others, f"left out or kept, with {branch.name}")
        return texts

    def _branches(self, anatomy: Anatomy) -> tuple[Branch, ...]:
        return select("branch", anatomy.branches, self.only)
