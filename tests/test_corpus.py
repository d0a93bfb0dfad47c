"""The corpus: same text, same tokens, same mask, every time."""

import dataclasses
import json

import numpy as np
import pytest

from lib import corpus
from lib.profiles import get_profile


def test_docstrings_are_those_of_the_source(tmp_path):
    text = "A long story. " * 20
    source = f'"""{text}"""\nclass A:\n    def f(self):\n        """short"""\nasync def g():\n    """{text} more"""\n'
    (tmp_path / "a.py").write_text(source)
    assert corpus._docstrings_of_file(tmp_path / "a.py") == [text.strip(), "short", f"{text} more"]
    (tmp_path / "b.py").write_text("def broken(:")
    assert corpus._docstrings_of_file(tmp_path / "b.py") == []


def test_one_package_gives_long_distinct_documents():
    texts = corpus.docstrings(["seaborn"])
    assert len(texts) > 100
    assert len(set(texts)) == len(texts)
    assert min(map(len, texts)) >= corpus.MIN_CHARACTERS
    assert texts == corpus.docstrings(["seaborn"])


def test_split_depends_on_the_text_alone_and_holds_out_a_tenth():
    held_out = [corpus.split_of(f"document {i}") == "held_out" for i in range(5_000)]
    assert 0.08 < np.mean(held_out) < 0.12


def test_documents_are_cut_into_blocks_and_only_their_tokens_count():
    blocks = corpus.blocks_of([[5, 6, 7, 8, 9], [7, 0]], context_length=4, bos=0, pad=1, special={0, 1})
    assert blocks.tokens.tolist() == [[0, 5, 6, 7], [0, 8, 9, 1], [0, 7, 0, 1]]
    assert blocks.mask.astype(int).tolist() == [[0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 0, 0]]
    assert blocks.document.tolist() == [0, 0, 1]
    assert blocks.n_positions == 6


def test_the_papers_cut_keeps_one_block_of_a_document():
    documents = [[5, 6, 7, 8, 9], [7]]
    blocks = corpus.blocks_of(documents, 4, bos=0, pad=1, special={0, 1}, blocks_per_document=1)
    assert blocks.document.tolist() == [0, 1]


def test_take_stops_once_there_is_enough():
    blocks = corpus.blocks_of([[5, 6, 7]] * 5, 4, bos=0, pad=1, special={0, 1})
    assert len(blocks.take(6)) == 2
    assert len(blocks.take(7)) == 3
    assert len(blocks.take(1_000)) == 5


def test_models_that_count_other_positions_are_refused():
    blocks = corpus.blocks_of([[5, 6, 7]] * 2, 4, bos=0, pad=1, special={0, 1})
    corpus.require_same_mask(blocks, blocks)
    for other in (
        dataclasses.replace(blocks, mask=blocks.mask & (blocks.tokens != 6)),
        dataclasses.replace(blocks, tokens=blocks.tokens + 1),
        blocks.take(1),
    ):
        with pytest.raises(ValueError, match="nothing can be paired"):
            corpus.require_same_mask(blocks, other)


def test_corpus_of_the_profile_matches_its_manifest_and_its_tokens_decode_to_text(smoke):
    known = json.loads(corpus.MANIFEST.read_text())
    blocks = corpus.load_blocks(smoke, "held_out", 2_000)
    assert 2_000 <= blocks.n_positions < 2_000 + smoke.context_length
    assert len(corpus.docstring_tokens(smoke, "held_out")) == known["held_out_documents"]
    tokenizer = corpus.load_tokenizer(smoke)
    text = tokenizer.decode(blocks.tokens[0][blocks.mask[0]])
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == blocks.tokens[0][blocks.mask[0]].tolist()
    assert (blocks.tokens[:, 0] == tokenizer.bos_token_id).all()


def test_other_text_than_the_shipped_models_saw_is_said_once(caplog, tmp_path, monkeypatch):
    known = json.loads(corpus.MANIFEST.read_text())
    manifest = tmp_path / "corpus.json"
    manifest.write_text(json.dumps(known | {"sha256": "0", "packages": known["packages"] | {"scipy": "0.1"}}))
    monkeypatch.setattr(corpus, "MANIFEST", manifest)
    corpus._compare_with_manifest.cache_clear()
    for _ in range(2):
        corpus._compare_with_manifest(json.dumps(known))
    assert [r.message for r in caplog.records].count(caplog.records[0].message) == 1
    assert f"scipy {known['packages']['scipy']} (not 0.1)" in caplog.text


def test_shuffling_follows_the_seed(smoke):
    a, b = (corpus.load_blocks(smoke, "held_out", 500).tokens for _ in range(2))
    other = get_profile("smoke", cache_dir=smoke.cache_dir, seed=1)
    assert (a == b).all()
    assert not np.array_equal(a, corpus.load_blocks(other, "held_out", 500).tokens)
