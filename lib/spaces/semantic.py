"""Lan et al.'s pipeline: features matched by activation, filtered, and compared by where their decoder rows lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int, Integer
from numpy import ndarray
from tqdm import tqdm

from lib.mppc.correlation import max_pairwise_correlation
from lib.mppc.features import SparseFeatures
from lib.spaces import concepts, similarity

N_TOP = 5  # top tokens per feature
LOWEST = 0.1  # correlation from which on a pair counts
FEWEST = 8  # pairs without which no space is compared
MOST_FOR_DISTANCES = 500  # pairs for RSA, whose cost grows with their square; a seeded sample where there are more
STEPS = ("alive", "correlated", "concept tokens", "shared token", "one to one")

Members = Mapping[str, Bool[ndarray, " vocabulary"]]
"""Concept → which tokens belong to it."""


def constants() -> dict[str, float]:
    """What decides the scores beside spaces and seed: part of their artifact's key."""
    return {"top": N_TOP, "lowest": LOWEST, "fewest": FEWEST, "most_for_distances": MOST_FOR_DISTANCES}


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """One model's features: activations, directions and top tokens, by layer."""

    name: str
    activations: list[SparseFeatures]
    decoders: list[Float32[ndarray, "d_sae d_model"]]
    top_tokens: list[Integer[ndarray, "d_sae n_top"]]
    """Tokens at a feature's highest places, one per document; −1 where it has fewer."""


# ------------------------------------------------------------------------------------------- matched pairs


def matched_pairs(
    a: FeatureSpace, b: FeatureSpace, layers: tuple[int, int], words: ndarray
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Pairs (a, b, rho) of two layers that pass all filters, and how many are left after each.

    For each feature of B its best of A; ρ > 0.1; both have a top token that is a word, and share one; of several pairs
    with one feature of A the best stays. `words` is `concepts.is_word`.
    """
    layer_a, layer_b = layers
    best = max_pairwise_correlation([b.activations[layer_b]], [a.activations[layer_a]])
    pairs = pd.DataFrame({"a": best.index, "b": np.arange(len(best.index)), "rho": best.value}).dropna(subset="rho")
    left = {"alive": len(pairs)}
    pairs = pairs[pairs["rho"] > LOWEST]
    left["correlated"] = len(pairs)
    own, other = a.top_tokens[layer_a][pairs["a"]], b.top_tokens[layer_b][pairs["b"]]
    own, other = _words_or(-1, own, words), _words_or(-2, other, words)
    concept = (own >= 0).any(1) & (other >= 0).any(1)
    shared = (own[:, :, None] == other[:, None, :]).any((1, 2))
    left["concept tokens"], left["shared token"] = int(concept.sum()), int((concept & shared).sum())
    pairs = pairs[concept & shared].sort_values("rho", ascending=False, kind="stable").drop_duplicates("a")
    left["one to one"] = len(pairs)
    return pairs.reset_index(drop=True), left


def _words_or(
    fill: int, tokens: Integer[ndarray, "n n_top"], words: Bool[ndarray, " vocabulary"]
) -> Integer[ndarray, "n n_top"]:
    """The tokens, with `fill` in the place of those that are none, or no word."""
    return np.where((tokens >= 0) & words[np.maximum(tokens, 0)], tokens, fill)


def decoder_rows(
    a: FeatureSpace, b: FeatureSpace, layers: tuple[int, int], pairs: pd.DataFrame
) -> tuple[ndarray, ndarray]:
    """The paired features' directions."""
    return a.decoders[layers[0]][pairs["a"]], b.decoders[layers[1]][pairs["b"]]


def layer_scores(
    a: FeatureSpace, b: FeatureSpace, words: Bool[ndarray, " vocabulary"], runs: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every pair of layers of two models: similarity of the matched features' decoder rows, and what the filters left.

    First: layer_a, layer_b, measure, n, score, null_mean, null_95, p (of `runs` shuffles); NaN where fewer than 8 pairs
    are left. Second: layer_a, layer_b, and a column for each of `STEPS`. `words` is `concepts.is_word`.
    """
    scores, filters = [], []
    grid = [(i, j) for i in range(len(a.activations)) for j in range(len(b.activations))]
    for layers in tqdm(grid, f"spaces of {a.name} and {b.name}", mininterval=5):
        place = dict(zip(("layer_a", "layer_b"), layers, strict=True))
        pairs, left = matched_pairs(a, b, layers, words)
        filters.append(place | left)
        scores += [place | row for row in _scored(*decoder_rows(a, b, layers, pairs), runs, seed)]
    return pd.DataFrame(scores), pd.DataFrame(filters)


def _scored(x: ndarray, y: ndarray, runs: int, seed: int) -> list[dict[str, Any]]:
    if len(x) < FEWEST:
        nothing = dict.fromkeys(("score", "null_mean", "null_95", "p"), np.nan)
        return [{"measure": measure, "n": len(x)} | nothing for measure in ("SVCCA", "RSA")]
    few = np.random.default_rng(seed).permutation(len(x))[:MOST_FOR_DISTANCES]
    return [
        {"measure": "SVCCA", "n": len(x)} | similarity.svcca_test(x, y, runs, seed),
        {"measure": "RSA", "n": len(few)} | similarity.rsa_test(x[few], y[few], runs, seed),
    ]


# ------------------------------------------------------------------------------------------- subspaces


def subspace_scores(a: FeatureSpace, b: FeatureSpace, members: Members, runs: int, seed: int) -> pd.DataFrame:
    """Semantic subspaces: features of a concept matched again among themselves, in layers of the same relative depth.

    `members` is `concepts.concept_tokens`. Columns: concept, layer_a, layer_b, features_a, features_b, measure, n,
    score, null_mean, null_95, p (of `runs` shuffles).
    """
    rows = []
    for layers in tqdm(same_depth(len(a.activations), len(b.activations)), "subspaces", unit="layer", mininterval=5):
        top_a, top_b = a.top_tokens[layers[0]], b.top_tokens[layers[1]]
        for concept, tokens in members.items():
            own, other = (np.flatnonzero(concepts.features_of(top, tokens)) for top in (top_a, top_b))
            pairs = _pairs_within(a, b, layers, own, other)
            place = {"concept": concept, "layer_a": layers[0], "layer_b": layers[1]}
            place |= {"features_a": len(own), "features_b": len(other)}
            rows += [place | row for row in _scored(*decoder_rows(a, b, layers, pairs), runs, seed)]
    return pd.DataFrame(rows)


def same_depth(n_a: int, n_b: int) -> list[tuple[int, int]]:
    """Pairs of layers of (nearly) the same relative depth, one for each layer of A."""
    return [(layer, round((layer + 1) * n_b / n_a) - 1) for layer in range(n_a) if round((layer + 1) * n_b / n_a) > 0]


def _pairs_within(
    a: FeatureSpace, b: FeatureSpace, layers: tuple[int, int], own: ndarray, other: ndarray
) -> pd.DataFrame:
    if not len(own) or not len(other):
        return pd.DataFrame({"a": np.zeros(0, int), "b": np.zeros(0, int), "rho": np.zeros(0)})
    best = max_pairwise_correlation(
        [_columns(b.activations[layers[1]], other)], [_columns(a.activations[layers[0]], own)]
    )
    found = (best.index >= 0) & (best.value > LOWEST)
    pairs = pd.DataFrame({"a": own[best.index[found]], "b": other[found], "rho": best.value[found]})
    return pairs.sort_values("rho", ascending=False, kind="stable").drop_duplicates("a").reset_index(drop=True)


def _columns(layer: SparseFeatures, columns: Int[ndarray, " k"]) -> SparseFeatures:
    return replace(SparseFeatures.from_scipy(layer.to_scipy()[:, columns]), text=layer.text)


# ------------------------------------------------------------------------------------------- geometry


def agreement_by_rho(x: ndarray, y: ndarray, pairs: pd.DataFrame, k: int = 10) -> pd.DataFrame:
    """Do pairs that fire alike also lie alike? `overlap`: the share of a pair's k nearest that both spaces agree on."""
    return pairs.assign(overlap=similarity.neighbour_overlap(x, y, k))


def umap(rows: ndarray, seed: int) -> Float32[ndarray, "n 2"]:
    """Two dimensions by UMAP (cosine, 15 neighbours); the same for the same seed."""
    from umap import UMAP  # takes seconds to import, and only one notebook needs it

    return UMAP(n_neighbors=min(15, len(rows) - 1), metric="cosine", random_state=seed, n_jobs=1).fit_transform(rows)


def concept_of(tokens: Integer[ndarray, "n n_top"], members: Members) -> list[str]:
    """Each feature's concept; the first of several, "" for none."""
    inside = {name: concepts.features_of(tokens, group) for name, group in members.items()}
    return [next((name for name in inside if inside[name][k]), "") for k in range(len(tokens))]


def pairs_for_drawing(
    a: FeatureSpace, b: FeatureSpace, layers: tuple[int, int], vocabulary: Sequence[str], members: Members, seed: int
) -> pd.DataFrame:
    """Matched pairs with both features' places on the two maps, their concept and their top token."""
    pairs, _ = matched_pairs(a, b, layers, concepts.is_word(vocabulary))
    x, y = decoder_rows(a, b, layers, pairs)
    tokens = a.top_tokens[layers[0]][pairs["a"]]
    places = np.hstack([umap(x, seed), umap(y, seed)])
    return pairs.assign(
        **dict(zip(("ax", "ay", "bx", "by"), places.T, strict=True)),
        concept=concept_of(tokens, members), token=[vocabulary[max(t, 0)] for t in tokens[:, 0]],
    )  # fmt: skip
