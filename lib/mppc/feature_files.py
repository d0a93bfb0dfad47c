"""Feature activations on disk, appended shard by shard; a capture that was killed goes on at its last whole shard.

A layer is a folder of three raw little-endian arrays (the CSR matrix of `lib.mppc.features`), the journal of its shards with
their checksums (`lib.mppc.feature_shards`), and a JSON header, written last, that says what the arrays hold.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped

from lib.mppc.feature_shards import (
    ARRAYS,
    JOURNAL,
    FeatureDtype,
    Shard,
    array_lengths,
    array_types,
    find_damage,
    journal_line,
    read_journal,
)  # fmt: skip
from lib.mppc.features import SparseFeatures

FORMAT_VERSION = 2
HEADER = "header.json"
TEXT = "text.sha256"  # beside the layers: what was read, as `corpus.Blocks.digest`


class FeatureWriter:
    """Appends the feature activations of one layer to a folder, batch by batch, shard by shard.

    Goes on after the first `keep` shards that `finished_shards` found there (0: starts anew). Memory is that of one
    batch. The header is written on leaving the `with` block without an error, so that `read_features` refuses a folder
    that was not finished.
    """

    def __init__(self, folder: str | Path, d_sae: int, dtype: FeatureDtype = "float32", keep: int = 0) -> None:
        self.folder, self.d_sae, self.keep = Path(folder), d_sae, keep
        self.dtypes = array_types(d_sae, dtype)
        self.shards: list[Shard] = []

    def __enter__(self) -> FeatureWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / HEADER).unlink(missing_ok=True)
        self.shards = read_journal(self.folder)[: self.keep] if self.keep else []
        (self.folder / JOURNAL).write_text("".join(journal_line(shard) for shard in self.shards))
        self.n_tokens = sum(shard.n_tokens for shard in self.shards)
        self.nnz = sum(shard.nnz for shard in self.shards)
        self._files = {name: open(self.folder / f"{name}.bin", "ab") for name in ARRAYS}
        for name, length in zip(ARRAYS, array_lengths(self.n_tokens, self.nnz), strict=True):
            self._files[name].truncate(length * np.dtype(self.dtypes[name]).itemsize if self.shards else 0)
        if not self.shards:
            np.zeros(1, "<i8").tofile(self._files["indptr"])
        self._begin_shard()
        return self

    def append(self, activations: Float[torch.Tensor | np.ndarray, "n_tokens d_sae"]) -> None:
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
        values = self._as_stored(values)
        rows, columns, values = (array[values != 0] for array in (rows, columns, values))
        inside = (rows >= 0) & (rows < n_tokens) & (columns >= 0) & (columns < self.d_sae)
        if not inside.all():
            raise ValueError(f"an entry lies outside of the batch's shape [{n_tokens}, {self.d_sae}].")
        place = rows.astype(np.int64) * self.d_sae + columns
        if (np.diff(place) <= 0).any():
            order = np.argsort(place)
            rows, columns, values, place = rows[order], columns[order], values[order], place[order]
            if (np.diff(place) == 0).any():
                raise ValueError("the same feature is given twice for one token.")
        self._write(np.bincount(rows, minlength=n_tokens).cumsum(), columns, values)

    def append_features(self, features: SparseFeatures) -> None:
        """Append what another writer wrote of the following tokens; the bytes are those of one writer."""
        if features.d_sae != self.d_sae:
            raise ValueError(f"{features.d_sae} features where {self.d_sae} are expected.")
        self._write(features.indptr[1:], features.indices, self._as_stored(features.stored))

    def end_shard(self) -> None:
        """What was appended so far survives a kill."""
        for file in self._files.values():
            file.flush()
        shard = Shard(self.n_tokens - self._began[0], self.nnz - self._began[1], self._crc)
        with open(self.folder / JOURNAL, "a") as journal:
            journal.write(journal_line(shard))
        self.shards.append(shard)
        self._begin_shard()

    def _begin_shard(self) -> None:
        self._began, self._crc = (self.n_tokens, self.nnz), dict.fromkeys(ARRAYS, 0)

    def _as_stored(self, values: Shaped[np.ndarray, "nnz"]) -> Float[np.ndarray, "nnz"]:
        if not np.isfinite(values).all():
            raise ValueError("a feature activation is NaN or infinite; check the SAE and the activations it was given.")
        with np.errstate(over="ignore"):
            stored = values.astype(self.dtypes["values"], copy=False)
        if not np.isfinite(stored).all():
            raise ValueError(f"a feature activation of {values.max():.3g} does not fit float16: set feature_dtype=float32.")
        return stored

    def _write(self, ends: Int[np.ndarray, "n_tokens"], indices: np.ndarray, values: np.ndarray) -> None:
        """Append rows that end at `ends`, counted from the first of `indices`."""
        for name, array in zip(ARRAYS, (self.nnz + ends, indices, values), strict=True):
            data = np.ascontiguousarray(array, self.dtypes[name])
            data.tofile(self._files[name])
            self._crc[name] = zlib.crc32(data, self._crc[name])
        self.n_tokens += len(ends)
        self.nnz += len(values)

    def __exit__(self, error_type, error, traceback) -> None:
        if error_type is None and self.n_tokens > self._began[0]:
            self.end_shard()
        for file in self._files.values():
            file.close()
        if error_type is None:
            header = {"format_version": FORMAT_VERSION, "shape": [self.n_tokens, self.d_sae], "nnz": self.nnz}
            header["dtypes"] = self.dtypes
            (self.folder / HEADER).write_text(json.dumps(header, indent=1) + "\n")


def read_features(folder: str | Path) -> SparseFeatures:
    """Open one layer's folder, memory-mapped; `verify_features` reads the bytes, this only their number.

    What was read when it was captured is known where the folder above says so.

    Raises ValueError, in one sentence, for a folder that is unfinished, truncated or of another version.
    """
    folder = Path(folder)
    (n_tokens, d_sae), nnz, types = _header(folder)
    lengths = zip(ARRAYS, array_lengths(n_tokens, nnz), strict=True)
    arrays = [_map(folder / f"{name}.bin", types[name], length) for name, length in lengths]
    record = folder.parent / TEXT
    text = record.read_text() if record.exists() else None
    try:
        return SparseFeatures(*arrays, (n_tokens, d_sae), text)
    except ValueError as error:
        raise ValueError(f"{folder} is damaged, compute the features again: {error}") from None


def verify_features(folder: str | Path) -> None:
    """Read all bytes of a finished layer and raise ValueError, with the file and the shard, where they were changed."""
    folder = Path(folder)
    (n_tokens, _), nnz, types = _header(folder)
    shards = read_journal(folder)
    if (n_tokens, nnz) != (sum(s.n_tokens for s in shards), sum(s.nnz for s in shards)):
        raise ValueError(f"{folder / JOURNAL} does not describe all of the layer; compute the features again.")
    for _, damage in find_damage(folder, shards, types):
        raise ValueError(f"{damage}; compute the features again.")


def _header(folder: Path) -> tuple[tuple[int, int], int, dict[str, str]]:
    """Shape, number of entries, types of the arrays."""
    try:
        header = json.loads((folder / HEADER).read_text())
        n_tokens, d_sae, nnz = map(int, (*header["shape"], header["nnz"]))
        types = header["dtypes"]
        known = header["format_version"] == FORMAT_VERSION
        known = known and types in [array_types(d_sae, dtype) for dtype in get_args(FeatureDtype)]
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no finished features ({HEADER} is missing); compute them again.") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder}/{HEADER} is damaged; compute the features again.") from None
    if not known:
        raise ValueError(f"{folder} is of another format than version {FORMAT_VERSION}; compute the features again.")
    return (n_tokens, d_sae), nnz, types


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


def join_features(parts: Iterable[Path], folder: Path) -> None:
    """Put together what was captured run by run of one text's shards; the bytes are those of one capture.

    Raises ValueError where a part is damaged; capturing it again makes what is damaged anew.
    """
    with ExitStack() as stack:
        writers: list[FeatureWriter] = []
        for part in parts:
            for k, layer in enumerate(open_features(part)):
                verify_features(layer_folder(part, k))
                if k == len(writers):
                    writer = FeatureWriter(layer_folder(folder, k), layer.d_sae, layer.stored.dtype.name)
                    writers.append(stack.enter_context(writer))
                start = 0
                for shard in read_journal(layer_folder(part, k)):
                    writers[k].append_features(layer.rows(start, start + shard.n_tokens))
                    writers[k].end_shard()
                    start += shard.n_tokens
