"""What files take and give: codes of 8 bits, channels last, images of any size, and what a sensor gives."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from objectives import Examples, LogMel, Preprocessing, SizeBytes, Top1
from objectives.runtimes import ExportError, LiteRt, named
from objectives.runtimes.ends import Form, form_of, with_ends
from search import Budget, Recipe, Splits, StudySpec, UniformStart
from search.cli import main
from search.results.interface import interface
from spaces import BitWidths, PruneRatios, Quantize, Space, Temperatures, deployed
from spaces.testing.networks import Plain, example, teacher
from spaces.testing.runtime_contract import sqnr

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NEEDS = {"litert": "litert_torch", "tflite-micro": "tflite_micro", "executorch": "executorch", "openvino": "openvino"}
RUNTIMES = ("onnx", *NEEDS)
CLASSES = 3
MEAN, DEVIATION = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
EXACT, ROUNDED = 80.0, 30.0  # dB


def installed(runtime: str) -> None:
    if runtime in NEEDS:
        pytest.importorskip(NEEDS[runtime])


def networks() -> dict[str, nn.Module]:
    """Return a network of floats, and the same with layers of integers."""
    net = teacher(Plain)
    inputs = example(net, 64)
    rounded = Quantize(tuple((name, 8, 8) for name in ("first", "second", "head"))).apply(net, inputs).eval()
    return {"floats": deployed(net, inputs), "integers": deployed(rounded, inputs)}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("kind", "words"),
    [("floats", "uint8,nhwc"), ("floats", "int8"), ("integers", "float32"), ("integers", "int8"),
     ("integers", "uint8,nhwc")],
)  # fmt: skip
def test_files_take_and_give_what_is_asked(kind: str, words: str, runtime: str, tmp_path: Path) -> None:
    installed(runtime)
    model, inputs, path = networks()[kind], example(teacher(Plain), 64), tmp_path / "file"
    ends, used = with_ends(model, inputs, form_of(words)), named(runtime)
    taken = ends.encoded(inputs)
    assert str(taken.dtype).removeprefix("torch.") == words.partition(",")[0]
    assert taken.shape[1:] == ((8, 8, 3) if "nhwc" in words else (3, 8, 8))
    used.export(ends, taken, path)
    found = ends.decoded(used.load(path)(taken))
    with torch.no_grad():
        expected, own = model(inputs), ends.decoded(ends(taken))
    assert sqnr(expected, found) > ROUNDED
    if kind == "floats":  # then rounding at the ends is all
        assert sqnr(own, found) > EXACT
    if isinstance(used, LiteRt):
        assert used.grids_of(path)[0][0] == pytest.approx(ends.grids[0][0])


def test_codes_are_those_of_a_first_layer_that_rounds() -> None:
    """So nothing is rounded twice."""
    model, inputs = networks()["integers"], example(teacher(Plain), 64)
    first: Any = model.get_submodule("first")
    for words, shift in (("uint8", 0), ("int8", -128)):
        (grid,) = with_ends(model, inputs, form_of(words)).grids[0]
        assert grid is not None
        assert (grid.scale, grid.zero) == (first.input_scale, first.input_zero + shift)


def test_codes_of_a_network_of_floats_cover_the_example() -> None:
    inputs = example(teacher(Plain), 64)
    ends = with_ends(networks()["floats"], inputs, form_of("uint8"))
    (grid,) = ends.grids[0]
    assert grid is not None
    low, high = grid.ends
    assert low == pytest.approx(float(inputs.min()), abs=grid.scale)
    assert high == pytest.approx(float(inputs.max()), abs=grid.scale)
    assert with_ends(nn.Flatten(), torch.zeros(4, 2, dtype=torch.int64), form_of("int8")).grids == ((None,), (None,))


@pytest.mark.parametrize("words", ["int16", "uint8,int8", "nhwc,nchw", "uint8 nhwc"])
def test_words_that_say_nothing_are_refused(words: str) -> None:
    with pytest.raises(ValueError, match="the ends of a file must be one of float32, int8, uint8, and nchw or nhwc"):
        form_of(words)
    assert form_of("") == Form()


class Pictures(nn.Module):
    """Takes standardized images (B, 3, H, W) of any size; with `flat`, of one size."""

    def __init__(self, *, flat: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.pool = nn.Identity() if flat else nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16 * 36 if flat else 16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(self.pool(self.second(self.first(images).relu()).relu()).flatten(1))  # type: ignore[no-any-return]


def camera(count: int, seed: int) -> Examples:
    """Return images in bytes (B, 3, 16, 20), of which each class has a colour."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    noise = torch.randint(90, (count, 3, 16, 20), generator=generator)
    return Examples((noise + 120 * nn.functional.one_hot(labels, CLASSES)[:, :, None, None]).to(torch.uint8), labels)


def prepare() -> nn.Module:
    """Return what is done to images of the camera."""
    return nn.Sequential(
        v2.ToDtype(torch.float32, scale=True), v2.Resize((12, 15), antialias=False), v2.CenterCrop(12),
        v2.Normalize(MEAN, DEVIATION),
    )  # fmt: skip


def study(runtime: str = "onnx", flat: bool = False, raw: bool = True, weights: float = 1.0) -> StudySpec:  # noqa: FBT001, FBT002
    """Return a study of the pictures."""
    prepared = [Examples(prepare()(one.inputs), one.labels) for one in (camera(96, 0), camera(60, 1), camera(60, 2))]
    torch.manual_seed(0)
    net = Pictures(flat=flat)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(prepared[0].inputs), prepared[0].labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    module = nn.Sequential(prepare(), v2.Normalize((0.0,) * 3, (weights,) * 3)) if weights != 1 else prepare()
    return StudySpec(
        name="pictures",
        teacher=net.eval(),
        splits=Splits(*prepared),
        space=Space((PruneRatios(), BitWidths(runtime=named(runtime))), Temperatures()),
        objectives=(Top1(prepared[1]), SizeBytes(named(runtime))),
        recipe=Recipe(epochs=1, batch_size=32, learning_rate=5e-3),
        budget=Budget(trials=2),
        start=UniformStart(),
        calibration=64,
        runtime=named(runtime),
        preprocessing=Preprocessing(module, camera(60, 1)) if raw else None,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a study."""
    folder = tmp_path_factory.mktemp("pictures") / "study"
    assert main(["run", "tests.test_ends:study", "--folder", str(folder), "--unverified"]) == 0
    return folder


def exported(home: Path, out: Path, *words: str) -> dict[str, Any]:
    """Export the network of a study; return its record."""
    shared = ["export", "tests.test_ends:study", "--folder", str(home), "--out", str(out)]
    assert main([*shared, *words]) == 0
    return json.loads((out / "verification.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_takes_what_a_camera_gives(runtime: str, home: Path, tmp_path: Path) -> None:
    installed(runtime)
    out = tmp_path / "export"
    micro = runtime == "tflite-micro"
    sizes = [] if micro else ["--dynamic-size"]
    record = exported(home, out, "--preprocessing", "--io", "uint8,nhwc", *sizes, "--runtime", runtime)
    code_of_bytes = {"scale": 1.0, "zero_point": 0} if micro else {}  # its operators read codes alone
    taken = {"type": "uint8", "shape": [16, 20, 3], "order": "channels last"}
    assert record["file_inputs"] == [taken | code_of_bytes]
    (output,) = record["file_outputs"]
    assert (output["type"], output["shape"]) == ("uint8", [CLASSES])
    assert output["scale"] > 0
    assert record.get("dynamic_size", False) != micro
    assert "Resize(size=[12, 15]" in record["preprocessing"]
    assert record["top1_file"] > 95
    card = (out / "README.md").read_text()
    codes = "number = (code - 0) x 1" if micro else "none"
    assert f"| input | uint8 | [16, 20, 3], channels last | {codes} |" in card
    assert f"number = (code - {output['zero_point']}) x" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    ran = subprocess.run([sys.executable, "-c", code], cwd=out, capture_output=True, text=True, check=False)
    assert not ran.returncode, ran.stderr


@pytest.mark.parametrize(
    "first",
    [lambda x: x / 255, lambda x: x[:, [2, 1, 0]].float(), lambda x: x.flip(1)[:, :, 2:, ::2].float(),
     lambda x: x.flatten(1).float(), lambda x: x.flatten(2).float() + x.mT.flatten(2).float()],
    ids=["divided", "other order of colours", "a part", "flattened", "read twice"],
)  # fmt: skip
def test_tflite_micro_reads_bytes_that_are_moved_first(first: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    """It makes no floats of bytes that are no codes, and moves none."""
    pytest.importorskip("tflite_micro")
    pytest.importorskip("litert_torch")

    class Reads(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return first(images) - 3

    images, micro = camera(4, 0).inputs[..., :16], named("tflite-micro")
    micro.export(Reads().eval(), images, tmp_path / "file")
    assert (micro.load(tmp_path / "file")(images) - Reads()(images)).abs().max() < 1e-4


@pytest.mark.slow
def test_a_default_file_tells_the_scale_of_its_codes(home: Path, tmp_path: Path) -> None:
    """A .tflite file whose first layer computes with integers takes integers."""
    pytest.importorskip("litert_torch")
    inputs = exported(home, tmp_path / "one", "--runtime", "litert")
    plain = exported(home, tmp_path / "two", "--io", "float32", "--runtime", "litert")
    assert plain["file_inputs"] == [{"type": "float32", "shape": [3, 12, 12], "order": "channels first"}]
    assert ("scale" in inputs["file_inputs"][0]) == (inputs["file_inputs"][0]["type"] == "int8")


class InPlace(nn.Module):
    """Writes into what it gets."""

    def forward(self, images: Tensor) -> Tensor:
        return prepare()(images.add_(1))  # type: ignore[no-any-return]


class Chance(nn.Module):
    """Draws random numbers."""

    def forward(self, images: Tensor) -> Tensor:
        return prepare()(images) + torch.rand(1)  # type: ignore[no-any-return]


class Smaller(nn.Module):
    """Gives images of another size."""

    def forward(self, images: Tensor) -> Tensor:
        return prepare()(images)[:, :, 1:]  # type: ignore[no-any-return]


class Turned(nn.Module):
    """Takes images with their channels last."""

    def forward(self, images: Tensor) -> Tensor:
        return prepare()(images.movedim(-1, 1))  # type: ignore[no-any-return]


class Mixed(nn.Module):
    """Takes two images, of which one has its channels last."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return prepare()(one) + 0 * prepare()(other.movedim(-1, 1))  # type: ignore[no-any-return]


MODULES = {"InPlace": InPlace, "Chance": Chance, "Smaller": Smaller, "Turned": Turned, "Mixed": Mixed}


def unusual(kind: str = "InPlace") -> StudySpec:
    """Return the study with another preprocessing."""
    raw = camera(60, 1)
    last = raw.inputs.movedim(1, -1)
    inputs = {"Turned": last, "Mixed": {"one": raw.inputs, "other": last}}.get(kind, raw.inputs)
    raw = Examples(inputs, raw.labels)
    return dataclasses.replace(study(), preprocessing=Preprocessing(MODULES[kind]().train(), raw))


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("InPlace", [], "the preprocessing must not write into what it gets; use inplace=False"),
        ("Chance", [], "the preprocessing must give the same inputs every time; leave random transforms out"),
        ("Smaller", [], "the preprocessing must give float32 (8, 3, 12, 12), but gives float32 (8, 3, 11, 12)"),
        (
            "Mixed",
            ["--io", "nhwc"],
            "must have their channels all first or all last for nhwc, --dynamic-size and --sizes",
        ),
    ],
)
def test_a_preprocessing_that_cannot_be_a_part_of_a_file_is_refused(
    kind: str, words: list[str], message: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["export", "tests.test_ends:unusual", "--folder", str(home), "--out", str(tmp_path / "out")]
    assert main([*shared, "--preprocessing", "--set", f"kind={kind}", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("runtime", ["onnx", "litert", "executorch"])
@pytest.mark.parametrize("words", [[], ["--dynamic-size"], ["--io", "int8,nhwc", "--dynamic-size"]], ids=str)
def test_images_of_a_sensor_keep_their_order(
    words: list[str], runtime: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(runtime)
    shared = ["export", "tests.test_ends:unusual", "--folder", str(home), "--out", str(tmp_path / "out")]
    assert main([*shared, "--preprocessing", "--set", "kind=Turned", "--runtime", runtime, *words]) == 0
    record = json.loads((tmp_path / "out" / "verification.json").read_text())
    order = {"order": "channels last"} if "--io" in words else {}
    assert record["file_inputs"] == [{"type": "uint8", "shape": [16, 20, 3]} | order]
    assert record.get("dynamic_size", False) == bool(words)
    printed = " ".join(capsys.readouterr().err.split())
    assert ("have their channels last already and stay so" in printed) == bool(words)


def test_codes_at_the_ends_are_not_held_against_a_file(home: Path, tmp_path: Path) -> None:
    """They clip and round what is larger than the calibration inputs; the file was said to answer otherwise."""
    record = exported(home, tmp_path / "out", "--io", "uint8", "--dynamic-size", "--pick", "max top1")
    assert record["file_inputs"][0]["type"] == "uint8"


def test_numbers_that_are_not_finite_have_no_codes() -> None:
    with pytest.raises(ExportError, match="codes of 8 bits need finite numbers, but the calibration gave 0 to inf"):
        with_ends(nn.Flatten(), torch.tensor([[0.0, float("inf")]]), form_of("int8"))


def test_other_floats_become_codes_too() -> None:
    for dtype in (torch.float16, torch.float64):
        inputs = torch.linspace(-1, 1, 8, dtype=dtype)[:, None]
        ends = with_ends(nn.Identity(), inputs, form_of("int8"))
        assert (ends.decoded(ends(ends.encoded(inputs))) - inputs).abs().max() < 0.01


def test_an_input_that_is_overwritten_has_a_grid_of_its_own() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sub_(0.5).mul_(20)

    inputs = torch.rand(8, 3)
    (grid,) = with_ends(Writes(), inputs, form_of("uint8")).grids[0]
    assert grid is not None
    assert grid.ends[1] == pytest.approx(float(inputs.max()), abs=0.01)
    assert float(inputs.min()) >= 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--io", "int4"], "--io: the ends of a file must be one of float32, int8, uint8"),
        (["--preprocessing", "--set", "raw=False"], "the study must have a preprocessing for --preprocessing"),
        (["--dynamic-size", "--runtime", "tflite-micro"], "takes images of one size, for which it plans all of its"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str], message: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "tflite-micro" in words:
        installed("tflite-micro")
    shared = ["export", "tests.test_ends:study", "--folder", str(home), "--out", str(tmp_path / "out")]
    assert main([*shared, *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_network_of_one_size_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ["tests.test_ends:study", "--folder", str(tmp_path), "--set", "flat=True"]
    assert main(["run", *shared, "--unverified", "--trials", "1"]) == 0
    assert main(["export", *shared, "--dynamic-size"]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "a network must take images of other sizes for --dynamic-size, but with float32 (2, 3, 24, 12) it" in printed


def test_a_preprocessing_that_differs_is_told(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(home, tmp_path / "out", "--preprocessing", "--set", "weights=1.1")
    assert "the preprocessing gives inputs that differ from those of the validation split by up to" in (
        " ".join(capsys.readouterr().err.split())
    )


@pytest.mark.parametrize(
    ("window", "hop", "samples"), [(320, 160, 8000), (400, 160, 8000), (97, 31, 1001), (25, 10, 130)]
)
def test_log_mel_features_are_those_of_a_fourier_transform(window: int, hop: int, samples: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sounds, filters = torch.randn(3, samples, generator=generator), torch.rand(window // 2 + 1, 7, generator=generator)
    spectrum = torch.stft(sounds, window, hop, window=torch.hann_window(window), center=False, return_complex=True)
    expected = torch.log(torch.einsum("nft,fm->ntm", spectrum.abs().square(), filters) + 1e-6)
    assert sqnr(expected, LogMel(filters, window, hop)(sounds)[:, 0]) > EXACT
    with pytest.raises(ValueError, match=f"sounds must have at least {window} samples, but got {window - 1}"):
        LogMel(filters, window, hop)(sounds[:, : window - 1])
    with pytest.raises(ValueError, match=f"a row for each of the {window // 2 + 1} frequencies"):
        LogMel(filters[1:], window, hop)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_log_mel_features_are_computed_in_the_file(runtime: str, tmp_path: Path) -> None:
    installed(runtime)
    generator, path = torch.Generator().manual_seed(0), tmp_path / "file"
    sounds = torch.randint(-9000, 9000, (4, 1600), generator=generator).to(torch.int16)
    module = LogMel(
        torch.rand(81, 12, generator=generator), 160, 80, full_scale=32768.0, mean=-3.0, deviation=2.0
    ).eval()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 17 * 10, CLASSES)).eval()
    ends = with_ends(net, sounds, Form(), module)
    named(runtime).export(ends, sounds, path)
    with torch.no_grad():
        assert sqnr(net(module(sounds)), named(runtime).load(path)(sounds)) > EXACT


def test_a_grid_may_stand_before_several_inputs(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, image: Tensor, ids: Tensor) -> dict[str, Tensor]:
            return {"map": image.relu(), "sum": image.mean((1, 2, 3)) + ids.float().sum(1)}

    inputs = {"image": torch.randn(4, 2, 6, 6), "ids": torch.randint(5, (4, 3))}
    ends = with_ends(Two(), inputs, form_of("int8,nhwc"))
    assert [one is None for one in ends.grids[0]] == [False, True]
    taken = ends.encoded(inputs)
    assert taken["image"].shape == (4, 6, 6, 2)
    assert taken["image"].dtype == torch.int8
    assert taken["ids"].dtype == torch.int64
    named("onnx").export(ends, taken, tmp_path / "file")
    found = ends.decoded(named("onnx").load(tmp_path / "file")(taken))
    expected = Two()(**inputs)
    assert [tuple(one.shape) for one in found] == [(4, 2, 6, 6), (4,)]
    assert sqnr(expected["map"], found[0]) > ROUNDED
    assert sqnr(expected["sum"], found[1]) > ROUNDED


def test_the_ends_do_not_change_what_they_are_put_around() -> None:
    spec = unusual("Turned")
    assert spec.preprocessing is not None
    module, network = spec.preprocessing.module, spec.teacher
    before = {name: value.clone() for name, value in network.state_dict().items()}
    used, shipped, taken = interface(
        network, network, spec.example(), spec, form_of("int8,nhwc", free_size=True), preprocessing=True
    )
    assert not shipped.training
    assert taken.dtype == torch.uint8
    assert module.training  # as the user left it
    assert used.ends is shipped
    assert used.ends.model is network
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
