"""Straight branches, whose outputs have the shape of their inputs, are left out, and the layers around them fit."""

from __future__ import annotations

import pytest
import torch
from optuna.trial import FixedTrial
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from objectives import Bops, Macs, Parameters, SizeBytes
from search.costs.cost_model import CostModel
from spaces import (
    BitWidths,
    Branch,
    Depth,
    Distill,
    Plan,
    PruneRatios,
    Ranks,
    Skip,
    Space,
    Temperatures,
    deployed,
    trace,
)
from spaces.axes.prune import Prune
from spaces.testing.axis_contract import AxisContract, drawn, step
from spaces.testing.networks import CLASSES, Net, Straight, example, run, teacher

ORDER = PruneRatios(), Depth(), Ranks(), BitWidths()

SPACE = Space(ORDER, Temperatures())
NAMES = ("wise", "plain", "turn")


def suggested(net: Net, params: dict[str, float], space: Space = SPACE) -> Plan:
    """Return the plan with these parameters; all others are set to change nothing."""
    anatomy = trace(net, example(net))
    return space.suggest(FixedTrial(space.uniform(anatomy, (0.0,) * len(space.steps)) | params), anatomy)


class TestStraight(AxisContract):
    before = (PruneRatios(),)
    axis = Depth()
    networks = (Straight,)


def test_straight_branches_hold_their_norms_and_depthwise_layers_the_layer_that_reads_them() -> None:
    net = teacher(Straight)
    assert trace(net, example(net)).branches == (
        Branch("wise", ("wise", "point"), ("bn1", "bn2"), ("plain",), straight=True, joins=("stem", "point")),
        Branch("plain", ("plain",), (), ("wider",), straight=True, joins=("point", "plain")),
        Branch("turn", ("turn",), ("bn3",), ("head",), straight=True, joins=()),
    )


class Crooked(Net):
    """Layers that keep the shape, but whose input cannot replace their output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.stem, self.slow = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.tied, self.other = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.other.weight = self.tied.weight
        self.early, self.mixed = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.answer = nn.Linear(CLASSES, CLASSES)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(F.relu(self.twice(F.relu(self.first(x)))))
        z = self.early(x)
        x = F.relu(self.slow(F.relu(self.stem(x))))
        x = F.relu(self.other(F.relu(self.tied(x))))
        y = self.mixed(x)  # its channels belong to the group of the product, which starts at another layer
        return run(F.relu(self.head((y * z).mean((2, 3)))), self.answer)


def test_layers_that_their_input_cannot_replace_are_kept_for_a_reason() -> None:
    net = teacher(Crooked)
    anatomy = trace(net, example(net))
    assert anatomy.branches == ()
    assert set(Depth().acts_on(anatomy).values()) == {
        "no: it is in no branch that has a shortcut, and its input cannot replace its output"
    }


def test_without_them_the_network_consists_of_the_layers_around_them() -> None:
    net = teacher(Straight)
    space = Space((Depth(refit=False),), Temperatures())
    shallower = suggested(net, {f"skip/{name}": 1 for name in NAMES}, space).apply(net, example(net)).eval()
    with torch.no_grad():
        x = F.relu(run(example(net), shallower.get_submodule("stem"), shallower.get_submodule("bn0")))
        x = F.relu(run(x, net.get_submodule("wider")))
        assert torch.equal(shallower(example(net)), run(x.mean((2, 3)), net.get_submodule("head")))
    assert {name.partition(".")[0] for name in shallower.state_dict()} == {"stem", "bn0", "wider", "head"}


@pytest.mark.parametrize(
    ("skipped", "norm", "reader"),
    [(("wise",), "bn0", "plain"), (("plain",), "bn2", "wider"), (("wise", "plain"), "bn0", "wider")],
)
def test_the_same_channels_are_removed_before_and_after_a_left_out_branch(
    skipped: tuple[str, ...], norm: str, reader: str
) -> None:
    net = teacher(Straight)
    space = Space((PruneRatios(refit=False), Depth(refit=False)), Temperatures())
    other_ratios = {f"prune/{name}": 0.125 for name in ("point", "plain") if name in skipped or reader != "plain"}
    params = {"prune/stem": 0.5, **other_ratios, **{f"skip/{name}": 1 for name in skipped}}
    smaller = suggested(net, params, space).apply(net, example(net))
    gains, kept_gains = (model.get_submodule(norm).get_parameter("weight").tolist() for model in (net, smaller))
    kept = [gains.index(gain) for gain in kept_gains]
    assert len(kept) == (4 if norm == "bn0" else 7)
    whole, cut = (model.get_submodule(reader).get_parameter("weight") for model in (net, smaller))
    assert torch.equal(cut, whole[:, kept])


def test_a_ratio_drawn_after_a_left_out_branch_makes_no_other_plan() -> None:
    net = teacher(Straight)
    params = {"prune/stem": 0.5, "skip/wise": 1.0}
    plan = suggested(net, params)
    assert suggested(net, params | {"prune/point": 0.25}) == plan
    assert suggested(net, params | {"prune/plain": 0.25}) != plan
    prune = plan.steps[0]
    assert isinstance(prune, Prune)
    assert dict(prune.ratios)["point"] == dict(prune.ratios)["stem"] == 0.5
    assert suggested(net, {"prune/stem": 0.5}).steps[0] != prune


@pytest.mark.parametrize("only", ["stem", "point"])
def test_where_only_one_side_may_be_pruned_the_side_before_the_branch_decides(only: str) -> None:
    net = teacher(Straight)
    space = Space((PruneRatios(only=(only,)), Depth()), Temperatures())
    smaller = suggested(net, {f"prune/{only}": 0.5, "skip/wise": 1.0}, space).apply(net, example(net))
    assert smaller.get_submodule("plain").get_parameter("weight").shape[1] == (4 if only == "stem" else 8)


@pytest.mark.parametrize("seed", range(8))
def test_costs_are_predicted_also_for_plans_whose_steps_were_drawn_separately(seed: int) -> None:
    net = teacher(Straight)
    inputs = example(net)
    params: dict[str, float] = {}
    steps = []
    for axis in SPACE.steps:
        step, drawn_params = drawn(axis, net, seed)
        steps.append(step)
        params |= drawn_params
    plan = SPACE.suggest(FixedTrial(params | SPACE.recovery.usual()), trace(net, inputs))
    costs = Macs(inputs), Bops(inputs), Parameters(), SizeBytes()
    cost_model = CostModel(trace(net, inputs), deployed(net, inputs), costs)
    finished = deployed(plan.apply(net, inputs), inputs)
    measured = {cost.name: cost(finished) for cost in costs}
    assert cost_model.predict(plan).exact == pytest.approx(measured)
    if any(params[f"skip/{name}"] for name in ("wise", "plain")):
        assert cost_model.predict(Plan((steps[0], steps[1], *plan.steps[2:]), Distill())).exact == pytest.approx(
            measured
        )


def test_a_branch_that_was_pruned_differently_before_and_after_is_refused() -> None:
    net = teacher(Straight)
    pruned = Prune((("stem", 0.5),)).apply(net, example(net))
    with pytest.raises(ValueError, match="'wise' cannot be left out where it is given 4 channels and gives 8"):
        step(Depth(only=("wise",)), net, 1.0).apply(pruned, example(net))


def test_a_branch_that_is_already_factorized_or_quantized_is_refused() -> None:
    net = teacher(Straight)
    quantized = suggested(net, {"weight_bits/plain": 4}).apply(net, example(net))
    with pytest.raises(ValueError, match="before ranks and bits, but got QuantizedLayer"):
        step(Depth(only=("plain",)), net, 1.0).apply(quantized, example(net))


def test_a_layer_that_reads_the_branch_through_a_depthwise_layer_is_refitted() -> None:
    """The depthwise layer mixes no channels, so the next layer that does is refitted."""

    class ReadThroughDepthwise(Net):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.gone = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
            self.wise, self.wider = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 12, 1)
            self.head = nn.Linear(12, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.wise(F.relu(self.gone(F.relu(self.stem(x))))))
            return run(F.relu(self.wider(x)).mean((2, 3)), self.head)

    net = teacher(ReadThroughDepthwise)
    inputs = example(net)
    branch = next(branch for branch in trace(net, inputs).branches if branch.name == "gone")
    assert branch.readers == ("wise", "wider")
    errors = []
    with torch.no_grad():
        for refit in (False, True):
            shallower = Skip(((branch, True),), refit).apply(net, inputs).eval()
            errors.append(float((shallower(inputs) - net(inputs)).norm() / net(inputs).norm()))
    assert errors[1] < 0.9 * errors[0]


def test_the_network_can_be_trained_also_with_activations_in_place() -> None:
    net = teacher(Straight)
    shallower = suggested(net, {f"skip/{name}": 1 for name in NAMES}).apply(net, example(net)).train()
    shallower(example(net)).square().sum().backward()
    grads = {name: parameter.grad for name, parameter in shallower.named_parameters()}
    assert {name for name, grad in grads.items() if grad is not None and grad.isfinite().all()} == set(grads)


class InPlace(Net):
    """Layers that keep the shape, followed by operations in place, or by views that need a contiguous input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.stem, self.inner, self.mix = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 8)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x), inplace=True)
        y = F.relu(self.stem(x)) - 0.1
        z = F.relu(self.inner(y), inplace=True)
        y = torch.cat([y, z], 1).mean((2, 3))
        tokens = self.mix(z.flatten(2).transpose(1, 2))
        return run(
            torch.cat([y, tokens.view(-1, tokens.shape[-1]).view(len(y), -1, tokens.shape[-1]).mean(1)], 1), self.head
        )


def test_operations_in_place_do_not_change_the_input_of_a_left_out_branch() -> None:
    net = teacher(InPlace)
    inputs = example(net).clone()
    anatomy = trace(net, inputs)
    assert [branch.name for branch in anatomy.branches] == ["first", "inner", "mix"]
    shallower = Skip(tuple((branch, True) for branch in anatomy.branches), refit=False).apply(net, inputs).eval()
    for finished in (shallower, deployed(shallower, inputs)):
        with torch.no_grad():
            got = finished(inputs)
            assert torch.equal(inputs, example(net))
            y = F.relu(run(F.relu(inputs), net.get_submodule("stem"))) - 0.1
            z = F.relu(y)
            pooled = [part.mean((2, 3)) for part in (y, z, z)]
            assert torch.allclose(got, run(torch.cat(pooled, 1), net.get_submodule("head")), atol=1e-5)
    shallower.train()(inputs).sum().backward()


class Activated(nn.BatchNorm2d):
    """A norm that applies a child module as its activation, as in timm."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))  # type: ignore[no-any-return]


class Hidden(nn.BatchNorm2d):
    """A norm whose forward contains an activation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Normed(Net):
    """Norms after layers that keep the shape: one with an activation, and norms that must be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wise = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm1, self.mid = Activated(8), nn.Conv2d(8, 8, 1)
        self.norm2, self.branch = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.norm3, self.end = nn.Conv2d(8, 8, 1), Hidden(8), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.wise(self.stem(x)))
        x = self.mid(x)
        x = x + self.branch(F.relu(self.norm2(x)))
        return run(self.end(self.norm3(self.last(x))).mean((2, 3)), self.head)


def test_a_norm_is_left_out_with_its_layer_if_it_is_plain_and_the_only_reader() -> None:
    net = teacher(Normed)
    inputs = example(net)
    anatomy = trace(net, inputs)
    found = {branch.name: (branch.straight, branch.others) for branch in anatomy.branches}
    assert found == {
        "wise": (True, ("norm1",)), "mid": (True, ()), "branch": (False, ("norm2",)), "last": (True, ()),
    }  # fmt: skip
    costs = Macs(inputs), Parameters(), SizeBytes()
    cost_model = CostModel(trace(net, inputs), deployed(net, inputs), costs)
    for left_out in ({"wise"}, {"mid"}, {"last"}, {"wise", "mid", "branch"}, set(found)):
        plan = Plan((Skip(tuple((branch, branch.name in left_out) for branch in anatomy.branches)),), Distill())
        finished = deployed(plan.apply(net, inputs), inputs)
        assert cost_model.predict(plan).exact == pytest.approx({cost.name: cost(finished) for cost in costs}), left_out
        kinds = [type(module) for module in finished.modules()]
        assert kinds.count(nn.Hardswish) == 1, "the activation of the norm is kept"


class Flipped(Net):
    """The order of channels is reversed between a depthwise layer and the layer that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wise, self.point = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 8, 1)
        self.last, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.point(F.relu(self.wise(F.relu(self.stem(x)))).flip(1)))
        return run(F.relu(self.last(x)).mean((2, 3)), self.head)


def test_a_depthwise_layer_is_a_branch_of_its_own_if_the_next_layer_reads_other_channels() -> None:
    net = teacher(Flipped)
    assert [branch.layers for branch in trace(net, example(net)).branches] == [("wise",), ("point",)]


class Inside(Net):
    """A straight layer that reads a tensor from inside a branch with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.turn = (nn.Conv2d(3 if at == 0 else 8, 8, 1) for at in range(4))
        self.last, self.head = nn.Conv2d(16, 6, 1), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        inner = F.relu(self.one(x))
        x = torch.cat([x + self.two(inner), F.relu(self.turn(inner))], 1)
        return run(F.relu(self.last(x)).mean((2, 3)), self.head)


def test_predicted_costs_are_right_if_the_group_before_lies_in_another_left_out_branch() -> None:
    net = teacher(Inside)
    inputs = example(net)
    anatomy = trace(net, inputs)
    assert {branch.name: branch.joins for branch in anatomy.branches} == {"one": (), "turn": ("one", "turn")}
    ratios = {"prune/one": 0.5, "prune/turn": 0.25}
    space = Space((PruneRatios(), Depth()), Temperatures())
    plan = suggested(net, ratios | {"skip/one": 1, "skip/turn": 1}, space)
    cost_model = CostModel(trace(net, inputs), deployed(net, inputs), (Macs(inputs), Parameters()))
    finished = deployed(plan.apply(net, inputs), inputs)
    measured = {cost.name: cost(finished) for cost in (Macs(inputs), Parameters())}
    drawn_separately = suggested(net, ratios, space).steps[0]
    assert (
        cost_model.predict(plan).exact
        == measured
        == cost_model.predict(Plan((drawn_separately, plan.steps[1]), Distill())).exact
    )
    assert finished.get_submodule("last").get_parameter("weight").shape[1] == 12
