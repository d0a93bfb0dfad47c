"""Speed of MPPC for one pair of layers at the paper's width: `python -m tests.benchmarks.mppc --tokens 50000`.

A multiply-add is one product of a feature of A and a feature of B that fire on the same token: the work that exactness
demands. The alternatives get a random sample of A's features; their time is scaled to all of them.
"""

from __future__ import annotations

import argparse
import time

import numba
import numpy as np
import scipy.sparse
import torch
from numba import njit, prange

from lib.features import SparseFeatures
from lib.mppc import max_pairwise_correlations
from lib.sparse_pearson import best_matches, transpose, varying_features


def power_law_features(n_tokens: int, d_sae: int, l0: float, seed: int) -> scipy.sparse.csr_array:
    """Features that fire independently, the k-th most frequent at a rate ∝ 1/k, at most on half of the tokens."""
    rng = np.random.default_rng(seed)
    rate = 1 / np.arange(1, d_sae + 1)
    for _ in range(50):  # until the cap and the mean number of firing features agree
        rate = np.minimum(rate * l0 / rate.sum(), 0.5)
    count = rng.binomial(n_tokens, rng.permutation(rate))
    tokens = np.concatenate([rng.choice(n_tokens, c, replace=False, shuffle=False) for c in count])
    values = rng.exponential(size=len(tokens)).astype(np.float32)
    return scipy.sparse.csr_array((values, (tokens, np.repeat(np.arange(d_sae), count))), shape=(n_tokens, d_sae))


@njit(parallel=True)
def naive(a_indptr, a_tokens, a_values, b_indptr, b_indices, b_values, d_sae, out):
    """The textbook loop: features of A in parallel, an accumulator each."""
    for i in prange(len(a_indptr) - 1):
        sums = np.zeros(d_sae)
        for entry in range(a_indptr[i], a_indptr[i + 1]):
            token = a_tokens[entry]
            for at in range(b_indptr[token], b_indptr[token + 1]):
                sums[b_indices[at]] += a_values[entry] * b_values[at]
        out[i] = sums.max()


def multiply_adds(a: scipy.sparse.csr_array, b: scipy.sparse.csr_array) -> int:
    return int((np.diff(a.indptr).astype(np.int64) * np.diff(b.indptr)).sum())


def seconds(function, *arguments) -> float:
    """The better of two runs: other programs may be busy."""
    spent = []
    for _ in range(2):
        began = time.perf_counter()
        function(*arguments)
        spent.append(time.perf_counter() - began)
    return min(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=24_576)
    parser.add_argument("--l0", type=float, default=64)
    parser.add_argument("--sample", type=int, default=1024, help="features of A for the alternatives")
    parser.add_argument("--threads", type=int, default=numba.get_num_threads())
    options = parser.parse_args()
    numba.set_num_threads(options.threads)
    torch.set_num_threads(options.threads)

    a, b = (power_law_features(options.tokens, options.features, options.l0, seed) for seed in (0, 1))
    sample = np.random.default_rng(2).choice(options.features, options.sample, replace=False)
    part = a[:, sample].tocsr()
    columns = part.tocsc()
    arguments = (columns.indptr, columns.indices, columns.data, b.indptr, b.indices, b.data, options.features)
    out = np.empty(options.sample)
    naive(*(x[:1] * 0 for x in arguments[:6]), 1, out[:0])  # compiles
    few = [power_law_features(64, 64, 4, seed) for seed in (0, 1)]
    max_pairwise_correlations(few[:1], few[1:])

    x, y = (SparseFeatures.from_scipy(m) for m in (a, b))
    by_feature, by_token = transpose(varying_features(x)), varying_features(y)
    whole, some = multiply_adds(a, b), multiply_adds(part, b)
    block = min(options.tokens, 4096)
    u, v = (torch.from_numpy(m[:block].toarray()) for m in (part, b))
    rows = [
        ("ours, all of it", whole, seconds(lambda: max_pairwise_correlations([x], [y], threads=options.threads))),
        ("ours, kernel", whole, seconds(best_matches, by_feature, by_token, options.threads)),
        ("naive loop", some, seconds(naive, *arguments, out)),
        ("scipy product", some, seconds(lambda: part.T.tocsr() @ b)),
        ("dense float32", some, seconds(torch.mm, u.T, v) * options.tokens / block),
    ]
    print(f"{options.features:,} features, L0 {options.l0:g}, {options.tokens:,} tokens, {options.threads} threads")
    for name, work, spent in rows:
        pair = spent * whole / work
        print(f"{name:16s} {work / spent / 1e9:8.4f}e9 multiply-adds/s, {pair:9.2f} s for a pair of layers")


if __name__ == "__main__":
    main()
