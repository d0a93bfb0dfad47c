"""Complexity and consistency of features against how well they match (W §5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from tqdm import tqdm

from lib.interpret.chat_judge import ChatJudge
from lib.interpret.judges import ASPECTS, Example, Judge, RuleJudge, examples_of
from lib.interpret.sampling import stratified_features
from lib.interpret.snippets import TopPlaces, top_places, vocabulary
from lib.mppc.uncertainty import interval
from lib.plots.complexity import Pair
from lib.workbook import artifacts, comparisons, texts
from lib.workbook.profiles import Profile

ACROSS = "Pythia → Mamba"
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
    return ChatJudge(profile.judge_model, answers, profile.judge_concurrency)


@dataclass(frozen=True, eq=False)
class Sample:
    """Features to be judged, and what the judge reads of them."""

    frame: pd.DataFrame
    """layer, index, firing_rate, and the MPPC under each variant's label."""
    examples: list[list[Example]]


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
    frame = frames["sae_seed"][["layer", "index", "firing_rate"]].assign(**{labels[name]: f["mppc"] for name, f in frames.items()})
    enough = np.concatenate([layer.rows[:, -1] >= 0 for layer in places])
    chosen = stratified_features(frame[enough].assign(mppc=frame.iloc[:, -1]), profile.judge_features, profile.seed)
    chosen = chosen.drop(columns="mppc").reset_index(drop=True)
    words = vocabulary(texts.load_tokenizer(profile))
    return Sample(chosen, [examples_of(places[row.layer].snippets(row.feature), words)
                           for row in chosen.rename(columns={"index": "feature"}).itertuples()])  # fmt: skip


def scored(sample: Sample, judge: Judge) -> pd.DataFrame:
    """The sample's frame with complexity, monosemanticity and who judged; NaN where an answer was malformed."""
    scores = judge.score(sample.examples)
    return sample.frame.assign(
        **{aspect: np.array([getattr(score, aspect) for score in scores], float) for aspect in ASPECTS}, judge=judge.name
    )


def correlations(scores: pd.DataFrame, aspect: str, seed: int, n_resamples: int = 1_000) -> pd.DataFrame:
    """Spearman's correlation of a score with MPPC under each variant, with 95 % interval (features resampled).

    With the cross-architecture variant, the last row is by how much the SAE-seed one's is nearer to zero than its, paired.
    """
    labels = [label for label in ("SAE seed", "model seed", ACROSS) if label in scores]
    data = scores.dropna(subset=[aspect, *labels])
    rng = np.random.default_rng(seed)
    draws = [data.iloc[rng.integers(0, len(data), len(data))] for _ in range(n_resamples)]
    values = {label: np.array([d[aspect].corr(d[label], method="spearman") for d in [data, *draws]]) for label in labels}
    if ACROSS in values:
        values[f"|{ACROSS}| − |SAE seed|"] = np.abs(values[ACROSS]) - np.abs(values["SAE seed"])
    rows = {label: (v[0], *interval(v[1:], v[0])) for label, v in values.items()}
    return pd.DataFrame(rows, index=["spearman", "low", "high"]).T.rename_axis("variant").reset_index()


def boundary(scores: pd.DataFrame, label: str = ACROSS, clear: int = 3) -> dict[str, float]:
    """The MPPC that best separates features without a clear pattern (monosemanticity < `clear`) from the others.

    Best is the highest Youden's J: share of unclear ones below it, minus share of clear ones below it. Also the shares
    of unclear features below and above 0.2, the paper's boundary.
    """
    data = scores.dropna(subset=["monosemanticity", label])
    unclear, mppc = data["monosemanticity"] < clear, data[label]
    cuts = np.unique(np.round(mppc, 3))
    youden = [(mppc[unclear] < cut).mean() - (mppc[~unclear] < cut).mean() for cut in cuts]
    below = mppc < 0.2
    return {
        "boundary": float(cuts[int(np.argmax(youden))]),
        "youden": float(np.max(youden)),
        "unclear_below_0.2": float(unclear[below].mean()),
        "unclear_above_0.2": float(unclear[~below].mean()),
        "n_below_0.2": int(below.sum()),
    }


def with_matches(rows: pd.DataFrame, profile: Profile) -> pd.DataFrame:
    """Rows of scored features with the layer and index of their match in Mamba."""
    matches = artifacts.mppc(profile.pythia, profile.mamba, profile)[0]
    return rows.merge(matches[["layer", "index", "match_layer", "match_index"]], on=["layer", "index"], how="left")


def pairs_of(
    rows: pd.DataFrame, places: Sequence[TopPlaces], match_places: Sequence[TopPlaces], profile: Profile
) -> list[Pair]:
    """Scored features and their matches in Mamba, to be drawn."""
    words = vocabulary(texts.load_tokenizer(profile))
    pairs = []
    columns = [ACROSS, "layer", "index", "match_layer", "match_index"]
    for mppc, layer, index, match_layer, match_index in with_matches(rows, profile)[columns].itertuples(index=False, name=None):
        title = f"MPPC {mppc:.2f}: Pythia {layer}/{index} – Mamba {match_layer}/{match_index}"
        own, other = places[layer].snippets(index), match_places[match_layer].snippets(match_index)
        pairs.append(Pair(title, examples_of(own, words), examples_of(other, words)))
    return pairs


def case_studies(scores: pd.DataFrame, targets: Sequence[float] = (0.97, 0.75, 0.5, 0.25)) -> pd.DataFrame:
    """For each target the feature whose cross-architecture MPPC is nearest (W, Fig. 4), the consistent ones first."""
    consistent = scores[scores["monosemanticity"] >= 3]
    pool = consistent if len(consistent) >= len(targets) else scores
    rows = [(pool[ACROSS] - target).abs().idxmin() for target in targets]
    return scores.loc[list(dict.fromkeys(rows))]


def uninterpretable(scores: pd.DataFrame, n: int = 4) -> pd.DataFrame:
    """Features with MPPC below 0.2 whose snippets show no pattern, the lowest consistency first (W, Fig. 12)."""
    low = scores[scores[ACROSS] < 0.2]
    pool = low if len(low) >= n else scores.nsmallest(n, ACROSS)
    return pool.sort_values(["monosemanticity", ACROSS], kind="stable").head(n)
