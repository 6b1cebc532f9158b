"""A file in a process of its own, which knows nothing of how the file came about, nor can take this one with it.

Started as `python -m objectives.runtimes.isolated_process`, it reads one line of JSON a request: what to execute, then
inputs to answer or a file to be compared with. Tensors go through safetensors files in a folder that both know.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import load_file, save_file

from objectives.runtimes.runtime import ExportError
from objectives.runtimes.timing import BLOCK_MS, ROUNDS, LatencyRatio, compare

if TYPE_CHECKING:
    from torch import Tensor

    from objectives.runtimes.runtime import Runtime

HOME = str(Path(__file__).parents[2])  # of our packages; a user's modules may be called like them, and come last
IN, OUT = "in.safetensors", "out.safetensors"


class IsolatedProcess:
    """A file that another process has loaded, while the context lasts.

    Parameters
    ----------
    runtime
        What executes it: a dataclass of numbers and words, in a module that can be imported.
    path
        The file.

    Raises
    ------
    ExportError
        If that process ends before it has answered; its last line is shown.
    """

    def __init__(self, runtime: Runtime, path: Path) -> None:
        self.runtime, self.path = runtime, path

    def __enter__(self) -> Self:
        """Start the process and wait until it has loaded the file."""
        self._folder = tempfile.TemporaryDirectory()
        self._said = (Path(self._folder.name) / "stderr").open("w+")
        request = {
            "runtime": _told(self.runtime), "folder": self._folder.name, "path": str(self.path.resolve()),
            "modules": sys.path,
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "objectives.runtimes.isolated_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=os.environ | {"PYTHONPATH": HOME},
        )
        try:
            self._ask(request)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._said.close()
        self._folder.cleanup()

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return what the file answers to a batch."""
        save_file({"x": inputs.detach().cpu().contiguous()}, Path(self._folder.name) / IN)
        self._ask({})
        return load_file(Path(self._folder.name) / OUT)["y"]

    def compare(
        self, reference: Path, example: Tensor, rounds: int = ROUNDS, block_ms: float = BLOCK_MS
    ) -> LatencyRatio:
        """Compare its time with that of another file; see `objectives.latency.compare`."""
        save_file({"x": example.detach().cpu().contiguous()}, Path(self._folder.name) / IN)
        return LatencyRatio(
            **self._ask({"reference": str(reference.resolve()), "rounds": rounds, "block_ms": block_ms})
        )

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            self._said.seek(0)
            last = (self._said.read().strip().splitlines() or [f"exit code {self._process.returncode}"])[-1]
            raise ExportError(f"the process that executed {self.path.name} with {self.runtime.name} ended: {last}")
        return json.loads(answer)  # type: ignore[no-any-return]


def _told(value: Any) -> Any:  # noqa: ANN401 - of whatever a runtime is made of
    """Return a dataclass of numbers, words and such as itself in the terms of JSON."""
    if not dataclasses.is_dataclass(value):
        return value
    fields = {field.name: _told(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    return {"module": type(value).__module__, "kind": type(value).__qualname__, "fields": fields}


def _made(told: Any) -> Any:  # noqa: ANN401
    if not isinstance(told, dict):
        return told
    kind = getattr(importlib.import_module(told["module"]), told["kind"])
    return kind(**{name: _made(value) for name, value in told["fields"].items()})


def main() -> None:
    """Serve the requests of `IsolatedProcess` until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what runtimes print is no answer
    torch.set_num_threads(1)
    first = json.loads(sys.stdin.readline())
    sys.path += [path for path in first["modules"] if path not in sys.path]
    runtime, folder = _made(first["runtime"]), Path(first["folder"])
    run = runtime.load(Path(first["path"]))
    said: dict[str, Any] = {}
    while True:
        answers.write(json.dumps(said) + "\n")
        answers.flush()
        line = sys.stdin.readline()
        if not line:
            return
        request, inputs = json.loads(line), load_file(folder / IN)["x"]
        said = {}
        if request:
            other = runtime.load(Path(request.pop("reference")))
            said = dataclasses.asdict(compare(run, other, inputs, threads=runtime.threads, **request))
        else:
            save_file({"y": run(inputs).contiguous()}, folder / OUT)


if __name__ == "__main__":
    main()
