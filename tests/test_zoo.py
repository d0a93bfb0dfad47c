"""Training of the mini zoo: batches, loss, schedule, resume; and what the shipped models can do."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch

from lib import corpus, models
from lib.circuits import abilities_of
from lib.models import recipes
from lib.workbook import model_store, texts
from lib.workbook.profiles import DATA, get_profile
from lib.zoo import training as zoo

TINY = recipes.Recipe("gpt_neox", n_layers=2, d_model=32, context_length=24, batch_rows=8, steps=12, warmup_steps=3)
COPIES = {"association": 0.97, "repeats_64": 0.95, "cost_of_a_8": 0.9}
AT_LEAST = {
    "mini-pythia": COPIES,
    "mini-pythia-seed1": COPIES,
    "mini-pythia-half": COPIES,
    "mini-mamba": {"association": 0.90, "repeats_8": 0.95, "cost_of_a_8": 0.7},
    "mini-mamba-seed1": {"association": 0.90, "repeats_8": 0.95, "cost_of_a_8": 0.7},
    "mini-rwkv": {"repeats_1": 0.95},
    "mini-rwkv-seed1": {"repeats_1": 0.95},
}
MOST_BITS_PER_BYTE = {
    "mini-pythia": 1.25,
    "mini-pythia-seed1": 1.25,
    "mini-pythia-half": 1.40,
    "mini-mamba": 1.25,
    "mini-mamba-seed1": 1.25,
    "mini-rwkv": 1.40,
    "mini-rwkv-seed1": 1.40,
}


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    return [rng.integers(2, corpus.VOCABULARY, rng.integers(5, 60)).astype(np.uint16) for _ in range(60)]


def test_chunked_cross_entropy_is_torchs(monkeypatch):
    monkeypatch.setattr(zoo._ChunkedCrossEntropy, "CHUNK", 7)
    hidden, weight = torch.randn(20, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(0, 50, (20,))
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets)
    theirs = torch.autograd.grad(expected, (hidden, weight))
    loss = zoo._ChunkedCrossEntropy.apply(hidden, weight, targets, torch.float32)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, weight)), theirs)


def test_learning_rate_rises_stays_and_falls():
    rates = [zoo.rate(step, dataclasses.replace(TINY, steps=100)) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 3) and max(rates) == 1.0
    assert rates[2:60] == [1.0] * 58
    assert rates[-1] == pytest.approx(0.05, abs=0.01) and sorted(rates[60:], reverse=True) == rates[60:]


@pytest.mark.parametrize(
    "changes",
    [
        *(dict(architecture=name) for name in ("gpt_neox", "mamba", "rwkv")),
        dict(muon_learning_rate=5e-3),
        dict(recall_share=0.5, recall_from=0.4),
    ],
    ids=["gpt_neox", "mamba", "rwkv", "muon", "recall"],
)
def test_a_killed_training_goes_on_with_the_same_result(changes, documents, tmp_path):
    recipe = dataclasses.replace(TINY, **changes)
    whole, losses = zoo.train(recipe, documents, tmp_path / "whole", every=100)
    zoo.train(recipe, documents, tmp_path / "killed", every=5, stop_at=7)
    resumed, _ = zoo.train(recipe, documents, tmp_path / "killed", every=5)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_training_learns(documents, tmp_path):
    recipe = dataclasses.replace(TINY, steps=100, learning_rate=1e-2)
    _, losses = zoo.train(recipe, documents * 2, tmp_path / "checkpoint", every=1_000)
    assert losses[-1]["loss"] < losses[0]["loss"]


def test_export_is_a_hugging_face_folder_with_its_tokenizer(smoke, tmp_path):
    recipes.random_checkpoint("smoke-mamba", tmp_path / "model")
    model = model_store.load(str(tmp_path / "model"), smoke)
    assert models.family_of(model).model_type == "mamba" and models.n_layers(model) == 4
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    assert record["trained"] is False and record["recipe"]["seed"] == 0


@pytest.mark.slow
def test_a_shipped_model_can_be_trained_again(tmp_path, monkeypatch):
    recipe = dataclasses.replace(recipes.RECIPES["mini-pythia"], steps=2)
    for module, name, value in (
        (zoo, "MODELS", tmp_path),
        (recipes, "MODELS", tmp_path),
        (zoo, "CHECKPOINTS", tmp_path / "c"),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setitem(zoo.RECIPES, "mini-pythia", recipe)
    found = zoo.make("mini-pythia", get_profile("mini", device="cpu", cache_dir=tmp_path / "cache"))
    record = json.loads((tmp_path / "mini-pythia" / "training.json").read_text())
    assert record["abilities"] == found and record["tokens"] == 2 * 16 * 256


def record_of(name):
    return json.loads((recipes.MODELS / name / "training.json").read_text())


def worst_association(found):
    return min(value for ability, value in found.items() if ability.startswith("association"))


def test_every_shipped_model_has_its_marks():
    shipped = {path.parent.name for path in recipes.MODELS.glob("*/training.json")}
    assert shipped == set(AT_LEAST) == set(MOST_BITS_PER_BYTE)


@pytest.mark.parametrize("name", AT_LEAST)
def test_shipped_models_are_of_todays_recipes_and_do_what_they_should(name):
    record = record_of(name)
    assert recipes.Recipe(**record["recipe"]) == recipes.RECIPES[name]
    found = record["abilities"] | {"association": worst_association(record["abilities"])}
    assert found["bits_per_byte"] <= MOST_BITS_PER_BYTE[name]
    assert all(found[ability] >= mark for ability, mark in AT_LEAST[name].items())


@pytest.mark.parametrize("name", AT_LEAST)
def test_shipped_models_do_what_their_record_says(name):
    """Measured anew on less text, through the bridge as notebooks use it."""
    mini = get_profile("mini", device="cpu")
    model, said = model_store.load(name, mini), record_of(name)["abilities"]
    held_out, drawn = texts.load_blocks(mini, "held_out", 20_000), texts.unseen_sentences(256)
    found = abilities_of(model, model.tokenizer, held_out, drawn, gaps=(8,), periods=(1, 8, 64))
    assert found["held_out_loss"] == pytest.approx(said["held_out_loss"], abs=0.1)
    for ability in set(found) - {"held_out_loss", "bits_per_byte"}:
        assert found[ability] == pytest.approx(said[ability], abs=0.05), ability


def test_the_page_on_data_says_what_the_records_say():
    rows = re.findall(r"^\| `(mini-\S+)` \|(.*)\|$", (DATA / "README.md").read_text(), re.M)
    for name, cells in rows:
        record = record_of(name)
        found, words = record["abilities"], [cell.strip() for cell in cells.split("|")]
        repeats = " / ".join(f"{found[f'repeats_{period}']:.2f}" for period in (1, 8, 64))
        others = [worst_association(found), found["ioi"], found["cost_of_a_8"]]
        expected = [f"{record['tokens'] / 1e6:.1f}M", f"{found['bits_per_byte']:.3f}", repeats]
        assert words == expected + [f"{value:.2f}" for value in others]
    assert {name for name, _ in rows} == set(AT_LEAST)
