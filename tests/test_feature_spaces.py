"""The pipeline of matched features and their directions, on spaces where the answer is known."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from lib.mppc.features import SparseFeatures
from lib.plots import pages, spaces as space_plots
from lib.spaces import concepts, semantic
from lib.spaces.semantic import FeatureSpace
from lib.workbook import spaces

WORDS = np.array([True] * 8 + [False] * 2)  # tokens 8 and 9 are punctuation


def space(name, seed=0, n=40, noise=0.0, turn=False):
    """Features of one base world, seen with noise; directions turned by a rotation of the model's own."""
    rng, own = np.random.default_rng(0), np.random.default_rng(seed)
    base = np.where(rng.random((400, n)) < 0.2, rng.random((400, n)), 0)
    directions = rng.normal(size=(n, 12))
    seen = base + (base > 0) * noise * own.random((400, n))
    turned = directions @ np.linalg.qr(own.normal(size=(12, 12)))[0] if turn else directions
    tokens = np.tile(np.arange(n)[:, None] % 8, (1, 5))
    sparse = SparseFeatures.from_scipy(scipy.sparse.csr_array(seen))
    return FeatureSpace(name, [sparse], [(turned + noise * own.normal(size=turned.shape)).astype("f4")], [tokens])


def test_turned_spaces_of_the_same_features_are_alike():
    a, b = space("a"), space("b", seed=1, noise=0.1, turn=True)
    pairs, left = semantic.matched_pairs(a, b, (0, 0), WORDS)
    assert (pairs["a"] == pairs["b"]).all() and len(pairs) == 40 and left["one to one"] == 40
    for row in semantic._scored(*semantic.decoder_rows(a, b, (0, 0), pairs), runs=50, seed=0):
        assert row["score"] > 0.9 > row["null_95"] and row["p"] == pytest.approx(1 / 51)


def test_each_filter_takes_what_it_should():
    a, b = space("a"), space("b", noise=0.01)
    b.top_tokens[0][0] = [9, 9, 8, 8, -1]  # only punctuation
    b.top_tokens[0][1] = [5, 5, 5, 5, 5]  # another word than a's
    a.top_tokens[0][2] = [-1] * 5
    dense = b.activations[0].to_scipy().toarray()
    dense[:, 3] = 0  # dead
    dense[:, 5] = dense[:, 4] + 0.3 * dense[:, 5]  # its best in A is now feature 4, which 4 has already
    b = FeatureSpace("b", [SparseFeatures.from_scipy(scipy.sparse.csr_array(dense))], b.decoders, b.top_tokens)
    b.top_tokens[0][5] = b.top_tokens[0][4]
    pairs, left = semantic.matched_pairs(a, b, (0, 0), WORDS)
    assert left == {"alive": 39, "correlated": 39, "concept tokens": 37, "shared token": 36, "one to one": 35}
    assert not {0, 1, 2, 3, 5} & set(pairs["b"]) and not pairs["a"].duplicated().any()
    assert pairs.set_index("a").loc[4, "b"] == 4  # the best of the two stays


def test_too_few_pairs_are_not_scored():
    rows = semantic._scored(np.ones((5, 3)), np.ones((5, 3)), 10, 0)
    assert [row["measure"] for row in rows] == ["SVCCA", "RSA"] and all(
        np.isnan(row["p"]) and row["n"] == 5 for row in rows
    )


def test_layers_of_the_same_depth():
    assert semantic.same_depth(4, 8) == [(0, 1), (1, 3), (2, 5), (3, 7)]
    assert semantic.same_depth(4, 4) == [(k, k) for k in range(4)]
    assert semantic.same_depth(3, 1)[-1] == (2, 0) and (0, -1) not in semantic.same_depth(3, 1)


def test_subspaces_are_matched_within():
    a, b = space("a"), space("b", noise=0.05)
    pairs = semantic._pairs_within(a, b, (0, 0), np.arange(0, 20), np.arange(10, 30))
    assert set(zip(pairs["a"], pairs["b"])) >= {(k, k) for k in range(10, 20)}
    assert pairs["a"].max() < 20 and pairs["b"].min() >= 10
    assert len(semantic._pairs_within(a, b, (0, 0), np.arange(0), np.arange(3))) == 0


def test_concepts_by_their_words():
    vocabulary = [" int", "Error", "plot", "::", " January", "Ġx"]
    members = concepts.concept_tokens(vocabulary, concepts.DOCUMENTATION)
    assert len(members) == len(concepts.concept_tokens(vocabulary, concepts.GENERAL)) == 8
    assert (
        members["types"].tolist() == [True, False, False, False, False, False]
        and members["errors"][1]
        and members["plotting"][2]
    )
    assert concepts.concept_tokens(vocabulary, concepts.GENERAL)["month names"][4]
    tops = np.array([[0, 0, 3, 3, 3], [0, 3, 3, 3, 3], [-1] * 5])
    assert concepts.features_of(tops, members["types"]).tolist() == [True, False, False]
    assert concepts.is_word([" a", "::", "\n", "<|endoftext|>", "3"]).tolist() == [True, False, False, False, True]


def test_the_whole_pipeline_runs_and_is_kept(smoke):
    scores, filters = spaces.layer_scores(smoke.pythia, smoke.mamba, smoke, runs=3)
    n_a, n_b = (filters[c].nunique() for c in ("layer_a", "layer_b"))
    assert len(filters) == n_a * n_b and len(scores) == 2 * n_a * n_b
    steps = filters[list(semantic.STEPS)].to_numpy()
    assert (np.diff(steps, axis=1) <= 0).all()
    again, _ = spaces.layer_scores(smoke.pythia, smoke.mamba, smoke, runs=3)
    pd.testing.assert_frame_equal(scores, again)


# ------------------------------------------------------------------------------------------- figures


def layers(scores=(0.5, 0.6, 0.7, 0.8)):
    grid = [(i, j) for i in range(2) for j in range(2)]
    rows = [
        {"layer_a": i, "layer_b": j, "measure": m, "score": s, "null_mean": 0.1, "null_95": 0.2, "p": 0.01}
        for (i, j), s in zip(grid, scores)
        for m in ("SVCCA", "RSA")
    ]
    return pd.DataFrame(rows)


def test_heatmaps_have_the_own_layers_along_x():
    figure = space_plots.fig_heatmaps({"Mamba": layers()}, "RSA")
    values = figure.axes[0].collections[0].get_array().reshape(2, 2)
    np.testing.assert_array_equal(values, [[0.5, 0.7], [0.6, 0.8]])
    assert figure.axes[0].get_ylim() == (0, 2)


def test_heatmaps_write_score_and_null_into_the_cells_and_the_largest_p_above():
    axes = space_plots.fig_heatmaps({"Mamba": layers().assign(null_mean=0.1, null_95=0.55, p=0.02)}, "RSA").axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.50 (0.10)", "0.70 (0.10)", "0.60 (0.10)", "0.80 (0.10)"]
    assert axes.get_title() == "Mamba: 3 of 4 above 95 % of\nshuffles, largest p 0.020"


def test_a_cloud_of_distances_counts_every_pair_of_features():
    rows = np.random.default_rng(0).normal(size=(20, 5))
    axes = space_plots.fig_distances(rows, rows, ("A", "B"), 1.0).axes[0]
    assert axes.collections[0].get_array().sum() == 20 * 19 / 2 and (
        axes.get_title() == "distances of 20 matched features by rank,\nRSA 1.00"
    )


def test_subspaces_are_filled_where_significant():
    rows = [
        {"comparison": "Mamba", "concept": c, "measure": "RSA", "score": 0.5, "null_95": 0.2, "p_corrected": p}
        for c, p in (("time", 0.01), ("files", 0.5))
    ]
    dots = space_plots.fig_subspaces(pd.DataFrame(rows), "RSA").axes[0].collections[-1]
    faces = dots.get_facecolors()[:, :3]
    assert (faces[1] == 1).all() and not (faces[0] == 1).all()


def test_the_linked_page_holds_its_pairs_and_no_markup():
    pairs = pd.DataFrame({c: [0.0, 1.0, 2.0] for c in ("ax", "ay", "bx", "by", "rho", "a", "b")})
    pairs = pairs.assign(token=["x", "</script><b>", "&"], concept=["", "time", ""])
    page = pages.linked_page(pairs, "left", "right", "mini")
    data = re.search(r'id="data">(.*?)</script>', page, re.S)[1]
    assert json.loads(data)["token"] == list(pairs["token"]) and "</script><b>" not in data
    assert len(space_plots.fig_umap(pairs, "left", "right").axes) == 2


def test_geometry_rises_where_it_should():
    rho = np.linspace(0.2, 1, 200)
    axes = space_plots.fig_geometry({"Mamba": pd.DataFrame({"rho": rho, "overlap": rho / 2})}, 0.01).axes[0]
    y = axes.containers[0].lines[0].get_ydata()
    assert (np.diff(y) > 0).all() and len(y) == 8
