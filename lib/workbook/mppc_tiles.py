"""MPPC by tiles: some layers of one model with some of the other, and the tiles put together again.

The results are those of `lib.mppc.max_pairwise_correlations` over all layers, ties between layers included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from lib.mppc.correlation import MaxCorrelation, max_pairwise_correlations
from lib.mppc.files import layer_file, open_features, open_layer
from lib.workbook.model_store import device_of
from lib.workbook.profiles import Profile
from lib.workbook.workers import split, workers_of

Directions = tuple[MaxCorrelation, MaxCorrelation]
Layers = Sequence[int]


def correlate_in_tiles(folders: tuple[Path, Path], shift: int, profile: Profile, what: str) -> Directions:
    """MPPC between two models' captured features, the second model's shifted by `shift` tokens."""
    workers = workers_of(profile)
    sizes_a, sizes_b = ([layer.d_sae for layer in open_features(folder)] for folder in folders)
    columns = split(range(len(sizes_b)), workers.pieces)
    rows = split(range(len(sizes_a)), -(-workers.pieces // len(columns)))
    places = list(product(rows, columns))
    pieces = {f"layers {a[0]} to {a[-1]} with {b[0]} to {b[-1]}": (folders, (a, b), shift, profile) for a, b in places}
    tiles = workers.each(_correlate_tile, pieces, what)
    return merge_tiles(zip(places, tiles, strict=True), sizes_a, sizes_b)


def _correlate_tile(
    folders: tuple[Path, Path], layers: tuple[Layers, Layers], shift: int, profile: Profile
) -> Directions:
    a, b = ([open_layer(layer_file(folder, k)) for k in some] for folder, some in zip(folders, layers))
    return max_pairwise_correlations(a, b, shift=shift, device=device_of(profile))


def merge_tiles(
    tiles: Iterable[tuple[tuple[Layers, Layers], Directions]], sizes_a: Sequence[int], sizes_b: Sequence[int]
) -> Directions:
    """Put tiles together, each given with its layers, in the layers' order; `sizes_…`: features of every layer."""
    whole = MaxCorrelation.undefined(sizes_a), MaxCorrelation.undefined(sizes_b)
    for layers, tile in tiles:
        for found, part, own, other in zip(whole, tile, layers, layers[::-1]):
            has_match = np.flatnonzero(part.layer >= 0)
            at = found.offsets[own[0]] + has_match
            found.improve(at, part.value[has_match], other[0] + part.layer[has_match], part.index[has_match])
    return whole
