"""What features react to: the places in the text where they fire most (W §5.1, App. E)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int, Integer
from numba import njit
from numpy import ndarray

from lib.corpus import Blocks
from lib.mppc.features import SparseFeatures

N_SNIPPETS, WIDTH = 10, 17  # App. E: ten snippets of 17 tokens, the activation at the ninth


@dataclass(frozen=True)
class Snippet:
    """Tokens around a place where a feature fires, itself in the middle unless the block begins or ends before."""

    tokens: Integer[ndarray, " width"]
    activations: Float32[ndarray, " width"]
    centre: int

    @property
    def activation(self) -> float:
        """At the centre."""
        return float(self.activations[self.centre])

    def marked(self, tokenizer) -> str:
        """The text on one line, with the token at the centre between ⟦ and ⟧."""
        before, at, after = map(tokenizer.decode, np.split(self.tokens, [self.centre, self.centre + 1]))
        return f"{before}⟦{at}⟧{after}".replace("\n", "↵")


@dataclass(frozen=True, eq=False)
class Windows:
    """Snippets as arrays: of the `width` tokens only the first `length` are there, none where there is no place."""

    tokens: Integer[ndarray, "d_sae n width"]
    activations: Float32[ndarray, "d_sae n width"]
    centre: Int[ndarray, "d_sae n"]
    length: Int[ndarray, "d_sae n"]


@dataclass(frozen=True, eq=False)
class TopPlaces:
    """For every feature of a layer its highest places, one per document, highest first; −1 where it has fewer."""

    features: SparseFeatures
    blocks: Blocks
    rows: Int[ndarray, "d_sae n"]
    _windows: dict[int, Windows] = field(default_factory=dict, init=False, repr=False)

    def tokens(self) -> Int[ndarray, "d_sae n"]:
        """The token at each place; −1 where there is none."""
        text = self.blocks.tokens[self.blocks.mask].astype(np.int64)
        return np.where(self.rows >= 0, text[self.rows], -1)

    def snippets(self, index: int, n: int | None = None, width: int = WIDTH) -> list[Snippet]:
        """The feature's `n` highest places (default: all that are kept) with `width` tokens around each."""
        found = self.windows(width)
        places = zip(found.tokens[index], found.activations[index], found.centre[index].tolist(),
                     found.length[index].tolist(), strict=True)  # fmt: skip
        return [Snippet(tokens[:end], values[:end], centre) for tokens, values, centre, end in list(places)[:n] if end]

    def windows(self, width: int = WIDTH) -> Windows:
        """The snippets of all features, made when they are first asked for and kept: 130 bytes each of App. E's."""
        if width not in self._windows:
            text, mask, rows = self.blocks.tokens, self.blocks.mask, self.rows
            block, position = (axis[rows] for axis in np.nonzero(mask))
            ends = mask.shape[1] - mask[:, ::-1].argmax(1)  # of each block, behind the last position that counts
            start = np.maximum(1, position - width // 2)  # 0 is BOS
            centre, length = np.where(rows >= 0, (position - start, np.minimum(ends[block] - start, width)), 0)
            row_at = np.where(mask, mask.cumsum().reshape(mask.shape) - 1, -1)
            tokens, activations = np.zeros((*rows.shape, width), text.dtype), np.zeros((*rows.shape, width), np.float32)
            entries = self.features.indptr, self.features.indices, self.features.values
            _fill(*entries, text, row_at, block, start, length, tokens, activations)
            self._windows[width] = Windows(tokens, activations, centre, length)
        return self._windows[width]


def top_places(features: SparseFeatures, blocks: Blocks, n: int = N_SNIPPETS) -> TopPlaces:
    """The `n` places where each feature of a layer fires most, one per document, in one pass over the entries.

    `features` are those of `blocks`: a row per counted position, in order. At a token of a snippet that does not count,
    such as one that is not paired with another tokenizer's (`lib.pairing`), the activation is given as 0. Ties go to
    the earlier place. Memory: n rows and values per feature. Raises `ValueError` if they have another number of
    positions, if they are known to be of another text, or if a document's blocks do not lie side by side.
    """
    if features.n_tokens != blocks.n_positions:
        raise ValueError(f"the features have {features.n_tokens} positions and the text {blocks.n_positions}.")
    if features.text not in (None, blocks.digest):
        raise ValueError("the features are those of another text than the one they are to be shown in.")
    if (np.diff(blocks.document) < 0).any():
        raise ValueError("the blocks of a document must lie side by side, documents in order.")
    document = np.repeat(blocks.document, blocks.mask.sum(1)).astype(np.int64)
    rows = np.full((features.d_sae, n), -1, np.int64)
    _collect(features.indptr, features.indices, features.values, document, rows)
    return TopPlaces(features, blocks, rows)


@njit(cache=True)
def _collect(indptr, indices, values, document, rows):
    """Each feature keeps its best place in the present document, and hands it in when the next document begins."""
    d_sae, n = rows.shape
    best = np.zeros((d_sae, n), np.float32)
    now_row, now_document, now_value = np.full(d_sae, -1), np.full(d_sae, -1), np.zeros(d_sae, np.float32)
    for row in range(len(indptr) - 1):
        for entry in range(indptr[row], indptr[row + 1]):
            j, value = indices[entry], values[entry]
            if now_document[j] != document[row]:
                _hand_in(rows[j], best[j], now_row[j], now_value[j])
                now_document[j], now_row[j], now_value[j] = document[row], row, value
            elif value > now_value[j]:
                now_row[j], now_value[j] = row, value
    for j in range(d_sae):
        _hand_in(rows[j], best[j], now_row[j], now_value[j])


@njit(cache=True)
def _hand_in(rows, best, row, value):
    """Put a place into the sorted list, after those that are as high; the last one falls out."""
    at = len(rows)
    while at > 0 and (rows[at - 1] < 0 or best[at - 1] < value):
        at -= 1
    if row < 0 or at == len(rows):
        return
    for k in range(len(rows) - 1, at, -1):
        rows[k], best[k] = rows[k - 1], best[k - 1]
    rows[at], best[at] = row, value


@njit(cache=True)
def _fill(indptr, indices, values, text, row_at, block, start, length, tokens, activations):
    """Copy what each snippet of `Windows` covers: tokens of the text, activations of its own feature."""
    for j, k in np.ndindex(length.shape):
        for at in range(length[j, k]):
            place = block[j, k], start[j, k] + at
            tokens[j, k, at] = text[place]
            row = row_at[place]
            if row < 0:
                continue
            for entry in range(indptr[row], indptr[row + 1]):
                if indices[entry] == j:
                    activations[j, k, at] = values[entry]


Places = Mapping[int, TopPlaces]  # by layer


def pairs_with_snippets(
    frame: pd.DataFrame, places: tuple[Places, Places], tokenizers: tuple[Any, Any], n: int = 10
) -> pd.DataFrame:
    """The `n` best and the `n` worst matches of the first model's features that fire in ten documents or more.

    Columns kind (best, worst), mppc, layer, index, match_layer, match_index, and the highest snippet of both in text.
    """
    enough = np.concatenate([layer.rows[:, -1] >= 0 for layer in places[0].values()])
    known = frame[enough & (frame["match_layer"] >= 0)].sort_values("mppc", ascending=False, kind="stable")
    known = known.drop_duplicates(["match_layer", "match_index"])
    rows = pd.concat([known.head(n).assign(kind="best"), known.tail(n).assign(kind="worst")])
    for k, (name, at) in enumerate({"a": ("layer", "index"), "b": ("match_layer", "match_index")}.items()):
        picked = [places[k][layer].snippets(index, 1) for layer, index in zip(rows[at[0]], rows[at[1]], strict=True)]
        rows[f"snippet_{name}"] = [found[0].marked(tokenizers[k]) if found else "" for found in picked]
    return rows[["kind", "mppc", "layer", "index", "match_layer", "match_index", "snippet_a", "snippet_b"]]


def vocabulary(tokenizer) -> list[str]:
    """Every token as text, by its id."""
    return [tokenizer.decode([token]) for token in range(len(tokenizer))]


def describe(snippets: Sequence[Snippet], tokenizer) -> list[str]:
    """Snippets as lines of text, highest activation first."""
    return [f"{snippet.activation:5.1f}  {snippet.marked(tokenizer)}" for snippet in snippets]


def token_activations(features: SparseFeatures, index: int) -> Float32[ndarray, " n_tokens"]:
    """One feature's activation on every counted position."""
    return features.to_scipy()[:, [index]].toarray()[:, 0]
