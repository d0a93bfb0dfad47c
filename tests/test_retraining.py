"""SAEs trained again: the tables from nothing and after a kill, the spread of known numbers, effects of settings."""

import numpy as np
import pandas as pd
import pytest

from lib.models import recipes
from lib.workbook import artifacts, retraining
from lib.workbook.profiles import get_profile

MODELS = ["smoke-pythia", "smoke-pythia-seed1", "smoke-mamba", "smoke-rwkv"]


# ------------------------------------------------------------------------------------------- how they are made


def test_one_setting_at_a_time_is_moved_away_from_the_profile_s_own(smoke):
    tried = retraining.variants(smoke)
    assert [name for name, *_ in tried] == [n for n, f in retraining.FACTORS.items() for _ in f] + 2 * ["model_tokens"]
    own = smoke.settings() | {"rwkv": None}
    for setting, value, variant in tried:
        moved = {name for name, kept in variant.settings().items() if kept != own[name]}
        assert moved <= {"sae_tokens", setting, *(["pythia"] if setting == "model_tokens" else [])}
        assert setting == "model_tokens" or getattr(variant, setting) == value
        assert setting == "sae_tokens" or variant.sae_tokens == smoke.sae_tokens * retraining.SHARE
    assert [variant for _, _, variant in tried].count(smoke.changed(rwkv=None)) == 1
    assert [(value, variant.pythia) for _, value, variant in tried[-2:]] == [
        (recipes.RECIPES[name].tokens, name) for name in ("smoke-pythia-half", "smoke-pythia")
    ]


def test_two_layers_of_each_model_lie_at_the_same_depth():
    mini = get_profile("mini")
    assert retraining._alone("mini-pythia", mini, (0, 1)).layers == (1, 2)
    mamba = retraining._alone("mini-mamba", mini, (0,))
    assert (mamba.pythia, mamba.layers, mamba.sae_seeds) == ("mini-mamba", (3, 5), (0,))
    assert retraining._alone("EleutherAI/pythia-160m", get_profile("paper"), (0,)).layers == (1, 10)


def test_the_tables_from_nothing(retrained):
    by_seed, by_setting = (retraining.table(by) for by in ("sae_seed", "setting"))
    assert list(by_seed) == retraining.PLACES
    assert list(by_setting) == ["setting", "value", *retraining.PLACES, *retraining.QUALITY]
    pairs = by_seed.groupby(["comparison", "direction", "layer"]).size()
    assert set(pairs["SAE seed"]) == {6} and set(pairs[["model seed", "Pythia → Mamba", "Pythia → RWKV"]]) == {9}
    assert set(by_seed.query("comparison == 'Pythia → Mamba' and direction == 'reverse'").layer) == {1, 3}
    assert by_seed.mppc.between(0, 1).all() and (by_setting.l0 > 0).all() and by_setting.dead.between(0, 1).all()
    shape = by_setting.groupby(["setting", "value", "comparison"]).size()
    assert set(shape) == {4}  # two layers, two SAE seeds of the Transformer
    assert set(by_setting.comparison) == {"SAE seed", "model seed", "Pythia → Mamba"}
    assert set(by_setting.setting) == {*retraining.FACTORS, "model_tokens"}
    own = by_setting[(by_setting.setting == "sae_tokens") & (by_setting.value == 4_096)]
    assert set(own.mppc) <= set(by_seed.mppc)  # the profile's own SAEs stand in both
    same = by_setting[by_setting.value == recipes.RECIPES["smoke-pythia"].tokens]  # and these on less text
    assert set(same.mppc) == set(by_setting[(by_setting.setting == "expansion") & (by_setting.value == 4)].mppc)


def test_every_model_is_compared_with_every_other(retrained):
    rows, means = retraining.table("model"), retraining.between_models()
    assert list(rows) == ["model", "seed_a", "other", "seed_b", "layer", "mppc"]
    assert list(means.index) == list(means.columns) == [*MODELS[:3], "smoke-mamba-seed1", "smoke-rwkv"]
    assert means.notna().all(axis=None) and ((means > 0) & (means < 1)).all(axis=None)
    pairs = rows.groupby(["model", "other"]).size()
    assert {pairs[name, name] for name in means.index} == {2 * 6} and set(pairs) == {2 * 6, 2 * 9}
    by_seed = retraining.table("sae_seed").groupby(["comparison", "direction"]).mppc.mean()
    assert means.loc["smoke-pythia", "smoke-mamba"] == pytest.approx(by_seed["Pythia → Mamba", "forward"], abs=1e-5)
    assert means.loc["smoke-mamba", "smoke-pythia"] == pytest.approx(by_seed["Pythia → Mamba", "reverse"], abs=1e-5)
    assert means.loc["smoke-pythia", "smoke-pythia"] == pytest.approx(by_seed["SAE seed"].mean(), abs=1e-5)


def test_a_mean_over_layers_deviates_less_than_one_layers(retrained, smoke):
    names = ["SAE seed", "Pythia → Mamba"]
    found = retraining.deviations(names)
    for name in names:
        assert found[name] == pytest.approx(retraining.spread_of(name, smoke) / np.sqrt(2))


def test_architectures_are_compared_by_pairs_of_different_models():
    names = ["mini-pythia", "mini-pythia-seed1", "mini-pythia-half", "mini-mamba"]
    means = pd.DataFrame([[0.9, 0.6, 0, 0.4], [0.5, 0.7, 0, 0.2], [0, 0, 0, 0], [0.3, 0.5, 0, 0.6]], names, names)
    found = retraining.by_architecture(means)
    assert list(found.columns) == ["the same model", "pythia", "mamba"]
    np.testing.assert_allclose(found.loc["pythia"], [0.8, 0.55, 0.3])
    np.testing.assert_allclose(found.loc["mamba"], [0.6, 0.4, np.nan])


def test_a_table_says_on_which_models_it_was_made(retrained, smoke, monkeypatch):
    first = (retrained / "retraining_by_setting.csv").read_text().splitlines()[0]
    assert first.startswith("# models_digest: profile=smoke smoke-pythia=")
    made = retraining.made_on()
    assert list(made) == ["profile", *MODELS] and made == {
        "profile": "smoke"
    } | retraining.models_digest(smoke)
    assert retraining.about(smoke) == "The SAEs were retrained on the models that are here."
    said = retraining.about(get_profile("mini"))
    assert said == "SAEs were retrained at the profile smoke, not at mini: their training is not in the intervals."
    assert list(retraining.made_on("model")) == ["profile", *MODELS, "smoke-mamba-seed1"]
    assert retraining.about(smoke, "model") == retraining.about(smoke)
    monkeypatch.setattr(retraining, "models_digest", lambda *_: made | {"smoke-mamba": "0"})
    assert "OTHER MODELS" in retraining.about(smoke) and "(smoke-mamba)" in retraining.about(smoke)


class Killed(BaseException):
    """What no code catches."""


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(smoke, monkeypatch):
    monkeypatch.setattr(retraining, "FACTORS", {"expansion": (1 / 2, 1)})
    monkeypatch.setattr(retraining, "recipe_of", lambda name: None)
    profile = smoke.changed(sae_tokens=3_072, eval_tokens=512)  # of which the cache has nothing
    trained, train, kills = [], artifacts._train, [6]

    def counted(name, profile, folder):
        if len(trained) + 1 in kills:
            raise Killed
        train(name, profile, folder)
        trained.append((name, profile.expansion, profile.sae_tokens))

    monkeypatch.setattr(artifacts, "_train", counted)
    with pytest.raises(Killed):
        retraining.retrain(profile)
    assert len(trained) == 5  # four models at the profile's own settings, and the first of the next
    kills.clear()
    tables = retraining.retrain(profile)
    assert len(trained) == len(set(trained)) == 4 + 2 * 3 + 1  # nothing twice
    again = retraining.retrain(profile)
    assert len(trained) == 11 and all(again[by].equals(tables[by]) for by in tables)


def test_a_model_that_is_not_there_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "mini-none", recipes.Recipe("mamba", n_layers=2))
    monkeypatch.setattr(artifacts, "trained_saes", lambda *_: pytest.fail("trained"))
    with pytest.raises(SystemExit, match="mini-none has not been trained yet: run python -m lib.zoo mini-none"):
        retraining.main("smoke", ["mamba=mini-none", f"cache_dir={tmp_path}"])
    with pytest.raises(SystemExit, match="there is no table 'models'; the tables are setting, sae_seed, model"):
        retraining.main("smoke", only=["models"])


# ------------------------------------------------------------------------------------------- what the tables say


@pytest.fixture
def known(tmp_path, monkeypatch):
    """Writes a table by SAE seed at the profile smoke, of mean MPPCs [layers, seeds of a, seeds of b]."""
    monkeypatch.setattr(retraining, "REFERENCE", tmp_path)

    def write(comparison, means):
        rows = [
            (comparison, "forward", layer, a, b, mean)
            for (layer, a, b), mean in np.ndenumerate(np.array(means))
            if np.isfinite(mean)
        ]
        text = pd.DataFrame(rows, columns=retraining.PLACES).to_csv(index=False)
        (tmp_path / "retraining_by_sae_seed.csv").write_text(f"# models_digest: profile=smoke a=1\n{text}")

    return write


SEEDS = np.array([0.1, 0.2, 0.4])  # what each SAE seed adds; their variance is 0.07 / 3


def test_the_spread_counts_the_seeds_of_both_sides(smoke, known):
    known("model seed", [0.3 + SEEDS[:, None] + np.zeros(3)])
    assert retraining.spread_of("model seed", smoke) == pytest.approx(np.sqrt(0.07 / 3))
    known("model seed", [SEEDS[:, None] + SEEDS])
    assert retraining.spread_of("model seed", smoke) == pytest.approx(np.sqrt(2 * 0.07 / 3))
    known("model seed", [SEEDS[:, None] + np.zeros(3), np.full((3, 3), 0.5)])
    assert retraining.spread_of("model seed", smoke) == pytest.approx(np.sqrt(0.07 / 6))  # the mean of two variances


def test_the_spread_of_many_draws_is_the_true_one(smoke, known):
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 0.02, (200, 3, 1)), rng.normal(0, 0.01, (200, 1, 3))
    known("Pythia → Mamba", 0.5 + a + b)
    assert retraining.spread_of("Pythia → Mamba", smoke) == pytest.approx(np.hypot(0.02, 0.01), rel=0.1)
    known("SAE seed", [seeds + seeds.T + np.diag(3 * [np.nan]) for seeds in a])
    assert retraining.spread_of("SAE seed", smoke) == pytest.approx(np.hypot(0.02, 0.02), rel=0.1)


def test_where_nothing_was_measured_there_is_no_spread(smoke, known):
    assert np.isnan(retraining.spread_of("SAE seed", smoke)) and retraining.made_on() == {}
    assert "nowhere yet, so not at smoke" in retraining.about(smoke)
    known("SAE seed", [SEEDS[:, None] + SEEDS + np.diag(3 * [np.nan])])
    assert retraining.spread_of("SAE seed", smoke) > 0
    assert np.isnan(retraining.spread_of("Pythia → RWKV", smoke))
    assert np.isnan(retraining.spread_of("SAE seed", smoke, "reverse"))
    assert np.isnan(retraining.spread_of("SAE seed", get_profile("laptop")))


def test_what_a_setting_explains():
    tokens = pd.DataFrame({"setting": "sae_tokens", "value": [1e6, 2e6, 4e6, 8e6], "mppc": [0.5, 0.55, 0.6, 0.65]})
    bent = tokens.assign(comparison="SAE seed", mppc=[0.5, 0.6, 0.65, 0.675])
    two = pd.DataFrame({"setting": "model_tokens", "value": [12e6, 24e6], "mppc": [0.6, 0.5]})
    table = pd.concat([part.assign(comparison="model seed") for part in (tokens, two)] + [bent])
    line, half, curve = retraining.trade_off(table).itertuples()
    assert (line.setting, line.comparison, getattr(line, "_3"), line.to) == ("sae_tokens", "model seed", 1e6, 8e6)
    assert line.moved == pytest.approx(0.15) and line.per_doubling == pytest.approx(0.05)
    assert line.off == pytest.approx(0, abs=1e-9) and curve.off > 0.02
    assert half.per_doubling == pytest.approx(-0.1) and np.isnan(half.off)


def test_means_are_over_layers_and_seeds(retrained):
    means, rows = retraining.by_setting("SAE seed"), retraining.table("setting")
    of = rows.query("comparison == 'SAE seed' and setting == 'sae_tokens' and value == 2048")
    assert set(means.comparison) == {"SAE seed"}
    assert means.query("setting == 'sae_tokens' and value == 2048").mppc.item() == pytest.approx(of.mppc.mean())
    assert len(retraining.by_setting()) == 3 * len(means)
