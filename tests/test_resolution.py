"""Resolution fulfils the contract of an axis, offers the sizes at which the network runs, and foresees every cost."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from optuna.trial import FixedTrial
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from objectives import Bops, Examples, FrameTime, Latency, Macs, Parameters, SizeBytes, Top1
from objectives.layers import inputs_of_file
from objectives.runtimes import ExecuTorch, LiteRt, OnnxRuntime, OpenVino
from objectives.runtimes.onnx.runtime import OnnxRuntime as Onnx
from search import Budget, Splits, StudySpec
from search.costs.cost_model import CostModel
from search.evaluation.reference import prepared
from search.export import rebuild
from search.proposals.defaults import resolved
from search.proposals.draft_records import draft_of
from search.proposals.draft_start import DraftStart
from search.results.export import export
from search.results.file_records import with_records
from search.results.inspection import inspection
from search.results.recorded import restored
from search.results.report import report
from search.study.attributes import numbers_of
from search.study.cleaning import Cleaning
from search.study.records import INEXACT, VALUES
from search.study.weights import state_path
from spaces import (
    BitWidths,
    Depth,
    Distill,
    Factorize,
    Plan,
    Prune,
    PruneRatios,
    Quantize,
    Ranks,
    Resize,
    Resolution,
    Space,
    Temperatures,
    deployed,
    trace,
)
from spaces.network.statistics import moments
from spaces.testing.axis_contract import AxisContract, assert_costs_are_exact, step, traced
from spaces.testing.networks import (
    CLASSES,
    Dense,
    Grouped,
    Mlp,
    Net,
    Normed,
    Padded,
    Plain,
    Residual,
    Separable,
    Sequence,
    SqueezeExcite,
    Straight,
    example,
    run,
    teacher,
)
from tests.small_study import searched, study

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study

    from objectives.runtimes import Runtime

ORDER = Resolution(), PruneRatios(), Depth(), Ranks(), BitWidths()
RUNTIMES: dict[str, Runtime] = {
    "onnx": OnnxRuntime(),
    "ai_edge_litert": LiteRt(),
    "executorch": ExecuTorch(),
    "openvino": OpenVino(),
}


class TestResolution(AxisContract):
    axis = Resolution()
    before, after = (), (PruneRatios(), Depth(), Ranks(), BitWidths())
    networks = (Residual, Dense, Separable, Grouped, Padded, SqueezeExcite, Normed, Straight)


class TestResolutionOutsideOfTheFile(AxisContract):
    axis = Resolution(lowest=0.25, step=0.25, resize_in_file=False)
    before, after = (), (PruneRatios(), Depth(), Ranks(), BitWidths())
    networks = (Residual, Separable)


class Windows(Net):
    """Attention within windows of 4x4 pixels, by torch's own function; products and a convolution without layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.filter = nn.Parameter(torch.randn(4, 8, 3, 3))
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.conv2d(x, self.filter)
        gram = y.flatten(2) @ y.flatten(2).transpose(1, 2)
        height = x.shape[2] // 4
        x = x.view(-1, 8, height, 4, x.shape[3] // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 8)
        x = F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        x = x.reshape(len(y), -1, 8).mean(1)
        return run(torch.cat([x, gram.mean(2)], 1), self.head)


class Placed(Net):
    """Tokens with a learned place each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.places = nn.Conv2d(3, 8, 2, 2), nn.Parameter(torch.randn(16, 8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return run((self.stem(x).flatten(2).transpose(1, 2) + self.places).mean(1), self.head)


class Pixels(Net):
    """A class for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return run(x, self.stem, self.head)


class Oblong(Net):
    """An input that is wider than high, whose strides do not divide its sizes."""

    shape: ClassVar[tuple[int, ...]] = (3, 10, 15)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.next = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, 2, 1)
        self.pool, self.head = nn.AdaptiveAvgPool2d(2), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return run(F.relu(self.next(F.relu(self.stem(x)))), self.pool, nn.Flatten(), self.head)


class PadsItself(nn.Conv2d):
    """A convolution that pads its input on two sides, so that another module cannot take its place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 2, 0, 2)))


class OwnPadding(Net):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.own = nn.Conv2d(3, 8, 3, 2, 1), PadsItself(8, 8, 3)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return run(F.relu(self.own(F.relu(self.stem(x)))), self.pool, nn.Flatten(), self.head)


def texts(kind: type[Net], axis: Resolution | None = None) -> dict[str, str]:
    axis, net = axis or Resolution(), teacher(kind)
    return dict(axis.acts_on(traced(net, axis)))


def test_sizes_are_offered_where_the_network_was_run() -> None:
    assert texts(Residual) == {
        **dict.fromkeys(
            ("stem", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "block2.down.0"),
            "inputs of 4x4, 5x5, 6x6, 7x7, 8x8, one size for all layers",
        ),
        "head": "no: it is applied as often at every size of the input",
    }
    flat = (
        "inputs of 7x7, 8x8, one size for all layers; not 4x4, 5x5, 6x6: 'head' would get 12 features instead of 48, "
        "since it reads positions as features, without a pooling to a fixed size before it"
    )
    assert texts(Plain)["first"] == flat
    assert texts(OwnPadding)["own"] == "inputs of 4x4, 5x5, 6x6, 7x7, 8x8, one size for all layers"
    assert texts(Windows)["stem"].startswith("inputs of 4x4, 8x8, one size for all layers; not 5x5: the forward")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Placed, "4x4, 5x5: the forward pass fails: The size of tensor a (4) must match"),
        (Pixels, "4x4: the output has the shape (1, 5, 4, 4) instead of (1, 5, 8, 8); not 5x5: "),
        (Sequence, "16: only images can be resized, floats (B, C, H, W), but the input is float32 (1, 4, 16)"),
        (Mlp, ": only images can be resized, floats (B, C, H, W), but the input is float32 (1, 10)"),
    ],
)
def test_a_network_of_one_size_is_refused_for_a_reason(kind: type[Net], reason: str) -> None:
    found = texts(kind)
    assert all(text.startswith(f"no: {reason}") for text in found.values())
    anatomy = traced(teacher(kind), Resolution())
    assert Resolution().uniform(anatomy, 1.0) == {}
    none = Resolution().suggest(FixedTrial({}), anatomy)
    assert none.words() == ""
    net = teacher(kind)
    assert torch.equal(none.apply(net, example(net))(example(net)), net(example(net)))
    assert_costs_are_exact(net, anatomy, none)


def test_an_anatomy_without_sizes_says_how_to_try_them() -> None:
    net = teacher(Residual)
    text = Resolution().acts_on(trace(net, example(net)))["stem"]
    assert text == "no: no smaller size was tried; trace the network with Space.trace"
    small = step(Resolution(), net, 1.0)
    with pytest.raises(ValueError, match=r"known for inputs of no other size, but not of 4x4; trace .* Space.trace"):
        assert_costs_are_exact(net, trace(net, example(net)), small)


class Stubborn(Pixels):
    """A network that cannot be resized by a hook, since its copies lose hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(super().forward(x)).flatten(1)  # type: ignore[no-any-return]

    def __deepcopy__(self, _: dict[int, Any]) -> Stubborn:
        other = type(self)()
        other.load_state_dict(self.state_dict())
        return other.train(self.training)


def test_a_network_that_loses_the_resize_is_refused() -> None:
    assert "a resize before the network does not give the outputs of smaller inputs" in texts(Stubborn)["stem"]


@pytest.mark.parametrize(("lowest", "step"), [(0.0, 0.5), (1.0, 0.5), (0.5, 0.6), (0.5, 0.0)])
def test_wrong_ranges_are_errors(lowest: float, step: float) -> None:
    with pytest.raises(ValueError, match=r"0 < lowest < 1 and 0.001 <= step <= 1 - lowest must hold"):
        Resolution(lowest, step)


def test_sizes_that_rounding_makes_equal_are_one_plan() -> None:
    class Small(Residual):
        shape: ClassVar[tuple[int, ...]] = (3, 4, 4)

    net, axis = teacher(Small), Resolution()
    anatomy = traced(net, axis)
    assert axis.offered(anatomy) == {0.625: (2, 2), 0.75: (3, 3), 1.0: (4, 4)}  # 2.5 is rounded to 2, 3.5 to 4
    plans = {axis.suggest(FixedTrial({"resolution/stem": share}), anatomy) for share in (0.5, 0.625)}
    assert len(plans) == 1


@pytest.mark.parametrize("kind", [Windows, Oblong, Plain, *TestResolution.networks])
@pytest.mark.parametrize("seed", range(3))
def test_costs_are_exact_at_every_size_with_all_axes(kind: type[Net], seed: int) -> None:
    net, inputs = teacher(kind), example(teacher(kind))
    space = Space(ORDER, Temperatures())
    anatomy = space.trace(net, inputs)
    runtime = (OnnxRuntime(), LiteRt(), ExecuTorch())[seed]
    costs = Macs(inputs), Bops(inputs), Parameters(), SizeBytes(runtime)
    model = CostModel(anatomy, deployed(net, inputs), costs)
    strengths = torch.rand(len(ORDER), generator=torch.Generator().manual_seed(seed)).tolist()
    for share in Resolution().offered(anatomy):
        params = space.uniform(anatomy, tuple(strengths)) | {f"resolution/{anatomy.layers[0].name}": share}
        plan = space.suggest(FixedTrial(params), anatomy)
        finished = deployed(plan.apply(net, inputs), inputs)
        assert model.predict(plan).exact == pytest.approx({cost.name: cost(finished) for cost in costs}), plan.words()


def test_a_resized_network_computes_what_the_network_computes_on_resized_inputs() -> None:
    net, inputs = teacher(Normed), example(teacher(Normed))
    resized = Resize((5, 5), 0.625).apply(net, inputs)
    small = F.interpolate(inputs, (5, 5), mode="bilinear", align_corners=False)
    assert torch.equal(resized(inputs), net(small))
    assert torch.equal(resized(small), net(small))
    assert resized.state_dict().keys() == net.state_dict().keys()


def test_statistics_are_those_of_the_resized_inputs() -> None:
    net, inputs = teacher(Residual), example(teacher(Residual))
    resized = Resize((4, 4), 0.5).apply(net, inputs)
    small = F.interpolate(inputs, (4, 4), mode="bilinear", align_corners=False)
    seen = net.get_submodule("stem")(small)
    assert torch.allclose(resized.get_buffer("bn.running_mean"), seen.mean((0, 2, 3)), atol=1e-5)
    inputs_of_second = moments(resized, inputs, ["block1.conv1"])["block1.conv1"].mean_GD
    assert not torch.allclose(inputs_of_second, moments(net, inputs, ["block1.conv1"])["block1.conv1"].mean_GD)


def test_later_steps_start_from_one_network_and_a_plan_gives_a_new_one() -> None:
    net, inputs = copy.deepcopy(teacher(Residual)), example(teacher(Residual))
    resize = Resize((4, 4), 0.5)
    base = resize.shared(net, inputs)
    assert resize.shared(net, inputs) is base
    assert trace(base, inputs).groups == trace(net, inputs).groups
    before = {name: value.clone() for name, value in base.state_dict().items()}
    for steps in ((resize,), (resize, Prune((("stem", 0.5),)))):
        model = Plan(steps, Distill()).apply(net, inputs)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    whole = Resize((8, 8), 1.0)
    assert whole.shared(net, inputs) is net
    assert Plan((resize,), Distill()).words() == "input 4x4 (50%); distil T=4, weight 0.7"
    outside = Plan((Resize((4, 4), 0.5, in_file=False),), Distill())
    assert outside.words().startswith("input 4x4 (50%), resized outside of the file; ")


def test_it_must_precede_ranks() -> None:
    net = teacher(Residual)
    anatomy = traced(net, Resolution())
    steps = Factorize((("block1.conv1", 0.5),)), Resize((4, 4), 0.5)
    with pytest.raises(ValueError, match=r"must be chosen before ranks; put Resolution\(\) before Ranks\(\)"):
        assert_costs_are_exact(net, anatomy, *steps)


@pytest.mark.parametrize("module", RUNTIMES)
@pytest.mark.parametrize("bits", [32, 8])
def test_files_resize_as_torch_does(module: str, bits: int, tmp_path: Path) -> None:
    """Of quantized files those of LiteRT and ExecuTorch round more tensors; a resize must not add to that."""
    pytest.importorskip(module)
    runtime, net, inputs = RUNTIMES[module], teacher(Separable), example(teacher(Separable), 64)
    names = [layer.name for layer in trace(net, inputs).layers]
    quantize = Quantize(tuple((name, bits, bits) for name in names))
    sizes, decibels = [], []
    for in_file in (True, False):
        resize = Resize((5, 5), 0.625, in_file)
        finished = deployed(Plan((resize, quantize), Distill()).apply(net, inputs), inputs)
        given = inputs_of_file(finished, inputs)
        assert given.shape[2:] == ((8, 8) if in_file else (5, 5))
        path = tmp_path / f"{in_file}.{runtime.suffix}"
        runtime.export(finished, given, path)
        with torch.no_grad():
            wanted = finished(inputs)
        noise = (runtime.load(path)(given) - wanted).pow(2).sum().clamp_min(1e-30)
        decibels.append(float(10 * torch.log10(wanted.pow(2).sum() / noise)))
        sizes.append((path.stat().st_size, SizeBytes(runtime)(finished)))
    assert min(decibels) > (110 if bits == 32 else 35)
    assert decibels[0] > decibels[1] - 2 or decibels[0] > 110
    (resizing, resizing_predicted), (other, other_predicted) = sizes
    assert resizing - other == pytest.approx(resizing_predicted - other_predicted, abs=100)


def test_times_are_those_of_a_file_that_takes_small_inputs() -> None:
    pytest.importorskip("onnxruntime")
    net, inputs = teacher(Residual), example(teacher(Residual))
    taken: list[tuple[int, ...]] = []

    @dataclasses.dataclass(frozen=True)
    class Watched(Onnx):
        def load(self, path: Path) -> Any:
            file = Onnx.load(self, path)

            def run(x: Tensor) -> Tensor:
                taken.append(tuple(x.shape[2:]))
                found: Tensor = file(x)
                return found

            return run

    runtime = Watched()
    finished = deployed(Resize((4, 4), 0.5, in_file=False).apply(net, inputs), inputs)
    assert 0 < Latency(runtime, net, inputs[:1], rounds=3, block_ms=0.5)(finished) < 1000
    assert set(taken) == {(4, 4), (8, 8)}
    taken.clear()
    assert FrameTime(runtime, inputs, count=20)(finished) > 0
    assert set(taken) == {(4, 4)}


class Pooled(nn.Module):
    """Two convolutions and a head behind a mean over the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.norm(self.first(x)))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


@functools.cache
def splits() -> Splits[Examples]:
    """Return noisy copies of one coarse pattern per class, which smaller images still show."""
    patterns = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(5))
    parts = []
    for seed, count in enumerate((192, 100, 100)):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 4, (count,), generator=generator)
        noise = torch.randn(count, 1, 8, 8, generator=generator)
        parts.append(Examples(F.interpolate(patterns, (8, 8))[labels] + 0.5 * noise, labels))
    return Splits(*parts)


@functools.cache
def trained() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Pooled()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    train = splits().train
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(train.inputs), train.labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net.eval()


def spec(*, in_file: bool, runtime: Runtime | None = None) -> StudySpec:
    """Return a small study with the axis in its space."""
    data, runtime = splits(), runtime or OnnxRuntime()
    return dataclasses.replace(
        study(6),
        teacher=trained(),
        splits=data,
        runtime=runtime,
        space=Space((Resolution(resize_in_file=in_file), PruneRatios(), Ranks(), BitWidths()), Temperatures()),
        objectives=(Top1(data.validation), Macs(data.validation.inputs)),
        limits=(),
        reported=(SizeBytes(runtime), Bops(data.validation.inputs)),
        start=DraftStart(plans=6, scored=40),
        budget=Budget(6),
    )


@pytest.fixture(scope="module", params=[True, False], ids=["in the file", "outside of the file"])
def in_file(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, in_file: bool) -> Path:  # noqa: FBT001 - a fixture
    return tmp_path_factory.mktemp(f"resolution-{in_file}")


@pytest.fixture(scope="module")
def found(home: Path, in_file: bool) -> Study:  # noqa: FBT001 - a fixture
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cleaning, "clean", lambda _: None)  # the tests take members that are not on the front
        return searched(spec(in_file=in_file), home)


def test_a_study_searches_it_jointly_with_exact_costs(found: Study) -> None:
    draft = draft_of(found)
    assert draft is not None
    assert len({trial.params["resolution/first"] for trial in draft.trials}) > 1
    both = [trial for trial in draft.trials if trial.params["resolution/first"] < 1 and trial.params["prune/first"] > 0]
    assert both
    members = [trial for trial in found.trials if numbers_of(trial, VALUES)]
    assert len(members) >= 6
    assert any(trial.params["resolution/first"] < 1 for trial in members)
    assert not any(INEXACT in trial.user_attrs for trial in members)


def test_a_member_is_shown_exported_verified_and_rebuilt(found: Study, home: Path, *, in_file: bool) -> None:
    context, reference = prepared(resolved(spec(in_file=in_file)), torch.device("cpu"), home)
    table = inspection(context.spec, context.subject.anatomy).set_index("layer")
    assert table.loc["first", "Resolution"] == "inputs of 4x4, 5x5, 6x6, 7x7, 8x8, one size for all layers"
    member = next(trial for trial in found.trials if numbers_of(trial, VALUES) and trial.params["resolution/first"] < 1)
    plan, network = restored(member, context, state_path(home, member.number))
    size = plan.steps[0]
    assert isinstance(size, Resize)
    assert plan.choices(context.subject.anatomy)["input size"].keys() == {"first", "second"}
    written = report(found, context, with_records([member], context.spec.runtime, home), home, home / "report")
    assert home / "report" / f"plan-{member.number}.png" in written
    record = export(member, context, state_path(home, member.number), home / "out", reference)
    assert record["agreement_percent"] >= 99
    assert record["file_inputs"][0]["shape"] == [1, *((8, 8) if in_file else size.size)]
    inputs = splits().validation.inputs
    again = rebuild(Pooled(), home / "out")
    with torch.no_grad():
        assert torch.equal(again(inputs), network(inputs))
        taken = inputs_of_file(again, inputs)
        assert list(taken.shape[1:]) == record["file_inputs"][0]["shape"]
        answers = OnnxRuntime().load(home / "out" / "model.onnx")(taken)
    assert (answers.argmax(1) == network(inputs).argmax(1)).double().mean() >= 0.99
