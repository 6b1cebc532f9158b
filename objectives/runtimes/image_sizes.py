"""Images of other sizes, as words, and as tensors."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

import torch

from objectives.trees import Tree, leaves, map_tensors

if TYPE_CHECKING:
    from torch import Tensor

PICTURE_DIMENSIONS = 4, 5  # of a batch of images, and of videos or volumes
_WORDS = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")

Size = tuple[int, int]  # height and width


def sizes_of(words: str) -> tuple[Size, ...]:
    """Return the heights and widths that words such as ``64x64,96x128`` name, each once; none for no words.

    Raises
    ------
    ValueError
        If they cannot be read.
    """
    found = [_WORDS.fullmatch(word.strip().lower()) for word in words.split(",") if words.strip()]
    sizes = [(int(one[1]), int(one[2])) for one in found if one]
    if len(sizes) < len(found):
        raise ValueError(f"sizes of images must be height x width, such as 64x64,96x128, but got {words!r}")
    return tuple(dict.fromkeys(sizes))


def size_words(size: Size) -> str:
    """Return a size in words: ``96x128``, height x width."""
    return f"{size[0]}x{size[1]}"


def size_dimensions(*, channels_last: bool) -> tuple[int, int]:
    """Return the dimensions of the height and the width of images."""
    return (-3, -2) if channels_last else (-2, -1)


def image_sizes(inputs: Tree, *, channels_last: bool = False) -> set[Size]:
    """Return the heights and widths of the images in a batch."""
    height, width = size_dimensions(channels_last=channels_last)
    images = [tensor for tensor in leaves(inputs) if tensor.dim() in PICTURE_DIMENSIONS]
    return {(tensor.shape[height], tensor.shape[width]) for tensor in images}


def resized(inputs: Tree, size: Size, *, channels_last: bool = False) -> Tree:
    """Return a batch whose images have another height and width, each pixel that of the nearest one; codes stay codes.

    Parameters
    ----------
    inputs
        The batch; images are (B, C, H, W) and videos or volumes (B, C, T, H, W). All else stays as it is.
    size
        The height and width.
    channels_last
        Whether their channels are the last dimension.
    """
    return map_tensors(inputs, functools.partial(resized_image, size=size, channels_last=channels_last))


def resized_image(tensor: Tensor, size: Size, *, channels_last: bool = False) -> Tensor:
    """Return one tensor of a batch as `resized` does."""
    if tensor.dim() not in PICTURE_DIMENSIONS:
        return tensor
    for dimension, wanted in zip(size_dimensions(channels_last=channels_last), size, strict=True):
        nearest = torch.arange(wanted, device=tensor.device) * tensor.shape[dimension] // wanted
        tensor = tensor.index_select(dimension, nearest)
    return tensor
