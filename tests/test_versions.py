"""Files say which versions of their runtime take them, and a runtime of an older version is given what it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import optuna
import pytest
import torch

from objectives.runtimes import LiteRt, OnnxRuntime, OpenVino, named
from objectives.runtimes.names import name_of
from search.results.export import VERIFIED_FOR, _is_outdated
from spaces import Distill, Plan, Quantize, deployed, trace
from spaces.testing.networks import Plain, example, teacher
from spaces.testing.runtime_contract import sqnr

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from objectives.runtimes import Runtime
    from objectives.runtimes.versions import HasVersions

OPEN = {
    "onnxruntime": """
import onnxruntime
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
(found,) = session.run(None, {session.get_inputs()[0].name: inputs})
""",
    "ai-edge-litert": """
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(path)
interpreter.allocate_tensors()
source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
scale, zero = source["quantization"]
codes = (inputs / scale).round() + zero if scale else inputs
interpreter.set_tensor(source["index"], codes.clip(-128, 127).astype(source["dtype"]) if scale else inputs)
interpreter.invoke()
found = interpreter.get_tensor(target["index"]).astype("float32")
scale, zero = target["quantization"]
found = (found - zero) * scale if scale else found
""",
}
PACKAGES = {"onnx": "onnxruntime", "litert": "ai-edge-litert"}
WIDTHS = [(32, 32), (8, 8), (8, 32), (4, 32), (4, 8), (2, 32)]


def finished(bits: tuple[int, int]) -> tuple[nn.Module, Tensor]:
    net = teacher(Plain)
    inputs = example(net)
    widths = tuple((layer.name, *bits) for layer in trace(net, inputs).layers)
    return deployed(Plan((Quantize(widths),), Distill()).apply(net, inputs).eval(), inputs), inputs


@pytest.mark.parametrize(
    ("runtime", "bits", "oldest"),
    [
        (OnnxRuntime(), (32, 32), "1.19"),
        (OnnxRuntime(), (4, 8), "1.23"),
        (OnnxRuntime(), (2, 32), "1.24"),
        (OnnxRuntime(version="1.20"), (2, 32), "1.19"),  # stored in 8 bits
        (OnnxRuntime(version="1.23.1"), (2, 32), "1.23"),
        (LiteRt(), (8, 8), "1.2"),
        (LiteRt(), (2, 32), "2.1"),
        (LiteRt(version="2.0"), (2, 32), "1.2"),
        (OpenVino(), (4, 32), "2025.4"),
    ],
    ids=str,
)
def test_a_file_says_the_oldest_version_that_takes_it(
    runtime: HasVersions, bits: tuple[int, int], oldest: str, tmp_path: Path
) -> None:
    pytest.importorskip("litert_torch" if runtime.name == "litert" else "onnxruntime")
    model, inputs = finished(bits)
    path = tmp_path / f"model.{runtime.suffix}"
    runtime.export(model, inputs, path)
    assert runtime.oldest_version(path) == oldest
    if runtime.name != "openvino":
        assert sqnr(model(inputs).detach(), runtime.load(path)(inputs)) > (25 if bits[1] == 8 else 80)


def test_only_what_an_older_version_takes_is_offered() -> None:
    assert OnnxRuntime(version="1.20").precisions("Conv2d", 1) == ((8, 32), (8, 8))
    assert OnnxRuntime(version="1.23").precisions("Linear", 1) == ((4, 32), (8, 32), (4, 8), (8, 8))
    assert (2, 32) not in LiteRt(version="2.0.3").precisions("Linear", 1)
    assert (4, 8) in LiteRt(version="2.0.3").precisions("Linear", 1)
    assert OnnxRuntime().precisions("Conv2d", 1) == OnnxRuntime(version="1.32").precisions("Conv2d", 1)


def test_a_name_may_have_a_version() -> None:
    assert named("onnx-1.20") == OnnxRuntime(version="1.20") != named("onnx")
    for name, message in {
        "onnx-1.2": "must be at least 1.19, the oldest that was tried, but got '1.2'",
        "onnx-1..2": "must be numbers with dots, such as '1.20', but got '1..2'",
        "executorch-1.0": "no older version of executorch was tried, so leave out -1.0",
        "openvino-2024.6": "must be at least 2025.4, the oldest that was tried",
    }.items():
        with pytest.raises(ValueError, match=message):
            named(name)


def test_a_verification_for_another_version_is_done_again(tmp_path: Path) -> None:
    trial, weights = optuna.trial.create_trial(values=[0.0]), tmp_path / "weights.safetensors"
    assert named(name_of(OnnxRuntime(version="1.20"))) == OnnxRuntime(version="1.20")
    assert _is_outdated({VERIFIED_FOR: "onnx"}, trial, weights, OnnxRuntime(version="1.20"))
    assert _is_outdated({"samples": 5}, trial, weights, OnnxRuntime(version="1.20"))  # of an earlier version of ours
    assert not _is_outdated({"samples": 5}, trial, weights, OnnxRuntime())
    assert not _is_outdated({VERIFIED_FOR: "onnx-1.20"}, trial, weights, OnnxRuntime(version="1.20"))


@pytest.mark.slow  # downloads two packages of each runtime
@pytest.mark.parametrize(
    ("runtime", "version", "refused"),
    [
        (OnnxRuntime(), "1.20.1", {4, 2}),
        (OnnxRuntime(), "1.23.2", {2}),
        (OnnxRuntime(), "1.24.4", set()),
        (OnnxRuntime(version="1.20"), "1.20.1", set()),
        (LiteRt(), "1.2.0", {2}),
        (LiteRt(), "2.1.0", set()),
        (LiteRt(version="1.2"), "1.2.0", set()),
    ],
    ids=str,
)
def test_versions_take_the_files_that_they_are_said_to_take(
    runtime: Runtime, version: str, refused: set[int], tmp_path: Path
) -> None:
    pytest.importorskip("litert_torch" if runtime.name == "litert" else "onnxruntime")
    package = PACKAGES[runtime.name]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "own")]
    got = subprocess.run([*install, f"{package}=={version}"], capture_output=True, text=True, check=False)
    if got.returncode:
        pytest.skip(f"{package} {version} cannot be installed here: {got.stderr.strip().splitlines()[-1]}")
    for bits in WIDTHS:
        model, inputs = finished(bits)
        path = tmp_path / f"model.{runtime.suffix}"
        runtime.export(model, inputs, path)
        found = answers(package, tmp_path, path, inputs[:1])
        assert (found is None) == (bits[0] in refused), (bits, version)
        if found is not None:
            assert sqnr(model(inputs[:1]).detach(), torch.tensor(found)) > (25 if bits[1] == 8 else 80)


def answers(package: str, folder: Path, path: Path, inputs: Tensor) -> list[list[float]] | None:
    """Return the answers of a file in the version that was installed into a folder; None if it does not run."""
    np.save(folder / "inputs.npy", inputs.numpy())
    code = f"import json, numpy\npath, inputs = {str(path)!r}, numpy.load({str(folder / 'inputs.npy')!r})\n"
    code += f"{OPEN[package]}\nprint(json.dumps(found.tolist()))"
    environment = os.environ | {"PYTHONPATH": str(folder / "own")}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return json.loads(ran.stdout.splitlines()[-1]) if not ran.returncode else None
