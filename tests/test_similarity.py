"""Measures of similarity against independent references, invariances, and spaces whose answer is known."""

import numpy as np
import pytest
import scipy.spatial
from scipy.stats import ortho_group, spearmanr
from sklearn.cross_decomposition import CCA

from lib.spaces import similarity as S

MEASURES = {
    "svcca": S.svcca, "rsa": S.rsa, "linear_cka": S.linear_cka,
    "unbiased linear_cka": lambda x, y: S.linear_cka(x, y, unbiased=True),
    "procrustes": S.procrustes_similarity,
    "neighbours": lambda x, y: S.neighbour_overlap(x, y, 5).mean(),
}  # fmt: skip


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(60, 8)) * np.arange(1, 9)


def noise(shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_equal_spaces_are_equal_and_unrelated_ones_are_not(measure, x):
    assert measure(x, x) == pytest.approx(1)
    assert measure(x, noise((60, 8))) < 0.6
    assert measure(x, x + 0.5 * noise(x.shape)) > measure(x, x + 3 * noise(x.shape))


@pytest.mark.parametrize("name", [n for n in MEASURES if n not in ("rsa", "neighbours")])
def test_rotation_scaling_and_shift_change_nothing(name, x):
    turned = 3 * x @ ortho_group.rvs(8, random_state=0) + 5
    assert MEASURES[name](x, turned) == pytest.approx(1, abs=1e-6)
    assert MEASURES[name](turned, noise((60, 5))) == pytest.approx(MEASURES[name](x, noise((60, 5))), abs=1e-6)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_the_order_of_the_pairs_does_not_matter_but_the_pairing_does(measure, x):
    y, order = x + noise(x.shape), np.random.default_rng(2).permutation(60)
    assert measure(x[order], y[order]) == pytest.approx(measure(x, y))
    assert measure(x, y[order]) < measure(x, y)


def test_svcca_is_the_mean_canonical_correlation(x):
    y = np.hstack([x[:, :3] + 0.3 * noise((60, 3)), noise((60, 2), 3)])
    a, b = CCA(n_components=5, max_iter=5_000, tol=1e-9).fit_transform(x, y)
    expected = np.mean([np.corrcoef(a[:, k], b[:, k])[0, 1] for k in range(5)])
    assert S.svcca(x, y, variance=1.0) == pytest.approx(expected, abs=1e-3)


def test_svcca_keeps_99_percent_of_the_variance():
    base = np.linalg.qr(noise((50, 3)) - noise((50, 3)).mean(0))[0]
    x = (base - base.mean(0)) * np.sqrt([90, 9.5, 0.5])
    assert S.principal_directions(x).shape[1] in (2, 3)
    held = np.cumsum(np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2)
    enough = int(np.searchsorted(held / held[-1], 0.99) + 1)
    assert S.principal_directions(x).shape[1] == enough


def test_rsa_is_scipy_s(x):
    y = noise((60, 4))
    pairs = [scipy.spatial.distance.pdist(z, "correlation") for z in (x, y)]
    assert S.rsa(x, y) == pytest.approx(spearmanr(*pairs)[0])


def test_linear_cka_is_the_closed_form(x):
    y = noise((60, 5)) + x[:, :5]
    a, b = x - x.mean(0), y - y.mean(0)
    expected = np.linalg.norm(a.T @ b) ** 2 / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)
    assert S.linear_cka(x, y) == pytest.approx(expected)


def test_unbiased_cka_of_unrelated_spaces_is_zero_on_average():
    values = [
        [S.linear_cka(noise((20, 30), k), noise((20, 30), 100 + k), unbiased=u) for k in range(100)]
        for u in (False, True)
    ]
    assert np.mean(values[0]) > 0.5 and abs(np.mean(values[1])) < 0.03


def test_procrustes_is_scipy_s(x):
    y = x @ ortho_group.rvs(8, random_state=1) + noise(x.shape)
    assert 1 - S.procrustes_similarity(x, y) == pytest.approx(scipy.spatial.procrustes(x, y)[2])


def test_neighbours_by_hand():
    on_circle = lambda degrees: np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], 1)  # noqa: E731
    x = on_circle([0, 10, 20, 90, 100, 110])
    y = on_circle([0, 10, 135, 90, 100, 110])  # point 2 has gone over to the second group
    assert S.neighbour_overlap(x, y, 2).tolist() == [0.5, 0.5, 0, 1, 1, 1]
    assert S.neighbour_overlap(x, x, 2).tolist() == [1] * 6


# ------------------------------------------------------------------------------------- nulls, matchings


def test_permutation_tests_find_pairings_and_are_uniform_without_one():
    x = noise((40, 6))
    for test in (S.svcca_test, S.rsa_test):
        found = test(x, x + 0.5 * noise((40, 6), 2), 99, seed=0)
        assert found["p"] == 0.01 and found["score"] > found["null_95"] > found["null_mean"]
        ps = [test(noise((15, 3), k), noise((15, 3), 50 + k), 39, seed=k)["p"] for k in range(40)]
        assert 0.3 < np.mean(ps) < 0.7 and min(ps) >= 1 / 40
    direct = S.svcca(x, x + noise((40, 6), 3))
    assert S.svcca_test(x, x + noise((40, 6), 3), 1, 0)["score"] == pytest.approx(direct)
    assert S.rsa_test(x, x + noise((40, 6), 3), 1, 0)["score"] == pytest.approx(S.rsa(x, x + noise((40, 6), 3)))


def test_one_to_one_takes_the_greatest_sum():
    correlation = np.array([[0.9, 0.8, np.nan], [0.85, 0.1, 0.2]])
    rows, columns = S.one_to_one(correlation)
    assert list(zip(rows, columns)) == [(0, 1), (1, 0)]  # 1.65, where taking the best first gives 1.1


def test_soft_matching_has_even_margins_and_sharpens():
    correlation = np.random.default_rng(0).random((5, 7))
    plan = S.soft_matching(correlation)
    np.testing.assert_allclose(plan.sum(0), 1 / 7, rtol=1e-6)
    np.testing.assert_allclose(plan.sum(1), 1 / 5, rtol=1e-3)
    square = np.random.default_rng(1).random((6, 6))
    rows, columns = S.one_to_one(square)
    assert (S.soft_matching(square, 0.005, 2_000).argmax(1) == columns).all()


@pytest.mark.ill_typed
def test_too_few_or_unpaired_rows_are_said(x):
    with pytest.raises(ValueError, match="60 and 59"):
        S.svcca(x, x[:-1])
    with pytest.raises(ValueError, match="2 paired rows"):
        S.rsa(x[:2], x[:2])
    with pytest.raises(ValueError, match="at least 4 rows"):
        S.linear_cka(x[:3], x[:3], unbiased=True)
