"""What a language model can do: text in bits per byte, repeats, association, IOI; on prompts unseen in training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lib.circuits.prompts import induction_prompts
from lib.corpus import Blocks
from lib.models.measures import Logits, held_out_loss

if TYPE_CHECKING:
    from lib.circuits.ioi import Sentence

GAPS = (2, 8, 32)
PERIODS = (1, 2, 4, 8, 16, 32, 64)
BOUNDS = {"association": 0.9, "cost_of_a": 0.5, "repeats": 0.5}  # from where on a model counts as one that does it
FRESH = 9_876  # seed of prompts that no training row has; rows are drawn from seeds of two numbers and more


def bytes_per_token(blocks: Blocks, tokenizer) -> float:
    """Mean length, in bytes of text, of the blocks' counted tokens."""
    counted = [row[mask].tolist() for row, mask in zip(blocks.tokens, blocks.mask, strict=True)]
    texts = tokenizer.batch_decode(counted, clean_up_tokenization_spaces=False)
    return sum(len(text.encode()) for text in texts) / blocks.n_positions


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
def ioi(logits: Logits, tokenizer, drawn: Sequence[Sentence]) -> float:
    """Share of sentences of two names in which the logit of IO is higher than that of S (W App. H).

    Only sentences count whose names are one token each; NaN where there is none.
    """
    from lib.circuits.ioi import one_token_words, with_one_token_names

    drawn = with_one_token_names(drawn, tokenizer)
    ids = one_token_words(sorted({name for sentence in drawn for name in (sentence.io, sentence.s)}), tokenizer)
    rows = []
    for sentence in drawn:
        tokens = [tokenizer.bos_token_id or 0, *tokenizer(sentence.prompt, add_special_tokens=False)["input_ids"]]
        rows.append((tokens, [ids[sentence.io], ids[sentence.s]]))
    right = 0
    for _, of_one_length in groupby(sorted(rows, key=lambda row: len(row[0])), lambda row: len(row[0])):
        tokens, names = map(torch.tensor, zip(*of_one_length, strict=True))
        of_io, of_s = logits(tokens)[:, -1].cpu().gather(1, names).T
        right += int((of_io > of_s).sum())
    return right / len(rows) if rows else math.nan


@torch.no_grad()
def induction_gap(logits: Logits, distance: int, vocabulary: int, other: str = "B′", n_samples: int = 64) -> float:
    """By how much the logit of B falls after [A][B] … [A] where B′ stands in B's place, or A′ in the first A's.

    `distance` is the number of positions between the two A (W §6.1).
    """
    p = induction_prompts(distance, vocabulary, FRESH, n_samples)
    target = p.target[:, None]
    clean, changed = (logits(tokens)[:, -1].cpu().gather(1, target) for tokens in (p.clean, p.corrupted(other)))
    return float((clean - changed).mean())


def costs(logits: Logits, distance: int, vocabulary: int, n_samples: int = 64) -> tuple[float, float]:
    """What another B costs the logit of B in [A][B] … [A]; and what another A costs as its share, NaN if it is 0."""
    of_a, of_b = (induction_gap(logits, distance, vocabulary, other, n_samples) for other in ("A′", "B′"))
    return of_b, of_a / of_b if of_b else math.nan


def induction_abilities(logits: Logits, vocabulary: int, n_samples: int = 64) -> dict[str, float | bool]:
    """What must be known of a model before its induction circuit is looked for.

    `association` is the least share over `GAPS` and both orders of the pairs, `repeats` the accuracy on eight tokens
    that come again and again; `cost_of_b` (in logits) and `cost_of_a` (as its share) are those of distance 8. A model
    `does_induction` if it associates and asks for A; it `copies` if it continues the repeats.
    """
    shares = [share for gap in GAPS for share in association(logits, gap, vocabulary, n_samples)]
    cost_of_b, share_of_a = costs(logits, 8, vocabulary, n_samples)
    found = {
        "association": min(shares),
        "repeats": repeat_accuracy(logits, 8, vocabulary, n_samples),
        "cost_of_b": cost_of_b,
        "cost_of_a": share_of_a,
    }
    enough = {name: bool(found[name] >= bound) for name, bound in BOUNDS.items()}
    induces = enough["association"] and enough["cost_of_a"] and found["cost_of_b"] > 0
    return found | {"does_induction": induces, "copies": enough["repeats"]}


def abilities_of(
    logits: Logits,
    tokenizer,
    blocks: Blocks,
    drawn: Sequence[Sentence],
    gaps: Sequence[int] = GAPS,
    periods: Sequence[int] = PERIODS,
    n_samples: int = 64,
) -> dict[str, float]:
    """All of the above, by name; `blocks` is held-out text, `drawn` are sentences that no training row had."""
    vocabulary, loss = len(tokenizer), held_out_loss(logits, blocks)
    found = {"held_out_loss": loss, "bits_per_byte": loss / math.log(2) / bytes_per_token(blocks, tokenizer)}
    found |= {f"repeats_{p}": repeat_accuracy(logits, p, vocabulary, n_samples) for p in periods}
    for gap in gaps:
        first, second = association(logits, gap, vocabulary, n_samples)
        found |= {f"association_{gap}_first": first, f"association_{gap}_second": second}
    found |= {"ioi": ioi(logits, tokenizer, drawn), "cost_of_a_8": costs(logits, 8, vocabulary, n_samples)[1]}
    return {name: round(value, 4) for name, value in found.items()}
