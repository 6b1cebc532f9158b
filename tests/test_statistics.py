"""Moments and refitted weights equal their closed forms."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from spaces.axes.refit import columns_of, refit, weight_of
from spaces.network import statistics
from spaces.network.statistics import inherit, inputs_of, moments, reestimate
from spaces.testing.networks import Mlp, Residual, example, run, teacher

LAYERS = {
    "linear": (nn.Linear(5, 4), (64, 5)),
    "tokens": (nn.Linear(5, 4), (16, 7, 5)),
    "pointwise": (nn.Conv2d(5, 4, 1), (4, 5, 6, 6)),
    "plain": (nn.Conv2d(3, 4, 3), (8, 3, 7, 7)),
    "padded": (nn.Conv2d(3, 4, 3, padding=1), (8, 3, 7, 7)),
    "strided": (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (8, 3, 8, 7)),
    "dilated": (nn.Conv2d(3, 4, 3, padding=2, dilation=2), (8, 3, 7, 7)),
    "same": (nn.Conv2d(3, 4, (3, 5), padding="same"), (8, 3, 7, 7)),
    "reflected": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (8, 3, 7, 7)),
    "one dimension": (nn.Conv1d(3, 4, 5, stride=2, padding=2, dilation=2), (16, 3, 20)),
    "three dimensions": (nn.Conv3d(2, 4, (2, 3, 2), stride=(1, 2, 1), padding=(0, 1, 1)), (4, 2, 4, 5, 4)),
}
each_layer = pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS.keys())


def features(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Return the inputs of every kernel application, shape (N, D), computed by the layer with one-hot kernels."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(-1, layer.in_features)
    weight = layer.get_parameter("weight")
    columns = weight[0].numel()
    probe = copy.deepcopy(layer)
    assert isinstance(probe, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    probe.out_channels, probe.bias = columns, None
    probe.weight = nn.Parameter(torch.eye(columns).reshape(columns, *weight.shape[1:]))
    with torch.no_grad():
        return run(inputs, probe).movedim(1, -1).reshape(-1, columns)


@each_layer
def test_moments_equal_those_of_the_unfolded_inputs(
    layer: nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "DAMPING", 0.0)
    net, inputs = nn.Sequential(layer), torch.randn(shape) + 0.5
    seen = moments(net, inputs, ["0"])["0"]
    rows = features(layer, inputs)
    torch.testing.assert_close(seen.mean_GD[0], rows.mean(0))
    torch.testing.assert_close(seen.second_GDD[0], rows.T @ rows / len(rows))
    assert seen.block == math.prod(getattr(layer, "kernel_size", ()))


def test_the_diagonal_is_damped_by_a_share_of_its_mean() -> None:
    net, inputs = nn.Sequential(nn.Linear(5, 4)), torch.randn(64, 5)
    second = inputs.T @ inputs / 64
    damped = second + 0.01 * second.diagonal().mean() * torch.eye(5)
    torch.testing.assert_close(moments(net, inputs, ["0"])["0"].second_GDD[0], damped)


def test_moments_between_channels_are_means_over_the_kernel_positions() -> None:
    net, inputs = nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(8, 3, 7, 7)
    seen = moments(net, inputs, ["0"])["0"]
    expected = torch.stack([seen.second_GDD[:, position::9, position::9] for position in range(9)]).mean(0)
    torch.testing.assert_close(seen.channels_GII, expected)


def test_wide_layers_pool_the_kernel_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MOST_COLUMNS", 26)
    monkeypatch.setattr(statistics, "DAMPING", 0.0)
    net, inputs = nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(8, 3, 7, 7)
    seen = moments(net, inputs, ["0"])["0"]
    rows = inputs.movedim(1, -1).reshape(-1, 3)
    torch.testing.assert_close(seen.second_GDD[0], rows.T @ rows / len(rows))
    torch.testing.assert_close(seen.channels_GII, seen.second_GDD)
    assert seen.block == 1


def test_all_calls_of_a_layer_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return run(x[:10], self.layer).sum() + run(3 * x, self.layer).sum()

    monkeypatch.setattr(statistics, "DAMPING", 0.0)
    inputs = torch.randn(50, 4)
    rows = torch.cat([inputs[:10], 3 * inputs])
    seen = moments(Twice(), inputs, ["layer"])["layer"]
    torch.testing.assert_close(seen.mean_GD[0], rows.mean(0))
    torch.testing.assert_close(seen.second_GDD[0], rows.T @ rows / 60)


@pytest.mark.parametrize("columns", [1152, 20])
@pytest.mark.parametrize("bias", [True, False])
def test_every_group_of_a_convolution_is_measured_and_refitted_like_a_separate_layer(
    *, bias: bool, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "MOST_COLUMNS", columns)
    grouped, inputs = nn.Conv2d(6, 8, 3, padding=1, groups=2, bias=bias), torch.randn(4, 6, 7, 7)
    inputs += inputs.roll(1, 1)
    halves = []
    for index, part in enumerate(inputs.chunk(2, 1)):
        half = nn.Conv2d(3, 4, 3, padding=1, bias=bias)
        half.load_state_dict({name: value.chunk(2)[index] for name, value in grouped.state_dict().items()})
        halves.append((half, moments(nn.Sequential(half), part, ["0"])["0"]))
    seen = moments(nn.Sequential(grouped), inputs, ["0"])["0"]
    assert seen.block == (9 if columns > 20 else 1)
    torch.testing.assert_close(seen.mean_GD, torch.cat([own.mean_GD for _, own in halves]))
    torch.testing.assert_close(seen.second_GDD, torch.cat([own.second_GDD for _, own in halves]))
    torch.testing.assert_close(seen.channels_GII, torch.cat([own.channels_GII for _, own in halves]))
    refit(grouped, seen, [1, 5])
    refit(halves[0][0], halves[0][1], [1])
    refit(halves[1][0], halves[1][1], [2])
    for name, value in grouped.state_dict().items():
        torch.testing.assert_close(value, torch.cat([half.state_dict()[name] for half, _ in halves]))


def test_depthwise_convolutions_are_omitted_and_hooks_are_removed() -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 1, groups=4), nn.Conv2d(8, 4, 1))
    assert set(moments(net, torch.randn(2, 4, 3, 3), ["0", "1"])) == {"1"}
    with pytest.raises(RuntimeError):
        moments(net, torch.randn(2, 5, 3, 3), ["1"])
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_a_layer_is_measured_once_also_in_calls_with_other_layers() -> None:
    net, inputs = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(8, 4)
    first = moments(net, inputs, ["0"])["0"]
    both = moments(net, inputs, ["1", "0"])
    assert list(both) == ["1", "0"]
    assert both["0"] is first
    assert moments(net, inputs.clone(), ["0"])["0"] is not first


def test_moments_are_measured_again_when_the_weights_change() -> None:
    net, inputs = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(8, 4)
    first = moments(net, inputs, ["1"])["1"]
    with torch.no_grad():
        net.get_parameter("0.weight").mul_(2)
    again = moments(net, inputs, ["1"])["1"]
    assert not torch.allclose(again.second_GDD, first.second_GDD)


@pytest.mark.parametrize("columns", [1152, 20])
@pytest.mark.parametrize("groups", [1, 2])
def test_moments_without_some_channels_equal_those_of_a_layer_with_the_other_channels(
    groups: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "MOST_COLUMNS", columns)
    monkeypatch.setattr(statistics, "DAMPING", 0.0)
    inputs, removed = torch.randn(4, 6, 7, 7), [1, 5]
    kept = [channel for channel in range(6) if channel not in removed]
    whole = moments(nn.Sequential(nn.Conv2d(6, 8, 3, groups=groups)), inputs, ["0"])["0"]
    part = moments(nn.Sequential(nn.Conv2d(4, 8, 3, groups=groups)), inputs[:, kept], ["0"])["0"]
    reduced = whole.without(removed)
    assert (reduced.block, reduced.mean_GD.shape) == (part.block, part.mean_GD.shape)
    torch.testing.assert_close(reduced.second_GDD, part.second_GDD)
    torch.testing.assert_close(reduced.mean_GD, part.mean_GD)


def test_a_pruned_network_inherits_the_moments_of_the_original() -> None:
    net, smaller, inputs = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(3, 4)), torch.randn(16, 4)
    inherit(net, smaller, {"0": [2]})
    torch.testing.assert_close(moments(smaller, inputs, ["0"])["0"].mean_GD, inputs[:, [0, 1, 3]].mean(0, keepdim=True))


def test_reestimating_batch_norm_also_samples_the_inputs_of_layers() -> None:
    net = teacher(Residual)
    inputs = example(net)
    reestimate(net, inputs)
    sampled = inputs_of(net, inputs, ["stem", "head"])
    other = inputs_of(copy.deepcopy(net), inputs, ["stem", "head"])  # a copy has no samples, so it runs
    for name, values in sampled.items():
        torch.testing.assert_close(
            values, other[name], rtol=0.05, atol=0.02
        )  # running statistics use the unbiased variance, a little larger


@pytest.mark.parametrize("bias", [True, False])
@each_layer
def test_refitted_weights_are_the_least_squares_solution(
    layer: nn.Module, shape: tuple[int, ...], *, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "DAMPING", 1e-7)
    layer = copy.deepcopy(layer)
    layer.register_parameter("bias", nn.Parameter(torch.randn(4)) if bias else None)
    inputs = torch.randn(shape) + 0.5
    inputs = inputs + 0.5 * inputs.roll(
        1, -1 if isinstance(layer, nn.Linear) else 1
    )  # so that other channels can replace the removed one
    rows = features(layer, inputs)
    weight = layer.get_parameter("weight")
    kept = torch.arange(weight.shape[1]).repeat_interleave(weight[0, 0].numel()) != 1
    expected = rows @ weight.detach().flatten(1).T
    if bias:
        expected = expected + layer.get_parameter("bias").detach()
    columns = np.concatenate([rows[:, kept].numpy(), np.ones((len(rows), int(bias)))], 1)
    solution = np.linalg.lstsq(columns, expected.numpy(), rcond=None)[0]
    refit(layer, moments(nn.Sequential(copy.deepcopy(layer)), inputs, ["0"])["0"], [1])
    got = weight.detach().flatten(1)
    assert not got[:, ~kept].any()
    np.testing.assert_allclose(got[:, kept].T, solution[: int(kept.sum())], atol=2e-3)
    if bias:
        np.testing.assert_allclose(layer.get_parameter("bias").detach(), solution[-1], atol=2e-3)


def test_refitting_with_pooled_positions_reduces_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MOST_COLUMNS", 8)
    layer, inputs = nn.Conv2d(4, 6, 3), torch.randn(16, 4, 8, 8)
    inputs[:, 1] = inputs[:, 0] + 0.1 * inputs[:, 1]
    net = nn.Sequential(layer)
    with torch.no_grad():
        expected, raw = net(inputs), copy.deepcopy(layer)
        raw.weight[:, 1] = 0
        refit(layer, moments(copy.deepcopy(net), inputs, ["0"])["0"], [1])
        assert (layer(inputs) - expected).square().mean() < 0.1 * (raw(inputs) - expected).square().mean()


@pytest.mark.parametrize("block", [1, 9])
def test_columns_are_converted_back_into_the_weight(block: int) -> None:
    weight = torch.randn(4, 3, 3, 3)
    columns = columns_of(weight, block)
    assert columns.shape[1] == 3 * block
    assert torch.equal(weight_of(columns, weight, block), weight)


def test_statistics_become_the_mean_and_variance_of_the_batch() -> None:
    norm, inputs = nn.BatchNorm1d(4, momentum=0.3).eval(), 3 * torch.randn(100, 4) + 1
    net = nn.Sequential(norm, nn.Dropout())
    modes = [module.training for module in net.modules()]
    assert modes == [True, False, True]
    reestimate(net, inputs)
    torch.testing.assert_close(norm.running_mean, inputs.mean(0))
    torch.testing.assert_close(norm.running_var, inputs.var(0))
    assert norm.momentum == 0.3
    assert [module.training for module in net.modules()] == modes


def test_batches_are_weighted_equally_and_a_last_batch_of_one_is_dropped() -> None:
    norm, inputs = nn.BatchNorm1d(4), torch.randn(65, 4)
    reestimate(norm, inputs, batch=32)
    torch.testing.assert_close(norm.running_mean, inputs[:64].mean(0))
    torch.testing.assert_close(norm.running_var, (inputs[:32].var(0) + inputs[32:64].var(0)) / 2)


def test_statistics_of_deep_norms_are_computed_from_normalized_inputs() -> None:
    net = copy.deepcopy(teacher(Residual))
    reestimate(net, example(net))
    inputs: list[Tensor] = []
    handle = net.get_submodule("block2.bn2").register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    training_copy = copy.deepcopy(net).train()
    handle.remove()
    training_copy(example(net))
    torch.testing.assert_close(inputs[0].mean((0, 2, 3)), net.get_buffer("block2.bn2.running_mean"))


def test_one_example_changes_no_statistics() -> None:
    net = copy.deepcopy(teacher(Mlp))
    before = F.softplus(net.get_buffer("bn.running_var"))
    reestimate(net, example(net)[:1])
    assert torch.equal(F.softplus(net.get_buffer("bn.running_var")), before)
