"""How good a language model is: its loss on held-out text, and whether it does induction."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge

from lib.corpus import Blocks
from lib.models.activations import model_device

Logits = Callable[[Int[Tensor, "rows context"]], Float[Tensor, "rows context vocabulary"]]


def repeated_tokens(
    n_rows: int, n_tokens: int, vocabulary: int, seed: int, bos: int = 0
) -> Int[Tensor, "rows 2*n_tokens+1"]:
    """BOS, then `n_tokens` random tokens twice: the plainest test of induction."""
    rng = np.random.default_rng(seed)
    half = torch.from_numpy(rng.integers(2, vocabulary, (n_rows, n_tokens)))
    return torch.cat([torch.full((n_rows, 1), bos), half, half], dim=1)


@torch.no_grad()
def induction_accuracy(logits: Logits, tokens: Int[Tensor, "rows 2*n_tokens+1"]) -> float:
    """Share of right next tokens on the second copy of `repeated_tokens`, from position 3 of the copy on."""
    first = tokens.shape[1] // 2 + 4  # BOS, the first copy, and three tokens of the second
    guess = logits(tokens).argmax(-1)[:, first - 1 : -1].cpu()
    return float((guess == tokens[:, first:]).float().mean())


@torch.no_grad()
def induction_gap(logits: Logits, distance: int, vocabulary: int, n_rows: int = 128, seed: int = 54_321) -> float:
    """Logit of B after [A][B] … [A], minus the same with B replaced by B′; mean over prompts of random tokens.

    `distance` is the number of positions between the two A (W §6.1).
    """
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.choice(vocabulary - 2, distance + 2, replace=False) + 2 for _ in range(n_rows)])
    tokens = torch.from_numpy(rows).long()
    a, b, other = tokens[:, 0], tokens[:, 1].clone(), tokens[:, -1].clone()
    clean = torch.cat([torch.zeros(n_rows, 1, dtype=torch.long), tokens[:, :-1], a[:, None]], dim=1)
    corrupt = clean.clone()
    corrupt[:, 2] = other
    gap = (logits(clean)[:, -1] - logits(corrupt)[:, -1]).cpu()
    return float(gap.gather(1, b[:, None]).mean())


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


def quality(model: TransformerBridge, blocks: Blocks) -> dict[str, float]:
    """Held-out loss (nats per token), induction accuracy on 64 repeated tokens, induction gap at distance 32."""
    vocabulary = model.original_model.config.vocab_size
    device = model_device(model)
    logits = lambda tokens: model(tokens.to(device))  # noqa: E731
    repeated = repeated_tokens(64, 64, vocabulary, seed=12_345)
    return {
        "held_out_loss": round(held_out_loss(logits, blocks), 4),
        "induction_accuracy": round(induction_accuracy(logits, repeated), 4),
        "induction_gap_32": round(induction_gap(logits, 32, vocabulary), 3),
    }
