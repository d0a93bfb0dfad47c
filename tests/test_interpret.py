"""Top snippets against a search written out by hand."""

import numpy as np
import pytest
import scipy.sparse

from lib import corpus, interpret
from lib.features import SparseFeatures


@pytest.fixture
def blocks():
    documents = [list(range(10, 40)), list(range(50, 58)), list(range(60, 63))]
    return corpus.blocks_of(documents, 16, bos=0, pad=1, special={0, 1})


@pytest.fixture
def dense(blocks):
    rng = np.random.default_rng(0)
    return np.where(rng.random((blocks.n_positions, 4)) < 0.4, rng.random((blocks.n_positions, 4)), 0).astype("f4")


def test_top_snippets_are_the_highest_place_of_each_document(blocks, dense):
    features = SparseFeatures.from_scipy(scipy.sparse.csr_array(dense))
    places = np.argwhere(blocks.mask)
    owner = blocks.document[places[:, 0]]
    for index in range(4):
        expected = sorted((dense[owner == d, index].max() for d in np.unique(owner)), reverse=True)
        expected = [value for value in expected if value > 0]
        found = interpret.top_snippets(features, index, blocks, n=5, width=7)
        assert [s.activation for s in found] == pytest.approx(expected)
        for snippet in found:
            row = int(np.flatnonzero(dense[:, index] == np.float32(snippet.activation))[0])
            assert snippet.tokens[snippet.centre] == blocks.tokens[tuple(places[row])]
            assert 0 not in snippet.tokens and 1 not in snippet.tokens and len(snippet.tokens) <= 7
        assert (interpret.token_activations(features, index) == dense[:, index]).all()


def test_features_of_another_text_are_refused(blocks, dense):
    features = SparseFeatures.from_scipy(scipy.sparse.csr_array(dense[:-1]))
    with pytest.raises(ValueError, match="positions"):
        interpret.top_snippets(features, 0, blocks)


def test_marked_text_is_one_line(smoke):
    tokenizer = corpus.load_tokenizer(smoke)
    ids = tokenizer("one\ntwo three", add_special_tokens=False)["input_ids"]
    text = interpret.Snippet(np.array(ids), 1, 1.0).marked(tokenizer)
    assert "\n" not in text and text.replace("⟦", "").replace("⟧", "").replace("↵", "\n") == "one\ntwo three"
