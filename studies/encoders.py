"""Encoders of the `transformers` package from small configurations, with random weights and one tensor as output."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WIDTH, HEADS, LAYERS, INNER, WORDS = 64, 4, 3, 128, 200  # of every network
_BERT = {
    "vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "intermediate_size": INNER, "max_position_embeddings": 64,
}  # fmt: skip
# model, configuration, its settings
CONFIGURATIONS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", _BERT),
    "distilbert": ("DistilBertModel", "DistilBertConfig", {
        "vocab_size": WORDS, "dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": INNER,
        "max_position_embeddings": 64,
    }),
    "vit": ("ViTModel", "ViTConfig", {
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": INNER,
        "image_size": 32, "patch_size": 8,
    }),
    "swin": ("SwinModel", "SwinConfig", {
        "image_size": 64, "patch_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
    }),
    "segformer": ("SegformerModel", "SegformerConfig", {
        "num_encoder_blocks": 3, "depths": [1, 1, 2], "sr_ratios": [4, 2, 1], "hidden_sizes": [16, 32, 64],
        "patch_sizes": [7, 3, 3], "strides": [4, 2, 2], "num_attention_heads": [1, 2, 4], "mlp_ratios": [2, 2, 2],
    }),
    "wav2vec2": ("Wav2Vec2Model", "Wav2Vec2Config", {
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": INNER,
        "conv_dim": (32, 32, 32), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2),
        "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    }),
    "whisper": ("WhisperModel", "WhisperConfig", {
        "d_model": WIDTH, "encoder_layers": LAYERS, "encoder_attention_heads": HEADS, "encoder_ffn_dim": INNER,
        "decoder_layers": 1, "decoder_attention_heads": HEADS, "decoder_ffn_dim": INNER, "vocab_size": WORDS,
        "max_source_positions": 40, "num_mel_bins": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }),
}  # fmt: skip
IMAGE_SIZES = {"vit": 32, "swin": 64, "segformer": 64}  # pixels


class Encoder(nn.Module):
    """An encoder with a linear layer on the mean of its last states, as in a classification."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(width, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the class scores of token ids, images, waves or spectra, shape (B, 10)."""
        states = self.encoder(inputs).last_hidden_state
        states = states.flatten(2).transpose(1, 2) if states.dim() == 4 else states  # noqa: PLR2004 - a map
        scores: Tensor = self.head(states.mean(1))
        return scores


def encoder(name: str, attention: str = "sdpa") -> nn.Module:
    """Return the encoder of this name with random weights; `attention` is `sdpa` or `eager`."""
    package: Any = importlib.import_module("transformers")
    model, configuration, settings = CONFIGURATIONS[name]
    made = getattr(package, model)(getattr(package, configuration)(**settings, attn_implementation=attention))
    made = made.encoder if name == "whisper" else made
    for module in made.modules():
        if parametrize.is_parametrized(module, "weight"):  # the positions of wav2vec 2.0
            parametrize.remove_parametrizations(module, "weight")
    if hasattr(made, "pooler"):
        made.pooler = None  # reads the first state, which the classification does not
    return Encoder(made, 48 if name == "swin" else WIDTH).eval()


def encoder_inputs(name: str, count: int = 2) -> Tensor:
    """Return random inputs of the encoder of this name."""
    make: Callable[..., Tensor] = torch.randn
    if name in {"bert", "distilbert"}:
        return torch.randint(3, WORDS, (count, 12))
    if name in IMAGE_SIZES:
        return make(count, 3, IMAGE_SIZES[name], IMAGE_SIZES[name])
    return make(count, 1600) if name == "wav2vec2" else make(count, 16, 80)
