"""Real weights: SmolLM2-135M, where it is installed, compared with a mini model whose tokenizer is another."""

import json
import os

import pandas as pd
import pytest
import torch

from lib import compare, models
from lib.models import activations
from lib.workbook.two_models import Request
from tests.real import smollm2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not smollm2.is_installed() and not os.environ.get("CI"), reason=smollm2.MISSING),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("real") / "smollm2"
    smollm2.convert(place)
    return place


def test_the_weights_are_those_of_a_model_that_has_learned(folder):  # `convert` compares their digest
    model = models.load(folder, "cpu")
    tokens = model.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = model(tokens)[0, -1].argmax()
    assert model.tokenizer.decode(best) == " Paris"


def test_a_mini_model_and_a_real_one_are_compared(folder, tmp_path, caplog):
    sizes = dict(layers=(1,), tokens=10_000, sae_tokens=4_096, context=64, device="cpu")
    compare.run(Request("mini-pythia", str(folder), **sizes), tmp_path)
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["b"]["layers"] == [14] and all(0.5 < share < 1 for share in about["share of tokens paired"].values())
    assert f"is over {activations.FAR} times as long as at the median" in caplog.text  # what mini models do not have
    summary = pd.read_csv(tmp_path / "summary.csv")
    assert (summary["mean"] > summary["null_mean"]).all()
    pairs = pd.read_csv(tmp_path / "pairs.csv")
    assert set(pairs["kind"]) == {"best", "worst"} and pairs["snippet_b"].str.contains("⟦").all()
