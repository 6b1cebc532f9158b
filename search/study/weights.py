"""The files of trained weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


def state_path(folder: Path, number: int) -> Path:
    """Return the path of the trained weights of a trial."""
    return folder / "candidates" / f"{number}.safetensors"


def save_state(model: nn.Module, path: Path) -> None:
    """Write the tensors of a network to a safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}, path)
