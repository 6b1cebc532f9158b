"""What an exported file takes and gives, and how examples of a study become that."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from objectives.layers import inputs_of_file
from objectives.runtimes import ExportError
from objectives.runtimes.ends import PICTURE_DIMENSIONS, Form, HasGrids, WithEnds, described, with_ends
from objectives.trees import at, leaves, map_tensors, moved, run, shape_words
from search.evaluation.comparison import COMPARED, compared
from search.study.console import console
from search.study.errors import UserError
from spaces.network.messages import first_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from objectives import Data
    from objectives.runtimes import Runtime
    from objectives.trees import Tree
    from search.study.spec import StudySpec

OTHER_SIZES = (2, 1), (1, 2)  # times height and width, at which a file that takes any size is tried (chosen)
SAME_INPUTS = 1e-3  # largest difference of inputs, over their standard deviation, that is not worth a line (chosen)


class Prepared(nn.Module):
    """A network behind what prepares its inputs."""

    def __init__(self, preprocessing: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.preprocessing, self.network = preprocessing, network

    def forward(self, *inputs: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever the preprocessing takes
        """Return the outputs for what a sensor gives."""
        return run(self.network, self.preprocessing(*inputs, **named))


@dataclass(frozen=True)
class Interface:
    """What a file takes and gives.

    Attributes
    ----------
    network
        The network in torch that answers to the examples.
    examples
        What the file is verified on.
    ends
        The network as it is exported, if the file takes or gives anything else than the network.
    """

    network: nn.Module
    examples: Data
    ends: WithEnds | None = None

    def take(self, inputs: Tree) -> Tree:
        """Return what the file takes for inputs of the network."""
        inputs = inputs_of_file(self.network, inputs)
        return inputs if self.ends is None else self.ends.encoded(inputs)

    def give(self, outputs: Tree) -> Tree:
        """Return the outputs of the network for what the file gave."""
        return outputs if self.ends is None else self.ends.decoded(outputs)

    def record(self, path: Path, runtime: Runtime, execute: Callable[[Tree], Tree]) -> dict[str, Any]:
        """Return types, shapes, scales and zero points of what the file takes and gives, and what it does itself."""
        taken = self.take(self.examples.example())
        given = execute(taken)
        last = self.ends is not None and self.ends.form.channels_last
        inputs, outputs = runtime.grids_of(path) if isinstance(runtime, HasGrids) else self._grids(taken, given)
        found: dict[str, Any] = {
            "file_inputs": described(taken, inputs, channels_last=last),
            "file_outputs": described(given, outputs, channels_last=last),
        }
        if self.ends is not None and self.ends.form.free_size:
            found["dynamic_size"] = True
        if self.ends is not None and self.ends.preprocessing is not None:
            found["preprocessing"] = " ".join(str(self.ends.preprocessing).split())
        return found

    def _grids(self, taken: Tree, given: Tree) -> tuple[Any, Any]:
        if self.ends is not None:
            return self.ends.grids
        return [None] * len(leaves(taken)), [None] * len(leaves(given))


def interface(
    model: nn.Module, finished: nn.Module, spec: StudySpec, form: Form, *, preprocessing: bool
) -> tuple[Interface, nn.Module, Tree]:
    """Return the interface of a file that is asked for, what the runtime exports, and calibration inputs of that.

    Parameters
    ----------
    model, finished
        The trained network, and its finished form, both on the CPU.
    spec
        The study.
    form
        The numbers at the ends of the file.
    preprocessing
        Whether the study's preprocessing becomes a part of the file.

    Raises
    ------
    ExportError
        If the network does not take images of other sizes, where this is asked.
    UserError
        If the study has no preprocessing, or it does not give inputs of the network.
    """
    example = moved(spec.example(), "cpu")
    taken = inputs_of_file(model, example)
    if not preprocessing and form == Form():
        return Interface(model, spec.splits.validation), finished, taken
    examples, network, module = spec.splits.validation, model, None
    if preprocessing:
        if spec.preprocessing is None:
            raise UserError("the study must have a preprocessing for --preprocessing: StudySpec(preprocessing=...)")
        module, examples = spec.preprocessing.module.eval(), spec.preprocessing.examples
        _check(module, examples, spec)
        network, taken = Prepared(module, model).eval(), examples.sample(spec.calibration, spec.seed).inputs
    if form.free_size:
        _ensure_any_size(network, at(taken, slice(2)))
    ends = with_ends(finished, taken, form, module)
    return Interface(network, examples, ends), ends, ends.encoded(taken)


def _check(module: nn.Module, examples: Data, spec: StudySpec) -> None:
    """Compare what the preprocessing gives for its first examples with the first validation inputs.

    Raises
    ------
    UserError
        If it fails or gives other shapes.
    """
    validation = spec.splits.validation
    if len(examples) != len(validation):
        raise UserError(
            f"the examples of the preprocessing must be the {len(validation):,} of the validation split, but are "
            f"{len(examples):,}"
        )
    (raw, _), (expected, _) = (next(iter(one.head(COMPARED).batches())) for one in (examples, validation))
    try:
        with torch.no_grad():
            found = run(module, raw)
    except Exception as error:
        raise UserError(f"the preprocessing fails on its examples, {shape_words(raw)}: {first_line(error)}") from error
    if shape_words(found) != shape_words(expected):
        raise UserError(f"the preprocessing must give {shape_words(expected)}, but gives {shape_words(found)}")
    pairs = list(zip(leaves(found), leaves(expected), strict=True))
    difference = max(float((a.double() - b).abs().max() / b.double().std().clamp_min(1e-12)) for a, b in pairs)
    if difference > SAME_INPUTS:
        console.print(
            "the preprocessing gives inputs that differ from those of the validation split by up to "
            f"{difference:.2g} of their standard deviation; what is measured on the file shows what that costs"
        )


def _at_other_sizes(inputs: Tree) -> list[Tree]:
    """Return inputs whose images are enlarged; those of `OTHER_SIZES`."""
    return [map_tensors(inputs, functools.partial(_enlarged, factors=factors)) for factors in OTHER_SIZES]


def _enlarged(tensor: torch.Tensor, factors: tuple[int, int]) -> torch.Tensor:
    if tensor.dim() not in PICTURE_DIMENSIONS:
        return tensor
    size = [*tensor.shape[2:-2], *(a * b for a, b in zip(tensor.shape[-2:], factors, strict=True))]
    return F.interpolate(tensor.float(), size).to(tensor.dtype)


def _ensure_any_size(network: nn.Module, inputs: Tree) -> None:
    """Check that a network takes images of other sizes.

    Raises
    ------
    ExportError
        If it does not.
    """
    if not any(tensor.dim() in PICTURE_DIMENSIONS for tensor in leaves(inputs)):
        raise ExportError(f"--dynamic-size is about images, but the network takes {shape_words(inputs)}")
    for larger in _at_other_sizes(inputs):
        try:
            with torch.no_grad():
                run(network, larger)
        except Exception as error:
            raise ExportError(
                f"a network must take images of other sizes for --dynamic-size, but with {shape_words(larger)} it "
                f"fails: {first_line(error)}"
            ) from error


def ensure_free_sizes(used: Interface, execute: Callable[[Tree], Tree]) -> None:
    """Compare the answers of a file with those of its network at other sizes of its images, where it shall take them.

    Raises
    ------
    ExportError
        If the file does not take them, or answers otherwise.
    """
    if used.ends is None or not used.ends.form.free_size:
        return
    for larger in _at_other_sizes(moved(used.examples.example(2), "cpu")):
        try:
            found = compared(used.network, larger, lambda inputs: used.give(execute(used.take(inputs))))
        except Exception as error:
            raise ExportError(
                f"the file does not take {shape_words(larger)}, for which --dynamic-size asks: {first_line(error)}"
            ) from error
        if found is not None and found["sqnr_db"] < found["allowed_sqnr_db"]:
            raise ExportError(
                f"the file answers otherwise than its network to {shape_words(larger)}: {found['sqnr_db']:.1f} dB, of "
                f"at least {found['allowed_sqnr_db']:.1f}; export it without --dynamic-size"
            )
