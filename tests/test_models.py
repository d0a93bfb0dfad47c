"""The bridge against plain transformers, the shared vocabulary, and the measures of a model's quality."""

import logging
import math

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, GPTJConfig, GPTJForCausalLM

from lib import corpus, models
from lib.models import families, hub, recipes, scans
from lib.workbook import model_store, sizes, texts

ROLES = ("pythia", "mamba", "rwkv")


@pytest.fixture(scope="module")
def tokens():
    return torch.from_numpy(np.random.default_rng(0).integers(2, corpus.VOCABULARY, (3, 30)))


@pytest.fixture(scope="module")
def loaded(smoke):
    return {role: model_store.load(getattr(smoke, role), smoke) for role in ROLES}


@pytest.mark.parametrize("role", ROLES)
def test_logits_are_those_of_plain_transformers(role, loaded, smoke, tokens):
    folder = model_store.folder_of(getattr(smoke, role), smoke)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(loaded[role](tokens), plain(tokens).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("role", ROLES)
@torch.no_grad()
def test_resid_post_is_what_the_block_returns_in_plain_transformers(role, loaded, smoke, tokens):
    plain = AutoModelForCausalLM.from_pretrained(
        model_store.folder_of(getattr(smoke, role), smoke), dtype=torch.float32
    )
    base, returned = plain.base_model, []
    block = (base.blocks if role == "rwkv" else base.layers)[1]
    block.register_forward_hook(lambda module, inputs, output: returned.append(output))
    plain(tokens)
    output = returned[0][0] if isinstance(returned[0], tuple) else returned[0]
    _, cache = loaded[role].run_with_cache(tokens, names_filter=[models.resid_post(1)])
    torch.testing.assert_close(cache[models.resid_post(1)], output, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("role", ROLES)
@torch.no_grad()
def test_neurons_explain_what_the_layer_adds(role, loaded, tokens):
    """Neurons are the last non-linear step: the layer's own output weights turn them into its output."""
    model, block = loaded[role], "blocks.1"
    where = models.neurons(model, 1)
    out = {"pythia": "mlp.out.hook_out", "mamba": "mixer.out_proj.hook_in", "rwkv": "channel_mix.out.hook_out"}[role]
    _, cache = model.run_with_cache(tokens, names_filter=[f"{block}.{out}", *where.hooks])
    neurons, after = where.read(cache), cache[f"{block}.{out}"]
    layers = model.original_model.base_model
    if role == "mamba":
        c, gate = neurons.chunk(2, dim=-1)
        mixer = layers.layers[1].mixer
        dt, B, C = mixer.x_proj(c).split([mixer.time_step_rank, 16, 16], dim=-1)
        y = scans.selective_scan(c, torch.nn.functional.softplus(mixer.dt_proj(dt)), -mixer.A_log.exp(), B, C)
        torch.testing.assert_close((y + mixer.D * c) * gate, after, atol=1e-5, rtol=1e-5)
        return
    weights = layers.layers[1].mlp.dense_4h_to_h if role == "pythia" else layers.blocks[1].feed_forward.value
    torch.testing.assert_close(weights(neurons), after, atol=1e-5, rtol=1e-5)
    if role == "rwkv":
        assert (neurons >= 0).all()


def test_an_unknown_family_is_refused_wherever_its_parts_are_asked_for(tmp_path, smoke):
    """A GPT-J, sound in itself; nothing of it may be taken for another family's."""
    source = GPTJForCausalLM(GPTJConfig(vocab_size=50, n_positions=16, n_embd=8, n_layer=1, n_head=2, rotary_dim=2))
    source.save_pretrained(tmp_path)
    model = TransformerBridge.boot_transformers(str(tmp_path), hf_model=source, tokenizer=texts.load_tokenizer(smoke))
    assert model(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, 50)
    known = "falcon_mamba, gpt2, gpt_neox, llama, mamba, mamba2, mistral, qwen2, qwen3, rwkv"
    said = f"is a gptj; the workbook knows {known}."
    for ask in (models.family_of, lambda model: models.neurons(model, 0)):
        with pytest.raises(ValueError, match=said):
            ask(model)
    for ask in (model_store.load, sizes.config_of, sizes.shape_of):
        with pytest.raises(models.ModelNotFound, match=f"{tmp_path} {said}"):
            ask(str(tmp_path), smoke)


def test_a_family_is_known_as_soon_as_it_is_registered(monkeypatch, tmp_path, smoke):
    """GPT-J, which nothing else in the library has heard of."""
    known = families.families()
    assert all(kind == family.model_type for kind, family in known.items())
    monkeypatch.setattr(families, "_REGISTERED", dict(known))
    source = GPTJForCausalLM(GPTJConfig(vocab_size=50, n_positions=16, n_embd=8, n_layer=1, n_head=2, rotary_dim=2))
    source.save_pretrained(tmp_path)
    with pytest.raises(models.ModelNotFound, match="is a gptj"):
        models.load(tmp_path, tokenizer=texts.load_tokenizer(smoke))

    @families.register
    class GPTJ(known["gpt2"]):
        model_type = "gptj"

    model = models.load(tmp_path, tokenizer=texts.load_tokenizer(smoke))
    assert isinstance(models.family_of(model), GPTJ) and models.neurons(model, 0).hooks == ("blocks.0.mlp.out.hook_in",)
    assert model.cfg.model_name == str(tmp_path)


def test_the_libraries_log_levels_are_what_they_were(smoke):
    logger = logging.getLogger("transformers")
    before = logger.level
    model_store.load(smoke.pythia, smoke)
    assert logger.level == before


def test_a_model_that_is_nowhere_is_one_sentence(smoke, monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise OSError("We couldn't connect to the hub\nand more lines")

    monkeypatch.setattr(hub, "CACHE", tmp_path)
    monkeypatch.setattr(hub.HfApi, "snapshot_download", offline)
    with pytest.raises(
        models.ModelNotFound, match="cannot load no/such-model: .*couldn't connect to the hub; .*`hf download"
    ):
        model_store.load("no/such-model", smoke)


def test_an_untrained_mini_model_names_the_command(smoke, monkeypatch, tmp_path):
    monkeypatch.setattr(recipes, "MODELS", tmp_path)
    with pytest.raises(models.ModelNotFound, match="python -m lib.zoo mini-rwkv"):
        model_store.load("mini-rwkv", smoke)


def test_held_out_loss_of_a_uniform_guess_is_the_logarithm_of_the_vocabulary():
    blocks = corpus.blocks_of([[5, 6, 7, 8], [9]], 4, bos=0, pad=1, special={0, 1})
    uniform = lambda t: torch.zeros(*t.shape, 4096)  # noqa: E731
    assert models.held_out_loss(uniform, blocks) == pytest.approx(math.log(4096), abs=1e-5)


def test_held_out_loss_counts_only_positions_that_count():
    blocks = corpus.blocks_of([[5, 6, 7, 8], [9]], 4, bos=0, pad=1, special={0, 1})

    def knows_all_but_padding(tokens):
        logits = torch.zeros(*tokens.shape, 4096)
        logits[:, :-1].scatter_(2, tokens[:, 1:, None], 50.0)
        logits[..., 1] = -50.0
        return logits

    assert models.held_out_loss(knows_all_but_padding, blocks) < 1e-6


@pytest.mark.parametrize("amx, bf16, capability, expected", [
    (True, False, "AVX512", torch.bfloat16), (False, True, "AVX512", torch.bfloat16),
    (False, False, "AVX512", torch.float32),
    (True, True, "AVX2", torch.float32), (False, False, "DEFAULT", torch.float32),
])  # fmt: skip
def test_bf16_only_where_the_processor_has_it_and_torch_may_use_it(amx, bf16, capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert models.fast_dtype("cpu") == expected
    assert models.fast_dtype("cuda") == torch.bfloat16
