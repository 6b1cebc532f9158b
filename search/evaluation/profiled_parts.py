"""Measures parts of networks, those first that tell most about the networks to predict."""

from __future__ import annotations

import math
import time
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from objectives.trees import at, length
from search.costs.latency_model import MeasuredParts
from search.costs.part_choice import most_telling
from search.costs.work import work
from search.evaluation.measured_parts import PartsFile
from search.evaluation.network_parts import ends_of, parts_of
from search.evaluation.profiled_plans import work_of_plans
from search.study.errors import raise_machine_fault
from spaces.plan import architectures_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from objectives.layers import Parts
    from objectives.objective import Partwise
    from search.evaluation.context import Context
    from spaces import Plan


class ProfiledParts:
    """The measured parts of this machine, to which parts of a study's networks can be added.

    Parameters
    ----------
    context
        The study.
    objective
        A cost that can be measured on parts of networks.
    """

    def __init__(self, context: Context, objective: Partwise) -> None:
        self._context, self._objective, self._file = context, objective, PartsFile.of(objective)
        self._work_SF, self._milliseconds_S = self._file.read()

    def __len__(self) -> int:
        """Return how many parts are measured."""
        return len(self._milliseconds_S)

    @cached_property
    def work_of(self) -> Callable[[Parts], np.ndarray]:
        """A function that returns the work of N networks of the study, shape (N, F)."""
        subject = self._context.subject
        return partial(work, ends=ends_of(subject.finished, at(subject.example, slice(2))))

    @cached_property
    def _networks_MF(self) -> np.ndarray:  # noqa: N802 - suffix of the shape
        return work_of_plans(self._context, self._objective, self.work_of)

    @property
    def measured(self) -> MeasuredParts:
        """The measured parts, in the objective's unit."""
        values_S = self._milliseconds_S * self._objective.of_ms(1.0)
        return MeasuredParts(self._work_SF, values_S, self._networks_MF.max(0))

    def measure(self, plan: Plan, network: nn.Module, teacher: float, until: float) -> None:
        """Measure parts of a plan's finished network until the time is up, but at least one, and keep them.

        A part that fails is skipped.

        Parameters
        ----------
        plan, network
            The plan and its finished network.
        teacher
            Cost of the teacher, in the objective's unit.
        until
            CPU time of this process at which measuring ends, in seconds.
        """
        frame, example = self._context.cost_model.frame, self._context.subject.example
        layers = architectures_of(frame, [plan]).parts()
        batch = at(example, torch.arange(self._objective.batch) % (length(example) or 1))
        parts = parts_of(network, batch, list(frame.layers))
        works = [work(layers.of_layers(part.columns), part.ends)[0] for part in parts]
        while parts:
            chosen = most_telling(np.stack(works), self.measured, self._networks_MF, teacher)
            part, work_F = parts.pop(chosen), works.pop(chosen)
            try:
                milliseconds = self._objective.part_ms(part.module, part.inputs)
            except Exception as error:  # noqa: BLE001 - a runtime may refuse a part that it takes as part of a network
                raise_machine_fault(error)
                continue
            if 0 < milliseconds < math.inf:
                self._file.add(layers.of_layers(part.columns), part.ends, milliseconds)
                self._work_SF = np.vstack([self._work_SF.reshape(-1, len(work_F)), work_F])
                self._milliseconds_S = np.append(self._milliseconds_S, milliseconds)
            if time.process_time() >= until:
                break
