"""The comparisons of §4 at smoke size: against numpy, and where the answer is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lib.mppc import neurons
from lib.mppc import directions
from lib.mppc.depth import depth_map, depth_ridge, depth_slope, relative_depths
from lib.mppc.directions import Direction
from lib.workbook import comparisons, controls, model_store, retraining, texts
from lib.workbook.profiles import Pair


@pytest.fixture(scope="module")
def pairs(smoke):
    return {name: comparisons.compare(c, smoke) for name, c in comparisons.comparisons(smoke).items()}


def test_every_comparison_has_both_directions_with_null_and_resamples(smoke, pairs):
    assert list(pairs) == ["neurons", "mamba", "rwkv", "model_seed", "sae_seed", "neurons_rwkv"]
    for forward, reverse in pairs.values():
        assert (forward.source, forward.target) == (reverse.target, reverse.source)
        for direction in (forward, reverse):
            assert direction.resampled.shape == (1000, len(direction.frame))
            assert isinstance(direction.resampled, np.memmap)  # six comparisons at the paper's size are 11 GB
            known = direction.frame["mppc"].notna()
            assert known.sum() > 50 and direction.frame.loc[known, "excess"].notna().mean() > 0.9


def test_a_fifth_model_and_a_sixth_comparison_are_data(smoke, tmp_path):
    pair = Pair(a="mamba", b="other", label="Mamba → Mamba, again")
    more = smoke.model_copy(
        update={"roles": smoke.roles | {"other": "smoke-mamba"}, "comparisons": smoke.comparisons | {"both": pair}}
    )
    known = comparisons.comparisons(more)
    assert list(known) == [*comparisons.comparisons(smoke), "both"] and more.other == "smoke-mamba"
    forward, _ = comparisons.compare(known["both"], more)
    assert np.isclose(forward.mppc.min(), 1)  # the same model and the same SAEs
    assert "both" not in comparisons.comparisons(more.changed(other=None))


def test_resamples_scatter_around_the_value(pairs):
    for forward, _ in pairs.values():
        low, high = np.nanpercentile(np.nanmean(forward.resampled, axis=1), [0.1, 99.9])
        assert low < forward.mppc.mean() < high and high - low < 0.2


def test_neurons_are_numpys_correlation(smoke, tmp_path, pairs):
    a, b = (tmp_path / side for side in "ab")
    a.mkdir(), b.mkdir()
    blocks = texts.load_blocks(smoke, "held_out", smoke.neuron_tokens)
    own, other = (model_store.load(name, smoke) for name in (smoke.pythia, smoke.mamba))
    x = np.hstack(neurons.neuron_activations(own, blocks, range(2), a)).astype(float)
    y = np.hstack(neurons.neuron_activations(other, blocks, range(4), b)).astype(float)
    assert x.shape == (len(y), 2 * 256) and y.shape[1] == 4 * 2 * 128
    forward, reverse = pairs["neurons"]
    corr = np.corrcoef(x[:, :40], y, rowvar=False)[:40, 40:]
    np.testing.assert_allclose(forward.frame["mppc"][:40], corr.max(1), atol=1e-6)
    match = forward.frame["match_layer"] * 256 + forward.frame["match_index"]
    np.testing.assert_allclose(corr[np.arange(40), match[:40]], corr.max(1), atol=1e-6)
    assert len(reverse.frame) == y.shape[1]
    assert forward.frame["null_mppc"].mean() < forward.frame["mppc"].mean()


def test_matched_sums_of_neurons_give_their_correlation(smoke):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 500, 6))
    matches = pd.DataFrame(
        {"layer": 0, "index": range(6), "match_layer": [0, 0, -1, 0, 0, 0], "match_index": [5, 4, -1, 0, 0, 1]}
    )
    sums = neurons.matched_sums([x], [y], matches, rng.integers(0, 7, 500), block=64).sum(1)
    assert np.isnan(sums[2]).all()
    np.testing.assert_allclose(
        sums[1], [x[:, 1].sum(), y[:, 4].sum(), x[:, 1] @ x[:, 1], y[:, 4] @ y[:, 4], x[:, 1] @ y[:, 4]]
    )


def test_rolled_view_is_numpys_roll():
    array = np.arange(20).reshape(10, 2)
    view = neurons.Rolled(array, 3)
    np.testing.assert_array_equal(np.concatenate([view[:4], view[4:10]]), np.roll(array, 3, axis=0))


def direction(mppc, **columns):
    frame = pd.DataFrame({"layer": 0, "mppc": mppc, "null_mppc": 0.1, "excess": np.array(mppc) - 0.2} | columns)
    return Direction("a", "b", frame, np.tile(np.array(mppc, np.float32), (50, 1)))


def test_summary_with_and_without_dead_features():
    found = directions.summarise(direction([1.0, 0.5, np.nan, 0.1]))
    assert (found["n_features"], found["n_dead"]) == (4, 1)
    assert found["mean"] == pytest.approx(1.6 / 3) and found["mean_with_dead_as_0"] == pytest.approx(0.4)
    assert found["share_above_0.95"] == pytest.approx(1 / 3) and found["share_above_0.95_with_dead"] == 0.25
    assert found["share_above_null"] == pytest.approx(2 / 3)
    assert found["low"] == pytest.approx(found["mean"]) == pytest.approx(found["high"])
    assert found["bias"] == pytest.approx(0, abs=1e-6)


def test_the_bias_of_the_bootstrap_is_what_its_mean_misses():
    biased = replace(direction([0.5, 0.7]), resampled=np.full((50, 2), 0.55, np.float32))
    found = directions.summarise(biased)
    assert found["bias"] == pytest.approx(-0.05) and found["low"] == pytest.approx(0.6) == found["high"]


def spread_out(mppc, spread, documents, **columns):
    """A direction whose mean lies `documents` to either side in 95 % of its resamples."""
    steps = documents / 0.95 * np.linspace(-1, 1, 20_001)[:, None]
    given = direction(mppc, **columns)
    return replace(given, resampled=(np.array(mppc) + steps).astype(np.float32), spread=spread)


def test_an_interval_has_the_documents_and_the_saes_in_quadrature():
    four_layers = spread_out([0.4, 0.5, 0.5, 0.6], 2 * 0.04 / 1.96, 0.03, layer=[0, 1, 2, 3])
    assert directions.mean_interval(four_layers) == pytest.approx((0.45, 0.55), abs=1e-4)  # a right angle of 3, 4, 5
    found = directions.summarise(four_layers)
    assert (found["low"], found["high"]) == directions.mean_interval(four_layers)
    assert (found["documents_low"], found["documents_high"]) == pytest.approx((0.47, 0.53), abs=1e-4)
    assert found["sae_deviation"] == pytest.approx(0.04 / 1.96)
    assert found["sae_share"] == pytest.approx(0.64, abs=1e-3)
    first = directions.mppc_by_layer(four_layers).iloc[0]  # one layer has twice the deviation of a mean of four
    assert first.high - 0.4 == pytest.approx(np.hypot(0.03, 0.08), abs=1e-4)
    unknown = replace(four_layers, spread=np.nan)
    assert directions.mean_interval(unknown) == pytest.approx((0.47, 0.53), abs=1e-4)
    assert np.isnan([directions.summarise(unknown)[name] for name in ("sae_deviation", "sae_share")]).all()


def test_layers_are_grouped_from_early_to_late():
    eight_layers = spread_out(np.linspace(0.1, 0.8, 8).tolist(), 0.04 / 1.96, 0.03, layer=range(8))
    groups = directions.layer_groups(eight_layers, 4)
    assert list(groups) == ["layers 0–1", "layers 2–3", "layers 4–5", "layers 6–7"]
    last = groups["layers 6–7"]
    assert last.mppc.tolist() == pytest.approx([0.7, 0.8])
    assert directions.mean_interval(last)[1] == pytest.approx(0.75 + np.hypot(0.03, 0.04 / np.sqrt(2)), abs=1e-4)
    assert list(directions.layer_groups(eight_layers, 9))[-1] == "layer 7"


def test_a_difference_has_the_saes_of_both():
    a, b = (spread_out([m], 0.03 * k / 1.96, 0.0, layer=[0]) for m, k in ((0.7, 1), (0.5, 4 / 3)))
    assert directions.difference(a, b)[1] == pytest.approx((0.15, 0.25), abs=1e-5)
    gap = directions.gap_by_layer(a, b).iloc[0]
    assert (gap.low, gap.high) == pytest.approx((0.15, 0.25), abs=1e-5)


def test_the_spread_of_the_comparisons_is_the_table_s(smoke, retrained):
    known = comparisons.comparisons(smoke)
    for name, spread in (("neurons", 0.0), ("mamba", retraining.spread_of("Pythia → Mamba", smoke, "reverse"))):
        assert comparisons.compare(known[name], smoke)[1].spread == spread >= 0


def test_the_gap_to_a_skyline_is_that_of_the_same_features():
    layer = [0, 0, 1, 1]
    skyline, other = direction([0.9, 0.8, np.nan, 0.6], layer=layer), direction([0.5, np.nan, 0.5, 0.3], layer=layer)
    gap = directions.gap_by_layer(skyline, other)
    np.testing.assert_allclose(gap["mean"], [0.4, 0.3])
    assert list(gap["n"]) == [1, 1] and np.allclose(gap[["low", "high"]], gap[["mean"]], atol=1e-6)


def test_difference_is_per_feature():
    differences, (low, high) = directions.difference(direction([0.9, np.nan, 0.5]), direction([0.5, 0.5, 0.6]))
    np.testing.assert_allclose(differences, [0.4, -0.1])
    assert low == pytest.approx(0.15) == pytest.approx(high)
    assert list(directions.near_zero(differences, (0.05, 0.2, 0.5)).share) == [0, 0.5, 1]


def test_depth_map_and_slope_of_known_matches():
    frame = pd.DataFrame({"layer": [0, 0, 1, 1, 2], "match_layer": [0, 1, 2, 3, -1]})
    shares = depth_map(frame, 3, 4)
    np.testing.assert_allclose(shares, [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0, 0]])
    ridge = depth_ridge(frame, 2, 4, seed=0)
    assert list(ridge["ridge"]) == [0, 2] and list(ridge["same depth"]) == [1, 3]
    assert list(ridge["share within one layer of it"]) == list(ridge["ridge within one layer of it"]) == [1, 1]
    even = pd.DataFrame({"layer": 0, "match_layer": np.repeat([0, 3], 500)})
    assert depth_ridge(even, 1, 4, seed=0)["ridge within one layer of it"][0] == pytest.approx(0.5, abs=0.06)
    depths = relative_depths(frame, 3, 4)
    np.testing.assert_allclose(depths["match"], [0.25, 0.5, 0.75, 1])
    own = np.repeat(np.arange(1, 5) / 4, 200)
    noise = np.random.default_rng(0).normal(size=800) * 0.1
    depths = pd.DataFrame({"own": own, "match": 0.8 * own + noise})
    found = depth_slope(depths, seed=0, n_resamples=200)
    assert found["slope_low"] < 0.8 < found["slope_high"] and found["slope_high"] - found["slope_low"] < 0.1
    wide = depth_slope(depths, seed=0, n_resamples=200, slope_deviation=0.1)
    for end in ("slope_low", "slope_high"):
        assert abs(wide[end] - wide["slope"]) == pytest.approx(np.hypot(0.196, found[end] - found["slope"]))
    assert wide["r_low"] == found["r_low"]


def test_sensitivity_ends_at_the_comparison_itself(smoke, pairs):
    table = controls.similarity_by_tokens(smoke)
    for label, name in (("Pythia → Mamba", "mamba"), ("SAE seed", "sae_seed")):
        rows = table[table.comparison == label]
        assert len(rows) == 5 and rows.value.is_monotonic_increasing
        assert rows.mppc.iloc[-1] == pytest.approx(pairs[name][0].mppc.mean(), abs=1e-6)
        assert (rows.low < rows.mppc).all() and (rows.mppc < rows.high).all()


def test_dead_features_counted_as_zero_scale_the_mean_and_its_interval():
    row = {"direction": "forward", "mean": 0.6, "low": 0.5, "high": 0.7, "mean_with_dead_as_0": 0.3}
    summary = pd.DataFrame([row | {"comparison": name} for name in ("a", "b")] + [row | {"comparison": "a"}])
    summary.loc[2, "direction"] = "reverse"
    table = controls.similarity_by_dead(summary, ["a"])
    np.testing.assert_allclose(table[["mppc", "low", "high"]], [[0.6, 0.5, 0.7], [0.3, 0.25, 0.35]])
    assert list(table.value) == ["left out", "counted as 0"] and set(table.comparison) == {"a"}
