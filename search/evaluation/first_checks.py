"""What is checked before anything takes long: that the data are finite and alike, and that the teacher can be trained.

A fault that only shows after the table and the draft, or in the test split at the end, costs hours.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from objectives.trees import PerExample, at, leaves, moved, run, shape_words
from search.evaluation.label_checks import check_finite, check_labels, few
from search.study.console import console
from search.study.errors import UserError, raise_machine_fault
from search.training.fine_tuning import loss_of
from spaces import BitWidths
from spaces.network.messages import first_line, listed, number_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from objectives import Data
    from objectives.data import Held
    from objectives.trees import Tree
    from search.study.spec import Recipe, StudySpec
    from spaces import Recovery

TRIED_EXAMPLES = 4  # examples of the training step that is tried (chosen)
TRIED_RATE = 1e-3  # learning rate with which an optimizer is tried, if the recipe has none (chosen)
ONE_SHAPE = (
    "; all examples need one shape: pad sequences to one length, the same in every batch, with a mask or the lengths "
    "as a second input, and bring pictures to one size"
)
TRIED_SEEDS = 3  # random seeds after which a weight without a gradient counts as out of reach (chosen)


def check_split(
    name: str,
    examples: Data,
    train: Data,
    classes: int,
    ignored: int | None = None,
    accepts: Callable[[Held], bool] | None = None,
) -> None:
    """Check that a split is like the training split, that its numbers are finite, and its labels the teacher's classes.

    Parameters
    ----------
    name, examples
        The split; of a stream, a few examples are looked at.
    train
        The training split, whose shapes and types the split must have.
    classes
        The number of the teacher's classes; with 0 labels are not classes.
    ignored
        The label of places without a class.
    accepts
        Whether the loss takes examples whose labels are not finite; see `check_finite`.

    Raises
    ------
    UserError
        If something does not fit; the message names the split and the first such example.
    """
    check_labels(name, examples, classes, ignored)
    one, first = few(examples, 1), few(train, 1)
    for what, own, wanted in (("inputs", one.inputs, first.inputs), ("labels", one.labels, first.labels)):
        is_list = isinstance(own, PerExample)  # of boxes, whose number may differ
        if not is_list and shape_words(at(own, slice(1))) != shape_words(at(wanted, slice(1))):
            raise UserError(
                f"all splits must have {what} of one shape and type, but one of the {name} split is "
                f"{shape_words(own)}, of the training split {shape_words(wanted)}"
                + (ONE_SHAPE if what == "inputs" and _differ_in_lengths(own, wanted) else "")
            )
    check_finite(name, examples, accepts)
    if not examples.repeatable and name != "training":
        console.print(
            f"the transforms of the {name} split draw random numbers, so every measurement is another one; leave them "
            "to the training split"
        )


def _differ_in_lengths(one: Tree, other: Tree) -> bool:
    """Whether two trees of tensors are alike but for the lengths of their dimensions."""
    kinds, others = ([(tensor.dtype, tensor.dim()) for tensor in leaves(tree)] for tree in (one, other))
    return kinds == others


def check_weights(model: nn.Module) -> None:
    """Check that the weights of the teacher are finite; a buffer may hold infinity, as masks of attention do.

    Raises
    ------
    UserError
        If one is not.
    """
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor) or is_lazy(tensor) or not tensor.is_floating_point():
            continue
        bad = ~tensor.detach().isfinite() if name in trained else tensor.detach().isnan()
        if count := int(bad.sum()):
            raise UserError(
                f"the weights of the teacher must be finite, but {count} of {tensor.numel()} numbers in {name!r} are "
                "nan or infinity; load the weights again, or train the teacher anew with a lower learning rate"
            )


def check_answers(answers: Tree) -> None:
    """Check that the teacher's answers to the calibration inputs are finite.

    Raises
    ------
    UserError
        If one is not.
    """
    for tensor in leaves(answers):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            count = int((~tensor.isfinite()).sum())
            raise UserError(
                f"the teacher's answers must be finite, but {count} of {tensor.numel()} numbers of its answers to the "
                "calibration inputs are nan or infinity, though inputs and weights are finite; look for a division by "
                "zero, a logarithm or an overflow in its forward"
            )


def check_recipe(recipe: Recipe, model: nn.Module, inputs: Tree) -> None:
    """Try the recipe's optimizer and augmentation, which are functions of the user's.

    Parameters
    ----------
    recipe, model
        The recipe, and the teacher; it is not changed.
    inputs
        A batch of inputs on the CPU.

    Raises
    ------
    UserError
        If one fails, or the augmentation returns inputs of another form.
    """
    what, changed = "optimizer", inputs
    try:
        rate = recipe.learning_rate or TRIED_RATE
        recipe.optimizer(list(copy.deepcopy(model).parameters()), lr=rate, weight_decay=recipe.weight_decay)
        what = "augmentation"
        if recipe.augment is not None:
            changed = recipe.augment(inputs, torch.Generator().manual_seed(0))
    except Exception as error:
        raise_machine_fault(error)
        raise UserError(
            f"the {what} of the recipe must work on this network and its data, but failed: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error
    if shape_words(changed) != shape_words(inputs):
        raise UserError(
            f"the augmentation must return inputs like those it gets, {shape_words(inputs)}, but it returned "
            f"{shape_words(changed)}"
        )


def floats_note(spec: StudySpec) -> str:
    """Say that no axis makes integers, where the runtime of the study computes with them alone."""
    runtime = spec.runtime
    makes_integers = any(isinstance(axis, BitWidths) and axis.runtime == runtime for axis in spec.space.steps)
    if makes_integers or not getattr(runtime, "integers_only", False):
        return ""
    return (
        f"no BitWidths(runtime={type(runtime).__name__}()) is among the axes, so the files compute in floating point, "
        f"which the boards of {runtime.name} do slowly or not at all"
    )


def other_runtime_note(spec: StudySpec) -> str:
    """Say that precisions are those of another runtime than that of the files."""
    others = {getattr(axis.runtime, "name", "") for axis in spec.space.steps if isinstance(axis, BitWidths)}
    others -= {"", spec.runtime.name}
    if not others:
        return ""
    return (
        f"BitWidths offers the precisions of {listed(sorted(others))}, but the files are for {spec.runtime.name}, "
        "which stores those that it does not have as wider integers or in floating point: their bytes and latency are "
        f"not those that the search predicts; to search for {spec.runtime.name}, name it in the study, as in "
        "BitWidths(runtime=...)"
    )


def untrainable_note(model: nn.Module, examples: Held, recovery: Recovery, device: torch.device) -> str:
    """Try one training step on a copy of the teacher; describe the weights that it does not reach, if there are any.

    Parameters
    ----------
    model
        The teacher, on the device; it is not changed.
    examples, recovery
        Examples of the training set, and the loss.
    device
        The device of the teacher.

    Raises
    ------
    UserError
        If the step fails, or reaches no weight.
    """
    tried = examples.head(TRIED_EXAMPLES)
    inputs, labels = moved(tried.inputs, device), moved(tried.labels, device)
    with torch.no_grad():
        answers = run(model, inputs)
    student = copy.deepcopy(model).train()
    for seed in range(TRIED_SEEDS):  # a network may leave out layers at random
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                loss = loss_of(recovery, run(student, inputs), answers, labels)
            if loss.requires_grad:
                loss.backward()
        except UserError:
            raise
        except Exception as error:
            raise_machine_fault(error)
            raise UserError(
                "candidates are trained, but the teacher fails in training mode on "
                f"{number_of(len(tried), 'example')}: {type(error).__name__}: {first_line(error)}; "
                "its forward must also run after model.train()"
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
