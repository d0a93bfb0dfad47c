"""Lan et al.'s pipeline: features matched by activation, filtered, and compared by where their decoder rows lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Float32, Int
from numpy import ndarray
from tqdm import tqdm

from lib.interpret.snippets import TopPlaces, top_places, vocabulary
from lib.mppc.correlation import max_pairwise_correlation
from lib.mppc.features import SparseFeatures
from lib.spaces import concepts, similarity
from lib.workbook import artifacts, texts
from lib.workbook.profiles import Profile
from lib.workbook.store import Store

N_TOP = 5  # top tokens per feature
LOWEST = 0.1  # correlation from which on a pair counts
FEWEST = 8  # pairs without which no space is compared
MOST_FOR_DISTANCES = 500  # pairs for RSA, whose cost grows with their square; a seeded sample where there are more
STEPS = ("alive", "correlated", "concept tokens", "shared token", "one to one")


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """One model's features: activations, directions and top tokens, by layer."""

    name: str
    activations: list[SparseFeatures]
    decoders: list[Float32[ndarray, "d_sae d_model"]]
    top_tokens: list[Int[ndarray, "d_sae n_top"]]
    """Tokens at a feature's highest places, one per document; −1 where it has fewer."""

    @classmethod
    def load(cls, name: str, profile: Profile) -> FeatureSpace:
        """From trained SAEs of the first seed, made where they are missing."""
        saes = [sae for sae in artifacts.trained_saes(name, profile)[0] if sae.info.seed == profile.sae_seeds[0]]
        activations = artifacts.features(name, profile)
        blocks = texts.load_blocks(profile, "held_out", profile.mppc_tokens)
        tokens = [top_tokens(top_places(layer, blocks, N_TOP)) for layer in activations]
        return cls(name, activations, [sae.W_dec.detach().float().cpu().numpy() for sae in saes], tokens)


def top_tokens(places: TopPlaces) -> Int[ndarray, "d_sae n_top"]:
    """Tokens on which features fire most; −1 where a feature has fewer places."""
    text = places.blocks.tokens[places.blocks.mask].astype(np.int64)
    return np.where(places.rows >= 0, text[places.rows], -1)


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
    own, other = (np.where((tokens >= 0) & words[np.maximum(tokens, 0)], tokens, fill) for tokens, fill in ((own, -1), (other, -2)))
    concept = (own >= 0).any(1) & (other >= 0).any(1)
    shared = (own[:, :, None] == other[:, None, :]).any((1, 2))
    left["concept tokens"], left["shared token"] = int(concept.sum()), int((concept & shared).sum())
    pairs = pairs[concept & shared].sort_values("rho", ascending=False, kind="stable").drop_duplicates("a")
    left["one to one"] = len(pairs)
    return pairs.reset_index(drop=True), left


def decoder_rows(a: FeatureSpace, b: FeatureSpace, layers: tuple[int, int], pairs: pd.DataFrame) -> tuple[ndarray, ndarray]:
    """The paired features' directions."""
    return a.decoders[layers[0]][pairs["a"]], b.decoders[layers[1]][pairs["b"]]


def _tests(x: ndarray, y: ndarray, runs: int, seed: int) -> list[dict[str, Any]]:
    few = np.random.default_rng(seed).permutation(len(x))[:MOST_FOR_DISTANCES]
    return [
        {"measure": "SVCCA", "n": len(x)} | similarity.svcca_test(x, y, runs, seed),
        {"measure": "RSA", "n": len(few)} | similarity.rsa_test(x[few], y[few], runs, seed),
    ]


def layer_scores(name_a: str, name_b: str, profile: Profile, runs: int = 100) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every pair of layers of two models: similarity of the matched features' decoder rows, and what the filters left.

    First: layer_a, layer_b, measure, n, score, null_mean, null_95, p; NaN where fewer than 8 pairs are left.
    Second: layer_a, layer_b, and a column for each filter. Kept.
    """
    fields = _fields(name_a, name_b, profile) | {"runs": runs}
    folder = Store(profile.cache_dir).get("spaces", fields, partial(_score_layers, name_a, name_b, profile, runs))
    return pd.read_parquet(folder / "scores.parquet"), pd.read_parquet(folder / "filters.parquet")


def _score_layers(name_a: str, name_b: str, profile: Profile, runs: int, folder: Path) -> None:
    a, b = FeatureSpace.load(name_a, profile), FeatureSpace.load(name_b, profile)
    words = concepts.is_word(vocabulary(texts.load_tokenizer(profile)))
    scores, filters = [], []
    grid = [(i, j) for i in range(len(a.activations)) for j in range(len(b.activations))]
    for layers in tqdm(grid, f"spaces of {name_a} and {name_b}", mininterval=5):
        place = dict(zip(("layer_a", "layer_b"), layers, strict=True))
        pairs, left = matched_pairs(a, b, layers, words)
        filters.append(place | left)
        scores += [place | row for row in _scored(*decoder_rows(a, b, layers, pairs), runs, profile.seed)]
    pd.DataFrame(scores).to_parquet(folder / "scores.parquet", index=False)
    pd.DataFrame(filters).to_parquet(folder / "filters.parquet", index=False)


def _scored(x: ndarray, y: ndarray, runs: int, seed: int) -> list[dict[str, Any]]:
    if len(x) >= FEWEST:
        return _tests(x, y, runs, seed)
    nothing = dict.fromkeys(("score", "null_mean", "null_95", "p"), np.nan)
    return [{"measure": measure, "n": len(x)} | nothing for measure in ("SVCCA", "RSA")]


def _fields(name_a: str, name_b: str, profile: Profile) -> dict[str, Any]:
    both = {"a": artifacts.sae_fields(name_a, profile), "b": artifacts.sae_fields(name_b, profile)}
    choices = {"top": N_TOP, "lowest": LOWEST, "fewest": FEWEST, "most_for_distances": MOST_FOR_DISTANCES}
    return both | choices | {"mppc_tokens": profile.mppc_tokens}


# ------------------------------------------------------------------------------------------- subspaces


def subspace_scores(name_a: str, name_b: str, profile: Profile, runs: int = 1_000) -> pd.DataFrame:
    """Semantic subspaces: features of a concept matched again among themselves, in layers of the same relative depth.

    Columns: concept, layer_a, layer_b, features_a, features_b, measure, n, score, null_mean, null_95, p. Kept.
    """
    fields = _fields(name_a, name_b, profile) | {"runs": runs, "concepts": concepts.LISTS[profile.corpus]}
    folder = Store(profile.cache_dir).get("subspaces", fields, partial(_score_subspaces, name_a, name_b, profile, runs))
    return pd.read_parquet(folder / "scores.parquet")


def _score_subspaces(name_a: str, name_b: str, profile: Profile, runs: int, folder: Path) -> None:
    a, b = FeatureSpace.load(name_a, profile), FeatureSpace.load(name_b, profile)
    members = concepts.concept_tokens(vocabulary(texts.load_tokenizer(profile)), profile.corpus)
    rows = []
    for layers in tqdm(same_depth(len(a.activations), len(b.activations)), "subspaces", unit="layer", mininterval=5):
        for concept, tokens in members.items():
            own, other = (np.flatnonzero(concepts.features_of(s.top_tokens[k], tokens)) for s, k in zip((a, b), layers, strict=True))
            pairs = _pairs_within(a, b, layers, own, other)
            place = {"concept": concept, "layer_a": layers[0], "layer_b": layers[1], "features_a": len(own), "features_b": len(other)}
            rows += [place | row for row in _scored(*decoder_rows(a, b, layers, pairs), runs, profile.seed)]
    pd.DataFrame(rows).to_parquet(folder / "scores.parquet", index=False)


def same_depth(n_a: int, n_b: int) -> list[tuple[int, int]]:
    """Pairs of layers of (nearly) the same relative depth, one for each layer of A."""
    return [(layer, round((layer + 1) * n_b / n_a) - 1) for layer in range(n_a) if round((layer + 1) * n_b / n_a) > 0]


def _pairs_within(a: FeatureSpace, b: FeatureSpace, layers: tuple[int, int], own: ndarray, other: ndarray) -> pd.DataFrame:
    if not len(own) or not len(other):
        return pd.DataFrame({"a": np.zeros(0, int), "b": np.zeros(0, int), "rho": np.zeros(0)})
    best = max_pairwise_correlation([_columns(b.activations[layers[1]], other)], [_columns(a.activations[layers[0]], own)])
    found = (best.index >= 0) & (best.value > LOWEST)
    pairs = pd.DataFrame({"a": own[best.index[found]], "b": other[found], "rho": best.value[found]})
    return pairs.sort_values("rho", ascending=False, kind="stable").drop_duplicates("a").reset_index(drop=True)


def _columns(layer: SparseFeatures, columns: Int[ndarray, " k"]) -> SparseFeatures:
    some = SparseFeatures.from_scipy(scipy.sparse.csr_array(layer.to_scipy()[:, columns]))
    return replace(some, text=layer.text)


# ------------------------------------------------------------------------------------------- geometry


def agreement_by_rho(x: ndarray, y: ndarray, pairs: pd.DataFrame, k: int = 10) -> pd.DataFrame:
    """Do pairs that fire alike also lie alike? The pairs with the share of their k nearest pairs that both spaces agree on."""
    return pairs.assign(overlap=similarity.neighbour_overlap(x, y, k))


def umap(rows: ndarray, seed: int) -> Float32[ndarray, "n 2"]:
    """Two dimensions by UMAP (cosine, 15 neighbours); the same for the same seed."""
    from umap import UMAP  # takes seconds to import, and only one notebook needs it

    return UMAP(n_neighbors=min(15, len(rows) - 1), metric="cosine", random_state=seed, n_jobs=1).fit_transform(rows)


def concept_of(tokens: Int[ndarray, "n n_top"], members: dict[str, ndarray]) -> list[str]:
    """Each feature's concept; the first of several, "" for none."""
    inside = {name: concepts.features_of(tokens, group) for name, group in members.items()}
    return [next((name for name in inside if inside[name][k]), "") for k in range(len(tokens))]


def pairs_for_drawing(
    a: FeatureSpace, b: FeatureSpace, layers: tuple[int, int], words: Sequence[str], profile: Profile
) -> pd.DataFrame:
    """Matched pairs with both features' places on the two maps, their concept and their top token."""
    pairs, _ = matched_pairs(a, b, layers, concepts.is_word(words))
    x, y = decoder_rows(a, b, layers, pairs)
    tokens = a.top_tokens[layers[0]][pairs["a"]]
    places = np.hstack([umap(x, profile.seed), umap(y, profile.seed)])
    members = concepts.concept_tokens(words, profile.corpus)
    return pairs.assign(
        **dict(zip(("ax", "ay", "bx", "by"), places.T, strict=True)),
        concept=concept_of(tokens, members), token=[words[max(t, 0)] for t in tokens[:, 0]],
    )  # fmt: skip
