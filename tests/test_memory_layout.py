"""The order of dimensions in memory, of images and of weights, does not change what a file answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from objectives.runtimes import named
from objectives.runtimes.runtime import export_and_load
from spaces import Distill, Plan, Quantize, deployed

if TYPE_CHECKING:
    from torch import Tensor


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8 * 8 * 8, 5)
    ).eval()


def images(layout: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if layout == "permuted":  # as cameras and image files give them
        return torch.rand(16, 12, 12, 3, generator=generator).permute(0, 3, 1, 2)
    if layout == "every second column":
        return torch.rand(16, 3, 12, 24, generator=generator)[..., ::2]
    return torch.rand(16, 1, 12, 12, generator=generator).expand(16, 3, 12, 12)


@pytest.mark.parametrize("runtime", ["onnx", "litert", "executorch"])
@pytest.mark.parametrize("layout", ["permuted", "every second column", "expanded"])
def test_images_of_any_layout(layout: str, runtime: str) -> None:
    given = images(layout)
    model = deployed(network(), given)
    torch.testing.assert_close(export_and_load(named(runtime), model, given)(given), model(given).detach())


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("runtime", ["onnx", "litert", "executorch"])
def test_weights_of_channels_last(runtime: str, bits: int) -> None:
    given = images("permuted")
    changed = network().to(memory_format=torch.channels_last)
    plan = Plan((Quantize(tuple((name, bits, bits) for name in ("0", "2", "4"))),), Distill(4.0, 0.7))
    model = deployed(plan.apply(changed, given).eval() if bits < 32 else changed, given)
    strides = [weight.stride() for weight in model.parameters()]
    found, expected = export_and_load(named(runtime), model, given)(given), model(given).detach()
    assert (found - expected).abs().max() < (1e-5 if bits == 32 else 0.1 * expected.std())
    assert [weight.stride() for weight in model.parameters()] == strides
