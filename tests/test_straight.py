"""Layers that give the shape that they are given are left out where no shortcut is, and what is around them fits."""

from __future__ import annotations

import pytest
import torch
from optuna.trial import FixedTrial
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from objectives import Bops, Macs, Parameters, SizeBytes
from search.costs.cost_model import CostModel
from spaces import (
    Branch,
    Depth,
    Distill,
    Plan,
    PruneRatios,
    Skip,
    Space,
    Temperatures,
    deployed,
    trace,
)
from spaces.axes.prune import Prune
from tests.contracts import ORDER, AxisContract, drawn, step
from tests.nets import CLASSES, Net, Straight, example, run, teacher

SPACE = Space(ORDER, Temperatures())
NAMES = ("wise", "plain", "turn")


def suggested(net: Net, params: dict[str, float], space: Space = SPACE) -> Plan:
    """Return the plan that does nothing but what these parameters say."""
    anatomy = trace(net, example(net))
    return space.suggest(FixedTrial(space.uniform(anatomy, (0.0,) * len(space.steps)) | params), anatomy)


class TestStraight(AxisContract):
    axis = Depth()
    nets = (Straight,)


def test_layers_that_keep_the_shape_are_found_with_their_norms_and_depthwise_ones_with_their_readers() -> None:
    net = teacher(Straight)
    assert trace(net, example(net)).branches == (
        Branch("wise", ("wise", "point"), ("bn1", "bn2"), ("plain",), straight=True, joins=("stem", "point")),
        Branch("plain", ("plain",), (), ("wider",), straight=True, joins=("point", "plain")),
        Branch("turn", ("turn",), ("bn3",), ("head",), straight=True, joins=()),
    )


class Crooked(Net):
    """Layers that keep the shape and whose place what they are given cannot take."""

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
        y = self.mixed(x)  # whose channels are those of the product, which another layer began
        return run(F.relu(self.head((y * z).mean((2, 3)))), self.answer)


def test_what_nothing_can_take_the_place_of_stays_and_says_so() -> None:
    net = teacher(Crooked)
    anatomy = trace(net, example(net))
    assert anatomy.branches == ()
    assert set(Depth().acts_on(anatomy).values()) == {
        "no: it is in no branch of a sum, and what it is given cannot take its place"
    }


def test_without_them_the_network_is_what_lies_around_them() -> None:
    net = teacher(Straight)
    space = Space((Depth(refit=False),), Temperatures())
    left = suggested(net, {f"skip/{name}": 1 for name in NAMES}, space).apply(net, example(net)).eval()
    with torch.no_grad():
        x = F.relu(run(example(net), left.get_submodule("stem"), left.get_submodule("bn0")))
        x = F.relu(run(x, net.get_submodule("wider")))
        assert torch.equal(left(example(net)), run(x.mean((2, 3)), net.get_submodule("head")))
    assert {name.partition(".")[0] for name in left.state_dict()} == {"stem", "bn0", "wider", "head"}


@pytest.mark.parametrize(
    ("skipped", "norm", "reader"),
    [(("wise",), "bn0", "plain"), (("plain",), "bn2", "wider"), (("wise", "plain"), "bn0", "wider")],
)
def test_the_same_channels_go_before_and_behind_what_is_left_out(
    skipped: tuple[str, ...], norm: str, reader: str
) -> None:
    net = teacher(Straight)
    space = Space((PruneRatios(refit=False), Depth(refit=False)), Temperatures())
    drawn_otherwise = {f"prune/{name}": 0.125 for name in ("point", "plain") if name in skipped or reader != "plain"}
    params = {"prune/stem": 0.5, **drawn_otherwise, **{f"skip/{name}": 1 for name in skipped}}
    left = suggested(net, params, space).apply(net, example(net))
    gains, rest = (some.get_submodule(norm).get_parameter("weight").tolist() for some in (net, left))
    kept = [gains.index(gain) for gain in rest]
    assert len(kept) == (4 if norm == "bn0" else 7)
    whole, rows = (some.get_submodule(reader).get_parameter("weight") for some in (net, left))
    assert torch.equal(rows, whole[:, kept])


def test_what_is_drawn_behind_what_is_left_out_makes_no_other_plan() -> None:
    net = teacher(Straight)
    out = {"prune/stem": 0.5, "skip/wise": 1.0}
    plan = suggested(net, out)
    assert suggested(net, out | {"prune/point": 0.25}) == plan
    assert suggested(net, out | {"prune/plain": 0.25}) != plan
    prune = plan.steps[0]
    assert isinstance(prune, Prune)
    assert dict(prune.ratios)["point"] == dict(prune.ratios)["stem"] == 0.5
    assert suggested(net, {"prune/stem": 0.5}).steps[0] != prune


@pytest.mark.parametrize("only", ["stem", "point"])
def test_channels_that_only_one_side_may_lose_are_lost_as_before_it(only: str) -> None:
    net = teacher(Straight)
    space = Space((PruneRatios(only=(only,)), Depth()), Temperatures())
    left = suggested(net, {f"prune/{only}": 0.5, "skip/wise": 1.0}, space).apply(net, example(net))
    assert left.get_submodule("plain").get_parameter("weight").shape[1] == (4 if only == "stem" else 8)


@pytest.mark.parametrize("seed", range(8))
def test_costs_are_foreseen_also_of_plans_that_are_put_together_from_options(seed: int) -> None:
    net = teacher(Straight)
    inputs = example(net)
    params: dict[str, float] = {}
    steps = []
    for axis in SPACE.steps:
        step, its = drawn(axis, net, seed)
        steps.append(step)
        params |= its
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


def test_what_was_pruned_otherwise_on_both_sides_is_refused() -> None:
    net = teacher(Straight)
    pruned = Prune((("stem", 0.5),)).apply(net, example(net))
    with pytest.raises(ValueError, match="'wise' cannot be left out where it is given 4 channels and gives 8"):
        step(Depth(only=("wise",)), net, 1.0).apply(pruned, example(net))


def test_what_is_split_or_rounded_already_is_refused() -> None:
    net = teacher(Straight)
    rounded = suggested(net, {"weight_bits/plain": 4}).apply(net, example(net))
    with pytest.raises(ValueError, match="before ranks and bits, but got QuantizedLayer"):
        step(Depth(only=("plain",)), net, 1.0).apply(rounded, example(net))


def test_what_reads_it_through_a_depthwise_layer_is_refitted() -> None:
    """The one that reads it mixes no channels, so that the next that does takes up what is lost."""

    class Behind(Net):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.gone = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
            self.wise, self.wider = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 12, 1)
            self.head = nn.Linear(12, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.wise(F.relu(self.gone(F.relu(self.stem(x))))))
            return run(F.relu(self.wider(x)).mean((2, 3)), self.head)

    net = teacher(Behind)
    inputs = example(net)
    gone = next(branch for branch in trace(net, inputs).branches if branch.name == "gone")
    assert gone.readers == ("wise", "wider")
    off = []
    with torch.no_grad():
        for refit in (False, True):
            left = Skip(((gone, True),), refit).apply(net, inputs).eval()
            off.append(float((left(inputs) - net(inputs)).norm() / net(inputs).norm()))
    assert off[1] < 0.9 * off[0]


def test_what_is_left_trains_also_where_activations_write_in_place() -> None:
    net = teacher(Straight)
    left = suggested(net, {f"skip/{name}": 1 for name in NAMES}).apply(net, example(net)).train()
    left(example(net)).square().sum().backward()
    grads = {name: parameter.grad for name, parameter in left.named_parameters()}
    assert {name for name, grad in grads.items() if grad is not None and grad.isfinite().all()} == set(grads)


class InPlace(Net):
    """Layers that keep the shape, in front of what writes into what it is given, or reads it as it lies."""

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


def test_what_is_given_is_not_written_into() -> None:
    net = teacher(InPlace)
    inputs = example(net).clone()
    anatomy = trace(net, inputs)
    assert [branch.name for branch in anatomy.branches] == ["first", "inner", "mix"]
    left = Skip(tuple((branch, True) for branch in anatomy.branches), refit=False).apply(net, inputs).eval()
    for finished in (left, deployed(left, inputs)):
        with torch.no_grad():
            got = finished(inputs)
            assert torch.equal(inputs, example(net))
            y = F.relu(run(F.relu(inputs), net.get_submodule("stem"))) - 0.1
            z = F.relu(y)
            pooled = [part.mean((2, 3)) for part in (y, z, z)]
            assert torch.allclose(got, run(torch.cat(pooled, 1), net.get_submodule("head")), atol=1e-5)
    left.train()(inputs).sum().backward()


class Activated(nn.BatchNorm2d):
    """A norm that activates by children of its own, as timm's."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))  # type: ignore[no-any-return]


class Hidden(nn.BatchNorm2d):
    """A norm that activates by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Normed(Net):
    """Norms behind layers that keep the shape: one that activates, and those that must stay."""

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


def test_a_norm_goes_with_the_layer_where_it_does_no_more_and_nothing_else_reads_the_layer() -> None:
    net = teacher(Normed)
    inputs = example(net)
    anatomy = trace(net, inputs)
    found = {branch.name: (branch.straight, branch.others) for branch in anatomy.branches}
    assert found == {
        "wise": (True, ("norm1",)), "mid": (True, ()), "branch": (False, ("norm2",)), "last": (True, ()),
    }  # fmt: skip
    costs = Macs(inputs), Parameters(), SizeBytes()
    cost_model = CostModel(trace(net, inputs), deployed(net, inputs), costs)
    for gone in ({"wise"}, {"mid"}, {"last"}, {"wise", "mid", "branch"}, set(found)):
        plan = Plan((Skip(tuple((branch, branch.name in gone) for branch in anatomy.branches)),), Distill())
        finished = deployed(plan.apply(net, inputs), inputs)
        assert cost_model.predict(plan).exact == pytest.approx({cost.name: cost(finished) for cost in costs}), gone
        kinds = [type(module) for module in finished.modules()]
        assert kinds.count(nn.Hardswish) == 1, "what it activates with stays"


class Turned(Net):
    """Between a depthwise layer and the one that reads it the channels are turned around."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wise, self.point = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 8, 1)
        self.last, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.point(F.relu(self.wise(F.relu(self.stem(x)))).flip(1)))
        return run(F.relu(self.last(x)).mean((2, 3)), self.head)


def test_a_depthwise_layer_goes_alone_where_the_channels_behind_it_are_others() -> None:
    net = teacher(Turned)
    assert [branch.layers for branch in trace(net, example(net)).branches] == [("wise",), ("point",)]


class Inside(Net):
    """A straight layer that reads what lies within a branch of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.turn = (nn.Conv2d(3 if at == 0 else 8, 8, 1) for at in range(4))
        self.last, self.head = nn.Conv2d(16, 6, 1), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        inner = F.relu(self.one(x))
        x = torch.cat([x + self.two(inner), F.relu(self.turn(inner))], 1)
        return run(F.relu(self.last(x)).mean((2, 3)), self.head)


def test_costs_are_told_alike_where_the_channels_before_lie_in_a_branch_that_is_left_out_too() -> None:
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
    drawn_alone = suggested(net, ratios, space).steps[0]
    assert (
        cost_model.predict(plan).exact
        == measured
        == cost_model.predict(Plan((drawn_alone, plan.steps[1]), Distill())).exact
    )
    assert finished.get_submodule("last").get_parameter("weight").shape[1] == 12
