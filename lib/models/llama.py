"""Llama and its like: grouped queries and gated MLPs. SmolLM and TinyLlama are Llamas."""

from __future__ import annotations

from torch import Tensor

from lib.models.families import register
from lib.models.transformer import Transformer


@register
class Llama(Transformer):
    """Several heads of queries share one of keys and values."""

    model_type = "llama"


@register
class Mistral(Llama):
    """All layers may be confined to a window."""

    model_type = "mistral"

    def window(self, layer: int) -> int | None:
        return self.model.original_model.config.sliding_window


@register
class Qwen2(Llama):
    """Queries, keys and values have biases; single layers may be confined to a window."""

    model_type = "qwen2"

    def window(self, layer: int) -> int | None:
        return self.blocks[layer].attn.sliding_window


@register
class Qwen3(Qwen2):
    """Queries and keys are normed head by head; there are no biases."""

    model_type = "qwen3"

    def normed(self, layer: int, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        attn = self.blocks[layer].attn
        return attn.q_norm(q), attn.k_norm(k)
