"""Replace fused attention modules by unfused ones, whose linear layers are called and can be compressed.

`nn.MultiheadAttention` and torchvision's shifted-window attention pass the weights of their layers to one function.
The layers are never called, so no axis can see or replace them. The modules here call separate layers for queries,
keys and values: channels of queries and keys are removed together, and channels of values together with the inputs of
the output projection.

Legend: `B` examples, `N` tokens, `C` channels, `L S` tokens of queries and keys, `h w` tokens along a window.
"""

from __future__ import annotations

import copy
import math
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from spaces.network.layers import linear_of, replace_module
from spaces.network.rewriting import modules_to_rewrite, rewritten

if TYPE_CHECKING:
    from spaces.network.tensors import Inputs

SHIFT_MASK = -100.0  # added to the score of tokens that are neighbours only by the shift; the value of torchvision
WINDOW_CLASSES = ("torchvision.models.swin_transformer", ("ShiftedWindowAttention", "ShiftedWindowAttentionV2"))


def unfuse_attention(model: nn.Module, example: Inputs) -> nn.Module:
    """Return a network with the same outputs in which attention calls its linear layers.

    Parameters
    ----------
    model
        The network; it is not changed.
    example
        A batch of inputs on the device of the network, shape (B, ...); the outputs are compared on the first two.

    Returns
    -------
    nn.Module
        A new network, or `model` itself if there is nothing to unfuse. A module is kept as it is if it has hooks, or
        parameters that another module holds too, if its class is derived from torch's, or if unfusing it changes the
        outputs on the example.
    """
    return rewritten(
        model, example, modules_to_rewrite(model, lambda module: _unfused_class(module) is not None), _unfuse
    )


opened = unfuse_attention
"""The name of `unfuse_attention` in version 0.1."""


def _unfused_class(module: nn.Module) -> type[Attention | WindowAttention] | None:
    kind = type(module)
    if kind is nn.MultiheadAttention:
        return Attention
    # by name, so that torchvision is imported only by networks that use it
    return WindowAttention if kind.__module__ == WINDOW_CLASSES[0] and kind.__name__ in WINDOW_CLASSES[1] else None


def _unfuse(root: nn.Module, aliases: list[str]) -> None:
    """Replace one module, in place, under all its names."""
    module: Any = root.get_submodule(aliases[0])
    unfused_class = _unfused_class(module)
    assert unfused_class is not None
    with torch.enable_grad():  # chunks of a parameter require gradients only if they are enabled
        new = unfused_class(module).train(module.training)
    replace_module(root, aliases[0], new)
    for encoder in root.modules():
        if isinstance(encoder, nn.TransformerEncoder) and any(
            isinstance(part, Attention) for part in encoder.modules()
        ):
            encoder.use_nested_tensor = False  # its fast path reads weights that no longer exist


def _heads(x_BNC: Tensor, heads: int) -> Tensor:
    """Split the channels into heads, shape (..., heads, N, channels of a head)."""
    split: Tensor = x_BNC.unflatten(-1, (heads, -1))
    return split.transpose(-3, -2)


def _merge_heads(x: Tensor) -> Tensor:
    """Undo `_heads`, for any number of channels that a head has left."""
    return x.transpose(-3, -2).flatten(-2)


def _windows(x: Tensor, h: int, w: int) -> Tensor:
    """Cut a map (B, rows, columns, ...) into windows, shape (B, windows, h * w, ...)."""
    cut: Tensor = x.unflatten(2, (-1, w)).unflatten(1, (-1, h))
    return cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _merge_windows(x: Tensor, rows: int, h: int, w: int) -> Tensor:
    """Undo `_windows`; the map has this number of rows of windows."""
    cut: Tensor = x.unflatten(2, (h, w)).unflatten(1, (rows, -1))
    return cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class Attention(nn.Module):
    """Multi-head attention that calls its linear layers (Vaswani et al. 2017, arXiv:1706.03762, §3.2.2).

    Parameters
    ----------
    module
        The fused module, whose weights and settings are copied.
    """

    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None

    def __init__(self, module: nn.MultiheadAttention) -> None:
        super().__init__()
        packed = module.in_proj_weight
        weights = (
            (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight) if packed is None else packed.chunk(3)
        )
        biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = map(linear_of, weights, biases)
        self.out_proj = linear_of(module.out_proj.weight, module.out_proj.bias)
        for name in ("bias_k", "bias_v"):  # a key and a value that follow those of the tokens, shape (1, 1, C), or none
            extra: Tensor | None = getattr(module, name)
            self.register_parameter(name, None if extra is None else nn.Parameter(extra.detach().clone()))
        self.add_zero_attn = module.add_zero_attn
        self.embed_dim = module.embed_dim
        self.num_heads = module.num_heads
        self.dropout = module.dropout
        self.batch_first = module.batch_first
        self.scale = module.head_dim**-0.5  # of the unpruned head
        self.in_proj_bias = None  # makes torch's encoder layers call this module

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,  # noqa: FBT001, FBT002 - the signature is torch's
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,  # noqa: FBT001, FBT002
        is_causal: bool = False,  # noqa: FBT001, FBT002
    ) -> tuple[Tensor, Tensor | None]:
        """Return what `nn.MultiheadAttention.forward` does: the outputs, and the attention weights or None."""
        if is_causal and attn_mask is None:
            raise ValueError("is_causal describes attn_mask, but attn_mask is missing; pass both")
        batched = query.dim() == 3  # noqa: PLR2004 - examples, tokens, channels
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        bias = self._bias(attn_mask, key_padding_mask, query)
        q = _heads(self.q_proj(query), self.num_heads)
        k = _heads(self._extended(self.k_proj(key), self.bias_k), self.num_heads)
        v = _heads(self._extended(self.v_proj(value), self.bias_v), self.num_heads)
        dropout, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            weights = F.dropout((scores if bias is None else scores + bias).softmax(-1), dropout)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=self.scale)
        out = self.out_proj(_merge_heads(mixed))
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _bias(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor) -> Tensor | None:
        """Return the bias of the scores that expresses both masks, broadcastable to (B, heads, L, S)."""
        masks = []
        if attn_mask is not None:  # (L, S), or (B * heads, L, S)
            masks.append(attn_mask if attn_mask.dim() == 2 else attn_mask.unflatten(0, (-1, self.num_heads)))  # noqa: PLR2004
        if key_padding_mask is not None:  # (B, S)
            masks.append(key_padding_mask[:, None, None])
        parts = [
            torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask
            for mask in masks
        ]
        extra = (self.bias_k is not None) + self.add_zero_attn
        return F.pad(sum(parts[1:], parts[0]), (0, extra)) if parts else None

    def _extended(self, x_BSC: Tensor, extra: Tensor | None) -> Tensor:
        """Append a token of its own weights, and one of zeros, if the module has them."""
        parts = [x_BSC] if extra is None else [x_BSC, extra.expand(len(x_BSC), -1, -1)]
        if self.add_zero_attn:
            parts.append(torch.zeros_like(x_BSC[:, :1]))
        return torch.cat(parts, 1) if len(parts) > 1 else x_BSC


class WindowAttention(nn.Module):
    """Attention within shifted windows that calls its linear layers.

    Liu et al. 2021 (arXiv:2103.14030, §3.2): windows, their cyclic shift, a bias for each distance of two tokens. With
    a logit scale it is the second version, Liu et al. 2022 (arXiv:2111.09883, §3.2-3.3): cosines instead of products,
    and biases that a small network computes from the logarithms of the distances.

    Parameters
    ----------
    module
        Torchvision's module, whose weights and settings are copied.
    """

    def __init__(self, module: Any) -> None:  # noqa: ANN401 - torchvision's class, which is not imported here
        super().__init__()
        self.logit_scale: Tensor  # both become buffers where the branch is left out
        self.relative_position_bias_table: Tensor
        weights = module.qkv.weight.chunk(3)
        bias_q, bias_k, bias_v = (None,) * 3 if module.qkv.bias is None else module.qkv.bias.chunk(3)
        self.cosine = "logit_scale" in dict(module.named_parameters(recurse=False))
        bias_k = None if self.cosine else bias_k  # torchvision keeps the bias of keys at zero there
        self.q_proj, self.k_proj, self.v_proj = map(linear_of, weights, (bias_q, bias_k, bias_v))
        self.proj = linear_of(module.proj.weight, module.proj.bias)
        self.window_size, self.shift_size = tuple(module.window_size), tuple(module.shift_size)
        self.num_heads = module.num_heads
        self.attention_dropout, self.dropout = module.attention_dropout, module.dropout
        self.scale = (module.proj.in_features // module.num_heads) ** -0.5  # of the unpruned head
        for name, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, copy.deepcopy(tensor))
            else:
                self.register_buffer(name, tensor.clone())
        if self.cosine:
            self.cpb_mlp = copy.deepcopy(module.cpb_mlp)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Attend within each window of the map, after padding it to whole windows."""
        (_, height, width, _), (h, w) = x_BHWC.shape, self.window_size
        x = F.pad(x_BHWC, (0, 0, 0, -width % w, 0, -height % h))
        rows, columns = x.shape[1:3]
        down, right = (0 if h >= rows else self.shift_size[0]), (0 if w >= columns else self.shift_size[1])
        x = x.roll((-down, -right), (1, 2)) if down or right else x
        bias = self._position_bias() + self._shift_mask(rows, columns, down, right, x)
        x = _merge_windows(self._attend(_windows(x, h, w), bias), rows // h, h, w)
        x = x.roll((down, right), (1, 2)) if down or right else x
        return x[:, :height, :width].contiguous()

    def _attend(self, x: Tensor, bias: Tensor) -> Tensor:
        """Attend among the tokens of each window, shape (B, windows, h * w, C)."""
        q, k, v = (_heads(layer(x), self.num_heads) for layer in (self.q_proj, self.k_proj, self.v_proj))
        if self.cosine:
            q, k = (y / y.norm(dim=-1, keepdim=True).clamp_min(1e-12) for y in (q, k))
            scores = q @ k.transpose(-2, -1) * self.logit_scale.clamp(max=math.log(100)).exp()
        else:
            scores = (q * self.scale) @ k.transpose(-2, -1)
        weights = F.dropout((scores + bias).softmax(-1), self.attention_dropout, self.training)
        return F.dropout(self.proj(_merge_heads(weights @ v)), self.dropout, self.training)

    def _position_bias(self) -> Tensor:
        """Return the bias of the score of two tokens by their distance, shape (heads, h * w, h * w)."""
        if self.cosine:
            table = self.cpb_mlp(self.get_buffer("relative_coords_table")).flatten(0, -2)
        else:
            table = self.relative_position_bias_table
        tokens = math.prod(self.window_size)
        bias: Tensor = table[self.get_buffer("relative_position_index")].reshape(tokens, tokens, -1).permute(2, 0, 1)
        return bias.sigmoid() * 16 if self.cosine else bias

    def _shift_mask(self, rows: int, columns: int, down: int, right: int, like: Tensor) -> Tensor:
        """Return the mask of tokens that are neighbours only by the shift, shape (windows or 1, 1, h * w, h * w)."""
        if not (down or right):
            return like.new_zeros(1, 1, 1, 1)
        h, w = self.window_size
        row_H, column_W = (torch.arange(size, device=like.device) for size in (rows, columns))
        # in each direction, the last windows hold the end of the map and, after it, its start, which the shift moved
        moved_H, moved_W = row_H >= rows - down, column_W >= columns - right
        region = _windows((2 * moved_H[:, None].int() + moved_W.int())[None], h, w)[0]
        masked = region[:, None, :, None] != region[:, None, None, :]
        return torch.zeros_like(masked, dtype=like.dtype).masked_fill(masked, SHIFT_MASK)
