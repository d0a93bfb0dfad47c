"""Features of a profile's models to be judged, the judge, and what is drawn of both (notebook 06)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from tqdm import tqdm

from lib import interpret
from lib.interpret.complexity import Sample, stratified_features
from lib.interpret.judges import Judge, RuleJudge, examples_at
from lib.interpret.snippets import TopPlaces, top_places, vocabulary
from lib.plots.complexity import Pair
from lib.workbook import artifacts, comparisons, texts
from lib.workbook.profiles import Profile

VARIANTS = ("sae_seed", "model_seed", "mamba")


def variants(profile: Profile) -> dict[str, str]:
    """The comparisons of §5 that there are models for, short name → label; the cross-architecture one last."""
    known = comparisons.comparisons(profile)
    return {name: known[name].label for name in VARIANTS if name in known}


def judge_of(profile: Profile) -> Judge:
    """The profile's judge. Raises `JudgeUnavailable` for a language model without a key."""
    if profile.judge_model is None:
        return RuleJudge()
    answers = profile.cache_dir / "judge_answers.jsonl"
    return interpret.ChatJudge(profile.judge_model, answers, profile.judge_concurrency)


def places_of(name: str, profile: Profile) -> list[TopPlaces]:
    """The highest places of all features of a model, by layer."""
    blocks = texts.load_blocks(profile, "held_out", profile.mppc_tokens)
    layers = tqdm(artifacts.features(name, profile), f"highest places of {name}", unit="layer", mininterval=5)
    return [top_places(layer, blocks) for layer in layers]


def sample(profile: Profile, places: Sequence[TopPlaces]) -> Sample:
    """`judge_features` of the Transformer's features, spread over layers and the last variant's MPPC.

    Features that fire in fewer than ten documents are left out, as they have fewer snippets than App. E asks for.
    """
    known = comparisons.comparisons(profile)
    labels = variants(profile)
    frames = {name: artifacts.mppc(known[name].a, known[name].b, profile, known[name].seed_b)[0] for name in labels}
    frame = frames["sae_seed"][["layer", "index", "firing_rate"]]
    frame = frame.assign(**{labels[name]: found["mppc"] for name, found in frames.items()})
    enough = np.concatenate([layer.rows[:, -1] >= 0 for layer in places])
    chosen = stratified_features(frame[enough].assign(mppc=frame.iloc[:, -1]), profile.judge_features, profile.seed)
    chosen = chosen.drop(columns="mppc").reset_index(drop=True)
    words = vocabulary(texts.load_tokenizer(profile))
    return Sample(chosen, examples_at(places, chosen["layer"], chosen["index"], words))


def with_matches(rows: pd.DataFrame, profile: Profile) -> pd.DataFrame:
    """Rows of scored features with the layer and index of their match in Mamba."""
    matches = artifacts.mppc(profile.pythia, profile.mamba, profile)[0]
    return rows.merge(matches[["layer", "index", "match_layer", "match_index"]], on=["layer", "index"], how="left")


def both_sides(scores: pd.DataFrame, match_places: Sequence[TopPlaces], judge: Judge, profile: Profile) -> pd.DataFrame:
    """Scored features with their matches in Mamba, which the same judge has scored too: match_monosemanticity."""
    found, words = with_matches(scores, profile), vocabulary(texts.load_tokenizer(profile))
    judged = judge.score(examples_at(match_places, found["match_layer"], found["match_index"], words))
    return found.assign(match_monosemanticity=np.array([score.monosemanticity for score in judged], float))


def pairs_of(
    rows: pd.DataFrame, places: Sequence[TopPlaces], match_places: Sequence[TopPlaces], profile: Profile
) -> list[Pair]:
    """Scored features and their matches in Mamba, to be drawn."""
    words, mppc = vocabulary(texts.load_tokenizer(profile)), variants(profile)["mamba"]
    found = with_matches(rows, profile)
    own = examples_at(places, found["layer"], found["index"], words)
    other = examples_at(match_places, found["match_layer"], found["match_index"], words)
    titles = (
        f"MPPC {row[mppc]:.2f}: feature {row['index']} of Pythia's layer {row['layer']}, "
        f"{row['match_index']} of Mamba's layer {row['match_layer']}"
        for row in found.to_dict("records")
    )
    return [Pair(*parts) for parts in zip(titles, own, other, strict=True)]
