"""The costs of plans before anything is built: exact ones from shapes, others from models of measurements."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from objectives.objective import Foreseeable
from search.study.console import console
from spaces.costs.architectures import Frame
from spaces.plan import architectures_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from torch import nn

    from objectives import Limit, Objective
    from objectives.objective import CostFormula
    from search.costs.latency_model import LatencyModel
    from spaces import Anatomy, Plan
    from spaces.costs.architectures import Architectures
    from spaces.plan import Step

TOLERANCE = 5e-3  # relative; counts are exact, and the bytes of a file are a prediction anyway


class Prediction(NamedTuple):
    """The costs of one plan, by objective: those that shapes give exactly, and those that models predict."""

    exact: dict[str, float]
    modelled: dict[str, float]


class CostModel:
    """The costs of plans for one teacher.

    Two functions change it, and both fit models of measured costs: `search.evaluation.profiling.fit_before_search`
    before a study starts, and `refit` there between trials.

    Parameters
    ----------
    anatomy
        Of the teacher.
    finished
        The teacher as it would be shipped, on which the constant part of each cost is measured.
    costs
        The costs of the study; those that no formula gives are left out until a model is added for them.

    Attributes
    ----------
    frame
        The teacher's layers as arrays.
    models
        The models of costs that no formula gives, by objective.
    trials_read
        Numbers of the trials that the models are fitted to.
    """

    def __init__(self, anatomy: Anatomy, finished: nn.Module, costs: Iterable[Objective]) -> None:
        self.frame = Frame(anatomy, finished)
        untouched = architectures_of(self.frame, [None]).parts()
        self.models: dict[str, LatencyModel] = {}
        self.trials_read: set[int] = set()
        self._formulas: dict[str, tuple[CostFormula, float]] = {
            objective.name: (objective, objective(finished) - float(objective.foreseen(untouched)[0]))
            for objective in costs
            if isinstance(objective, Foreseeable)
        }
        self._modelled: set[tuple[Step, ...]] = set()  # steps of the plans that the models are fitted to

    @property
    def formulas(self) -> dict[str, tuple[CostFormula, float]]:
        """What gives each cost, formulas and models, with the constant that is to be added."""
        return {**self._formulas, **{name: (model, 0.0) for name, model in self.models.items()}}

    def of(self, architectures: Architectures) -> dict[str, np.ndarray]:
        """Return each cost of a batch of architectures, arrays of shape (N,)."""
        return _costs(architectures, self.formulas)

    def exact(self, plans: Sequence[Plan]) -> dict[str, np.ndarray]:
        """Return each cost that a formula gives, arrays of shape (plans,)."""
        return _costs(architectures_of(self.frame, plans), self._formulas) if self._formulas else {}

    def predict(self, plan: Plan) -> Prediction:
        """Return the costs of one plan."""
        values = {name: float(cost[0]) for name, cost in self.of(architectures_of(self.frame, [plan])).items()}
        return Prediction(
            {name: value for name, value in values.items() if name in self._formulas},
            {name: value for name, value in values.items() if name in self.models},
        )

    def error(self, limit: Limit) -> float:
        """Return by what share a cost may lie beyond its prediction, towards the bad side of a limit on it.

        That is the median error of the model, one way or the other; 0 of a cost that a formula gives.
        """
        name = limit.objective.name
        error = self.models[name].error if name in self.models else 0.0
        return error if limit.at_least is None else -error

    def over_teacher(self, measured: Mapping[str, float]) -> dict[str, float]:
        """Return the measured costs that have a model, over what the teacher costs in this process."""
        return {name: measured[name] / model.teacher for name, model in self.models.items() if name in measured}

    def add_model(self, model: LatencyModel) -> None:
        """Add the model of a cost that no formula gives."""
        self.models[model.name] = model

    def observe(self, plan: Plan, over_teacher: Mapping[str, float]) -> None:
        """Fit the models to one more measured network; to each plan once.

        Parameters
        ----------
        plan
            What was built.
        over_teacher
            As from `over_teacher`; what is not positive and finite is left out.
        """
        usable = {name: value for name, value in over_teacher.items() if name in self.models and 0 < value < math.inf}
        if usable and plan.steps not in self._modelled:
            self._modelled.add(plan.steps)
            parts = architectures_of(self.frame, [plan]).parts()
            for name, value in usable.items():
                self.models[name] = self.models[name].with_measurement(parts, value * self.models[name].teacher)

    def drop_formulas(self, names: Iterable[str]) -> None:
        """Stop computing costs whose formula does not hold for this network."""
        for name in names:
            if self._formulas.pop(name, None) is not None:
                console.print(
                    f"{name} of this network cannot be computed exactly: it is measured on every plan instead"
                )


def inexact(predicted: Mapping[str, float], measured: Mapping[str, float]) -> list[str]:
    """Return the names of the costs that were measured otherwise than their formula said."""
    return [
        name
        for name, value in predicted.items()
        if name in measured and not math.isclose(value, measured[name], rel_tol=TOLERANCE)
    ]


def _costs(architectures: Architectures, by: Mapping[str, tuple[CostFormula, float]]) -> dict[str, np.ndarray]:
    parts = architectures.parts()
    return {name: formula.foreseen(parts) + constant for name, (formula, constant) in by.items()}
