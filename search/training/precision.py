"""Train faster on a GPU: mixed precision, and the memory layout that its convolutions prefer."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor

IMAGE_DIMENSIONS = 4  # of a batch of images (B, C, H, W), which can be channels-last


class Precision:
    """How one network is trained on its device: with 32-bit floats on a CPU, with mixed precision on a GPU.

    On a GPU, layers compute with bfloat16, or with float16 and scaled losses where the GPU has no bfloat16
    (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2); weights and losses stay 32-bit floats. Images are
    channels-last there.
    On a CPU they never are: in that layout, the backward pass of a strided 1x1 convolution on fewer than 8 channels (16
    with AVX-512) writes beyond its memory (oneDNN issue 6035), and pruned networks have such layers.

    Parameters
    ----------
    device
        Device of the network.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._dtype = (
            torch.bfloat16 if self._gpu and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        )
        self._layout = torch.channels_last if self._gpu else torch.contiguous_format
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._gpu and self._dtype == torch.float16)

    def prepare(self, model: nn.Module) -> None:
        """Set the memory layout of a network, in place."""
        model.to(memory_format=self._layout)

    def finish(self, model: nn.Module) -> None:
        """Set the usual memory layout of a network, in place; files of weights need it."""
        model.to(memory_format=torch.contiguous_format)

    def laid_out(self, inputs: Tensor) -> Tensor:
        """Return inputs in the memory layout of the network."""
        return (
            inputs.contiguous(memory_format=self._layout) if inputs.dim() == IMAGE_DIMENSIONS else inputs.contiguous()
        )

    def forward(self) -> AbstractContextManager[object]:
        """Return a context in which layers compute with the precision."""
        return torch.autocast("cuda", self._dtype) if self._gpu else contextlib.nullcontext()

    def full(self, output: Tensor) -> Tensor:
        """Return an output with 32-bit floats, in which losses are computed."""
        return output.float() if output.dtype in {torch.float16, torch.bfloat16} else output

    def step(self, loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer, largest_norm: float) -> None:
        """Compute the gradients of the loss, clip them to a norm, and take one step of the optimizer."""
        optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), largest_norm)
        self._scaler.step(optimizer)
        self._scaler.update()
