"""GPT-2: learnt positions, attention and then an MLP."""

from __future__ import annotations

from transformers import PretrainedConfig

from lib.models.families import register
from lib.models.transformer import Transformer


@register
class GPT2(Transformer):
    """Nothing is rotated: what attention knows of positions, the embeddings brought."""

    model_type = "gpt2"
    rotary = False

    @classmethod
    def n_neurons(cls, config: PretrainedConfig) -> int:
        return config.n_inner or 4 * config.n_embd
