"""Feature spaces of a profile's models, and how alike they are (notebook 10), kept as artifacts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lib.interpret.snippets import top_places, vocabulary
from lib.spaces import concepts, semantic
from lib.spaces.semantic import FeatureSpace
from lib.workbook import artifacts, texts
from lib.workbook.profiles import Profile
from lib.workbook.store import Store

WORD_LISTS: Mapping[str, Mapping[str, str]] = {
    "docstrings": concepts.DOCUMENTATION,
    "openwebtext": concepts.GENERAL,
}


def feature_space(name: str, profile: Profile) -> FeatureSpace:
    """From trained SAEs of the first seed, made where they are missing."""
    saes, _ = artifacts.trained_saes(name, profile, profile.sae_seeds[0])
    activations = artifacts.features(name, profile)
    blocks = texts.load_blocks(profile, "held_out", profile.mppc_tokens)
    tokens = [top_places(layer, blocks, semantic.N_TOP).tokens() for layer in activations]
    return FeatureSpace(name, activations, [sae.W_dec.detach().float().cpu().numpy() for sae in saes], tokens)


def concept_tokens(profile: Profile) -> semantic.Members:
    """Which tokens belong to each concept of the profile's text."""
    return concepts.concept_tokens(vocabulary(texts.load_tokenizer(profile)), WORD_LISTS[profile.corpus])


def layer_scores(name_a: str, name_b: str, profile: Profile, runs: int = 100) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`semantic.layer_scores` of two models: scores, and what the filters left. Kept."""

    def score(folder: Path) -> None:
        words = concepts.is_word(vocabulary(texts.load_tokenizer(profile)))
        a, b = (feature_space(name, profile) for name in (name_a, name_b))
        tables = semantic.layer_scores(a, b, words, runs, profile.seed)
        for file, table in zip(("scores", "filters"), tables, strict=True):
            table.to_parquet(folder / f"{file}.parquet", index=False)

    folder = Store(profile.cache_dir).get("spaces", _fields(name_a, name_b, profile) | {"runs": runs}, score)
    return pd.read_parquet(folder / "scores.parquet"), pd.read_parquet(folder / "filters.parquet")


def subspace_scores(name_a: str, name_b: str, profile: Profile, runs: int = 1_000) -> pd.DataFrame:
    """`semantic.subspace_scores` of two models. Kept."""

    def score() -> pd.DataFrame:
        a, b = (feature_space(name, profile) for name in (name_a, name_b))
        return semantic.subspace_scores(a, b, concept_tokens(profile), runs, profile.seed)

    fields = _fields(name_a, name_b, profile) | {"runs": runs, "concepts": WORD_LISTS[profile.corpus]}
    return artifacts.kept("subspaces", fields, score, "scores.parquet", profile)


def pairs_for_drawing(name_a: str, name_b: str, layers: tuple[int, int], profile: Profile) -> pd.DataFrame:
    """`semantic.pairs_for_drawing` of two models' layers. Kept."""

    def draw() -> pd.DataFrame:
        a, b = (feature_space(name, profile) for name in (name_a, name_b))
        words = vocabulary(texts.load_tokenizer(profile))
        return semantic.pairs_for_drawing(a, b, layers, words, concept_tokens(profile), profile.seed)

    fields = _fields(name_a, name_b, profile) | {"layers": layers, "concepts": WORD_LISTS[profile.corpus]}
    return artifacts.kept("maps", fields, draw, "pairs.parquet", profile)


def _fields(name_a: str, name_b: str, profile: Profile) -> dict[str, Any]:
    both = {"a": artifacts.sae_fields(name_a, profile), "b": artifacts.sae_fields(name_b, profile)}
    return both | semantic.constants() | {"mppc_tokens": profile.mppc_tokens}
