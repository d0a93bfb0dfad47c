"""MPPC by tiles: some layers of one model with some of the other, and the tiles put together again.

The results are those of `lib.mppc.max_pairwise_correlations` over all layers, ties between layers included.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

from lib.mppc.correlation import MaxCorrelation, max_pairwise_correlations
from lib.mppc.feature_files import layer_folder, read_features
from lib.workbook.model_store import device_of
from lib.workbook.profiles import Profile
from lib.workbook.workers import split, workers_of

Directions = tuple[MaxCorrelation, MaxCorrelation]


def correlate_in_tiles(
    folders: tuple[Path, Path], n_layers: tuple[int, int], shift: int, profile: Profile, what: str
) -> Directions:
    """MPPC between two models' captured features, the second model's shifted by `shift` tokens."""
    workers = workers_of(profile)
    columns = split(range(n_layers[1]), workers.pieces)
    rows = split(range(n_layers[0]), -(-workers.pieces // len(columns)))
    pieces = {
        f"layers {a[0]} to {a[-1]} with {b[0]} to {b[-1]}": (folders, (a, b), shift, profile)
        for a, b in product(rows, columns)
    }
    tiles = workers.each(_correlate_tile, pieces, what)
    return merge_tiles([[next(tiles) for _ in columns] for _ in rows])


def _correlate_tile(
    folders: tuple[Path, Path], layers: tuple[Sequence[int], Sequence[int]], shift: int, profile: Profile
) -> Directions:
    a, b = ([read_features(layer_folder(folder, k)) for k in some] for folder, some in zip(folders, layers))
    return max_pairwise_correlations(a, b, shift=shift, device=device_of(profile))


def merge_tiles(tiles: Sequence[Sequence[Directions]]) -> Directions:
    """Put a grid of tiles together: a row per run of the first model's layers, a column per run of the second's."""
    to_b = [[to_b for to_b, _ in row] for row in tiles]
    to_a = [[to_a for _, to_a in column] for column in zip(*tiles)]
    return _joined([_best(row, to_a) for row in to_b]), _joined([_best(column, to_b) for column in to_a])


def _best(parts: Sequence[MaxCorrelation], others: Sequence[Sequence[MaxCorrelation]]) -> MaxCorrelation:
    """The same features' best of what the runs of the other model's layers gave; ties go to the first run.

    `others` holds the results of those runs' own features, hence how many layers each has.
    """
    first = np.cumsum([0, *(len(other[0].offsets) - 1 for other in others)])
    value = np.stack([part.value for part in parts])
    layer = np.stack([np.where(part.layer < 0, -1, part.layer + start) for part, start in zip(parts, first)])
    index = np.stack([part.index for part in parts])
    winner = np.where(layer < 0, -np.inf, value).argmax(0)[None]
    chosen = (np.take_along_axis(array, winner, 0)[0] for array in (value, layer.astype(np.int32), index))
    return MaxCorrelation(*chosen, parts[0].offsets)


def _joined(parts: Sequence[MaxCorrelation]) -> MaxCorrelation:
    """Runs of layers, one after the other."""
    arrays = (np.concatenate([getattr(part, name) for part in parts]) for name in ("value", "layer", "index"))
    sizes = np.concatenate([np.diff(part.offsets) for part in parts])
    return MaxCorrelation(*arrays, np.cumsum([0, *sizes]))
