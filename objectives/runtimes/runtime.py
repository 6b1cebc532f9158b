"""What executes an exported file, as the objectives see it."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
import tempfile
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from objectives.examples import device_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from torch import Tensor, nn

    from objectives.runtimes.file_layout import FileLayout


class ExportError(ValueError):
    """A model that a runtime cannot take; the text is one line that names the operator or the reason."""


class Precision(NamedTuple):
    """Widths that a layer may have, in bits; 32 is floating point."""

    weights: int
    activations: int


class Runtime(Protocol):
    """Something that stores a finished model in a file, and executes that file.

    Members are read-only, so that a frozen dataclass is a runtime.
    """

    @property
    def name(self) -> str:
        """One lower-case word: its name in tables and on the command line."""
        ...

    @property
    def suffix(self) -> str:
        """The ending of its files, without the dot."""
        ...

    @property
    def threads(self) -> int:
        """Threads of one inference."""
        ...

    @property
    def channels(self) -> int:
        """Multiple that widths should be of, in `PruneRatios(round_to=...)`: kernels compute so many side by side."""
        ...

    @property
    def layout(self) -> FileLayout:
        """What its files spend on layers, from which their size is told before there is one."""
        ...

    def precisions(self, kind: str, groups: int) -> tuple[Precision, ...]:
        """Return the widths that a layer gains by: its weight is packed so, and it computes so.

        Parameters
        ----------
        kind
            Its class, such as `Conv2d` or `Linear`.
        groups
            Of a convolution; 1 for other layers.

        Returns
        -------
        tuple of Precision
            Floating point throughout is always possible and not listed. Other widths are exported too, but what a
            file would only pretend to is stored as what it is: wider codes or floating point.
        """
        ...

    def export(self, model: nn.Module, example: Tensor, path: Path) -> None:
        """Write ``model`` to ``path``.

        Parameters
        ----------
        model
            A finished model in eval mode; it is not changed.
        example
            A batch of inputs. Kernels that take and give integers round what the model does not; those ranges are
            read off this batch, the calibration inputs as a rule.
        path
            The file to write; its folder must exist.

        Raises
        ------
        ExportError
            If the model has no form in this runtime.
        """
        ...

    def load(self, path: Path) -> Callable[[Tensor], Tensor]:
        """Return a function that executes the file at ``path`` on a CPU batch of any size."""
        ...


def extra(name: str, module: str) -> ModuleType:
    """Import a module of an extra, or one of ours that needs it.

    Raises
    ------
    ImportError
        If the extra is not installed, with the command that does it.
    """
    try:
        with silence():
            return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this needs the extra {name}, but {error.name or module} is missing: pip install slimfront[{name}]"
        ) from error


def executable(runtime: Runtime, model: nn.Module, inputs: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that executes a finished model from a file of its own, which is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model.{runtime.suffix}"
        runtime.export(model, inputs.to(device_of(model)), path)
        return runtime.load(path)


def has_one_output(model: nn.Module, outputs: int) -> None:
    """Check that a model returns one tensor.

    Raises
    ------
    ExportError
        If not.
    """
    if outputs != 1:
        raise ExportError(
            f"a model must return one tensor to be exported, but {type(model).__name__} returns {outputs}: wrap it"
        )


def in_evaluation(model: nn.Module) -> None:
    """Check that a model is in evaluation mode.

    Raises
    ------
    ExportError
        If not: dropout and BatchNorm would be exported as they train.
    """
    if model.training:
        raise ExportError(
            f"a model must be in eval mode to be exported, but {type(model).__name__} is training: call eval()"
        )


def refused(model: nn.Module, form: str, error: BaseException) -> ExportError:
    """Return one line about ``error``: the text of its first cause, which names the operator or the line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).strip().partition("\n")[0].split())
    return ExportError(
        f"every operator of an exported model must have {form} form, but {type(model).__name__} fails: {text}"
    )


@contextmanager
def silence() -> Iterator[None]:
    """Keep what exporters and runtimes print, warn and log to themselves; their errors are raised again.

    Some of it is written by compiled code, so the descriptors of the process are turned away meanwhile.
    """
    before = logging.root.manager.disable
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number, _ in kept:
            os.dup2(nowhere, number)
        logging.disable(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        logging.disable(before)
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
