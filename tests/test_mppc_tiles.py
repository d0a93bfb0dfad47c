"""Tiles put together are the whole, ties included."""

from itertools import product

import numpy as np
import pytest
import scipy.sparse

from lib.mppc.correlation import max_pairwise_correlations, merge_tiles
from lib.workbook.workers import split


def layers(random, n_layers, d_sae):
    """Small whole numbers, so that correlations are often equal; the first feature is dead."""
    dense = random.integers(0, 2, (n_layers, 60, d_sae)) * (random.random((n_layers, 60, d_sae)) < 0.3)
    dense[:, :, 0] = 0
    return [scipy.sparse.csr_array(x.astype(np.float32)) for x in dense]


@pytest.mark.parametrize("cut", [(1, 1), (2, 3), (5, 4), (3, 1)])
def test_any_grid_of_tiles_gives_the_whole(cut):
    random = np.random.default_rng(0)
    a, b = layers(random, 5, 9), layers(random, 4, 7)
    a[4], b[3] = a[1].copy(), b[0].copy()  # ties between layers of different tiles
    a[2] = scipy.sparse.csr_array(np.zeros((60, 9), np.float32))  # a run of layers may have nothing to match
    places = product(split(range(5), cut[0]), split(range(4), cut[1]))
    tiles = []
    for place in places:
        sides = ([side[k] for k in some] for side, some in zip((a, b), place))
        tiles.append((place, max_pairwise_correlations(*sides)))
    merged = merge_tiles(tiles, [9] * 5, [7] * 4)
    whole = max_pairwise_correlations(a, b)
    assert (whole[0].layer >= 0).any() and 3 not in whole[0].layer and 4 not in whole[1].layer
    for found, expected in zip(merged, whole, strict=True):
        for field in ("value", "layer", "index", "offsets"):
            x, y = getattr(found, field), getattr(expected, field)
            np.testing.assert_array_equal(x, y)
            assert x.dtype == y.dtype


def test_runs_are_neighbours_of_nearly_equal_length():
    assert split(range(7), 3) == [range(0, 2), range(2, 4), range(4, 7)]
    assert split([1, 2], 5) == [[1], [2]] and split([1, 2], 0) == [[1, 2]]
