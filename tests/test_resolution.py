"""Resolution fulfils the contract of an axis, offers the sizes at which the network runs, and foresees every cost."""

from __future__ import annotations

from spaces import BitWidths, Depth, PruneRatios, Ranks, Resolution
from spaces.testing.axis_contract import AxisContract
from spaces.testing.networks import Dense, Grouped, Normed, Padded, Residual, Separable, SqueezeExcite, Straight


class TestResolution(AxisContract):
    axis = Resolution()
    before, after = (), (PruneRatios(), Depth(), Ranks(), BitWidths())
    networks = (Residual, Dense, Separable, Grouped, Padded, SqueezeExcite, Normed, Straight)
