"""Controls of MPPC that the papers lack: pools of one size, matches scored on other text, features matched one to one.

A maximum grows with the number of candidates, so a model with more features looks more similar; and it is chosen on the
very tokens on which it is then read, so it is too high by what is chance in the choice. `fair_pools` measures the first
and `cross_scored` the second. `elsewhere` pairs tokens that have nothing but their place in a block in common: a null
beside the shift of `lib.mppc.uncertainty`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Float32, Int
from numpy import ndarray
from scipy.optimize import linear_sum_assignment
from scipy.stats import mannwhitneyu
from torch import Tensor

from lib.mppc.correlation import max_pairwise_correlation
from lib.mppc.features import SparseFeatures, feature_statistics
from lib.mppc.uncertainty import correlation, matched_sums

PAPERS_WAY = "all candidates (the paper's way)"
FOUND = 0.7  # cosine from which a feature counts as found by both SAEs (Paulo and Belrose 2025, arXiv 2501.16615)


def kept(features: SparseFeatures, keep: Bool[ndarray, " d_sae"]) -> SparseFeatures:
    """The same features, of which those that are not kept never fire: their indices stay, and nothing matches them."""
    there = keep[features.indices]
    ends = np.concatenate([[0], np.cumsum(there)])[features.indptr]
    return SparseFeatures(ends, features.indices[there], features.stored[there], features.shape, features.text)


def varying(layers: Sequence[SparseFeatures]) -> list[Bool[ndarray, " d_sae"]]:
    """Which features of each layer can have a match: those that are not the same on every token."""
    return [~feature_statistics(layer).constant for layer in layers]


def fair_pools(
    a: Sequence[SparseFeatures], b: Sequence[SparseFeatures], size: int, n_draws: int, seed: int, **options
) -> Float[ndarray, "draws features"]:
    """MPPC of the features of `a` with random subsets of b's, all of one size; NaN where undefined.

    A subset is drawn without replacement from the features of all layers of `b` that vary. `options` are those of
    `max_pairwise_correlations`. Raises `ValueError` where `b` has fewer than `size` such features.
    """
    candidates = varying(b)
    places = np.flatnonzero(np.concatenate(candidates))
    if size > len(places):
        raise ValueError(f"a pool of {size:,} features was asked for, and only {len(places):,} vary.")
    ends = np.cumsum([layer.d_sae for layer in b])[:-1]
    rng, draws = np.random.default_rng(seed), []
    for _ in range(n_draws):
        keep = np.zeros(sum(layer.d_sae for layer in b), bool)
        keep[rng.choice(places, size, replace=False)] = True
        pool = [kept(layer, part) for layer, part in zip(b, np.split(keep, ends), strict=True)]
        draws.append(max_pairwise_correlation(a, pool, **options).value)
    return np.stack(draws)


def cross_scored(
    a: Sequence[SparseFeatures], b: Sequence[SparseFeatures], group: Int[ndarray, " n_tokens"], **options
) -> pd.DataFrame:
    """Matches chosen on half of the documents and scored on the other half, both ways, a row per feature of `a`.

    Columns layer, index, chosen (mean MPPC on the halves where the match was chosen) and scored (mean correlation of
    the same pairs on the other halves); `chosen` − `scored` is the optimism of the maximum. NaN where a feature does
    not vary on both halves. `group` gives every token's group of documents (`uncertainty.document_groups`); even and
    odd groups are the halves. `options` are those of `max_pairwise_correlations`.
    """
    chosen, scored = [], []
    for half in (0, 1):
        sides = (np.flatnonzero(group % 2 == side) for side in (half, 1 - half))
        here, there = ([[reordered(layer, tokens) for layer in layers] for layers in (a, b)] for tokens in sides)
        frame = max_pairwise_correlation(*here, **options).to_frame()
        sums = matched_sums(*there, frame, np.zeros(there[0][0].n_tokens, np.int32))
        chosen.append(frame["mppc"].to_numpy(float))
        scored.append(correlation(sums[:, 0], np.array(float(there[0][0].n_tokens))))
    both = np.stack([chosen, scored]).mean(1)
    both[:, np.isnan(both).any(0)] = np.nan
    return frame[["layer", "index"]].assign(chosen=both[0], scored=both[1])


def by_match_layer(
    a: Sequence[SparseFeatures], b: Sequence[SparseFeatures], **options
) -> Float32[ndarray, "features layers"]:
    """MPPC of every feature of `a` with each layer of `b` alone; NaN where undefined. A row's maximum is eq. 8's.

    `options` are those of `max_pairwise_correlations`.
    """
    return np.stack([max_pairwise_correlation(a, [layer], **options).value for layer in b], axis=1)


def elsewhere(mask: Bool[ndarray, "blocks context"], seed: int) -> Int[ndarray, " n_tokens"]:
    """For every token that counts, the number of another: at the same place of another block of text, each taken once.

    The blocks are put in a random order, and each token gets the one that stands at its place in the next block that
    reaches so far (a place that one block alone reaches keeps its token). `mask` is `Blocks.mask`.
    """
    block, place = np.nonzero(mask)
    rank = np.random.default_rng(seed).permutation(len(mask))[block]
    order = np.lexsort((rank, place))  # by place, and for each place by the blocks' random order
    firsts = np.flatnonzero(np.diff(place[order], prepend=-1))
    following = np.roll(order, -1)
    lasts = np.append(firsts[1:], len(order)) - 1
    following[lasts] = order[firsts]  # the last block of a place is followed by its first
    found = np.empty_like(order)
    found[order] = following
    return found


def reordered(features: SparseFeatures, tokens: Int[ndarray, " tokens"]) -> SparseFeatures:
    """The same features with their tokens in another order, or with some of their tokens only."""
    return SparseFeatures.from_scipy(features.to_scipy()[tokens])


def pairwise_mcc(
    W_dec_a: Float[Tensor, "n d_model"], W_dec_b: Float[Tensor, "m d_model"]
) -> tuple[Float[ndarray, " n"], Int[ndarray, " n"]]:
    """Cosine of every decoder direction with its partner where partners are assigned one to one, and the partner.

    The assignment has the largest sum of cosines; their mean is the pairwise dictionary mean correlation coefficient
    (PW-MCC) of two SAEs of the same activations. Directions without a partner get NaN and −1.
    """
    unit_a, unit_b = (torch.nn.functional.normalize(W.detach().double(), dim=1) for W in (W_dec_a, W_dec_b))
    cosine = (unit_a @ unit_b.T).cpu().numpy()
    rows, columns = linear_sum_assignment(cosine, maximize=True)
    value, partner = np.full(len(cosine), np.nan), np.full(len(cosine), -1)
    value[rows], partner[rows] = cosine[rows, columns], columns
    return value, partner


def by_firing_rate(partners: pd.DataFrame, n_bins: int = 8) -> pd.DataFrame:
    """What both SAE seeds find, by groups of equally many features of like firing rate; dead features are left out.

    Columns firing_rate (the group's median), n, cosine, mppc (means), found (share with a cosine of `FOUND` or more),
    and cosine_error, mppc_error, found_error, which are the standard errors of these over the group's features.
    """
    alive = partners[partners["firing_rate"] > 0].dropna()
    groups = pd.qcut(alive["firing_rate"].rank(method="first"), min(n_bins, len(alive)), labels=False)
    table = alive.assign(found=alive["cosine"] >= FOUND).groupby(groups).agg(
        firing_rate=("firing_rate", "median"), n=("cosine", "size"),
        cosine=("cosine", "mean"), mppc=("mppc", "mean"), found=("found", "mean"),
        cosine_error=("cosine", "sem"), mppc_error=("mppc", "sem"), found_error=("found", "sem"),
    )  # fmt: skip
    return table.reset_index(drop=True)


# ------------------------------------------------------------------------------------------- beside the paper's way


def side_by_side(summary: pd.DataFrame, pools: pd.DataFrame, halves: pd.DataFrame) -> pd.DataFrame:
    """Forward directions' means as the paper takes them and under each control: comparison, measure, mean, low, high.

    All three have a row per comparison: `summary` has direction, mean, low and high, `pools` direction, size,
    mean_equal and spread, `halves` scored. `low` and `high` are the 95 % interval of the paper's way, one standard
    deviation between random pools, and the mean itself for the halves.
    """
    parts = [summary[summary["direction"] == "forward"].assign(measure=PAPERS_WAY)]
    of_size = pools[pools["direction"] == "forward"].groupby("size", sort=False)
    for size, rows in sorted(of_size, key=lambda group: -group[0]):
        mean, spread = rows["mean_equal"], rows["spread"]
        drawn = rows.assign(mean=mean, low=mean - spread, high=mean + spread)
        parts.append(drawn.assign(measure=f"{size:,} candidates for all"))
    scored = halves["scored"]
    rows = halves.assign(mean=scored, low=scored, high=scored)
    parts.append(rows.assign(measure="chosen on one half, scored on the other"))
    return pd.concat(parts, ignore_index=True)[["comparison", "measure", "mean", "low", "high"]]


def order_changes(side_by_side: pd.DataFrame) -> bool:
    """Whether some control puts the comparisons that it has in another order than the paper's way does."""
    means = side_by_side.pivot(index="comparison", columns="measure", values="mean")
    papers = means.pop(PAPERS_WAY)
    return any((papers[c.dropna().index].rank() != c.dropna().rank()).any() for _, c in means.items())


def effect(real: pd.Series, null: pd.Series) -> dict[str, float]:
    """How far MPPC lies above a null: difference of the means, share above the null's 99th percentile, superiority.

    Superiority is the chance that a feature drawn from `real` has a higher MPPC than one drawn from `null`.
    """
    real, null = (mppc.dropna().astype(float) for mppc in (real, null))
    superiority = mannwhitneyu(real, null).statistic / (len(real) * len(null))
    return {
        "mean": real.mean(),
        "null_mean": null.mean(),
        "difference": real.mean() - null.mean(),
        "null_99": null.quantile(0.99),
        "share_above_null_99": (real > null.quantile(0.99)).mean(),
        "superiority": superiority,
    }
