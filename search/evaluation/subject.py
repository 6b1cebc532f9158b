"""The subject: the teacher with plain layers, traced, ready to be compressed, with its calibration inputs."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import torch

from objectives.trees import leaves, length, map_tensors, moved
from search.evaluation.first_checks import check_weights
from search.evaluation.label_checks import check_finite, not_finite
from search.study.console import console
from search.study.definition import fingerprint
from search.study.errors import UserError
from spaces import deployed, with_plain_layers
from spaces.network.messages import listed
from spaces.network.normalizing import normalized

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from objectives.runtimes import Runtime
    from objectives.trees import Tree
    from search.study.spec import StudySpec
    from spaces import Anatomy, Plan

ROUGH_INPUTS = 128  # most calibration inputs for a network that is built only to be scored or measured (chosen)


class Subject:
    """The teacher of a study, ready to be compressed; it is never changed.

    It is normalized first (`spaces.network.normalizing`), and the notes on that are printed.

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
    normal
        The teacher in evaluation mode on the device, as it is measured where an objective refers to it.
    anatomy
        Its layers and groups of channels.
    example
        The calibration inputs on the device, shape (calibration, ...), or several in a tuple or dict.

    Raises
    ------
    UserError
        If the teacher does not run on the data, or an axis names a layer that the teacher does not have.
    """

    def __init__(self, spec: StudySpec, device: torch.device) -> None:
        self.device = device
        self.example: Tree = moved(spec.example(), device)
        self._rough_examples: dict[int, Tree] = {}  # kept, since statistics are cached by their identity
        self._given = spec.teacher
        _check_inputs(self.example)
        if len(not_finite(self.example, length(self.example) or 0)):
            check_finite("training", spec.splits.train)  # names the place
            check_finite("calibration", spec.splits.train.sample(spec.calibration, spec.seed))
        check_weights(spec.teacher)
        try:
            self.normal, notes = normalized(spec.teacher, self.example)
            for note in notes:
                console.print(note)
            self.model: nn.Module = with_plain_layers(self.normal, self.example)
            self.anatomy: Anatomy = spec.space.trace(self.model, self.example)
            if self.anatomy.unread:
                console.print(unread_note(self.anatomy.unread))
            spec.space.uniform(self.anatomy, (0.0,) * len(spec.space.steps))
        except ValueError as error:
            raise UserError(str(error)) from error

    def build(self, plan: Plan) -> nn.Module:
        """Return the untrained network of a plan."""
        return plan.apply(self.model, self.example)

    def build_roughly(self, plan: Plan, count: int = ROUGH_INPUTS) -> nn.Module:
        """Return almost the same network, fitted on `count` inputs; used for the proxy losses of many plans."""
        if count not in self._rough_examples:
            self._rough_examples[count] = map_tensors(self.example, lambda tensor: tensor[:count].clone())
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

    def referred_to(self, spec: StudySpec) -> StudySpec:
        """Return the study with the normalized teacher in the objectives that refer to the teacher, such as latency."""
        found: dict[int, Any] = {id(self._given): self.normal}
        return spec.with_objectives({one.name: _substituted(one, found) for one in spec.measured})

    def export(self, runtime: Runtime, path: Path) -> None:
        """Write the teacher's file for a runtime.

        Raises
        ------
        ExportError
            If the runtime does not support the teacher.
        """
        runtime.export(copy.deepcopy(self.finished).cpu(), moved(self.example, "cpu"), path)


def unread_note(names: Sequence[str]) -> str:
    """Say what is done with layers that run although no output depends on them."""
    runs, it, are, they = ("runs", "it", "is", "it") if len(names) == 1 else ("run", "them", "are", "they")
    return (
        f"{listed(names)} {runs}, but no output depends on {it}: {they} {are} left as {they} {are}, and not counted; "
        f"exported files do not have {it}, weights keep {it}"
    )


def _substituted(value: Any, found: dict[int, Any]) -> Any:  # noqa: ANN401 - an objective, or a part of one
    """Return a dataclass with objects replaced by those that are found for them; itself if it holds none of them."""
    if id(value) not in found:
        new: Any = value
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            given = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
            changed = {name: part for name, old in given.items() if (part := _substituted(old, found)) is not old}
            new = dataclasses.replace(value, **changed) if changed else value
        found[id(value)] = new
    return found[id(value)]


def _check_inputs(inputs: Tree) -> None:
    """Check that the calibration inputs are 32-bit floats, integers or truth values.

    Raises
    ------
    UserError
        If they are not.
    """
    for tensor in leaves(inputs):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"inputs must be 32-bit floats or integers, but got {kind}; pass inputs.float() to Examples"
            )
