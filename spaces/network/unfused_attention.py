"""Open modules that read the weights of their linear layers, so that the layers are called and can be acted upon.

`nn.MultiheadAttention` and torchvision's shifted windows hand the weights to one function; no axis sees a layer there,
and one that it would replace is never called. Here they are written with layers, queries, keys and values apart: the
channels of queries go with those of keys, and those of values with the inputs of what follows.

Legend: `B` examples, `N` tokens, `C` channels, `L S` tokens of queries and keys, `h w` tokens along a window.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from spaces.network.layers import count_holders
from spaces.network.tensors import tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

TOLERANCE = 1e-4  # relative to the largest output; both do the same sums, in another order
ELSEWHERE = -100.0  # added to the score of tokens that only the shift made neighbours, as such networks are trained
WINDOWS = ("torchvision.models.swin_transformer", ("ShiftedWindowAttention", "ShiftedWindowAttentionV2"))


def unfuse_attention(model: nn.Module, example: Tensor) -> nn.Module:
    """Return a network that answers the same, and in which attention calls its layers.

    Parameters
    ----------
    model
        The network; it is not changed.
    example
        A batch of inputs on the device of the network, shape (B, ...); the first two are used to compare the answers.

    Returns
    -------
    nn.Module
        A new network, or `model` itself if there is nothing to open. What cannot be opened stays: attention with
        `add_bias_kv` or `add_zero_attn`, with hooks, with parameters that another module holds too, of a class derived
        from torch's; and what answers differently on the example.
    """
    names = _closed(model)
    if not names:
        return model
    try:
        wanted = _answer(model, example)
    except Exception:  # noqa: BLE001 - `trace` runs it again and words what the user can mend
        return model
    new = _opened(model, names)
    if _agrees(new, example, wanted):
        return new
    good = [alike for alike in names if _agrees(_opened(model, [alike]), example, wanted)]
    return _opened(model, good) if good else model


def _closed(model: nn.Module) -> list[list[str]]:
    """Return the names of each module that can be opened; several where it is used in several places."""
    holding = count_holders(model)
    names: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        if _opening(module) is None:
            continue
        hooked = any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())  # noqa: SLF001
        alone = all(holding[id(parameter)] == 1 for parameter in module.parameters())
        if alone and not hooked:
            names[id(module)].append(name)
    return list(names.values())


def _opening(module: nn.Module) -> type[Attention | WindowAttention] | None:
    kind = type(module)
    if isinstance(module, nn.MultiheadAttention) and kind is nn.MultiheadAttention:
        return None if module.bias_k is not None or module.add_zero_attn else Attention
    # by name: torchvision is not imported for networks that have nothing of it
    return WindowAttention if kind.__module__ == WINDOWS[0] and kind.__name__ in WINDOWS[1] else None


def _opened(model: nn.Module, names: Sequence[Sequence[str]]) -> nn.Module:
    root = nn.ModuleList([copy.deepcopy(model)])  # so that the network itself has a name
    for alike in names:
        paths = [f"0.{name}" if name else "0" for name in alike]
        module: Any = root.get_submodule(paths[0])
        opening = _opening(module)
        assert opening is not None
        with torch.enable_grad():  # without it, parts of a parameter would seem frozen
            new = opening(module).train(module.training)
        for path in paths:
            root.set_submodule(path, new)
    for encoder in root.modules():
        if isinstance(encoder, nn.TransformerEncoder) and any(
            isinstance(part, Attention) for part in encoder.modules()
        ):
            encoder.use_nested_tensor = False  # its fast path reads weights that are no longer there
    return root[0]


def _answer(model: nn.Module, example: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return tensors(copy.deepcopy(model).eval()(example[:2]))


def _agrees(model: nn.Module, example: Tensor, wanted: Sequence[Tensor]) -> bool:
    try:
        got = _answer(model, example)
    except Exception:  # noqa: BLE001 - such as code that reads the weights by their old names
        return False
    return [y.shape for y in got] == [y.shape for y in wanted] and all(
        float((ours.float() - theirs.float()).abs().max()) <= TOLERANCE * float(theirs.float().abs().max())
        for ours, theirs in zip(got, wanted, strict=True)
        if theirs.numel()
    )


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a layer with copies of these numbers."""
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return layer


def _heads(x_BNC: Tensor, heads: int) -> Tensor:
    """Split the channels into heads, shape (..., heads, N, channels of one)."""
    apart: Tensor = x_BNC.unflatten(-1, (heads, -1))
    return apart.transpose(-3, -2)


def _joined(x: Tensor) -> Tensor:
    """Undo `_heads`, whatever number of channels a head has left."""
    return x.transpose(-3, -2).flatten(-2)


def _windows(x: Tensor, h: int, w: int) -> Tensor:
    """Cut a map (B, rows, columns, ...) into windows, shape (B, windows, h * w, ...)."""
    cut: Tensor = x.unflatten(2, (-1, w)).unflatten(1, (-1, h))
    return cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _map(x: Tensor, down: int, h: int, w: int) -> Tensor:
    """Undo `_windows`, of which so many lie one below the other."""
    cut: Tensor = x.unflatten(2, (h, w)).unflatten(1, (down, -1))
    return cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class Attention(nn.Module):
    """What `nn.MultiheadAttention` computes (Vaswani et al. 2017, arXiv:1706.03762, §3.2.2), calling its layers.

    Parameters
    ----------
    given
        The module whose weights and settings are copied.
    """

    def __init__(self, given: nn.MultiheadAttention) -> None:
        super().__init__()
        packed = given.in_proj_weight
        apart = (given.q_proj_weight, given.k_proj_weight, given.v_proj_weight) if packed is None else packed.chunk(3)
        biases = (None,) * 3 if given.in_proj_bias is None else given.in_proj_bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, apart, biases)
        self.out_proj = _linear(given.out_proj.weight, given.out_proj.bias)
        self.embed_dim = given.embed_dim
        self.num_heads = given.num_heads
        self.dropout = given.dropout
        self.batch_first = given.batch_first
        self.scale = given.head_dim**-0.5  # of all channels, also where some are gone
        self.in_proj_bias = None  # tells torch's encoder layers that they must call this module

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
        """Return what `nn.MultiheadAttention.forward` does; the weights of attention only if they are asked for."""
        if is_causal and attn_mask is None:
            raise ValueError("is_causal says what attn_mask is, but there is no attn_mask: give both")
        batched = query.dim() == 3  # noqa: PLR2004 - examples, tokens, channels
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        bias = self._bias(attn_mask, key_padding_mask, query)
        q = _heads(self.q_proj(query), self.num_heads)
        k = _heads(self.k_proj(key), self.num_heads)
        v = _heads(self.v_proj(value), self.num_heads)
        dropout, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            weights = F.dropout((scores if bias is None else scores + bias).softmax(-1), dropout)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=self.scale)
        out = self.out_proj(_joined(mixed))
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _bias(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor) -> Tensor | None:
        """Return what is added to the scores, of a shape that broadcasts to (B, heads, L, S)."""
        masks = []
        if attn_mask is not None:  # (L, S), or (B * heads, L, S)
            masks.append(attn_mask if attn_mask.dim() == 2 else attn_mask.unflatten(0, (-1, self.num_heads)))  # noqa: PLR2004
        if key_padding_mask is not None:  # (B, S)
            masks.append(key_padding_mask[:, None, None])
        parts = [
            torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask
            for mask in masks
        ]
        return sum(parts[1:], parts[0]) if parts else None


class WindowAttention(nn.Module):
    """Attention within shifted windows, calling its layers.

    Liu et al. 2021 (arXiv:2103.14030, §3.2): windows, their cyclic shift, a bias for each distance of two tokens. With
    a logit scale it is the second version, Liu et al. 2022 (arXiv:2111.09883, §3.2-3.3): cosines instead of products,
    and the biases from a small network on the logarithms of the distances.

    Parameters
    ----------
    given
        Torchvision's module, whose weights and settings are copied.
    """

    def __init__(self, given: Any) -> None:  # noqa: ANN401 - torchvision's class, which is not imported here
        super().__init__()
        self.logit_scale: Tensor  # these two are no parameters any more where the branch is left out
        self.relative_position_bias_table: Tensor
        weights = given.qkv.weight.chunk(3)
        bias_q, bias_k, bias_v = (None,) * 3 if given.qkv.bias is None else given.qkv.bias.chunk(3)
        self.cosine = "logit_scale" in dict(given.named_parameters(recurse=False))
        bias_k = None if self.cosine else bias_k  # it is held at zero there
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, (bias_q, bias_k, bias_v))
        self.proj = _linear(given.proj.weight, given.proj.bias)
        self.window_size, self.shift_size = tuple(given.window_size), tuple(given.shift_size)
        self.num_heads = given.num_heads
        self.attention_dropout, self.dropout = given.attention_dropout, given.dropout
        self.scale = (given.proj.in_features // given.num_heads) ** -0.5  # of all channels, also where some are gone
        for name, tensor in chain(given.named_parameters(recurse=False), given.named_buffers(recurse=False)):
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, copy.deepcopy(tensor))
            else:
                self.register_buffer(name, tensor.clone())
        if self.cosine:
            self.cpb_mlp = copy.deepcopy(given.cpb_mlp)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Attend within each window of the map, which is padded to whole windows."""
        (_, height, width, _), (h, w) = x_BHWC.shape, self.window_size
        x = F.pad(x_BHWC, (0, 0, 0, -width % w, 0, -height % h))
        rows, columns = x.shape[1:3]
        down, right = (0 if h >= rows else self.shift_size[0]), (0 if w >= columns else self.shift_size[1])
        x = x.roll((-down, -right), (1, 2)) if down or right else x
        bias = self._distances() + self._borders(rows, columns, down, right, x)
        x = _map(self._attend(_windows(x, h, w), bias), rows // h, h, w)
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
        return F.dropout(self.proj(_joined(weights @ v)), self.dropout, self.training)

    def _distances(self) -> Tensor:
        """Return what the distance of two tokens adds to their score, shape (heads, h * w, h * w)."""
        if self.cosine:
            table = self.cpb_mlp(self.get_buffer("relative_coords_table")).flatten(0, -2)
        else:
            table = self.relative_position_bias_table
        tokens = math.prod(self.window_size)
        bias: Tensor = table[self.get_buffer("relative_position_index")].reshape(tokens, tokens, -1).permute(2, 0, 1)
        return bias.sigmoid() * 16 if self.cosine else bias

    def _borders(self, rows: int, columns: int, down: int, right: int, like: Tensor) -> Tensor:
        """Return what keeps tokens apart that only the shift made neighbours, shape (windows or 1, 1, h * w, h * w)."""
        if not (down or right):
            return like.new_zeros(1, 1, 1, 1)
        h, w = self.window_size
        place_H, place_W = (torch.arange(size, device=like.device) for size in (rows, columns))
        # the last windows hold, in each direction, the end of the map and what the shift brought behind it: its start
        part_H, part_W = place_H >= rows - down, place_W >= columns - right
        part = _windows((2 * part_H[:, None].int() + part_W.int())[None], h, w)[0]
        apart = part[:, None, :, None] != part[:, None, None, :]
        return torch.zeros_like(apart, dtype=like.dtype).masked_fill(apart, ELSEWHERE)
