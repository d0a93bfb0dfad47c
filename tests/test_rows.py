"""Training rows of the mini zoo: a target is always determined by what stands before it, and only then."""

import dataclasses

import numpy as np
import pytest
from tokenizers import Tokenizer

from lib import corpus
from lib.circuits.ioi import sentences, training_template
from lib.models import recipes
from lib.workbook import texts
from lib.zoo import rows

TINY = recipes.Recipe(
    "gpt_neox", n_layers=2, d_model=32, context_length=24, batch_rows=8, steps=12, longest_period=20, recall_share=0.5,
    sentence_share=0.0625, sentence_share_end=0.125,
)  # fmt: skip


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    return [rng.integers(2, corpus.VOCABULARY, rng.integers(5, 60)).astype(np.uint16) for _ in range(60)]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(recipes.TOKENIZER / "tokenizer.json"))


def test_text_rows_hold_every_document_once_per_epoch(documents):
    packed = rows.packed_rows(documents, TINY, epoch=0)
    assert (packed[:, 0] == 0).all() and packed.shape[1] == 24
    assert len(packed) == (sum(map(len, documents)) + len(documents)) // 23
    assert not (packed == rows.packed_rows(documents, TINY, epoch=1)).all()


def test_only_predictable_tokens_of_repeats_are_targets():
    tokens, targets = rows.repeated_rows(200, TINY, np.random.default_rng(0))
    periods = set()
    for row, wanted in zip(tokens, targets, strict=True):
        known = np.flatnonzero(wanted != rows.IGNORE)
        period = int(known[0]) - 1
        assert known.tolist() == list(range(period + 1, 23))
        assert (wanted[known] == row[known + 1]).all() and (row[known + 1] == row[known + 1 - period]).all()
        periods.add(period)
    assert min(periods) == 1 and max(periods) == TINY.longest_period


def test_a_recall_row_asks_for_b_where_a_and_b_were_seen_together_before_and_nowhere_else():
    """Checked without the code that drew them: what follows a token is known once the same token was followed by it."""
    tokens, targets = rows.recall_rows(100, dataclasses.replace(TINY, context_length=256), np.random.default_rng(1))
    distances = []
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        assert row[0] == 0 and min(row[1:]) >= 2
        last: dict[int, int] = {}
        for place, token in enumerate(row[:-1]):
            is_return = token in last and place > 0 and row[place - 1 : place + 1].count(token) == 1
            if wanted[place] != rows.IGNORE:
                assert wanted[place] == row[place + 1] == row[last[token] + 1]
                distances.append(place - last[token])
            elif is_return:  # a token that came before and is no target is a B: what follows it is not determined
                assert wanted[place - 1] == token
            last[token] = place
        assert wanted[-1] == rows.IGNORE
    assert len(distances) > 1_000 and min(distances) == 2 and max(distances) > 100


def test_pairs_come_back_in_random_order_amid_filler():
    tokens, targets = rows.recall_rows(50, dataclasses.replace(TINY, context_length=256), np.random.default_rng(2))
    alone = [(np.unique(row, return_counts=True)[1] == 1).sum() for row in tokens]  # filler, and pairs that came once
    assert min(alone) < 30 and max(alone) > 100
    n_pairs = {len(set(wanted[wanted != rows.IGNORE])) for wanted in targets}
    assert min(n_pairs) == 1 and max(n_pairs) > 20


def test_sentences_end_with_the_other_name_and_held_out_ones_share_no_template_and_no_pair():
    rng = np.random.default_rng(0)
    parts = texts.sentence_parts()
    train, held_out = sentences(parts, 2_000, rng), sentences(parts, 2_000, rng, held_out=True)
    for sentence in train + held_out:
        words = sentence.text.replace(".", "").replace(",", "").split()
        assert words.count(sentence.s) == 2 and words.count(sentence.io) == 2 and words[-1] == sentence.io
        assert sentence.text.startswith(sentence.prompt) and sentence.prompt.split()[-1] != sentence.io
    pairs = [{frozenset((sentence.io, sentence.s)) for sentence in some} for some in (train, held_out)]
    assert not pairs[0] & pairs[1]
    first_words = [{sentence.text.split()[0] for sentence in some} for some in (train, held_out)]
    assert not first_words[0] & first_words[1]
    acting_first = np.mean([sentence.text.index(sentence.s) < sentence.text.index(sentence.io) for sentence in train])
    assert 0.45 < acting_first < 0.55


def test_every_name_is_one_token(tokenizer):
    names = texts.sentence_parts()["names"]
    assert len(names) > 100
    assert [name for name in names if len(tokenizer.encode(f" {name}").ids) != 1] == []


def test_sentence_rows_are_whole_sentences_between_bos(tokenizer):
    tokens, targets = rows.sentence_rows(
        3, dataclasses.replace(TINY, context_length=128), np.random.default_rng(0), tokenizer
    )
    assert (tokens[:, 0] == 0).all() and (targets[:, :-1] == tokens[:, 1:]).all()
    for row in tokens:
        parts = tokenizer.decode(row.tolist(), skip_special_tokens=False).split(corpus.BOS)
        assert len(parts) > 5 and all(part.endswith(".") for part in parts[1:-1])


def test_batches_follow_from_the_step_alone_and_synthetic_rows_become_fewer(documents, tokenizer):
    batches = rows.Batches(documents, TINY, tokenizer)
    first = [batches(step) for step in (0, 5, 11)]
    again = rows.Batches(documents, TINY, tokenizer)
    for step, (tokens, targets) in zip((11, 0, 5), (first[2], first[0], first[1]), strict=True):
        assert tokens.shape == (8, 24)
        assert (again(step)[0] == tokens).all() and (again(step)[1] == targets).all()
    counts = [batches.counts(step) for step in range(TINY.steps)]
    assert all(sum(count.values()) == 8 for count in counts)
    assert [counts[step]["repeats"] + counts[step]["recall"] for step in (0, 6, 11)] == [4, 2, 2]
    assert [counts[step]["recall"] for step in (0, 6, 11)] == [2, 1, 1]
    assert [count["sentences"] for count in counts] == [0, 1] * 4 + [1] * 4  # more of them in the last third


def test_recall_may_begin_later_and_then_takes_its_share_of_the_synthetic_rows(documents, tokenizer):
    batches = rows.Batches(documents, dataclasses.replace(TINY, recall_from=0.5), tokenizer)
    plain = rows.Batches(documents, TINY, tokenizer)
    for step in range(TINY.steps):
        later, at_once = batches.counts(step), plain.counts(step)
        assert later["recall"] == (at_once["recall"] if step >= 6 else 0)
        assert later["repeats"] + later["recall"] == at_once["repeats"] + at_once["recall"]


def test_the_sentences_are_listed_in_the_data():
    parts = texts.sentence_parts()
    rng = np.random.default_rng(0)
    drawn = {training_template(parts, rng) for _ in range(5_000)}
    for template in (*drawn, *parts["held_out_templates"]):
        assert all(template.count(f"{{{slot}}}") == 1 for slot in ("A", "B", "S", "IO", "place", "object")), template
    assert len(drawn) > 3_000 and not drawn & set(parts["held_out_templates"])
    openings = [opening for kind in parts["openings"].values() for opening in kind]
    assert not [held for held in parts["held_out_templates"] if held.startswith(tuple(openings))]
