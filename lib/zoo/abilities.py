"""What a language model can do: text in bits per byte, repeats, association, two names; on unseen prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.circuits.prompts import induction_prompts
from lib.corpus import Blocks
from lib.models.measures import Logits, held_out_loss
from lib.zoo.rows import sentences

GAPS = (2, 8, 32)
PERIODS = (1, 2, 4, 8, 16, 32, 64)
FRESH = 9_876  # seed of prompts that no training row has; the rows are drawn from seeds of two numbers and more


def bits_per_byte(logits: Logits, blocks: Blocks, tokenizer) -> float:
    """Cross-entropy of the blocks' counted tokens in bits per byte of their text: comparable between tokenizers."""
    counted = [row[mask].tolist() for row, mask in zip(blocks.tokens, blocks.mask, strict=True)]
    n_bytes = sum(len(text.encode()) for text in tokenizer.batch_decode(counted, clean_up_tokenization_spaces=False))
    return held_out_loss(logits, blocks) * blocks.n_positions / math.log(2) / n_bytes


@torch.no_grad()
def repeat_accuracy(logits: Logits, period: int, vocabulary: int, n_rows: int = 64, bos: int = 0) -> float:
    """Share of right next tokens where `period` random tokens come again and again, 128 tokens in all.

    Asked from the second token of the second copy on: before, nothing tells where a copy ends.
    """
    rng = np.random.default_rng([FRESH, period])
    drawn = torch.from_numpy(rng.integers(2, vocabulary, (n_rows, period)))
    tokens = torch.cat([torch.full((n_rows, 1), bos), drawn.repeat(1, math.ceil(128 / period))[:, :128]], dim=1)
    guess = logits(tokens)[:, period + 1 : -1].argmax(-1).cpu()
    return float((guess == tokens[:, period + 2 :]).float().mean())


def association_prompts(
    gap: int, vocabulary: int, n_samples: int = 64, bos: int = 0
) -> tuple[Int[Tensor, "samples tokens"], Int[Tensor, "samples tokens"], Int[Tensor, "samples 2"]]:
    """[A][B] … [C][D] … [A], the same with [C] at the end, and the tokens B and D; `gap` tokens of filler, twice.

    The answer to the first is B and to the second D: only what was seen after that very token tells them apart.
    """
    rng = np.random.default_rng([FRESH, 1, gap])
    rows = np.stack([rng.choice(vocabulary - 2, 4 + 2 * gap, replace=False) + 2 for _ in range(n_samples)])
    pairs, filler = torch.from_numpy(rows).split([4, 2 * gap], dim=1)
    start = torch.full((n_samples, 1), bos)
    prompt = torch.cat([start, pairs[:, :2], filler[:, :gap], pairs[:, 2:], filler[:, gap:]], dim=1)
    asked = [torch.cat([prompt, pairs[:, [k]]], dim=1) for k in (0, 2)]
    return *asked, pairs[:, [1, 3]]


@torch.no_grad()
def association(logits: Logits, gap: int, vocabulary: int, n_samples: int = 64) -> tuple[float, float]:
    """Share of `association_prompts` whose answer has the higher logit, where it stood first and where second."""
    first, second, answers = association_prompts(gap, vocabulary, n_samples)
    shares = []
    for tokens, (right, wrong) in ((first, (0, 1)), (second, (1, 0))):
        last = logits(tokens)[:, -1].cpu().gather(1, answers)
        shares.append(float((last[:, right] > last[:, wrong]).float().mean()))
    return shares[0], shares[1]


@torch.no_grad()
def two_names(logits: Logits, tokenizer, n_samples: int = 128) -> float:
    """Share of held-out sentences of two names in which the logit of IO is higher than that of S (W App. H)."""
    drawn = sentences(n_samples, np.random.default_rng(FRESH), held_out=True)
    ids = {name: _one(tokenizer, name) for sentence in drawn for name in (sentence.io, sentence.s)}
    right = 0
    for sentence in drawn:
        tokens = [tokenizer.bos_token_id, *tokenizer(sentence.prompt, add_special_tokens=False)["input_ids"]]
        last = logits(torch.tensor([tokens]))[0, -1]
        right += bool(last[ids[sentence.io]] > last[ids[sentence.s]])
    return right / n_samples


def _one(tokenizer, name: str) -> int:
    [token] = tokenizer(f" {name}", add_special_tokens=False)["input_ids"]
    return token


@torch.no_grad()
def cost_of_a(logits: Logits, distance: int, vocabulary: int, n_samples: int = 64) -> float:
    """What another A costs the logit of B in [A][B] … [A], as a share of what another B costs (W §6.2, Table 4)."""
    p = induction_prompts(distance, vocabulary, FRESH, n_samples)
    clean, no_a, no_b = (_logit(logits, tokens, p.target) for tokens in (p.clean, p.corrupt_a, p.corrupt_b))
    return float((clean - no_a).mean() / (clean - no_b).mean())


def _logit(logits: Logits, tokens: Tensor, target: Int[Tensor, "samples"]) -> Float[Tensor, "samples"]:
    return logits(tokens)[:, -1].cpu().gather(1, target[:, None])[:, 0]


def abilities(
    logits: Logits,
    tokenizer,
    vocabulary: int,
    blocks: Blocks,
    gaps: Sequence[int] = GAPS,
    periods: Sequence[int] = PERIODS,
    n_samples: int = 64,
) -> dict:
    """All of the above, rounded as it is kept beside a model (`training.json`)."""
    return {
        "bits_per_byte": round(bits_per_byte(logits, blocks, tokenizer), 4),
        "repeats": {p: round(repeat_accuracy(logits, p, vocabulary, n_samples), 4) for p in periods},
        "association": {g: [round(x, 4) for x in association(logits, g, vocabulary, n_samples)] for g in gaps},
        "two_names": round(two_names(logits, tokenizer, 2 * n_samples), 4),
        "cost_of_a_at_8": round(cost_of_a(logits, 8, vocabulary, n_samples), 3),
    }
