"""What may be done to a network, and how it is done.

A `Space` is a row of axes; each axis proposes one frozen `Step`; the steps of one proposal and a `Recovery` make a
`Plan`, which turns the teacher into a smaller network.
"""

from spaces.anatomy import Anatomy, Branch, Layer
from spaces.bits import BitWidths, Quantize
from spaces.decompose import SpatialSvd, Svd, Tucker2
from spaces.deploy import deployed
from spaces.depth import Depth, Skip
from spaces.distill import Distill, Imitate, Imitations, Temperatures
from spaces.grids import KMeans, PowersOfTwo, Uniform
from spaces.importance import Magnitude, SecondOrder, Taylor
from spaces.opened import opened
from spaces.plan import Axis, Plan, Recovery, RecoveryAxis, Space, Step
from spaces.prune import Prune, PruneRatios
from spaces.ranks import Factorize, Ranks
from spaces.trace import trace

__all__ = [
    "Anatomy",
    "Axis",
    "BitWidths",
    "Branch",
    "Depth",
    "Distill",
    "Factorize",
    "Imitate",
    "Imitations",
    "KMeans",
    "Layer",
    "Magnitude",
    "Plan",
    "PowersOfTwo",
    "Prune",
    "PruneRatios",
    "Quantize",
    "Ranks",
    "Recovery",
    "RecoveryAxis",
    "SecondOrder",
    "Skip",
    "Space",
    "SpatialSvd",
    "Step",
    "Svd",
    "Taylor",
    "Temperatures",
    "Tucker2",
    "Uniform",
    "deployed",
    "opened",
    "trace",
]
