"""Replace `nn.Transformer`, which runs at no other width than the one that it states, by one that runs at any width."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from spaces.network.layers import replace_module
from spaces.network.rewriting import modules_to_rewrite, rewritten

if TYPE_CHECKING:
    from spaces.network.tensors import Inputs


class FreeTransformer(nn.Transformer):
    """An encoder and a decoder (Vaswani et al. 2017, arXiv:1706.03762, §3.1) whose inputs may have any width.

    Parameters
    ----------
    module
        Torch's module, whose encoder, decoder and settings are taken. `d_model` stays what it was, since networks
        multiply embeddings by its root.
    """

    def __init__(self, module: nn.Transformer) -> None:
        nn.Module.__init__(self)  # torch's class would draw the weights of new layers
        self.encoder, self.decoder = module.encoder, module.decoder
        self.d_model, self.nhead, self.batch_first = module.d_model, module.nhead, module.batch_first

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        src_is_causal: bool | None = None,  # noqa: FBT001
        tgt_is_causal: bool | None = None,  # noqa: FBT001
        memory_is_causal: bool = False,  # noqa: FBT001, FBT002
    ) -> Tensor:
        """Return what `nn.Transformer.forward` does."""
        memory = self.encoder(src, mask=src_mask, src_key_padding_mask=src_key_padding_mask, is_causal=src_is_causal)
        out: Tensor = self.decoder(
            tgt,
            memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
            tgt_is_causal=tgt_is_causal,
            memory_is_causal=memory_is_causal,
        )
        return out


def free_widths(model: nn.Module, example: Inputs) -> nn.Module:
    """Return a network with the same outputs whose channels can be cut around `nn.Transformer`, or `model` itself.

    Parameters
    ----------
    model
        The network; it is not changed.
    example
        A batch of inputs on the device of the network, shape (B, ...); the outputs are compared on the first two.
    """

    def free(root: nn.Module, aliases: list[str]) -> None:
        module: Any = root.get_submodule(aliases[0])
        replace_module(root, aliases[0], FreeTransformer(module).train(module.training))

    return rewritten(model, example, modules_to_rewrite(model, lambda module: type(module) is nn.Transformer), free)
