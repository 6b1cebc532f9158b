"""TFLite Micro: files of integers that its own interpreter executes, the memory that they need, and their C++ form."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FixedTrial
from torch import Tensor, nn

from objectives import ArenaBytes, Limit, SizeBytes, Top1
from objectives.runtimes import ExportError, LiteRt, TfliteMicro
from objectives.runtimes.litert import arena_tries
from search.cli import main
from search.study.errors import UserError
from search.study.goal import with_goal
from spaces import BitWidths, Distill, Plan, PruneRatios, Quantize, Space, Temperatures, deployed, trace
from spaces.testing.networks import Plain, example, teacher
from spaces.testing.runtime_contract import sqnr
from tests import small_study

if TYPE_CHECKING:
    from objectives.runtimes import Runtime
    from search import StudySpec

runtime = pytest.importorskip("tflite_micro.python.tflite_micro.runtime")
pytest.importorskip("litert_torch")
transpositions = pytest.importorskip("objectives.runtimes.litert.transpositions")

MICRO = TfliteMicro()
STUDY = "tests.test_tflite_micro:small"
MOST_RAM = 12_000  # bytes


def unlike() -> nn.Module:
    """Return a network whose output channels have ranges of a factor of 1,000, as folded norms may leave them."""
    torch.manual_seed(0)
    first = nn.Conv2d(1, 8, 3)
    with torch.no_grad():
        first.weight *= torch.logspace(-2, 1, 8)[:, None, None, None]
    return nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()


@pytest.mark.parametrize("bits", [(8, 8), (8, 32), (4, 8), (4, 32), (2, 32), (32, 32)], ids=str)
def test_a_file_of_any_precision_is_right_and_loads(bits: tuple[int, int], tmp_path: Path) -> None:
    """A scale for each channel was read as one for all, and 4 bits of a linear layer did not load."""
    net, inputs, path = unlike(), torch.randn(256, 1, 8, 8), tmp_path / "model.tflite"
    steps = (Quantize((("0", *bits), ("3", *bits))),)
    finished = deployed(Plan(steps, Distill()).apply(net, inputs).eval(), inputs)
    MICRO.export(finished, inputs, path)
    found, expected = MICRO.load(path)(inputs[:100]), finished(inputs[:100]).detach()
    assert sqnr(expected, found) > (30 if bits[1] == 8 else 80)


def test_a_study_asks_for_integers_alone() -> None:
    net = teacher(Plain)
    anatomy = trace(net, example(net))
    axis = BitWidths(runtime=MICRO)
    assert axis.acts_on(anatomy) == {
        "first": "weights 4/8, inputs 8", "second": "weights 4/8, inputs 8", "head": "weights 8, inputs 8"
    }  # fmt: skip
    assert axis.uniform(anatomy, 0.0) == {"precision/first": 0, "precision/second": 0}
    step = axis.suggest(FixedTrial({"precision/first": 1, "precision/second": 0}), anatomy)
    assert step.widths == (("first", 4, 8), ("second", 8, 8), ("head", 8, 8))
    with pytest.raises(ValueError, match=r"of TfliteMicro for layer 'head', a Linear: 8/8 \(bits of weights/inp"):
        BitWidths(weights=(4,), runtime=MICRO).uniform(anatomy, 0.0)


def integers(tmp_path: Path) -> tuple[Path, nn.Module, Tensor]:
    """Return the file of a network of integers, the network, and inputs."""
    net, inputs, path = small_study.teacher(), small_study.splits().train.inputs, tmp_path / "model.tflite"
    widths = tuple((name, 8, 8) for name in ("first", "second", "head"))
    finished = deployed(Quantize(widths).apply(net, inputs[:64]).eval(), inputs[:64])
    MICRO.export(finished, inputs[:64], path)
    return path, finished, inputs


def test_inputs_and_outputs_are_integers_and_no_operator_computes_in_floating_point(tmp_path: Path) -> None:
    path, *_ = integers(tmp_path)
    graph = runtime.convert_bytearray_to_object(path.read_bytes()).subgraphs[0]
    assert {int(tensor.type) for tensor in graph.tensors} <= {2, 9}  # 32-bit and 8-bit integers


def test_the_arena_is_the_smallest_in_which_the_interpreter_starts(tmp_path: Path) -> None:
    path, finished, inputs = integers(tmp_path)
    needed, content = MICRO.arena_bytes(path), path.read_bytes()
    assert ArenaBytes(inputs[:64])(finished) == needed
    interpreter = runtime.Interpreter.from_bytes(content, arena_size=needed)
    details = interpreter.get_input_details(0)
    scale, zero = (details["quantization_parameters"][name][0] for name in ("scales", "zero_points"))
    codes = ((inputs[:1] / float(scale)).round() + int(zero)).clamp(-128, 127).to(torch.int8)
    interpreter.set_input(codes.numpy(), 0)
    interpreter.invoke()
    assert int(interpreter.get_output(0).argmax()) == int(finished(inputs[:1]).argmax())
    with pytest.raises(RuntimeError):
        runtime.Interpreter.from_bytes(content, arena_size=needed - 16)


@pytest.mark.parametrize(
    "reaction",
    [pytest.param("os.kill(os.getpid(), 11)", id="ends the interpreter"),
     # integers with a scale for each channel said so of arenas of which a third was missing
     pytest.param("print('false was not true', flush=True)", id="kernels find other types")],
)  # fmt: skip
def test_an_arena_is_too_small_however_it_shows(reaction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "failing.py"
    program.write_text(
        "import os, sys\n"
        "for line in sys.stdin:\n"
        "    if int(line.split()[0]) < 1_000_000:\n"
        f"        {reaction}\n"
        "    else:\n"
        "        print('starts', flush=True)\n"
    )
    monkeypatch.setattr(arena_tries, "PROGRAM", program)
    with arena_tries.ArenaTries(b"") as tries:
        assert tries.smallest() == 1_000_000


def test_a_file_that_starts_in_no_arena_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "dying.py"
    program.write_text("raise SystemExit(1)")
    monkeypatch.setattr(arena_tries, "PROGRAM", program)
    with arena_tries.ArenaTries(b"") as tries, pytest.raises(ExportError, match="does not start with 1,073,741,824 by"):
        tries.sufficient()


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"not a network")
    for reads in (MICRO.load, MICRO.arena_bytes):
        with pytest.raises(ValueError, match=r"model\.tflite is not a \.tflite file"):
            reads(path)
    path.write_bytes(b"    TFL3" + bytes(8))
    with pytest.raises(ExportError):
        MICRO.load(path)


def test_constants_are_aligned_as_boards_need_them(tmp_path: Path) -> None:
    path, *_ = integers(tmp_path)
    content = path.read_bytes()
    model = runtime.schema_fb.Model.GetRootAsModel(content, 0)
    buffers = [model.Buffers(at) for at in range(model.BuffersLength())]
    starts = [buffer._tab.Vector(buffer._tab.Offset(4)) for buffer in buffers if buffer.DataLength()]
    assert len(starts) > 3
    assert all(start % 16 == 0 for start in starts)


def test_the_source_holds_the_bytes_of_the_file(tmp_path: Path) -> None:
    path, *_ = integers(tmp_path)
    source = MICRO.c_source(path)
    assert bytes(int(number, 16) for number in re.findall(r"0x[0-9a-f]{2}", source)) == path.read_bytes()
    assert f"model_tflite_len = {path.stat().st_size};" in source


MAIN = """
#include <cstdint>
#include <cstdio>

extern const unsigned int model_tflite_len;
extern const uint8_t model_tflite[];

int main() {
    if (reinterpret_cast<uintptr_t>(model_tflite) % 16) return 1;
    return fwrite(model_tflite, 1, model_tflite_len, stdout) != model_tflite_len;
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_a_program_holds_the_file(tmp_path: Path) -> None:
    """The sources of TFLite Micro are in no package registry, so the program reads the array alone."""
    path, *_ = integers(tmp_path)
    (tmp_path / "model.cc").write_text(MICRO.c_source(path))
    (tmp_path / "main.cc").write_text(MAIN)
    words = ["g++", "-Wall", "-Wextra", "-Werror", "-o", "program", "model.cc", "main.cc"]
    subprocess.run(words, cwd=tmp_path, check=True)
    ran = subprocess.run([tmp_path / "program"], capture_output=True, check=True)
    assert ran.stdout == path.read_bytes()


class Joined(nn.Module):
    """A network that joins more tensors than the interpreter takes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.Conv2d(1, 2, 3, padding=1) for _ in range(23))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([step(x) for step in self.steps], 1)


@pytest.mark.parametrize("bits", [(8, 8), (32, 32)], ids=str)
def test_many_tensors_are_joined_in_parts(bits: tuple[int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, inputs, path = Joined().eval(), torch.randn(32, 1, 6, 6), tmp_path / "model.tflite"
    quantized = Quantize(tuple((f"steps.{at}", *bits) for at in range(23))).apply(net, inputs)
    finished = deployed(quantized, inputs)
    MICRO.export(finished, inputs, path)
    assert sqnr(finished(inputs).detach(), MICRO.load(path)(inputs)) > (30 if bits[1] == 8 else 80)


def small(runtime: str = "tflite-micro") -> StudySpec:
    """Return a study of two trials for TFLite Micro."""
    spec = small_study.study(2)
    given = TfliteMicro() if runtime == "tflite-micro" else LiteRt()
    data = spec.splits
    arena = ArenaBytes(data.validation.inputs[:32])
    return dataclasses.replace(
        spec,
        name="micro",
        runtime=given,
        space=Space((PruneRatios(), BitWidths(runtime=given)), Temperatures()),
        objectives=(Top1(data.validation), SizeBytes(given), arena),
        limits=(Limit(arena, at_most=MOST_RAM),),
    )


@pytest.mark.slow
def test_a_study_ends_with_a_file_for_boards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path.cwd()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(root)
    assert main(["run", STUDY, "--seed", "1"]) == 0
    assert main(["export", STUDY, "--seed", "1"]) == 0
    printed = capsys.readouterr()
    assert "bytes of RAM" in printed.out, printed
    folder = tmp_path / "runs/micro/export"
    assert {path.name for path in folder.iterdir()} >= {"model.tflite", "model.cc", "verification.json"}
    record = json.loads((folder / "verification.json").read_text())
    assert record["arena_bytes"] == MICRO.arena_bytes(folder / "model.tflite") <= MOST_RAM
    assert record["agreement_percent"] >= 99


def test_a_study_without_integers_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    small_study.context(small())
    assert "floating point" not in capsys.readouterr().err
    small_study.context(dataclasses.replace(small_study.study(2), runtime=MICRO))
    said = " ".join(capsys.readouterr().err.split())
    assert "no BitWidths(runtime=TfliteMicro()) is among the axes, so the files compute in floating point" in said


def test_a_study_with_precisions_of_another_runtime_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    small_study.context(dataclasses.replace(small(), runtime=LiteRt()))
    said = " ".join(capsys.readouterr().err.split())
    assert "BitWidths offers the precisions of tflite-micro, but the files are for litert, which stores those" in said
    small_study.context(small_study.study(2))
    assert "BitWidths offers" not in capsys.readouterr().err


def test_a_goal_can_limit_the_ram() -> None:
    spec = dataclasses.replace(small(), limits=(), objectives=small().objectives[:2])
    (limit,) = with_goal(dataclasses.replace(spec, goal="at most 64 kB RAM")).limits
    assert (limit.objective.name, limit.bound) == ("arena_bytes", 64_000)
    (flash,) = with_goal(dataclasses.replace(spec, goal="at most 1 MB flash")).limits
    assert (flash.objective.name, flash.bound) == ("size_bytes", 1e6)
    with pytest.raises(UserError, match="which litert does not; search for TFLite Micro: --set runtime=tfl"):
        with_goal(dataclasses.replace(spec, runtime=LiteRt(), goal="at most 64 kB RAM"))


def test_tokens_are_looked_up_when_a_file_is_tried(tmp_path: Path) -> None:
    """A try with whatever the memory held asked for rows that do not exist."""
    net = nn.Sequential(nn.Embedding(8, 4), nn.Flatten(), nn.Linear(12, 5)).eval()
    inputs = torch.randint(8, (6, 3))
    MICRO.export(net, inputs, tmp_path / "model.tflite")
    assert sqnr(net(inputs).detach(), MICRO.load(tmp_path / "model.tflite")(inputs)) > 80


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_written_out(approximate: str, tmp_path: Path) -> None:
    """The interpreter has no operator for it."""
    inputs = torch.linspace(-9, 9, 500)[None]
    MICRO.export(nn.GELU(approximate).eval(), inputs, tmp_path / "model.tflite")
    found = MICRO.load(tmp_path / "model.tflite")(inputs)
    assert (found - nn.functional.gelu(inputs, approximate=approximate)).abs().max() < 2e-6


@given(st.permutations(range(7)), st.lists(st.integers(1, 3), min_size=7, max_size=7), st.integers(4, 6))
def test_steps_of_few_dimensions_do_what_a_transposition_does(order: list[int], sizes: list[int], most: int) -> None:
    numbers = torch.arange(math.prod(sizes)).reshape(sizes)
    found = numbers
    for shape, moved in transpositions.steps(sizes, order, most):
        assert len(moved) <= most
        found = found.reshape(shape).permute(moved)
    assert torch.equal(found.flatten(), numbers.permute(order).flatten())


class Blocks(nn.Module):
    """Moves the dimensions of images that are split into seven, and computes with what it gets."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, images: Tensor) -> Tensor:
        """Return as many numbers."""
        split = (2 * images.flatten(1)).view(len(images), 2, 3, 2, 2, 3, 2)
        moved: Tensor = split.permute(self.order).flatten(1)
        return moved + 1


class Windows(nn.Module):
    """Attends in windows of 2 x 2 pixels, as Swin does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, images: Tensor) -> Tensor:
        """Return images (B, H, W, C) of the same shape."""
        count, height, width, channels = images.shape
        windows = images.view(count, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
        windows = self.inner(windows.reshape(-1, 4, channels)).softmax(1)
        split: Tensor = windows.view(count, height // 2, width // 2, 2, 2, channels)
        return split.permute(0, 1, 3, 2, 4, 5).reshape(images.shape)


@pytest.mark.parametrize("kind", [MICRO, LiteRt()], ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("network", "shape"),
    [(Windows(), (4, 6, 8)), (Blocks(0, 4, 1, 5, 2, 6, 3), (12, 12)), (Blocks(0, 6, 5, 4, 3, 2, 1), (12, 12))],
    ids=["windows", "mixed", "reversed"],
)
def test_dimensions_of_any_number_are_moved(
    network: nn.Module, shape: tuple[int, ...], kind: Runtime, tmp_path: Path
) -> None:
    """TFLite Micro transposes five, LiteRT six."""
    torch.manual_seed(0)
    inputs, path = torch.randn(4, *shape), tmp_path / "model.tflite"
    kind.export(network.eval(), inputs, path)
    with torch.no_grad():
        assert sqnr(network(inputs), kind.load(path)(inputs)) > 100
