"""The protocol of a runtime, which stores and executes models, and what all runtimes share."""

from __future__ import annotations

import importlib
import io
import logging
import os
import re
import sys
import tempfile
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from objectives.layers import inputs_of_file
from objectives.outputs import device_of
from objectives.runtimes.errors import ExportError
from objectives.trees import moved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from torch import nn

    from objectives.runtimes.file_layout import FileLayout
    from objectives.trees import Tree


PLACE_IN_CODE = re.compile(r"\S+\.py:\d+:\d+: error: ")  # of a library, which a user cannot act on
# what torch.export says of a dimension that it was told to leave free
FIXED_SIZE = re.compile(r"inferred a static shape of (\d+) for dimension \w+\[(\d+)\]\.shape\[(\d+)\]")
MOST_THREADS = 1024  # of one inference (chosen); more is a slip, and may end the process


class Precision(NamedTuple):
    """Bits of the weight and of the input of a layer; 32 is floating point."""

    weights: int
    activations: int


class Runtime(Protocol):
    """A runtime: it stores a finished model in a file and executes the file.

    Members are read-only, so that a frozen dataclass can implement it.
    """

    @property
    def name(self) -> str:
        """The name in tables and on the command line, one lower-case word."""
        ...

    @property
    def suffix(self) -> str:
        """The file name extension, without the dot."""
        ...

    @property
    def threads(self) -> int:
        """Number of threads of one inference."""
        ...

    @property
    def channels(self) -> int:
        """Number of channels that kernels compute in parallel; `PruneRatios(round_to=...)` rounds to its multiples."""
        ...

    @property
    def integers_only(self) -> bool:
        """Whether layers for which it has precisions are never offered floating point."""
        ...

    @property
    def layout(self) -> FileLayout:
        """The bytes that its files spend on layers, from which `SizeBytes` predicts the size of a file."""
        ...

    def precisions(self, kind: str, groups: int) -> tuple[Precision, ...]:
        """Return the precisions that a layer gains from: its weight is stored, and it computes, at these widths.

        Parameters
        ----------
        kind
            Class of the layer, such as `Conv2d` or `Linear`.
        groups
            Groups of a convolution; 1 for other layers.

        Returns
        -------
        tuple of Precision
            Floating point for weight and input is always possible and not listed; `integers_only` says whether it is
            offered. Other precisions can be exported too, but are stored at the next one that the runtime has: wider
            codes or floating point.
        """
        ...

    def export(self, model: nn.Module, example: Tree, path: Path) -> None:
        """Write ``model`` to ``path``.

        Parameters
        ----------
        model
            A finished model in eval mode, of any inputs and outputs (`objectives.flat`); it is not changed.
        example
            A batch of inputs, usually the calibration inputs. Integer kernels also round tensors that the model does
            not round; the ranges for that are measured on this batch.
        path
            The file to write; its folder must exist.

        Raises
        ------
        ExportError
            If the runtime cannot represent the model.
        """
        ...

    def load(self, path: Path) -> Callable[[Tree], Tree]:
        """Return a function that executes the file at ``path`` on a CPU batch of any size.

        It takes what the network takes, and returns the output tensor, or a tuple of the output tensors.
        """
        ...


def import_extra(name: str, module: str) -> ModuleType:
    """Import a module of an optional dependency, or one of this project that needs it.

    Parameters
    ----------
    name
        The extra of this package that installs it.
    module
        The full name of the module.

    Raises
    ------
    ImportError
        If the extra is not installed; the message contains the command that installs it.
    """
    try:
        with silence():
            return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'this needs the extra {name}, but {error.name or module} is missing: pip install "slimfront[{name}]"'
        ) from error


def export_and_load(runtime: Runtime, model: nn.Module, inputs: Tree) -> Callable[[Tree], Tree]:
    """Export a finished model to a temporary file, and return a function that executes the loaded file.

    The function takes inputs as the file takes them; see `inputs_of_file`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model.{runtime.suffix}"
        runtime.export(model, moved(inputs_of_file(model, inputs), device_of(model)), path)
        return runtime.load(path)


def require_threads(count: object) -> None:
    """Check the number of threads of a runtime.

    Raises
    ------
    ValueError
        If it is no whole number from 1 to 1024.
    """
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_THREADS:
        raise ValueError(f"threads of a runtime must be a whole number from 1 to {MOST_THREADS:,}, but got {count!r}")


def require_eval_mode(model: nn.Module) -> None:
    """Check that a model is in evaluation mode.

    Raises
    ------
    ExportError
        If it is not: dropout and BatchNorm would be exported in training mode.
    """
    if model.training:
        raise ExportError(
            f"a model must be in eval mode to be exported, but {type(model).__name__} is training: call eval()"
        )


def export_error(model: nn.Module, form: str, error: BaseException) -> ExportError:
    """Return an error of one line with the text of the first cause of ``error``, which names the operator."""
    while error.__cause__ is not None:
        error = error.__cause__
    first, _, rest = str(error).strip().partition("\n")
    if first.endswith(":"):  # the cause follows
        first = f"{first} {next(iter(rest.strip().splitlines()), '')}"
    text = PLACE_IN_CODE.sub("", " ".join(first.split()))
    if "data-dependent" in text:
        text = (
            "its forward pass decides on values that depend on its inputs, as in `if x.any()`, but a file computes "
            "the same for all inputs; use torch.where, or leave such checks out in evaluation mode"
        )
    if fixed := FIXED_SIZE.search(str(error)):
        size, number, dimension = fixed.groups()
        what = "batches of any size" if dimension == "0" else f"inputs of any size in dimension {dimension}"
        return ExportError(
            f"a file must take {what}, but {type(model).__name__} fails: tracing inferred a static shape of {size} for "
            f"dimension {dimension} of input {number}; an operator of the forward pass fixes it, such as a reshape to "
            "a stated number or an einsum of three tensors, which two products can replace"
        )
    return ExportError(
        f"every operator of an exported model must have {form} form, but {type(model).__name__} fails: {text}"
    )


@contextmanager
def silence() -> Iterator[None]:
    """Suppress all that exporters and runtimes print, warn and log; exceptions pass.

    Compiled code writes to the file descriptors directly, so these are redirected too.
    """
    before = logging.root.manager.disable
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [(number, os.dup(number)) for number in (1, 2)]
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for number, _ in saved:
            os.dup2(null, number)
        logging.disable(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        logging.disable(before)
        for number, copy in saved:
            os.dup2(copy, number)
            os.close(copy)
        os.close(null)
