"""Objectives that are measured on a finished network, and the runtimes that execute its file."""

from objectives.accuracy import Agreement, Loss, Top1, TopK
from objectives.answers import answers
from objectives.bops import Bops
from objectives.data import Data
from objectives.examples import Examples
from objectives.frames import FrameTime, fps
from objectives.latency import Latency, LatencyShare
from objectives.macs import Macs
from objectives.objective import Limit, Metric, Objective
from objectives.parameters import Parameters
from objectives.scores import Score
from objectives.size import SizeBytes

__all__ = [
    "Agreement",
    "Bops",
    "Data",
    "Examples",
    "FrameTime",
    "Latency",
    "LatencyShare",
    "Limit",
    "Loss",
    "Macs",
    "Metric",
    "Objective",
    "Parameters",
    "Score",
    "SizeBytes",
    "Top1",
    "TopK",
    "answers",
    "fps",
]
