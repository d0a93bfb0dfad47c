"""The two Triton kernels of MPPC: sums of products where both features fire, then the best of each row and column.

Sums are fixed-point numbers in 64-bit integers: integer addition is exact and has no order, so atomic adds give the
same bits in every run, and features that are equal get equal correlations. With both features' activations scaled to
norm at most √2, sums stay within ±2, which is ±2^61 in units of 2^-60.

With TRITON_INTERPRET=1 set before this module is imported, the kernels run on the CPU, slowly, for tests.
"""

from __future__ import annotations

import triton
import triton.language as tl

ENTRIES = 32  # activations of one feature of A per program of `add_products`
_STRIDE = tl.constexpr(32)  # activations of one token of B that a program reads at once
COLUMNS = 1024  # features of B per program of `keep_best`
_ONE = tl.constexpr(2.0**60)
_LAST = tl.constexpr(0x7FFFFFFF)


@triton.jit(do_not_specialize=["first", "first_chunk"])  # which differ in every call
def add_products(
    first, first_chunk, chunk_feature, chunk_start,
    a_indptr, a_tokens, a_values, b_indptr, b_indices, b_values, n_b, sums,
    entries: tl.constexpr,
):  # fmt: skip
    """Add the products of one chunk of activations of a feature of A with all that fires on their tokens in B.

    `sums` [features of the tile, n_b] begins with the feature `first`. A chunk belongs to one feature; one that fires
    often is the work of many programs.
    """
    chunk = first_chunk + tl.program_id(0)
    i = tl.load(chunk_feature + chunk)
    entry = tl.load(chunk_start + chunk) + tl.arange(0, entries)
    there = entry < tl.load(a_indptr + i + 1)
    token = tl.load(a_tokens + entry, mask=there, other=0)
    x = tl.load(a_values + entry, mask=there, other=0.0)
    start = tl.load(b_indptr + token, mask=there, other=0)
    length = (tl.load(b_indptr + token + 1, mask=there, other=0) - start).to(tl.int32)
    row = sums + (i - first).to(tl.int64) * n_b
    for k in range(0, tl.max(length), _STRIDE):
        column = k + tl.arange(0, _STRIDE)[None, :]
        inside = column < length[:, None]
        j = tl.load(b_indices + start[:, None] + column, mask=inside, other=0).to(tl.int32)
        y = tl.load(b_values + start[:, None] + column, mask=inside, other=0.0)
        term = (x[:, None] * y * _ONE).to(tl.int64)
        tl.atomic_add(row + j, term, mask=inside, sem="relaxed")


@triton.jit(do_not_specialize=["first"])
def keep_best(first, sums, a_offset, b_offset, n_b, best_a, best_b, columns: tl.constexpr):
    """Correlations of one row of `sums`, which is left zero; the highest go to `best_a` and `best_b` as sortable keys.

    A key holds the correlation's float32 bits, made to sort as integers do, above the match's index counted backwards:
    the highest key is the highest correlation, and among equal ones the first match.
    """
    r = tl.program_id(0)
    i = first + r
    j = tl.program_id(1) * columns + tl.arange(0, columns)
    inside = j < n_b
    at = sums + r.to(tl.int64) * n_b + j
    total = tl.load(at, mask=inside, other=0)
    tl.store(at, tl.zeros_like(total), mask=inside)
    offset = tl.load(a_offset + i) * tl.load(b_offset + j, mask=inside, other=0.0)
    rho = (total.to(tl.float64) * (1.0 / _ONE) - offset).to(tl.float32)
    bits = tl.where(rho == 0, 0.0, rho).to(tl.int32, bitcast=True)  # -0 is 0
    order = tl.where(bits < 0, bits ^ _LAST, bits).to(tl.int64) << 32
    key = tl.where(inside, order | (_LAST - j), -0x7FFFFFFFFFFFFFFF)
    tl.atomic_max(best_a + i, tl.max(key), sem="relaxed")
    key = order | (_LAST - i)
    better = inside & (key > tl.load(best_b + j, mask=inside, other=0))
    tl.atomic_max(best_b + j, key, mask=better, sem="relaxed")
