"""Check before anything is trained that labels belong to the teacher's outputs: classes, shapes, the loss itself."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from objectives.accuracy import has_classes
from objectives.examples import Examples
from objectives.samples import ensure_finite
from objectives.trees import PerExample, at, leaves, length, map_tensors, shape_words
from search.study.console import console
from search.study.errors import UserError
from spaces.network.messages import first_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from objectives import Data
    from objectives.data import Held
    from objectives.trees import Tree
    from spaces import Recovery

CHECKED = 64  # labels of a stream that are looked at; those in memory are all looked at (chosen)
USUAL_NO_CLASS = 255, 65_535  # labels that often stand for no class, as negative ones do: the largest of 8 and 16 bits
OPERANDS = 2  # tensors of an operation that may broadcast
SUM_TOLERANCE = 1e-3  # by which the sum of probabilities may differ from 1
WAYS_OUT = {
    "inputs": "repair these examples or leave them out",
    "labels": "repair these examples or leave them out, or use Imitations(loss=...) with a loss that masks them",
}


def check_loss(recovery: Recovery, output: Tree, labels: Tree) -> None:
    """Compute the loss of the teacher's outputs for a few examples, to find out whether they belong to the labels.

    Shapes such as (B, 1) and (B,) do not fail: they broadcast, and every answer is compared with the labels of all
    examples.

    Raises
    ------
    UserError
        If the loss fails, or if it compares outputs with labels of another shape.
    """
    got = f"outputs {shape_words(output)} and labels {shape_words(labels)}"
    leaf = map_tensors(output, _requiring_gradient)
    try:
        with warnings.catch_warnings(), torch.enable_grad(), _Broadcasts() as broadcasts:
            warnings.filterwarnings("error", message="Using a target size")
            loss = recovery.loss(leaf, output, labels)
    except Exception as error:
        raise UserError(
            f"the loss must accept the teacher's outputs and the labels, but it failed for {got}: "
            f"{first_line(error).rstrip('.')}; class labels are int64 of shape (N,), those of a regression have the "
            "shape of the output"
        ) from error
    if broadcasts.found:
        raise UserError(
            f"the loss must compare each output with its own label, but for {got} it combines {broadcasts.found[0]}, "
            "each with each; reshape the labels to the shape of the outputs"
        )
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = shape_words(loss)
        raise UserError(f"the loss must be one number, a mean over the examples, but for {got} it returned {what}")


def classes_of(output: Tree, labels: Tree) -> int:
    """Return the number of classes in the teacher's output, to which class labels belong.

    Raises
    ------
    UserError
        If the output is not one tensor, or not of the shape that the labels ask for.
    """
    if not isinstance(output, Tensor):
        raise UserError(
            f"distillation of classes needs one output tensor (N, classes, ...), but the teacher returns "
            f"{shape_words(output)}; use recovery=Imitations(loss=...) with a loss of outputs and labels"
        )
    if not has_classes(output, labels):
        raise UserError(
            f"class labels of shape (N, ...) need outputs of shape (N, classes, ...), but got outputs "
            f"{shape_words(output)} and labels {shape_words(labels)}"
        )
    return int(output.shape[1])


def check_labels(name: str, examples: Data, classes: int, ignored: int | None = None) -> None:
    """Check that every label is one of the teacher's classes; with 0 classes nothing is checked.

    Of a stream, a few labels are checked.

    Raises
    ------
    UserError
        If a label is out of range; the message names the range and the remedy.
    """
    if not classes:
        return
    labels = (examples if isinstance(examples, Examples) else examples.sample(CHECKED, 0)).labels
    if not examples.classified:
        raise UserError(
            f"the training labels are integers, but the labels of the {name} split are {shape_words(labels)}"
        )
    counted = labels[labels != ignored] if ignored is not None else labels
    if not counted.numel():
        return
    low, high = int(counted.min()), int(counted.max())
    if low < 0 or high >= classes:
        outside = counted[(counted < 0) | (counted >= classes)].unique()
        raise UserError(
            f"labels must be in [0, {classes}), for the outputs of the teacher, but the {name} split has labels from "
            f"{low} to {high}; {_remedy(classes, low, high, outside.tolist())}"
        )


def _remedy(classes: int, low: int, high: int, outside: list[int]) -> str:
    """Return what to do about class labels from `low` to `high`, of which those `outside` are out of range."""
    named = [label for label in outside if label < 0 or label in USUAL_NO_CLASS]
    no_class = f"name the label of places without a class: Temperatures(ignore_index={outside[0]})"
    if classes == 1 and named != outside:
        return (
            "one output tells two classes apart by its sign: give the labels as floats of the shape of the output, use "
            "recovery=Imitations(loss=torch.nn.functional.binary_cross_entropy_with_logits), and a Score as the metric"
        )
    if low == 1 and high == classes:
        return "they are counted from 1, so subtract 1 from all"
    ways = "renumber them, or use a teacher with more outputs"
    return f"{ways}, or {no_class}" if named == outside and len(outside) == 1 else ways


def check_probabilities(output: Tree, labels: Tree) -> None:
    """Check that labels with the shape of the outputs, as targets of the cross-entropy, are probabilities.

    Raises
    ------
    UserError
        If they do not sum to 1 over the classes, as those of several tags an example.
    """
    if not isinstance(output, Tensor) or not isinstance(labels, Tensor) or labels.shape != output.shape:
        return
    sums = labels.double().sum(1)
    if bool((labels < 0).any()) or float((sums - 1).abs().max()) > SUM_TOLERANCE:
        raise UserError(
            f"labels of shape (N, classes) must be probabilities that sum to 1, but they sum to {float(sums.min()):g} "
            f"to {float(sums.max()):g}; for several tags an example use recovery=Imitations(loss="
            "torch.nn.functional.binary_cross_entropy_with_logits), for a regression recovery=Imitations()"
        )


def check_finite(name: str, examples: Data, accepts: Callable[[Held], bool] | None = None) -> None:
    """Check that inputs and labels are finite numbers; of a stream, those of a few examples.

    Parameters
    ----------
    name, examples
        The split.
    accepts
        Whether the loss takes such examples: one of your own may take NaN as a label that is missing, and a note says
        so. None where no loss does.

    Raises
    ------
    UserError
        If a number is NaN or infinite; the message counts the examples.
    """
    found = examples if isinstance(examples, Examples) else examples.sample(CHECKED, 0)
    for kind, tree in (("inputs", found.inputs), ("labels", found.labels)):
        bad = not_finite(tree, len(found))
        if not len(bad):
            continue
        what = f"{len(bad)} of {len(found)} {name} {kind} contain nan or infinity, the first at index {int(bad[0])}"
        if (
            kind == "labels"
            and accepts is not None
            and accepts(Examples(at(found.inputs, bad[:CHECKED]), at(found.labels, bad[:CHECKED])))
        ):
            console.print(f"{what}; the loss is finite on them, so they count as labels that are missing")
            continue
        raise UserError(f"all data must be finite, but {what}; {WAYS_OUT[kind]}")


def check_all_labels(name: str, examples: Data) -> None:
    """Check that the labels of a whole split are finite numbers, also those of a stream.

    Raises
    ------
    NotFinite
        If one is not; the message names its place.
    """
    start = 0
    for inputs, labels in examples.batches():
        count = length(inputs) or 0
        ensure_finite(labels, f"{name} split", range(start, start + count), "labels")
        start += count


def not_finite(tree: Tree, count: int) -> Tensor:
    """Return the indices of those of `count` examples that contain NaN or infinity."""
    if isinstance(tree, PerExample):
        return torch.tensor([index for index, item in enumerate(tree) if len(not_finite(item, 0))], dtype=torch.long)
    bad = torch.zeros(count, dtype=torch.bool)
    for tensor in leaves(tree):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            if not count:  # of one example
                return torch.zeros(1, dtype=torch.long)
            bad |= ~tensor.flatten(1).isfinite().all(1).cpu() if tensor.dim() > 1 else ~tensor.isfinite().cpu()
    return bad.nonzero()[:, 0]


def few(examples: Data, count: int) -> Held:
    """Return the first examples in memory, a sample of a stream."""
    if isinstance(examples, Examples):
        return examples.head(count)
    return examples.sample(count, 0)


class _Broadcasts(TorchFunctionMode):
    """Notes operations on outputs and labels whose result is larger than either, as their dimensions do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        given = [arg for arg in args if isinstance(arg, Tensor)]
        if len(given) == OPERANDS and isinstance(result, Tensor) and given[0].requires_grad != given[1].requires_grad:
            one, other = (tuple(tensor.shape) for tensor in given)
            aligned = not one or not other or len(one) == len(other)
            if not aligned and tuple(result.shape) not in {one, other} and result.dim() == max(len(one), len(other)):
                self.found.append(f"{one} and {other} to {tuple(result.shape)}")
        return result


def _requiring_gradient(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point())
