"""Complexity and consistency of features against how well they match (W §5).

Frames of scores have a row per judged feature: layer, index, complexity, monosemanticity, and its MPPC under each
variant of the comparison (another SAE seed, another model seed, another architecture), in a column named for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest, pearsonr, rankdata

from lib.interpret.judges import ASPECTS, Example, Judge
from lib.mppc.uncertainty import interval, widened

LOW = 0.2  # the paper's boundary of what can be interpreted (§5.2)
CLEAR = 3  # monosemanticity from which on a pattern is seen
FIFTHS = (-1, LOW, 0.4, 0.6, 0.8, 1.01)
FIFTH_NAMES = ("< 0.2", "0.2–0.4", "0.4–0.6", "0.6–0.8", "> 0.8")


@dataclass(frozen=True, eq=False)
class Sample:
    """Features to be judged, and what the judge reads of them."""

    frame: pd.DataFrame
    """layer, index, firing_rate, and the MPPC under each variant's label."""
    examples: list[list[Example]]


def stratified_features(frame: pd.DataFrame, n: int, seed: int, n_bins: int = 5) -> pd.DataFrame:
    """About `n` rows with an MPPC, as many from each layer and from each fifth of the MPPC's range of 0 to 1.

    A stratum with fewer rows than its share gives all it has. `frame` has columns layer, index, mppc; sorted by them.
    """
    alive = frame.dropna(subset="mppc")
    bins = np.clip((alive["mppc"] * n_bins).astype(int), 0, n_bins - 1)
    strata = alive.groupby([alive["layer"], bins.rename("bin")])
    share = max(1, round(n / (alive["layer"].nunique() * n_bins)))
    rng = np.random.default_rng(seed)
    chosen = [rows.iloc[rng.permutation(len(rows))[:share]] for _, rows in strata]
    return pd.concat(chosen).sort_values(["layer", "index"])


def scored(sample: Sample, judge: Judge) -> pd.DataFrame:
    """The sample's frame with complexity, monosemanticity and who judged; NaN where an answer was malformed."""
    scores = judge.score(sample.examples)
    columns = {aspect: np.array([getattr(score, aspect) for score in scores], float) for aspect in ASPECTS}
    return sample.frame.assign(**columns, judge=judge.name)


def correlations(
    scores: pd.DataFrame, aspect: str, variants: Sequence[str], seed: int, n_resamples: int = 1_000,
    weaker: tuple[str, str] | None = None, deviations: Mapping[str, float] = {},
) -> pd.DataFrame:  # fmt: skip
    """Spearman's correlation of a score with MPPC under each variant, with 95 % interval (features resampled).

    `weaker=(a, b)` adds a last row: by how much a's correlation is nearer to zero than b's, in the same resamples.
    `deviations` are those over trainings of the SAEs, by row, and widen the intervals; which features are judged is a
    matter of training, too, and is counted twice, so they are rather too wide.
    """
    data = scores.dropna(subset=[aspect, *variants])
    rng, n = np.random.default_rng(seed), len(data)
    rows = np.stack([np.arange(n), *(rng.integers(0, n, n) for _ in range(n_resamples))])
    ranks = {column: rankdata(data[column].to_numpy()[rows], axis=1) for column in (aspect, *variants)}
    values = {label: pearsonr(ranks[aspect], ranks[label], axis=1).statistic for label in variants}
    if weaker:
        near, far = weaker
        values[f"|{far}| − |{near}|"] = np.abs(values[far]) - np.abs(values[near])
    rows = {
        label: (v[0], *widened(interval(v[1:], v[0]), v[0], deviations.get(label, np.nan)))
        for label, v in values.items()
    }
    return pd.DataFrame(rows, index=["spearman", "low", "high"]).T.rename_axis("variant").reset_index()


def boundary(scores: pd.DataFrame, variant: str) -> dict[str, float]:
    """The MPPC that best separates features without a clear pattern (monosemanticity < `CLEAR`) from the others.

    Best is the highest Youden's J: share of unclear ones below it, minus share of clear ones below it.
    """
    data = scores.dropna(subset=["monosemanticity", variant])
    unclear, mppc = data["monosemanticity"] < CLEAR, data[variant]
    cuts = np.unique(np.round(mppc, 3))
    youden = [(mppc[unclear] < cut).mean() - (mppc[~unclear] < cut).mean() for cut in cuts]
    return {"boundary": float(cuts[int(np.argmax(youden))]), "youden": float(np.max(youden))}


def unreadable(pairs: pd.DataFrame, variant: str) -> pd.DataFrame:
    """How many pairs show no clear pattern (monosemanticity < `CLEAR`), in each fifth of MPPC (W, App. F).

    `pairs` has the scores of both sides: monosemanticity, and match_monosemanticity; pairs with a score missing are
    left out. Columns: MPPC (the fifth, in words), side (own, match, or both), n, share, and its 95 % interval (Wilson).
    """
    data = pairs.dropna(subset=["monosemanticity", "match_monosemanticity", variant])
    own, match = data["monosemanticity"] < CLEAR, data["match_monosemanticity"] < CLEAR
    rows = []
    for fifth, group in data.groupby(pd.cut(data[variant], FIFTHS, labels=list(FIFTH_NAMES)), observed=True):
        for side, unclear in (("own", own), ("match", match), ("both", own & match)):
            k, n = int(unclear[group.index].sum()), len(group)
            low, high = binomtest(k, n).proportion_ci(method="wilson")
            rows.append({"MPPC": fifth, "side": side, "n": n, "share": k / n, "low": low, "high": high})
    return pd.DataFrame(rows)


def case_studies(
    scores: pd.DataFrame, variant: str, targets: Sequence[float] = (0.97, 0.75, 0.5, 0.25)
) -> pd.DataFrame:
    """For each target the feature whose MPPC is nearest (W, Fig. 4), the consistent ones first."""
    consistent = scores[scores["monosemanticity"] >= CLEAR]
    pool = consistent if len(consistent) >= len(targets) else scores
    rows = [(pool[variant] - target).abs().idxmin() for target in targets]
    return scores.loc[list(dict.fromkeys(rows))]


def drawn_below(scores: pd.DataFrame, variant: str, seed: int, n: int = 4) -> pd.DataFrame:
    """`n` features with MPPC below 0.2, drawn at random whatever their scores are, the lowest MPPC first (W, Fig. 12).

    Where there are fewer than `n`, the `n` of lowest MPPC.
    """
    low = scores[scores[variant] < LOW]
    pool = low if len(low) >= n else scores.nsmallest(n, variant)
    return pool.sample(min(n, len(pool)), random_state=seed).sort_values(variant, kind="stable")
