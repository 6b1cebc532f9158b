"""The teacher as candidates are made of it: unfused, traced, with the inputs that steps are fitted on."""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING

from search.study.definition import fingerprint
from search.study.errors import UserError
from spaces import deployed, trace, unfuse_attention
from spaces.network.copying import compressible_copy

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from objectives.runtimes import Runtime
    from search.study.spec import StudySpec
    from spaces import Anatomy, Plan

FEW = 128  # calibration inputs of a network of which only the proxy loss is computed


class Subject:
    """The network of a study that is compressed; nothing of it changes.

    Parameters
    ----------
    spec
        The study.
    device
        Where networks are built, trained and measured.

    Attributes
    ----------
    model
        The teacher in evaluation mode on the device, its attention unfused.
    anatomy
        Its layers and groups of channels.
    example
        The calibration inputs on the device, shape (calibration, ...).

    Raises
    ------
    UserError
        If the teacher does not run on the data, or an axis names what it does not have.
    """

    def __init__(self, spec: StudySpec, device: torch.device) -> None:
        self.device = device
        self.example: Tensor = spec.example().to(device)
        self._few = self.example[:FEW].clone()  # one tensor, by whose identity statistics are cached
        self._given = spec.teacher
        try:
            self.model: nn.Module = unfuse_attention(compressible_copy(spec.teacher).to(device).eval(), self.example)
            self.anatomy: Anatomy = trace(self.model, self.example)
            spec.space.uniform(self.anatomy, (0.0,) * len(spec.space.steps))
        except ValueError as error:
            raise UserError(str(error)) from error

    def build(self, plan: Plan) -> nn.Module:
        """Return the network of a plan, not yet trained."""
        return plan.apply(self.model, self.example)

    def build_roughly(self, plan: Plan) -> nn.Module:
        """Return nearly the same network, fitted on fewer inputs: for a proxy loss among hundreds."""
        return plan.apply(self.model, self._few)

    def finish(self, model: nn.Module) -> nn.Module:
        """Return the form of a network that is shipped."""
        return deployed(model, self.example)

    @functools.cached_property
    def finished(self) -> nn.Module:
        """The teacher as it would be shipped."""
        return self.finish(self.model)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the teacher as it was given."""
        return fingerprint(self._given)

    def export(self, runtime: Runtime, path: Path) -> None:
        """Write the teacher's own file for a runtime.

        Raises
        ------
        ExportError
            If the runtime cannot take it.
        """
        runtime.export(copy.deepcopy(self.finished).cpu(), self.example.cpu(), path)
