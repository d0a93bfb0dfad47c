"""The stages of the main job at smoke size, against the definitions."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from lib import models
from lib.mppc.files import layer_file
from lib.sae import load
from lib.workbook import artifacts, model_store, sizes, texts
from lib.workbook.profiles import HOME, ProfileError


@pytest.fixture(scope="module")
def correlated(smoke):
    return artifacts.mppc(smoke.pythia, smoke.mamba, smoke)


def test_every_layer_and_seed_gets_an_sae_with_metrics(smoke):
    saes, history = artifacts.trained_saes(smoke.pythia, smoke)
    assert [(s.info.seed, s.info.layer) for s in saes] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    quality = artifacts.sae_quality(saes)
    assert quality[["l0", "explained_variance", "ce_recovered", "dead"]].notna().all().all()
    assert set(history.layer) == {0, 1} and set(history.seed) == {0, 1}
    mamba, _ = artifacts.trained_saes(smoke.mamba, smoke)
    assert [(s.info.seed, s.info.layer) for s in mamba] == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_what_a_model_can_do_is_kept(smoke, monkeypatch):
    found = artifacts.model_abilities(smoke.rwkv, smoke)
    held_out = texts.load_blocks(smoke, "held_out", smoke.eval_tokens)
    loss = models.held_out_loss(model_store.load(smoke.rwkv, smoke), held_out)
    assert found["held_out_loss"] == pytest.approx(loss, abs=1e-4) and {"repeats_64", "ioi"} <= set(found)
    monkeypatch.delattr(artifacts, "abilities_of")
    assert artifacts.model_abilities(smoke.rwkv, smoke) == found


def test_mppc_is_numpys_correlation(smoke, correlated):
    a, b = artifacts.features(smoke.pythia, smoke), artifacts.features(smoke.mamba, smoke)
    to_b, _ = correlated
    everything = np.concatenate([layer.to_scipy().toarray() for layer in b], axis=1).astype(float)
    everything = everything[:, everything.std(0) > 0]
    for row in to_b.dropna(subset="mppc").sample(6, random_state=0).itertuples():
        series = a[row.layer].to_scipy().toarray()[:, row[2]].astype(float)
        expected = max(np.corrcoef(series, other)[0, 1] for other in everything.T)
        assert row.mppc == pytest.approx(expected, abs=1e-6)


def test_what_two_models_read_is_compared_where_they_are_paired(smoke, monkeypatch):
    """As many tokens in another order, which nothing else would notice."""
    few = smoke.model_copy(update={"mppc_tokens": 1_000})
    names = few.pythia, few.mamba
    for name in names:
        artifacts.saes_folder(name, few)
    own, load = artifacts.features(few.pythia, few), texts.load_blocks
    with monkeypatch.context() as patched:
        patched.setattr(texts, "load_blocks", lambda *args: (text := load(*args))[np.arange(len(text))[::-1]])
        other = artifacts.features(few.mamba, few)
    assert own[0].n_tokens == other[0].n_tokens
    for pair in (artifacts.mppc, artifacts.resampled_mppc):
        with pytest.raises(
            ValueError, match="read different tokens or count different positions, so nothing can be paired"
        ):
            pair(*names, few)


def test_both_directions_have_a_row_per_feature(smoke, correlated):
    to_b, to_a = correlated
    assert len(to_b) == 2 * 64 * smoke.expansion and len(to_a) == 4 * 64 * smoke.expansion
    assert (to_b.mppc.isna() == (to_b.match_layer == -1)).all()
    assert to_b.mppc.notna().equals((to_b.firing_rate > 0) & (to_b.firing_rate < 1)) or to_b.firing_rate.max() == 1


def test_a_feature_correlates_fully_with_itself(smoke):
    same, _ = artifacts.mppc(smoke.pythia, smoke.pythia, smoke)
    assert same.mppc.dropna().min() > 1 - 1e-6


def test_results_are_found_again_and_settings_make_others(smoke, correlated, monkeypatch):
    monkeypatch.setattr(artifacts, "_correlate", lambda *_: pytest.fail("made again"))
    artifacts.mppc(smoke.pythia, smoke.mamba, smoke)
    other = smoke.model_copy(update={"expansion": 2})
    assert artifacts.sae_fields(smoke.pythia, smoke) != artifacts.sae_fields(smoke.pythia, other)
    json.dumps(artifacts.sae_fields(smoke.pythia, smoke), default=str)


def test_chosen_layers_lie_at_the_same_depth(smoke):
    chosen = smoke.model_copy(update={"layers": (1,)})
    assert sizes.matched_layers(2, chosen) == [1]
    assert sizes.matched_layers(4, chosen) == [3]
    with pytest.raises(ProfileError, match="layers 0 to 1"):
        sizes.matched_layers(2, smoke.model_copy(update={"layers": (2,)}))


KILLED = """
import os, signal, sys
from lib.workbook import artifacts
from lib.workbook.profiles import get_profile
profile = get_profile("smoke", sys.argv[1])
saved, save_features = [], artifacts.save_features
def save_and_die(features, path):
    if len(saved) == 7:  # two shards of four layers each, but for one layer of the second
        path.with_name(f".{path.name}.1.tmp").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    save_features(features, path)
    saved.append(path)
artifacts.save_features = save_and_die
artifacts.features(profile.mamba, profile)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
def test_a_killed_capture_goes_on_with_the_shard_it_was_in(smoke, monkeypatch):
    whole = smoke.model_copy(update={"mppc_tokens": 3_000, "shard_tokens": 1_024})
    sound = artifacts.features_folder(smoke.mamba, whole)
    files = {path.relative_to(sound): path.read_bytes() for path in sound.rglob("*.*") if path.name != "manifest.json"}
    assert {str(name) for name in files} == {f"layer_{layer:02d}.safetensors" for layer in range(4)}
    shutil.rmtree(sound)
    settings = f"cache_dir={smoke.cache_dir},device=cpu,mppc_tokens=3000,shard_tokens=1024"
    run = subprocess.run([sys.executable, "-c", KILLED, settings], cwd=HOME, capture_output=True)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()[-500:]
    captured = []
    capture = artifacts.capture_features
    monkeypatch.setattr(
        artifacts, "capture_features", lambda *args, **more: captured.append(args) or capture(*args, **more)
    )
    artifacts.features(smoke.mamba, whole)
    shards = artifacts.capture_shards(texts.load_blocks(whole, "held_out", 3_000), whole)
    assert len(shards) > 2 and len(captured) == len(shards) - 1
    assert files == {
        path.relative_to(sound): path.read_bytes() for path in sound.rglob("*.*") if path.name != "manifest.json"
    }


def test_a_capture_that_was_cut_off_while_shards_were_joined_keeps_the_layers_that_are_whole(
    smoke, monkeypatch, tmp_path
):
    few = smoke.model_copy(update={"mppc_tokens": 1_000, "shard_tokens": 256})
    artifacts._encode(smoke.mamba, few, 0, tmp_path / "whole")
    join, joined = artifacts.join_shards, []

    def join_and_stop(*args):
        if len(joined) == 2:
            raise KeyboardInterrupt
        joined.append(join(*args))

    monkeypatch.setattr(artifacts, "join_shards", join_and_stop)
    with pytest.raises(KeyboardInterrupt):
        artifacts._encode(smoke.mamba, few, 0, tmp_path / "cut")
    monkeypatch.setattr(artifacts, "join_shards", join)
    monkeypatch.delattr(artifacts, "capture_features")
    artifacts._encode(smoke.mamba, few, 0, tmp_path / "cut")
    for layer in range(4):
        one, other = (layer_file(tmp_path / side, layer).read_bytes() for side in ("whole", "cut"))
        assert one == other


def test_groups_of_layers_get_the_saes_of_all_layers_at_once(smoke, monkeypatch, tmp_path):
    """Some layers at a time read the text again for each group, and a group that is done is not done again."""
    few = {"sae_tokens": 4_096, "sae_warmup": 0, "eval_tokens": 256}
    model = model_store.load(smoke.mamba, smoke)
    trained, train = [], artifacts.train_saes
    monkeypatch.setattr(artifacts, "train_saes", lambda *args: trained.append(list(args[4])) or train(*args))
    for size, folder in ((None, tmp_path / "all"), (3, tmp_path / "groups")):
        folder.mkdir()
        artifacts._train(smoke.mamba, smoke.model_copy(update=few | {"sae_group_layers": size}), folder)
    artifacts._train(smoke.mamba, smoke.model_copy(update=few), tmp_path / "groups")
    assert trained == [[0, 1, 2, 3], [0, 1], [2, 3]]
    for path in sorted((tmp_path / "all").glob("seed*")):
        one, other = (load(tmp_path / part / path.name) for part in ("all", "groups"))
        assert one.info.metrics == pytest.approx(other.info.metrics, abs=1e-4)
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    a, b = (pd.read_csv(tmp_path / part / "history.csv") for part in ("all", "groups"))
    pd.testing.assert_frame_equal(a, b, rtol=1e-3)
    assert len(list((tmp_path / "all").glob("seed*"))) == models.n_layers(model)


def test_groups_follow_from_memory(smoke, monkeypatch):
    one = sizes.training_bytes(64, 2, smoke)
    assert one == 4 * (2 * 4 * (2 * 64 * 256 + 256 + 64) + smoke.buffer_tokens * 64)
    monkeypatch.setattr(sizes, "free_memory", lambda device: 3.5 * one / sizes.ROOM)
    assert [sizes.group_size(n, 64, 2, smoke) for n in (2, 12)] == [2, 3]
    monkeypatch.setattr(sizes, "free_memory", lambda device: 0)
    assert sizes.group_size(12, 64, 2, smoke) == 1
    assert sizes.group_size(12, 64, 2, smoke.model_copy(update={"sae_group_layers": 5})) == 5
