"""Checkpoints of a training that takes minutes: whoever runs it again goes on from the last one.

They hold the network, the optimizer's state and the state of the random numbers, without pickle. The order of the
examples is not stored: the batches before the checkpoint are drawn again, and not trained on. So a training that was
stopped gives the same weights, bit for bit, on the same kind of machine; except where data is streamed by a loader that
draws random numbers in the process in which dropout does.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from search.study.console import console
from search.study.files import whole
from search.study.weights import writable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

CHECKPOINT_SECONDS = 60.0  # wall time between two checkpoints of a training (chosen)
MODEL, OPTIMIZER, RANDOM, RANDOM_OF_GPU = "model/", "optimizer/", "random", "random of the GPU"


class Resumed(NamedTuple):
    """A training as it was at a checkpoint: the steps that were done, and tensors and numbers by their names."""

    steps: int
    tensors: dict[str, Tensor]
    numbers: dict[str, float]

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Set network and optimizer, in place."""
        model.load_state_dict(_below(MODEL, self.tensors))
        states: dict[int, dict[str, Any]] = {}
        for name, value in (*_below(OPTIMIZER, self.tensors).items(), *self.numbers.items()):
            index, _, key = name.partition("/")
            states.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": states})

    def restore_random_numbers(self) -> None:
        """Set the state of torch's random numbers."""
        torch.set_rng_state(self.tensors[RANDOM])
        if RANDOM_OF_GPU in self.tensors:
            torch.cuda.set_rng_state(self.tensors[RANDOM_OF_GPU])


@dataclass
class Checkpoint:
    """The checkpoint of one training.

    Parameters
    ----------
    path
        Its file.
    training
        What identifies the training: another one does not go on from it.
    saved
        Called when a checkpoint was written.
    """

    path: Path
    training: str
    saved: Callable[[], None] = lambda: None
    _last: float = field(default_factory=time.monotonic)
    _possible: bool = True

    def load(self) -> Resumed | None:
        """Return the last checkpoint of the training; None if there is none, or it is damaged."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                notes = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            found = Resumed(int(notes["steps"]), tensors, json.loads(notes["numbers"]))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            console.print(f"{self.path} is damaged ({error}); the training starts again")
            return None
        return found if notes.get("training") == self.training and RANDOM in tensors else None

    def after(self, steps: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint after a step, if the last one is old enough."""
        if not self._possible or time.monotonic() - self._last < CHECKPOINT_SECONDS:
            return
        tensors = {MODEL + name: tensor for name, tensor in model.state_dict().items()} | {
            RANDOM: torch.get_rng_state()
        }
        if torch.cuda.is_initialized():
            tensors[RANDOM_OF_GPU] = torch.cuda.get_rng_state()
        numbers = {}
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{OPTIMIZER}{index}/{name}"] = value
                elif isinstance(value, int | float):
                    numbers[f"{index}/{name}"] = value
                elif value is not None:
                    self._possible = False  # an optimizer whose state is more than that
                    return
        with whole(self.path) as unfinished:
            save_file(
                writable(tensors),
                unfinished,
                {"steps": str(steps), "numbers": json.dumps(numbers), "training": self.training},
            )
        self._last = time.monotonic()
        self.saved()

    def remove(self) -> None:
        """Remove it, once the training has ended."""
        self.path.unlink(missing_ok=True)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
