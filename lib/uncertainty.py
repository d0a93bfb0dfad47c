"""How sure an MPPC is: intervals by bootstrap over documents, and what chance alone gives (neither is in the papers).

A maximum over many features is positive by chance. The null repeats the whole computation on pairs that mean nothing:
one model's activations are shifted against the other's by a random number of tokens, so that every feature keeps its
firing rate, its bursts and its neighbours, and only the pairing is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float32, Float64, Int
from numba import njit, prange
from numpy import ndarray
from tqdm import tqdm

from lib.corpus import Blocks
from lib.features import SparseFeatures

N_GROUPS = 100  # groups of documents: what is drawn with replacement
N_RESAMPLES = 1_000


def rolled(features: SparseFeatures, offset: int) -> SparseFeatures:
    """The same features, `offset` tokens later; what falls off the end comes first. Copies the entries."""
    offset %= max(features.n_tokens, 1)
    cut = features.n_tokens - offset
    entry = features.indptr[cut]
    counts = np.diff(features.indptr)
    indptr = np.concatenate([[0], np.cumsum(np.concatenate([counts[cut:], counts[:cut]]))]).astype(np.int64)
    indices = np.concatenate([features.indices[entry:], features.indices[:entry]])
    values = np.concatenate([features.values[entry:], features.values[:entry]])
    return SparseFeatures(indptr, indices, values, features.shape)


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
    """Σx, Σy, Σx², Σy², Σxy of every feature of `a` and its match in `b`, over the tokens of each group of documents.

    `matches` has a row per feature of `a`, as from `MaxCorrelation.to_frame`. Features without a match get NaN.
    Reads only the entries of matched features. Memory: 40 bytes per feature and group, twice the entries of `a`, and
    those of one layer of `b`.
    """
    n_groups = int(group.max()) + 1
    sums = np.full((len(matches), n_groups, 5), np.nan)
    own, other = matches["layer"].to_numpy(), matches["match_layer"].to_numpy()
    columns_a = [_columns(layer) for layer in a]
    for layer_b in tqdm(np.unique(other[other >= 0]), "sums for the bootstrap", mininterval=5):
        columns_b = _columns(b[layer_b])
        for layer_a, columns in enumerate(columns_a):
            rows = np.flatnonzero((own == layer_a) & (other == layer_b))
            left, right = (matches[name].to_numpy()[rows] for name in ("index", "match_index"))
            sums[rows] = _sums(*columns, *columns_b, left, right, group, n_groups)
    return sums


def _columns(layer: SparseFeatures) -> tuple[ndarray, ndarray, ndarray]:
    """The matrix by features: indptr, tokens in order, values."""
    matrix = layer.to_scipy().tocsc()
    matrix.sort_indices()
    return matrix.indptr, matrix.indices, matrix.data


@njit(parallel=True, cache=True)
def _sums(a_indptr, a_tokens, a_values, b_indptr, b_tokens, b_values, left, right, group, n_groups):
    out = np.zeros((len(left), n_groups, 5))
    for pair in prange(len(left)):
        i, i_end = a_indptr[left[pair]], a_indptr[left[pair] + 1]
        j, j_end = b_indptr[right[pair]], b_indptr[right[pair] + 1]
        while i < i_end or j < j_end:
            in_a = j >= j_end or (i < i_end and a_tokens[i] <= b_tokens[j])
            in_b = i >= i_end or (j < j_end and b_tokens[j] <= a_tokens[i])
            row = out[pair, group[a_tokens[i] if in_a else b_tokens[j]]]
            x = np.float64(a_values[i]) if in_a else 0.0
            y = np.float64(b_values[j]) if in_b else 0.0
            row[0] += x
            row[1] += y
            row[2] += x * x
            row[3] += y * y
            row[4] += x * y
            i += in_a
            j += in_b
    return out


def bootstrap(
    sums: Float64[ndarray, "features groups 5"], group_sizes: Int[ndarray, " groups"], seed: int,
    n_resamples: int = N_RESAMPLES,
) -> Float32[ndarray, "resamples features"]:  # fmt: skip
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
        found[:, first : first + 512] = _correlation(np.tensordot(weights.astype(float), part, (1, 1)), n)
    return found


def _correlation(sums: Float64[ndarray, "resamples features 5"], n: Float64[ndarray, "resamples 1"]) -> ndarray:
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
