"""The fast path patching against the plain one, and both where the answer is known."""

import pytest
import torch
from conftest import random_checkpoint

from lib import circuits, models
from lib.circuits import path_patching, plain_patching
from lib.circuits.prompts import ROLES, induction_prompts
from lib.models.families import family_of
from lib.workbook import model_store, texts
from lib.workbook.profiles import get_profile


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A trained mini model, or a family with random weights that are large enough to have effects."""
    profile = get_profile("mini", device="cpu")

    def load(name, n_layers):
        if name.startswith("mini-"):
            return model_store.load(name, profile)
        folder = random_checkpoint(name, tmp_path_factory.mktemp(name), n_layers)
        return models.load(folder, tokenizer=texts.load_tokenizer(profile))

    return load


@pytest.fixture(scope="module", params=["mini-mamba", "falcon_mamba"])
def mamba(request, load):
    return load(request.param, n_layers=8)


@pytest.fixture(scope="module")
def prompts():
    return induction_prompts(16, 4096, seed=0, n_samples=5)


def test_prompts_differ_in_one_token_and_repeat_a():
    for distance in get_profile("mini").circuit_distances:
        p = induction_prompts(distance, 4096, seed=1, n_samples=20)
        a1, b1 = p.positions["A1"], p.positions["B1"]
        assert p.clean.shape == (20, distance + 3) and p.clean.shape[1] - 1 - a1 == distance + 1
        assert (p.clean[:, a1] == p.clean[:, -1]).all() and (p.clean[:, b1] == p.target).all()
        for other, position in ((p.corrupt_b, b1), (p.corrupt_a, a1)):
            differs = other != p.clean
            assert differs[:, position].all() and differs.sum() == 20
            assert not (other[:, position, None] == p.clean).any()  # the new token is nowhere in the prompt
        assert p.random.shape == p.clean.shape and all(len(set(row.tolist())) == len(row) for row in p.random)
        assert all(len(set(row.tolist())) == distance + 2 for row in p.clean)


def test_prompts_are_seeded_and_need_room():
    same, other = (induction_prompts(8, 100, seed=s, n_samples=4) for s in (0, 1))
    assert torch.equal(same.clean, induction_prompts(8, 100, seed=0, n_samples=4).clean)
    assert not torch.equal(same.clean, other.clean)
    with pytest.raises(ValueError, match="distance=3"):
        induction_prompts(3, 100, seed=0)


def plain_effects(model, prompts, runs):
    clean = model(prompts.clean)[:, -1].detach()
    return torch.stack([plain_patching.effect(logits, clean, prompts.target) for logits in runs])


def test_table_1_is_the_plain_one(mamba, prompts):
    layers = range(models.n_layers(mamba))
    plain = [plain_patching.final_state_logits(mamba, prompts.clean, prompts.corrupt_b, k) for k in layers]
    found = circuits.final_state_effects(mamba, prompts.clean, prompts.corrupt_b, prompts.target, per_sample=True)
    expected = plain_effects(mamba, prompts, plain)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layer", [3, 5])
def test_table_2_is_the_plain_one(mamba, prompts, layer):
    positions = [prompts.positions[role] for role in ROLES]
    plain = [plain_patching.ssm_input_logits(mamba, prompts.clean, prompts.corrupt_b, layer, p) for p in positions]
    found = circuits.ssm_input_effects(
        mamba, prompts.clean, prompts.corrupt_b, prompts.target, layer, positions, per_sample=True
    )
    expected = plain_effects(mamba, prompts, plain)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("corrupt", ["corrupt_a", "corrupt_b"])
def test_tables_3_and_4_are_the_plain_ones(mamba, prompts, corrupt):
    positions = [prompts.positions[role] for role in ("A1", "B1", "B1+1")]
    through, other = prompts.positions["B1+1"], getattr(prompts, corrupt)
    plain = [plain_patching.conv_input_logits(mamba, prompts.clean, other, 5, p, through) for p in positions]
    found = circuits.conv_input_effects(
        mamba, prompts.clean, other, prompts.target, 5, positions, through, per_sample=True
    )
    expected = plain_effects(mamba, prompts, plain)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_nothing_corrupted_means_no_effect(mamba, prompts):
    found = circuits.final_state_effects(mamba, prompts.clean, prompts.clean, prompts.target)
    torch.testing.assert_close(found, torch.zeros(8), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["mini-mamba", "mini-rwkv", "mini-pythia"])
def test_single_position_pass_gives_the_model_s_own_logit(name, prompts):
    model = model_store.load(name, get_profile("mini", device="cpu"))
    architecture = family_of(model)
    with torch.no_grad():
        cache = architecture.run(prompts.clean)
        rows = cache["blocks.0.hook_in"][:, -1][None]
        for layer in range(len(architecture.blocks)):
            read = architecture.mixer_output(cache, layer, architecture.inputs(cache, layer))
            rows = architecture.step(cache, layer, rows, read)
        found = architecture.logits_of(rows, prompts.target)[0]
    expected = path_patching.clean_logits(model, prompts.clean, prompts.target)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_samples_in_chunks_are_the_same_samples(mamba, monkeypatch):
    p = induction_prompts(8, 4096, seed=3, n_samples=7)
    whole = circuits.final_state_effects(mamba, p.clean, p.corrupt_b, p.target, per_sample=True)
    monkeypatch.setattr(path_patching, "HELD", 3 * p.clean[0].numel() * mamba.cfg.d_model)
    torch.testing.assert_close(
        circuits.final_state_effects(mamba, p.clean, p.corrupt_b, p.target, per_sample=True),
        whole,
        atol=1e-5,
        rtol=1e-4,
    )
    mean = circuits.final_state_effects(mamba, p.clean, p.corrupt_b, p.target)
    torch.testing.assert_close(whole.mean(1), mean, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------- the other architectures


@pytest.fixture(scope="module", params=["mini-pythia", "gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3"])
def transformer(request, load):
    return load(request.param, n_layers=4)


@pytest.fixture(scope="module")
def rwkv():
    return model_store.load("mini-rwkv", get_profile("mini", device="cpu"))


def with_hooks(model, tokens, hooks):
    """Logits at the last position; hooks are pairs of a name and a function that edits the value in place."""

    def edited(change):
        def edit(value, hook):
            change(value)
            return value

        return edit

    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=[(name, edited(change)) for name, change in hooks])[:, -1]


def put(value, where):
    """A hook's change: these positions (and heads) come from another run."""

    def change(own):
        own[where] = value[where]

    return change


def test_rwkv_inputs_are_the_plain_ones(rwkv, prompts):
    positions, layers = [1, 2, 3], range(models.n_layers(rwkv))
    _, clean = rwkv.run_with_cache(prompts.clean)
    _, corrupt = rwkv.run_with_cache(prompts.corrupt_b)
    earlier = (slice(None), slice(None, -1))
    frozen = [
        (f"blocks.{k}.time_mix.output.hook_in", put(clean[f"blocks.{k}.time_mix.output.hook_in"], earlier))
        for k in layers
    ]
    for layer in layers:
        found = circuits.mixer_input_effects(
            rwkv, prompts.clean, prompts.corrupt_b, prompts.target, layer, positions, per_sample=True
        )
        names = [f"blocks.{layer}.time_mix.{part}.hook_out" for part in ("key", "value")]
        runs = [
            with_hooks(rwkv, prompts.clean, [(n, put(corrupt[n], (slice(None), p))) for n in names] + frozen)
            for p in positions
        ]
        torch.testing.assert_close(found, plain_effects(rwkv, prompts, runs), atol=1e-4, rtol=1e-4)
    assert found[1].abs().max() > 0.1  # the last layer's, at B1


def test_rwkv_token_shift_carries_both_tokens(rwkv, prompts):
    a1, b1 = prompts.positions["A1"], prompts.positions["B1"]
    for corrupt, position in ((prompts.corrupt_a, a1), (prompts.corrupt_b, b1)):
        arguments = (rwkv, prompts.clean, corrupt, prompts.target, 0)
        through = circuits.conv_input_effects(*arguments, [position], b1, per_sample=True)
        whole = circuits.mixer_input_effects(*arguments, [b1], per_sample=True)
        torch.testing.assert_close(through, whole, atol=1e-5, rtol=1e-4)  # in layer 0 nothing else can differ at B1
        assert through.abs().max() > 1e-4


def test_transformer_inputs_are_the_plain_ones(transformer, prompts):
    """At single positions, and of Table 1 at all earlier ones."""
    positions, layers, layer = [2, 3, 4], range(models.n_layers(transformer)), 2
    _, clean = transformer.run_with_cache(prompts.clean)
    _, corrupt = transformer.run_with_cache(prompts.corrupt_b)
    z = [f"blocks.{k}.attn.hook_z" for k in layers]
    frozen = [(z[k], put(clean[z[k]], (slice(None), slice(None, -1 if k == layer else None)))) for k in layers]
    arguments = (transformer, prompts.clean, prompts.corrupt_b, prompts.target)
    found = circuits.mixer_input_effects(*arguments, layer, positions, per_sample=True)
    names = [f"blocks.{layer}.attn.hook_{part}" for part in ("k", "v")]
    runs = [
        with_hooks(transformer, prompts.clean, [(n, put(corrupt[n], (slice(None), p))) for n in names] + frozen)
        for p in (*positions, slice(None, -1))
    ]
    expected = plain_effects(transformer, prompts, runs)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected[:-1], atol=1e-4, rtol=1e-4)
    found = circuits.final_state_effects(*arguments, per_sample=True)
    torch.testing.assert_close(found[layer], expected[-1], atol=1e-4, rtol=1e-4)


def test_heads_are_the_plain_ones(transformer, prompts):
    _, clean = transformer.run_with_cache(prompts.clean)
    _, corrupt = transformer.run_with_cache(prompts.corrupt_b)
    z = [f"blocks.{k}.attn.hook_z" for k in range(models.n_layers(transformer))]
    frozen = [(name, put(clean[name], slice(None))) for name in z]
    found = circuits.head_effects(transformer, prompts.clean, prompts.corrupt_b, prompts.target, per_sample=True)
    for layer, head in ((1, 0), (2, 3), (3, 1)):
        patch = (z[layer], put(corrupt[z[layer]], (slice(None), -1, head)))
        expected = plain_effects(transformer, prompts, [with_hooks(transformer, prompts.clean, [*frozen, patch])])[0]
        torch.testing.assert_close(found[layer, head], expected, atol=1e-4, rtol=1e-4)
    assert found.abs().max() > 0.1


def test_head_to_head_is_the_plain_one(transformer, prompts):
    receiver, sender = (2, 1), (0, 2)
    _, clean = transformer.run_with_cache(prompts.clean)
    _, corrupt = transformer.run_with_cache(prompts.corrupt_a)
    z = [f"blocks.{k}.attn.hook_z" for k in range(models.n_layers(transformer))]
    frozen = [(name, put(clean[name], slice(None))) for name in z]
    patch = (z[sender[0]], put(corrupt[z[sender[0]]], (slice(None), slice(None), sender[1])))
    reached = {}

    def keep(value, hook):
        reached["z"] = value.clone()

    with torch.no_grad():
        hooks = [(n, lambda v, hook, c=c: c(v)) for n, c in [*frozen[: receiver[0]], patch]]
        transformer.run_with_hooks(prompts.clean, fwd_hooks=[*hooks, (z[receiver[0]], keep)])
    arrive = (z[receiver[0]], put(reached["z"], (slice(None), -1, receiver[1])))
    expected = plain_effects(transformer, prompts, [with_hooks(transformer, prompts.clean, [*frozen, arrive])])[0]
    found = circuits.head_to_head_effects(
        transformer, prompts.clean, prompts.corrupt_a, prompts.target, receiver, per_sample=True
    )
    assert found.shape == (2, 4, 5) and found.abs().max() > 1e-2
    torch.testing.assert_close(found[sender], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.ill_typed
def test_wrong_models_and_prompts_are_said(load, prompts):
    mamba, pythia = load("mini-mamba", n_layers=8), load("mini-pythia", n_layers=4)
    arguments = (prompts.clean, prompts.corrupt_b, prompts.target)
    with pytest.raises(ValueError, match="the model is a gpt_neox"):
        circuits.ssm_input_effects(pythia, *arguments, 0, [1])
    with pytest.raises(ValueError, match="a gpt_neox mixes no neighbouring positions"):
        circuits.conv_input_effects(pythia, *arguments, 0, [1], 2)
    with pytest.raises(ValueError, match="the model is a mamba"):
        circuits.head_effects(mamba, *arguments)
    with pytest.raises(ValueError, match="do not fit together"):
        circuits.final_state_effects(mamba, prompts.clean, prompts.corrupt_b[:, 1:], prompts.target)
