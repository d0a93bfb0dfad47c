"""Nulls and intervals against their definitions, and their coverage on data whose answer is known."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from lib.corpus import Blocks
from lib.mppc import uncertainty
from lib.mppc.correlation import max_pairwise_correlation
from lib.mppc.features import SparseFeatures, rolled


def sparse(rng, n_tokens, d_sae, density=0.1):
    dense = rng.exponential(size=(n_tokens, d_sae)) * (rng.random((n_tokens, d_sae)) < density)
    return dense.astype(np.float32), SparseFeatures.from_scipy(scipy.sparse.csr_array(dense.astype(np.float32)))


@pytest.mark.parametrize("offset", [0, 1, 17, 49, 50, 63])
def test_rolled_is_numpys_roll(offset):
    dense, features = sparse(np.random.default_rng(0), 50, 7)
    np.testing.assert_array_equal(rolled(features, offset).to_scipy().toarray(), np.roll(dense, offset, axis=0))


def test_null_offset_is_far_from_no_shift():
    offsets = [uncertainty.null_offset(1000, seed) for seed in range(50)]
    assert min(offsets) >= 250 and max(offsets) <= 750 and len(set(offsets)) > 10


def test_null_level_is_the_quantile_of_features_that_fire_as_often():
    rate = np.repeat([0.001, 0.5], 100)
    null = pd.DataFrame(
        {"mppc": np.concatenate([np.linspace(0.2, 0.4, 100), np.linspace(0, 0.1, 100)]), "firing_rate": rate}
    )
    frame = pd.DataFrame({"mppc": np.full(200, 0.5), "firing_rate": rate})
    frame.loc[3, "mppc"] = np.nan
    level = uncertainty.null_level(frame, null, quantile=0.99, n_bins=2)
    assert np.isnan(level[3]) and level.notna().sum() == 199
    assert level[0] == pytest.approx(0.4, abs=0.01) and level[150] == pytest.approx(0.1, abs=0.01)


def test_documents_stay_together_in_a_group():
    blocks = Blocks(
        np.zeros((6, 4), int), np.array([[0, 1, 1, 1]] * 5 + [[0, 1, 0, 0]], bool), np.array([0, 0, 1, 2, 2, 3])
    )
    group = uncertainty.document_groups(blocks, seed=0, n_groups=4)
    assert len(group) == 16 and sorted(set(group)) == [0, 1, 2, 3]
    assert len(set(group[:6])) == len(set(group[9:15])) == 1


def test_sums_of_all_groups_give_the_mppc_itself():
    rng = np.random.default_rng(1)
    a, b = ([sparse(rng, 400, 9)[1] for _ in range(2)] for _ in range(2))
    matches = max_pairwise_correlation(a, b).to_frame()
    matches.loc[4, ["match_layer", "match_index"]] = -1
    group = rng.integers(0, 5, 400).astype(np.int32)
    sums = uncertainty.matched_sums(a, b, matches, group)
    sizes = np.bincount(group)
    whole = uncertainty.correlation(sums.sum(1)[None], np.array([[400.0]]))[0]
    assert np.isnan(whole[4])
    np.testing.assert_allclose(np.delete(whole, 4), matches["mppc"].drop(4), atol=1e-6)
    x = a[1].to_scipy().toarray()[:, 3].astype(float)
    row = matches.iloc[9 + 3]
    y = b[int(row.match_layer)].to_scipy().toarray()[:, int(row.match_index)].astype(float)
    for g in range(5):
        np.testing.assert_allclose(sums[12, g], [v[group == g].sum() for v in (x, y, x * x, y * y, x * y)], rtol=1e-9)
    resampled = uncertainty.bootstrap(sums, sizes, seed=3, n_resamples=2)
    weights = np.random.default_rng(3).multinomial(5, np.full(5, 0.2), 2)
    tokens = np.concatenate([np.repeat(np.flatnonzero(group == g), 1).repeat(w) for g, w in enumerate(weights[1])])
    assert resampled[1, 12] == pytest.approx(np.corrcoef(x[tokens], y[tokens])[0, 1], abs=1e-5)


def test_sums_do_not_depend_on_how_much_is_read_at_once(monkeypatch):
    rng = np.random.default_rng(2)
    a, b = ([sparse(rng, 300, width)[1] for width in widths] for widths in ((5, 8), (6, 7, 4)))
    matches = max_pairwise_correlation(a, b).to_frame()
    group = rng.integers(0, 9, 300).astype(np.int32)
    whole = uncertainty.matched_sums(a, b, matches, group)
    monkeypatch.setattr(uncertainty, "ENTRIES_AT_ONCE", 20)
    np.testing.assert_array_equal(uncertainty.matched_sums(a, b, matches, group), whole)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Documents that differ: tokens of one document share a sign, so tokens are not independent, documents are."""
    covered, truth = 0, 0.5
    for seed in range(60):
        rng = np.random.default_rng(seed)
        strength = rng.normal(truth, 0.5, 200).repeat(10)
        x = rng.normal(size=2000)
        y = strength * x + rng.normal(size=2000) * np.sqrt(1 - truth**2 - 0.25)
        group = (np.arange(2000) // 10 % 100).astype(np.int32)
        features = [SparseFeatures.from_scipy(scipy.sparse.csr_array(v[:, None])) for v in (x, y)]
        matches = pd.DataFrame({"layer": [0], "index": [0], "match_layer": [0], "match_index": [0]})
        sums = uncertainty.matched_sums(features[:1], features[1:], matches, group)
        values = uncertainty.bootstrap(sums, np.bincount(group), seed, 200)[:, 0]
        low, high = uncertainty.interval(values, np.corrcoef(x, y)[0, 1])
        covered += low <= truth <= high
    assert 50 <= covered <= 60


def test_an_interval_lies_about_its_estimate():
    low, high = uncertainty.interval(np.random.default_rng(0).normal(0.4, 0.01, 5_000), 0.5)
    assert low < 0.5 < high and high - low == pytest.approx(0.0392, rel=0.05)
