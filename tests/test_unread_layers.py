"""Layers that run although no output depends on them: no axis offers them, and no cost counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from optuna.trial import FixedTrial
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from objectives import Bops, Macs, Parameters, SizeBytes
from objectives.mac_counter import count
from search.costs.cost_model import CostModel
from search.evaluation.subject import unread_note
from spaces import BitWidths, Depth, PruneRatios, Ranks, Space, Temperatures, deployed, trace, with_plain_layers
from spaces.network.omission import ZeroOutput
from spaces.network.unread_layers import calls_read

if TYPE_CHECKING:
    from collections.abc import Callable

SPACE = Space((PruneRatios(), Ranks(), Depth(), BitWidths()), Temperatures())
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Supervised(nn.Module):
    """A network whose auxiliary head always runs, and is returned in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.ConvTranspose2d(16, 8, 3, 2))
        self.second_head, self.head = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stem(x).relu()
        extra = self.second_head(self.second(x).mean((2, 3)))
        answer: Tensor = self.head(self.wide(x).relu().mean((2, 3)))
        return (answer, extra) if self.training else answer


class Waves(nn.Module):
    """A network of residual blocks with skips, like WaveNet, where nothing reads the sum of the last block."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 1)
        self.inner, self.back, self.skip = (nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(2)) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x, answer = self.enter(x), torch.zeros(())
        for inner, back, skip in zip(self.inner, self.back, self.skip, strict=True):
            z = inner(x).tanh()
            answer, x = answer + skip(z), x + back(z)
        found: Tensor = self.head(answer.relu().mean((2, 3)))
        return found


class Repeated(nn.Module):
    """A network that refines its state by the same layer, for the last time after the last reading."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.refine, self.head = nn.Linear(192, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        state, answer = self.enter(x.flatten(1)), torch.zeros(())
        for _ in range(3):
            answer = answer + self.head(state)
            state = state + self.refine(state).relu()
        return answer


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


NAMES = {
    Supervised: ("second.0", "second.3", "second_head"),
    Waves: ("back.1",),
    Repeated: (),
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_computed_and_measured_costs_agree_and_no_axis_offers_such_layers(
    kind: type[nn.Module], strength: float
) -> None:
    net = with_plain_layers(made(kind), IMAGES)
    anatomy = SPACE.trace(net, IMAGES)
    assert anatomy.unread == NAMES[kind]
    assert {layer.name: layer.macs for layer in anatomy.layers}.items() <= count(net, IMAGES).items()
    params = SPACE.uniform(anatomy, (strength,) * len(SPACE.steps))
    assert not [name for name in params if name.partition("/")[2] in anatomy.unread]
    plan = SPACE.suggest(FixedTrial(params), anatomy)
    finished, costs = deployed(plan.apply(net, IMAGES), IMAGES), (Macs(IMAGES), Bops(IMAGES), Parameters(), SizeBytes())
    predicted = CostModel(anatomy, deployed(net, IMAGES), costs).exact([plan])
    assert {name: float(values[0]) for name, values in predicted.items()} == {
        cost.name: pytest.approx(cost(finished)) for cost in costs
    }


def test_a_deployed_network_answers_alike_without_such_layers_and_norms() -> None:
    net = made(Supervised)
    finished = deployed(net, IMAGES)
    left = {name.partition(".")[0] for name, _ in finished.named_parameters()}
    assert left == {"stem", "wide", "head"}
    torch.testing.assert_close(finished(IMAGES), net(IMAGES))


def test_what_is_trained_has_such_layers_with_their_weights() -> None:
    net = made(Supervised)
    plan = SPACE.suggest(FixedTrial(SPACE.uniform((anatomy := trace(net, IMAGES)), (0.5, 0, 0, 0))), anatomy)
    student = plan.apply(net, IMAGES)
    torch.testing.assert_close(student.get_parameter("second_head.weight"), net.get_parameter("second_head.weight"))
    _, extra = student.train()(IMAGES)
    extra.sum().backward()
    assert student.get_parameter("stem.weight").grad is not None


class Gated(nn.Module):
    """A network whose gate is read in a way that does not show in the tensors of its output."""

    def __init__(self, read: Callable[[Tensor], Tensor | float]) -> None:
        super().__init__()
        self.gate, self.head, self.read = nn.Linear(192, 1), nn.Linear(192, 4), read

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(x.flatten(1)) * self.read(self.gate(x.flatten(1)))
        return found


def _written(gate: Tensor) -> Tensor:
    scales = torch.ones(2, len(gate), 1)
    scales[0].copy_(gate)
    return scales.sum(0)


READS: tuple[Callable[[Tensor], Tensor | float], ...] = (
    lambda gate: 1.0 if gate.sum() > -1e6 else 2.0,
    lambda gate: float(len((gate > -1e6).nonzero())),
    lambda gate: max(1.0, *(row[0] - 1e6 for row in gate.tolist())),
    lambda gate: torch.from_numpy(gate.numpy() * 2),
    _written,
)


@pytest.mark.parametrize("read", READS)
def test_layers_are_read_where_their_values_decide_or_are_written_into_other_memory(
    read: Callable[[Tensor], Tensor | float],
) -> None:
    assert calls_read(Gated(read).eval(), IMAGES) == {"gate": (True,), "head": (True,)}


def test_a_layer_counts_as_read_where_a_kernel_reads_its_memory_unseen() -> None:
    def unseen(gate: Tensor) -> Tensor:
        return torch.frombuffer(memoryview(bytes(gate.untyped_storage())), dtype=gate.dtype).reshape(gate.shape)

    assert calls_read(Gated(unseen).eval(), IMAGES) == {"gate": (True,), "head": (True,)}


@pytest.mark.parametrize(("kernel", "stride", "padding", "more", "dilation"), [(3, 2, 1, 1, 1), (2, 3, 0, 0, 2)])
def test_zeros_have_the_shape_of_a_transposed_convolution(
    kernel: int, stride: int, padding: int, more: int, dilation: int
) -> None:
    layer = nn.ConvTranspose2d(3, 5, kernel, stride, padding, more, dilation=dilation)
    assert ZeroOutput(layer)(IMAGES).shape == layer(IMAGES).shape
    assert not F.relu(ZeroOutput(layer)(IMAGES)).any()


def test_the_sentence_names_the_layers() -> None:
    assert unread_note(("aux",)) == (
        "aux runs, but no output depends on it: it is left as it is, and not counted; exported files do not have it, "
        "weights keep it"
    )
    assert unread_note(("a", "b", "c", "d")).startswith("a, b, c and 1 more run, but no output depends on them: they ")
