"""GPT-NeoX: Pythia's family."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from lib.models.families import register
from lib.models.transformer import Transformer


@register
class GPTNeoX(Transformer):
    """Attention and MLP read the same residual stream, unless the configuration says otherwise."""

    model_type, config_class, model_class = "gpt_neox", GPTNeoXConfig, GPTNeoXForCausalLM

    @classmethod
    def settings(cls, d_model: int, context_length: int, tied: bool) -> dict[str, Any]:
        return dict(
            num_attention_heads=4, intermediate_size=4 * d_model, rotary_pct=0.25,
            max_position_embeddings=2 * context_length, tie_word_embeddings=tied,
        )  # fmt: skip

    def after(self, layer: int, resid: Float[Tensor, "... d_model"], attention: Tensor) -> Float[Tensor, "... d_model"]:
        if not self.model.original_model.config.use_parallel_residual:
            return super().after(layer, resid, attention)
        block = self.blocks[layer]
        return resid + attention + block.mlp(block.ln2(resid))
