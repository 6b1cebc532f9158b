"""What an exported file takes and gives, and how examples of a study become that."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from objectives.layers import ResizesInput, inputs_of_file
from objectives.runtimes import ExportError
from objectives.runtimes.ends import PICTURE_DIMENSIONS, Form, HasGrids, SizesInSteps, WithEnds, described, with_ends
from objectives.trees import at, leaves, map_tensors, moved, run, shape_words
from search.evaluation.comparison import COMPARED, compared
from search.study.console import console
from search.study.errors import UserError
from spaces.network.messages import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from objectives import Data
    from objectives.runtimes import Runtime
    from objectives.trees import Tree
    from search.study.spec import StudySpec

MOST_CHANNELS = 4  # of a picture that a sensor gives: more dimensions than that are heights and widths (chosen)
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

    def coded(self) -> nn.Module | None:
        """Return the network in torch with the codes of the ends, None if there are none."""
        coded = self.ends is not None and any(grid is not None for side in self.ends.grids for grid in side)
        return _Coded(self).eval() if coded else None

    def record(self, path: Path, runtime: Runtime, execute: Callable[[Tree], Tree]) -> dict[str, Any]:
        """Return types, shapes, scales and zero points of what the file takes and gives, and what it does itself."""
        taken = self.take(self.examples.example())
        given = execute(taken)
        last = self.ends is not None and self.ends.form.channels_last
        order = "channels last" if last else "channels first"
        raw = self.ends is not None and self.ends.preprocessing is not None and not last  # in the order of the sensor
        inputs, outputs = runtime.grids_of(path) if isinstance(runtime, HasGrids) else self._grids(taken, given)
        found: dict[str, Any] = {
            "file_inputs": described(taken, inputs, "" if raw else order),
            "file_outputs": described(given, outputs, order),
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
    if form.free_size:
        if isinstance(model, ResizesInput) and not model.input_resize.in_file:
            raise ExportError("this candidate takes images that are resized outside of its file, to one size")
        _ensure_any_size(network, at(taken, slice(2)), form)
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
    if not any(last) or not (form.channels_last or form.free_size):
        return form
    if not all(last):
        raise UserError(
            f"images of the preprocessing, {shape_words(raw)}, must have their channels all first or all last for nhwc "
            "and --dynamic-size"
        )
    console.print(f"images of the preprocessing, {shape_words(raw)}, have their channels last already and stay so")
    return form._replace(come_last=True)


def _at_other_sizes(inputs: Tree, sizes: Sequence[tuple[int, int]], form: Form, more: int = 0) -> list[Tree]:
    """Return inputs whose images have so many times the height and the width, and some rows and columns more."""
    enlarged = functools.partial(_enlarged, last=form.come_last, more=more)
    return [map_tensors(inputs, functools.partial(enlarged, factors=factors)) for factors in sizes]


def _enlarged(tensor: torch.Tensor, factors: tuple[int, int], more: int, *, last: bool) -> torch.Tensor:
    if tensor.dim() not in PICTURE_DIMENSIONS:
        return tensor
    first = tensor.movedim(-1, 1) if last else tensor
    size = [*first.shape[2:-2], *(a * b + more for a, b in zip(first.shape[-2:], factors, strict=True))]
    found = F.interpolate(first.float(), size).to(tensor.dtype)
    return found.movedim(1, -1).contiguous() if last else found


def _ensure_any_size(network: nn.Module, inputs: Tree, form: Form) -> None:
    """Check that a network takes images of other sizes.

    Raises
    ------
    ExportError
        If it does not.
    """
    if not any(tensor.dim() in PICTURE_DIMENSIONS for tensor in leaves(inputs)):
        raise ExportError(f"--dynamic-size is about images, but the network takes {shape_words(inputs)}")
    for larger in _at_other_sizes(inputs, OTHER_SIZES, form):
        try:
            with torch.no_grad():
                run(network, larger)
        except Exception as error:
            raise ExportError(
                f"a network must take images of other sizes for --dynamic-size, but with {shape_words(larger)} it "
                f"fails: {first_line(error)}"
            ) from error


def ensure_free_sizes(used: Interface, runtime: Runtime, execute: Callable[[Tree], Tree]) -> None:
    """Compare the answers of a file with those of its network at other sizes of its images, where it shall take them.

    Sizes that are one larger, and so odd where the example's are even, are tried where network and file take them.

    Raises
    ------
    ExportError
        If the file does not take them, or answers otherwise.
    """
    if used.ends is None or not used.ends.form.free_size:
        return
    inputs, form = moved(used.examples.example(2), "cpu"), used.ends.form
    sizes = [(larger, True) for larger in _at_other_sizes(inputs, OTHER_SIZES, form)]
    if not (isinstance(runtime, SizesInSteps) and runtime.sizes_in_steps):
        sizes += [(larger, False) for larger in _at_other_sizes(inputs, ((1, 1),), form, more=1)]
    for larger, must in sizes:
        try:
            found = compared(used.network, larger, lambda given: used.give(execute(used.take(given))), used.coded())
        except Exception as error:
            if not must and not _runs(used.network, larger):
                continue
            raise ExportError(
                f"the file does not take {shape_words(larger)}, for which --dynamic-size asks: {first_line(error)}"
            ) from error
        if found is not None and found["sqnr_db"] < found["allowed_sqnr_db"]:
            raise ExportError(
                f"the file answers otherwise than its network to {shape_words(larger)}: {found['sqnr_db']:.1f} dB, of "
                f"at least {found['allowed_sqnr_db']:.1f}; export it without --dynamic-size"
            )


def _runs(network: nn.Module, inputs: Tree) -> bool:
    """Return whether a network takes inputs."""
    try:
        with torch.no_grad():
            run(network, inputs)
    except Exception:  # noqa: BLE001 - a network may refuse sizes in any way
        return False
    return True
