"""GPT-2: learnt positions, attention and then an MLP."""

from __future__ import annotations

from typing import Any

from transformers import GPT2Config, GPT2LMHeadModel, PretrainedConfig

from lib.models.families import register
from lib.models.transformer import Transformer


@register
class GPT2(Transformer):
    """Nothing is rotated: what attention knows of positions, the embeddings brought."""

    model_type, config_class, model_class = "gpt2", GPT2Config, GPT2LMHeadModel
    rotary = False

    @classmethod
    def n_neurons(cls, config: PretrainedConfig) -> int:
        return config.n_inner or 4 * config.n_embd

    @classmethod
    def settings(cls, d_model: int, context_length: int, tied: bool) -> dict[str, Any]:
        return dict(n_head=4, n_positions=2 * context_length, tie_word_embeddings=tied)
