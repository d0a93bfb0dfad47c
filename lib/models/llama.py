"""Llama and its like: grouped queries and gated MLPs. SmolLM and TinyLlama are Llamas."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lib.models.families import register
from lib.models.transformer import Transformer


@register
class Llama(Transformer):
    """Several heads of queries share one of keys and values."""

    model_type, config_class, model_class = "llama", LlamaConfig, LlamaForCausalLM

    @classmethod
    def settings(cls, d_model: int, context_length: int, tied: bool) -> dict[str, Any]:
        return dict(
            num_attention_heads=4, num_key_value_heads=2, head_dim=d_model // 4, intermediate_size=8 * d_model // 3,
            max_position_embeddings=2 * context_length, tie_word_embeddings=tied,
        )  # fmt: skip


@register
class Mistral(Llama):
    """All layers may be confined to a window."""

    model_type, config_class, model_class = "mistral", MistralConfig, MistralForCausalLM

    def window(self, layer: int) -> int | None:
        return self.model.original_model.config.sliding_window


@register
class Qwen2(Llama):
    """Queries, keys and values have biases; single layers may be confined to a window."""

    model_type, config_class, model_class = "qwen2", Qwen2Config, Qwen2ForCausalLM

    def window(self, layer: int) -> int | None:
        return self.blocks[layer].attn.sliding_window


@register
class Qwen3(Qwen2):
    """Queries and keys are normed head by head; there are no biases."""

    model_type, config_class, model_class = "qwen3", Qwen3Config, Qwen3ForCausalLM

    def normed(self, layer: int, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        attn = self.blocks[layer].attn
        return attn.q_norm(q), attn.k_norm(k)
