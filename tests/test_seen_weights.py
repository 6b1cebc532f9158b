"""Layers that compute their weight in their own forward are made plain, where they do nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from spaces import trace
from spaces.network.normalizing import normalized
from tests.random_plans import groups_that_can_be_cut


class Standardized(nn.Conv2d):
    """Weight standardization (Qiao et al. 2019, arXiv:1903.10520), with a gain for each output."""

    def __init__(self, *sizes: int, same: bool = False, **options: int) -> None:
        super().__init__(*sizes, **options)  # type: ignore[arg-type]
        self.gain, self.same = nn.Parameter(torch.rand(self.out_channels) + 0.5), same

    def forward(self, x: Tensor) -> Tensor:
        shape = self.weight.shape
        normed = F.batch_norm(
            self.weight.reshape(1, len(self.weight), -1), None, None, self.gain, training=True, momentum=0.0
        )
        if self.same:  # as TensorFlow pads with stride 2 and a kernel of 3 where the size is even
            x = F.pad(x, (0, 1, 0, 1))
        return F.conv2d(x, normed.reshape(shape), self.bias, self.stride, self.padding, self.dilation, self.groups)


class Scaled(nn.Linear):
    """A linear layer with a learned scale, as in networks with equalized learning rates."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, weight=self.weight * self.scale, bias=self.bias + 1)


class Dynamic(nn.Conv2d):
    """A weight that depends on the input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * x.mean(), self.bias, padding=1)


class Noisy(nn.Conv2d):
    """A weight with noise in training."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * 1.5
        return F.conv2d(x, weight + torch.randn_like(weight) * self.training, self.bias, padding=1)


class Activated(nn.Conv2d):
    """A computed weight, and an activation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * 1.5, self.bias, padding=1).relu()


def network(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), layer, nn.Conv2d(8, 4, 1)).eval()


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "layer",
    [
        Standardized(8, 8, 3, padding=1),
        Standardized(8, 8, 3, stride=2, same=True),
        Standardized(8, 8, 3, padding=1, groups=8),
        Standardized(8, 8, 3, padding=1, bias=False),
    ],
    ids=["padded", "padded by its own forward", "depthwise", "without bias"],
)
def test_standardized_convolutions_become_plain_ones(layer: nn.Module) -> None:
    net = network(layer)
    before = copy.deepcopy(net.state_dict())
    new, notes = normalized(net, IMAGES)
    assert torch.allclose(new(IMAGES), net(IMAGES), atol=1e-5)
    assert not [module for module in new.modules() if isinstance(module, Standardized)]
    assert notes == (
        "the weights that layers of Standardized compute in every pass are stored; candidates train these",
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    groups = groups_that_can_be_cut(new, IMAGES)
    assert set(groups.values()) == {8}
    assert not [refusal for refusal in trace(new, IMAGES).refusals if refusal.layer != "3"]


def test_a_scaled_linear_layer_becomes_a_plain_one() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(Scaled(6, 8), nn.ReLU(), Scaled(8, 3)).eval(), torch.randn(4, 6)
    new, _ = normalized(net, x)
    assert torch.allclose(new(x), net(x), atol=1e-6)
    assert [type(module) for module in new] == [nn.Linear, nn.ReLU, nn.Linear]  # type: ignore[attr-defined]
    assert groups_that_can_be_cut(new, x) == {"0": 8}


class Equalized(nn.Module):
    """A layer with an equalized learning rate (Karras et al. 2018, arXiv:1710.10196), of no class of torch."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(shape[0]))
        self.scale = 1 / self.weight[0].numel() ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dim() == 2:
            return F.linear(x, self.weight * self.scale, self.bias)
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=1, stride=2)


def test_modules_of_no_class_of_torch_become_layers_with_the_weight_that_they_compute() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        Equalized(8, 3, 3, 3), nn.ReLU(), Equalized(8, 8, 3, 3), nn.Flatten(), Equalized(6, 32), nn.ReLU(),
        Equalized(4, 6),
    ).eval()  # fmt: skip
    new, notes = normalized(net, IMAGES)
    assert torch.allclose(new(IMAGES), net(IMAGES), atol=1e-5)
    kinds = [type(module) for module in new if not isinstance(module, nn.ReLU)]  # type: ignore[attr-defined]
    assert kinds == [nn.Conv2d, nn.Conv2d, nn.Flatten, nn.Linear, nn.Linear]
    assert notes == ("the weights that layers of Equalized compute in every pass are stored; candidates train these",)
    assert groups_that_can_be_cut(new, IMAGES) == {"0": 8, "2": 8, "4": 6}


@pytest.mark.parametrize("kind", [Dynamic, Noisy, Activated])
def test_a_layer_that_does_more_stays(kind: type[nn.Conv2d]) -> None:
    net = network(kind(8, 8, 3))
    new, notes = normalized(net, IMAGES)
    assert [type(module) for module in new][2] is kind  # type: ignore[attr-defined]
    assert not any("stored" in note for note in notes)
    assert torch.equal(new(IMAGES), net(IMAGES))
