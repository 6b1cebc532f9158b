"""Spaces and plans: which compressions may be chosen for a network, and the steps that apply them.

A `Space` holds axes in order. For each trial every axis proposes one frozen `Step`; these steps and a `Recovery` make a
`Plan`, which turns the teacher into a smaller network.
"""

from spaces.axes.bits import BitWidths, Quantize
from spaces.axes.decompositions import SpatialSvd, Svd, Tucker2
from spaces.axes.depth import Depth, Skip
from spaces.axes.distill import Distill, Imitate, Imitations, Temperatures
from spaces.axes.grids import KMeans, PowersOfTwo, Uniform
from spaces.axes.importance import Magnitude, SecondOrder, Taylor
from spaces.axes.prune import Prune, PruneRatios
from spaces.axes.ranks import Factorize, Ranks
from spaces.axes.resolution import Resize, Resolution
from spaces.dependency.trace import trace
from spaces.network.anatomy import Anatomy, Branch, Layer
from spaces.network.deploy import deployed
from spaces.network.plain_layers import with_plain_layers
from spaces.network.unfused_attention import unfuse_attention
from spaces.plan import Axis, Plan, Recovery, RecoveryAxis, Space, Step

opened = unfuse_attention  # its name in version 0.1

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
    "Resize",
    "Resolution",
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
    "unfuse_attention",
    "with_plain_layers",
]
