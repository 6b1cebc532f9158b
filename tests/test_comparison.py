"""How much the outputs of a file may differ from those of its network."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path  # noqa: TC003 - pytest reads the annotation

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from objectives import Examples
from objectives.runtimes import named
from search.evaluation.comparison import Comparison, RoundsEverything
from search.results.interface import Interface
from search.results.verification import Disagreement, require_agreement
from spaces import Distill, Plan, Quantize, deployed, trace
from spaces.network.statistics import subsample
from tests import small_study


class Enlarged(nn.Module):
    """Super-resolution: a sum of branches whose values reach much farther at a few bright places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.up = nn.Conv2d(8, 4, 3, padding=1), nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        hidden = hidden + self.second(hidden).relu()
        out: Tensor = self.up(self.last(hidden)) + F.interpolate(x, scale_factor=2)
        return out


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    dark = 0.05 * torch.rand(count, 1, 16, 16, generator=generator)
    dark[:, :, 7:9, 7:9] += 1
    return dark


def finished() -> nn.Module:
    net, inputs = Enlarged().eval(), images(64)
    layers = tuple((layer.name, 8, 8) for layer in trace(net, inputs[:2]).layers)
    return deployed(Plan((Quantize(layers),), Distill()).apply(net, inputs).eval(), inputs)


@pytest.mark.parametrize("runtime", ["onnx", "litert", "executorch"])
def test_a_file_of_a_network_for_images_has_no_more_noise_than_rounding_leaves(runtime: str, tmp_path: Path) -> None:
    model, inputs, format_of = finished(), images(64), named(runtime)
    format_of.export(model, inputs, tmp_path / "file")
    comparison = Comparison(model)
    with torch.no_grad():
        comparison.add(inputs, model(inputs), format_of.load(tmp_path / "file")(inputs), None)
    record = comparison.record()
    assert record["sqnr_db"] > max(35, record["allowed_sqnr_db"])
    assert record["agreement_percent"] is None


class Joined(nn.Module):
    """Concatenates a layer's outputs with those of another layer, or rearranged as the heads of detectors do."""

    def __init__(self, *, flat: bool) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 12, 1), nn.Conv2d(8, 12, 1)
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        features = self.first(x).relu()
        parts = [self.left(features), 3 * self.right(features)]
        if self.flat:
            parts = [part.unflatten(1, (3, 4)).permute(0, 3, 4, 1, 2).reshape(len(x), -1, 4) for part in parts]
        return torch.cat(parts, 1)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("rounded", [("left",), ("left", "right")])
def test_executorch_joins_integers_of_several_scales(rounded: tuple[str, ...], *, flat: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, inputs, executorch = Joined(flat=flat).eval(), images(32), named("executorch")
    plan = Plan((Quantize(tuple((name, 8, 8) for name in rounded)),), Distill())
    model = deployed(plan.apply(net, inputs).eval(), inputs)
    executorch.export(model, inputs, tmp_path / "file")
    with torch.no_grad():
        expected = model(inputs)
    noise = (executorch.load(tmp_path / "file")(inputs) - expected).std()
    assert noise < 0.02 * expected.std()


class Twice(nn.Module):
    """A network whose second output has another unit."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.inner, self.scale = finished(), scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.inner(x)
        return out, self.scale * out


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_wrong_output_is_below_the_bound_whatever_its_unit(scale: float) -> None:
    model, inputs = Twice(scale).eval(), images(16)
    with torch.no_grad():
        first, second = model(inputs)
    wrong = Comparison(model)
    wrong.add(inputs, (first, second), (first, second.roll(1, -1)), None)
    assert wrong.record()["sqnr_db"] < wrong.record()["allowed_sqnr_db"]


def test_a_network_in_floating_point_may_differ_by_a_hundredth_of_the_deviation() -> None:
    model, inputs = nn.Conv2d(1, 2, 3), images(8)
    with torch.no_grad():
        expected = model(inputs)
    for share, holds in ((0.005, True), (0.02, False)):
        comparison = Comparison(model)
        comparison.add(inputs, expected, expected + share * expected.std(), None)
        record = comparison.record()
        assert (record["sqnr_db"] >= record["allowed_sqnr_db"]) == holds


def test_another_shape_is_an_error_and_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"float32 \(4, 1\), as the network, but it returned float32 \(4,\)"):
        Comparison(nn.Identity()).add(torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4), None)


def test_rounding_leaves_256_values() -> None:
    with RoundsEverything():
        rounded = torch.linspace(-3, 5, 10_000) * 1.0
    assert len(rounded.unique()) == 256


def test_a_sample_of_a_tensor_takes_values_of_all_columns() -> None:
    columns = torch.arange(16.0).expand(64, 16, 16, 16)
    taken = subsample(columns, 4096)
    assert 2000 < len(taken) < 5000
    assert float(taken.mean()) == pytest.approx(7.5, abs=0.1)
    assert len(taken.unique()) == 16


def test_integer_labels_of_a_loss_of_its_own_are_no_classes() -> None:
    """The largest number of an embedding means nothing; the noise of the numbers counts."""
    vectors, labels = torch.tensor([[0.70, 0.71], [0.71, 0.70]]), torch.tensor([1, 0])
    for of_classes, agreement in ((True, 0.0), (False, None)):
        comparison = Comparison(nn.Identity(), of_classes=of_classes)
        comparison.add(vectors, vectors, vectors.flip(1), labels)
        record = comparison.record()
        assert record["agreement_percent"] == agreement
        assert record["sqnr_db"] == pytest.approx(10 * math.log10(0.9941 / 0.0002), abs=0.01)


class Deep(nn.Module):
    """Many layers, through which a small difference grows."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()) for _ in range(12)]
        self.first, self.rest, self.head = nn.Conv2d(1, 16, 3), nn.Sequential(*layers), nn.Linear(16, 10)
        for layer in layers:
            nn.init.kaiming_normal_(layer[0].weight)  # type: ignore[arg-type]  # of a convolution

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rest(self.first(x)).mean((2, 3)))  # type: ignore[no-any-return]


def test_a_deep_network_of_integers_is_compared_with_itself() -> None:
    torch.manual_seed(0)
    net, inputs = Deep().eval(), torch.randn(64, 1, 16, 16)
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    rounded = deployed(Quantize(tuple((name, 8, 8) for name in names)).apply(net, inputs).eval(), inputs)
    for model, itself in ((net, False), (rounded, True)):
        with torch.no_grad():
            answers = model(inputs)
        comparison = Comparison(model)
        comparison.add(inputs, answers, answers, answers.argmax(1))
        assert comparison.record()["agreement_percent"] == 100
        own = comparison.of_itself(Examples(inputs, answers.argmax(1)))
        assert bool(own) == itself
        if itself:
            assert 50 < own["own_sqnr_db"] < 100  # 73 dB
            assert 90 < own["own_agreement_percent"] <= 100


@pytest.mark.parametrize(
    ("agreement", "own", "noise", "own_noise", "right"),
    [(99.0, 100.0, 30.0, 100.0, True), (98.0, 100.0, 30.0, 100.0, False), (98.0, 99.0, 25.0, 26.0, True),
     (98.0, 99.0, 19.0, 26.0, False), (96.5, 99.0, 25.0, 26.0, False)],
)  # fmt: skip
def test_a_file_may_differ_from_its_network_twice_as_often_as_that_from_itself(
    agreement: float, own: float, noise: float, own_noise: float, *, right: bool
) -> None:
    record = {
        "samples": 1000, "top1_torch": 90.0, "top1_file": 90.0 - (100 - agreement) / 2, "agreement_percent": agreement,
        "own_agreement_percent": own, "sqnr_db": noise, "own_sqnr_db": own_noise,
    }  # fmt: skip
    spec = small_study.study()
    with contextlib.nullcontext() if right else pytest.raises(Disagreement, match="of at least"):
        require_agreement(record, Interface(spec.teacher, spec.splits.validation), spec)
