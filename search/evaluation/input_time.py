"""How long a network computes on an input."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from objectives.data import BATCH
from objectives.outputs import device_of, outputs
from objectives.trees import at, length, moved

if TYPE_CHECKING:
    from torch import nn

    from objectives.trees import Tree

TIMED_INPUTS = 16  # inputs whose forward pass is timed first (chosen)


def input_seconds_of(model: nn.Module, example: Tree, enough: float) -> float:
    """Return the CPU seconds of an input in a forward pass that takes `enough` of them, or is one of a whole batch.

    In shorter passes of fewer inputs most of the time is that of calling the layers.

    Parameters
    ----------
    model
        The network; left in evaluation mode.
    example
        Inputs, shape (N, ...).
    enough
        CPU seconds of a pass.
    """
    count, most = TIMED_INPUTS, min(BATCH, length(example) or 1)
    model.eval()
    while True:
        inputs = moved(at(example, slice(count)), device_of(model))
        started = time.process_time()
        outputs(model, inputs)
        seconds = time.process_time() - started
        if seconds >= enough or count >= most:
            return seconds / min(count, most)
        count *= 2
