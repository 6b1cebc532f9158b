"""Small networks of the kinds that other tools keep in their own tests work, or one line says why they cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from optuna.trial import FixedTrial
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from objectives.runtimes import OnnxRuntime
from objectives.trees import leaves
from spaces import Imitate, PruneRatios, Space, Temperatures, deployed, trace
from spaces.network.normalizing import normalized
from spaces.network.tensors import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

X = torch.randn(4, 3, 8, 8)
SPACE = Space(steps=(PruneRatios(),), recovery=Temperatures())


class Written(nn.Module):
    """Runs a function that is given as an argument."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.written = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.written(self, x)


class AnyNumber(nn.Module):
    """Takes its inputs as `*inputs`."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.stems = nn.ModuleList(nn.Conv2d(3, 6, 3) for _ in range(count))
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, *inputs: Tensor) -> Any:
        return self.head(torch.stack([stem(x) for stem, x in zip(self.stems, inputs, strict=True)]).sum(0).relu())


class FirstAndRest(nn.Module):
    """Takes one input by name, the others as `*rest`, and ignores all else."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.inner = AnyNumber(count)

    def forward(self, first: Tensor, *rest: Tensor, **ignored: object) -> Any:
        del ignored
        return self.inner(first, *rest)


def add_in_place(net: Any, x: Tensor) -> Any:
    x = net.stem(x)
    y = net.conv(x)
    y += x
    return net.head(net.norm(y).relu())


def add_in_place_before(net: Any, x: Tensor) -> Any:
    y = net.conv(net.stem(x))
    y *= 2
    return net.head(net.norm(y).relu())


@pytest.mark.parametrize("forward", [add_in_place, add_in_place_before])
def test_a_norm_that_does_nothing_yet_is_not_folded_into_a_layer_whose_output_changes_in_between(
    forward: Callable[..., Any],
) -> None:
    layers = {"stem": nn.Conv2d(3, 6, 1), "conv": nn.Conv2d(6, 6, 1), "norm": nn.BatchNorm2d(6)}
    net = Written(forward, **layers, head=nn.Conv2d(6, 4, 1)).eval()
    finished = deployed(net, X)
    assert type(finished.get_submodule("norm")) is nn.BatchNorm2d
    nn.init.normal_(net.get_parameter("norm.weight"))
    assert (deployed(net, X)(X) - net(X)).abs().max() < 1e-5


@pytest.mark.parametrize("kind", [AnyNumber, FirstAndRest])
@pytest.mark.parametrize("count", [1, 3])
def test_files_take_networks_with_any_number_of_inputs(
    kind: type[AnyNumber | FirstAndRest], count: int, tmp_path: Path
) -> None:
    net, inputs = kind(count).eval(), X if count == 1 else (X,) * count
    runtime = OnnxRuntime()
    runtime.export(net, inputs, tmp_path / "model.onnx")
    (answered,) = leaves(runtime.load(tmp_path / "model.onnx")(inputs))
    assert (answered - run(net, inputs)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (Written(lambda _, x: x.flatten(1).topk(3).values), "it has no weights"),
        (Written(lambda net, x: net.norm(x), norm=nn.GroupNorm(1, 3)), r"its weights are in norm \(GroupNorm\)"),
        (Written(lambda net, x: F.conv2d(x, net.own.weight), own=nn.Conv2d(3, 4, 1)), r"weights are in own \(Conv2d\)"),
    ],
)
def test_a_network_without_layers_is_refused(net: nn.Module, words: str) -> None:
    with pytest.raises(ValueError, match=f"act on convolutions, linear and recurrent layers .*has none: .*{words}"):
        SPACE.trace(net.eval(), X)


def test_a_network_that_takes_one_example_at_a_time_is_refused() -> None:
    net = Written(lambda net, x: net.head(x.reshape(1, 192)), head=nn.Linear(192, 4))
    with pytest.raises(ValueError, match=r"several examples at once, .* but its forward only runs on one: shape"):
        normalized(net, X)


SEQUENCES: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: Written(lambda net, x: net.lstm(x)[0], lstm=nn.LSTM(5, 4)),
    "GRU both ways": lambda: Written(lambda net, x: net.gru(x), gru=nn.GRU(5, 4, bidirectional=True)),
    "attention": lambda: Written(lambda net, x: net.mha(x, x, x)[0], mha=nn.MultiheadAttention(5, 1)),
    "Transformer": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(5, 1, 8), 1, enable_nested_tensor=False),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_network_that_takes_the_examples_for_steps_of_a_sequence_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"first dimension of an input must count examples, but .*; let .*batch_first"):
        normalized(SEQUENCES[name](), torch.randn(4, 6, 5))


def test_a_network_with_as_many_outputs_as_examples_is_refused() -> None:
    net = Written(lambda net, x: [net.cell(step) for step in x], cell=nn.RNNCell(5, 4))
    with pytest.raises(ValueError, match="number of outputs must not depend on the inputs, but two examples give 2"):
        normalized(net, torch.randn(4, 6, 5))


def test_examples_that_influence_each_other_are_said() -> None:
    mixing = Written(lambda net, x: net.head(x / x.norm()), head=nn.Conv2d(3, 4, 1))
    assert "depend on the other examples of its batch" in normalized(mixing, X).notes[0]
    contrasting = Written(lambda net, x: net.head(x.flatten(1)) @ net.head(x.flatten(1)).T, head=nn.Linear(192, 4))
    unnormed = Written(lambda net, x: net.norm(x), norm=nn.BatchNorm2d(3, track_running_stats=False))
    batch_first = Written(lambda net, x: net.lstm(x.flatten(2))[0], lstm=nn.LSTM(64, 4, batch_first=True))
    for net in (contrasting, unnormed, batch_first, Written(lambda _, x: x + torch.rand_like(x))):
        assert normalized(net, X).notes == ()


def test_layers_whose_weights_were_replaced_state_their_sizes() -> None:
    convs = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.ConvTranspose2d(8, 8, 3)
    net = nn.Sequential(*convs, nn.Flatten(), nn.Linear(8, 8))
    smaller = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=2), nn.ConvTranspose2d(6, 5, 3), nn.Flatten(), nn.Linear(180, 4)
    )  # the same networks; the first was pruned by hand
    with torch.no_grad():
        for name, parameter in smaller.named_parameters():
            net.get_parameter(name).data = parameter.clone()
        net.get_parameter("4.bias").data = smaller.get_parameter("4.bias")[None].clone()
    inputs = torch.randn(2, 3, 8, 8)
    model = normalized(net, inputs).model
    assert str(model) == str(smaller)
    assert trace(model, inputs).layers == trace(smaller.eval(), inputs).layers
    plan = SPACE.suggest(FixedTrial(SPACE.uniform(trace(model, inputs), (0.5,))), trace(model, inputs))
    assert sum(p.numel() for p in plan.apply(model, inputs).parameters()) < sum(p.numel() for p in model.parameters())
    assert "out_features=8" in str(net)
    assert net.get_parameter("4.bias").dim() == 2


def test_activations_that_write_in_place_where_that_prevents_training_no_longer_do() -> None:
    relu = nn.ReLU(inplace=True)
    twice = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), relu, relu, nn.Conv2d(4, 2, 1))
    model, notes = normalized(twice, X)
    assert notes == ("2 no longer write in place, which prevented training",)
    with torch.no_grad():
        assert twice.eval()(X).equal(model(X))
    model.train()(X).sum().backward()
    assert relu.inplace
    once = normalized(nn.Sequential(nn.Conv2d(3, 4, 1), relu), X)
    assert once.notes == ()
    assert once.model.get_submodule("1").inplace


def test_several_outputs_without_labels_are_imitated_each_in_its_own_scale() -> None:
    teacher = {"near": torch.randn(4, 3), "far": 1000 * torch.randn(4, 2), "class": torch.tensor([1, 2, 0, 1])}
    student = {**teacher, "far": teacher["far"] + 10}
    spread = (teacher["far"] - teacher["far"].mean()).square().mean()
    torch.testing.assert_close(Imitate().loss(student, teacher, None), 100 / spread / 2)
    torch.testing.assert_close(Imitate(0.0).loss(student, teacher, student), torch.tensor(0.0))
