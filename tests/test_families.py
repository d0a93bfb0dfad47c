"""Every family with random weights against plain transformers: what is loaded, residual streams, neurons."""

import numpy as np
import pytest
import torch
from conftest import random_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.mamba2 import modeling_mamba2

from lib import circuits, corpus, models
from lib.circuits.prompts import induction_prompts
from lib.models.families import Patchable, families
from lib.workbook import texts

ATTENTION = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3")
FAMILIES = (*ATTENTION, "falcon_mamba", "mamba", "mamba2", "rwkv")


@pytest.fixture(scope="module")
def tokenizer(smoke):
    return texts.load_tokenizer(smoke)


@pytest.fixture(scope="module", params=FAMILIES)
def both(request, tokenizer, tmp_path_factory):
    """A model as the library loads it, and the same in plain transformers."""
    folder = random_checkpoint(request.param, tmp_path_factory.mktemp(request.param))
    return models.load(folder, tokenizer=tokenizer), plain_model(folder)


def plain_model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def blocks():
    rows = [np.random.default_rng(k).integers(2, corpus.VOCABULARY, n).tolist() for k, n in enumerate((20, 31, 8))]
    return corpus.blocks_of(rows, 24, bos=0, pad=1, special={0, 1})


def test_all_families_are_tested_here():
    assert set(FAMILIES) == set(families())


@torch.no_grad()
def test_logits_and_residual_streams_are_those_of_plain_transformers(both, blocks):
    model, plain = both
    tokens, mask = torch.from_numpy(blocks.tokens.astype(np.int64)), torch.from_numpy(blocks.mask)
    run = plain(tokens, output_hidden_states=True, use_cache=False)
    assert run.logits.std() > 0.3
    torch.testing.assert_close(model(tokens), run.logits, atol=1e-4, rtol=1e-4)
    parts = list(models.iterate_activations(model, blocks, range(3), batch_blocks=2, exact=True))
    found = [torch.cat([part[layer] for part in parts]) for layer in range(3)]
    found[2] = model.ln_final(found[2])  # transformers has the last one after the norm
    embeddings_first = plain.config.model_type in ATTENTION
    for layer, own in zip(range(3), found, strict=True):
        state = run.hidden_states[layer + embeddings_first] if layer < 2 else run.hidden_states[-1]
        torch.testing.assert_close(own, state[mask], atol=1e-5, rtol=1e-5)


NEURONS_GO_INTO = dict.fromkeys(ATTENTION, "model.layers.1.mlp.down_proj") | {
    "gpt2": "transformer.h.1.mlp.c_proj", "gpt_neox": "gpt_neox.layers.1.mlp.dense_4h_to_h",
    "rwkv": "rwkv.blocks.1.feed_forward.value",
    "falcon_mamba": "backbone.layers.1.mixer.x_proj", "mamba": "backbone.layers.1.mixer.x_proj",
}  # fmt: skip
"""Of layer 1, in plain transformers."""


@torch.no_grad()
def test_neurons_are_what_plain_transformers_computes(both, monkeypatch):
    model, plain = both
    kind, seen, gate = plain.config.model_type, [], []
    if kind == "mamba2":
        scan = modeling_mamba2.mamba2_chunk_scan
        keep = lambda x, *others, **settings: seen.append(x.flatten(2)) or scan(x, *others, **settings)  # noqa: E731
        monkeypatch.setattr(modeling_mamba2, "mamba2_chunk_scan", keep)
        plain.backbone.layers[1].mixer.norm.register_forward_pre_hook(lambda module, inputs: gate.append(inputs[1]))
    else:
        module = plain.get_submodule(NEURONS_GO_INTO[kind])
        module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    if kind in ("mamba", "falcon_mamba"):
        in_proj = plain.backbone.layers[1].mixer.in_proj
        in_proj.register_forward_hook(lambda module, inputs, output: gate.append(output.chunk(2, dim=-1)[1]))
    tokens = torch.from_numpy(np.random.default_rng(1).integers(2, corpus.VOCABULARY, (2, 20)))
    plain(tokens, use_cache=False)
    expected = torch.cat([seen[1 if kind == "mamba2" else 0], *map(torch.nn.functional.silu, gate)], dim=-1)
    where = models.neurons(model, 1)
    _, cache = model.run_with_cache(tokens, names_filter=list(where.hooks))
    torch.testing.assert_close(where.read(cache), expected, atol=1e-5, rtol=1e-5)
    assert expected.shape[-1] == families()[kind].n_neurons(plain.config) and expected.std() > 0.05


def test_path_patching_is_offered_or_refused_by_name(both):
    model, plain = both
    prompts = induction_prompts(8, corpus.VOCABULARY, seed=0, n_samples=2)
    asked = (model, prompts.clean, prompts.corrupt_b, prompts.target)
    if isinstance(models.family_of(model), Patchable):
        assert circuits.final_state_effects(*asked).abs().max() > 1e-3
        if plain.config.model_type == "llama":  # all that the notebooks on circuits ask of a Transformer
            frame, heads = circuits.path_frame(model, {8: prompts}, 8), circuits.head_frame(model, {8: prompts})
            assert set(frame["measure"]) == {"logit", "state", "input"} and heads["head"].nunique() == 4
            assert circuits.patterns(model, prompts.clean, 1).shape == (4, 11, 11)
        return
    said = "path patching is not offered for a mamba2, only for falcon_mamba, gpt2, gpt_neox, llama, "
    for ask in (circuits.final_state_effects, lambda *asked: circuits.mixer_input_effects(*asked, 0, [1])):
        with pytest.raises(ValueError, match=said):
            ask(*asked)
    with pytest.raises(ValueError, match=said):
        circuits.path_frame(model, {8: prompts}, 8)


# ------------------------------------------------------------------------------------------- files of the hub


def rewrite(folder, tensors):
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_gpt2_as_the_hub_has_it(tokenizer, tmp_path):
    """Names without a prefix, masks among the weights, no weights for the head; matrices are input by output."""
    folder = random_checkpoint("gpt2", tmp_path, tie_word_embeddings=True)
    tensors = {
        name.removeprefix("transformer."): value for name, value in load_file(folder / "model.safetensors").items()
    }
    assert "lm_head.weight" not in tensors and tensors["h.0.attn.c_attn.weight"].shape == (32, 96)
    tokens = torch.arange(2, 22)[None]
    expected = plain_model(folder)(tokens).logits
    masks = {f"h.{k}.attn.bias": torch.ones(128, 128).tril()[None, None] for k in range(3)}
    rewrite(folder, tensors | masks)
    torch.testing.assert_close(models.load(folder, tokenizer=tokenizer)(tokens), expected, atol=1e-4, rtol=1e-4)
    rewrite(folder, tensors | {"h.0.attn.c_attn.weight": tensors["h.0.attn.c_attn.weight"].T.contiguous()})
    with pytest.raises(models.ModelNotFound, match="c_attn.weight has shape"):
        models.load(folder, tokenizer=tokenizer)


def test_a_llama_with_tied_embeddings_in_bfloat16(tokenizer, tmp_path):
    folder = random_checkpoint("llama", tmp_path, tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in tensors
    rewrite(folder, {name: value.bfloat16() for name, value in tensors.items()})
    tokens = torch.arange(2, 22)[None]
    model = models.load(folder, tokenizer=tokenizer)
    torch.testing.assert_close(model(tokens), plain_model(folder)(tokens).logits, atol=1e-4, rtol=1e-4)
    head = model.original_model.get_output_embeddings().weight
    assert torch.equal(head, model.original_model.get_input_embeddings().weight)
    tensors["model.layers.0.self_attn.k_proj.weight"] = tensors["model.layers.0.self_attn.q_proj.weight"].clone()
    rewrite(folder, tensors)
    with pytest.raises(models.ModelNotFound, match=r"k_proj.weight has shape \[32, 32\], not \[16, 32\]"):
        models.load(folder, tokenizer=tokenizer)
