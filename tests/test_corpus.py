"""The corpus: same text, same tokens, same mask, every time."""

import dataclasses

import numpy as np

from lib import corpus
from lib.workbook import texts
from lib.workbook.profiles import get_profile


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


def test_a_digest_tells_other_tokens_and_other_positions_that_count():
    blocks = corpus.blocks_of([[5, 6, 7]] * 2, 4, bos=0, pad=1, special={0, 1})
    assert (
        blocks.digest == blocks[:].digest == dataclasses.replace(blocks, tokens=blocks.tokens.astype(np.int64)).digest
    )
    others = (
        dataclasses.replace(blocks, mask=blocks.mask & (blocks.tokens != 6)),
        dataclasses.replace(blocks, tokens=blocks.tokens + 1),
        blocks.take(1),
        corpus.Blocks(blocks.tokens.reshape(4, 2), blocks.mask.reshape(4, 2), np.arange(4)),
    )
    assert len({blocks.digest, *(other.digest for other in others)}) == 5


def test_tokens_of_the_shipped_text_decode_to_it(smoke):
    documents = texts.documents()
    assert len(texts.document_tokens(smoke, "held_out")) == sum(
        corpus.split_of(text) == "held_out" for text in documents
    )
    blocks = texts.load_blocks(smoke, "held_out", 2_000)
    assert 2_000 <= blocks.n_positions < 2_000 + smoke.context_length
    tokenizer = texts.load_tokenizer(smoke)
    text = tokenizer.decode(blocks.tokens[0][blocks.mask[0]])
    assert any(text in document for document in documents)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == blocks.tokens[0][blocks.mask[0]].tolist()
    assert (blocks.tokens[:, 0] == tokenizer.bos_token_id).all()


def test_shuffling_follows_the_seed(smoke):
    a, b = (texts.load_blocks(smoke, "held_out", 500).tokens for _ in range(2))
    other = get_profile("smoke", cache_dir=smoke.cache_dir, seed=1)
    assert (a == b).all()
    assert not np.array_equal(a, texts.load_blocks(other, "held_out", 500).tokens)
