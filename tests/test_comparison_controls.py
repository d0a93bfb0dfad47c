"""The controls of notebook 04 at smoke size, against the comparisons that they control."""

import numpy as np
import pandas as pd
import pytest

from lib.mppc.controls import PAPERS_WAY, by_firing_rate, effect, order_changes
from lib.workbook import artifacts, comparisons, controls


@pytest.fixture(scope="module")
def pairs(smoke):
    known = comparisons.comparisons(smoke)
    return {name: comparisons.compare(known[name], smoke) for name in ("neurons", "mamba", "model_seed", "sae_seed")}


def test_pools_of_one_size_lower_what_had_more_candidates_and_leave_the_rest(smoke, pairs):
    table = controls.equal_pools(pairs, smoke).set_index(["comparison", "direction"])
    smallest = min(len(d.mppc) for name in ("mamba", "model_seed", "sae_seed") for d in pairs[name])
    across = table.loc[("Pythia → Mamba", "forward")].set_index("size")
    assert across.loc[smallest, "mean_equal"] < across.loc[smallest, "mean"] == pairs["mamba"][0].mppc.mean()
    assert across.loc[smallest, "spread"] > 0 and across["candidates"].iloc[0] == len(pairs["mamba"][1].mppc)
    seeds = table.loc[[("SAE seed", "reverse")]].iloc[0]
    assert seeds["mean_equal"] == seeds["mean"] and seeds["spread"] == 0


def test_halves_score_below_what_they_choose(smoke):
    table = controls.halves(["mamba", "sae_seed"], smoke).set_index("comparison")
    assert list(table.index) == ["Pythia → Mamba", "SAE seed"]
    assert (table["optimism"] > 0).all() and np.allclose(table["chosen"] - table["scored"], table["optimism"])


def test_nulls_lie_below_the_comparison_and_say_by_how_much(smoke, pairs):
    panels = controls.null_panels(pairs["mamba"][0], smoke)
    assert len(panels) == 3
    shifted, elsewhere, untrained = (effect(*panel.values()) for panel in panels.values())
    assert shifted["difference"] > 0 and elsewhere["difference"] > 0 and shifted["superiority"] > 0.5
    assert (
        untrained["difference"] == 0 and untrained["superiority"] == 0.5
    )  # the models of smoke are not trained either


def test_a_model_of_unknown_shape_has_no_untrained_null(smoke):
    assert controls.untrained_mppc(smoke.changed(mamba="a-folder")) == {}


def test_effects_of_known_distributions():
    found = effect(pd.Series([0.5, 0.7, np.nan]), pd.Series([0.1, 0.6]))
    assert found["difference"] == pytest.approx(0.25) and found["superiority"] == 0.75
    assert found["share_above_null_99"] == 0.5


def test_partners_of_two_sae_seeds(smoke):
    partners = controls.sae_partners(smoke)
    a, b = (artifacts.trained_saes(smoke.pythia, smoke, seed)[0][0].W_dec for seed in smoke.sae_seeds)
    cosine = (a / a.norm(dim=1, keepdim=True)) @ (b / b.norm(dim=1, keepdim=True)).T
    first = partners[partners["layer"] == 0]
    assert (first["cosine"] <= cosine.max(1).values.detach().numpy() + 1e-5).all()
    table = by_firing_rate(partners, n_bins=4)
    assert len(table) == 4 and table["firing_rate"].is_monotonic_increasing
    p, n = table["found"], table["n"]
    np.testing.assert_allclose(table["found_error"], np.sqrt(p * (1 - p) / (n - 1)))
    assert (
        table["n"].sum()
        == (partners["firing_rate"] > 0).sum() - partners["mppc"].isna()[partners["firing_rate"] > 0].sum()
    )


def test_an_order_that_changes_under_a_control_is_noticed():
    rows = [("a", 0.5, 0.4), ("b", 0.6, 0.45), ("c", 0.7, np.nan)]
    table = pd.concat(
        pd.DataFrame({"comparison": [r[0] for r in rows], "measure": measure, "mean": [r[k] for r in rows]})
        for k, measure in ((1, PAPERS_WAY), (2, "half"))
    )
    assert not order_changes(table.dropna())
    table.loc[(table["comparison"] == "a") & (table["measure"] == "half"), "mean"] = 0.5
    assert order_changes(table.dropna())
