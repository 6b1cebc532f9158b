"""Files with an entry point for each of several sizes of images."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from objectives import Examples
from objectives.runtimes import ExportError, OnnxRuntime, named
from objectives.runtimes.ends import form_of, with_ends
from objectives.runtimes.image_sizes import resized, sizes_of
from objectives.runtimes.signatures import HasSignatures
from search.cli import main
from search.results.file_at_sizes import signatures_record
from search.results.interface import Interface
from search.results.other_sizes import further_sizes
from search.slimfront.asking import Selection
from spaces import Quantize, deployed
from spaces.testing.runtime_contract import sqnr
from tests.test_ends import CLASSES, EXACT, ROUNDED, Pictures, installed

if TYPE_CHECKING:
    from pathlib import Path

    from objectives.trees import Tree

OWN, OTHER = (12, 12), (16, 9)
DEFAULTS = {"litert": "serving_default", "executorch": "forward"}
MOST_FOR_A_SIZE = 1.3  # times the bytes of a file of one size


class Wide(nn.Module):
    """Takes images of any size; its weights, 75,000, are most of its file."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, stride=2, padding=1)
        self.third, self.head = nn.Conv2d(64, 64, 3, padding=1), nn.Linear(64, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.second(self.first(images).relu()).relu()
        x = x + self.third(x).relu()
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Two(nn.Module):
    """Takes images and numbers by name; gives a map of the images and scores."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(6, CLASSES)

    def forward(self, numbers: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(images).relu()
        return x, self.head(torch.cat([x.mean((2, 3)), numbers], 1))


def finished(bits: int) -> tuple[nn.Module, Tensor]:
    """Return a network whose weights have so many bits and whose inputs are rounded below 32, and inputs."""
    torch.manual_seed(0)
    net, inputs = Wide().eval(), torch.randn(32, 3, *OWN)
    layers = tuple((name, bits, 8) for name in ("first", "second", "third", "head"))
    return deployed(net if bits == 32 else Quantize(layers).apply(net, inputs).eval(), inputs), inputs


@pytest.mark.parametrize(
    ("runtime", "bits", "words"),
    [("litert", 32, ""), ("litert", 8, ""), ("litert", 4, "uint8,nhwc"), ("executorch", 32, "int8,nhwc"),
     ("executorch", 8, "")],
)  # fmt: skip
def test_entry_points_share_weights_and_answer_as_the_network(
    runtime: str, bits: int, words: str, tmp_path: Path
) -> None:
    installed(runtime)
    (model, inputs), used = finished(bits), named(runtime)
    assert isinstance(used, HasSignatures)
    sizes = {}
    for count, form in enumerate((form_of(words), form_of(words, sizes=(OTHER,))), start=1):
        ends, path = with_ends(model, inputs, form), tmp_path / str(count)
        used.export(ends, ends.encoded(inputs), path)
        sizes[count] = path.stat().st_size
        assert used.signatures_of(path) == [DEFAULTS[runtime], "forward_16x9"][:count]
    assert sizes[2] < MOST_FOR_A_SIZE * sizes[1]
    run = used.load(path)
    for size in (OWN, OTHER):
        images = resized(inputs, size)
        with torch.no_grad():
            expected, own = model(images), ends.decoded(ends(ends.encoded(images)))
        found = ends.decoded(run(ends.encoded(images)))
        assert sqnr(expected, found) > ROUNDED
        if bits == 32:
            assert sqnr(own, found) > EXACT
    with pytest.raises(ValueError, match="of the file take inputs of"):
        run(ends.encoded(resized(inputs, (9, 16))))


def test_codes_cover_the_outputs_at_every_size() -> None:
    class Sums(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.sum((2, 3))

    inputs = torch.rand(8, 3, *OWN)
    (grid,) = with_ends(Sums(), inputs, form_of("uint8", sizes=((24, 24),))).grids[1]
    assert grid is not None
    assert grid.ends[1] == pytest.approx(float(4 * inputs.sum((2, 3)).max()), abs=grid.scale)


@pytest.mark.parametrize("runtime", ["litert", "executorch"])
def test_inputs_and_outputs_keep_their_order(runtime: str, tmp_path: Path) -> None:
    installed(runtime)
    torch.manual_seed(0)
    net, used = Two().eval(), named(runtime)
    inputs = {"numbers": torch.randn(4, 2), "images": torch.randn(4, 3, *OWN)}
    ends = with_ends(net, inputs, form_of("", sizes=(OTHER,)))
    used.export(ends, ends.encoded(inputs), tmp_path / "file")
    run = used.load(tmp_path / "file")
    for size in (OWN, OTHER):
        given = resized(inputs, size)
        with torch.no_grad():
            expected = net(**given)
        for one, other in zip(expected, run(given), strict=True):
            assert sqnr(one, other) > EXACT


def test_sizes_in_words() -> None:
    assert sizes_of("64x64, 96X128,64x64") == ((64, 64), (96, 128))
    assert sizes_of("") == ()
    for words in ("64", "64x", "64x64 96x96", "0x5", "-3x4", "64x64,,96x96", "64*64"):
        with pytest.raises(ValueError, match="sizes of images must be height x width, such as 64x64,96x128, but got"):
            sizes_of(words)
    assert Selection("studies/digits.py:study").of("export", sizes="64x64").sizes == "64x64"


def test_resized_images_keep_type_and_order() -> None:
    images = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 2, 2)
    assert resized(images, (4, 2))[0, 0].tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]
    last = resized(images.movedim(1, -1), (4, 1), channels_last=True)
    assert torch.equal(last, resized(images, (4, 1)).movedim(1, -1))
    assert torch.equal(resized(torch.ones(2, 3), (5, 5)), torch.ones(2, 3))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a study."""
    folder = tmp_path_factory.mktemp("sizes") / "study"
    assert main(["run", "tests.test_ends:study", "--folder", str(folder), "--unverified"]) == 0
    return folder


@pytest.mark.parametrize(
    ("runtime", "words", "own", "shape"),
    [
        ("litert", ["--io", "uint8,nhwc"], [12, 12], [16, 9, 3]),
        ("executorch", ["--preprocessing"], [16, 20], [3, 16, 9]),
    ],
)
def test_an_exported_file_is_verified_at_every_size(
    runtime: str, words: list[str], own: list[int], shape: list[int], home: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    installed(runtime)
    out, sizes = tmp_path / "export", f"{own[0]}x{own[1]},16x9"
    shared = ["export", "tests.test_ends:study", "--folder", str(home), "--out", str(out), "--runtime", runtime]
    assert main([*shared, *words, "--sizes", sizes]) == 0
    printed = " ".join(capsys.readouterr().err.split())
    assert f"the file takes images of {own[0]}x{own[1]}, the size of the study, also without --sizes" in printed
    record: dict[str, Any] = json.loads((out / "verification.json").read_text())
    first, other = record["signatures"]
    assert (first["name"], first["size"]) == (DEFAULTS[runtime], own)
    assert {name: first[name] for name in ("file_inputs", "file_outputs")} == (
        {name: record[name] for name in ("file_inputs", "file_outputs")}
    )
    assert (other["name"], other["size"]) == ("forward_16x9", [16, 9])
    assert (other["file_inputs"][0]["type"], other["file_inputs"][0]["shape"]) == ("uint8", shape)
    assert other["sqnr_db"] > other["allowed_sqnr_db"]
    card = (out / "README.md").read_text()
    assert f"| input of `forward_16x9` | uint8 | {shape}" in card
    default, further = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert '"forward_16x9"' in further
    for code in (default, further):
        ran = subprocess.run([sys.executable, "-c", code], cwd=out, capture_output=True, text=True, check=False)
        assert not ran.returncode, ran.stderr
        assert f"(1, {CLASSES})" in ran.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runtime", "onnx"], "as those of litert or executorch; an .onnx file takes images of any size with --dyn"),
        (["--runtime", "openvino"], "an .onnx file takes images of any size with --dynamic-size"),
        (["--runtime", "tflite-micro"], "of one size, for which it plans all of its memory; leave out --sizes and"),
        (["--runtime", "executorch", "--dynamic-size"], "--sizes and --dynamic-size exclude each other"),
        (["--sizes", "16"], "--sizes: sizes of images must be height x width, such as 64x64,96x128, but got '16'"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str], message: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(words[-1])
    shared = ["export", "tests.test_ends:study", "--folder", str(home), "--out", str(tmp_path / "out")]
    assert main([*shared, "--sizes", "16x9", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_network_that_does_not_run_at_a_size_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ["tests.test_ends:study", "--folder", str(tmp_path), "--set", "flat=True"]
    assert main(["run", *shared, "--unverified", "--trials", "1"]) == 0
    assert main(["export", *shared, "--runtime", "litert", "--sizes", "12x12,16x9"]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "a network must take images of 16x9 for --sizes, but fails: mat1 and mat2 shapes cannot be multi" in printed


def checked(runtime: Any, execute: Any) -> dict[str, Any]:
    """Return the record of a file of two sizes that executes so."""
    torch.manual_seed(0)
    net, inputs = Pictures().eval(), torch.randn(8, 3, *OWN)
    ends = with_ends(net, inputs, form_of("", sizes=(OTHER,)))
    used = Interface(net, Examples(inputs, torch.zeros(8, dtype=torch.int64)), ends)
    return signatures_record(used, None, runtime, lambda given: execute(net, given))  # type: ignore[arg-type]


class Named:
    """Says the names of entry points, as a runtime of a user may."""

    name, suffix, threads, channels, integers_only, layout, signature_call = "own", "own", 1, 1, False, None, ""

    def precisions(self, *_: object) -> None: ...
    def export(self, *_: object) -> None: ...
    def load(self, *_: object) -> None: ...

    def signatures_of(self, _: object) -> list[str]:
        return ["first", "forward_16x9"]


def test_a_file_that_answers_otherwise_at_one_size_fails() -> None:
    def right(net: nn.Module, given: Tree) -> Tree:
        with torch.no_grad():
            return net(given)

    def wrong(net: nn.Module, given: Tree) -> Tree:
        return right(net, given) * (1.0 if given.shape[2:] == OWN else 1.1)

    def failing(net: nn.Module, given: Tree) -> Tree:
        if given.shape[2:] != OWN:
            raise RuntimeError("no kernel")
        return right(net, given)

    assert [one["name"] for one in checked(Named(), right)["signatures"]] == ["first", "forward_16x9"]
    with pytest.raises(ExportError, match=r"otherwise than its network to float32 \(8, 3, 16, 9\)"):
        checked(Named(), wrong)
    with pytest.raises(ExportError, match=r"does not take .*, for which --sizes 16x9 asks: no kernel"):
        checked(Named(), failing)
    with pytest.raises(ExportError, match="a file for onnx must have forward_12x12 for --sizes, but it has no names"):
        checked(OnnxRuntime(), right)


def test_images_of_one_size_are_needed() -> None:
    for inputs in (torch.zeros(2, 5), (torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 4, 4))):
        with pytest.raises(ExportError, match="--sizes is about images, all of one size, but the network takes"):
            further_sizes(nn.Identity(), inputs, (OTHER,), channels_last=False)


def test_images_with_their_channels_last_have_their_size_before_them() -> None:
    images = torch.arange(2 * 8 * 6 * 3).reshape(2, 8, 6, 3)
    assert further_sizes(nn.Identity(), images, ((8, 6), OTHER), channels_last=True) == (OTHER,)
    larger = resized(images, (16, 6), channels_last=True)
    assert torch.equal(larger[:, ::2], images)
    assert torch.equal(larger[:, 1::2], images)
