from .axes.bits import BitWidths, Quantize
from .axes.decompositions import SpatialSvd, Svd, Tucker2
from .axes.depth import Depth, Skip
from .axes.distill import Distill, Imitate, Imitations, Temperatures
from .axes.grids import KMeans, PowersOfTwo, Uniform
from .axes.importance import Magnitude, SecondOrder, Taylor
from .axes.prune import Prune, PruneRatios
from .axes.ranks import Factorize, Ranks
from .axes.resolution import Resize, Resolution
from .dependency.trace import trace
from .network.anatomy import Anatomy, Branch, Layer
from .network.deploy import deployed
from .network.plain_layers import with_plain_layers
from .network.unfused_attention import opened, unfuse_attention
from .plan import Axis, Plan, Recovery, RecoveryAxis, Space, Step

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
