"""What features react to: the places in the text where they fire most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from lib.corpus import Blocks
from lib.features import SparseFeatures


@dataclass(frozen=True)
class Snippet:
    """Tokens around a place where a feature fires, itself in the middle unless the block ends before."""

    tokens: Int[ndarray, " width"]
    centre: int
    activation: float

    def marked(self, tokenizer) -> str:
        """The text on one line, with the token at the centre between ⟦ and ⟧."""
        before, at, after = (
            tokenizer.decode(part)
            for part in (self.tokens[: self.centre], self.tokens[self.centre : self.centre + 1], self.tokens[self.centre + 1 :])
        )
        return f"{before}⟦{at}⟧{after}".replace("\n", "↵")


def top_snippets(
    features: SparseFeatures, index: int, blocks: Blocks, n: int = 10, width: int = 17
) -> list[Snippet]:
    """The `n` places where feature `index` fires most, one per document, with `width` tokens around each (W, App. E).

    `features` are those of `blocks`: one row per counted position, in order. Ties go to the earlier place.
    Raises ValueError if they have another number of positions.
    """
    if features.n_tokens != blocks.n_positions:
        raise ValueError(f"the features have {features.n_tokens} positions and the text {blocks.n_positions}.")
    entries = np.flatnonzero(features.indices == index)
    order = np.argsort(-features.values[entries], kind="stable")
    entries = entries[order]
    rows = np.searchsorted(features.indptr, entries, side="right") - 1
    places = np.argwhere(blocks.mask)[rows]
    _, first = np.unique(blocks.document[places[:, 0]], return_index=True)
    chosen = np.sort(first)[:n]
    return [_snippet(blocks, *places[k], float(features.values[entries[k]]), width) for k in chosen]


def _snippet(blocks: Blocks, block: int, position: int, activation: float, width: int) -> Snippet:
    length = int(np.flatnonzero(blocks.mask[block])[-1]) + 1
    start = max(1, position - width // 2)  # 0 is BOS
    return Snippet(blocks.tokens[block, start : min(length, start + width)], position - start, activation)


def describe(snippets: Sequence[Snippet], tokenizer) -> list[str]:
    """Snippets as lines of text, highest activation first."""
    return [f"{snippet.activation:5.1f}  {snippet.marked(tokenizer)}" for snippet in snippets]


def token_activations(features: SparseFeatures, index: int) -> Float[ndarray, " n_tokens"]:
    """One feature's activation on every counted position."""
    dense = np.zeros(features.n_tokens, np.float32)
    entries = np.flatnonzero(features.indices == index)
    dense[np.searchsorted(features.indptr, entries, side="right") - 1] = features.values[entries]
    return dense
