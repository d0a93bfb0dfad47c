"""Sparse feature activations: one CSR (compressed sparse row) matrix per layer, tokens by features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, Integer
from numba import njit

FeatureDtype = Literal["float32", "float16"]
"""How values are stored. float16 takes 4 bytes per entry instead of 6 and rounds each value by up to 2^-11 of itself.
Measured on the mini profile's features (100,000 tokens, Pythia and Mamba, both directions): MPPC moves by 5e-6 in the
median feature, 4e-5 in one of a hundred, 1.3e-4 at most; one match in 12,000 becomes another; the mean moves by 5e-7.
"""


@dataclass(frozen=True, eq=False)
class SparseFeatures:
    """Feature activations of one layer, as a CSR matrix of shape [n_tokens, d_sae].

    The entries of token t are `indptr[t]:indptr[t + 1]` of `indices` and `values`; features that do not fire have none.
    Raises ValueError where the arrays do not fit together.
    """

    indptr: Int64[np.ndarray, "n_tokens_and_1"]
    indices: Integer[np.ndarray, "nnz"]
    stored: Float[np.ndarray, "nnz"]
    """The activations as they lie on the disk: float32 or float16."""
    shape: tuple[int, int]
    text: str | None = None
    """Digest of what was read when they were captured (`corpus.Blocks.digest`), where that is known."""

    def __post_init__(self) -> None:
        dtypes = (self.indptr.dtype, self.indices.dtype, self.stored.dtype)
        if dtypes[:2] != (np.int64, index_dtype(self.d_sae)) or dtypes[2] not in (np.float32, np.float16):
            raise ValueError(f"indptr, indices and values have the wrong types: {', '.join(map(str, dtypes))}.")
        if not 0 < len(self.indptr) == self.n_tokens + 1 or self.indptr[0] != 0 or (np.diff(self.indptr) < 0).any():
            raise ValueError(f"indptr does not describe the rows of a matrix of {self.n_tokens} tokens.")
        if not len(self.indices) == len(self.stored) == self.indptr[-1]:
            raise ValueError(
                f"{len(self.indices)} indices and {len(self.stored)} values where indptr announces {self.indptr[-1]}."
            )

    @property
    def n_tokens(self) -> int:
        return self.shape[0]

    @property
    def d_sae(self) -> int:
        return self.shape[1]

    @property
    def nnz(self) -> int:
        return len(self.stored)

    @property
    def values(self) -> Float32[np.ndarray, "nnz"]:
        """The activations in float32: `stored` itself, or a copy of float16, so that only layers in use have one."""
        return self.stored.astype(np.float32, copy=False)

    @classmethod
    def from_scipy(cls, matrix: scipy.sparse.sparray | scipy.sparse.spmatrix) -> SparseFeatures:
        """Any scipy sparse matrix [n_tokens, d_sae], as float32; duplicates are summed, stored zeros dropped."""
        csr = scipy.sparse.csr_array(matrix, dtype=np.float32)
        if not csr.has_canonical_format or not csr.data.all():
            csr = csr.copy()
            csr.sum_duplicates()
            csr.eliminate_zeros()
        indices = csr.indices.astype(index_dtype(csr.shape[1]), copy=False)
        return cls(csr.indptr.astype(np.int64), indices, csr.data, csr.shape)

    @classmethod
    def from_dense(
        cls, activations: Float[torch.Tensor | np.ndarray, "n_tokens d_sae"], dtype: FeatureDtype = "float32"
    ) -> SparseFeatures:
        """The non-zero ones of dense activations.

        Raises ValueError for an activation that is NaN or infinite, or that float16 cannot hold.
        """
        dense = torch.as_tensor(activations).detach()
        rows, columns = dense.nonzero(as_tuple=True)
        values = _as_stored(dense[rows, columns].float().cpu().numpy(), dtype)
        there = values != 0  # float16 makes zeros of the smallest
        counts = np.bincount(rows.cpu().numpy()[there], minlength=len(dense))
        indices = columns.cpu().numpy()[there].astype(index_dtype(dense.shape[1]))
        indptr = np.concatenate([[0], counts.cumsum()]).astype(np.int64)
        return cls(indptr, indices, values[there], tuple(dense.shape))

    def head(self, n_tokens: int) -> SparseFeatures:
        """The first `n_tokens` tokens, and the text that they are of; the entries are not copied."""
        return replace(self.rows(0, n_tokens), text=self.text)

    def rows(self, start: int, stop: int) -> SparseFeatures:
        """The tokens from `start` to `stop`; the entries are not copied."""
        first, end = self.indptr[start], self.indptr[stop]
        indptr = self.indptr[start : stop + 1] - first
        return SparseFeatures(indptr, self.indices[first:end], self.stored[first:end], (stop - start, self.d_sae))

    def to_scipy(self) -> scipy.sparse.csr_array:
        """The same matrix for scipy, which copies the indices into a type of its own."""
        return scipy.sparse.csr_array((self.values, self.indices.astype(np.int32), self.indptr), shape=self.shape)


def require_same_text(*texts: str | None) -> None:
    """Tokens are paired by position: raise `ValueError` where digests of what was read differ; None is not known."""
    if len({text for text in texts if text is not None}) > 1:
        raise ValueError(
            "the two models read different tokens or count different positions, so nothing can be paired: "
            "compute the features of both on one text."
        )


def concatenated(parts: Sequence[SparseFeatures]) -> SparseFeatures:
    """The tokens of several parts, one after the other. One part is given back as it is; more are copied."""
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0, *(part.nnz for part in parts)])
    indptr = np.concatenate([[0], *(part.indptr[1:] + start for part, start in zip(parts, starts))]).astype(np.int64)
    indices, stored = (np.concatenate([getattr(part, name) for part in parts]) for name in ("indices", "stored"))
    return SparseFeatures(indptr, indices, stored, (len(indptr) - 1, parts[0].d_sae))


def rolled(features: SparseFeatures, offset: int) -> SparseFeatures:
    """The same features, `offset` tokens later; what falls off the end comes first. Copies, unless the offset is 0."""
    offset %= max(features.n_tokens, 1)
    if offset == 0:
        return features
    cut = features.n_tokens - offset
    return concatenated([features.rows(cut, features.n_tokens), features.rows(0, cut)])


def _as_stored(values: Float32[np.ndarray, "nnz"], dtype: FeatureDtype) -> Float[np.ndarray, "nnz"]:
    if not np.isfinite(values).all():
        raise ValueError("a feature activation is NaN or infinite; check the SAE and the activations it was given.")
    with np.errstate(over="ignore"):
        stored = values.astype(dtype, copy=False)
    if not np.isfinite(stored).all():
        raise ValueError(f"a feature activation of {values.max():.3g} does not fit float16: set feature_dtype=float32.")
    return stored


def index_dtype(d_sae: int) -> np.dtype:
    """The smallest type this format uses for feature indices below `d_sae`."""
    return np.dtype(np.uint16 if d_sae <= 1 << 16 else np.int32)


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Per feature, over all tokens of a layer, those where it does not fire included."""

    count: Int64[np.ndarray, "d_sae"]
    """Tokens on which the feature fires."""
    mean: Float64[np.ndarray, "d_sae"]
    sum_of_squares: Float64[np.ndarray, "d_sae"]
    constant: Bool[np.ndarray, "d_sae"]
    """Same value on every token; a dead feature is one of these."""


def feature_statistics(features: SparseFeatures) -> FeatureStatistics:
    """Firing counts and moments of every feature, summed in float64.

    Raises ValueError where an index is out of range or a value is not finite.
    """
    count = np.zeros(features.d_sae, np.int64)
    total, square = np.zeros((2, features.d_sae))
    varies = np.zeros(features.d_sae, np.bool_)
    first = np.zeros(features.d_sae, np.float32)
    if not _accumulate(features.indptr, features.indices, features.values, first, count, total, square, varies):
        raise ValueError(f"a feature index is not below d_sae={features.d_sae}: damaged features, compute them again.")
    if not np.isfinite(square).all():
        raise ValueError("a feature activation is NaN or infinite; check the SAE and the activations it was given.")
    varies |= (first != 0) & (count < features.n_tokens)
    return FeatureStatistics(count, total / max(features.n_tokens, 1), square, ~varies)


def firing_rates(layers: Sequence[SparseFeatures]) -> Float64[np.ndarray, " features"]:
    """Share of the tokens on which each feature fires; the layers' features lie one after the other."""
    return np.concatenate([feature_statistics(layer).count / layer.n_tokens for layer in layers])


@njit(cache=True, nogil=True)
def _accumulate(indptr, indices, values, first, count, total, square, varies):
    """One pass over the entries; False at an index out of range. `first` takes the activations of the first token."""
    for token in range(len(indptr) - 1):
        for entry in range(indptr[token], indptr[token + 1]):
            j, value = indices[entry], values[entry]
            if j < 0 or j >= len(count):
                return False
            if token == 0:
                first[j] = value
            varies[j] |= value != first[j]
            count[j] += value != 0
            total[j] += value
            square[j] += np.float64(value) * np.float64(value)
    return True
