"""What is tried on a network before it is offered."""

from __future__ import annotations

import torch
from torch import nn

from spaces import trace
from tests.test_groups import Custom


def test_the_layers_of_torchs_transformer_are_tried_outside_of_its_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = Custom(lambda m, x: m.last(m.layer(x).mean(1)), layer=layer, last=nn.Linear(8, 5)).eval()
    groups = trace(net, torch.randn(2, 4, 8)).groups
    assert [(group.name, group.units) for group in groups] == [("layer.linear1", 16)]
    assert torch.backends.mha.get_fastpath_enabled()
