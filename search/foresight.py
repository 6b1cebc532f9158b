"""What plans would cost, told from the shapes of their layers before anything is built."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from objectives.objective import Foreseeable
from search.progress import console
from spaces.outline import Frame, outlined

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from torch import Tensor, nn

    from objectives import Limit, Objective
    from objectives.objective import Foretelling
    from search.learned import Learned
    from spaces import Plan
    from spaces.outline import Outline
    from spaces.plan import Step

TOLERANCE = 5e-3  # relative; counts are exact, and the bytes of a file are a prediction anyway


class Foresight:
    """The costs of plans for one teacher.

    Parameters
    ----------
    model, example
        The teacher, and inputs for it.
    finished
        The teacher as it would be shipped, on which the constant part of each cost is measured.
    costs
        The costs of the study; those that cannot be foreseen are left out.
    """

    def __init__(self, model: nn.Module, example: Tensor, finished: nn.Module, costs: Iterable[Objective]) -> None:
        self.frame = Frame(model, example, finished)
        untouched = outlined(self.frame, [None]).parts()
        self.learned: dict[str, Learned] = {}
        self.recalled: set[int] = set()  # numbers of the trials that were learned from
        self._remembered: set[tuple[Step, ...]] = set()
        self.known: dict[str, tuple[Foreseeable, float]] = {
            objective.name: (objective, objective(finished) - float(objective.foreseen(untouched)[0]))
            for objective in costs
            if isinstance(objective, Foreseeable)
        }

    @property
    def foreseeable(self) -> dict[str, tuple[Foretelling, float]]:
        """What tells each cost, the exact ones and the learned ones, with the constant that it lacks."""
        return {**self.known, **{name: (learned, 0.0) for name, learned in self.learned.items()}}

    def learn(self, learned: Learned) -> None:
        """Take in a cost that is told about, and not exactly."""
        self.learned[learned.name] = learned

    def relative(self, measured: Mapping[str, float]) -> dict[str, float]:
        """Return what a network measured of the learned costs, over what the teacher does in this process."""
        return {name: measured[name] / learned.teacher for name, learned in self.learned.items() if name in measured}

    def remember(self, plan: Plan, relative: Mapping[str, float]) -> None:
        """Learn from one network more, once: those that a search looks at are unlike those that it began with.

        Parameters
        ----------
        plan
            What was built.
        relative
            As from `relative`; what is not positive and finite is left out.
        """
        usable = {name: value for name, value in relative.items() if name in self.learned and 0 < value < math.inf}
        if usable and plan.steps not in self._remembered:
            self._remembered.add(plan.steps)
            parts = outlined(self.frame, [plan]).parts()
            for name, value in usable.items():
                self.learned[name] = self.learned[name].and_of(parts, value * self.learned[name].teacher)

    def doubt(self, limit: Limit) -> float:
        """Return by what share a cost may lie beyond what is told of it, towards the bad side of a limit on it.

        That is how far it usually is, one way or the other; 0 of what is known exactly.
        """
        name = limit.objective.name
        usual = self.learned[name].error if name in self.learned else 0.0
        return usual if limit.at_least is None else -usual

    def costs(self, plans: Sequence[Plan]) -> dict[str, np.ndarray]:
        """Return what each objective that is known exactly says of the plans, arrays of shape (plans,)."""
        return _told(outlined(self.frame, plans), self.known) if self.known else {}

    def of(self, outline: Outline) -> dict[str, np.ndarray]:
        """Return what each cost is, or is about, of plans in outline."""
        return _told(outline, self.foreseeable)

    def told(self, plan: Plan) -> dict[str, float]:
        """Return what each objective that is known exactly says of one plan."""
        return self._of_one(plan, self.known)

    def about(self, plan: Plan) -> dict[str, float]:
        """Return what is told of the learned costs of one plan."""
        return self._of_one(plan, {name: (learned, 0.0) for name, learned in self.learned.items()})

    def _of_one(self, plan: Plan, by: Mapping[str, tuple[Foretelling, float]]) -> dict[str, float]:
        told = _told(outlined(self.frame, [plan]), by) if by else {}
        return {name: float(values[0]) for name, values in told.items()}

    def check(self, told: Mapping[str, float], measured: Mapping[str, float]) -> None:
        """Compare what was told of a plan with what its network measured; what was wrong is not foreseen any more."""
        for name, value in told.items():
            if name in measured and not math.isclose(value, measured[name], rel_tol=TOLERANCE):
                console.print(
                    f"{name} of this network cannot be foreseen exactly: it is measured on every plan instead"
                )
                del self.known[name]


def _told(outline: Outline, by: Mapping[str, tuple[Foretelling, float]]) -> dict[str, np.ndarray]:
    parts = outline.parts()
    return {name: one.foreseen(parts) + constant for name, (one, constant) in by.items()}
