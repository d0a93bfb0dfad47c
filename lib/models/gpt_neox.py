"""GPT-NeoX: Pythia's family."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from lib.models.families import register
from lib.models.transformer import Transformer


@register
class GPTNeoX(Transformer):
    """Attention and MLP read the same residual stream, unless the configuration says otherwise."""

    model_type = "gpt_neox"

    def after(self, layer: int, resid: Float[Tensor, "... d_model"], attention: Tensor) -> Float[Tensor, "... d_model"]:
        if not self.model.original_model.config.use_parallel_residual:
            return super().after(layer, resid, attention)
        block = self.blocks[layer]
        return resid + attention + block.mlp(block.ln2(resid))
