"""``python -m lib.compare``: two models of one's own, with one tokenizer or two, and what it says where it cannot."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from typer.testing import CliRunner

from lib import compare
from lib.models import ModelNotFound, recipes
from lib.workbook import texts, two_models
from lib.workbook.store import Store
from lib.workbook.two_models import CannotCompare, Request

SMALL = dict(tokens=1_200, sae_tokens=2_048, context=32, device="cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Small models with random weights: a Transformer, a Mamba with its tokenizer, and one with another."""
    place = tmp_path_factory.mktemp("models")
    for name, made in (("pythia", "smoke-pythia"), ("mamba", "smoke-mamba"), ("other", "smoke-mamba")):
        recipes.random_checkpoint(made, place / name)
    shutil.copy(recipes.NEXT / "tokenizer" / "tokenizer.json", place / "other" / "tokenizer.json")
    lines = [json.dumps({"text": text}) for text in texts.documents()[:400]]
    (place / "text.jsonl").write_text("\n".join(lines))
    return place


def request(folders, b="mamba", **more):
    return Request(str(folders / "pythia"), str(folders / b), text=str(folders / "text.jsonl"), **SMALL | more)


@pytest.fixture(scope="module")
def done(folders, tmp_path_factory):
    """One whole comparison of models with two tokenizers."""
    out = tmp_path_factory.mktemp("out")
    compare.run(request(folders, "other"), out)
    return out


def test_a_page_tables_and_what_the_run_was_made_of(done):
    page = BeautifulSoup((done / "index.html").read_text(), "html.parser")
    assert "different tokenizers" in page.select_one(".lead").get_text() and len(page.select("img")) == 3
    for link in page.select("a[href], img[src]"):
        assert (done / (link.get("href") or link["src"]).partition("#")[0]).exists()
    about = json.loads((done / "run.json").read_text())
    assert 0.5 < about["share of tokens paired"]["a"] < 1 and about["positions"] >= 1_200
    assert about["a"]["layers"] == [0, 1] and about["b"]["layers"] == [0, 1, 2] and "torch" in about["versions"]
    summary = pd.read_csv(done / "summary.csv").set_index("comparison")
    assert len(summary) == 3 and summary.loc[summary.index[2]].name.startswith("SAE seed")
    frame = pd.read_parquet(done / "a_to_b.parquet")
    assert frame["mppc"].mean() == pytest.approx(summary["mean"].iloc[0], abs=1e-5)
    assert set(frame["match_layer"]) <= {-1, 0, 1, 2} and (frame["layer"] <= 1).all()


def test_a_run_that_was_stopped_goes_on_and_trains_nothing_twice(folders, done, monkeypatch):
    monkeypatch.delattr(two_models, "train_saes")
    monkeypatch.delattr(two_models, "max_pairwise_correlations")
    before = (done / "summary.csv").read_bytes()
    compare.run(request(folders, "other"), done)
    assert (done / "summary.csv").read_bytes() == before


def test_one_s_own_saes_are_taken_and_give_the_same_numbers(folders, done, tmp_path):
    [made] = [path for path in (done / "cache").glob("saes-*") if len(list(path.glob("seed01*"))) == 2]
    for path in made.glob("seed00*"):
        shutil.copytree(path, tmp_path / "saes" / path.name)
    compare.run(request(folders, "other", saes_a=(str(tmp_path / "saes"),)), tmp_path / "out")
    one, other = (pd.read_parquet(place / "a_to_b.parquet") for place in (done, tmp_path / "out"))
    np.testing.assert_allclose(one["mppc"], other["mppc"], atol=1e-6)
    assert "no skyline" in (tmp_path / "out" / "index.html").read_text()


def test_models_of_one_tokenizer_are_compared_at_every_token(folders, tmp_path):
    comparison = two_models.Comparison(request(folders, layers=(1,)), Store(tmp_path))
    assert comparison.blocks.shares == (1.0, 1.0) and comparison.b.layers == [3]
    assert (comparison.blocks.a.tokens == comparison.blocks.b.tokens).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(layers=(7,)), "has no layer 7: its layers are 0 to 1"),
        (dict(saes_a=("nowhere",)), "nowhere is no SAE folder"),
        (dict(text="nowhere.txt"), "there is no text nowhere.txt"),
        (dict(a="no/such-model"), "cannot load no/such-model"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_sentence(folders, tmp_path, change, said):
    with pytest.raises((ValueError, FileNotFoundError, ModelNotFound), match=said):
        compare.run(Request(**vars(request(folders)) | change), tmp_path)


def test_saes_of_another_width_do_not_fit(folders, done, tmp_path):
    [wrong, *_] = (done / "cache").glob("saes-*/seed00*")
    cfg = json.loads((wrong / "cfg.json").read_text())
    shutil.copytree(wrong, tmp_path / "sae")
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps(cfg | {"d_in": cfg["d_in"] + 1}))
    with pytest.raises(ValueError):
        compare.run(request(folders, saes_a=(str(tmp_path / "sae"),)), tmp_path / "out")


def test_texts(tmp_path):
    plain = tmp_path / "a.txt"
    plain.write_text("\n\n".join("x" * 300 for _ in range(5)))
    assert sorted(len(document) for document in two_models.documents(str(plain), 0)) == [300, 602, 602]
    broken = tmp_path / "b.jsonl"
    broken.write_text('{"text": "one"}\n{"no": 1}\n')
    with pytest.raises(CannotCompare, match="line 2 of .* is no JSON object with a `text`"):
        list(two_models.documents(str(broken), 0))
    with pytest.raises(CannotCompare, match="the text is too short"):
        two_models.read_text(["one document"], 10, 10)


def test_the_command_line_says_what_is_wrong_and_ends_with_2(folders, tmp_path):
    result = CliRunner().invoke(compare.app, ["nowhere/at-all", str(folders / "mamba"), "--out", str(tmp_path)])
    assert result.exit_code == 2 and "cannot load nowhere/at-all" in result.output
    assert len(result.output.strip().splitlines()) < 4
