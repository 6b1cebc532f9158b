"""Depth fulfils the contract of an axis, finds the branches that can be left out, and leaves an exact network."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from optuna.trial import FixedTrial
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from objectives import Bops, Macs, Parameters, SizeBytes
from objectives.runtimes import ExecuTorch, LiteRt, OnnxRuntime
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
from spaces.axes.refit import refit_to_new_inputs
from spaces.dependency.branches import branches_of
from spaces.network.layer_runs import layers_of
from spaces.network.layers import LAYER_TYPES
from spaces.network.omission import ZeroOutput
from spaces.network.statistics import rows_of
from spaces.testing.axis_contract import AxisContract, drawn, step, values
from spaces.testing.networks import CLASSES, Net, Padded, Residual, example, run, teacher

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

ORDER = PruneRatios(), Depth(), Ranks(), BitWidths()


class Inverted(Net):
    """A block of MobileNetV3 (expand, depthwise, squeeze and excite, project), and a residual block within another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.expand = nn.Conv2d(8, 16, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.spatial = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.squeeze = nn.Conv2d(16, 4, 1)
        self.excite = nn.Conv2d(4, 16, 1)
        self.project = nn.Conv2d(16, 8, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(8)
        self.outer = nn.Conv2d(8, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        y = F.relu(self.norm2(self.spatial(F.relu(self.norm1(self.expand(x)), inplace=True))), inplace=True)
        y = y * torch.sigmoid(self.excite(F.hardswish(self.squeeze(y.mean((2, 3), keepdim=True)))))
        y = self.norm3(self.project(y))
        y += x
        z = self.outer(y)
        z = z + self.inner(F.relu(z))
        return run((y + z).mean((2, 3)), self.head)


class Scale(nn.Module):
    """A module of an unknown class with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Stubborn(Net):
    """Sums of which no branch can be left out: each side holds a module used twice, or an unknown one with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.place = nn.Parameter(torch.randn(1, 8, 1, 1))
        self.often = nn.Parameter(torch.randn(8, 1, 1))
        self.twice, self.bare = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.one, self.other, self.third, self.fourth = (nn.Conv2d(8, 8, 1) for _ in range(4))
        self.shared, self.scale = nn.BatchNorm2d(8), Scale()
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.shared(self.one(x))
        x = F.relu(self.shared(self.other(x)))
        x = x + self.place.expand_as(x)
        x = x + self.twice(F.relu(x))
        x = x + self.twice(F.relu(x))
        x = x + self.scale(self.third(x))
        x = x + self.often * self.fourth(x) * self.often
        x = x + self.bare(x)
        x = F.conv2d(x, self.bare.weight)
        return run(x.mean((2, 3)), self.head)


class Blocks(Net):
    """A BatchNorm that cannot be folded; then tokens, attention with a table of positions, and scaled linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.before = nn.Conv2d(3, 8, 2, 2), nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm1, self.norm2, self.slopes = nn.LayerNorm(8), nn.LayerNorm(8), nn.PReLU(16)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.table, self.near = nn.Parameter(torch.randn(7)), nn.Parameter(torch.randn(1, 8, 1))
        self.wide, self.thin = nn.Linear(8, 16), nn.Linear(16, 8)
        self.gamma = nn.Parameter(0.5 + torch.rand(8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.mix(F.relu(self.before(x)))
        x = (x.flatten(2) + self.near).transpose(1, 2)
        y = self.norm1(x)
        scores = self.q(y) @ self.k(y).transpose(1, 2)
        place = torch.arange(scores.shape[-1], device=x.device)
        scores = scores + self.table[(place[:, None] - place).clamp(-3, 3) + 3]
        x = x + self.out(scores.softmax(-1) @ self.v(y))
        y = self.slopes(self.wide(self.norm2(x)).transpose(1, 2)).transpose(1, 2)
        x = x + self.gamma * self.thin(y)
        return run(x.mean(1), self.head)


NETWORKS = (Residual, Inverted, Blocks)


class TestDepth(AxisContract):
    before = (PruneRatios(),)
    axis = Depth()
    networks = NETWORKS


def test_branches_are_found_with_their_contents_and_only_the_inner_one_of_two() -> None:
    net = teacher(Inverted)
    assert trace(net, example(net)).branches == (
        Branch(
            "expand",
            ("expand", "spatial", "squeeze", "excite", "project"),
            ("norm1", "norm2", "norm3"),
            readers=("outer", "head"),
        ),
        Branch("outer", ("outer",), (), readers=("inner", "head"), straight=True),
        Branch("inner", ("inner",), (), readers=("head",)),
    )


def test_branches_of_tokens_are_found_with_norms_tables_and_scales() -> None:
    net = teacher(Blocks)
    assert trace(net, example(net)).branches == (
        Branch("mix", ("mix",), ("before",), readers=("q", "k", "v", "wide", "head")),
        Branch("q", ("q", "k", "v", "out"), ("norm1", "table"), readers=("wide", "head")),
        Branch("wide", ("wide", "thin"), ("gamma", "norm2", "slopes"), readers=("head",)),
    )


def test_without_its_branches_a_network_consists_of_the_layers_between_them() -> None:
    net = teacher(Blocks)
    less = step(Depth(refit=False), net, 1.0).apply(net, example(net)).eval()
    with torch.no_grad():
        x = net.get_submodule("stem")(example(net)).flatten(2) + net.get_parameter("near")
        assert torch.equal(less(example(net)), run(x.transpose(1, 2).mean(1), net.get_submodule("head")))
    left = {name.partition(".")[0] for name, _ in less.named_parameters()}
    assert left == {"stem", "near", "head"}
    assert set(less.state_dict()) == {name for name in net.state_dict() if name.partition(".")[0] in left}


def test_shortcuts_are_kept_with_and_without_a_convolution() -> None:
    residual, padded = teacher(Residual), teacher(Padded)
    assert [branch.name for branch in trace(residual, example(residual)).branches] == ["block1.conv1", "block2.conv1"]
    assert [branch.layers for branch in trace(padded, example(padded)).branches] == [("conv1", "conv2")]


def test_branches_that_cannot_be_left_out_are_not_offered_for_a_reason() -> None:
    net = teacher(Stubborn)
    anatomy = trace(net, example(net))
    assert all(branch.straight for branch in anatomy.branches)
    kept = {name: text for name, text in Depth().acts_on(anatomy).items() if text.startswith("no: ")}
    assert list(kept) == ["stem", "twice", "bare", "head"]
    assert set(kept.values()) == {"no: it is in no branch that has a shortcut, and its input cannot replace its output"}


class Odd(nn.LayerNorm):
    """A norm that needs a scale as a second input."""

    def forward(self, x: Tensor, scale: float) -> Tensor:  # type: ignore[override]
        return super().forward(x) * scale


class Shown(nn.Linear):
    """A layer that holds a module, so that its own weights are traced as bare parameters."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(super().forward(x))  # type: ignore[no-any-return]


class Trap(Net):
    """Sums whose branches are needed elsewhere, or give NaN or errors when left out; `kind` names the trap."""

    shape = (6, 10)
    kind = ""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.a, self.b = nn.Linear(10, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.odd, self.shown = nn.LayerNorm(8), Odd(8), Shown()
        self.table, self.scale = nn.Parameter(torch.randn(8)), nn.Parameter(0.5 + torch.rand(8))
        self.bound = torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        match self.kind:
            case "tied":
                x = F.relu(self.mix(x))
                x = x + F.linear(F.relu(self.a(x)), self.mix.weight.t())
            case "norm":
                x = self.norm(x)
                x = x + self.a(x) * self.norm.weight
            case "inside":
                x = x + self.shown(F.relu(self.a(x)))
            case "bound":
                x = x + self.bound(F.relu(self.a(x)))
            case "odd":
                x = x + self.a(self.odd(x, 2.0))
            case "dtype":
                x = x + self.a(self.norm(x.to(self.norm.weight.dtype)))
            case "divided":
                x = x + self.a(x) / self.scale
            case "shared":
                shift = self.table.clone()
                x = x + self.a(x) * shift
                x = x + self.b(x) * shift
        return run(x.mean(1), self.head)


@pytest.mark.parametrize("kind", ["tied", "norm", "inside", "bound", "odd", "dtype", "divided", "shared"])
def test_branches_that_are_needed_elsewhere_or_give_no_numbers_are_kept(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trap, "kind", kind)
    torch.manual_seed(0)
    net = Trap().eval()
    found = trace(net, example(net)).branches
    with_shortcut = [branch for branch in found if not branch.straight]
    assert [(branch.name, branch.others) for branch in with_shortcut] == ([("b", ())] if kind == "shared" else [])
    straight = [branch.name for branch in found if branch.straight]
    assert straight == ([] if kind in ("odd", "dtype", "divided") else ["a"]), "the input replaces the output"


def test_costs_of_a_network_without_groups_are_predicted() -> None:
    net = nn.Sequential()
    net.add_module("norm", nn.LayerNorm(10))
    net.add_module("layer", nn.Linear(10, 10))

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch, self.head = net, nn.Linear(10, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return run((x + self.branch(x)).mean(1), self.head)

    small, inputs = Small().eval(), torch.randn(8, 6, 10)
    assert trace(small, inputs).groups == ()
    less = Plan((Skip(tuple((branch, True) for branch in trace(small, inputs).branches)),), Distill())
    finished = deployed(less.apply(small, inputs), inputs)
    exact = CostModel(trace(small, inputs), deployed(small, inputs), (Parameters(),)).predict(less).exact
    assert exact == {"parameters": Parameters()(finished)} == {"parameters": 11 * CLASSES}


def test_a_network_that_cannot_be_traced_has_no_branches() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.layer(x)
            if torch.utils._python_dispatch._get_current_dispatch_mode_stack():
                raise RuntimeError("tracing is not supported")
            return x

    net = Counting().eval()
    x = torch.randn(1, 3, 4, 4)
    assert branches_of(net, x, layers_of(net, x), ()) == ()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


class Between(Net):
    """Two sums that share a tensor: two of the three layers can be left out, but never both sides of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.middle, self.large = (nn.Conv2d(3, 4, size, padding=size // 2) for size in (1, 3, 5))
        self.head, self.other = nn.Linear(4, CLASSES), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.small(x), self.middle(x), self.large(x)
        return run((a + b).mean((2, 3)), self.head) + run((b + c).mean((2, 3)), self.other)


def test_both_sides_of_a_sum_are_never_offered() -> None:
    net = teacher(Between)
    names = {branch.name for branch in trace(net, example(net)).branches}
    assert names
    assert not names >= {"small", "middle"}
    assert not names >= {"middle", "large"}


class Windows(Net):
    """Layers with another batch dimension, and with strides, dilation and padding."""

    shape = (6, 17)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(6, 8, 3, padding="same", dilation=2)
        self.wide = nn.Conv1d(8, 8, 5, stride=2, padding=3, dilation=2)
        self.short = nn.Conv1d(8, 8, 1, stride=2)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.wide(x)[..., :8] + self.short(x)[..., :8]).permute(2, 0, 1)
        y = self.mix(x)
        y += x
        return run(y.mean(0), self.head)


@pytest.mark.parametrize("kind", [Windows, Inverted, Residual])
def test_zeros_have_the_shape_of_the_outputs_that_they_replace(kind: type[Net]) -> None:
    net = copy.deepcopy(teacher(kind))
    shallower = step(Depth(), net, 1.0).apply(net, example(net)).eval()
    replaced = [name for name, module in shallower.named_modules() if isinstance(module, ZeroOutput)]
    inputs = example(net)
    larger = inputs.repeat(1, 1, *[2] * (inputs.dim() - 2))[:3]
    for given in (inputs[:5], larger):
        shapes = [_shapes(model, replaced, given) for model in (net, shallower)]
        assert shapes[0] == shapes[1]
        assert len(shapes[0]) == len(replaced) > 0


def _shapes(model: nn.Module, names: list[str], given: Tensor) -> dict[str, torch.Size]:
    seen: dict[str, torch.Size] = {}

    def watch(name: str) -> RemovableHandle:
        hook = lambda _, __, output: seen.update({name: output.shape})  # noqa: E731
        return model.get_submodule(name).register_forward_hook(hook)

    handles = [watch(name) for name in names]
    model(given)
    for handle in handles:
        handle.remove()
    return seen


class Tied(Net):
    """The layers that read the sum share their weight with another layer, or are also called before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.inside = nn.Conv2d(8, 8, 3, padding=1)
        self.reader = nn.Conv2d(8, 8, 1)
        self.sharing = nn.Conv2d(8, 8, 1)
        self.sharing.weight = self.reader.weight
        self.often = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.sharing(F.relu(self.often(F.relu(self.first(x)))))
        x = x + self.inside(F.relu(x))
        return run((self.reader(x) + self.often(x)).mean((2, 3)), self.head)


def test_readers_that_others_share_are_not_refitted() -> None:
    net = teacher(Tied)
    (branch,) = [branch for branch in trace(net, example(net)).branches if branch.name == "inside"]
    assert branch.readers == ()


def test_a_branch_whose_layers_are_already_factorized_or_quantized_is_refused() -> None:
    net = teacher(Residual)
    quantized = step(BitWidths(), net, 1.0).apply(net, example(net))
    with pytest.raises(ValueError, match="before ranks and bits, but got QuantizedLayer"):
        step(Depth(), net, 1.0).apply(quantized, example(net))


def test_only_the_shortcut_is_left_of_a_sum() -> None:
    net = teacher(Residual)
    shallower = step(Depth(only=("block1.conv1",)), net, 1.0).apply(net, example(net)).eval()
    seen: list[Tensor] = []
    shallower.get_submodule("block1").register_forward_hook(lambda _, given, output: seen.extend([*given, output]))
    shallower(example(net))
    assert torch.equal(F.relu(seen[0]), seen[1])
    kinds = [type(shallower.get_submodule(f"block1.{name}")) for name in ("conv1", "bn1", "conv2", "bn2")]
    assert kinds == [ZeroOutput] * 4
    assert not any(isinstance(module, ZeroOutput) for module in shallower.get_submodule("block2").modules())


def test_layers_that_read_the_sum_are_refitted_to_their_former_outputs() -> None:
    net = teacher(Residual)
    inputs = example(net, 64)

    def outputs(model: nn.Module, reader: str) -> Tensor:
        seen: list[Tensor] = []
        handle = model.get_submodule(reader).register_forward_hook(lambda _, __, output: seen.append(output.detach()))
        model.eval()(inputs)
        handle.remove()
        return seen[0]

    plain, fitted = (
        step(Depth(only=("block1.conv1",), refit=refit), net, 1.0).apply(net, inputs) for refit in (False, True)
    )
    for reader in ("block2.conv1", "block2.down.0"):
        want = outputs(net, reader)
        errors = [float((outputs(model, reader) - want).norm() / want.norm()) for model in (plain, fitted)]
        assert errors[1] < 0.95 * errors[0]
        assert errors[1] < 1


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_weights_are_refitted_to_inputs_that_were_mixed(groups: int, *, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 6, 3, groups=groups, bias=bias).requires_grad_(requires_grad=False)
    other = copy.deepcopy(layer)
    x = torch.randn(64, 8, 6, 6)
    size = 8 // groups
    rotation = torch.block_diag(*torch.linalg.qr(torch.randn(groups, size, size))[0])
    mixed = torch.einsum("ij,bjhw->bihw", rotation, x) + (1.0 if bias else 0.0)
    before, block = rows_of(layer, x)
    refit_to_new_inputs(other, before, rows_of(layer, mixed)[0], block)
    want = layer(x)
    assert float((other(mixed) - want).norm() / want.norm()) < 0.02
    assert float((layer(mixed) - want).norm() / want.norm()) > 0.5


def test_statistics_of_later_batch_norms_are_reestimated() -> None:
    net = teacher(Residual)
    shallower = step(Depth(only=("block1.conv1",)), net, 1.0).apply(net, example(net))
    later = shallower.get_submodule("block2.bn1")
    seen: list[Tensor] = []
    later.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    shallower.eval()(example(net))
    mean = seen[0].mean((0, 2, 3))
    assert torch.allclose(later.get_buffer("running_mean"), mean, atol=1e-3)
    assert not torch.allclose(net.get_buffer("block2.bn1.running_mean"), mean, atol=0.1)


@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize("seed", range(6))
def test_costs_of_all_axes_together_are_predicted(net: type[Net], seed: int) -> None:
    model = teacher(net)
    inputs = example(model)
    plan = Plan(tuple(drawn(axis, model, seed)[0] for axis in ORDER), Distill())
    exact = Macs(inputs), Bops(inputs), Parameters(), SizeBytes((OnnxRuntime(), LiteRt(), ExecuTorch())[seed % 3])
    cost_model = CostModel(trace(model, inputs), deployed(model, inputs), exact)
    finished = deployed(plan.apply(model, inputs), inputs)
    assert cost_model.predict(plan).exact == pytest.approx({cost.name: cost(finished) for cost in exact})


def test_a_step_of_the_teacher_applies_to_the_pruned_network() -> None:
    net = teacher(Inverted)
    pruned = step(PruneRatios(), net, 1.0).apply(net, example(net))
    skip = step(Depth(), net, 1.0)
    assert skip.words() == "without expand, outer, inner"
    shallower = skip.apply(pruned, example(net))
    names = {name for name, module in shallower.named_modules() if isinstance(module, LAYER_TYPES)}
    assert names == {"stem", "head"}


def test_an_unknown_branch_lists_the_nearest() -> None:
    net = teacher(Residual)
    with pytest.raises(
        ValueError, match=r"no branch is called 'block3.conv1'; the nearest are: block2.conv1, block1.conv1"
    ):
        Depth(only=("block3.conv1",)).uniform(trace(net, example(net)), 1.0)


def test_plans_that_differ_only_inside_left_out_branches_are_equal() -> None:
    net = teacher(Residual)
    anatomy = trace(net, example(net))
    space = Space(ORDER, Temperatures())
    without = space.uniform(anatomy, (0.0,) * 4) | {"skip/block1.conv1": 1, "skip/block2.conv1": 1}
    inside = {"prune/block1.conv1": 0.5, "rank/block1.conv2": 0.5, "weight_bits/block2.conv2": 4}
    outside = {"prune/block2.conv2": 0.5, "rank/block2.down.0": 0.5, "weight_bits/stem": 4}
    plan = space.suggest(FixedTrial(without), anatomy)
    for name, value in inside.items():
        assert space.suggest(FixedTrial(without | {name: value}), anatomy) == plan
        kept = without | {"skip/block1.conv1": 0, "skip/block2.conv1": 0}
        assert space.suggest(FixedTrial(kept | {name: value}), anatomy) != space.suggest(FixedTrial(kept), anatomy)
    for name, value in outside.items():
        assert name in without
        assert space.suggest(FixedTrial(without | {name: value}), anatomy) != plan


def test_a_step_that_leaves_nothing_out_has_no_words() -> None:
    net = teacher(Residual)
    none = step(Depth(), net, 0.0)
    assert isinstance(none, Skip)
    assert none.words() == ""
    assert values(none.choices(trace(net, example(net)))) == {
        "layer removed": dict.fromkeys(["block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2"], 0.0)
    }
