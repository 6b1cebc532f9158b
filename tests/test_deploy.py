"""The deployed network has the same outputs as the trained one."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, get_type_hints

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from objectives.runtimes import OnnxRuntime
from spaces import (
    BitWidths,
    Distill,
    Factorize,
    KMeans,
    Plan,
    PowersOfTwo,
    PruneRatios,
    Quantize,
    Ranks,
    SpatialSvd,
    Svd,
    Tucker2,
    Uniform,
    deployed,
    trace,
)
from spaces.axes.quantized_layers import PackedLayer
from spaces.network.deploy import TrainingForm
from spaces.testing.axis_contract import step
from spaces.testing.networks import (
    NETWORKS,
    Grouped,
    Mlp,
    Net,
    Residual,
    Separable,
    Sequence,
    example,
    run,
    scrambled,
    teacher,
)

if TYPE_CHECKING:
    from pathlib import Path

    from spaces.axes.decompositions import Decomposition
    from spaces.axes.grids import Grid

GRIDS: tuple[Grid, ...] = (Uniform(), PowersOfTwo(), KMeans())
each_grid = pytest.mark.parametrize("grid", GRIDS, ids=repr)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def quantized(net: Net, grid: Grid, weights: int = 4, activations: int = 32) -> nn.Module:
    """Return the network with all of its layers quantized."""
    widths = tuple((layer.name, weights, activations) for layer in trace(net, example(net)).layers)
    return Quantize(widths, grid).apply(net, example(net))


def norms(net: nn.Module) -> list[str]:
    """Return the names of the BatchNorms."""
    return [name for name, module in net.named_modules() if isinstance(module, NORMS)]


@pytest.mark.parametrize("kind", NETWORKS)
def test_outputs_of_a_float_network_are_the_same(kind: type[Net]) -> None:
    net = teacher(kind)
    finished = deployed(net, example(net))
    torch.testing.assert_close(finished(example(net)), net(example(net)), atol=1e-5, rtol=1e-4)


@each_grid
@pytest.mark.parametrize("kind", NETWORKS)
def test_outputs_of_a_quantized_network_are_the_same(kind: type[Net], grid: Grid) -> None:
    net = teacher(kind)
    trained = quantized(net, grid)
    finished = deployed(trained, example(net))
    torch.testing.assert_close(finished(example(net)), trained(example(net)), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", NETWORKS)
def test_few_rounded_inputs_fall_on_another_level(kind: type[Net]) -> None:
    net = teacher(kind)
    trained = quantized(net, Uniform(), 8, 8)
    expected = trained(example(net))
    off = (deployed(trained, example(net))(example(net)) - expected).abs()
    assert off.median() < 1e-3 * expected.abs().max()
    assert off.max() < 5e-2 * expected.abs().max()


@each_grid
def test_gains_of_zero_give_channels_of_zeros(grid: Grid) -> None:
    net = copy.deepcopy(teacher(Residual))
    with torch.no_grad():
        for name in norms(net):
            net.get_parameter(f"{name}.weight")[::2] = 0
        net.get_parameter("block1.conv1.weight")[2] = 0
    for model in (net, quantized(net, grid)):
        finished = deployed(model, example(net))
        assert norms(finished) == []
        torch.testing.assert_close(finished(example(net)), model(example(net)), atol=1e-4, rtol=1e-3)
        for module in finished.modules():
            if isinstance(module, PackedLayer):
                assert module.scale.isfinite().all()
                assert module.scale.all()


def test_weights_midway_between_two_levels_keep_their_level() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    net.get_parameter("1.weight").data.fill_(-0.7)
    inputs = torch.randn(4, 3, 6, 6)
    trained = Quantize((("0", 2, 32),)).apply(net, inputs)
    weight, scale = trained.get_parameter("0.layer.weight"), trained.get_buffer("0.weight_scale")
    weight.data = weight.sign() * scale[:, None, None, None] / 2
    finished = deployed(trained, inputs)
    assert norms(finished) == []
    torch.testing.assert_close(finished(inputs), trained(inputs), atol=1e-5, rtol=1e-4)


def test_norms_are_folded_where_inputs_lie_midway_between_two_levels() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1)).eval()
    net.get_parameter("1.weight").data.fill_(0.7)
    inputs = torch.randn(2, 3, 20, 20)
    trained = Quantize((("0", 4, 4), ("3", 8, 8))).apply(net, inputs)
    # all outputs of the first layer are multiples of this; every other one is midway between two levels of the next
    trained.get_buffer("0.weight_scale").fill_(0.7)
    smallest = 0.7 / 7 * trained.get_buffer("0.input_scale") * 0.7 / (1 + 1e-5) ** 0.5
    trained.get_buffer("3.input_scale").copy_(2 * smallest)
    finished = deployed(trained, inputs)
    assert norms(finished) == []
    expected = trained(inputs)
    off = (finished(inputs) - expected).abs().max() / expected.abs().max()
    assert 1e-3 < off < 0.1  # some were rounded to another level


def test_uniform_scales_stay_positive_under_negative_gains() -> None:
    net = teacher(Residual)
    assert (net.get_parameter("bn.weight") < 0).any()
    finished = deployed(quantized(net, Uniform()), example(net))
    packed = finished.get_submodule("stem")
    assert isinstance(packed, PackedLayer)
    assert (packed.scale > 0).all()


def test_every_norm_after_a_layer_is_folded() -> None:
    for kind in (Residual, Mlp, Sequence):
        net = teacher(kind)
        assert norms(net)
        assert norms(deployed(net, example(net))) == []


class EarlyReader(Net):
    """A network that reads its first convolution before and after the norm; its second norm is an ordinary one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.read_early = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.norm_after = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.norm_after(self.second(F.relu(self.read_early(x))))
        return run(x.mean((2, 3)), self.head)


@pytest.mark.parametrize("bits", [32, 8])
def test_a_norm_whose_input_is_also_read_elsewhere_is_kept_and_the_others_are_folded(bits: int) -> None:
    net = scrambled(EarlyReader())
    trained = quantized(net, Uniform(), bits, bits)
    finished = deployed(trained, example(net))
    assert norms(finished) == ["read_early"]
    expected = trained(example(net))
    assert (finished(example(net)) - expected).abs().max() < 5e-2 * expected.abs().max()


class Shared(Net):
    """A network that calls a convolution and a norm twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.other = nn.Conv2d(3, 3, 1)
        self.free = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(self.norm(self.conv(x))))
        return run(x, self.other, self.free).mean((2, 3))


def test_norms_that_are_called_twice_or_have_no_statistics_are_not_folded() -> None:
    net = Shared().eval()
    net.get_buffer("norm.running_mean").normal_()
    finished = deployed(net, example(net))
    assert norms(finished) == ["norm", "free"]
    assert torch.equal(finished(example(net)), net(example(net)))


class Activating(nn.BatchNorm2d):
    """A norm that applies a child afterwards, as timm's norms do."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.LeakyReLU(0.999)  # nearly an identity: the outputs alone would not reveal it

    def forward(self, x: Tensor) -> Tensor:
        return run(super().forward(x), self.act)


class Doubling(nn.BatchNorm2d):
    """A norm that does more than its children."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.0001 * super().forward(x)


@pytest.mark.parametrize(("kind", "kept"), [(Activating, []), (Doubling, ["1"])])
def test_a_norm_of_a_custom_class_is_folded_if_it_only_applies_its_children(
    kind: type[nn.BatchNorm2d], kept: list[str]
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), kind(4)).eval()
    net.get_buffer("1.running_mean").normal_()
    inputs = torch.randn(4, 3, 6, 6)
    finished = deployed(net, inputs)
    assert norms(finished) == kept
    torch.testing.assert_close(finished(inputs), net(inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_norms_are_folded_with_and_without_gain_and_bias(*, affine: bool, bias: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4, affine=affine)).eval()
    net.get_buffer("1.running_mean").normal_()
    net.get_buffer("1.running_var").uniform_(0.5, 2)
    inputs = torch.randn(4, 3, 6, 6)
    finished = deployed(net, inputs)
    assert norms(finished) == []
    torch.testing.assert_close(finished(inputs), net(inputs), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("decomposition", [Svd(), SpatialSvd(), Tucker2()], ids=repr)
@pytest.mark.parametrize(("kind", "layer"), [(Grouped, "grouped"), (Separable, "depthwise")])
def test_parts_of_grouped_layers_are_quantized_folded_and_exported(
    kind: type[Net], layer: str, decomposition: Decomposition, tmp_path: Path
) -> None:
    net = teacher(kind)
    factorized = Factorize(((layer, 0.3),), decomposition).apply(net, example(net))
    parts = [name for name, _ in factorized.get_submodule(layer).named_children()]
    assert parts == ["reduce", "expand"]
    widths = tuple((name, 4, 32) for name in (layer, "stem", "head"))
    for model in (factorized, Quantize(widths).apply(factorized, example(net))):
        finished = deployed(model, example(net))
        assert norms(finished) == []
        torch.testing.assert_close(finished(example(net)), model(example(net)), atol=1e-4, rtol=1e-3)
        OnnxRuntime().export(finished, example(net), tmp_path / "model.onnx")
        got = OnnxRuntime().load(tmp_path / "model.onnx")(example(net))
        torch.testing.assert_close(got, finished(example(net)), atol=1e-5, rtol=1e-4)
    for name in parts:
        packed = finished.get_submodule(f"{layer}.{name}")
        assert isinstance(packed, PackedLayer)
        assert isinstance(packed.layer, nn.Conv2d)
        assert packed.layer.groups == net.get_submodule(layer).groups
        assert len(packed.scale) == packed.layer.out_channels


class Upward(Net):
    """A network of transposed convolutions that enlarges a map and then reads it."""

    shape = (3, 6, 6)

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 8, 3, stride=2, padding=1, output_padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.again = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=groups)
        self.norm_after = nn.BatchNorm2d(6)
        self.head = nn.Conv2d(6, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.up(x)))
        return run(F.relu(self.norm_after(self.again(x))), self.head)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("activations", [32, 8])
@each_grid
def test_transposed_convolutions_are_quantized_folded_and_exported(
    grid: Grid, activations: int, groups: int, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    net = scrambled(Upward(groups))
    names = ("up", "head") if groups > 1 else ("up", "again", "head")
    trained = Quantize(tuple((name, 4, activations) for name in names), grid).apply(net, example(net))
    for model in (net, trained):
        finished = deployed(model, example(net))
        assert norms(finished) == []
        expected, got = model(example(net)), finished(example(net))
        assert (got - expected).abs().max() <= (
            1e-3 if activations == 32 or model is net else 5e-2
        ) * expected.abs().max()
        OnnxRuntime().export(finished, example(net), tmp_path / "model.onnx")
        read = OnnxRuntime().load(tmp_path / "model.onnx")(example(net))
        assert (read - got).abs().max() <= (1e-4 if activations == 32 else 5e-2) * got.abs().max()
        assert (read - got).abs().median() <= 1e-4 * got.abs().max()
    packed = finished.get_submodule("up")
    assert isinstance(packed, PackedLayer)
    assert packed.scale.shape == (8,)
    assert packed.codes.shape == (3, 8, 3, 3)


@each_grid
def test_weights_are_stored_as_bytes(grid: Grid) -> None:
    net = teacher(Residual)
    finished = deployed(quantized(net, grid), example(net))
    packed = [module for module in finished.modules() if isinstance(module, PackedLayer)]
    assert len(packed) == len(trace(net, example(net)).layers)
    stored = dict(finished.named_parameters())
    for name, layer in finished.named_modules():
        if isinstance(layer, PackedLayer):
            assert stored[f"{name}.codes"].dtype == (torch.int8 if grid.uniform else torch.uint8)
            assert f"{name}.layer.weight" not in stored


def test_the_trained_network_is_not_changed() -> None:
    net = teacher(Residual)
    trained = quantized(net, Uniform(), 4, 8).train()
    before = copy.deepcopy(trained.state_dict())
    finished = deployed(trained, example(net))
    assert trained.training
    assert not finished.training
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in trained.modules())


@pytest.mark.parametrize("kind", [Residual, Mlp])
def test_a_plan_of_several_steps_is_deployed(kind: type[Net]) -> None:
    net = teacher(kind)
    axes = (PruneRatios(), Ranks(), BitWidths(activations=(32,)))
    model = Plan(tuple(step(axis, net, 0.5) for axis in axes), Distill()).apply(net, example(net))
    finished = deployed(model, example(net))
    assert norms(finished) == []
    torch.testing.assert_close(finished(example(net)), model(example(net)), atol=1e-4, rtol=1e-3)


class Drawing(nn.Module):
    """A network that draws random numbers in evaluation mode, and has no BatchNorm to fold."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.only(x) + torch.rand(5)  # type: ignore[no-any-return]


def test_a_network_with_random_outputs_and_nothing_to_fold_is_deployed() -> None:
    net, x = Drawing().eval(), torch.randn(4, 6)
    finished = deployed(Quantize((("only", 8, 8),)).apply(net, x), x)
    assert isinstance(finished.get_submodule("only"), PackedLayer)


def test_what_is_checked_at_run_time_of_a_training_form_are_methods() -> None:
    """From Python 3.12 on, `isinstance` finds no submodule of a module, and no layer would be packed."""
    assert not get_type_hints(TrainingForm)
