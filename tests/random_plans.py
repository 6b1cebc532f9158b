"""Plans that prune every group at a ratio of its own."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from spaces import Distill, Magnitude, Plan, Prune, trace

RATIOS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75)


def random_plans(net: nn.Module, x: Tensor, count: int = 10) -> list[Plan]:
    dice, groups = random.Random(0), trace(net, x).groups  # noqa: S311 - a test, not a secret
    return [
        Plan((Prune(tuple((group.name, dice.choice(RATIOS)) for group in groups), 1, Magnitude(), False),), Distill())  # noqa: FBT003
        for _ in range(count)
    ]


def groups_that_can_be_cut(net: nn.Module, x: Tensor) -> dict[str, int]:
    """Return the number of units of each group, after ten random plans were built and run."""
    with torch.no_grad():
        shape = net(x).shape
        for plan in random_plans(net, x):
            output = plan.apply(net, x)(x)
            assert output.shape == shape
            assert output.isfinite().all()
    return {group.name: group.units for group in trace(net, x).groups}


def refused(net: nn.Module, x: Tensor) -> dict[str, str]:
    return {refusal.layer: refusal.reason for refusal in trace(net, x).refusals}
