"""The main job's numbers from SAEs of other seeds: what a table holds, and the deviations that are read from it."""

import numpy as np
import pytest

from lib.mppc.controls import FOUND
from lib.mppc.depth import depth_slope, relative_depths
from lib.workbook import artifacts, controls, retraining, trials
from lib.workbook.profiles import get_profile


@pytest.fixture(scope="module")
def profile(smoke):
    """That of the table."""
    return smoke.changed(sae_tokens=4_096, eval_tokens=1_024, sae_seeds=(2, 3))


def test_a_trial_s_numbers_are_those_of_a_run_with_its_seeds(retrained, profile):
    found = trials.table().query("sae_seed == 2").set_index(["quantity", "comparison"])["value"]
    forward, reverse = artifacts.mppc("smoke-pythia", "smoke-mamba", profile)
    assert found["mppc", "Pythia → Mamba"] == pytest.approx(forward.mppc.mean(), rel=1e-5)
    assert found["mppc", "Pythia → Mamba, reverse"] == pytest.approx(reverse.mppc.mean(), rel=1e-5)
    back = depth_slope(relative_depths(reverse, 4, 2), seed=0, n_resamples=2)
    for name in ("slope", "r"):
        assert found[name, "Pythia → Mamba, reverse"] == pytest.approx(back[name], abs=1e-5)
    partners = controls.sae_partners(profile).query("firing_rate > 0")
    assert found["cosine", "SAE seed"] == pytest.approx(partners.cosine.mean(), rel=1e-5)
    assert found["found", "SAE seed"] == pytest.approx((partners.cosine >= FOUND).mean(), abs=1e-6)


def test_all_quantities_of_all_trials_are_there(retrained):
    table = trials.table()
    assert list(table) == ["quantity", "comparison", "sae_seed", "value"] and table["value"].notna().all()
    wide = table.pivot(index=["quantity", "comparison"], columns="sae_seed", values="value")
    assert list(wide) == [0, 2] and wide.notna().all(axis=None)
    assert (wide[0] != wide[2]).any()
    found = dict(wide.groupby("quantity").size())
    assert found == {"mppc": 6, "slope": 7, "r": 7, "complexity": 4, "monosemanticity": 4, "cosine": 1, "found": 1}


def test_the_deviation_is_the_trials_own_and_of_their_profile_alone(retrained, smoke):
    values = trials.table().query("quantity == 'slope' and comparison == 'SAE seed'")["value"].to_numpy()
    assert trials.deviations("slope", smoke)["SAE seed"] == pytest.approx(abs(np.diff(values)[0]) / np.sqrt(2))
    assert trials.deviations("slope", get_profile("mini")) == {}


def test_without_a_table_there_is_no_deviation(smoke, tmp_path, monkeypatch):
    monkeypatch.setattr(retraining, "REFERENCE", tmp_path)
    assert trials.deviations("slope", smoke) == {}
    with pytest.raises(FileNotFoundError):
        trials.table()
