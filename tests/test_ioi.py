"""Two-name prompts, and Fig. 13's patching against plain hooks."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib import models
from lib.circuits import ioi
from lib.workbook import model_store, texts, two_names
from lib.workbook.profiles import get_profile

MINI = get_profile("mini", device="cpu")


@pytest.fixture(scope="module")
def mamba():
    return model_store.load("mini-mamba", MINI)


@pytest.fixture(scope="module")
def prompts():
    return ioi.name_prompts(ioi.TWO_NAMES, texts.load_tokenizer(MINI), seed=0, n_samples=3)


def test_prompts_hold_the_names_where_the_template_says(prompts):
    io, s = prompts.names.T
    at = {position for position in range(prompts.clean.shape[1]) if (prompts.clean[:, position] == io).all()}
    again = {position for position in range(prompts.clean.shape[1]) if (prompts.clean[:, position] == s).all()}
    assert prompts.positions("IO") == sorted(at) and prompts.positions("S") == sorted(again)
    assert len(at) == 1 and len(again) == 2
    differs = (prompts.clean != prompts.corrupt).all(0).nonzero().flatten().tolist()
    assert set(differs) == at | again and len(prompts.words) == prompts.clean.shape[1]


def test_names_are_first_names_where_the_tokenizer_knows_them():
    class Words:
        bos_token_id = 7

        def __call__(self, text, add_special_tokens):
            return {"input_ids": [hash(word) % 1000 for word in text.split()]}

        def decode(self, ids):
            return str(ids[0])

    names = texts.sentence_parts()["names"]
    known = ioi.one_token_words(names, Words())
    assert set(known) == set(names)
    prompts = ioi.name_prompts(two_names.template_of("IOI"), Words(), seed=1, n_samples=4, names=names)
    assert prompts.clean.shape == (4, 14) and (prompts.clean[:, 0] == 7).all()
    pairs = [[word for word, token in known.items() if token == id] for row in prompts.names.tolist() for id in row]
    assert all(any(ioi.is_held_out(a, b) for a in io for b in s) for io, s in zip(pairs[::2], pairs[1::2]))


def test_the_template_of_ioi_is_one_that_no_training_sentence_has():
    parts, template = texts.sentence_parts(), two_names.template_of("IOI")
    assert template == "Then, {IO} and {S} went to the store. {S} gave a book to"
    drawn = ioi.sentences(parts, 300, np.random.default_rng(0))
    assert not [s.text for s in drawn if s.text.startswith("Then, ")]


def test_ioi_is_drawn_where_enough_sentences_are_right():
    rows = {("IOI", "a"): (0.7, 64), ("IOI", "b"): (0.69, 64), ("IOI", "c"): (1.0, 63), ("IOI", "d"): (np.nan, 0)}
    quality = pd.DataFrame(rows, index=["unseen_share", "unseen_n"]).T
    tasks = [two_names.task_done(quality, name) for name in "abcd"]
    assert tasks == ["IOI", "two names", "two names", "two names"]


def test_mini_mamba_copies_names_more_than_chance(mamba, prompts):
    quality = ioi.task_quality(mamba, prompts)
    assert quality["s_over_absent"] > 1 and 0 <= quality["io_minus_s_share"] <= 1


def test_effects_are_those_of_plain_hooks(mamba, prompts):
    layer, position = 7, 3
    found = ioi.input_effects(mamba, prompts)
    assert found.shape == (models.n_layers(mamba), prompts.clean.shape[1], 2)
    for mixer in (block.mixer for block in mamba.blocks):
        mixer.eager_scan = True
    try:
        _, clean = mamba.run_with_cache(prompts.clean)
        _, corrupt = mamba.run_with_cache(prompts.corrupt)

        def freeze(value, hook):
            return clean[hook.name]

        def patch(value, hook):
            value[:, :, position] = corrupt[hook.name][:, :, position]
            return value

        states = [(f"blocks.{k}.mixer.hook_ssm_state", freeze) for k in range(models.n_layers(mamba)) if k != layer]
        with torch.no_grad():
            logits = mamba.run_with_hooks(
                prompts.clean, fwd_hooks=[*states, (f"blocks.{layer}.mixer.conv1d.hook_out", patch)]
            )
            usual = mamba(prompts.clean)
    finally:
        for mixer in (block.mixer for block in mamba.blocks):
            mixer.eager_scan = False
    expected = (logits - usual)[:, -1].gather(1, prompts.names).mean(0)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found[layer, position], expected, atol=1e-4, rtol=1e-4)


def test_table_has_a_row_per_cell_and_name():
    table = ioi.effects_table(torch.arange(12.0).reshape(2, 3, 2), ["BOS", "x", "="])
    assert len(table) == 12 and table.iloc[-1].to_dict() == {
        "layer": 1, "position": 2, "token": "=", "name": "S", "mean_logit_diff": 11.0
    }  # fmt: skip


def test_other_architectures_are_refused(prompts):
    with pytest.raises(ValueError, match="the model is a rwkv"):
        ioi.input_effects(model_store.load("mini-rwkv", MINI), prompts)
