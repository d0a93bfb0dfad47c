"""Where a token looks: attention patterns of heads, and the SSM's hidden attention (Ali et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from lib.circuits.path_patching import in_chunks
from lib.circuits.prompts import Tokens
from lib.models.mamba import Mamba, time_step


@torch.no_grad()
def patterns(model: TransformerBridge, tokens: Tokens, layer: int) -> Float[Tensor, "n_heads tokens tokens"]:
    """Attention from each position (row) to each (column) in every head of a Transformer's layer; mean over samples."""
    name = f"blocks.{layer}.attn.hook_pattern"
    parts = []
    for (part,) in in_chunks(model, tokens):
        _, cache = model.run_with_cache(part, names_filter=name, return_type=None)
        parts.append(cache[name].sum(0))
    return (torch.stack(parts).sum(0) / len(tokens)).cpu()


def with_attention(
    heads: pd.DataFrame, patterns: Sequence[Float[Tensor, "n_heads tokens tokens"]], query: int, key: int
) -> pd.DataFrame:
    """Heads (columns layer, head) with their attention from position `query` to `key`, from all layers' patterns."""
    looks = [patterns[head.layer][head.head, query, key].item() for head in heads.itertuples()]
    return heads.assign(attention=looks)


@torch.no_grad()
def hidden_attention(model: TransformerBridge, tokens: Tokens, layer: int) -> Float[Tensor, "tokens"]:
    """How much of the SSM's attention at the last position falls on each position, in one layer of a Mamba.

    Unrolled, the SSM is y_T = Σ_s α_s c_s with α_s = C_T · exp(A Σ_{u>s} Δ_u) Δ_s B_s in every channel. |α| is made to
    sum to 1 over positions, then averaged over channels and samples.
    """
    architecture = Mamba(model)
    mixer, total = architecture.blocks[layer].mixer, 0
    for (part,) in in_chunks(model, tokens):
        c = architecture.inputs(architecture.run(part), layer)
        dt, B, C = time_step(mixer, c)
        later = dt.sum(1, keepdim=True) - dt.cumsum(1)
        A = -mixer.A_log.exp()
        alpha = sum(torch.exp(later * A[:, n]) * dt * (B[..., n] * C[:, -1:, n])[..., None] for n in range(A.shape[1]))
        share = alpha.abs() / alpha.abs().sum(1, keepdim=True)
        total = total + share.mean(2).sum(0)
    return (total / len(tokens)).cpu()
