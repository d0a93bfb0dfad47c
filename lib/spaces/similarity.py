"""How alike are two spaces? Measures between matrices with paired rows, matchings, and permutation nulls (Lan et al.).

Rows are points (features), columns are dimensions; the two spaces may have different widths. Every measure is 1 for
equal spaces and does not change when a space is rotated or scaled.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import pdist, squareform
from scipy.special import logsumexp
from scipy.stats import rankdata
from sklearn.neighbors import NearestNeighbors

Space = Float[ndarray, "n _"]  # widths may differ


def _centred(x: Space) -> Space:
    x = np.asarray(x, float)
    if len(x) < 3:
        raise ValueError(f"{len(x)} paired rows are too few to compare spaces: at least 3.")
    return x - x.mean(0)


def _paired(x: Space, y: Space) -> tuple[Space, Space]:
    if len(x) != len(y):
        raise ValueError(f"rows must be paired: {len(x)} and {len(y)}.")
    return _centred(x), _centred(y)


# ------------------------------------------------------------------------------------------- measures


def principal_directions(x: Space, variance: float = 0.99) -> Float[ndarray, "n k"]:
    """Orthonormal scores of the fewest principal components that hold this share of the variance."""
    u, s, _ = np.linalg.svd(_centred(x), full_matrices=False)
    held = np.cumsum(s**2) / max((s**2).sum(), 1e-300)
    return u[:, : int(np.searchsorted(held, variance * (1 - 1e-12)) + 1)]


def svcca(x: Space, y: Space, variance: float = 0.99) -> float:
    """Mean canonical correlation after each space is cut to components of 99 % of the variance (Raghu et al., 2017).

    With n rows and k components in each, unrelated spaces score about 0.85 sqrt(k / n) while k is much smaller than n:
    compare with a null.
    """
    x, y = _paired(x, y)
    return _mean_canonical(principal_directions(x, variance), principal_directions(y, variance))


def _mean_canonical(u: Float[ndarray, "n k"], v: Float[ndarray, "n l"]) -> float:
    return float(np.clip(np.linalg.svd(u.T @ v, compute_uv=False), 0, 1).mean())


def distance_ranks(x: Space) -> Float[ndarray, "n n"]:
    """Ranks of the correlation distances between rows, centred, as a square matrix with zeros on the diagonal."""
    ranks = rankdata(pdist(np.asarray(x, float), "correlation"))
    return squareform(ranks - ranks.mean())


def rsa(x: Space, y: Space) -> float:
    """Representational similarity: Spearman's correlation of the two matrices of correlation distances."""
    _paired(x, y)
    return _rank_correlation(distance_ranks(x), distance_ranks(y))


def _rank_correlation(a: Float[ndarray, "n n"], b: Float[ndarray, "n n"]) -> float:
    return float(np.vdot(a, b) / max(np.sqrt(np.vdot(a, a) * np.vdot(b, b)), 1e-300))


def linear_cka(x: Space, y: Space, unbiased: bool = False) -> float:
    """Centred kernel alignment with linear kernels (Kornblith et al., 2019); `unbiased` estimates by HSIC₁."""
    x, y = _paired(x, y)
    return _cka(x @ x.T, y @ y.T, unbiased)


def _cka(k: Float[ndarray, "n n"], m: Float[ndarray, "n n"], unbiased: bool) -> float:
    hsic = _unbiased_hsic if unbiased else _biased_hsic
    return float(hsic(k, m) / np.sqrt(max(hsic(k, k) * hsic(m, m), 1e-300)))


def _biased_hsic(k: Float[ndarray, "n n"], m: Float[ndarray, "n n"]) -> float:
    centred = k - k.mean(0) - k.mean(1, keepdims=True) + k.mean()
    return float((centred * m).sum())


def _unbiased_hsic(k: Float[ndarray, "n n"], m: Float[ndarray, "n n"]) -> float:
    """Song et al. (2012), eq. 5, times n (n − 3)."""
    n = len(k)
    if n < 4:
        raise ValueError(f"the unbiased estimator needs at least 4 rows, not {n}.")
    k, m = (x - np.diag(np.diag(x)) for x in (k, m))
    product = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2))
    return float(product - 2 * (k.sum(0) @ m.sum(0)) / (n - 2))


def procrustes_similarity(x: Space, y: Space) -> float:
    """1 minus the error that the best rotation and scaling onto the other space leaves, as a share of its size."""
    x, y = _paired(x, y)
    nuclear = np.linalg.svd(x.T @ y, compute_uv=False).sum()
    return float(nuclear**2 / max((x**2).sum() * (y**2).sum(), 1e-300))


def neighbour_overlap(x: Space, y: Space, k: int = 10) -> Float[ndarray, " n"]:
    """For each pair of rows, the share of its k nearest rows (cosine) that are the same in both spaces."""
    _paired(x, y)
    if not 0 < k < len(x):
        raise ValueError(f"k={k} neighbours of {len(x)} rows.")
    near = [
        NearestNeighbors(n_neighbors=k, metric="cosine").fit(space).kneighbors(return_distance=False)
        for space in (x, y)
    ]
    return np.array([len(np.intersect1d(a, b)) / k for a, b in zip(*near, strict=True)])


# ------------------------------------------------------------------------------------------- nulls


def permutation_test(score: Callable[[Int[ndarray, " n"]], float], n: int, runs: int, seed: int) -> dict[str, float]:
    """A score against itself with the pairing shuffled: score, null_mean, null_95, and p = (1 + #≥) / (1 + runs).

    `score` takes an order of the second space's rows.
    """
    rng = np.random.default_rng(seed)
    found = score(np.arange(n))
    null = np.array([score(rng.permutation(n)) for _ in range(runs)])
    as_great = (null >= found - 1e-9).sum()  # what differs by rounding counts as equal
    return {
        "score": found,
        "null_mean": float(null.mean()),
        "null_95": float(np.quantile(null, 0.95)),
        "p": float((1 + as_great) / (1 + runs)),
    }


def svcca_test(x: Space, y: Space, runs: int, seed: int) -> dict[str, float]:
    """`svcca` with its permutation null; the spaces are cut once."""
    x, y = _paired(x, y)
    u, v = principal_directions(x), principal_directions(y)
    return permutation_test(lambda order: _mean_canonical(u, v[order]), len(x), runs, seed)


def rsa_test(x: Space, y: Space, runs: int, seed: int) -> dict[str, float]:
    """`rsa` with its permutation null; distances are ranked once."""
    _paired(x, y)
    a, b = distance_ranks(x), distance_ranks(y)
    return permutation_test(lambda order: _rank_correlation(a, b[np.ix_(order, order)]), len(x), runs, seed)


# ------------------------------------------------------------------------------------------- matchings


def one_to_one(correlation: Float[ndarray, "n m"]) -> tuple[Int[ndarray, " k"], Int[ndarray, " k"]]:
    """The assignment with the greatest sum of correlations (Hungarian method); NaN are never chosen first."""
    return linear_sum_assignment(np.nan_to_num(correlation, nan=-1.0), maximize=True)


def soft_matching(
    correlation: Float[ndarray, "n m"], temperature: float = 0.05, steps: int = 200
) -> Float[ndarray, "n m"]:
    """Sinkhorn's doubly stochastic matching: rows sum to 1/n, columns to 1/m; sharper at low temperature."""
    log_plan = np.nan_to_num(correlation, nan=-1.0) / temperature
    for _ in range(steps):
        log_plan = log_plan - logsumexp(log_plan, axis=1, keepdims=True) - np.log(len(log_plan))
        log_plan = log_plan - logsumexp(log_plan, axis=0, keepdims=True) - np.log(log_plan.shape[1])
    return np.exp(log_plan)
