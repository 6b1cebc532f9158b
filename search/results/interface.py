"""What an exported file takes and gives, and how examples of a study become that."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from objectives.layers import ResizesInput, inputs_of_file
from objectives.runtimes import ExportError
from objectives.runtimes.ends import Form, HasGrids, WithEnds, described, with_ends
from objectives.runtimes.image_sizes import PICTURE_DIMENSIONS
from objectives.trees import at, leaves, map_tensors, run, shape_words
from search.evaluation.comparison import COMPARED
from search.results.other_sizes import ensure_any_size, further_sizes
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

MOST_CHANNELS = 4  # of a picture that a sensor gives: more dimensions than that are heights and widths (chosen)
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

    def coded(self) -> nn.Module | None:
        """Return the network in torch with the codes of the ends, None if there are none."""
        coded = self.ends is not None and any(grid is not None for side in self.ends.grids for grid in side)
        return _Coded(self).eval() if coded else None

    def record(self, path: Path, runtime: Runtime, execute: Callable[[Tree], Tree]) -> dict[str, Any]:
        """Return types, shapes, scales and zero points of what the file takes and gives, and what it does itself."""
        found = self.described(self.examples.example(), path, runtime, execute)
        if self.ends is not None and self.ends.form.free_size:
            found["dynamic_size"] = True
        if self.ends is not None and self.ends.preprocessing is not None:
            found["preprocessing"] = " ".join(str(self.ends.preprocessing).split())
        return found

    def described(
        self, inputs: Tree, path: Path, runtime: Runtime, execute: Callable[[Tree], Tree], entry: int = 0
    ) -> dict[str, Any]:
        """Return types, shapes, scales and zero points of what an entry point of the file takes and gives."""
        taken = self.take(inputs)
        given = execute(taken)
        last = self.ends is not None and self.ends.form.channels_last
        order = "channels last" if last else "channels first"
        raw = self.ends is not None and self.ends.preprocessing is not None and not last  # in the order of the sensor
        grids = runtime.grids_of(path, entry) if isinstance(runtime, HasGrids) else self._grids(taken, given)
        return {
            "file_inputs": described(taken, grids[0], "" if raw else order),
            "file_outputs": described(given, grids[1], order),
        }

    def _grids(self, taken: Tree, given: Tree) -> tuple[Any, Any]:
        if self.ends is not None:
            return self.ends.grids
        return [None] * len(leaves(taken)), [None] * len(leaves(given))


class _Coded(nn.Module):
    """The ends of a file in torch, for inputs of the network."""

    def __init__(self, used: Interface) -> None:
        super().__init__()
        assert used.ends is not None
        self.ends, self._used = used.ends, used

    def forward(self, *inputs: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever the network takes
        """Return the outputs."""
        given = named or (inputs[0] if len(inputs) == 1 else inputs)
        return self._used.give(run(self.ends, self._used.take(given)))


def interface(
    model: nn.Module, finished: nn.Module, example: Tree, spec: StudySpec, form: Form, *, preprocessing: bool
) -> tuple[Interface, nn.Module, Tree]:
    """Return the interface of a file that is asked for, what the runtime exports, and calibration inputs of that.

    Parameters
    ----------
    model, finished
        The trained network, and its finished form, both on the CPU.
    example
        The calibration inputs of the study, on the CPU.
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
    taken = inputs_of_file(model, example)
    if not preprocessing and form == Form():
        return Interface(model, spec.splits.validation), finished, taken
    examples, network, module = spec.splits.validation, model, None
    if preprocessing:
        if spec.preprocessing is None:
            raise UserError("the study must have a preprocessing for --preprocessing: StudySpec(preprocessing=...)")
        module, examples = copy.deepcopy(spec.preprocessing.module).eval(), spec.preprocessing.examples
        _check(module, examples, spec)
        form = _as_it_comes(examples.example(), form)
        network, taken = Prepared(module, model).eval(), examples.sample(spec.calibration, spec.seed).inputs
    if form.free_size or form.sizes:
        if isinstance(model, ResizesInput) and not model.input_resize.in_file:
            raise ExportError("this candidate takes images that are resized outside of its file, to one size")
        few = at(taken, slice(2))
        if form.free_size:
            ensure_any_size(network, few, channels_last=form.come_last)
        form = form._replace(sizes=further_sizes(network, few, form.sizes, channels_last=form.come_last))
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
    given = map_tensors(raw, torch.clone)
    try:
        with torch.no_grad():
            found, again = run(module, given), run(module, map_tensors(raw, torch.clone))
    except Exception as error:
        raise UserError(f"the preprocessing fails on its examples, {shape_words(raw)}: {first_line(error)}") from error
    if shape_words(found) != shape_words(expected):
        raise UserError(f"the preprocessing must give {shape_words(expected)}, but gives {shape_words(found)}")
    if not all(map(torch.equal, leaves(given), leaves(raw))):
        raise UserError("the preprocessing must not write into what it gets; use inplace=False, or x - y for x.sub_(y)")
    if not all(map(torch.equal, leaves(found), leaves(again))):
        raise UserError("the preprocessing must give the same inputs every time; leave random transforms out")
    pairs = list(zip(leaves(found), leaves(expected), strict=True))
    difference = max(float((a.double() - b).abs().max() / b.double().std().clamp_min(1e-12)) for a, b in pairs)
    if difference > SAME_INPUTS:
        console.print(
            "the preprocessing gives inputs that differ from those of the validation split by up to "
            f"{difference:.2g} of their standard deviation; what is measured on the file shows what that costs"
        )


def _as_it_comes(raw: Tree, form: Form) -> Form:
    """Return the form with the order in which images of a sensor come, where their height and width are asked for.

    Raises
    ------
    UserError
        If some seem to have their channels last and others first.
    """
    images = [tensor for tensor in leaves(raw) if tensor.dim() in PICTURE_DIMENSIONS]
    last = [tensor.shape[-1] <= MOST_CHANNELS < tensor.shape[1] for tensor in images]
    if not any(last) or not (form.channels_last or form.free_size or form.sizes):
        return form
    if not all(last):
        raise UserError(
            f"images of the preprocessing, {shape_words(raw)}, must have their channels all first or all last for "
            "nhwc, --dynamic-size and --sizes"
        )
    console.print(f"images of the preprocessing, {shape_words(raw)}, have their channels last already and stay so")
    return form._replace(come_last=True)
