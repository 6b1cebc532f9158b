"""ExecuTorch, the successor of PyTorch Mobile: one .pte file, executed by XNNPACK."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from objectives.runtimes.file_layout import FileLayout
from objectives.runtimes.runtime import Precision, extra, in_evaluation, refused, silence

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class ExecuTorch:
    """ExecuTorch on the CPU, with XNNPACK.

    Layers with weights and inputs of 8 bits compute with integers, and what lies between them does too (see
    `objectives.runtimes.passes.integers`). There is no other width: a weight of fewer bits takes a byte, and one whose
    layer computes in floating point is stored so.

    Parameters
    ----------
    threads
        Threads of one inference; the same for all files that a process executes.
    """

    threads: int = 1

    @property
    def name(self) -> str:
        """``executorch``."""
        return "executorch"

    @property
    def suffix(self) -> str:
        """``pte``."""
        return "pte"

    @property
    def channels(self) -> int:
        """8: XNNPACK computes 16 side by side, and 8 in half of the time; 24 take what 32 do."""
        return 8

    @property
    def layout(self) -> FileLayout:
        """Of layers and their rounding read off rows of them, of all else off 48 files of plans for four networks.

        28 files of other plans are told within 3.0%, half of them within 0.9%.
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
            integer=120,
            integer_scale=4,
            mixed=95,
            ends=136,
            integer_bits=(8,),
        )

    def precisions(self, kind: str, groups: int) -> tuple[Precision, ...]:
        """Return the widths of two-dimensional convolutions and linear layers; see `Runtime`."""
        del groups
        return (Precision(8, 8),) if kind in {"Conv2d", "Linear"} else ()

    def export(self, model: nn.Module, example: Tensor, path: Path) -> None:
        """Write ``model`` to one .pte file that takes one input at a time; see `Runtime`.

        Raises
        ------
        ExportError
            If an operator has no form in ExecuTorch.
        ImportError
            If the ``executorch`` extra is not installed.
        """
        in_evaluation(model)
        content, left = extra("executorch", "objectives.runtimes.executorch.lowering").lowered(model, example)
        path.write_bytes(content)
        try:
            self.load(path)(example[:1].cpu())
        except RuntimeError as error:  # kernels say only when they run what they do not know
            path.unlink()
            raise refused(model, "an ExecuTorch", RuntimeError(f"one of {', '.join(left)} does not run")) from error

    def load(self, path: Path) -> Callable[[Tensor], Tensor]:
        """Return a function that executes the file at ``path`` on a CPU batch of any size, one input after another.

        Raises
        ------
        ImportError
            If the ``executorch`` extra is not installed.
        """
        module = extra("executorch", "executorch.runtime")
        _use_threads(self.threads)
        with silence():
            runtime = module.Runtime.get()
            program = runtime.load_program(path.read_bytes(), verification=module.Verification.Minimal)
            method = program.load_method("forward")

        def run(x: Tensor, _held: object = program) -> Tensor:
            x = x.detach().contiguous()
            # the runtime writes every answer to the same memory
            return torch.cat([method.execute([one])[0].clone() for one in x.split(1)])

        return run


@functools.cache
def _use_threads(threads: int) -> None:
    """Size the pool of threads of this process, before any file is loaded: later on that ends the process."""
    if _use_threads.cache_info().currsize:
        raise ValueError(f"ExecuTorch has one number of threads a process, and {threads} is not that of before")
    with silence():
        extra("executorch", "executorch.extension.pybindings.portable_lib")._unsafe_reset_threadpool(threads)  # noqa: SLF001 - there is no other way
