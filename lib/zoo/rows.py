"""What the mini models learn from: rows of text and of three kinds of synthetic data, with a target where one is known.

The text alone would not make such small models copy, associate or tell two names apart within so few tokens.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lib.circuits.ioi import sentences
from lib.corpus import VOCABULARY
from lib.models.recipes import Recipe
from lib.workbook.texts import sentence_parts

IGNORE = -100  # target of positions that are not learnt

Rows = tuple[Int[np.ndarray, "rows context"], Int[np.ndarray, "rows context"]]  # tokens, targets


def packed_rows(documents: list[Int[np.ndarray, " n"]], recipe: Recipe, epoch: int) -> Int[np.ndarray, "rows context"]:
    """One epoch of text: all documents in a new order, joined by BOS, cut into rows that start with BOS."""
    order = np.random.default_rng([recipe.seed, epoch]).permutation(len(documents))
    stream = np.concatenate([part for i in order for part in (documents[i], [0])]).astype(np.int64)
    room = recipe.context_length - 1
    rows = stream[: len(stream) // room * room].reshape(-1, room)
    return np.concatenate([np.zeros((len(rows), 1), np.int64), rows], axis=1)


def next_tokens(tokens: Int[np.ndarray, "rows context"]) -> Rows:
    """Rows whose every next token is a target."""
    targets = np.full_like(tokens, IGNORE)
    targets[:, :-1] = tokens[:, 1:]
    return tokens, targets


def repeated_rows(n_rows: int, recipe: Recipe, rng: np.random.Generator) -> Rows:
    """Rows of random tokens that repeat with periods drawn log-uniformly; targets from the second of a repeat on.

    Where the first copy ends is not known before its first token has come again.
    """
    periods = np.exp(rng.uniform(0, math.log(recipe.longest_period + 1), n_rows)).astype(int)
    context = recipe.context_length
    tokens = rng.integers(2, VOCABULARY, (n_rows, context))
    tokens[:, 0] = 0
    place = np.arange(1, context) - 1
    for row, period in enumerate(periods):
        tokens[row, 1:] = tokens[row, 1 + place % period]
    tokens, targets = next_tokens(tokens)
    targets[np.arange(context)[None] <= periods[:, None]] = IGNORE
    return tokens, targets


def recall_rows(n_rows: int, recipe: Recipe, rng: np.random.Generator) -> Rows:
    """Rows of pairs [A][B] that come back in random order amid filler: what a lone A in new surroundings asks for.

    A row has k pairs (log-uniform from 1 to `most_pairs`) and up to `most_filler` of filler; all its tokens but for the
    pairs' returns are different. B is a target wherever its A has been seen with it before, and nothing else is.
    """
    context = recipe.context_length
    tokens, targets = np.zeros((n_rows, context), np.int64), np.full((n_rows, context), IGNORE)
    for row in range(n_rows):
        k = int(math.exp(rng.uniform(0, math.log(recipe.most_pairs + 1))))
        filler = rng.uniform(0, recipe.most_filler)
        drawn = rng.choice(VOCABULARY - 2, 2 * k + context, replace=False) + 2
        pairs, others = drawn[: 2 * k].reshape(k, 2), iter(drawn[2 * k :])
        seen, place = np.zeros(k, bool), 1
        while place < context:
            if rng.random() < filler or place == context - 1:
                tokens[row, place] = next(others)
                place += 1
                continue
            pair = rng.integers(k)
            tokens[row, place : place + 2] = pairs[pair]
            if seen[pair]:
                targets[row, place] = pairs[pair, 1]
            seen[pair] = True
            place += 2
    return tokens, targets


def sentence_rows(n_rows: int, recipe: Recipe, rng: np.random.Generator, tokenizer) -> Rows:
    """Rows of training sentences, joined by BOS as documents are; every next token is a target."""
    room = recipe.context_length - 1
    tokens = np.zeros((n_rows, recipe.context_length), np.int64)
    for row in tokens:
        stream: list[int] = []
        while len(stream) < room:
            for sentence in sentences(sentence_parts(), 8, rng):
                stream += [*tokenizer.encode(sentence.text).ids, 0]
        row[1:] = stream[:room]
    return next_tokens(tokens)


# ---------------------------------------------------------------------------------------------------------- batches


class Batches:
    """Training batches as a function of the step alone, so that a resumed run sees the same ones.

    `tokenizer` (of the library tokenizers) is asked for where the recipe has sentences.
    """

    def __init__(self, documents: list[np.ndarray], recipe: Recipe, tokenizer=None) -> None:
        self.documents, self.recipe, self.tokenizer = documents, recipe, tokenizer
        self.epoch, self.rows = -1, np.empty((0, 0))
        self.rows_per_epoch = len(packed_rows(documents, recipe, 0))
        self._text_before = np.cumsum([0, *(self.counts(step)["text"] for step in range(recipe.steps))])

    def counts(self, step: int) -> dict[str, int]:
        """How many rows of each kind a step's batch has: synthetic ones become fewer in the first half of training."""
        r = self.recipe
        progress = min(1.0, 2 * step / r.steps)
        share = r.synthetic_share_start + (r.synthetic_share_end - r.synthetic_share_start) * progress
        synthetic = round(share * r.batch_rows)
        recall = round(r.recall_share * synthetic) if step >= r.recall_from * r.steps else 0
        # A batch holds whole rows: the fraction is made up over steps.
        expected = (r.sentence_share_end if 3 * step >= 2 * r.steps else r.sentence_share) * r.batch_rows
        sentence = math.floor((step + 1) * expected) - math.floor(step * expected)
        text = r.batch_rows - synthetic - sentence
        return {"text": text, "repeats": synthetic - recall, "recall": recall, "sentences": sentence}

    def text_rows(self, first: int, n_rows: int) -> np.ndarray:
        """Rows `first` … of the endless text; a batch that would cross into the next epoch starts there."""
        epoch, start = divmod(first, self.rows_per_epoch)
        start = min(start, self.rows_per_epoch - n_rows)
        if epoch != self.epoch:
            self.epoch, self.rows = epoch, packed_rows(self.documents, self.recipe, epoch)
        return self.rows[start : start + n_rows]

    def __call__(self, step: int) -> tuple[Int[Tensor, "rows context"], Int[Tensor, "rows context"]]:
        r, counts = self.recipe, self.counts(step)
        rng = np.random.default_rng([r.seed, 1, step])
        parts = [
            next_tokens(self.text_rows(int(self._text_before[step]), counts["text"])),
            repeated_rows(counts["repeats"], r, rng),
            recall_rows(counts["recall"], r, rng),
        ]
        if counts["sentences"]:
            parts.append(sentence_rows(counts["sentences"], r, rng, self.tokenizer))
        return tuple(torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts, strict=True))
