"""Attention of GPT-NeoX in one fused call, where nobody looks at scores or pattern.

TransformerLens computes attention step by step, so that every step can be hooked: 60 % of a mini Transformer's forward
pass. `install` leaves that to whoever hooks scores or pattern or wants gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformer_lens.model_bridge.generalized_components import JointQKVPositionEmbeddingsAttentionBridge as Bridge

_step_by_step = Bridge._reconstruct_attention
Heads = Float[Tensor, "batch tokens width"]


def _attention(bridge: Bridge, q: Heads, k: Heads, v: Heads, **kwargs: Any) -> tuple[Heads, Tensor | None]:
    """What the heads add to the residual stream; and, step by step, their pattern."""
    watched = bridge.hook_attn_scores.has_hooks() or bridge.hook_pattern.has_hooks()
    mask, n_heads = kwargs.get("attention_mask"), bridge.config.n_heads
    causal = mask is None or bool((mask[..., -1, :] == 0).all())  # the last token sees all: no padding, no window
    if watched or not causal or torch.is_grad_enabled():
        return _step_by_step(bridge, q, k, v, **kwargs)
    q, k, v, *shape = bridge._reshape_qkv_to_heads(q, k, v, n_heads)
    turn = bridge._apply_position_embedding_hooks(kwargs["position_embeddings"])
    q, k = bridge._apply_rotary_pos_emb(q, k, *turn)
    z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    batch, tokens, d_head = shape
    return bridge._apply_output_projection(bridge._reshape_attn_output(z, batch, tokens, n_heads, d_head)), None


def install() -> None:
    """Let TransformerLens' bridge of GPT-NeoX use what is here. Calling it again changes nothing."""
    Bridge._reconstruct_attention = _attention
