"""What a model can do is measured right: on models whose answer is known."""

import math

import pytest
import torch
from transformers import AutoTokenizer

from lib import corpus
from lib.circuits import abilities
from lib.circuits.ioi import Sentence
from lib.models import recipes
from lib.workbook import texts

V = 300


def answers(rule, vocabulary=V):
    """A model that gives the token which `rule` says of each prefix (or a list of weights) the highest logit."""

    def logits(tokens):
        out = torch.zeros(*tokens.shape, vocabulary)
        for row, line in enumerate(tokens.tolist()):
            for place in range(len(line)):
                for token, weight in rule(line[: place + 1]).items():
                    out[row, place, token] = weight
        return out

    return logits


def after_the_same_token(prefix):
    """What induction does: the token that stood after the last one of this kind."""
    places = [place for place, token in enumerate(prefix[:-1]) if token == prefix[-1]]
    return {prefix[places[-1] + 1]: 5.0} if places else {}


def seen(prefix):
    """A bag of words: every token seen is as likely, later ones a little more."""
    return {token: 1 + place / 1000 for place, token in enumerate(prefix)}


def test_induction_associates_and_repeats_at_every_period():
    induction = answers(after_the_same_token)
    for gap in (2, 8):
        assert abilities.association(induction, gap, V, n_samples=8) == (1.0, 1.0)
    assert abilities.repeat_accuracy(induction, 1, V, n_rows=4) == 1.0
    assert abilities.repeat_accuracy(induction, 16, V, n_rows=4) > 0.9  # a token may come twice within a period


def test_a_bag_of_words_answers_with_what_came_last_and_copies_nothing():
    bag = answers(seen)
    assert abilities.association(bag, 8, V, n_samples=8) == (0.0, 1.0)
    assert abilities.repeat_accuracy(bag, 16, V, n_rows=4) < 0.1


def test_association_prompts_differ_in_their_last_token_alone():
    first, second, answer = abilities.association_prompts(8, V, n_samples=5)
    assert first.shape == second.shape == (5, 1 + 4 + 16 + 1)
    assert (first[:, :-1] == second[:, :-1]).all()
    assert (first[:, -1] == first[:, 1]).all() and (second[:, -1] == second[:, 11]).all()
    assert (answer == torch.stack([first[:, 2], first[:, 12]], 1)).all()
    assert all(len(set(row[:-1])) == 20 for row in first[:, 1:].tolist())


def test_cost_of_a_is_one_for_induction_and_nothing_for_a_bag():
    assert abilities.costs(answers(after_the_same_token), 8, V, n_samples=8)[1] == pytest.approx(1, abs=0.01)
    assert abilities.costs(answers(seen), 8, V, n_samples=8)[1] == pytest.approx(0, abs=0.01)


def test_a_bag_of_words_does_no_induction():
    found = abilities.induction_abilities(answers(after_the_same_token), V, n_samples=4)
    assert found["does_induction"] and found["copies"] and found["association"] == 1.0
    found = abilities.induction_abilities(answers(seen), V, n_samples=4)
    assert found["does_induction"] is False and found["copies"] is False and found["association"] == 0.0


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(recipes.TOKENIZER)


def test_ioi_asks_for_the_name_that_stands_once(tokenizer):
    def once(prefix):
        return {token: 1.0 / prefix.count(token) for token in set(prefix)}

    size, drawn = corpus.VOCABULARY, texts.unseen_sentences(8)
    assert abilities.ioi(answers(once, size), tokenizer, drawn) == 1.0
    often = answers(lambda prefix: {token: float(prefix.count(token)) for token in set(prefix)}, size)
    assert abilities.ioi(often, tokenizer, drawn) == 0.0


def test_sentences_whose_names_are_several_tokens_do_not_count(tokenizer):
    drawn = [Sentence("Xquizoria met Bob. Bob saw Xquizoria", "Xquizoria", "Bob")]
    assert math.isnan(abilities.ioi(answers(seen, corpus.VOCABULARY), tokenizer, drawn))


def test_the_induction_gap_is_what_the_answer_gains():
    assert abilities.induction_gap(answers(after_the_same_token), 32, V, n_samples=4) == pytest.approx(5.0)
    assert abilities.induction_gap(answers(seen), 32, V, "A′", n_samples=4) == pytest.approx(0, abs=0.01)


def test_bits_per_byte_of_a_uniform_model(tokenizer):
    said = ["A short text, é included.", "Another one."]
    documents = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in said]
    blocks = corpus.blocks_of(documents, 32, bos=0, pad=1, special={0, 1})
    uniform = lambda tokens: torch.zeros(*tokens.shape, corpus.VOCABULARY)  # noqa: E731
    n_bytes, n_tokens = (sum(map(len, parts)) for parts in ([text.encode() for text in said], documents))
    found = abilities.abilities_of(uniform, tokenizer, blocks, [], gaps=(), periods=(2,), n_samples=2)
    assert found["held_out_loss"] == pytest.approx(math.log(corpus.VOCABULARY), abs=1e-4)
    assert found["bits_per_byte"] == pytest.approx(n_tokens * math.log2(corpus.VOCABULARY) / n_bytes, abs=1e-4)
