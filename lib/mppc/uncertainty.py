"""How sure an MPPC is: intervals by bootstrap over documents, and what chance alone gives (neither is in the papers).

A maximum over many features is positive by chance. The null repeats the whole computation on pairs that mean nothing:
one model's activations are shifted against the other's by a random number of tokens, so that every feature keeps its
firing rate, its bursts and its neighbours, and only the pairing is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Float32, Float64, Int
from numba import njit, prange
from numpy import ndarray
from tqdm import tqdm

from lib.corpus import Blocks
from lib.mppc.features import SparseFeatures

Resampled = Float32[ndarray, "resamples features"]
NORMAL = 1.96  # deviations to either end of a 95 % interval
N_GROUPS = 100  # groups of documents: what is drawn with replacement
N_RESAMPLES = 1_000
ENTRIES_AT_ONCE = 1 << 24  # of both models' features; they take half a gigabyte


def constants() -> dict[str, int]:
    """What decides an interval beside its data and seed: part of its artifact's key."""
    return {"n_groups": N_GROUPS, "n_resamples": N_RESAMPLES}


def null_offset(n_tokens: int, seed: int) -> int:
    """A random shift that is far from none: between a quarter and three quarters of the text."""
    return int(np.random.default_rng(seed).integers(n_tokens // 4, max(n_tokens // 4 + 1, 3 * n_tokens // 4)))


def null_level(frame: pd.DataFrame, null: pd.DataFrame, quantile: float = 0.99, n_bins: int = 10) -> pd.Series:
    """Per feature of `frame`, the null's quantile among features of like firing rate (NaN where mppc is).

    Rare features find a high maximum by chance more easily than frequent ones, so the level is theirs. Both frames
    are of one model: columns mppc and, unless it is about neurons, firing_rate.
    """
    alive = frame["mppc"].notna() & null["mppc"].notna()
    if "firing_rate" in frame:
        order = frame.loc[alive, "firing_rate"].rank(method="first")
        bins = pd.qcut(order, min(n_bins, max(1, len(order))), labels=False)
    else:
        bins = pd.Series(0, frame.index[alive])
    level = null.loc[alive, "mppc"].groupby(bins).quantile(quantile)
    return bins.map(level).reindex(frame.index)


def document_groups(blocks: Blocks, seed: int, n_groups: int = N_GROUPS) -> Int[ndarray, " n_tokens"]:
    """A group of documents for every token that counts; each document goes into one of the groups at random."""
    _, document = np.unique(blocks.document, return_inverse=True)
    group = np.random.default_rng(seed).permutation(document.max() + 1) % n_groups
    return np.repeat(group[document], blocks.mask.sum(1)).astype(np.int32)


def matched_sums(
    a: Sequence[SparseFeatures], b: Sequence[SparseFeatures], matches: pd.DataFrame, group: Int[ndarray, " n_tokens"]
) -> Float64[ndarray, "features groups 5"]:
    """Σx, Σy, Σx², Σy², Σxy of every feature of `a` and its match in `b`, over each group of documents' tokens.

    `matches` has a row per feature of `a`, in order, as from `MaxCorrelation.to_frame`. Features without a match get
    NaN. Reads the text once, a part at a time. Memory: per group, 40 bytes for a feature of `a` and 24 for one of `b`.
    """
    n_groups = int(group.max()) + 1
    first = np.cumsum([0] + [layer.d_sae for layer in b])
    layer, index = (matches[name].to_numpy() for name in ("match_layer", "match_index"))
    match = np.where(layer >= 0, first[layer] + index, 0)
    sums, of_b = np.zeros((len(matches), n_groups, 5)), np.zeros((first[-1], n_groups, 2))
    entries = max(1, sum(layer.nnz for layer in (*a, *b)))
    step = max(1, ENTRIES_AT_ONCE * len(group) // entries)
    for start in tqdm(range(0, len(group), step), "sums for the bootstrap", mininterval=5):
        part = slice(start, min(start + step, len(group)))
        tokens = np.argsort(group[part], kind="stable")
        ends = np.searchsorted(group[part][tokens], np.arange(n_groups + 1))
        _add_sums(*_side_by_side(a, part), *_side_by_side(b, part), match, tokens, ends, sums, of_b)
    for k in (0, 1):
        sums[:, :, 2 * k + 1] = of_b[match, :, k]
    sums[layer < 0] = np.nan
    return sums


def _side_by_side(layers: Sequence[SparseFeatures], tokens: slice) -> tuple[ndarray, ndarray, ndarray]:
    """All layers' features as columns of one matrix, of some tokens: indptr, indices, values."""
    matrix = scipy.sparse.hstack([layer.rows(tokens.start, tokens.stop).to_scipy() for layer in layers], "csr")
    return matrix.indptr, matrix.indices, matrix.data


@njit(parallel=True, cache=True)
def _add_sums(a_indptr, a_indices, a_values, b_indptr, b_indices, b_values, match, tokens, ends, sums, of_b):
    """Add some tokens' sums to those of their groups; a group belongs to one thread, whose tokens are in order."""
    for g in prange(len(ends) - 1):
        if ends[g] == ends[g + 1]:
            continue
        row = np.zeros(len(of_b), np.float32)
        for token in tokens[ends[g] : ends[g + 1]]:
            for entry in range(b_indptr[token], b_indptr[token + 1]):
                j, y = b_indices[entry], np.float64(b_values[entry])
                row[j] = b_values[entry]
                of_b[j, g, 0] += y
                of_b[j, g, 1] += y * y
            for entry in range(a_indptr[token], a_indptr[token + 1]):
                i, x = a_indices[entry], np.float64(a_values[entry])
                sums[i, g, 0] += x
                sums[i, g, 2] += x * x
                sums[i, g, 4] += x * np.float64(row[match[i]])
            for entry in range(b_indptr[token], b_indptr[token + 1]):
                row[b_indices[entry]] = 0


def bootstrap(
    sums: Float64[ndarray, "features groups 5"], group_sizes: Int[ndarray, " groups"], seed: int,
    n_resamples: int = N_RESAMPLES,
) -> Resampled:  # fmt: skip
    """Correlation of every feature with its match, in resamples of the groups of documents (with replacement).

    Matches are those of the whole text: what is resampled is how well they agree, not who is chosen. The draws follow
    from `seed` alone, so differences between comparisons over the same text are paired. NaN where undefined.
    """
    n_groups = len(group_sizes)
    weights = np.random.default_rng(seed).multinomial(n_groups, np.full(n_groups, 1 / n_groups), n_resamples)
    n = (weights @ group_sizes)[:, None].astype(float)
    found = np.empty((n_resamples, len(sums)), np.float32)
    for first in range(0, len(sums), 512):  # 512 features at a time bound the memory
        part = sums[first : first + 512]
        found[:, first : first + 512] = correlation(np.tensordot(weights.astype(float), part, (1, 1)), n)
    return found


def resampled(
    a: Sequence[SparseFeatures], b: Sequence[SparseFeatures], matches: pd.DataFrame, group: Int[ndarray, " n_tokens"],
    seed: int, n_resamples: int = N_RESAMPLES,
) -> Resampled:  # fmt: skip
    """MPPC of the features of `a` with their `matches` in `b`, in resamples of the `group`s of documents."""
    return bootstrap(matched_sums(a, b, matches, group), np.bincount(group), seed, n_resamples)


def correlation(sums: Float64[ndarray, "... 5"], n: Float64[ndarray, "..."]) -> Float64[ndarray, "..."]:
    """Pearson correlation from Σx, Σy, Σx², Σy², Σxy over n tokens; NaN where one of the two does not vary."""
    x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    variance = (n * xx - x**2) * (n * yy - y**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(variance > 0, (n * xy - x * y) / np.sqrt(variance), np.nan)


def interval(values: ndarray, estimate: float, level: float = 0.95) -> tuple[float, float]:
    """Interval of a statistic from its bootstrap values: their percentiles, moved so that their mean is the estimate.

    Features that fire in a few documents make the resamples' mean a little lower than the estimate, by more than the
    interval's width where there are many features; the spread is what the resamples are asked for.
    """
    low, high = np.nanpercentile(values, [50 * (1 - level), 50 * (1 + level)]) - np.nanmean(values) + estimate
    return float(low), float(high)


def widened(span: tuple[float, float], estimate: float, deviation: float) -> tuple[float, float]:
    """A 95 % interval with another, independent error of a standard deviation added in quadrature; NaN adds nothing."""
    more = NORMAL * np.nan_to_num(deviation)
    return float(estimate - np.hypot(estimate - span[0], more)), float(estimate + np.hypot(span[1] - estimate, more))
