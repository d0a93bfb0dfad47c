"""Pools of one size, matches scored on other text, and one-to-one matches, against cases whose answer is known."""

import numpy as np
import pytest
import scipy.sparse
import torch

from lib.mppc.controls import by_match_layer, cross_scored, elsewhere, fair_pools, kept, pairwise_mcc, reordered
from lib.mppc.correlation import max_pairwise_correlation
from lib.mppc.features import SparseFeatures


def layers_of(rng, n_tokens, sizes, density=0.2):
    fires = [rng.random((n_tokens, d)) < density for d in sizes]
    return [SparseFeatures.from_scipy(scipy.sparse.csr_array(rng.random(f.shape) * f)) for f in fires]


def test_a_pool_of_all_features_is_the_whole_comparison():
    rng = np.random.default_rng(0)
    a, b = layers_of(rng, 300, (8, 5)), layers_of(rng, 300, (6, 7))
    whole = max_pairwise_correlation(a, b).value
    np.testing.assert_array_equal(fair_pools(a, b, 13, 2, seed=0), [whole, whole])


def test_smaller_pools_have_lower_maxima_and_are_drawn_anew():
    rng = np.random.default_rng(1)
    a, b = layers_of(rng, 200, (30,)), layers_of(rng, 200, (40, 40))
    few, more = (fair_pools(a, b, size, 4, seed=3) for size in (5, 40))
    whole = max_pairwise_correlation(a, b).value
    assert few.mean() < more.mean() < whole.mean() and (more <= whole + 1e-6).all()
    assert len({row.tobytes() for row in few}) == 4
    np.testing.assert_array_equal(few, fair_pools(a, b, 5, 4, seed=3))


def test_dead_features_are_in_no_pool():
    rng = np.random.default_rng(2)
    [a], [b] = layers_of(rng, 200, (4,)), layers_of(rng, 200, (6,))
    half_dead = kept(b, np.array([True, False] * 3))
    assert (np.diff(half_dead.to_scipy().tocsc().indptr)[1::2] == 0).all()
    np.testing.assert_array_equal(half_dead.to_scipy().toarray()[:, ::2], b.to_scipy().toarray()[:, ::2])
    np.testing.assert_array_equal(
        fair_pools([a], [half_dead], 3, 1, seed=0)[0], max_pairwise_correlation([a], [half_dead]).value
    )
    with pytest.raises(ValueError, match="a pool of 4 features was asked for, and only 3 vary"):
        fair_pools([a], [half_dead], 4, 1, seed=0)


def test_pure_chance_is_all_optimism_and_a_true_match_has_none():
    rng = np.random.default_rng(3)
    noise = scipy.sparse.csr_array(np.where(rng.random((4_000, 20)) < 0.2, rng.random((4_000, 20)), 0))
    [other] = layers_of(rng, 4_000, (60,))
    same = SparseFeatures.from_scipy(scipy.sparse.hstack([noise[:, :1] * 2, other.to_scipy()]))
    a = SparseFeatures.from_scipy(noise)
    frame = cross_scored([a], [same], np.arange(4_000) // 100 % 10)
    assert frame.chosen[0] == pytest.approx(1, abs=1e-6) and frame.scored[0] == pytest.approx(1, abs=1e-6)
    assert (frame.chosen[1:] > 0.02).all() and abs(frame.scored[1:].mean()) < 0.02


def test_scores_are_the_correlations_of_the_chosen_pairs_on_the_other_half():
    rng = np.random.default_rng(4)
    a, b = layers_of(rng, 500, (3, 2)), layers_of(rng, 500, (4, 4))
    group = rng.integers(0, 6, 500)
    frame = cross_scored(a, b, group)
    x, y = (np.hstack([layer.to_scipy().toarray() for layer in side]) for side in (a, b))
    for row in range(5):
        chosen, scored = [], []
        for half in (0, 1):
            here, there = group % 2 == half, group % 2 != half
            r = [np.corrcoef(x[here, row], y[here, j])[0, 1] for j in range(8)]
            chosen.append(max(r))
            scored.append(np.corrcoef(x[there, row], y[there, int(np.argmax(r))])[0, 1])
        assert frame.chosen[row] == pytest.approx(np.mean(chosen), abs=1e-6)
        assert frame.scored[row] == pytest.approx(np.mean(scored), abs=1e-6)


def test_partners_are_one_to_one_whatever_their_order_and_length():
    torch.manual_seed(0)
    W = torch.linalg.qr(torch.randn(8, 8)).Q
    order = torch.randperm(8)
    value, partner = pairwise_mcc(W, 3 * W[order])
    np.testing.assert_allclose(value, 1, atol=1e-6)
    assert (order[partner] == torch.arange(8)).all()


def test_two_copies_of_one_direction_find_one_partner_only():
    one, other = torch.eye(4)[0], torch.eye(4)[1]
    value, partner = pairwise_mcc(torch.stack([one, one]), torch.stack([one, other]))
    assert sorted(value.tolist()) == pytest.approx([0, 1]) and sorted(partner.tolist()) == [0, 1]
    value, partner = pairwise_mcc(torch.stack([one, other, one]), torch.stack([other]))
    assert partner.tolist() == [-1, 0, -1] and np.isnan(value[[0, 2]]).all()


def test_the_best_of_the_layers_is_the_match():
    rng = np.random.default_rng(5)
    a, b = layers_of(rng, 300, (8, 5)), layers_of(rng, 300, (6, 7, 4))
    values, whole = by_match_layer(a, b), max_pairwise_correlation(a, b)
    assert values.shape == (13, 3)
    np.testing.assert_array_equal(values.max(1), whole.value)
    np.testing.assert_array_equal(values.argmax(1), whole.layer)


def test_elsewhere_is_the_same_place_of_another_block():
    lengths = np.random.default_rng(6).integers(3, 12, 40)
    mask = np.arange(12) < lengths[:, None]
    mask[:, 0] = False  # BOS counts nowhere
    block, place = np.nonzero(mask)
    partner = elsewhere(mask, seed=1)
    assert (np.sort(partner) == np.arange(len(place))).all()
    assert (place[partner] == place).all()
    others = np.bincount(place)[place] > 1
    assert others.sum() > 200 and (block[partner] != block)[others].all()


def test_what_a_place_alone_gives_survives_and_what_a_text_gives_is_lost():
    rng = np.random.default_rng(7)
    mask = np.ones((400, 10), bool)
    of_place = np.tile(np.arange(10) == 3, 400).astype(float)
    of_text = np.where(rng.random(4_000) < 0.1, 1.0, 0)
    features = SparseFeatures.from_scipy(scipy.sparse.csr_array(np.stack([of_place, of_text], 1)))
    found = max_pairwise_correlation([features], [reordered(features, elsewhere(mask, seed=0))]).value
    assert found[0] == pytest.approx(1, abs=1e-6) and found[1] < 0.1
