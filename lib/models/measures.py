"""How good a language model is on held-out text; `lib.circuits.abilities` says what else it can do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from lib.corpus import Blocks

Logits = Callable[[Int[Tensor, "rows context"]], Float[Tensor, "rows context vocabulary"]]


def repeated_tokens(
    n_rows: int, n_tokens: int, vocabulary: int, seed: int, bos: int = 0
) -> Int[Tensor, "rows 2*n_tokens+1"]:
    """BOS, then `n_tokens` random tokens twice: the plainest test of induction."""
    rng = np.random.default_rng(seed)
    half = torch.from_numpy(rng.integers(2, vocabulary, (n_rows, n_tokens)))
    return torch.cat([torch.full((n_rows, 1), bos), half, half], dim=1)


@torch.no_grad()
def held_out_loss(logits: Logits, blocks: Blocks, batch_blocks: int = 32) -> float:
    """Mean next-token cross-entropy in nats over the counted tokens of the blocks."""
    total = 0.0
    for start in tqdm(range(0, len(blocks), batch_blocks), "held-out loss", mininterval=5):
        tokens = torch.from_numpy(blocks.tokens[start : start + batch_blocks]).long()
        wanted = torch.from_numpy(blocks.mask[start : start + batch_blocks])[:, 1:]
        scores = logits(tokens)[:, :-1].cpu()
        total += float(F.cross_entropy(scores[wanted].float(), tokens[:, 1:][wanted], reduction="sum"))
    return total / blocks.n_positions
