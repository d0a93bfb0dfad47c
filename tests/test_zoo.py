"""Training of the mini zoo: batches, loss, schedule, resume; and what the shipped models can do."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from lib import corpus, models
from lib.models import recipes
from lib.workbook import model_store, texts
from lib.workbook.profiles import get_profile
from lib.zoo import training as zoo

TINY = recipes.Recipe("gpt_neox", n_layers=2, d_model=32, context_length=24, batch_rows=8, steps=12, warmup_steps=3)
MARKS = {  # held-out loss at most, induction accuracy at least
    "mini-pythia": (3.0, 0.90),
    "mini-pythia-seed1": (3.0, 0.90),
    "mini-mamba": (3.2, 0.40),
    "mini-rwkv": (3.2, 0.0),
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


@pytest.mark.parametrize("architecture", ["gpt_neox", "mamba", "rwkv"])
def test_a_killed_training_goes_on_with_the_same_result(architecture, documents, tmp_path):
    recipe = dataclasses.replace(TINY, architecture=architecture)
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


def test_a_shipped_model_can_be_trained_again(tmp_path, monkeypatch):
    recipe = dataclasses.replace(recipes.RECIPES["mini-pythia"], steps=2)
    for module, name, value in (
        (zoo, "MODELS", tmp_path),
        (recipes, "MODELS", tmp_path),
        (zoo, "CHECKPOINTS", tmp_path / "c"),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setitem(zoo.RECIPES, "mini-pythia", recipe)
    quality = zoo.make("mini-pythia", get_profile("mini", device="cpu", cache_dir=tmp_path / "cache"))
    record = json.loads((tmp_path / "mini-pythia" / "training.json").read_text())
    assert record["quality"] == quality and record["tokens"] == 2 * 32 * 256


def test_every_shipped_model_has_its_marks():
    assert {path.parent.name for path in recipes.MODELS.glob("*/training.json")} == set(MARKS)


@pytest.mark.parametrize("name", MARKS)
def test_shipped_models_do_what_their_record_says(name):
    """Measured anew, on less text than the record's: the loss may differ a little, the marks hold."""
    mini = get_profile("mini", device="cpu")
    record = json.loads((recipes.MODELS / name / "training.json").read_text())
    assert record["tokens"] >= 25_000_000
    quality = models.quality(model_store.load(name, mini), texts.load_blocks(mini, "held_out", 20_000))
    assert quality["held_out_loss"] == pytest.approx(record["quality"]["held_out_loss"], abs=0.1)
    assert quality["induction_accuracy"] == pytest.approx(record["quality"]["induction_accuracy"], abs=0.03)
    loss, accuracy = MARKS[name]
    assert record["quality"]["held_out_loss"] <= loss and record["quality"]["induction_accuracy"] >= accuracy


def test_trained_mamba_reads_b_from_its_state():
    record = json.loads((recipes.MODELS / "mini-mamba" / "training.json").read_text())
    assert record["quality"]["induction_gap_32"] >= 3
