"""The shards of feature files: what they take, the journal that is kept while they are written, and what is damaged.

The journal has a line per finished shard with the CRC-32 of the bytes that the shard added to each file. Nothing needs
to be forced onto the disk on the way: what did not arrive there does not have its checksum.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from lib.mppc.features import index_dtype

log = logging.getLogger("workbook.features")

JOURNAL = "shards.jsonl"
ARRAYS = ("indptr", "indices", "values")

FeatureDtype = Literal["float32", "float16"]
"""How values are stored. float16 takes 4 bytes per entry instead of 6 and rounds each value by up to 2^-11 of itself.
Measured on the mini profile's features (100,000 tokens, Pythia and Mamba, both directions): MPPC moves by 5e-6 in the
median feature, 4e-5 in one of a hundred, 1.3e-4 at most; one match in 12,000 becomes another; the mean moves by 5e-7."""


class Shard(NamedTuple):
    """What one shard added to a layer's files."""

    n_tokens: int
    nnz: int
    crc32: dict[str, int]
    """Of the bytes added to each file; the zero with which indptr begins belongs to none."""


def feature_bytes(n_tokens: int, l0: float, d_sae: int, dtype: FeatureDtype = "float32") -> int:
    """Bytes on the disk of one layer of which `l0` features fire per token, header apart."""
    types = array_types(d_sae, dtype)
    return sum(
        length * np.dtype(types[name]).itemsize
        for name, length in zip(ARRAYS, array_lengths(n_tokens, round(n_tokens * l0)), strict=True)
    )


def array_types(d_sae: int, dtype: FeatureDtype) -> dict[str, str]:
    """NumPy's names of the little-endian types of the three arrays."""
    values = {"float32": "<f4", "float16": "<f2"}[dtype]
    return {"indptr": "<i8", "indices": index_dtype(d_sae).newbyteorder("<").str, "values": values}


def array_lengths(n_tokens: int, nnz: int) -> tuple[int, int, int]:
    """Of indptr, indices and values."""
    return n_tokens + 1, nnz, nnz


def finished_shards(folder: str | Path, d_sae: int, dtype: FeatureDtype = "float32") -> int:
    """How many shards of an unfinished layer can be kept: those in its journal whose bytes are there and are right."""
    folder = Path(folder)
    shards = read_journal(folder)
    damage = next(find_damage(folder, shards, array_types(d_sae, dtype)), None)
    if damage is None:
        return len(shards)
    log.warning("%s; this shard and those after it are written again.", damage[1])
    return damage[0]


def find_damage(folder: Path, shards: Sequence[Shard], dtypes: dict[str, str]) -> Iterator[tuple[int, str]]:
    """(shard, what is wrong with it) in order."""
    n_tokens = nnz = 0
    for number, shard in enumerate(shards):
        starts = (n_tokens + 1, nnz, nnz)
        lengths = (shard.n_tokens, shard.nnz, shard.nnz)
        for name, start, length in zip(ARRAYS, starts, lengths, strict=True):
            path, size = folder / f"{name}.bin", np.dtype(dtypes[name]).itemsize
            if _crc32(path, start * size, length * size) != shard.crc32[name]:
                yield number, f"shard {number} of {path} is damaged"
        n_tokens, nnz = n_tokens + shard.n_tokens, nnz + shard.nnz


def _crc32(path: Path, start: int, length: int, at_once: int = 1 << 24) -> int | None:
    """Checksum of a part of a file; None where the file is shorter."""
    if not path.exists():
        return None
    found = 0
    with path.open("rb") as file:
        file.seek(start)
        while length and (data := file.read(min(length, at_once))):
            found, length = zlib.crc32(data, found), length - len(data)
    return None if length else found


def journal_line(shard: Shard) -> str:
    """What the journal says of a shard."""
    return json.dumps(shard) + "\n"


def read_journal(folder: Path) -> list[Shard]:
    """The shards of a journal, up to a line that a kill cut off."""
    shards: list[Shard] = []
    path = folder / JOURNAL
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            shards.append(Shard(*json.loads(line)))
        except (ValueError, TypeError):
            break
    return shards
