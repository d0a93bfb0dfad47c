"""Pearson correlations between the sparse features of two layers, by the sums of products where both fire.

Gustavson's row-wise sparse product: for each token on which feature i of A fires, the features of B that fire there are
added to an accumulator, which then holds Σxy of i with all of B. It is turned into correlations, and the best are
kept, before the next i starts, so that the features × features matrix never exists.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64, Integer
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from lib.mppc.features import SparseFeatures, feature_statistics, index_dtype

TILE = 8  # features of A per call of the kernel: a call is cheap, and their correlations stay in the cache
AHEAD = 6  # rows of B that are on their way from memory


@dataclass(frozen=True, eq=False)
class VaryingFeatures:
    """The features of a layer that are not constant, and what turns a sum of products into a correlation.

    corr(x, y) = (Σxy − n·mean_x·mean_y) / (norm_x·norm_y) = Σxy·scale_x·scale_y − offset_x·offset_y.
    The subtraction is harmless if no mean exceeds its standard deviation. For a feature firing on a share p of the
    tokens mean² ≤ p/(1−p)·variance, which does for p ≤ 1/2; the others are stored with their mean subtracted.
    """

    indptr: Int64[np.ndarray, "rows_and_1"]
    indices: Integer[np.ndarray, "nnz"]
    values: Float32[np.ndarray, "nnz"]
    kept: Int64[np.ndarray, "varying"]
    """Their indices in the layer; `indices` count among these."""
    scale: Float64[np.ndarray, "varying"]
    offset: Float64[np.ndarray, "varying"]


def varying_features(features: SparseFeatures) -> VaryingFeatures:
    """Drop the constant features of a layer, subtract the mean of the frequent ones; rows are tokens.

    Raises ValueError where an index is out of range or a value is not finite.
    """
    n_tokens, statistics = features.n_tokens, feature_statistics(features)
    kept = np.flatnonzero(~statistics.constant)
    label = np.full(features.d_sae, -1, np.int32)
    label[kept] = np.arange(len(kept))
    count = statistics.count[kept]
    dense = np.flatnonzero(2 * count > n_tokens)
    slot = np.full(len(kept), -1, np.int32)
    slot[dense] = np.arange(len(dense))
    size = count[slot < 0].sum() + n_tokens * len(dense)
    indptr, values = np.zeros(n_tokens + 1, np.int64), np.empty(size, np.float32)
    indices = np.empty(size, index_dtype(len(kept)))
    shift = statistics.mean[kept[dense]].astype(np.float32)
    source = (features.indptr, features.indices, features.values)
    _shift(*source, label, dense, slot, shift, indptr, indices, values)
    moments = feature_statistics(SparseFeatures(indptr, indices, values, (n_tokens, len(kept))))
    norm = np.sqrt(moments.sum_of_squares - n_tokens * moments.mean**2)
    return VaryingFeatures(indptr, indices, values, kept, 1 / norm, np.sqrt(n_tokens) * moments.mean / norm)


@njit(cache=True, nogil=True)
def _shift(indptr, indices, values, label, dense, slot, shift, out_indptr, out_indices, out_values):
    """Copy the rows; features in `dense` come first in each, with `shift` subtracted; label -1 is left out."""
    for token in range(len(indptr) - 1):
        start = out_indptr[token]
        end = start + len(dense)
        for k in range(len(dense)):
            out_indices[start + k] = dense[k]
            out_values[start + k] = -shift[k]
        for entry in range(indptr[token], indptr[token + 1]):
            j = label[indices[entry]]
            if j < 0 or values[entry] == 0:
                continue
            if slot[j] >= 0:
                out_values[start + slot[j]] += values[entry]
            else:
                out_indices[end] = j
                out_values[end] = values[entry]
                end += 1
        out_indptr[token + 1] = end


def transpose(rows: VaryingFeatures) -> VaryingFeatures:
    """From rows of tokens to rows of features, whose entries are tokens in order."""
    count = np.bincount(rows.indices, minlength=len(rows.kept))
    indptr = np.concatenate([[0], count.cumsum()])
    tokens, values = np.empty(len(rows.indices), np.int32), np.empty_like(rows.values)
    _scatter(rows.indptr, rows.indices, rows.values, indptr[:-1].copy(), tokens, values)
    return VaryingFeatures(indptr, tokens, values, rows.kept, rows.scale, rows.offset)


@njit(cache=True, nogil=True)
def _scatter(indptr, indices, values, end, out_tokens, out_values):
    for token in range(len(indptr) - 1):
        for entry in range(indptr[token], indptr[token + 1]):
            j = indices[entry]
            out_tokens[end[j]] = token
            out_values[end[j]] = values[entry]
            end[j] += 1


BestMatches = tuple[Float32[np.ndarray, " _"], Int32[np.ndarray, " _"]]


def best_matches(a: VaryingFeatures, b: VaryingFeatures, threads: int) -> tuple[BestMatches, BestMatches]:
    """Highest correlation, and with whom, for every feature of `a` and for every feature of `b`.

    `a` is transposed (rows are features), `b` is not (rows are tokens), and neither is empty. Indices count among the
    varying features; equal values go to the lowest.
    """
    value, match = np.empty(len(a.kept), np.float32), np.empty(len(a.kept), np.int32)
    tiles = iter(range(0, len(a.kept), TILE))  # shared: a thread that is free takes the next one

    def work(_) -> BestMatches:
        sums, tile = np.zeros(len(b.kept)), np.empty((TILE, len(b.kept)), np.float32)
        b_value, b_match = np.full(len(b.kept), -np.inf, np.float32), np.zeros(len(b.kept), np.int32)
        for first in tiles:
            corr = tile[: len(a.kept) - first]
            _correlate(first, *_arrays(a), *_arrays(b), sums, corr, b_value, b_match)
            match[first : first + TILE] = best = corr.argmax(1)
            value[first : first + TILE] = corr[np.arange(len(corr)), best]
        return b_value, b_match

    with ThreadPoolExecutor(threads) as pool:
        b_values, b_matches = map(np.stack, zip(*pool.map(work, range(threads))))
    b_value = b_values.max(0)
    return (value, match), (b_value, np.where(b_values == b_value, b_matches, len(a.kept)).min(0))


def _arrays(x: VaryingFeatures) -> tuple[np.ndarray, ...]:
    return x.indptr, x.indices, x.values, x.scale, x.offset


@intrinsic
def prefetch(typing_context, array, index):
    """Ask the processor for the cache line of array[index], where it could not foresee that it will be wanted.

    Into the second-level cache: the first has too few lines for what is on its way (1.4 times as fast).
    """

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(function, [address, number(0), number(2), number(1)])  # for reading, second level, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@njit(cache=True, nogil=True)
def _correlate(
    first, a_indptr, a_tokens, a_values, a_scale, a_offset,
    b_indptr, b_indices, b_values, b_scale, b_offset, sums, corr, best, best_i,
):  # fmt: skip
    """Correlations of the features `first`, `first + 1`, … of A with all of B into the rows of `corr`.

    `best` and `best_i` hold the highest correlation of each feature of B so far. `sums` is zero before and after.
    """
    for row in range(len(corr)):
        i = first + row
        last = a_indptr[i + 1] - 1
        for entry in range(a_indptr[i], last + 1):
            prefetch(b_indptr, np.intp(a_tokens[min(entry + 2 * AHEAD, last)]))
            later = a_tokens[min(entry + AHEAD, last)]
            for line in range(b_indptr[later], b_indptr[later + 1] + 15, 16):
                prefetch(b_values, np.intp(line))
            for line in range(b_indptr[later], b_indptr[later + 1] + 31, 32):
                prefetch(b_indices, np.intp(line))
            x = np.float64(a_values[entry])
            for at in range(b_indptr[a_tokens[entry]], b_indptr[a_tokens[entry] + 1]):
                sums[b_indices[at]] += x * b_values[at]
        _keep_best(i, a_scale[i], a_offset[i], b_scale, b_offset, sums, corr[row], best, best_i)


@njit(cache=True, nogil=True)
def _keep_best(i, scale, offset, b_scale, b_offset, sums, corr, best, best_i):
    """One sweep, which the compiler turns into vector instructions; feature i comes after all lower ones."""
    for j in range(len(sums)):
        rho = np.float32(sums[j] * (scale * b_scale[j]) - offset * b_offset[j])
        sums[j] = 0
        corr[j] = rho
        if rho > best[j]:
            best[j] = rho
            best_i[j] = i
