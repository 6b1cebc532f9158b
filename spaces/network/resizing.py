"""Resize the input of a network before its first layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class InputResize:
    """Resizes images bilinearly, which every runtime computes alike; it is a hook that runs before the network.

    Attributes
    ----------
    size
        Height and width that the network computes with; inputs that already have this size are not changed.
    in_file
        Whether an exported file takes inputs of the original size; otherwise it takes inputs of this size.
    """

    size: tuple[int, ...]
    in_file: bool = True

    def resized(self, inputs: Tensor) -> Tensor:
        """Return inputs (B, C, H, W) at this size."""
        if tuple(inputs.shape[2:]) == self.size:
            return inputs
        return F.interpolate(inputs, self.size, mode="bilinear", align_corners=False)

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the arguments of the network with the first one resized."""
        return self.resized(inputs[0]), *inputs[1:]


def resize_input(model: nn.Module, resize: InputResize) -> None:
    """Let a network resize its input from now on, in place; the names of its modules and its weights do not change.

    Costs and exports read the attribute `input_resize` (`objectives.layers.ResizesInput`).
    """
    model.input_resize = resize  # type: ignore[assignment]
    model.register_forward_pre_hook(resize)
