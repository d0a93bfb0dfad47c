"""Two tokenizers, one text: positions are paired where both models have read exactly the same."""

import functools
import logging
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.exceptions import StopAtLayerException
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lib import corpus, pairing
from lib.interpret.snippets import top_places
from lib.mppc import max_pairwise_correlations
from lib.mppc.capture import capture_features
from lib.mppc.uncertainty import document_groups
from lib.sae import SAE
from lib.workbook import texts
from tests.running import another_tokenizer

PROSE = [
    "Return the indices of the elements that are non-zero.\n\n    Parameters\n    ----------\n    x : array_like\n",
    "The café serves e\u0301clairs; 漢字 are read, and 👩‍🔬 too.   "
    "Two   spaces, then a tab\tand the end of it.  ",
    "def f(x):\n        return 'naïve ﬁ' + x  # the quick brown fox jumps over the lazy dog, again and again\n",
    "no no no no, yes yes yes: the elements of the array are the elements of the array of the elements",
]
SPECIAL = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def loaded(name="shipped"):
    return AutoTokenizer.from_pretrained(texts.TOKENIZER if name == "shipped" else another_tokenizer())


shipped = functools.cache(loaded)


def fast(tokenizer, **settings):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL | settings)


@functools.cache
def unigram():
    """As sentencepiece makes them: spaces are ▁, and one stands before the text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=list(SPECIAL.values()), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(PROSE * 3, trainer)
    return fast(tokenizer)


@functools.cache
def byte_fallback():
    """As Llama's: no pre-tokenizer, a space put before the text, bytes for what is not in the vocabulary."""
    pairs = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "▁"), ("e", "s"), ("a", "r"), ("o", "f"), ("▁", "a")]
    entries = [*SPECIAL.values(), *(f"<0x{byte:02X}>" for byte in range(256))]
    entries += ["▁", *map(chr, range(ord("!"), 127)), *map("".join, pairs)]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return fast(tokenizer)


@functools.cache
def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=list(SPECIAL.values()), show_progress=False)
    tokenizer.train_from_iterator(PROSE * 3, trainer)
    return fast(tokenizer)


BYTE = {symbol: byte for byte, symbol in bytes_to_unicode().items()}


@functools.cache
def spelling(tokenizer):
    """The bytes that every token stands for."""
    symbols = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    if "Ġ" in symbols:
        return [bytes(BYTE[letter] for letter in symbol) for symbol in symbols]
    return [bytes([int(s[3:5], 16)]) if s.startswith("<0x") else s.replace("▁", " ").encode() for s in symbols]


def content(tokenizer, ids):
    """The bytes that tokens stand for, by their spelling alone; a space before the text included."""
    return b"".join(spelling(tokenizer)[token] for token in ids)


def ends(tokenizer, text):
    [reading] = pairing.read(tokenizer, [text])
    assert reading.ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    return reading.ends.tolist()


# ------------------------------------------------------------------------------------------- where tokens end


def test_only_the_last_byte_of_a_character_ends_it():
    text = "a👩‍🔬e\u0301漢"  # woman, joiner, microscope: 4, 3 and 4 bytes; an accent of 2; a character of 3
    expected = [1, -1, -1, -1, 2, -1, -1, 3, -1, -1, -1, 4, 5, -1, 6, -1, -1, 7]
    assert ends(shipped(), text) == ends(shipped("another"), text) == expected
    assert ends(byte_fallback(), text) == expected  # which has one token for the a and the space that it puts before


@pytest.mark.parametrize("name", ["shipped", "another"])
def test_ends_are_where_counting_the_bytes_of_tokens_puts_them(name):
    tokenizer = shipped(name)
    documents = PROSE + [text for text in texts.documents()[:4_000] if not text.isascii()][:40]
    for text, reading in zip(documents, pairing.read(tokenizer, documents), strict=True):
        whole = {len(text[:end].encode()): end for end in range(len(text) + 1)}
        read = np.cumsum([len(content(tokenizer, [token])) for token in reading.ids])
        assert reading.ends.tolist() == [whole.get(n, -1) for n in read]


def test_offsets_that_a_tokenizer_trims_or_cuts_off_are_whole():
    text = "if x:\n    return y\n\n"
    plain, trimming = loaded(), loaded()
    trimming.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trimming.backend_tokenizer.enable_truncation(3)
    trimming.backend_tokenizer.enable_padding(length=50)
    assert trimming.backend_tokenizer.encode(text).offsets != plain.backend_tokenizer.encode(text).offsets
    [own], [other] = (list(pairing.read(tokenizer, [text])) for tokenizer in (plain, trimming))
    assert all((a == b).all() for a, b in zip(own, other, strict=True))
    assert trimming.backend_tokenizer.truncation["max_length"] == 3  # the tokenizer itself is left as it was


def test_a_space_that_a_tokenizer_adds_moves_no_end():
    spaced = loaded()
    spaced.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    text = "the end"
    assert spaced.convert_ids_to_tokens(list(pairing.read(spaced, [text]))[0].ids) == ["Ġthe", "Ġend"]
    assert ends(spaced, text) == [3, 7]
    assert ends(byte_fallback(), "the a") == [3, 5] and ends(byte_fallback(), "he") == [-1, 2]


def test_a_normalizer_moves_no_end():
    tokenizer = loaded()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    accent, syllable, ligature = "cafe\u0301 x", "ᄀ\u1161 x", "① ﬁ x"
    for text in (accent, syllable, ligature):
        [reading] = pairing.read(tokenizer, [text])
        assert reading.ends[-1] == len(text) and (reading.ends > 0).sum() >= 2
        for k in np.flatnonzero(reading.ends > 0):  # all of the text up to there has been read, and nothing more
            read = content(tokenizer, reading.ids[: k + 1]).decode()
            assert read == tokenizer.backend_tokenizer.normalizer.normalize_str(text[: reading.ends[k]])
    assert 4 not in ends(tokenizer, accent) and 5 in ends(tokenizer, accent)
    assert 1 not in ends(tokenizer, syllable) and 2 in ends(tokenizer, syllable)


def test_dropped_characters_are_read_with_the_token_before_and_white_space_is_not():
    tokenizer = word_piece()  # it drops spaces, accents and control characters
    text = "Cafe\u0301  the\u0000 end\n"
    assert [e for e in ends(tokenizer, text) if text[e : e + 1].isspace()] == [5, 11, 15]


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(ValueError, match="ByT5Tokenizer does not tell where in the text its tokens are"):
        pairing.paired_blocks(PROSE, (shipped(), ByT5Tokenizer()), (64, 64))


def test_a_tokenizer_with_nothing_to_begin_a_block_is_refused_and_eos_will_do():
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(unigram().backend_tokenizer.to_str()))
    with pytest.raises(ValueError, match="neither BOS nor EOS"):
        pairing.paired_blocks(PROSE, (bare, bare), (64, 64))
    bare.eos_token = "</s>"
    blocks = pairing.paired_blocks(PROSE, (bare, bare), (64, 64)).a
    assert (blocks.tokens[:, 0] == bare.eos_token_id).all() and len(blocks)


# ------------------------------------------------------------------------------------------- blocks


def same_text(pair, tokenizers):
    """The rows of both, and in them what was read up to each position that counts, are the same text."""
    assert len(pair.a) == len(pair.b) and (pair.a.document == pair.b.document).all()
    assert pair.a.digest == pair.b.digest
    for k in range(len(pair.a)):
        read = []
        for blocks, tokenizer in zip((pair.a, pair.b), tokenizers, strict=True):
            counted = np.flatnonzero(blocks.mask[k])
            assert counted[0] > 0
            read.append([content(tokenizer, blocks.tokens[k, 1 : place + 1]).lstrip(b" ") for place in counted])
        assert read[0] == read[1]


OTHERS = {"another": lambda: shipped("another"), "unigram": unigram, "byte fallback": byte_fallback}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("lengths", [(512, 512), (12, 40), (40, 12)])
def test_every_row_holds_one_piece_of_text_and_pairs_what_both_have_read(other, lengths):
    tokenizers = shipped(), OTHERS[other]()
    pair = pairing.paired_blocks(PROSE, tokenizers, lengths)
    same_text(pair, tokenizers)
    assert (pair.a.tokens.shape[1], pair.b.tokens.shape[1]) == lengths
    if lengths[0] == lengths[1]:
        assert pair.a.document.tolist() == [0, 1, 2, 3]
    else:  # cut documents are whole in the rows together, and no row could have gone on to the next shared end
        assert len(pair.a) > 8
        for k in np.flatnonzero(np.diff(pair.a.document) == 0):
            filled = [(side.tokens[k] != t.pad_token_id).sum() for side, t in zip(pair, tokenizers)]
            more = [side.mask[k + 1].argmax() for side in (pair.a, pair.b)]
            assert any(n + m > length for n, m, length in zip(filled, more, lengths, strict=True))
        text = b"".join(content(tokenizers[0], row[1:][row[1:] > 1]) for row in pair.a.tokens)
        assert text.decode() == "".join(PROSE)


@pytest.mark.parametrize("settings", [{}, {"n_positions": 60}])
@pytest.mark.parametrize("name", ["shipped", "another"])
def test_with_one_tokenizer_the_blocks_are_those_of_a_plain_cut(name, settings):
    tokenizer = shipped(name)
    documents = [*PROSE, "", "begin <|endoftext|> again", "<|endoftext|>", "👩‍🔬" * 20, PROSE[0]]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in documents]
    for lengths in ((16, 16), (16, 30), (500, 500)):
        pair = pairing.paired_blocks(documents, (tokenizer, loaded(name)), lengths, **settings)
        plain = corpus.cut(ids, tokenizer, 16 if 16 in lengths else 500, **settings)
        width = plain.tokens.shape[1]
        for blocks in (pair.a, pair.b):
            assert (blocks.tokens[:, :width] == plain.tokens).all() and (blocks.mask[:, :width] == plain.mask).all()
            assert (blocks.document == plain.document).all() and not blocks.mask[:, width:].any()
        assert pair.shares == (1.0, 1.0)


def test_special_tokens_inside_a_text_do_not_count_and_what_follows_does():
    text = "the array <|endoftext|> the elements"
    tokenizers = shipped(), byte_fallback()  # to the second it is fourteen letters
    pair = pairing.paired_blocks([text], tokenizers, (64, 64))
    same_text(pair, tokenizers)
    a = pair.a.tokens[0][pair.a.mask[0]]
    assert tokenizers[0].bos_token_id not in a and tokenizers[0].bos_token_id in pair.a.tokens[0, 1:]
    assert content(tokenizers[0], a).endswith(b"elements")
    assert pair.a.n_positions == pair.b.n_positions


def test_empty_documents_have_no_block_and_keep_their_number():
    tokenizers = shipped(), unigram()
    pair = pairing.paired_blocks(["", PROSE[0], "", PROSE[3]], tokenizers, (512, 512))
    assert pair.a.document.tolist() == pair.b.document.tolist() == [1, 3]
    none = pairing.paired_blocks(["", ""], tokenizers, (16, 16))
    assert len(none.a) == len(none.b) == 0 and np.isnan(none.shares).all()


def test_a_stretch_without_a_shared_end_in_reach_is_left_out():
    tokenizers = shipped(), word_piece()  # a word of Cyrillic letters is one unknown token to the second
    text = "the array " + "ж" * 30 + " the end"
    pair = pairing.paired_blocks([text], tokenizers, (16, 16))
    assert len(pair.a) == 2
    first, second = (content(tokenizers[0], row[1:][row[1:] > 1]).decode() for row in pair.a.tokens)
    assert (first, second) == ("the array", " the end")
    assert tokenizers[1].unk_token_id not in pair.b.tokens
    n_tokens = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for tokenizer in tokenizers]
    assert pair.shares == tuple(pair.a.n_positions / n for n in n_tokens)
    assert len(pairing.paired_blocks([text], tokenizers, (100, 100)).a) == 1


def test_a_share_below_one_half_is_warned_of(caplog):
    letters = byte_fallback()
    with caplog.at_level(logging.WARNING, "workbook.pairing"):
        pair = pairing.paired_blocks(PROSE[:1], (shipped(), letters), (512, 512))
    assert pair.shares[0] > 0.5 > pair.shares[1] > 0.2
    said = f"Only {100 * pair.shares[1]:.0f} % of the second tokenizer's tokens"
    assert [said in message for message in caplog.messages] == [True]
    caplog.clear()
    assert min(pairing.paired_blocks(PROSE, (shipped(), shipped("another")), (512, 512)).shares) > 0.5
    assert not caplog.messages


def test_as_many_positions_as_wanted_are_paired():
    tokenizers = shipped(), unigram()
    everything = pairing.paired_blocks(PROSE * 5, tokenizers, (16, 16))
    some = pairing.paired_blocks(PROSE * 5, tokenizers, (16, 16), n_positions=100)
    n = len(some.a)
    assert 100 <= some.a.n_positions == some.b.n_positions < 116
    assert (some.a.tokens == everything.a.tokens[:n]).all() and (some.b.mask == everything.b.mask[:n]).all()
    same_text(some, tokenizers)


# ------------------------------------------------------------------------------------------- MPPC

ORDER = np.array([3, 0, 4, 1, 2])  # feature j of the second model is feature ORDER[j] of the first, doubled


class PrefixModel(TransformerBridge):
    """A bridge whose residual stream is a function of the text that it has read, white space apart."""

    def __init__(self, tokenizer, order, scale=1.0):
        torch.nn.Module.__init__(self)
        self.spelling, self.order, self.scale = tokenizer, order, scale

    def parameters(self, recurse=True):
        return iter([torch.zeros(1)])

    def run_with_hooks(self, tokens, return_type, fwd_hooks):
        rows = [[self.features(row[1 : k + 1]) for k in range(len(row))] for row in tokens]
        try:
            for _, hook in fwd_hooks:
                hook(torch.from_numpy(self.scale * np.array(rows)[:, :, self.order]), None)
        except StopAtLayerException:
            pass

    def features(self, ids):
        text = b"".join(content(self.spelling, ids).split())
        rng = np.random.default_rng(int.from_bytes(blake2b(text, digest_size=8).digest(), "big"))
        return rng.exponential(size=5) * (rng.random(5) < 0.3)


class Identity(SAE):
    """Its features are the residual stream."""

    def encode(self, x):
        return x


def captured(tokenizer, blocks, order=np.arange(5), scale=1.0):
    return capture_features(PrefixModel(tokenizer, order, scale), [Identity(5, 5)], blocks, batch_blocks=8)


@pytest.mark.parametrize("other", OTHERS)
def test_mppc_of_models_that_compute_the_same_of_the_text_is_one(other):
    tokenizers = shipped(), OTHERS[other]()
    pair = pairing.paired_blocks(PROSE, tokenizers, (64, 48))
    a, b = captured(tokenizers[0], pair.a), captured(tokenizers[1], pair.b, ORDER, 2.0)
    to_b, to_a = max_pairwise_correlations(a, b)
    np.testing.assert_allclose([to_b.value, to_a.value], 1, atol=1e-6)
    assert to_a.index.tolist() == ORDER.tolist() and (ORDER[to_b.index] == np.arange(5)).all()
    shifted, _ = max_pairwise_correlations(a, b, shift=a[0].n_tokens // 2)
    assert (shifted.value < 0.7).all()
    assert (document_groups(pair.a, 0, 3) == document_groups(pair.b, 0, 3)).all()


def test_features_of_paired_blocks_are_matched_and_others_refused():
    tokenizers = shipped(), unigram()
    pair = pairing.paired_blocks(PROSE, tokenizers, (64, 64))
    a, b = captured(tokenizers[0], pair.a), captured(tokenizers[1], pair.b)
    max_pairwise_correlations(a, b)
    n = pair.a.n_positions
    unpaired = corpus.cut(
        [tokenizers[1](text, add_special_tokens=False)["input_ids"] for text in PROSE], tokenizers[1], 64
    )
    longer = pairing.paired_blocks(PROSE, tokenizers, (96, 96)).b
    reordered = pairing.paired_blocks(PROSE[::-1], tokenizers, (64, 64)).b
    for blocks in (unpaired, longer, reordered):
        wrong = [replace(layer.head(n), text=layer.text) for layer in captured(tokenizers[1], blocks)]
        with pytest.raises(ValueError, match="nothing can be paired"):
            max_pairwise_correlations(a, wrong)
    rows = np.arange(0, len(pair.a), 2)
    assert pair.a[rows].digest == pair.b[rows].digest != pair.a.digest
    fewer = pair.b.mask & (pair.b.mask.cumsum(1) > 1)
    assert replace(pair.b, mask=fewer).digest != pair.b.digest


def test_mppc_with_one_tokenizer_is_that_of_a_plain_cut():
    tokenizer = shipped()
    documents = [*PROSE, "👩‍🔬 is one <|endoftext|> character"]
    pair = pairing.paired_blocks(documents, (tokenizer, tokenizer), (32, 32))
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in documents]
    plain = corpus.cut(ids, tokenizer, 32)
    now = max_pairwise_correlations(captured(tokenizer, pair.a), captured(tokenizer, pair.b, ORDER))
    then = max_pairwise_correlations(captured(tokenizer, plain), captured(tokenizer, plain, ORDER))
    for one, other in zip(now, then, strict=True):
        assert one.to_frame().equals(other.to_frame())


def test_snippets_of_paired_features_stand_at_the_same_places_of_the_text():
    tokenizers = shipped(), unigram()
    pair = pairing.paired_blocks(PROSE, tokenizers, (64, 64))
    [a], [b] = captured(tokenizers[0], pair.a), captured(tokenizers[1], pair.b)
    places, others = top_places(a, pair.a), top_places(b, pair.b)
    assert (places.rows == others.rows).all() and (places.rows >= 0).sum() >= 15
    for feature in range(5):
        for one, other in zip(places.snippets(feature, width=9), others.snippets(feature, width=9), strict=True):
            assert one.activation == other.activation > 0
            assert one.activations.max() <= places.snippets(feature)[0].activation
            read = [
                content(tokenizer, snippet.tokens[: snippet.centre + 1]).split()[-1]
                for tokenizer, snippet in zip(tokenizers, (one, other), strict=True)
            ]
            assert read[0].endswith(read[1]) or read[1].endswith(read[0])
    with pytest.raises(ValueError, match="another text"):
        top_places(b, replace(pair.b, mask=np.roll(pair.b.mask, 1, 0)))
