"""What is checked before anything takes long: that the data are finite and alike, and that the teacher can be trained.

A fault that only shows after the table and the draft, or in the test split at the end, costs hours.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from search.study.errors import UserError, raise_machine_fault
from search.training.fine_tuning import heads_of
from spaces.network.messages import first_line
from spaces.network.normalizing import listed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from objectives import Examples
    from spaces import Recovery

TRIED_EXAMPLES = 4  # examples of the training step that is tried (chosen)
TRIED_SEEDS = 3  # random seeds after which a weight without a gradient counts as out of reach (chosen)
CHUNK = 4096  # examples that are tested together, so that the test takes little memory


def check_split(name: str, examples: Examples, train: Examples, classes: int) -> None:
    """Check that inputs, and labels that are numbers, are finite, and that labels are classes of the teacher.

    Parameters
    ----------
    name, examples
        The split.
    train
        The training split, whose shapes and types the split must have.
    classes
        The number of the teacher's classes; with 0 labels are not classes.

    Raises
    ------
    UserError
        If they are not; the message names the split and the first such example.
    """
    check_labels(name, examples, classes)
    for what in ("inputs", "labels"):
        values, of_training = getattr(examples, what), getattr(train, what)
        if values.shape[1:] != of_training.shape[1:] or values.dtype != of_training.dtype:
            raise UserError(
                f"all splits must have {what} of one shape and type, but those of the {name} split have "
                f"{_shape_words(values)}, those of the training split {_shape_words(of_training)}"
            )
        _check_finite(f"{name} {what}", values)


def check_labels(name: str, examples: Examples, classes: int) -> None:
    """Check that every label is one of the teacher's classes; with 0 classes nothing is checked.

    Raises
    ------
    UserError
        If a label is out of range; the message names the range and the remedy.
    """
    if not classes:
        return
    if not examples.classified:
        raise UserError(
            f"the training labels are integers, but the labels of the {name} split are {examples.labels.dtype}"
        )
    low, high = int(examples.labels.min()), int(examples.labels.max())
    if low < 0 or high >= classes:
        raise UserError(
            f"labels must be in [0, {classes}), the teacher's {classes} outputs, but the {name} split has labels from "
            f"{low} to {high}; renumber them or use a teacher with more outputs"
        )


def _shape_words(values: Tensor) -> str:
    return f"{tuple(values.shape[1:])} {str(values.dtype).removeprefix('torch.')}"


def _check_finite(name: str, values: Tensor) -> None:
    if not values.is_floating_point():
        return
    bad = torch.cat([~part.flatten(1).isfinite().all(1) if part.dim() > 1 else ~part.isfinite()
                     for part in values.split(CHUNK)])  # fmt: skip
    if bad.any():
        raise UserError(
            f"all data must be finite, but {int(bad.sum())} of {len(bad)} {name} contain nan or infinity, the first at "
            f"index {int(bad.nonzero()[0])}; repair these examples or leave them out"
        )


def untrainable_note(model: nn.Module, examples: Examples, recovery: Recovery, device: torch.device) -> str:
    """Try one training step on a copy of the teacher; describe the weights that it does not reach, if there are any.

    Parameters
    ----------
    model
        The teacher, on the device; it is not changed.
    examples, recovery
        The training set and the loss.
    device
        The device of the teacher.

    Raises
    ------
    UserError
        If the step fails, or reaches no weight.
    """
    inputs, labels = examples.inputs[:TRIED_EXAMPLES].to(device), examples.labels[:TRIED_EXAMPLES].to(device)
    with torch.no_grad():
        answers = model(inputs)
    student = copy.deepcopy(model).train()
    for seed in range(TRIED_SEEDS):  # a network may leave out layers at random
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                heads = heads_of(student(inputs), answers)
                loss = torch.stack([recovery.loss(head, answers, labels) for head in heads]).mean()
            if loss.requires_grad:
                loss.backward()
        except UserError:
            raise
        except Exception as error:
            raise_machine_fault(error)
            raise UserError(
                f"candidates are trained, but the teacher fails in training mode on {len(inputs)} examples: "
                f"{type(error).__name__}: {first_line(error)}; its forward must also run after model.train()"
            ) from error
        missed = [name for name, weight in student.named_parameters() if weight.grad is None]
        if not missed:
            return ""
    count = sum(1 for _ in student.parameters())
    if len(missed) == count:
        raise UserError(
            "no gradient reaches any weight of the teacher, so no candidate could be trained: its forward runs under "
            "torch.no_grad() or torch.inference_mode(), or detaches its output; remove that from the forward"
        )
    return (
        f"no gradient reaches {len(missed)} of the {count} weights ({listed(missed)}): training leaves them as they "
        "are, since the forward does not use them, or calls them under torch.no_grad()"
    )
