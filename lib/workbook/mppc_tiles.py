"""MPPC by tiles, on the profile's workers: some layers of one model with some of the other, then put together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from lib.mppc.correlation import MaxCorrelation, max_pairwise_correlations, merge_tiles
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
