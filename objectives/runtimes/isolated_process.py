"""Execution of a file in a separate process, which knows only the file, and whose crash does not end this process.

The process reads requests as lines of JSON: first the runtime and the file to
load, then inputs to run or a second file to compare with. Tensors pass through safetensors files in a shared folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

import torch
from safetensors.torch import load_file, save_file

from objectives.runtimes.errors import ExportError
from objectives.runtimes.forked_process import CAN_FORK, ForkedProcess, paths_of_modules
from objectives.runtimes.timing import BLOCK_MS, TIMING_ROUNDS, LatencyRatio, compare
from objectives.trees import Tree, leaves

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from torch import Tensor

    from objectives.runtimes.runtime import Runtime

ROOT = Path(__file__).resolve().parents[2]  # the folder of our packages
SERVE = "from objectives.runtimes.isolated_process import main; main()"
FORK = (
    "from objectives.runtimes.isolated_process import main; from objectives.runtimes.forked_process import serve; "
    "serve({}, main)"
)
ANSWER_SECONDS = 3600.0  # that a file may take for a batch, or to be loaded (chosen); a longer one is taken to hang
INPUT_FILE, OUTPUT_FILE = "in.safetensors", "out.safetensors"  # in the shared folder


class IsolatedProcess:
    """A context manager that loads a file in another process; call it to run the file.

    Parameters
    ----------
    runtime
        The runtime that executes the file: a dataclass of JSON values, in a module that can be imported or in a file.
    path
        The file to load.

    Raises
    ------
    ExportError
        If the process ends before it has answered, the message shows the last line of its error output; or if it does
        not answer within an hour.
    """

    def __init__(self, runtime: Runtime, path: Path) -> None:
        self.runtime, self.path = runtime, path

    def __enter__(self) -> Self:
        """Start the process and wait until it has loaded the file."""
        self._folder = tempfile.TemporaryDirectory()
        self._stderr = (Path(self._folder.name) / "stderr").open("w+")
        request = {
            "runtime": _to_json(self.runtime), "folder": self._folder.name, "path": str(self.path.resolve()),
        }  # fmt: skip
        self._process = _started(self._stderr)
        try:
            self._ask(request)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._stderr.close()
        self._folder.cleanup()

    def __call__(self, inputs: Tree) -> Tree:
        """Return the output of the file for a batch of inputs; a tuple if there are several."""
        save_file(_numbered("x", inputs), Path(self._folder.name) / INPUT_FILE)
        self._ask({})
        return _in_order("y", load_file(Path(self._folder.name) / OUTPUT_FILE))

    def compare(
        self,
        reference: Path,
        example: Tree,
        rounds: int = TIMING_ROUNDS,
        block_ms: float = BLOCK_MS,
        own: Tree = None,
    ) -> LatencyRatio:
        """Time the file against another file; see `objectives.runtimes.timing.compare`.

        Parameters
        ----------
        reference, example
            The other file, and a batch of its inputs.
        rounds, block_ms
            See `objectives.runtimes.timing.compare`.
        own
            The same batch as this file takes it, where that differs.
        """
        batches = _numbered("x", example) | _numbered("own", example if own is None else own)
        save_file(batches, Path(self._folder.name) / INPUT_FILE)
        return LatencyRatio(
            **self._ask({"reference": str(reference.resolve()), "rounds": rounds, "block_ms": block_ms})
        )

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        patience, late = ANSWER_SECONDS, threading.Event()

        def give_up() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(patience, give_up)
        timer.daemon = True
        timer.start()
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            timer.cancel()
        if late.is_set():
            raise ExportError(f"{self.path.name} did not answer in {self.runtime.name} within {patience:,.0f} seconds")
        if not answer:
            self._process.wait()
            self._stderr.seek(0)
            last = (self._stderr.read().strip().splitlines() or [f"exit code {self._process.returncode}"])[-1]
            raise ExportError(f"the process that executed {self.path.name} with {self.runtime.name} ended: {last}")
        return json.loads(answer)  # type: ignore[no-any-return]


def _started(stderr: TextIO) -> ForkedProcess | subprocess.Popen[str]:
    """Start a process that calls `main`: a fork where that is possible, else a new Python."""
    if CAN_FORK:
        with contextlib.suppress(OSError):
            return ForkedProcess(_python_that_forks, stderr)
    return subprocess.Popen(  # noqa: S603 - our own code
        python(SERVE), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
    )


def _python_that_forks(number: int) -> list[str]:
    return python(FORK.format(number))


def _numbered(letter: str, tree: Tree) -> dict[str, Tensor]:
    """Return the tensors of a tree with numbered names; copies, since a file holds no tensor twice."""
    tensors = [tensor.detach().cpu().clone().contiguous() for tensor in leaves(tree)]
    return {f"{letter}{index}": tensor for index, tensor in enumerate(tensors)}


def _in_order(letter: str, tensors: dict[str, Tensor]) -> Tree:
    """Return the tensors with such names: the only one, or a tuple."""
    count = sum(name.startswith(letter) for name in tensors)
    return tensors[f"{letter}0"] if count == 1 else tuple(tensors[f"{letter}{index}"] for index in range(count))


def _to_json(value: Any) -> Any:  # noqa: ANN401 - any field of a runtime
    """Return a dataclass of JSON values, which may be nested, as JSON; return any other value as it is."""
    if not dataclasses.is_dataclass(value):
        return value
    fields = {field.name: _to_json(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    module = type(value).__module__
    file = getattr(sys.modules.get(module), "__file__", None)
    return {"module": module, "file": file, "kind": type(value).__qualname__, "fields": fields}


def _from_json(value: Any) -> Any:  # noqa: ANN401 - any field of a runtime
    """Return the value that `_to_json` has converted."""
    if not isinstance(value, dict):
        return value
    kind = getattr(_import(value["module"], value["file"]), value["kind"])
    return kind(**{name: _from_json(field) for name, field in value["fields"].items()})


def python(code: str) -> list[str]:
    """Return the command that runs code in another Python, which finds the modules that this one finds.

    Our packages are imported from where they are now, whatever else has their names.
    """
    lines = (
        f"import sys; sys.path[:] = {paths_of_modules()!r}; import lazy_loader",  # which our packages use
        f"sys.path.insert(0, {str(ROOT)!r}); import objectives, search, spaces; del sys.path[0]",
        code,
    )
    return [sys.executable, "-P", "-c", "\n".join(lines)]


def import_file(name: str, path: Path) -> ModuleType:
    """Import the Python file at `path` as the module `name`."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _import(name: str, file: str | None) -> ModuleType:
    """Import a module by its name, or from its file where it has no importable name, such as a user's study."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        if file is None:
            raise
        return import_file(name, Path(file))


def _run_on(run: Callable[[Tree], Tree], own: Tree, _: Tree) -> Tree:
    """Run a file on its own batch, whatever batch it is timed with."""
    return run(own)


def main() -> None:
    """Serve the requests of `IsolatedProcess` until its pipe is closed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what runtimes print must not be read as an answer
    torch.set_num_threads(1)
    first = json.loads(sys.stdin.readline())
    runtime, folder = _from_json(first["runtime"]), Path(first["folder"])
    run = runtime.load(Path(first["path"]))
    answer: dict[str, Any] = {}
    while True:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        line = sys.stdin.readline()
        if not line:
            return
        request, given = json.loads(line), load_file(folder / INPUT_FILE)
        inputs = _in_order("x", given)
        answer = {}
        if request:
            reference = runtime.load(Path(request.pop("reference")))
            own = functools.partial(_run_on, run, _in_order("own", given))
            answer = dataclasses.asdict(compare(own, reference, inputs, threads=runtime.threads, **request))
        else:
            save_file(_numbered("y", run(inputs)), folder / OUTPUT_FILE)
