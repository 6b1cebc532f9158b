"""Show all layers of a network as torch's own modules, which axes can see and replace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spaces.network.free_widths import free_widths
from spaces.network.own_layers import show_own_layers
from spaces.network.separate_padding import separate_padding
from spaces.network.unfolded_recurrence import unfold_recurrence
from spaces.network.unfused_attention import unfuse_attention

if TYPE_CHECKING:
    from torch import nn

    from spaces.network.tensors import Inputs


def with_plain_layers(model: nn.Module, example: Inputs) -> nn.Module:
    """Return a network with the same outputs whose attention and recurrent layers consist of linear layers.

    Its convolutions do not pad their own inputs, modules that apply a weight of their own are torch's layers, and an
    `nn.Transformer` runs at any width.

    Parameters
    ----------
    model
        The network; it is not changed.
    example
        A batch of inputs on the device of the network, shape (B, ...); the outputs are compared on the first two.

    Returns
    -------
    nn.Module
        A new network, or `model` itself if there is nothing to replace.
    """
    for replace in (show_own_layers, free_widths, unfuse_attention, unfold_recurrence, separate_padding):
        model = replace(model, example)
    return model
