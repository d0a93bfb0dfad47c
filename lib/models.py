"""Any of the three architectures as a `TransformerBridge`, with one vocabulary for their parts.

Weights are the raw Hugging Face ones: nothing folded, nothing centred.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib import scans
from lib.corpus import Blocks
from lib.profiles import DATA, Profile

Logits = Callable[[Int[Tensor, "rows context"]], Float[Tensor, "rows context vocabulary"]]


def device_of(profile: Profile) -> str:
    """cpu or cuda."""
    if profile.device != "auto":
        return profile.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def fast_dtype(device: str) -> torch.dtype:
    """The type in which matrix products are fastest: bf16 on GPUs and on CPUs with bf16 instructions, else fp32."""
    has_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if device != "cpu" or has_bf16 else torch.float32


def repeated_tokens(
    n_rows: int, n_tokens: int, vocabulary: int, seed: int, bos: int = 0
) -> Int[Tensor, "rows 2*n_tokens+1"]:
    """BOS, then `n_tokens` random tokens twice: the plainest test of induction."""
    rng = np.random.default_rng(seed)
    half = torch.from_numpy(rng.integers(2, vocabulary, (n_rows, n_tokens)))
    return torch.cat([torch.full((n_rows, 1), bos), half, half], dim=1)


@torch.no_grad()
def induction_accuracy(logits: Logits, n_rows: int = 64, n_tokens: int = 64, seed: int = 12_345) -> float:
    """Share of right next tokens on the second copy of random tokens, from position 3 of the copy on."""
    tokens = repeated_tokens(n_rows, n_tokens, 4096, seed)
    guess = logits(tokens).argmax(-1)[:, n_tokens + 3 : -1]
    return float((guess == tokens[:, n_tokens + 4 :]).float().mean())


@torch.no_grad()
def held_out_loss(logits: Logits, blocks: Blocks, batch_blocks: int = 32) -> float:
    """Mean next-token cross-entropy in nats over the counted tokens of the blocks."""
    total = 0.0
    for start in range(0, len(blocks), batch_blocks):
        tokens = torch.from_numpy(blocks.tokens[start : start + batch_blocks]).long()
        wanted = torch.from_numpy(blocks.mask[start : start + batch_blocks])[:, 1:]
        loss = torch.nn.functional.cross_entropy(
            logits(tokens)[:, :-1][wanted].float(), tokens[:, 1:][wanted], reduction="sum"
        )
        total += float(loss)
    return total / blocks.n_positions
