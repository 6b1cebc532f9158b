"""Whether a network takes images of other sizes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from objectives.runtimes import ExportError
from objectives.runtimes.image_sizes import (
    PICTURE_DIMENSIONS,
    image_sizes,
    resized,
    resized_image,
    size_dimensions,
    size_words,
)
from objectives.trees import map_tensors, run, shape_words
from search.study.console import console
from spaces.network.messages import first_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from objectives.runtimes.image_sizes import Size
    from objectives.trees import Tree

OTHER_SIZES = (2, 1), (1, 2)  # times height and width, at which a file that takes any size is tried (chosen)


def at_other_sizes(inputs: Tree, sizes: Sequence[tuple[int, int]], *, channels_last: bool, more: int = 0) -> list[Tree]:
    """Return inputs whose images have so many times the height and the width, and some rows and columns more."""

    def larger(tensor: torch.Tensor, factors: tuple[int, int]) -> torch.Tensor:
        if tensor.dim() not in PICTURE_DIMENSIONS:
            return tensor
        own = (tensor.shape[at] for at in size_dimensions(channels_last=channels_last))
        height, width = (a * b + more for a, b in zip(own, factors, strict=True))
        return resized_image(tensor, (height, width), channels_last=channels_last)

    return [map_tensors(inputs, functools.partial(larger, factors=one)) for one in sizes]


def ensure_any_size(network: nn.Module, inputs: Tree, *, channels_last: bool) -> None:
    """Check that a network takes images of other sizes.

    Raises
    ------
    ExportError
        If it does not.
    """
    if not image_sizes(inputs):
        raise ExportError(f"--dynamic-size is about images, but the network takes {shape_words(inputs)}")
    for larger in at_other_sizes(inputs, OTHER_SIZES, channels_last=channels_last):
        try:
            with torch.no_grad():
                run(network, larger)
        except Exception as error:
            raise ExportError(
                f"a network must take images of other sizes for --dynamic-size, but with {shape_words(larger)} it "
                f"fails: {first_line(error)}"
            ) from error


def further_sizes(
    network: nn.Module, inputs: Tree, sizes: tuple[Size, ...], *, channels_last: bool
) -> tuple[Size, ...]:
    """Return those of the sizes that inputs do not have, after checking that a network takes images of each.

    Raises
    ------
    ExportError
        If it does not, or its images have not all one size.
    """
    own = image_sizes(inputs, channels_last=channels_last)
    if sizes and len(own) != 1:
        raise ExportError(f"--sizes is about images, all of one size, but the network takes {shape_words(inputs)}")
    for size in sizes:
        if size in own:
            console.print(f"the file takes images of {size_words(size)}, the size of the study, also without --sizes")
            continue
        try:
            with torch.no_grad():
                run(network, resized(inputs, size, channels_last=channels_last))
        except Exception as error:
            raise ExportError(
                f"a network must take images of {size_words(size)} for --sizes, but fails: {first_line(error)}"
            ) from error
    return tuple(size for size in sizes if size not in own)


def runs(network: nn.Module, inputs: Tree) -> bool:
    """Return whether a network takes inputs."""
    try:
        with torch.no_grad():
            run(network, inputs)
    except Exception:  # noqa: BLE001 - a network may refuse sizes in any way
        return False
    return True
