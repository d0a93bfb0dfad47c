"""GPT-NeoX: Pythia's family."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

from lib.models.families import Cache, Neurons, Transformer, register


@register
class GPTNeoX(Transformer):
    """Input: keys (before the rotation) and values of all heads. Mixer's output: the heads' outputs z."""

    model_type, config_class, model_class = "gpt_neox", GPTNeoXConfig, GPTNeoXForCausalLM

    def __init__(self, model: TransformerBridge) -> None:
        super().__init__(model)
        backbone = model.original_model.gpt_neox
        self.blocks, self.norm = backbone.layers, backbone.final_layer_norm

    @classmethod
    def settings(cls, d_model: int, context_length: int, tied: bool) -> dict[str, Any]:
        return dict(
            num_attention_heads=4, intermediate_size=4 * d_model, rotary_pct=0.25,
            max_position_embeddings=2 * context_length, tie_word_embeddings=tied,
        )  # fmt: skip

    def neurons(self, layer: int) -> Neurons:
        hook = f"blocks.{layer}.mlp.out.hook_in"
        return Neurons((hook,), lambda cache: cache[hook])

    def hooks(self, layer: int) -> list[str]:
        return [f"blocks.{layer}.attn.hook_{part}" for part in ("q", "k", "v", "z", "cos", "sin")]

    def inputs(self, cache: Cache, layer: int) -> Float[Tensor, "samples tokens 2 n_heads d_head"]:
        return torch.stack([cache[f"blocks.{layer}.attn.hook_{part}"] for part in ("k", "v")], dim=2)

    def qkv(self, layer: int, resid: Float[Tensor, "... d_model"]) -> tuple[Tensor, Tensor, Tensor]:
        block = self.blocks[layer]
        joint = block.attention.query_key_value(block.input_layernorm(resid))
        return joint.unflatten(-1, (-1, 3 * block.attention.head_size)).chunk(3, dim=-1)

    def attend(self, cache: Cache, layer: int, q: Tensor, inputs: Tensor) -> Float[Tensor, "samples n_heads d_head"]:
        turn = [cache[f"blocks.{layer}.attn.hook_{part}"] for part in ("cos", "sin")]
        k, v = inputs.unbind(2)
        q, k = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), *turn)
        scores = torch.einsum("shd,shtd->sht", q[:, :, -1], k) * self.blocks[layer].attention.scaling
        return torch.einsum("sht,sthd->shd", scores.softmax(-1), v)

    def attention_output(self, layer: int, z: Float[Tensor, "... n_heads d_head"]) -> Float[Tensor, "... d_model"]:
        return self.blocks[layer].attention.dense(z.flatten(-2))

    def after(self, layer: int, resid: Float[Tensor, "... d_model"], attention: Tensor) -> Float[Tensor, "... d_model"]:
        block = self.blocks[layer]
        before_mlp = resid if block.use_parallel_residual else resid + attention
        return resid + attention + block.mlp(block.post_attention_layernorm(before_mlp))
