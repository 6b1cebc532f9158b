"""The files of trained weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import safetensors.torch
from safetensors import SafetensorError

from search.study.files import Damaged, check_digest, sha256, whole
from spaces.network.messages import first_line

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn


def state_path(folder: Path, number: int) -> Path:
    """Return the path of the trained weights of a trial."""
    return folder / "candidates" / f"{number}.safetensors"


def save_state(model: nn.Module, path: Path) -> str:
    """Write the tensors of a network to a safetensors file, whole or not at all; return its SHA-256."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    with whole(path) as unfinished:
        safetensors.torch.save_file(tensors, unfinished)
        return sha256(unfinished)


def load_state(path: Path, digest: str | None = None) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file.

    Parameters
    ----------
    path
        The file.
    digest
        The SHA-256 that was recorded when it was written; None if there is no record, as in version 0.1.

    Raises
    ------
    Damaged
        If the file is not what was written.
    OSError
        If it cannot be read.
    """
    check_digest(path, digest)
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise Damaged(f"{path} is damaged: it is no safetensors file ({first_line(error)})") from error


def restore(model: nn.Module, path: Path, digest: str | None = None) -> None:
    """Load the weights in a file into a network, in place; the parameters are as in `load_state`.

    Raises
    ------
    Damaged
        If the file is not what was written, or holds the weights of another network.
    """
    state = load_state(path, digest)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise Damaged(f"{path} holds the weights of another network: {first_line(error)}") from error
