"""The order in which the criteria of importance remove units."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from spaces import Magnitude, Prune, SecondOrder, Taylor, trace
from spaces.axes import importance
from spaces.axes.refit import columns_of
from spaces.network import statistics
from spaces.network.anatomy import Group, Member
from spaces.network.statistics import moments
from spaces.testing.networks import NETWORKS, Dense, Net, Plain, Residual, example, run, teacher

if TYPE_CHECKING:
    from spaces.axes.importance import Importance

CRITERIA: tuple[Importance, ...] = (Magnitude(1), Magnitude(2), SecondOrder(), Taylor())


class Pair(Net):
    """A producing and a consuming linear layer without a norm between them."""

    shape = (6,)

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.make = nn.Linear(6, 8)
        self.read = nn.Linear(8, 5, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return run(F.relu(self.make(x)), self.read)


class ConvPair(Net):
    """A producing and a consuming convolution without a norm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Conv2d(3, 8, 3, padding=1)
        self.read = nn.Conv2d(8, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return run(F.relu(self.make(x)), self.read).mean((2, 3))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("importance", CRITERIA, ids=repr)
def test_an_order_names_every_unit_once(importance: Importance, kind: type[Net]) -> None:
    net = teacher(kind)
    for group in trace(net, example(net)).groups:
        order = importance.order(net, example(net), group)
        assert sorted(order) == list(range(group.units))


@pytest.mark.parametrize("importance", CRITERIA, ids=repr)
def test_a_channel_of_zeros_is_removed_first(importance: Importance) -> None:
    net = Pair().eval()
    with torch.no_grad():
        net.get_parameter("make.weight")[5] = net.get_parameter("make.bias")[5] = 0
        net.get_parameter("read.weight")[:, 5] = 0
    group = trace(net, example(net)).group("make")
    assert importance.order(net, example(net), group)[0] == 5


@pytest.mark.parametrize("kind", [Pair, ConvPair])
def test_one_of_two_equal_channels_is_removed_first_and_refitting_replaces_it_by_the_other(
    kind: type[Pair | ConvPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "DAMPING", 1e-6)
    net = kind().eval()
    with torch.no_grad():
        for leaf in ("make.weight", "make.bias"):
            net.get_parameter(leaf)[6] = net.get_parameter(leaf)[2]
    inputs = example(net, 256)
    group = trace(net, inputs).group("make")
    order = SecondOrder().order(net, inputs, group)
    assert order[0] in {2, 6}
    assert not {2, 6} <= set(order[:3])
    smaller = Prune((("make", 1 / 8),)).apply(net, inputs)
    assert len(smaller.get_parameter("make.weight")) == 7
    torch.testing.assert_close(smaller(inputs), net(inputs), atol=1e-4, rtol=1e-3)
    plain = Prune((("make", 1 / 8),), refit=False).apply(net, inputs)
    assert not torch.allclose(plain(inputs), net(inputs), atol=1e-2)


def test_a_unit_that_no_consumer_reads_is_removed_first() -> None:
    net = Pair().eval()
    everywhere = tuple((channel,) for channel in range(8))
    read = Member("read", "in", 0, tuple(() if at == (3,) else at for at in everywhere))
    group = Group("make", 8, (Member("make", "out", 0, everywhere), read))
    assert SecondOrder().order(net, example(net), group)[0] == 3
    assert Taylor().order(net, example(net), group)[0] == 3


def test_second_order_removes_the_unit_that_an_exhaustive_search_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "DAMPING", 1e-9)
    net = Pair(bias=False).eval()
    inputs = example(net, 128)
    first, *_ = SecondOrder().order(net, inputs, trace(net, inputs).group("make"))
    with torch.no_grad():
        seen, want = F.relu(net.make(inputs)).double(), net(inputs).double()
    losses = []
    for removed in range(8):
        left = seen[:, [channel for channel in range(8) if channel != removed]]
        losses.append(float((left @ torch.linalg.lstsq(left, want).solution - want).square().sum()))
    assert first == losses.index(min(losses))


def greedy(model: Net, inputs: Tensor, group: Group) -> tuple[int, ...]:
    """Return the order by definition: the losses after refitting are computed from scratch at every removal."""
    left: list[int] = list(range(group.units))
    order: list[int] = []
    seen = moments(model, inputs, [member.layer for member in group.consumers])
    consumers = [m for m in group.consumers if m.layer in seen and any(m.positions)]

    def loss(removed: list[int]) -> float:
        total = 0.0
        for member in consumers:
            found = seen[member.layer]
            second = found.second_GDD[0].double()
            weight = columns_of(model.get_parameter(f"{member.layer}.weight").detach(), found.block).double()
            lost = torch.zeros(len(second) // found.block, dtype=torch.bool)
            lost[[position for unit in removed for position in member.positions[unit]]] = True
            lost = lost.repeat_interleave(found.block)
            own = torch.linalg.inv(torch.linalg.inv(second)[lost][:, lost])
            total += float((weight[:, lost] @ own * weight[:, lost]).sum() / ((weight @ second) * weight).sum())
        return total

    while left:
        best = min(left, key=lambda unit: loss([*order, unit]))
        order.append(best)
        left.remove(best)
    return tuple(order)


@pytest.mark.parametrize("kind", [Pair, ConvPair, Plain, Residual, Dense])
@pytest.mark.parametrize("removals", [1, 3, 32])
def test_the_order_with_pending_updates_is_that_of_a_search_from_scratch(
    kind: type[Net], removals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance, "REMOVALS_PER_UPDATE", removals)
    torch.manual_seed(5)
    net = kind().eval()
    inputs = example(net, 64)
    for group in trace(net, inputs).groups:
        assert SecondOrder().order(net, inputs, group) == greedy(net, inputs, group)


def test_units_of_different_widths_are_ordered_correctly() -> None:
    torch.manual_seed(5)
    net = Pair().eval()
    positions = ((0,), (1, 2), (), (3, 4, 5), (6,), (7,))
    read = Member("read", "in", 0, positions)
    group = Group("make", 6, (Member("make", "out", 0, positions), read))
    inputs = example(net, 64)
    order = SecondOrder().order(net, inputs, group)
    assert order[0] == 2
    assert order == greedy(net, inputs, group)


def test_taylor_needs_no_labels_and_restores_mode_gradients_and_hooks() -> None:
    net = copy.deepcopy(teacher(Residual)).train()
    group = trace(net, example(net)).group("stem")
    before = copy.deepcopy(net.state_dict())
    first = Taylor().order(net, example(net), group)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert Taylor().order(net, example(net), group) == first


def test_taylor_removes_its_hook_after_a_failing_forward() -> None:
    net = copy.deepcopy(teacher(Plain))
    group = trace(net, example(net)).group("first")
    with pytest.raises(RuntimeError):
        Taylor().order(net, torch.randn(2, 4, 8, 8), group)
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_taylor_scores_are_the_squared_products_of_gradient_and_activation() -> None:
    torch.manual_seed(3)
    net = Pair().eval()
    inputs = example(net, 8)
    hidden = F.relu(net.make(inputs)).detach()
    outputs = net.read(hidden)
    drawn = torch.multinomial(outputs.softmax(1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    # the gradient of the log-likelihood: (one-hot of the label - probabilities) W
    gradient = (F.one_hot(drawn, 5) - outputs.softmax(1)) @ net.read.weight
    scores = (hidden * gradient).square().mean(0)
    assert Taylor().order(net, inputs, trace(net, inputs).group("make")) == tuple(scores.argsort().tolist())
