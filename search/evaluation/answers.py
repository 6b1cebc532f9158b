"""The teacher's answers to a few calibration inputs, kept with the study: they tell whether its code was changed."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch

from objectives.trees import at, leaves, moved, run
from search.study.console import console
from search.study.errors import UserError
from search.study.records import ANSWERS

if TYPE_CHECKING:
    from optuna import Study
    from torch import Tensor

    from objectives.trees import Tree
    from search.evaluation.subject import Subject

ASKED_INPUTS = 8  # first calibration inputs that the teacher answers (chosen)
KEPT_VALUES = 512  # most values of all answers that are kept (chosen)
ANSWER_TOLERANCE = 1e-3  # difference, over the standard deviation of the answers, that machines may have (chosen)
INPUT_TOLERANCE = 1e-5  # the same for inputs, such as decoded pictures


def ensure_same_answers(study: Study, subject: Subject) -> None:
    """Compare the teacher's answers with those that were stored with the study; store them if there are none.

    Weights and the text of the modules are in the definition of a study, but not what its `forward` does with them. The
    answers are computed on the CPU, with 32-bit floats, and compared with a tolerance, because machines and numbers of
    threads sum in another order. Where the calibration inputs differ, as with random transforms, or the teacher draws
    random numbers, nothing can be compared.

    Raises
    ------
    UserError
        If they differ.
    """
    inputs = moved(at(subject.example, slice(ASKED_INPUTS)), "cpu")
    asked, answers = _described(inputs), _described(_answers(subject, inputs, seed=0))
    stored = study.user_attrs.get(ANSWERS)
    if stored is None:
        if not _difference(answers, _described(_answers(subject, inputs, seed=1))):
            study.set_user_attr(ANSWERS, {"inputs": asked, "outputs": answers})
        return
    if _difference(stored["inputs"], asked) > INPUT_TOLERANCE:
        console.print(
            "the calibration inputs are not those that the study was created with, so it is not known whether the code "
            "of the teacher was changed since"
        )
        return
    difference = _difference(stored["outputs"], answers)
    if not difference <= ANSWER_TOLERANCE:
        raise UserError(
            f"the study {study.study_name!r} was stored with a teacher that has the same weights but other answers: "
            f"they differ by {difference:.2g} of their standard deviation, so the code of its forward was changed; "
            "undo that, or start another study with --folder"
        )


def _answers(subject: Subject, inputs: Tree, *, seed: int) -> Tree:
    """Return the answers of the teacher on the CPU; a teacher that draws random numbers draws those of the seed."""
    teacher = copy.deepcopy(subject.normal).cpu()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return run(teacher, inputs)


def _described(tree: Tree) -> list[dict[str, Any]]:
    """Return for every tensor its shape, mean and standard deviation, and evenly spaced values."""
    tensors = [tensor.detach().double().flatten() for tensor in leaves(tree)]
    count = max(1, KEPT_VALUES // max(1, len(tensors)))
    return [_description(tensor, count) for tensor in tensors]


def _description(values: Tensor, count: int) -> dict[str, Any]:
    finite = values[values.isfinite()]
    spread = float(finite.std(correction=0)) if len(finite) else 0.0
    places = torch.linspace(0, max(0, len(values) - 1), min(count, len(values))).round().long()
    return {
        "count": len(values),
        "mean": float(finite.mean()) if len(finite) else 0.0,
        "spread": spread,
        "values": [float(f"{value:.7g}") if math.isfinite(value) else None for value in values[places].tolist()],
    }


def _difference(stored: list[dict[str, Any]], now: list[dict[str, Any]]) -> float:
    """Return the largest difference of two descriptions, over the standard deviation of the stored values."""
    if [one["count"] for one in stored] != [one["count"] for one in now]:
        return math.inf
    return max((_largest(before, after) for before, after in zip(stored, now, strict=True)), default=0.0)


def _largest(stored: dict[str, Any], now: dict[str, Any]) -> float:
    before, after = ([one["mean"], one["spread"], *one["values"]] for one in (stored, now))
    if [value is None for value in before] != [value is None for value in after]:
        return math.inf
    scale = stored["spread"] or abs(stored["mean"]) or 1.0
    pairs = zip(before, after, strict=True)
    return max(float(abs(b - a) / max(scale, abs(b))) for b, a in pairs if b is not None)
