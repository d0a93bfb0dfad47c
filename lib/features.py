"""Sparse feature activations on disk: one CSR (compressed sparse row) matrix per layer, tokens by features.

A layer is a folder of three raw little-endian arrays and a JSON header, written last, that says what they must hold.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Float32, Float64, Int, Int64, Shaped
from numba import njit

FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class SparseFeatures:
    """Feature activations of one layer, as a CSR matrix of shape [n_tokens, d_sae].

    The entries of token t are `indptr[t]:indptr[t + 1]` of `indices` and `values`; features that do not fire have none.
    Raises ValueError where the arrays do not fit together.
    """

    indptr: Int64[np.ndarray, "n_tokens+1"]
    indices: Int[np.ndarray, "nnz"]
    values: Float32[np.ndarray, "nnz"]
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        dtypes = (self.indptr.dtype, self.indices.dtype, self.values.dtype)
        if dtypes != (np.int64, index_dtype(self.d_sae), np.float32):
            raise ValueError(f"indptr, indices and values have the wrong types: {', '.join(map(str, dtypes))}.")
        if len(self.indptr) != self.n_tokens + 1 or self.indptr[0] != 0 or (np.diff(self.indptr) < 0).any():
            raise ValueError(f"indptr does not describe the rows of a matrix of {self.n_tokens} tokens.")
        if not len(self.indices) == len(self.values) == self.indptr[-1]:
            raise ValueError(
                f"{len(self.indices)} indices and {len(self.values)} values where indptr announces {self.indptr[-1]}."
            )

    @property
    def n_tokens(self) -> int:
        return self.shape[0]

    @property
    def d_sae(self) -> int:
        return self.shape[1]

    @property
    def nnz(self) -> int:
        return len(self.values)

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

    def head(self, n_tokens: int) -> SparseFeatures:
        """The first `n_tokens` tokens, without a copy."""
        end = self.indptr[n_tokens]
        return SparseFeatures(self.indptr[: n_tokens + 1], self.indices[:end], self.values[:end], (n_tokens, self.d_sae))

    def to_scipy(self) -> scipy.sparse.csr_array:
        """The same matrix for scipy, which copies the indices into a type of its own."""
        return scipy.sparse.csr_array((self.values, self.indices.astype(np.int32), self.indptr), shape=self.shape)


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


class FeatureWriter:
    """Appends the feature activations of one layer to a folder, batch by batch.

    Memory is that of one batch. The header is written on leaving the `with` block without an error, so that
    `read_features` refuses a folder that was not finished.
    """

    def __init__(self, folder: str | Path, d_sae: int) -> None:
        self.folder, self.d_sae = Path(folder), d_sae
        self.n_tokens = self.nnz = 0

    def __enter__(self) -> FeatureWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "header.json").unlink(missing_ok=True)
        self._files = {name: open(self.folder / f"{name}.bin", "wb") for name in ("indptr", "indices", "values")}
        np.zeros(1, "<i8").tofile(self._files["indptr"])
        return self

    def append(self, activations: Float32[torch.Tensor | np.ndarray, "n_tokens d_sae"]) -> None:
        """Append dense activations; only the non-zero ones are kept."""
        dense = torch.as_tensor(activations).detach()
        if dense.ndim != 2 or dense.shape[1] != self.d_sae:
            raise ValueError(f"activations of shape {tuple(dense.shape)} where [n_tokens, {self.d_sae}] is expected.")
        rows, columns = dense.nonzero(as_tuple=True)
        values = dense[rows, columns].float()
        self.append_entries(rows.cpu().numpy(), columns.cpu().numpy(), values.cpu().numpy(), len(dense))

    def append_entries(
        self,
        rows: Int[np.ndarray, "nnz"],
        columns: Int[np.ndarray, "nnz"],
        values: Shaped[np.ndarray, "nnz"],
        n_tokens: int,
    ) -> None:
        """Append a batch of `n_tokens` tokens given as (row in the batch, feature, activation), in any order."""
        rows, columns, values = (array[values != 0] for array in (rows, columns, values))
        inside = (rows >= 0) & (rows < n_tokens) & (columns >= 0) & (columns < self.d_sae)
        if not inside.all():
            raise ValueError(f"an entry lies outside of the batch's shape [{n_tokens}, {self.d_sae}].")
        if not np.isfinite(values).all():
            raise ValueError("a feature activation is NaN or infinite; check the SAE and the activations it was given.")
        place = rows.astype(np.int64) * self.d_sae + columns
        if (np.diff(place) <= 0).any():
            order = np.argsort(place)
            rows, columns, values, place = rows[order], columns[order], values[order], place[order]
            if (np.diff(place) == 0).any():
                raise ValueError("the same feature is given twice for one token.")
        ends = self.nnz + np.bincount(rows, minlength=n_tokens).cumsum()
        ends.astype("<i8").tofile(self._files["indptr"])
        columns.astype(index_dtype(self.d_sae).newbyteorder("<")).tofile(self._files["indices"])
        values.astype("<f4").tofile(self._files["values"])
        self.n_tokens += n_tokens
        self.nnz += len(values)

    def __exit__(self, error_type, error, traceback) -> None:
        for file in self._files.values():
            file.close()
        if error_type is None:
            header = {"format_version": FORMAT_VERSION, "shape": [self.n_tokens, self.d_sae], "nnz": self.nnz}
            header["dtypes"] = _dtypes(self.d_sae)
            (self.folder / "header.json").write_text(json.dumps(header, indent=1) + "\n")


def _dtypes(d_sae: int) -> dict[str, str]:
    return {"indptr": "<i8", "indices": index_dtype(d_sae).newbyteorder("<").str, "values": "<f4"}


def read_features(folder: str | Path) -> SparseFeatures:
    """Open one layer's folder, memory-mapped.

    Raises ValueError, in one sentence, for a folder that is unfinished, truncated or of another version.
    """
    folder = Path(folder)
    try:
        header = json.loads((folder / "header.json").read_text())
        n_tokens, d_sae, nnz = map(int, (*header["shape"], header["nnz"]))
        known = header["format_version"] == FORMAT_VERSION and header["dtypes"] == _dtypes(d_sae)
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no finished features (header.json is missing); compute them again.") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder}/header.json is damaged; compute the features again.") from None
    if not known:
        raise ValueError(f"{folder} is of another format than version {FORMAT_VERSION}; compute the features again.")
    lengths = {"indptr": n_tokens + 1, "indices": nnz, "values": nnz}
    arrays = [_map(folder / f"{name}.bin", header["dtypes"][name], length) for name, length in lengths.items()]
    try:
        return SparseFeatures(*arrays, (n_tokens, d_sae))
    except ValueError as error:
        raise ValueError(f"{folder} is damaged, compute the features again: {error}") from None


def _map(path: Path, dtype: str, length: int) -> Shaped[np.ndarray, "length"]:
    expected = length * np.dtype(dtype).itemsize
    found = path.stat().st_size if path.exists() else 0
    if found != expected:
        raise ValueError(f"{path} has {found} bytes where its header announces {expected}; compute the features again.")
    if length == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r", shape=(length,)).view(np.ndarray)


def layer_folder(folder: str | Path, layer: int) -> Path:
    """Where a model's features keep one layer."""
    return Path(folder) / f"layer_{layer:02d}"


def open_features(folder: str | Path) -> list[SparseFeatures]:
    """All layers of a model, `layer_00`, `layer_01`, …, over the same tokens.

    Raises ValueError where there are none, one is missing, or they differ in their number of tokens.
    """
    n_layers = len(list(Path(folder).glob("layer_*")))
    if n_layers == 0:
        raise ValueError(f"{folder} holds no features (no layer_00).")
    layers = [read_features(layer_folder(folder, layer)) for layer in range(n_layers)]
    if len({layer.n_tokens for layer in layers}) > 1:
        raise ValueError(f"the layers in {folder} differ in their number of tokens; compute the features again.")
    return layers
