"""A page on which features, their snippets and their matches are explored, without a network.

What is drawn travels as packed arrays in the page; text is put in as text only, never as markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from numba import njit
from numpy import ndarray
from tqdm import tqdm

from lib.interpret.judges import RuleJudge, examples_of
from lib.interpret.snippets import WIDTH, TopPlaces
from lib.mppc.features import SparseFeatures
from lib.plots import pages
from lib.plots.pages import packed

SHOWN, BINS = 3, 12  # snippets and histogram bins per feature
MOST = 45_000  # features that fit into 15 MB


@dataclass(frozen=True, eq=False)
class Shown:
    """Features of one model on the page."""

    name: str
    label: str
    places: Mapping[int, TopPlaces]
    """By layer."""
    features: Int[ndarray, "n 2"]
    """Layer and index, sorted."""
    matches: dict[str, pd.DataFrame]
    """Other model's name on the page → mppc, match_layer, match_index of each of `features`."""
    scores: list[tuple[int, int]]
    """Complexity and monosemanticity, 0 where there is none."""
    words: Sequence[str]
    """The tokens of the model's tokenizer as text (`interpret.vocabulary`)."""


def wanted_rows(frames: dict[str, tuple[pd.DataFrame, pd.DataFrame]], seed: int) -> dict[str, ndarray]:
    """Which rows of each model's frame are shown: features that fire; of too many, a sample and its matches.

    `frames` are MPPC of the first model, "pythia", with each of the others by its name on the page, and back.
    """
    own = next(iter(frames.values()))[0]
    wanted = {"pythia": own["mppc"].notna().to_numpy()} | {
        page: pair[1]["mppc"].notna().to_numpy() for page, pair in frames.items()
    }
    if sum(int(keep.sum()) for keep in wanted.values()) <= MOST:
        return wanted
    rng = np.random.default_rng(seed)
    alive = np.flatnonzero(wanted["pythia"])
    chosen = rng.choice(alive, min(len(alive), MOST // (1 + len(frames))), replace=False)
    wanted["pythia"] = np.isin(np.arange(len(own)), chosen)
    for page, (to, back) in frames.items():
        matched = to.iloc[np.sort(chosen)][["match_layer", "match_index"]].itertuples(index=False, name=None)
        place = pd.MultiIndex.from_frame(back[["layer", "index"]])
        wanted[page] = np.asarray(place.isin(list(matched)))
    return wanted


def scores_of(places: Mapping[int, TopPlaces], features: ndarray, words: Sequence[str]) -> list[tuple[int, int]]:
    """Complexity and monosemanticity by the stand-in: a language model is not asked about every feature."""
    judge = RuleJudge()
    examples = (
        examples_of(places[layer].snippets(index, width=3), words)  # the rules read a token and its neighbours
        for layer, index in tqdm(features.tolist(), "explorer", mininterval=5)
    )
    return [(s.complexity or 0, s.monosemanticity or 0) for e in examples for s in judge.score([e])]


def page_of(shown: Sequence[Shown], profile: str, meaningful: bool = True) -> str:
    """The whole page; models may have different tokenizers."""
    words: dict[str, int] = {"": 0}
    models = [_packed(model, words) for model in shown]
    data = {"profile": profile, "judge": RuleJudge.name, "meaningful": meaningful, "words": list(words), "width": WIDTH,
            "shown": SHOWN, "bins": BINS, "models": models}  # fmt: skip
    return pages.page_of("explorer.html", profile, data)


def _numbered(tokens: Int[ndarray, "..."], vocabulary: Sequence[str], words: dict[str, int]) -> ndarray:
    """The page's numbers of tokens (0 for −1), of which those that are new are put into `words`."""
    used, place = np.unique(tokens, return_inverse=True)
    numbers = [words.setdefault(vocabulary[token], len(words)) if token >= 0 else 0 for token in used]
    return np.array(numbers, np.uint16)[place].reshape(tokens.shape)


def _packed(model: Shown, words: dict[str, int]) -> dict[str, Any]:
    n, (layers, indices) = len(model.features), model.features.T
    tokens, activations = np.full((n, SHOWN, WIDTH), -1), np.zeros((n, SHOWN, WIDTH), np.float32)
    centre, top, rate = np.zeros((n, SHOWN), np.uint8), np.zeros(n, np.float32), np.zeros(n, np.float32)
    histogram = np.zeros((n, BINS), np.uint8)
    for layer, places in model.places.items():
        here, index = layers == layer, indices[layers == layer]
        found, kept = places.windows(), slice(min(SHOWN, places.rows.shape[1]))
        there = np.arange(WIDTH) < found.length[index, kept, None]
        tokens[here, kept] = np.where(there, found.tokens[index, kept].astype(int), -1)
        activations[here, kept], centre[here, kept] = found.activations[index, kept], found.centre[index, kept]
        top[here] = found.activations[index, 0, found.centre[index, 0]]
        histograms, rates = _histograms(places.features)
        histogram[here], rate[here] = histograms[index], rates[index]
    activations = np.clip(255 * activations / np.maximum(top, 1e-9)[:, None, None], 0, 255).astype(np.uint8)
    return {
        "name": model.name, "label": model.label, "n": n,
        # Of a list, numpy refuses numbers that do not fit.
        "layer": packed(layers.tolist(), np.uint8), "index": packed(indices.tolist(), np.uint16),
        "tokens": packed(_numbered(tokens, model.words, words)),
        "activations": packed(activations), "centre": packed(centre), "top": packed(top),
        "rate": packed(rate), "histogram": packed(histogram),
        "complexity": packed([s[0] for s in model.scores], np.uint8),
        "consistency": packed([s[1] for s in model.scores], np.uint8),
        "matches": {other: _packed_matches(frame) for other, frame in model.matches.items()},
    }  # fmt: skip


def _packed_matches(frame: pd.DataFrame) -> dict[str, str]:
    return {
        "mppc": packed(frame["mppc"].fillna(-1), np.float32),
        "layer": packed(frame["match_layer"].clip(lower=0), np.uint8),
        "index": packed(frame["match_index"].clip(lower=0), np.uint16),
    }


def _histograms(features: SparseFeatures) -> tuple[ndarray, ndarray]:
    """Per feature: counts of its activations in equal bins up to its maximum, log-scaled to 0…255; its firing rate."""
    counts = _counts(features.indices, features.values, features.d_sae)
    logs = np.log1p(counts)
    scaled = 255 * logs / np.maximum(logs.max(1, keepdims=True), 1e-9)
    return scaled.astype(np.uint8), counts.sum(1) / features.n_tokens


@njit(cache=True)
def _counts(indices, values, d_sae):
    top, counts = np.full(d_sae, np.float32(1e-9)), np.zeros((d_sae, BINS), np.int64)
    for j, value in zip(indices, values):
        top[j] = max(top[j], value)
    for j, value in zip(indices, values):
        counts[j, min(int(np.float32(BINS) * value / top[j]), BINS - 1)] += 1
    return counts
