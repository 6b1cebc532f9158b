"""The ends of a file: what it takes and gives, where this is not what its network takes and gives.

Cameras and boards give bytes, with the channels of a pixel side by side, and often not yet prepared as in training. A
file can take them as they come: `WithEnds` is the network with what is put before and after it. Runtimes export it like
any network; those whose format has integers as inputs and outputs use these (see `WithEnds.of_floats`).

Legend: a `code` is an integer that stands for the number (code - zero point) x scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from objectives.runtimes.end_grids import MEASURED_AT_ONCE, measured_grids
from objectives.runtimes.errors import ExportError
from objectives.runtimes.image_sizes import PICTURE_DIMENSIONS, Size, resized
from objectives.runtimes.passes.grid import DEQUANTIZE, QUANTIZE, Grid
from objectives.trees import Tree, at, leaves, map_tensors, rebuilt, run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TYPES = "float32", "int8", "uint8"
CHANNELS_LAST, CHANNELS_FIRST = "nhwc", "nchw"
END_WORDS = (*TYPES, CHANNELS_LAST, CHANNELS_FIRST)


class Form(NamedTuple):
    """What the numbers at the ends of a file are.

    Attributes
    ----------
    type
        ``float32``, ``int8`` or ``uint8``; empty for what the runtime has: floats, or for .tflite files whose first or
        last layer computes with integers, integers.
    channels_last
        Whether images have their channels as last dimension, (B, H, W, C), and videos and volumes too.
    free_size
        Whether the file takes images of any height and width.
    come_last
        Whether images come with their channels last already, as what a sensor gives may: inputs are not moved then.
    sizes
        Heights and widths that the file takes besides its own one, each by an entry point of its own.
    """

    type: str = ""
    channels_last: bool = False
    free_size: bool = False
    come_last: bool = False
    sizes: tuple[Size, ...] = ()

    @property
    def last_in_file(self) -> bool:
        """Whether the images that the file takes have their channels last."""
        return self.channels_last or self.come_last


def form_of(words: str, *, free_size: bool = False, sizes: tuple[Size, ...] = ()) -> Form:
    """Return the form that words such as ``uint8,nhwc`` name, with these sizes of images.

    Raises
    ------
    ValueError
        If a word is unknown, or they contradict each other.
    """
    given = [word.strip().lower() for word in words.split(",") if word.strip()]
    types = [word for word in given if word in TYPES]
    orders = {word for word in given if word in {CHANNELS_LAST, CHANNELS_FIRST}}
    if not set(given) <= set(END_WORDS) or len(types) > 1 or len(orders) > 1:
        raise ValueError(
            f"the ends of a file must be one of {', '.join(TYPES)}, and {CHANNELS_FIRST} or {CHANNELS_LAST}, such as "
            f"uint8,nhwc, but got {words!r}"
        )
    return Form(types[0] if types else "", CHANNELS_LAST in orders, free_size, sizes=sizes)


@runtime_checkable
class HasGrids(Protocol):
    """A runtime whose files say which of their inputs and outputs are codes."""

    def grids_of(self, path: Path, entry: int = 0) -> tuple[list[Grid | None], list[Grid | None]]:
        """Return the grids of the inputs and of the outputs of a file; None for those that are no codes.

        Of several entry points, those of the one at this place; see `objectives.runtimes.signatures`.
        """
        ...


@runtime_checkable
class SizesInSteps(Protocol):
    """A runtime whose files may take images of some sizes only, where they take several."""

    @property
    def sizes_in_steps(self) -> bool:
        """Whether they do."""
        ...


class WithEnds(nn.Module):
    """A finished network that takes and gives what its file does.

    Parameters
    ----------
    model
        The finished network in evaluation mode.
    form
        What the numbers at the ends are.
    inputs, outputs
        The grid of each tensor, in order; None for one that stays as it is.
    preprocessing
        What is done to the inputs before the network sees them.
    """

    def __init__(
        self,
        model: nn.Module,
        form: Form,
        inputs: Sequence[Grid | None],
        outputs: Sequence[Grid | None],
        preprocessing: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model, self.form, self.preprocessing = model, form, preprocessing
        self.grids = tuple(inputs), tuple(outputs)

    def forward(self, *given: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever the network takes
        """Return what the file gives for what it takes."""
        inputs = named or (given[0] if len(given) == 1 else given)
        inputs = rebuilt(inputs, [self._read(*pair) for pair in zip(leaves(inputs), self.grids[0], strict=True)])
        found = run(self.model, inputs if self.preprocessing is None else run(self.preprocessing, inputs))
        return rebuilt(found, [self._write(*pair) for pair in zip(leaves(found), self.grids[1], strict=True)])

    def encoded(self, inputs: Tree) -> Tree:
        """Return what the file takes for inputs of the network, or of the preprocessing."""
        pairs = zip(leaves(inputs), self.grids[0], strict=True)
        return rebuilt(inputs, [_quantized(self._taken(tensor), grid) for tensor, grid in pairs])

    def decoded(self, outputs: Tree) -> Tree:
        """Return the outputs of the network for what the file gives; a runtime may have turned codes to floats."""
        pairs = zip(leaves(outputs), self.grids[1], strict=True)
        return rebuilt(outputs, [self._first(_dequantized(tensor, grid)) for tensor, grid in pairs])

    def of_floats(self) -> WithEnds:
        """Return the network with floats at the ends that are rounded there, for formats that make codes of these."""
        return _OfFloats(self.model, self.form, *self.grids, self.preprocessing).eval()

    def floats_of(self, inputs: Tree) -> Tree:
        """Return what `of_floats` takes for what the file takes."""
        pairs = zip(leaves(inputs), self.grids[0], strict=True)
        return rebuilt(inputs, [_dequantized(tensor, grid) for tensor, grid in pairs])

    def of_arithmetic(self) -> WithEnds:
        """Return the network with ends of plain arithmetic, for runtimes that have no kernels for codes alone."""
        return _OfArithmetic(self.model, self.form, *self.grids, self.preprocessing).eval()

    def _read(self, tensor: Tensor, grid: Grid | None) -> Tensor:
        return _dequantized(self._given(tensor), grid)

    def _write(self, tensor: Tensor, grid: Grid | None) -> Tensor:
        return _quantized(self._last(tensor), grid)

    def _given(self, tensor: Tensor) -> Tensor:
        """Return an input of the file as the network or the preprocessing takes it."""
        return tensor if self.form.come_last else self._first(tensor)

    def _taken(self, tensor: Tensor) -> Tensor:
        """Return an input of the network or the preprocessing as the file takes it."""
        return tensor if self.form.come_last else self._last(tensor)

    def _first(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the file in the order of dimensions of the network."""
        if not self.form.channels_last or tensor.dim() not in PICTURE_DIMENSIONS:
            return tensor
        return tensor.movedim(-1, 1).contiguous()  # else convolutions are traced with channels last in memory

    def _last(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the network in the order of dimensions of the file."""
        return tensor.movedim(1, -1) if self.form.channels_last and tensor.dim() in PICTURE_DIMENSIONS else tensor


class _OfFloats(WithEnds):
    """See `WithEnds.of_floats`; the quantizers are the first and the last operators."""

    def _read(self, tensor: Tensor, grid: Grid | None) -> Tensor:
        return self._given(_dequantized(_quantized(tensor, grid), grid))

    def _write(self, tensor: Tensor, grid: Grid | None) -> Tensor:
        return _dequantized(_quantized(self._last(tensor), grid), grid)


class _OfArithmetic(WithEnds):
    """See `WithEnds.of_arithmetic`."""

    def _read(self, tensor: Tensor, grid: Grid | None) -> Tensor:
        return self._given(tensor if grid is None else (tensor.to(torch.float32) - grid.zero) * grid.scale)

    def _write(self, tensor: Tensor, grid: Grid | None) -> Tensor:
        tensor = self._last(tensor)
        if grid is None:
            return tensor
        codes = (tensor * (1 / grid.scale) + (grid.zero + 0.5)).floor()  # XNNPACK has no kernel for round
        return codes.clamp(grid.lowest, grid.highest).to(grid.dtype)


def with_ends(model: nn.Module, example: Tree, form: Form, preprocessing: nn.Module | None = None) -> WithEnds:
    """Return a finished network with the ends that a file shall have.

    Where only layers that round their inputs to 8 bits, all on one grid, read an input, the file takes codes on that
    grid, so that nothing is rounded twice. Otherwise the grid covers the values of the example, and zero; outputs those
    for the example at each size of its images.

    Parameters
    ----------
    model
        The finished network in evaluation mode, on the CPU; it is not changed.
    example
        Calibration inputs of the network, or of the preprocessing if there is one.
    form
        What the numbers at the ends are.
    preprocessing
        What is done to the inputs before the network sees them.
    """
    without = _nothing(model, example, preprocessing)
    whole = WithEnds(model, Form(), *without, preprocessing).eval()
    if form.type not in {"int8", "uint8"}:
        return WithEnds(model, form, *without, preprocessing).eval()
    few = at(example, slice(MEASURED_AT_ONCE))
    examples = [example, *(resized(few, size, channels_last=form.come_last) for size in form.sizes)]
    return WithEnds(model, form, *measured_grids(whole, examples, form.type), preprocessing).eval()


def require_one_entry(model: nn.Module, instead: str) -> None:
    """Check that a file with one entry point is asked for.

    Parameters
    ----------
    model
        What is exported.
    instead
        What to do where several are asked for, for the error.

    Raises
    ------
    ExportError
        If it is not.
    """
    if isinstance(model, WithEnds) and model.form.sizes:
        raise ExportError(f"--sizes needs files with several entry points, as those of litert or executorch; {instead}")


def network_of(model: nn.Module) -> nn.Module:
    """Return a network without what is put at the ends of its file."""
    return model.model if isinstance(model, WithEnds) else model


def free_dimensions(model: nn.Module, tensor: Tensor) -> range:
    """Return the dimensions of an input that its file leaves free besides the batch: height and width, where asked."""
    if not isinstance(model, WithEnds) or not model.form.free_size or tensor.dim() not in PICTURE_DIMENSIONS:
        return range(0)
    return range(1, tensor.dim() - 1) if model.form.last_in_file else range(2, tensor.dim())


def _nothing(model: nn.Module, example: Tree, preprocessing: nn.Module | None) -> tuple[list[None], list[None]]:
    """Return no grid for each input and each output."""
    first = map_tensors(at(example, slice(1)), torch.clone)
    with torch.no_grad():
        outputs = run(model, first if preprocessing is None else run(preprocessing, first))
    return [None] * len(leaves(first)), [None] * len(leaves(outputs))


def _quantized(tensor: Tensor, grid: Grid | None) -> Tensor:
    if grid is None:
        return tensor
    # without a conversion where there is nothing to convert: it would be an operator of the file
    codes: Tensor = QUANTIZE(tensor if tensor.dtype == torch.float32 else tensor.float(), *grid)
    return codes


def _dequantized(tensor: Tensor, grid: Grid | None) -> Tensor:
    return tensor if grid is None or tensor.is_floating_point() else DEQUANTIZE(tensor, *grid)


def described(tree: Tree, grids: Sequence[Grid | None], order: str) -> list[dict[str, Any]]:
    """Return type, shape of one example, order of dimensions, scale and zero point of tensors that a file takes."""
    found = []
    for tensor, grid in zip(leaves(tree), grids, strict=True):
        dtype = tensor.dtype if grid is None else grid.dtype  # a runtime may have turned codes to floats
        one: dict[str, Any] = {"type": str(dtype).removeprefix("torch."), "shape": list(tensor.shape[1:])}
        if order and tensor.dim() in PICTURE_DIMENSIONS:
            one["order"] = order
        if grid is not None:
            one |= {"scale": grid.scale, "zero_point": grid.zero}
        found.append(one)
    return found
