"""The subject: the teacher with plain layers, traced, ready to be compressed, with its calibration inputs."""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING

from search.study.definition import fingerprint
from search.study.errors import UserError
from spaces import deployed, with_plain_layers
from spaces.network.copying import compressible_copy

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from objectives.runtimes import Runtime
    from search.study.spec import StudySpec
    from spaces import Anatomy, Plan

ROUGH_INPUTS = 128  # most calibration inputs for a network that is built only to be scored or measured (chosen)


class Subject:
    """The teacher of a study, ready to be compressed; it is never changed.

    Parameters
    ----------
    spec
        The study.
    device
        Device on which networks are built, trained and measured.

    Attributes
    ----------
    model
        The teacher in evaluation mode on the device, with plain layers (`spaces.with_plain_layers`).
    anatomy
        Its layers and groups of channels.
    example
        The calibration inputs on the device, shape (calibration, ...).

    Raises
    ------
    UserError
        If the teacher does not run on the data, or an axis names a layer that the teacher does not have.
    """

    def __init__(self, spec: StudySpec, device: torch.device) -> None:
        self.device = device
        self.example: Tensor = spec.example().to(device)
        self._rough_examples: dict[int, Tensor] = {}  # kept, since statistics are cached by their identity
        self._given = spec.teacher
        try:
            self.model: nn.Module = with_plain_layers(compressible_copy(spec.teacher).to(device).eval(), self.example)
            self.anatomy: Anatomy = spec.space.trace(self.model, self.example)
            spec.space.uniform(self.anatomy, (0.0,) * len(spec.space.steps))
        except ValueError as error:
            raise UserError(str(error)) from error

    def build(self, plan: Plan) -> nn.Module:
        """Return the untrained network of a plan."""
        return plan.apply(self.model, self.example)

    def build_roughly(self, plan: Plan, count: int = ROUGH_INPUTS) -> nn.Module:
        """Return almost the same network, fitted on `count` inputs; used for the proxy losses of many plans."""
        if count not in self._rough_examples:
            self._rough_examples[count] = self.example[:count].clone()
        return plan.apply(self.model, self._rough_examples[count])

    def finish(self, model: nn.Module) -> nn.Module:
        """Return the finished form of a network, as it is shipped."""
        return deployed(model, self.example)

    @functools.cached_property
    def finished(self) -> nn.Module:
        """The finished form of the teacher."""
        return self.finish(self.model)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the user's teacher."""
        return fingerprint(self._given)

    def export(self, runtime: Runtime, path: Path) -> None:
        """Write the teacher's file for a runtime.

        Raises
        ------
        ExportError
            If the runtime does not support the teacher.
        """
        runtime.export(copy.deepcopy(self.finished).cpu(), self.example.cpu(), path)
