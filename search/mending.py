"""What a few steps of training leave of a loss: one-shot losses of networks with many layers and with few mislead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from search.rates import USUAL

if TYPE_CHECKING:
    from search.bench import Bench
    from spaces import Plan

STEPS = 25  # of a training


class Mending:
    """The loss of a plan's network after a few steps of the recipe.

    Parameters
    ----------
    bench
        The study.
    """

    def __init__(self, bench: Bench) -> None:
        recipe = bench.spec.recipe
        self._bench = bench
        self._recipe = recipe.longer(STEPS / recipe.steps(len(bench.spec.splits.train)))

    def __call__(self, plan: Plan) -> float:
        """Return it, in the units of the recovery's loss, less that of the teacher."""
        model = self._bench.build(plan)
        recipe = self._bench.rated(self._recipe, model, USUAL)
        self._bench.train(model, plan, recipe, self._bench.spec.seed)
        return self._bench.score(model)
