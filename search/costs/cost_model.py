"""The cost model: costs of plans without building them, exact from shapes or predicted by fitted models."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from objectives.objective import Foreseeable
from search.study.console import console
from spaces.costs.frame import Frame
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

COST_TOLERANCE = 5e-3  # relative difference between formula and measurement; file sizes need it, counts are exact


class Prediction(NamedTuple):
    """The costs of one plan, by objective: exact costs from shapes, and costs predicted by models."""

    exact: dict[str, float]
    modelled: dict[str, float]


class CostModel:
    """The costs of plans for one teacher.

    Only `search.evaluation.profiling` changes it: `fit_before_search` adds models, `measure_promising` and `refit` fit
    them again to more measurements, and `refit` drops a formula that disagrees with a measurement.

    Parameters
    ----------
    anatomy
        The teacher's anatomy.
    finished
        The finished form of the teacher, on which the constant part of each cost is measured.
    costs
        The costs of the study; a cost without a formula is ignored until a model is added for it.

    Attributes
    ----------
    frame
        The teacher's layers as arrays.
    models
        The models of costs without a formula, by objective.
    trials_read
        Numbers of the trials whose measurements were read.
    """

    def __init__(self, anatomy: Anatomy, finished: nn.Module, costs: Iterable[Objective]) -> None:
        self.frame = Frame(anatomy, finished)
        unchanged = architectures_of(self.frame, [None]).parts()
        self.models: dict[str, LatencyModel] = {}
        self.trials_read: set[int] = set()
        self._formulas: dict[str, tuple[CostFormula, float]] = {
            objective.name: (objective, objective(finished) - float(objective.foreseen(unchanged)[0]))
            for objective in costs
            if isinstance(objective, Foreseeable)
        }
        self._full: set[str] = set()  # objectives whose models have as many networks as they keep
        self._modelled: set[tuple[Step, ...]] = set()  # steps of the plans that the models are fitted to

    @property
    def formulas(self) -> dict[str, tuple[CostFormula, float]]:
        """The formula or model of each cost, with the constant that is added to its value."""
        return {**self._formulas, **{name: (model, 0.0) for name, model in self.models.items()}}

    def of(self, architectures: Architectures) -> dict[str, np.ndarray]:
        """Return each cost of a batch of architectures, arrays of shape (N,)."""
        return _costs(architectures, self.formulas)

    def exact(self, plans: Sequence[Plan]) -> dict[str, np.ndarray]:
        """Return each cost that has a formula, arrays of shape (plans,)."""
        return _costs(architectures_of(self.frame, plans), self._formulas) if self._formulas else {}

    def predict(self, plan: Plan) -> Prediction:
        """Return the costs of one plan."""
        values = {name: float(cost[0]) for name, cost in self.of(architectures_of(self.frame, [plan])).items()}
        return Prediction(
            {name: value for name, value in values.items() if name in self._formulas},
            {name: value for name, value in values.items() if name in self.models},
        )

    def error(self, limit: Limit) -> float:
        """Return the relative margin between a predicted cost and a limit on it, negative for a lower bound.

        The margin is the median error of the cost's model; it is 0 for a cost that has a formula.
        """
        name = limit.objective.name
        error = self.models[name].error if name in self.models else 0.0
        return error if limit.is_upper else -error

    def over_teacher(self, measured: Mapping[str, float]) -> dict[str, float]:
        """Return the measured costs that have a model, relative to the teacher's cost in this process."""
        return {name: measured[name] / model.teacher for name, model in self.models.items() if name in measured}

    def add_model(self, model: LatencyModel) -> None:
        """Add the model of a cost without a formula."""
        self.models[model.name] = model

    def observe(self, plan: Plan, over_teacher: Mapping[str, float]) -> None:
        """Refit the models with one more measured network; each plan is used once.

        Parameters
        ----------
        plan
            The plan of the measured network.
        over_teacher
            Its costs, as returned by `over_teacher`; values that are not positive and finite are ignored.
        """
        usable = {name: value for name, value in over_teacher.items() if name in self.models and 0 < value < math.inf}
        if usable and plan.steps not in self._modelled:
            self._modelled.add(plan.steps)
            parts = architectures_of(self.frame, [plan]).parts()
            for name, value in usable.items():
                before = self.models[name]
                self.models[name] = before.with_measurement(parts, value * before.teacher)
                if len(before.values_N) == len(self.models[name].values_N) and name not in self._full:
                    self._full.add(name)
                    console.print(
                        f"{name} is predicted from the latest {len(before.values_N) - 1} networks from now on"
                    )

    def drop_formulas(self, names: Iterable[str]) -> None:
        """Drop the formulas of these costs, because they disagree with measurements on this network."""
        for name in names:
            if self._formulas.pop(name, None) is not None:
                console.print(
                    f"{name} of this network cannot be computed exactly, so it is measured on every plan instead"
                )


def inexact(predicted: Mapping[str, float], measured: Mapping[str, float]) -> list[str]:
    """Return the names of the costs whose measured value differs from the value by their formula."""
    return [
        name
        for name, value in predicted.items()
        if name in measured and not math.isclose(value, measured[name], rel_tol=COST_TOLERANCE)
    ]


def _costs(architectures: Architectures, by: Mapping[str, tuple[CostFormula, float]]) -> dict[str, np.ndarray]:
    parts = architectures.parts()
    return {name: formula.foreseen(parts) + constant for name, (formula, constant) in by.items()}
