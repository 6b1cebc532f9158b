from .accuracy import Agreement, Loss, Top1, TopK
from .arena import ArenaBytes
from .bops import Bops
from .data import Data
from .examples import Examples
from .frames import FrameTime, fps
from .latency import Latency, LatencyShare
from .macs import Macs
from .objective import Limit, Metric, Objective
from .outputs import answers
from .parameters import Parameters
from .preprocessing import LogMel, Preprocessing
from .scores import Score
from .size import SizeBytes

__all__ = [
    "Agreement",
    "ArenaBytes",
    "Bops",
    "Data",
    "Examples",
    "FrameTime",
    "Latency",
    "LatencyShare",
    "Limit",
    "LogMel",
    "Loss",
    "Macs",
    "Metric",
    "Objective",
    "Parameters",
    "Preprocessing",
    "Score",
    "SizeBytes",
    "Top1",
    "TopK",
    "answers",
    "fps",
]
