"""Top snippets against a search written out by hand."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse

from lib import corpus, interpret
from lib.mppc.features import SparseFeatures
from lib.workbook import texts


@pytest.fixture(params=["all tokens count", "every third does not"])
def blocks(request):
    documents = [list(range(10, 40)), list(range(50, 58)), list(range(60, 63))]
    whole = corpus.blocks_of(documents, 16, bos=0, pad=1, special={0, 1})
    return whole if request.param == "all tokens count" else replace(whole, mask=whole.mask & (whole.tokens % 3 > 0))


@pytest.fixture
def dense(blocks):
    rng = np.random.default_rng(0)
    return np.where(rng.random((blocks.n_positions, 4)) < 0.4, rng.random((blocks.n_positions, 4)), 0).astype("f4")


def test_top_snippets_are_the_highest_place_of_each_document(blocks, dense):
    features = SparseFeatures.from_scipy(scipy.sparse.csr_array(dense))
    places = np.argwhere(blocks.mask)
    owner = blocks.document[places[:, 0]]
    top = interpret.top_places(features, blocks, n=5)
    for index in range(4):
        expected = sorted((dense[owner == d, index].max() for d in np.unique(owner)), reverse=True)
        expected = [value for value in expected if value > 0]
        found = top.snippets(index, width=7)
        assert [s.activation for s in found] == pytest.approx(expected)
        for snippet in found:
            row = int(np.flatnonzero(dense[:, index] == np.float32(snippet.activation))[0])
            assert snippet.tokens[snippet.centre] == blocks.tokens[tuple(places[row])]
            block, position = places[row]
            seen = {tuple(place): dense[k, index] for k, place in enumerate(places)}
            start = max(1, position - 3)
            assert snippet.activations.tolist() == [seen.get((block, start + k), 0) for k in range(len(snippet.tokens))]
            assert 0 not in snippet.tokens and 1 not in snippet.tokens and len(snippet.tokens) <= 7
        assert (interpret.token_activations(features, index) == dense[:, index]).all()


def test_fewer_places_than_asked_for_and_ties(blocks):
    values = np.zeros((blocks.n_positions, 3), np.float32)
    values[:, 0] = 1  # everywhere the same: the first place of each document
    values[5, 1] = 2
    top = interpret.top_places(SparseFeatures.from_scipy(scipy.sparse.csr_array(values)), blocks, n=2)
    document = np.repeat(blocks.document, blocks.mask.sum(1))
    assert top.rows[0].tolist() == [0, int(np.flatnonzero(document == 1)[0])]
    assert top.rows[1].tolist() == [5, -1] and top.rows[2].tolist() == [-1, -1]
    assert len(top.snippets(1)) == 1 and top.snippets(2) == []


def test_documents_in_pieces_must_lie_side_by_side(blocks, dense):
    features = SparseFeatures.from_scipy(scipy.sparse.csr_array(dense))
    mixed = corpus.Blocks(blocks.tokens, blocks.mask, blocks.document[::-1].copy())
    with pytest.raises(ValueError, match="side by side"):
        interpret.top_places(features, mixed)


def test_features_of_another_text_are_refused(blocks, dense):
    features = SparseFeatures.from_scipy(scipy.sparse.csr_array(dense[:-1]))
    with pytest.raises(ValueError, match="positions"):
        interpret.top_places(features, blocks)
    features = SparseFeatures.from_scipy(scipy.sparse.csr_array(dense))
    interpret.top_places(replace(features, text=blocks.digest), blocks)
    with pytest.raises(ValueError, match="another text"):
        interpret.top_places(replace(features, text=blocks[::-1].digest), blocks)


def test_marked_text_is_one_line(smoke):
    tokenizer = texts.load_tokenizer(smoke)
    ids = tokenizer("one\ntwo three", add_special_tokens=False)["input_ids"]
    text = interpret.Snippet(np.array(ids), np.ones(len(ids), np.float32), 1).marked(tokenizer)
    assert "\n" not in text and text.replace("⟦", "").replace("⟧", "").replace("↵", "\n") == "one\ntwo three"
