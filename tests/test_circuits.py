"""The fast path patching against the plain one, and both where the answer is known."""

import pytest
import torch

from lib import circuits, models, plain_patching
from lib.profiles import get_profile
from lib.prompts import DISTANCES, ROLES, induction_prompts


@pytest.fixture(scope="module")
def mamba():
    """The trained mini model: with random weights there would be no effect to compare."""
    return models.load("mini-mamba", get_profile("mini", device="cpu"))


@pytest.fixture(scope="module")
def prompts():
    return induction_prompts(16, 4096, seed=0, n_samples=5)


def test_prompts_differ_in_one_token_and_repeat_a():
    for distance in DISTANCES:
        p = induction_prompts(distance, 4096, seed=1, n_samples=20)
        a1, b1 = p.positions["A1"], p.positions["B1"]
        assert p.clean.shape == (20, distance + 3) and p.clean.shape[1] - 1 - a1 == distance + 1
        assert (p.clean[:, a1] == p.clean[:, -1]).all() and (p.clean[:, b1] == p.target).all()
        for other, position in ((p.corrupt_b, b1), (p.corrupt_a, a1)):
            differs = other != p.clean
            assert differs[:, position].all() and differs.sum() == 20
            assert not (other[:, position, None] == p.clean).any()  # the new token is nowhere in the prompt
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
    assert expected.abs().max() > 1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layer", [3, 5])
def test_table_2_is_the_plain_one(mamba, prompts, layer):
    positions = [prompts.positions[role] for role in ROLES]
    plain = [plain_patching.ssm_input_logits(mamba, prompts.clean, prompts.corrupt_b, layer, p) for p in positions]
    found = circuits.ssm_input_effects(
        mamba, prompts.clean, prompts.corrupt_b, prompts.target, layer, positions, per_sample=True
    )
    torch.testing.assert_close(found, plain_effects(mamba, prompts, plain), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("corrupt", ["corrupt_a", "corrupt_b"])
def test_tables_3_and_4_are_the_plain_ones(mamba, prompts, corrupt):
    positions = [prompts.positions[role] for role in ("A1", "B1", "B1+1")]
    through, other = prompts.positions["B1+1"], getattr(prompts, corrupt)
    plain = [plain_patching.conv_input_logits(mamba, prompts.clean, other, 5, p, through) for p in positions]
    found = circuits.conv_input_effects(
        mamba, prompts.clean, other, prompts.target, 5, positions, through, per_sample=True
    )
    torch.testing.assert_close(found, plain_effects(mamba, prompts, plain), atol=1e-4, rtol=1e-4)


def test_nothing_corrupted_means_no_effect(mamba, prompts):
    found = circuits.final_state_effects(mamba, prompts.clean, prompts.clean, prompts.target)
    torch.testing.assert_close(found, torch.zeros(8), atol=1e-4, rtol=0)


def test_single_position_pass_gives_the_model_s_own_logit(mamba, prompts):
    run = circuits._run(mamba, prompts.clean)
    resid = run.resid[0][None]
    with torch.no_grad():
        for layer, block in enumerate(mamba.original_model.backbone.layers):
            state = circuits.final_state(block.mixer, run.c[layer])
            resid = resid + circuits._step(block, resid, state[None], run.x[layer][:, -4:-1])
        found = circuits._logit(mamba, resid, prompts.target)[0]
    torch.testing.assert_close(found, circuits.clean_logits(mamba, prompts.clean, prompts.target), atol=1e-4, rtol=1e-4)


def test_samples_in_chunks_are_the_same_samples(mamba, monkeypatch):
    p = induction_prompts(8, 4096, seed=3, n_samples=7)
    whole = circuits.final_state_effects(mamba, p.clean, p.corrupt_b, p.target, per_sample=True)
    monkeypatch.setattr(circuits, "CHUNK", 3)
    torch.testing.assert_close(
        circuits.final_state_effects(mamba, p.clean, p.corrupt_b, p.target, per_sample=True), whole, atol=1e-5, rtol=1e-4
    )
    mean = circuits.final_state_effects(mamba, p.clean, p.corrupt_b, p.target)
    torch.testing.assert_close(whole.mean(1), mean, atol=1e-5, rtol=1e-4)


def test_wrong_models_and_prompts_are_said(mamba, prompts):
    pythia = models.load("mini-pythia", get_profile("mini", device="cpu"))
    with pytest.raises(ValueError, match="the model is a gpt_neox"):
        circuits.final_state_effects(pythia, prompts.clean, prompts.corrupt_b, prompts.target)
    with pytest.raises(ValueError, match="do not fit together"):
        circuits.final_state_effects(mamba, prompts.clean, prompts.corrupt_b[:, 1:], prompts.target)
