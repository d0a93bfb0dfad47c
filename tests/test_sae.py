"""The SAE's start, its step on active features against autograd, training, metrics, and its files."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lib import models
from lib.corpus import Blocks
from lib.sae import training as sae_training
from lib.sae.autoencoder import CFG, WEIGHTS, SaeInfo, SparseAutoencoder, evaluate_saes
from lib.sae.dense_step import dense_step, gpu_step
from lib.sae.sparse_step import SparseStep
from lib.sae.training import _Trainee, train_saes
from lib.workbook import model_store

D_MODEL, D_SAE = 32, 256


@pytest.fixture(scope="module")
def model(smoke):
    return model_store.load("smoke-pythia", smoke)


@pytest.fixture(scope="module")
def blocks():
    tokens = np.random.default_rng(0).integers(2, 200, (120, 16), dtype=np.int32)
    tokens[:, 0] = 0
    mask = np.zeros(tokens.shape, bool)
    mask[:, 1:] = True
    return Blocks(tokens, mask, np.arange(120, dtype=np.int32))


@pytest.fixture(scope="module")
def small(smoke):
    """24 steps, in refills of 4 or fewer."""
    return smoke.model_copy(update=dict(sae_tokens=24 * 128, sae_batch_size=128, buffer_tokens=640))


def sparse_data(n_tokens, seed=0):
    """Sums of a few of 100 fixed random directions with positive weights."""
    random = torch.Generator().manual_seed(seed)
    directions = torch.randn(100, D_MODEL, generator=torch.Generator().manual_seed(99))
    codes = torch.rand(n_tokens, 100, generator=random) * (torch.rand(n_tokens, 100, generator=random) < 0.05)
    return codes @ directions


# ------------------------------------------------------------------------------------------ definition


def test_start_is_the_paper_s():
    sae = SparseAutoencoder(D_MODEL, D_SAE)
    norms = sae.W_dec.detach().norm(dim=1)
    torch.testing.assert_close(norms, torch.full((D_SAE,), math.sqrt(2 * D_MODEL / D_SAE)))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert not sae.b_enc.any() and not sae.b_dec.any()
    other = SparseAutoencoder(D_MODEL, D_SAE, SaeInfo(seed=1))
    assert not torch.equal(sae.W_dec, other.W_dec)


def test_paper_s_expansion_starts_at_a_quarter():
    norms = SparseAutoencoder(16, 32 * 16).W_dec.detach().norm(dim=1)
    torch.testing.assert_close(norms, torch.full((512,), 0.25))


def test_forward_is_the_equation():
    sae, x = SparseAutoencoder(D_MODEL, D_SAE), torch.randn(5, D_MODEL)
    with torch.no_grad():
        sae.b_enc.uniform_(-1, 1)
        sae.b_dec.uniform_(-1, 1)
        f = np.maximum(x.numpy() @ sae.W_enc.numpy() + sae.b_enc.numpy(), 0)
        np.testing.assert_allclose(sae.encode(x).numpy(), f, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(sae(x).numpy(), f @ sae.W_dec.numpy() + sae.b_dec.numpy(), rtol=1e-5, atol=1e-5)


def test_folded_scale_leaves_features_and_scales_reconstruction():
    sae, x = SparseAutoencoder(D_MODEL, D_SAE), torch.randn(5, D_MODEL)
    with torch.no_grad():
        f, x_hat = sae.encode(3 * x), sae(3 * x)
        sae.fold_scale(3)
        torch.testing.assert_close(sae.encode(x), f)
        torch.testing.assert_close(sae(x), x_hat / 3)


# ------------------------------------------------------------------------------------------------ step


def trainee(smoke, dtype=torch.float32, seed=0):
    """An SAE away from its start: decoder norms differ, biases are not zero."""
    profile = smoke.model_copy(update=dict(expansion=D_SAE // D_MODEL, target_l0=None))
    t = _Trainee(SaeInfo(), D_MODEL, profile, torch.device("cpu"))
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        t.sae.W_dec *= 0.5 + torch.rand(D_SAE, 1, generator=random)
        t.sae.b_enc.uniform_(-0.3, 0, generator=random)
        t.sae.b_dec.normal_(generator=random)
    t.sae.to(dtype)
    for p in t.sae.parameters():
        t.adam.state[p] |= {m: t.adam.state[p][m].to(dtype) for m in sae_training.MOMENTS}
    t.adam.param_groups[0]["lr"] = 1e-3
    return t


@pytest.mark.parametrize("bf16", [False, True])
def test_sparse_step_is_autograd_s_in_float64(smoke, bf16):
    """After one step Adam's first moment is a tenth of the gradient, and the weights show Adam itself."""
    x = torch.randn(500, D_MODEL, generator=torch.Generator().manual_seed(3))
    ours, reference = trainee(smoke), trainee(smoke, torch.float64)
    sparse = SparseStep(512, D_MODEL, D_SAE, bf16=bf16)
    for l1 in (2.0, 3.0):
        stats = sparse(ours.sae, ours.adam, x, l1)
        expected = dense_step(reference.sae, reference.adam, x.double(), l1)
        np.testing.assert_allclose(stats, [float(value) for value in expected], rtol=1e-5)
    for name, value in reference.tensors().items():
        found = ours.tensors()[name].double()
        assert (found - value).norm() / value.norm() < 1e-5, name


@pytest.mark.parametrize("fused", [False, True])
def test_gpu_step_is_autograd_s(smoke, fused):
    """Its equations, on the CPU in float32 and with the fused Adam that it gets on a GPU."""
    x = torch.randn(500, D_MODEL, generator=torch.Generator().manual_seed(3))
    ours, reference = trainee(smoke), trainee(smoke, torch.float64)
    ours.adam.param_groups[0]["fused"] = fused
    for l1 in (2.0, 3.0):
        stats = gpu_step(ours.sae, ours.adam, x, l1, torch.float32)
        expected = dense_step(reference.sae, reference.adam, x.double(), l1)
        np.testing.assert_allclose(stats, [float(value) for value in expected], rtol=1e-5)
    for name, value in reference.tensors().items():
        found = ours.tensors()[name].double()
        assert (found - value).norm() / value.norm() < 1e-5, name


def test_feature_that_never_fires_takes_adam_s_step_too(smoke):
    x = sparse_data(256)
    ours, reference = trainee(smoke), trainee(smoke)
    sparse = SparseStep(256, D_MODEL, D_SAE)
    for t, step in ((ours, sparse), (reference, dense_step)):
        step(t.sae, t.adam, x, 2.0)
        with torch.no_grad():
            t.sae.b_enc[:8] = -100
        step(t.sae, t.adam, x, 2.0)
    torch.testing.assert_close(ours.sae.W_enc, reference.sae.W_enc, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fast, tolerance", [("sparse", 5e-3), ("gpu", 2e-2)])
def test_loss_curve_is_the_dense_one_s(smoke, monkeypatch, fast, tolerance):
    """The GPU's step rounds every product to bfloat16, the sparse step none that counts."""
    steps, step = 120, gpu_step if fast == "gpu" else SparseStep(256, D_MODEL, D_SAE)
    monkeypatch.setattr(sae_training, "SPARSE_SHARE", 1)
    curves = []
    for fast in (step, None):
        t = trainee(smoke)
        t.measure(sparse_data(2048))
        stats = [t.train_on(sparse_data(256, seed=s), s, steps, fast) for s in range(steps)]
        curves.append(np.array([[float(v) for v in s] for s in stats]))
    np.testing.assert_allclose(curves[0], curves[1], rtol=tolerance)
    assert curves[0][-1, 0] < 0.5 * curves[0][:, 0].max()


def test_l1_follows_the_target_and_rests_in_the_decay(smoke):
    profile = smoke.model_copy(update=dict(expansion=8, target_l0=6.0))
    t, sparse, steps = _Trainee(SaeInfo(), D_MODEL, profile, torch.device("cpu")), SparseStep(256, D_MODEL, D_SAE), 600
    t.measure(sparse_data(2048))
    l1 = []
    for step in range(steps):
        stats = t.train_on(sparse_data(256, seed=step), step, steps, sparse)
        l1.append(t.l1)
    assert 4 < stats.l0 < 8
    assert l1[10] == profile.l1_coefficient and l1[-1] == l1[-100] != l1[200]


# -------------------------------------------------------------------------------------------- training


def test_training_serves_all_layers_and_seeds(model, blocks, small):
    saes, history = train_saes(model, blocks, small, seeds=(0, 1), progress=False)
    assert [(sae.info.seed, sae.info.layer) for sae in saes] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(history) == 4 * 24 and history.loss.notna().all()
    first, last = (history[history.step == step].explained_variance.mean() for step in (1, 24))
    assert last > first
    assert all(sae.info.training["scale"] > 0 for sae in saes)


@torch.no_grad()
def test_training_needs_no_gradient_mode(model, blocks, small):
    saes, _ = train_saes(model, blocks, small.model_copy(update=dict(sae_tokens=2 * small.sae_batch_size)), progress=False)
    assert not torch.equal(saes[0].b_dec, torch.zeros(saes[0].d_model))


def test_a_first_refill_of_less_than_a_batch_is_no_error(model, blocks, small):
    tight = small.model_copy(update=dict(sae_tokens=64, sae_batch_size=16, buffer_tokens=64))  # 2 blocks of 15 a refill
    _, history = train_saes(model, blocks, tight, layers=[0], progress=False)
    assert set(history.step) == {1, 2, 3, 4} and history.loss.notna().all()


def test_interrupted_training_gives_the_same_weights(model, blocks, small, tmp_path, monkeypatch):
    expected, expected_history = train_saes(model, blocks, small, progress=False)
    monkeypatch.setattr(sae_training, "CHECKPOINT_SECONDS", -1)
    save, saved = sae_training._Run.save, []

    def save_and_stop(run, path):
        save(run, path)
        saved.append(run.step)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(sae_training._Run, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train_saes(model, blocks, small, checkpoint_dir=tmp_path, progress=False)
    found, history = train_saes(model, blocks, small, checkpoint_dir=tmp_path, progress=False)
    assert 0 < saved[1] < 24
    for a, b in zip(expected, found, strict=True):
        for name, value in a.state_dict().items():
            torch.testing.assert_close(b.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(history, expected_history, rtol=1e-4)
    with pytest.raises(ValueError, match="belongs to a training with other settings"):
        other = small.model_copy(update=dict(l1_coefficient=1.0))
        train_saes(model, blocks, other, checkpoint_dir=tmp_path, progress=False)


# --------------------------------------------------------------------------------------------- metrics


def known_sae(d_model, W_enc, W_dec, b_dec=0.0):
    """An SAE of layer 1 with given weights."""
    sae = SparseAutoencoder(d_model, W_enc.shape[1], SaeInfo(layer=1)).requires_grad_(False)
    sae.W_enc[:], sae.W_dec[:], sae.b_dec[:] = W_enc, W_dec, b_dec
    return sae


def test_perfect_sae_recovers_all_and_the_mean_nothing(model, blocks, small):
    d_model = model.cfg.d_model
    one = torch.eye(d_model)
    perfect = known_sae(d_model, torch.cat([one, -one], 1), torch.cat([one, -one]))
    zero = torch.zeros(d_model, 10)
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.from_numpy(blocks.tokens).long())
        x = cache[models.resid_post(1)][:, 1:].reshape(-1, d_model)
    mean = known_sae(d_model, zero, zero.T, x.mean(0))
    table = evaluate_saes(model, [perfect, mean], blocks, small)
    np.testing.assert_allclose(table.ce_recovered, [1, 0], atol=1e-3)
    np.testing.assert_allclose(table.explained_variance, [1, 0], atol=1e-4)
    np.testing.assert_allclose(table.l0, [d_model, 0])
    np.testing.assert_allclose(table.dead, [0, 1])
    assert mean.info.metrics["dead"] == 1


# ----------------------------------------------------------------------------------------------- files


@pytest.fixture
def folder(tmp_path):
    sae = SparseAutoencoder(D_MODEL, D_SAE, SaeInfo(model_name="m", hook_name="blocks.3.hook_out", layer=3, seed=1))
    with torch.no_grad():
        sae.b_enc.uniform_(-1, 1)
        sae.b_dec.uniform_(-1, 1)
    sae.info.metrics = {"l0": 12.5}
    sae.save(tmp_path / "sae")
    return tmp_path / "sae", sae


def test_round_trip(folder):
    path, sae = folder
    again = SparseAutoencoder.load(path)
    assert again.info == sae.info
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        "W_dec": (D_SAE, D_MODEL), "W_enc": (D_MODEL, D_SAE), "b_enc": (D_SAE,), "b_dec": (D_MODEL,),
    }  # fmt: skip
    assert all(torch.equal(value, sae.state_dict()[name]) for name, value in again.state_dict().items())


def test_folder_follows_sae_lens_rules(folder):
    """SAELens 6: cfg.json names the class, its fields and a version from 6.0; the weights are used as they are.

    `.ci/run` opens a trained SAE with SAELens itself (tests/interop): it needs another environment.
    """
    path, sae = folder
    cfg, weights = json.loads((path / CFG).read_text()), load_file(path / WEIGHTS)
    assert path.joinpath("cfg.json").exists() and path.joinpath("sae_weights.safetensors").exists()
    assert cfg["architecture"] == "standard" and cfg["dtype"] == "float32"
    assert (cfg["d_in"], cfg["d_sae"]) == (D_MODEL, D_SAE)
    assert cfg["apply_b_dec_to_input"] is False
    assert cfg["normalize_activations"] == cfg["reshape_activations"] == "none"
    assert int(cfg["metadata"]["sae_lens_version"].split(".")[0]) >= 6
    assert cfg["metadata"]["hook_name"] == "blocks.3.hook_out"
    x = torch.randn(7, D_MODEL)
    f = torch.relu(x @ weights["W_enc"] + weights["b_enc"])
    torch.testing.assert_close(f, sae.encode(x))
    torch.testing.assert_close(f @ weights["W_dec"] + weights["b_dec"], sae(x))


def rewrite_cfg(path, **more):
    (path / CFG).write_text(json.dumps(json.loads((path / CFG).read_text()) | more))


def spoil(path, name, change):
    weights = load_file(path / WEIGHTS)
    save_file(weights | {name: change(weights[name])}, path / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (lambda p: (p / CFG).unlink(), FileNotFoundError, "cfg.json is missing"),
        (lambda p: (p / WEIGHTS).unlink(), FileNotFoundError, "sae_weights.safetensors is missing"),
        (lambda p: (p / WEIGHTS).write_bytes(b"no"), ValueError, "is no safetensors file"),
        (lambda p: (p / CFG).write_text("{"), ValueError, "cannot be read"),
        (lambda p: (p / CFG).write_text("{}"), ValueError, "cannot be read"),
        (lambda p: rewrite_cfg(p, architecture="topk"), ValueError, "of another kind"),
        (lambda p: rewrite_cfg(p, normalize_activations="layer_norm"), ValueError, "of another kind"),
        (lambda p: rewrite_cfg(p, metadata={"layer": "x"}), ValueError, "bad metadata"),
        (lambda p: save_file({"W_enc": torch.zeros(2)}, p / WEIGHTS), ValueError, "W_enc has shape"),
        (lambda p: spoil(p, "W_dec", lambda x: x.T.contiguous()), ValueError, "W_dec has shape"),
        (lambda p: spoil(p, "b_enc", lambda x: x.fill_(torch.nan)), ValueError, "b_enc holds NaN"),
        (lambda p: rewrite_cfg(p, d_sae=10**12), ValueError, "claims 1,000,000,000,000 features"),
        (lambda p: (p / WEIGHTS).write_bytes((p / WEIGHTS).read_bytes()[:-4]), ValueError, "is damaged"),
    ],
)
def test_wrong_files_are_said_in_one_sentence(folder, damage, error, words):
    path, _ = folder
    damage(path)
    with pytest.raises(error, match=words) as caught:
        SparseAutoencoder.load(path)
    assert str(caught.value).startswith(str(path)) or str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
