"""MPPC against numpy.corrcoef in float64, where the arithmetic is hard, and at its edges."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import torch

from lib.mppc.correlation import dense_max_pairwise_correlations, max_pairwise_correlation, max_pairwise_correlations
from lib.mppc.features import SparseFeatures
from lib.mppc.files import open_layer, save_features

TOLERANCE = 1e-6


def sparse(*layers):
    return [scipy.sparse.csr_array(np.asarray(layer, np.float32)) for layer in layers]


def reference(a, b):
    """Value and the set of best matches (layer, index) of every feature of `a`, from the whole correlation matrix."""
    x, y = (np.hstack(layers).astype(np.float32).astype(np.float64) for layers in (a, b))
    with np.errstate(all="ignore"):
        corr = np.corrcoef(x, y, rowvar=False)[: x.shape[1], x.shape[1] :]
    corr[:, (y == y[0]).all(0)] = -np.inf
    value = corr.max(1)
    value[(x == x[0]).all(0) | np.isinf(value)] = np.nan
    return value, corr


def assert_exact(found, a, b):
    value, corr = reference(a, b)
    np.testing.assert_allclose(found.value, value, rtol=0, atol=TOLERANCE)
    sizes = [layer.shape[1] for layer in b]
    starts = np.cumsum([0, *sizes])
    for i in np.flatnonzero(~np.isnan(value)):  # another match is right only if it is as good
        match = starts[found.layer[i]] + found.index[i]
        assert found.index[i] < sizes[found.layer[i]]
        assert abs(corr[i, match] - value[i]) <= TOLERANCE
    undefined = np.isnan(value)
    assert (found.layer[undefined] == -1).all() and (found.index[undefined] == -1).all()


def adversarial(n_tokens, width, seed):
    """Features at all firing rates, and every kind that breaks a careless formula."""
    rng = np.random.default_rng(seed)
    x = rng.exponential(size=(n_tokens, width)) * (rng.random((n_tokens, width)) < rng.random(width) ** 3)
    once = rng.integers(n_tokens, size=4)
    special = [
        np.zeros(n_tokens),
        np.full(n_tokens, 0.1),
        1000 + 0.01 * rng.random(n_tokens),
        1e4 + rng.normal(size=n_tokens),
        1e6 + (rng.random(n_tokens) < 0.01),
        1e-20 * rng.exponential(size=n_tokens),
        1e15 * (rng.random(n_tokens) < 0.3),
        5.0 * (np.arange(n_tokens) == once[0]),
        1e8 * (np.arange(n_tokens) == once[1]) + (np.arange(n_tokens) == once[2]),
        0.1 * (np.arange(n_tokens) != once[0]),
        0.3 * (np.arange(n_tokens) != once[3]),
        (np.arange(n_tokens) >= n_tokens // 2) * 3.3,
        (np.arange(n_tokens) < n_tokens // 2 + 1) * 2.7,
    ]
    return rng.permutation(np.column_stack([x, *special]), axis=1).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("engine", ["sparse", "dense"])
def test_agrees_with_corrcoef_on_hard_features(seed, engine):
    a = [adversarial(2000 + seed, width, 10 * seed + width) for width in (5, 40)]
    b = [adversarial(2000 + seed, width, 10 * seed + width) for width in (33, 7, 21)]
    if engine == "sparse":
        found = max_pairwise_correlations(sparse(*a), sparse(*b), threads=2)
    else:
        found = dense_max_pairwise_correlations(a, b, block_tokens=300)
    assert_exact(found[0], a, b)
    assert_exact(found[1], b, a)


def test_means_far_above_deviations_over_many_tokens():
    rng = np.random.default_rng(0)
    common = rng.normal(size=200_000)
    a = [np.column_stack([3e4 + common + rng.normal(size=200_000), 7.7 * (np.arange(200_000) != 5)])]
    b = [np.column_stack([2e4 - common + 0.1 * rng.normal(size=200_000), 0.7 * (np.arange(200_000) != 9)])]
    a, b = [a[0].astype(np.float32)], [b[0].astype(np.float32)]
    for found in (max_pairwise_correlations(sparse(*a), sparse(*b)), dense_max_pairwise_correlations(a, b)):
        assert_exact(found[0], a, b)
        assert_exact(found[1], b, a)


def test_a_pair_that_never_fires_together_can_be_the_best():
    x = np.zeros((100, 1))
    x[:10] = 1
    together = np.zeros(100)
    together[:60] = 2
    together[:10] = 0.5  # fires with x, but weakly: correlation below that of a rare feature that never does
    apart = np.zeros(100)
    apart[99] = 1
    y = np.column_stack([together, apart])
    found = max_pairwise_correlation(sparse(x), sparse(y))
    assert found.value[0] < 0 and found.index[0] == 1
    assert_exact(found, [x], [y])


def test_features_of_different_texts_are_not_paired():
    x = SparseFeatures.from_scipy(scipy.sparse.csr_array(np.eye(4)))
    one, other = replace(x, text="one"), replace(x, text="other")
    for a, b in (([one], [one, x]), ([x], [x]), ([one.head(3)], [one.head(3)])):  # of x nothing is known
        assert len(max_pairwise_correlation(a, b).value) == 4
    for a, b in (([one], [other]), ([one, one], [x, other]), ([one.head(3)], [other.head(3)])):
        with pytest.raises(ValueError, match="read different tokens"):
            max_pairwise_correlation(a, b)


def test_the_maximum_is_signed():
    x = np.array([[0.0], [1], [2], [3]])
    y = np.column_stack([3 - x[:, 0], [0, 0, 1, 0]])
    assert max_pairwise_correlation(sparse(x), sparse(y)).index.tolist() == [1]


@pytest.mark.parametrize("engine", [max_pairwise_correlations, dense_max_pairwise_correlations])
def test_ties_go_to_the_first_layer_and_feature(engine):
    rng = np.random.default_rng(0)
    x = (rng.exponential(size=(300, 60)) * (rng.random((300, 60)) < 0.2)).astype(np.float32)
    other = (rng.random((300, 60)) < 0.2).astype(np.float32)
    a, b = [x], [np.hstack([other, x, x]), np.hstack([x, other])]
    if engine is max_pairwise_correlations:
        a, b = sparse(*a), sparse(*b)
    forward, reverse = engine(a, b)
    assert (forward.layer == 0).all() and forward.index.tolist() == list(range(60, 120))
    assert reverse.of_layer(0).index[60:].tolist() == [*range(60), *range(60)]
    twice = engine([a[0], a[0]], b)[1].of_layer(1)
    assert (twice.layer == 0).all() and twice.index[:60].tolist() == list(range(60))


def test_ties_between_threads_go_to_the_first_feature():
    x = np.random.default_rng(0).exponential(size=(100, 60)).astype(np.float32)
    found = max_pairwise_correlations(sparse(np.tile(x, 60)), sparse(x), threads=4)[1]
    assert found.index.tolist() == list(range(60))


@pytest.mark.parametrize("engine", [max_pairwise_correlations, dense_max_pairwise_correlations])
def test_dead_models_have_no_matches(engine):
    alive, dead = np.eye(4, 3, dtype=np.float32), np.zeros((4, 2), np.float32)
    a, b = ([alive], [dead, dead]) if engine is dense_max_pairwise_correlations else (sparse(alive), sparse(dead, dead))
    for found, size in zip(engine(a, b), (3, 4)):
        assert np.isnan(found.value).all() and (found.layer == -1).all() and len(found.index) == size


def test_results_do_not_depend_on_threads_or_on_where_features_come_from(tmp_path):
    a, b = [adversarial(900, 80, 1)], [adversarial(900, 50, 2)]
    save_features(SparseFeatures.from_dense(b[0]), tmp_path / "b.safetensors")
    one = max_pairwise_correlations(sparse(*a), sparse(*b), threads=1)
    three = max_pairwise_correlations(
        [SparseFeatures.from_scipy(sparse(*a)[0])], [open_layer(tmp_path / "b.safetensors")], threads=3
    )
    for x, y in zip(one, three):
        for field in ("value", "layer", "index", "offsets"):
            np.testing.assert_array_equal(getattr(x, field), getattr(y, field))


def test_more_features_than_sixteen_bits_can_count():
    rng = np.random.default_rng(0)
    tokens, columns = rng.integers(200, size=300_000), rng.integers(70_000, size=300_000)
    wide = scipy.sparse.csr_array((rng.random(300_000), (tokens, columns)), shape=(200, 70_000))
    few = wide[:, [69_999, 12, 69_990]]
    found = max_pairwise_correlation([few], [wide])
    assert found.index.tolist() == [69_999, 12, 69_990]
    np.testing.assert_allclose(found.value, 1, atol=TOLERANCE)


@pytest.mark.parametrize("engine", [max_pairwise_correlations, dense_max_pairwise_correlations])
def test_wrong_input_is_one_sentence(engine):
    ones = np.eye(4, dtype=np.float32)
    wrap = sparse if engine is max_pairwise_correlations else lambda *layers: list(layers)
    with pytest.raises(ValueError, match="the layers have 3 and 4 tokens"):
        engine(wrap(ones), wrap(ones, ones[:3]))
    with pytest.raises(ValueError, match="at least one layer"):
        engine(wrap(ones), [])
    with pytest.raises(ValueError, match="at least one token"):
        engine(wrap(ones[:0]), wrap(ones[:0]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        engine(wrap(ones), wrap(np.where(ones, np.nan, 0)))


def test_dense_layers_may_be_tensors_or_memory_maps(tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(500, 20)).astype(np.float32), rng.normal(size=(500, 30)).astype(np.float16)
    np.save(tmp_path / "b.npy", b)
    mapped = np.load(tmp_path / "b.npy", mmap_mode="r")
    found = dense_max_pairwise_correlations([torch.tensor(a, requires_grad=True)], [mapped], block_tokens=128)
    assert_exact(found[0], [a], [b])
    assert_exact(found[1], [b], [a])


def test_table_has_a_row_per_feature():
    a, b = [adversarial(300, 3, 1), adversarial(300, 6, 2)], [adversarial(300, 4, 3)]
    found = max_pairwise_correlation(sparse(*a), sparse(*b))
    table = found.to_frame()
    assert list(table) == ["layer", "index", "mppc", "match_layer", "match_index"]
    assert table.groupby("layer").size().tolist() == [layer.shape[1] for layer in a]
    for layer, x in enumerate(a):
        rows = table[table.layer == layer]
        assert rows["index"].tolist() == list(range(x.shape[1]))
        np.testing.assert_array_equal(rows.mppc, found.of_layer(layer).value)
        assert_exact(found.of_layer(layer), [x], b)
