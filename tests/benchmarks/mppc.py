"""Speed of MPPC for one pair of layers at the paper's width: `python -m tests.benchmarks.mppc --tokens 50000`.

A multiply-add is one product of a feature of A and a feature of B that fire on the same token: the work that exactness
demands. The alternatives get a random sample of A's features; their time is scaled to all of them.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pandas as pd
import scipy.sparse
import torch
from numba import njit, prange

from lib.mppc.correlation import max_pairwise_correlations
from lib.mppc.features import SparseFeatures
from lib.mppc.sparse_pearson import best_matches, transpose, varying_features


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


@njit(nogil=True)
def _scatter_add(index, sums):
    for k in range(len(index)):
        sums[index[k]] += np.float32(1.5)


def scatter_limit(d_sae: int, threads: int, adds: int = 1 << 24) -> float:
    """Scatter-adds per second into one array of `d_sae` float32 per thread, all indices in the cache: the most that an
    exact sparse method can do, if memory costs nothing."""
    index = np.tile(np.random.default_rng(0).integers(d_sae, size=8192).astype(np.uint16), adds // 8192)
    _scatter_add(index[:1], np.zeros(d_sae, np.float32))
    with ThreadPoolExecutor(threads) as pool:
        spent = seconds(
            lambda: list(pool.map(lambda _: _scatter_add(index, np.zeros(d_sae, np.float32)), range(threads)))
        )
    return threads * len(index) / spent


def measure(
    tokens: int = 400_000, features: int = 24_576, l0: float = 64, sample: int = 1024, threads: int | None = None
) -> pd.DataFrame:
    """Columns benchmark, case, value, unit: multiply-adds per second of each way, and seconds for a pair of layers."""
    threads = threads or numba.get_num_threads()
    numba.set_num_threads(threads)
    torch.set_num_threads(threads)
    a, b = (power_law_features(tokens, features, l0, seed) for seed in (0, 1))
    part = a[:, np.random.default_rng(2).choice(features, sample, replace=False)].tocsr()
    columns = part.tocsc()
    arguments = (columns.indptr, columns.indices, columns.data, b.indptr, b.indices, b.data, features)
    out = np.empty(sample)
    naive(*(x[:1] * 0 for x in arguments[:6]), 1, out[:0])  # compiles
    few = [power_law_features(64, 64, 4, seed) for seed in (0, 1)]
    max_pairwise_correlations(few[:1], few[1:])

    x, y = (SparseFeatures.from_scipy(m) for m in (a, b))
    by_feature, by_token = transpose(varying_features(x)), varying_features(y)
    whole, some = multiply_adds(a, b), multiply_adds(part, b)
    block = min(tokens, 4096)
    u, v = (torch.from_numpy(m[:block].toarray()) for m in (part, b))
    halves = u.T.bfloat16(), v.bfloat16()
    ways = {
        "ours, all of it": (whole, seconds(lambda: max_pairwise_correlations([x], [y], threads=threads))),
        "ours, kernel": (whole, seconds(best_matches, by_feature, by_token, threads)),
        "naive loop": (some, seconds(naive, *arguments, out)),
        "scipy product": (some, seconds(lambda: part.T.tocsr() @ b)),
        "dense float32": (some, seconds(torch.mm, u.T, v) * tokens / block),
        "dense bfloat16": (some, seconds(torch.mm, *halves) * tokens / block),
    }
    limit = scatter_limit(features, threads)
    rows = [("scatter-add limit", limit, "adds/s")]
    for way, (work, spent) in ways.items():
        rows.append((way, work / spent, "multiply-adds/s"))
        rows.append((way, spent * whole / work, "s for a pair of layers"))
    rate = ways["ours, all of it"][0] / ways["ours, all of it"][1]
    rows.append(("ours, all of it", 100 * rate / limit, "% of the limit"))
    table = pd.DataFrame(rows, columns=["case", "value", "unit"])
    table.insert(0, "benchmark", f"MPPC, {features} features, L0 {l0:g}, {tokens} tokens, {threads} threads")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--features", type=int, default=24_576)
    parser.add_argument("--l0", type=float, default=64)
    parser.add_argument("--sample", type=int, default=1024, help="features of A for the alternatives")
    parser.add_argument("--threads", type=int, default=numba.get_num_threads())
    print(measure(**vars(parser.parse_args())).to_string(index=False))


if __name__ == "__main__":
    main()
