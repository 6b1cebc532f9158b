"""ExecuTorch, the successor of PyTorch Mobile: one .pte file, executed by XNNPACK."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from objectives.runtimes.ends import network_of
from objectives.runtimes.executorch.loading import DEFAULT_METHOD, EXECUTORCH_LOADING, EXECUTORCH_SIGNATURE
from objectives.runtimes.file_layout import FileLayout
from objectives.runtimes.runtime import (
    Precision,
    export_error,
    import_extra,
    require_eval_mode,
    require_threads,
    silence,
)
from objectives.runtimes.signatures import entries
from objectives.trees import at, leaves, moved, shapes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import nn

    from objectives.trees import Tree

SHOWN_OPERATORS = 4  # in the message of a file that does not run (chosen)


@dataclass(frozen=True, slots=True)
class ExecuTorch:
    """ExecuTorch on the CPU, with XNNPACK.

    Layers with weights and inputs of 8 bits compute with integers, and so do the operators between them (see
    `objectives.runtimes.passes.integers`). No other integer width is supported: a weight of fewer bits takes a byte,
    and the weight of a layer that computes in floating point is stored in floating point.

    Parameters
    ----------
    threads
        Number of threads of one inference; all files that a process executes must have the same.
    """

    threads: int = 1

    def __post_init__(self) -> None:
        """Check the number of threads."""
        require_threads(self.threads)

    @property
    def name(self) -> str:
        """``executorch``."""
        return "executorch"

    @property
    def loading(self) -> Mapping[str, str]:
        """How a file is loaded, by language."""
        return EXECUTORCH_LOADING

    @property
    def signature_call(self) -> str:
        """How a method of a file is called."""
        return EXECUTORCH_SIGNATURE

    @property
    def suffix(self) -> str:
        """``pte``."""
        return "pte"

    @property
    def channels(self) -> int:
        """8: XNNPACK computes 16 channels in parallel, and 8 in half the time; 24 take as long as 32."""
        return 8

    @property
    def integers_only(self) -> bool:
        """False."""
        return False

    @property
    def sizes_in_steps(self) -> bool:
        """True: images have at most twice the size of the example, and multiples of what divides it."""
        return True

    @property
    def layout(self) -> FileLayout:
        """Bytes (fitted): layers and their rounding from files of stacked layers, the rest from 48 files of plans.

        The plans are for four networks. On 28 files of other plans the error of the predicted size is at most 3.0%,
        its median 0.9%.
        """
        return FileLayout(
            graph=1640,
            convolution=272,
            linear=280,
            factor=-51,
            linear_factor=-165,
            grouped_factor=-182,
            padded=16,
            strided=16,
            sum=86,
            resize=80,
            integer=120,
            integer_scale=4,
            mixed=95,
            ends=136,
            integer_bits=(8,),
        )

    def precisions(self, kind: str, groups: int) -> tuple[Precision, ...]:
        """Return the precision of two-dimensional convolutions and of linear layers; see `Runtime`."""
        del groups
        return (Precision(8, 8),) if kind in {"Conv2d", "Linear"} else ()

    def export(self, model: nn.Module, example: Tree, path: Path) -> None:
        """Write ``model`` to one .pte file that takes one input at a time; see `Runtime`.

        Raises
        ------
        ExportError
            If ExecuTorch does not have an operator of the model.
        ImportError
            If the ``executorch`` extra is not installed.
        """
        require_eval_mode(model)
        content, portable = import_extra("executorch", "objectives.runtimes.executorch.lowering").lower(model, example)
        path.write_bytes(content)
        try:
            run = self.load(path)
            for _, one in entries(model, at(example, slice(1)), DEFAULT_METHOD):
                run(moved(one, "cpu"))
        except RuntimeError as raised:  # a missing kernel is only reported when the file runs
            path.unlink()
            names = sorted({name for name in portable if not name.startswith("<")})  # without functions of Python
            shown = ", ".join(names[:SHOWN_OPERATORS]) + (", ..." if len(names) > SHOWN_OPERATORS else "")
            reason = f"one of {shown} does not run" if names else "XNNPACK's part does not load"
            raise export_error(network_of(model), "an ExecuTorch", RuntimeError(f"{reason}: {raised}")) from raised

    def load(self, path: Path) -> Callable[[Tree], Tree]:
        """Return a function that executes the file at ``path`` on a CPU batch of any size, one input after another.

        A file with several methods executes the one that has the sizes of the inputs.

        Raises
        ------
        ImportError
            If the ``executorch`` extra is not installed.
        """
        program = self._program(path)
        with silence():
            loaded = [program.load_method(name) for name in program.method_names]
        only = loaded[0] if len(loaded) == 1 else None  # which may take several sizes itself
        methods = {} if only else {_sizes_of(method): method for method in loaded}

        def run(x: Tree, _loaded: object = program) -> Tree:
            tensors = leaves(x)
            method = only or methods.get(tuple(tuple(tensor.shape[1:]) for tensor in tensors))
            if method is None:
                raise ValueError(f"the methods of the file take inputs of {[*methods]}, but got {shapes_of(x)}")
            columns = [tensor.detach().contiguous().split(1) for tensor in tensors]
            # clone: the runtime writes every output to the same memory
            rows = [[one.clone() for one in method.execute(list(row))] for row in zip(*columns, strict=True)]
            found = [torch.cat(column) for column in zip(*rows, strict=True)]
            return found[0] if len(found) == 1 else tuple(found)

        return run

    def signatures_of(self, path: Path) -> list[str]:
        """Return the names of the methods of a file, that of the network's own size first.

        Raises
        ------
        ImportError
            If the ``executorch`` extra is not installed.
        """
        names: set[str] = self._program(path).method_names
        return sorted(names, key=lambda name: (name != DEFAULT_METHOD, name))

    def _program(self, path: Path) -> Any:  # noqa: ANN401 - executorch has no types
        module = import_extra("executorch", "executorch.runtime")
        _use_threads(self.threads)
        with silence():
            return module.Runtime.get().load_program(path.read_bytes(), verification=module.Verification.Minimal)


def _sizes_of(method: Any) -> tuple[tuple[int, ...], ...]:  # noqa: ANN401 - executorch has no types
    """Return the sizes of one example of the inputs of a method."""
    about = method.metadata
    return tuple(tuple(about.input_tensor_meta(place).sizes())[1:] for place in range(about.num_inputs()))


@functools.cache
def _use_threads(threads: int) -> None:
    """Set the number of threads of this process, once, before a file is loaded: later it would crash the process."""
    if _use_threads.cache_info().currsize:
        raise ValueError(f"ExecuTorch cannot change the number of threads of a process, but got another one: {threads}")
    with silence():
        import_extra("executorch", "executorch.extension.pybindings.portable_lib")._unsafe_reset_threadpool(threads)  # noqa: SLF001 - no public function does it
