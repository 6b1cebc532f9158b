"""Train the teacher of a study once, and load it from a cache afterwards."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from search.study.console import console, track
from search.study.definition import define_value, define_value_with_modules, fingerprint
from search.study.files import named_by_content, save_named_by_content
from search.study.numbers import check_positive
from search.study.weights import restore, save_state
from search.training.fine_tuning import TeacherOutputs, fine_tune
from search.training.learning_rate import range_test

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from objectives import Data
    from objectives.trees import Tree
    from search.study.spec import Recipe

TEACHERS_VARIABLE = "SLIMFRONT_TEACHERS"  # the environment variable that names the folder of trained teachers
TEACHERS = "runs/teachers"  # that folder if the variable is not set
SUFFIX = ".safetensors"


class Labels:
    """The recovery of a network without a teacher: cross-entropy with smoothed labels.

    Parameters
    ----------
    smoothing
        Share of each target that is spread over all classes (Szegedy et al. 2016, arXiv:1512.00567, §7).
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing = smoothing

    def loss(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002 - there is no teacher
        """Return the scalar loss."""
        return F.cross_entropy(student, labels, label_smoothing=self.smoothing)

    def words(self) -> str:
        """Return the description for reports."""
        return "labels only"


class _NoTeacher(TeacherOutputs):
    def outputs_of(self, inputs: Tree, keys: Tensor | None) -> Tree:  # noqa: ARG002
        return None


class OfTask:
    """The recovery of a network without a teacher, for any task.

    Parameters
    ----------
    loss_of
        The loss of the task, a function of outputs and labels.
    """

    def __init__(self, loss_of: Callable[[Tree, Tree], Tensor]) -> None:
        self.loss_of = loss_of

    def loss(self, student: Tree, teacher: Tree, labels: Tree) -> Tensor:  # noqa: ARG002 - there is no teacher
        """Return the scalar loss."""
        return self.loss_of(student, labels)

    def words(self) -> str:
        """Return the description for reports."""
        return "labels only"


def trained(
    model: nn.Module,
    train: Data,
    recipe: Recipe,
    *,
    seed: int = 0,
    smoothing: float = 0.0,
    loss: Callable[[Tree, Tree], Tensor] | None = None,
) -> nn.Module:
    """Return `model` trained; the weights are loaded if the same model, data, recipe and seed were trained before.

    The weights are kept as safetensors in the folder named by the environment variable SLIMFRONT_TEACHERS, by default
    `runs/teachers`.

    Parameters
    ----------
    model
        The initialized model; trained in place on a GPU if there is one, and returned on the CPU in evaluation mode.
    train
        The training set.
    recipe, seed, smoothing
        The recipe, the seed and the label smoothing (see `Labels`) of the training.
    loss
        The loss of the task, a function of outputs and labels; None for the cross-entropy.
    """
    check_positive("epochs", recipe.epochs)
    class_name = type(model).__name__
    rest: tuple[object, ...] = (fingerprint(model), train, seed, smoothing)
    if loss is not None:
        rest += (loss.__qualname__,)
    stem, folder = _stem(class_name, define_value(recipe), rest), Path(os.environ.get(TEACHERS_VARIABLE, TEACHERS))
    for candidate in (stem, _stem(class_name, define_value_with_modules(recipe), rest)):  # the second: of version 0.1
        if found := named_by_content(folder, candidate, SUFFIX):
            restore(model, found)
            return model.eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    recovery = Labels(smoothing) if loss is None else OfTask(loss)
    arguments = _NoTeacher(model, train), train, recovery
    if recipe.learning_rate is None:
        recipe = recipe.at_rate(range_test(model, *arguments, recipe, seed))
    with track(f"training the teacher {class_name}") as progress:
        fine_tune(model, *arguments, recipe, seed, progress)
    model.to("cpu")
    path = save_named_by_content(folder, stem, SUFFIX, functools.partial(save_state, model))
    console.print(f"the weights of the teacher {class_name} are stored in {path}")
    return model.eval()


def _stem(class_name: str, recipe: dict[str, str], rest: tuple[object, ...]) -> str:
    """Return the beginning of the name of the file of a teacher's weights."""
    digest = hashlib.sha256(repr((sorted(recipe.items()), *rest)).encode()).hexdigest()[:12]
    return f"{class_name.lower()}-{digest}"
