"""The stages of the main job at smoke size, against the definitions."""

import json

import numpy as np
import pytest

from lib import corpus, models, pipeline, sweep
from lib.profiles import ProfileError


@pytest.fixture(scope="module")
def correlated(smoke):
    return pipeline.mppc(smoke.pythia, smoke.mamba, smoke)


def test_every_layer_and_seed_gets_an_sae_with_metrics(smoke):
    saes, history = pipeline.trained_saes(smoke.pythia, smoke)
    assert [(s.info.seed, s.info.layer) for s in saes] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    quality = pipeline.sae_quality(saes)
    assert quality[["l0", "explained_variance", "ce_recovered", "dead"]].notna().all().all()
    assert set(history.layer) == {0, 1} and set(history.seed) == {0, 1}
    mamba, _ = pipeline.trained_saes(smoke.mamba, smoke)
    assert [(s.info.seed, s.info.layer) for s in mamba] == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_quality_of_a_model_is_kept(smoke, monkeypatch):
    quality = pipeline.model_quality(smoke.rwkv, smoke)
    held_out = corpus.load_blocks(smoke, "held_out", smoke.eval_tokens)
    assert quality == models.quality(models.load(smoke.rwkv, smoke), held_out)
    monkeypatch.delattr(models, "quality")
    assert pipeline.model_quality(smoke.rwkv, smoke) == quality


def test_mppc_is_numpys_correlation(smoke, correlated):
    a, b = pipeline.features(smoke.pythia, smoke), pipeline.features(smoke.mamba, smoke)
    to_b, _ = correlated
    everything = np.concatenate([layer.to_scipy().toarray() for layer in b], axis=1).astype(float)
    everything = everything[:, everything.std(0) > 0]
    for row in to_b.dropna(subset="mppc").sample(6, random_state=0).itertuples():
        series = a[row.layer].to_scipy().toarray()[:, row[2]].astype(float)
        expected = max(np.corrcoef(series, other)[0, 1] for other in everything.T)
        assert row.mppc == pytest.approx(expected, abs=1e-6)


def test_both_directions_have_a_row_per_feature(smoke, correlated):
    to_b, to_a = correlated
    assert len(to_b) == 2 * 64 * smoke.expansion and len(to_a) == 4 * 64 * smoke.expansion
    assert (to_b.mppc.isna() == (to_b.match_layer == -1)).all()
    assert to_b.mppc.notna().equals((to_b.firing_rate > 0) & (to_b.firing_rate < 1)) or to_b.firing_rate.max() == 1


def test_a_feature_correlates_fully_with_itself(smoke):
    same, _ = pipeline.mppc(smoke.pythia, smoke.pythia, smoke)
    assert same.mppc.dropna().min() > 1 - 1e-6


def test_results_are_found_again_and_settings_make_others(smoke, correlated):
    before = {path.name: path.stat().st_mtime_ns for path in smoke.cache_dir.glob("*/manifest.json")}
    pipeline.mppc(smoke.pythia, smoke.mamba, smoke)
    assert before == {path.name: path.stat().st_mtime_ns for path in smoke.cache_dir.glob("*/manifest.json")}
    other = smoke.model_copy(update={"expansion": 2})
    assert pipeline.sae_fields(smoke.pythia, smoke) != pipeline.sae_fields(smoke.pythia, other)
    json.dumps(pipeline.sae_fields(smoke.pythia, smoke), default=str)


def test_chosen_layers_lie_at_the_same_depth(smoke):
    chosen = smoke.model_copy(update={"layers": (1,)})
    assert pipeline.layers_of(models.load(smoke.pythia, smoke), chosen) == [1]
    assert pipeline.layers_of(models.load(smoke.mamba, smoke), chosen) == [3]
    with pytest.raises(ProfileError, match="layers 0 to 1"):
        pipeline.layers_of(models.load(smoke.pythia, smoke), smoke.model_copy(update={"layers": (2,)}))


def test_sweep_moves_one_setting_at_a_time(smoke):
    table = sweep.sae_trade_off(smoke)
    own = {choice: getattr(smoke, choice) for choice in sweep.FACTORS} | {"sae_tokens": smoke.sweep_tokens}
    for choice, rows in table.groupby("choice"):
        assert own[choice] in list(rows.value) and rows.value.is_unique
    same = [table[(table.choice == choice) & (table.value == value)].reproducibility.item() for choice, value in own.items()]
    assert len(set(same)) == 1
    assert table.reproducibility.between(-1, 1).all()
