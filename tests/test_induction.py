"""The induction experiments: what is measured, how it is read as the paper's tables, and the maps made of it."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from lib.circuits import effect_tables, heads, maps as circuit_maps, path_patching
from lib.circuits.induction import path_frame, shift_frame, taken_in_frame, token_shift
from lib.circuits.prompts import ROLES, induction_prompts
from lib.models import scans
from lib.models.families import Patchable, family_of
from lib.models.mamba import time_step
from lib.plots.circuits import held_shares
from lib.workbook import induction, model_store, reference
from lib.workbook.profiles import get_profile


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The trained mini models on few prompts: random weights have no circuit to find."""
    return get_profile(
        "mini", device="cpu", cache_dir=tmp_path_factory.mktemp("cache"), circuit_samples=6, circuit_distances=(8, 16)
    )


@pytest.fixture(scope="module")
def effects(small):
    return {name: induction.path_effects(name, small) for name in ("mini-pythia", "mini-mamba")}


def test_mamba_s_key_layer_takes_b_in_one_token_late(effects):
    frame = effects["mini-mamba"]
    layer = effect_tables.key_layer(frame)
    state = effect_tables.paper_table(1, frame)
    assert len(state) == 2 * 8 and state.groupby("layer")["mean_logit_diff"].mean().idxmin() == layer
    assert effect_tables.key_position(frame) == "B1+1"
    assert list(effect_tables.paper_table(2, frame).columns) == [
        "distance",
        "position",
        "mean_logit_diff",
        "standard_error",
        "n",
    ]
    assert (effect_tables.share_at(effect_tables.paper_table(2, frame), "B1+1") > 0.5).all()
    for number in (3, 4):
        assert list(effect_tables.wide(effect_tables.paper_table(number, frame)).columns) == ["A1", "B1", "B1+1"]


def test_transformer_reads_b_where_it_stands(effects):
    frame = effects["mini-pythia"]
    assert effect_tables.key_position(frame) == "B1" and len(effect_tables.paper_table(3, frame)) == 0
    whole, state = (
        effect_tables.select(frame, m).groupby("distance")["mean_logit_diff"].sum() for m in ("logit", "state")
    )
    np.testing.assert_allclose(state, whole, rtol=0.15)  # one layer reads it: layers' effects add up to the whole


def test_means_and_errors_are_those_of_the_samples(small, effects):
    p = induction.prompts_for(model_store.load("mini-mamba", small), small)[8]
    model = model_store.load("mini-mamba", small)
    change = path_patching.clean_logits(model, p.corrupt_b, p.target) - path_patching.clean_logits(
        model, p.clean, p.target
    )
    row = effect_tables.select(effects["mini-mamba"], "logit").set_index("distance").loc[8]
    assert row.mean_logit_diff == pytest.approx(float(change.mean()), abs=1e-4) and row.n == 6
    assert row.standard_error == pytest.approx(float(change.std() / 6**0.5), abs=1e-4)


@pytest.mark.parametrize("name, stages", [("mini-mamba", 2), ("mini-rwkv", 3)])
def test_all_measures_on_the_same_prompts_share_the_model_s_runs(small, name, stages, monkeypatch):
    model = model_store.load(name, small)
    prompts, runs, run = induction.prompts_for(model, small), [], Patchable.run
    monkeypatch.setattr(Patchable, "run", lambda self, tokens: (runs.append(tokens), run(self, tokens))[1])
    whole = path_frame(model, prompts, map_distance=8)
    assert len(runs) == stages * len(prompts) * 3  # clean, B′ and A′
    monkeypatch.setattr(path_patching, "HELD", 4 * prompts[16].clean.shape[1] * model.cfg.d_model)  # four samples
    pd.testing.assert_frame_equal(path_frame(model, prompts, map_distance=8), whole, rtol=1e-4, atol=1e-5)


def test_heads_of_mini_pythia(small):
    frame = induction.head_effects("mini-pythia", small)
    receiver, previous = (
        effect_tables.induction_head(frame),
        effect_tables.strongest_head(frame, "induction head", "A′"),
    )
    assert previous[0] < receiver[0]
    rows = effect_tables.select(frame, "induction head", "A′")
    assert set(map(tuple, rows[["receiver_layer", "receiver_head"]].astype(int).to_numpy())) == {receiver}
    model = model_store.load("mini-pythia", small)
    p = induction.prompts_for(model, small)[16]
    look = heads.patterns(model, p.clean, receiver[0])[receiver[1]]
    assert look.shape == (19, 19) and torch.allclose(look.sum(1), torch.ones(19), atol=1e-4)
    assert look[-1, p.positions["B1"]] > 0.5 and heads.patterns(model, p.clean, previous[0])[previous[1]][2, 1] > 0.5


def test_published_tables_agree_with_themselves_and_roughly_with_the_released_run():
    table = reference.published_table(1)
    assert len(table) == 5 * 24
    found = effect_tables.agreement(table, table)
    assert found["n"] == 120 and found["pearson"] == pytest.approx(1) and found["mean_absolute_difference"] == 0
    released = reference.released("mamba130m").query("experiment == 'final_state_by_layer'")
    released = released.rename(columns={"index": "layer"}).astype({"layer": int})
    assert effect_tables.agreement(table, released)["pearson"] > 0.9
    assert reference.published_table(2).groupby("position")["mean_logit_diff"].mean().idxmin() == "B1+1"


def test_heads_are_named_by_their_effects_and_looked_up_in_their_patterns():
    found = pd.DataFrame({"layer": [0, 1, 1], "head": [1, 0, 1], "mean_logit_diff": [-0.5, -3.717, 0.2]})
    assert effect_tables.named_heads(found) == "L1H0 (-3.72), L0H1 (-0.50)"
    patterns = torch.arange(2 * 2 * 3 * 3.0).reshape(2, 2, 3, 3)
    looked = heads.with_attention(found, list(patterns), -1, 0)
    assert list(looked["attention"]) == [patterns[0, 1, 2, 0], patterns[1, 0, 2, 0], patterns[1, 1, 2, 0]]


def test_hidden_attention_is_what_the_scan_makes_of_each_position_alone(small):
    model = model_store.load("mini-mamba", small)
    tokens = induction_prompts(8, 4096, seed=0, n_samples=1).clean
    architecture = family_of(model)
    mixer, c = model.original_model.backbone.layers[5].mixer, architecture.inputs(architecture.run(tokens), 5)
    with torch.no_grad():
        dt, B, C = time_step(mixer, c)
        one = torch.eye(c.shape[1])[:, :, None]  # one run per position: an input of 1 there
        alone = one.expand(-1, -1, c.shape[2])
        shared = [x.expand(len(alone), -1, -1) for x in (dt, B, C)]
        alpha = scans.selective_scan(alone, shared[0], -mixer.A_log.exp(), *shared[1:])[:, -1].abs()
    expected = (alpha / alpha.sum(0)).mean(1)
    torch.testing.assert_close(heads.hidden_attention(model, tokens, 5), expected, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------------- maps


def hot_cell(depth, role, n_depths=4):
    circuit = np.zeros((2, n_depths, len(ROLES)))
    circuit[:, depth, ROLES.index(role)] = -1
    return circuit


def test_maps_add_up_layers_of_equal_depth(effects):
    circuit = circuit_maps.circuit_map(effects["mini-mamba"], 4)
    rows = pd.concat([effect_tables.select(effects["mini-mamba"], "input", c) for c in circuit_maps.CORRUPTIONS])
    assert circuit.shape == (2, 4, 5)
    assert circuit.sum() == pytest.approx(rows[rows["distance"] == 16]["mean_logit_diff"].sum(), abs=1e-4)
    strongest = np.unravel_index(circuit.argmin(), circuit.shape)
    assert strongest == (0, effect_tables.key_layer(effects["mini-mamba"]) // 2, ROLES.index("B1+1"))


def test_off_by_one_is_undone():
    transformer, mamba = hot_cell(2, "B1"), hot_cell(2, "B1+1")
    assert circuit_maps.similarity(transformer, circuit_maps.one_role_earlier(mamba)) == pytest.approx(1)
    assert circuit_maps.similarity(transformer, mamba) < 0
    assert circuit_maps.similarity(transformer.sum(1), hot_cell(3, "B1").sum(1)) == pytest.approx(1)


def test_pairs_of_models_are_compared_once_and_mamba_s_twice():
    maps = {"a": hot_cell(2, "B1"), "b": hot_cell(3, "B1"), "m": hot_cell(2, "B1+1"), "n": hot_cell(2, "B1+1")}
    kinds = {"a": "Transformer", "b": "Transformer", "m": "Mamba", "n": "Mamba"}
    pairs = circuit_maps.pair_similarities(maps, kinds).set_index(["a", "b", "reading"])
    assert len(pairs) == 2 + 2 * 4
    seeds = pairs.loc[("a", "b", "as it is")]
    assert seeds.kind == "Transformer, two models" and seeds.same
    assert seeds.roles == pytest.approx(1) and seeds.roles_and_depth < 0  # one layer apart
    assert pairs.loc[("m", "n", "as it is")].roles == pytest.approx(1)
    as_is, earlier = (pairs.loc[("a", "m", reading)] for reading in (circuit_maps.AS_IS, circuit_maps.EARLIER))
    assert as_is.roles < 0 and earlier.roles == pytest.approx(1) and earlier.roles_and_depth == pytest.approx(1)
    assert as_is.kind == "Transformer and Mamba" and not as_is.same


def labelled(n_each, gap, seed=0):
    """Pairs of models of three architectures; those of one are more alike by `gap`."""
    kinds = {f"{kind}{k}": kind for kind in "TMR" for k in range(n_each)}
    rng = np.random.default_rng(seed)
    rows = [(a, b, gap * (kinds[a] == kinds[b]) + 0.1 * rng.random()) for a, b in itertools.combinations(kinds, 2)]
    return pd.DataFrame(rows, columns=["a", "b", "roles"]), kinds


def test_labels_of_two_seeds_each_have_fifteen_ways():
    found = circuit_maps.label_test(*labelled(2, gap=1))
    assert found["n_labellings"] == 90 and found["least_p"] == pytest.approx(1 / 15) == found["p"]
    assert found["difference"] == pytest.approx(1, abs=0.1)


def test_labels_by_chance_are_not_significant_and_many_are_drawn():
    ps = [circuit_maps.label_test(*labelled(2, gap=0, seed=k))["p"] for k in range(20)]
    assert np.mean(ps) == pytest.approx(0.5, abs=0.2)
    found = circuit_maps.label_test(*labelled(5, gap=1))
    assert found["n_labellings"] == circuit_maps.MOST_LABELLINGS and found["p"] < 0.01


# ------------------------------------------------------------------------------------------- state and shift


def test_b_is_taken_in_at_once_by_the_transformer_and_one_token_late_by_mamba(small, effects):
    held = {}
    for name in effects:
        model = model_store.load(name, small)
        layer = effect_tables.key_layer(effects[name])
        frame = taken_in_frame(model, induction.prompts_for(model, small)[16], layer)
        assert sorted(frame["position"].unique()) == list(range(18))  # the last token only reads
        whole = effect_tables.select(effects[name], "state", layer=layer).set_index("distance").mean_logit_diff[16]
        last = frame[(frame["corrupt"] == "B′") & (frame["position"] == 17)].mean_logit_diff.item()
        assert last == pytest.approx(whole, abs=1e-3)
        held[name] = held_shares(frame, "B′")
    assert held["mini-pythia"][1] == pytest.approx(0, abs=1e-6) and held["mini-pythia"][2] > 0.95
    assert held["mini-mamba"][2] < 0.3 and held["mini-mamba"][3] > 0.5


def test_a_token_shift_is_undone_and_moves_b(small):
    model = model_store.load("mini-rwkv", small)
    p = {8: induction.prompts_for(model, small)[8]}
    before = path_patching.clean_logits(model, p[8].clean, p[8].target)
    frame = shift_frame(model, p, layer=3)
    torch.testing.assert_close(path_patching.clean_logits(model, p[8].clean, p[8].target), before, atol=0, rtol=0)
    enters = frame[(frame["measure"] == "input") & (frame["corrupt"] == "B′")]
    enters = enters.pivot(index="shift", columns="position", values="mean_logit_diff")
    assert abs(enters.loc["token before alone", "B1+1"]) > 10 * abs(enters.loc["token before alone", "B1"])
    assert abs(enters.loc["token before left out", "B1"]) > abs(enters.loc["token before left out", "B1+1"])
    with (
        pytest.raises(ValueError, match="the model is a mamba"),
        token_shift(model_store.load("mini-mamba", small), 0, 0),
    ):
        pass
