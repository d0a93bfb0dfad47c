"""``python -m lib.compare``: two models of one's own, with one tokenizer or two, and what it says where it cannot."""

import itertools
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup
from typer.testing import CliRunner

from lib import compare, corpus, models
from lib.documents import documents, read_text, shuffled
from lib.models import ModelNotFound, activations, recipes
from lib.mppc import directions
from lib.sae import SAEConfig, train_saes
from lib.workbook import artifacts, model_store, texts, two_models
from lib.workbook.store import Store
from lib.workbook.two_models import Request
from tests.running import another_tokenizer

SMALL = dict(tokens=1_200, sae_tokens=2_048, context=32, device="cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Small models with random weights: a Transformer, a Mamba with its tokenizer, and one with another."""
    place = tmp_path_factory.mktemp("models")
    for name, made in (("pythia", "smoke-pythia"), ("mamba", "smoke-mamba"), ("other", "smoke-mamba")):
        recipes.random_checkpoint(made, place / name)
    shutil.copy(another_tokenizer() / "tokenizer.json", place / "other" / "tokenizer.json")
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
    assert about["a"]["saes"]["target_l0"] == 32 and len(about["a"]["tokenizer"]) == 64 and not about["a"]["revision"]
    assert about["a"]["layers"] == [0, 1] and about["b"]["layers"] == [0, 1, 2] and "torch" in about["versions"]
    summary = pd.read_csv(done / "summary.csv").set_index("comparison")
    assert list(summary.index[:2]) == ["pythia → other", "other → pythia"]
    assert len(summary) == 3 and summary.loc[summary.index[2]].name.startswith("SAE seed")
    frame = pd.read_parquet(done / "a_to_b.parquet")
    assert frame["mppc"].mean() == pytest.approx(summary["mean"].iloc[0], abs=1e-5)
    assert set(frame["match_layer"]) <= {-1, 0, 1, 2} and (frame["layer"] <= 1).all()


def test_a_run_that_was_stopped_goes_on_and_trains_nothing_twice(folders, done, monkeypatch):
    monkeypatch.delattr(two_models, "train_saes")
    monkeypatch.delattr(directions, "max_pairwise_correlations")
    before = (done / "summary.csv").read_bytes()
    compare.run(request(folders, "other"), done)
    assert (done / "summary.csv").read_bytes() == before


def test_one_s_own_saes_are_taken_and_give_the_same_numbers(folders, done, tmp_path):
    [made] = [path for path in (done / "cache").glob("saes-*") if len(list(path.glob("seed01*"))) == 2]
    for path in made.glob("seed*"):
        shutil.copytree(path, tmp_path / path.name[:6] / path.name)
    own, again = ((str(tmp_path / seed),) for seed in ("seed00", "seed01"))
    compare.run(request(folders, "other", saes_a=own, skyline=again), tmp_path / "out")
    one, other = (pd.read_parquet(place / "a_to_b.parquet") for place in (done, tmp_path / "out"))
    np.testing.assert_allclose(one["mppc"], other["mppc"], atol=1e-6)
    skylines = [pd.read_csv(place / "summary.csv")["mean"][2] for place in (done, tmp_path / "out")]
    assert skylines[0] == pytest.approx(skylines[1], abs=1e-5)
    compare.run(request(folders, "other", saes_a=own), tmp_path / "out")
    assert "no skyline" in (tmp_path / "out" / "index.html").read_text()


def test_a_profile_s_models_have_the_saes_of_its_run(smoke):
    comparison = two_models.of_profile(smoke.pythia, smoke.mamba, smoke)
    assert comparison.a.name == smoke.pythia and comparison.request.has_skyline
    assert comparison.b.folder == Path(model_store.folder_of(smoke.mamba, smoke))
    for seed, of_run in enumerate(smoke.sae_seeds):
        trained = {sae.info.layer: sae for sae in artifacts.trained_saes(smoke.pythia, smoke, of_run)[0]}
        found = comparison.saes(comparison.a, seed)
        assert found and all(torch.equal(sae.W_dec, trained[sae.info.layer].W_dec) for sae in found)
    stranger = two_models.of_profile(smoke.pythia, "another", smoke)
    assert not stranger.b.given and stranger.a.given


def test_vectors_of_norm_23_000_move_neither_the_scale_nor_what_an_sae_learns(folders, monkeypatch):
    model = models.load(folders / "pythia", "cpu")
    ids = (model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts.documents()[:60])
    blocks = corpus.cut(ids, model.tokenizer, 32)
    config = SAEConfig(expansion=2, tokens=2_048, batch_size=128, buffer_tokens=2_048, batch_blocks=16)
    read = activations.run_to

    def with_far_ones(*arguments):
        found = read(*arguments)
        found[0][:4, 3] *= 23_000 / found[0][:4, 3].norm(dim=-1, keepdim=True)
        return found

    def trained(**more):
        [sae], history = train_saes(model, blocks, config, layers=[0], progress=False, **more)
        return sae.info.training["scale"], history["explained_variance"].iloc[-1]

    scale, explained = trained()
    monkeypatch.setattr(activations, "run_to", with_far_ones)
    typical = models.typical_norms(model, blocks, [0], 16)
    assert trained(typical=typical) == (pytest.approx(scale, rel=0.02), pytest.approx(explained, abs=0.05))
    assert trained()[0] < scale / 2  # what the mean norm alone makes of it


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
        (dict(skyline=("nowhere",)), "skyline .* needs saes_a"),
        (dict(device="gpu"), "'gpu' is no device; take auto, cpu or cuda"),
        (dict(b="org/mini-mamba"), "cannot load org/mini-mamba: no folder of this name, not in the hub's cache"),
        (dict(b="mini-mamb"), "cannot load mini-mamb: did you mean 'mini-mamba'"),
        (dict(b="/no/such/folder"), "cannot load /no/such/folder: there is no such folder"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_sentence(folders, tmp_path, change, said):
    with pytest.raises((ValueError, FileNotFoundError, ModelNotFound), match=said):
        compare.run(Request(**vars(request(folders)) | change), tmp_path)


def test_a_model_is_not_compared_with_itself(folders, tmp_path):
    with pytest.raises(ValueError, match="is compared with itself"):
        compare.run(request(folders, "mamba/../pythia"), tmp_path)


def test_a_text_of_one_document_says_nothing_about_others(folders, tmp_path):
    train = [text for text in texts.documents()[:60] if corpus.split_of(text) == "train"]
    long = (" ".join(train[:1] * n) for n in range(20, 200))
    written = [*train, next(text for text in long if corpus.split_of(text) == "held_out")]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in written))
    with pytest.raises(ValueError, match="positions in 1 documents held out"):
        compare.run(Request(**vars(request(folders)) | {"text": str(tmp_path / "text.jsonl")}), tmp_path / "out")


def test_a_model_without_a_tokenizer_is_refused_by_name(folders, tmp_path):
    shutil.copytree(folders / "mamba", tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFound, match="bare has no tokenizer.json: copy the model's own there"):
        compare.run(request(folders, str(tmp_path / "bare")), tmp_path / "out")


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
    assert sorted(len(document) for document in documents(str(plain), 0)) == [300, 602, 602]
    broken = tmp_path / "b.jsonl"
    broken.write_text('{"text": "one"}\n{"no": 1}\n')
    with pytest.raises(ValueError, match="line 2 of .* is no JSON object with a `text`"):
        list(documents(str(broken), 0))
    plain.write_bytes(bytes(range(256)) * 10)
    with pytest.raises(ValueError, match="a.txt is no text in UTF-8"):
        documents(str(plain), 0)
    with pytest.raises(ValueError, match="the text is too short"):
        read_text(["one document"], 10, 10)


def test_documents_are_drawn_from_all_of_a_text_in_an_order_that_the_seed_decides(tmp_path):
    written = [f"document {number}" for number in range(50)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in written))
    once, again, other = (list(documents(str(tmp_path / "a.jsonl"), seed)) for seed in (0, 0, 1))
    assert once == again != other and sorted(once) == sorted(written) and once[:10] != written[:10]
    shipped = list(itertools.islice(shuffled(texts.documents(), 0), 200))
    places = [texts.documents().index(text) for text in shipped]
    assert max(places) > len(texts.documents()) / 2 > min(places)


def test_a_dataset_of_the_hub_is_drawn_from_as_it_streams(monkeypatch):
    written = [str(number) for number in range(100)]
    streamed = datasets.Dataset.from_dict({"text": written}).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: streamed)
    found = list(documents("org/name", 0))
    assert sorted(found) == sorted(written) and found[:10] != written[:10]


def test_the_command_line_says_what_is_wrong_and_ends_with_2(folders, tmp_path):
    result = CliRunner().invoke(compare.app, ["nowhere/at-all", str(folders / "mamba"), "--out", str(tmp_path)])
    assert result.exit_code == 2 and "cannot load nowhere/at-all" in result.output
    assert len(result.output.strip().splitlines()) < 4


@pytest.mark.parametrize("options, said", [
    (["--layers", "1,2"], "layers are written 5+15+25, not '1,2'."),
    (["--layers", ""], "layers are written 5+15+25, not ''."),
    (["--out", f"{__file__}/inside"], "is no folder that can be written to; take another with --out."),
])  # fmt: skip
def test_a_wrong_option_is_one_sentence(folders, options, said):
    result = CliRunner().invoke(compare.app, [str(folders / "pythia"), str(folders / "mamba"), *options])
    assert result.exit_code == 2 and said in result.output
