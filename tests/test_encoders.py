"""Encoders of the transformers package, and the study of coverage."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from objectives import Macs
from spaces import PruneRatios, deployed, trace
from studies.coverage import HF_PREFIX, TIMM, acting_percent, agreement, builders, crash
from studies.encoders import CONFIGURATIONS, encoder, encoder_inputs
from tests.random_plans import groups_that_can_be_cut, random_plans

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)
needs_warnings = pytest.mark.filterwarnings("ignore")  # transformers warns about its own code


@needs_transformers
@needs_warnings
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_channels_of_an_encoder_act_on_most_of_its_multiply_adds_and_any_plan_runs(name: str, attention: str) -> None:
    torch.manual_seed(0)
    net, x = encoder(name, attention), encoder_inputs(name)
    groups = groups_that_can_be_cut(net, x)
    anatomy = trace(net, x)
    assert acting_percent(anatomy, PruneRatios(), Macs(x)(net)) > 90
    heads = [units for group, units in groups.items() if group.endswith(("query", "q_proj", "q_lin"))]
    assert heads
    assert set(heads) <= {2, 4}


@pytest.mark.slow
@needs_transformers
@needs_warnings
@pytest.mark.parametrize("name", ["bert", "segformer"])
def test_the_file_of_a_pruned_encoder_has_the_same_outputs(name: str) -> None:
    torch.manual_seed(0)
    net, x = encoder(name), encoder_inputs(name)
    plan = random_plans(net, x, 1)[0]
    assert agreement(deployed(plan.apply(net, x), x), x) < 1e-4


def test_a_family_stands_for_its_networks() -> None:
    assert [name.rpartition(":")[2] for name in builders(["timm"])] == list(TIMM)
    assert builders(["hf"])[:2] == ["hf:bert:sdpa", "hf:bert:eager"]
    assert builders(["resnet18", "hf:vit"]) == ["resnet18", HF_PREFIX + "vit"]


def test_products_that_shrink_count_as_multiply_adds_on_which_channels_act() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.last = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.last(self.q(x) @ self.k(x).transpose(1, 2))
            return y

    net, x = Products().eval(), torch.randn(2, 5, 4)
    layers, product, last = 2 * 5 * 4 * 8, 5 * 8 * 5, 5 * 5 * 3
    total = Macs(x)(net)
    assert total == layers + product + last
    assert acting_percent(trace(net, x), PruneRatios(), total) == pytest.approx(100 * (layers + product) / total)


def test_a_random_plan_that_fails_is_counted() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.last(self.first(x).relu())
            return y if len(x) == 1 or self.first.out_features > 5 else y * torch.nan

    net, x = Failing().eval(), torch.randn(2, 4)
    assert {bool(crash(net, x, seed)) for seed in range(10)} == {True, False}
