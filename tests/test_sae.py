"""The SAE's start, its step on active features against autograd, training, metrics, and its files."""

import json
import math
from contextlib import nullcontext
from functools import partial

import numba
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lib import models
from lib.corpus import Blocks
from lib.sae import (
    SAE,
    SAEConfig,
    SaeInfo,
    SparseAutoencoder,
    evaluate_saes,
    evaluation,
    load,
    register,
    train_saes,
)
from lib.sae import (
    training as sae_training,
)
from lib.sae.autoencoder import CFG, WEIGHTS, StepStats, sae_type
from lib.sae.dense_step import dense_step, step_by_hand
from lib.sae.jumprelu import BANDWIDTH
from lib.sae.sparse_step import SparseStep
from lib.sae.training import _Trainee
from lib.workbook import model_store
from lib.workbook.profiles import ProfileError, get_profile

D_MODEL, D_SAE = 32, 256


@pytest.fixture(autouse=True)
def two_threads():
    """SAEs are shared out among threads, and sums taken in parts: a worker of these tests has one thread by itself."""
    before = numba.get_num_threads()
    numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))
    yield
    numba.set_num_threads(before)


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
def small():
    """24 steps, in refills of 4 or fewer."""
    return SAEConfig(expansion=4, target_l0=16, tokens=24 * 128, batch_size=128, buffer_tokens=640)


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


def trainee(dtype=torch.float32, seed=0):
    """An SAE away from its start: decoder norms differ, biases are not zero."""
    t = _Trainee(SparseAutoencoder(D_MODEL, D_SAE), SAEConfig(expansion=D_SAE // D_MODEL, tokens=1_000, batch_size=128))
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
def test_sparse_step_is_autograd_s_in_float64(bf16):
    """After one step Adam's first moment is a tenth of the gradient, and the weights show Adam itself."""
    x = torch.randn(500, D_MODEL, generator=torch.Generator().manual_seed(3))
    ours, reference = trainee(), trainee(torch.float64)
    sparse = SparseStep(500, D_MODEL, D_SAE, bf16=bf16)
    for l1 in (2.0, 3.0):
        stats = sparse(ours.sae, ours.adam, x, l1)
        expected = dense_step(reference.sae, reference.adam, x.double(), l1)
        np.testing.assert_allclose(stats, [float(value) for value in expected], rtol=1e-5)
    for name, value in reference.tensors().items():
        found = ours.tensors()[name].double()
        assert (found - value).norm() / value.norm() < 1e-5, name


@pytest.mark.parametrize("fused", [False, True])
def test_gpu_step_is_autograd_s(fused):
    """Its equations, on the CPU in float32 and with the fused Adam that it gets on a GPU."""
    x = torch.randn(500, D_MODEL, generator=torch.Generator().manual_seed(3))
    ours, reference = trainee(), trainee(torch.float64)
    ours.adam.param_groups[0]["fused"] = fused
    for l1 in (2.0, 3.0):
        stats = step_by_hand(ours.sae, ours.adam, x, l1, torch.float32)
        expected = dense_step(reference.sae, reference.adam, x.double(), l1)
        np.testing.assert_allclose(stats, [float(value) for value in expected], rtol=1e-5)
    for name, value in reference.tensors().items():
        found = ours.tensors()[name].double()
        assert (found - value).norm() / value.norm() < 1e-5, name


def test_feature_that_never_fires_takes_adam_s_step_too():
    x = sparse_data(256)
    ours, reference = trainee(), trainee()
    sparse = SparseStep(256, D_MODEL, D_SAE)
    for t, step in ((ours, sparse), (reference, dense_step)):
        step(t.sae, t.adam, x, 2.0)
        with torch.no_grad():
            t.sae.b_enc[:8] = -100
        step(t.sae, t.adam, x, 2.0)
    torch.testing.assert_close(ours.sae.W_enc, reference.sae.W_enc, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fast, tolerance", [("sparse", 5e-3), ("gpu", 2e-2)])
def test_loss_curve_is_the_dense_one_s(monkeypatch, fast, tolerance):
    """The GPU's step rounds every product to bfloat16, the sparse step none that counts."""
    on_gpu = partial(step_by_hand, dtype=torch.bfloat16)
    steps, step = 120, on_gpu if fast == "gpu" else SparseStep(256, D_MODEL, D_SAE)
    monkeypatch.setattr(sae_training, "SPARSE_SHARE", 1)
    curves = []
    for fast in (step, None):
        t = trainee()
        t.dense = dense_step
        t.measure(sparse_data(2048))
        stats = [t.train_on(t.scale * sparse_data(256, seed=s), s, steps, fast) for s in range(steps)]
        curves.append(np.array([[float(v) for v in s] for s in stats]))
    np.testing.assert_allclose(curves[0], curves[1], rtol=tolerance)
    assert curves[0][-1, 0] < 0.5 * curves[0][:, 0].max()


def test_l1_follows_the_target_and_rests_in_the_decay():
    config = SAEConfig(expansion=8, target_l0=6.0, tokens=1_000, batch_size=128)
    t, sparse, steps = _Trainee(SparseAutoencoder(D_MODEL, D_SAE), config), SparseStep(256, D_MODEL, D_SAE), 600
    t.measure(sparse_data(2048))
    l1 = []
    for step in range(steps):
        stats = t.train_on(t.scale * sparse_data(256, seed=step), step, steps, sparse)
        l1.append(t.l1)
    assert 4 < stats.l0 < 8
    assert l1[10] == config.l1_coefficient and l1[-1] == l1[-100] != l1[200]


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
    saes, _ = train_saes(model, blocks, small.model_copy(update=dict(tokens=2 * small.batch_size)), progress=False)
    assert not torch.equal(saes[0].b_dec, torch.zeros(saes[0].d_model))


def test_a_first_refill_of_less_than_a_batch_is_no_error(model, blocks, small):
    tight = small.model_copy(update=dict(tokens=64, batch_size=16, buffer_tokens=64))  # 2 blocks of 15 a refill
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
    # Typical norms of which nothing is far; their last digit is another one where the threads are others.
    norms = [dict.fromkeys(range(models.n_layers(model)), norm) for norm in (1e6, 1e6 + 1)]
    with pytest.raises(KeyboardInterrupt):
        train_saes(model, blocks, small, checkpoint_dir=tmp_path, progress=False, typical=norms[0])
    found, history = train_saes(model, blocks, small, checkpoint_dir=tmp_path, progress=False, typical=norms[1])
    assert 0 < saved[1] < 24
    for a, b in zip(expected, found, strict=True):
        for name, value in a.state_dict().items():
            torch.testing.assert_close(b.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(history, expected_history, rtol=1e-4)
    with pytest.raises(ValueError, match="belongs to a training with other settings"):
        other = small.model_copy(update=dict(l1_coefficient=1.0))
        train_saes(model, blocks, other, checkpoint_dir=tmp_path, progress=False, typical=norms[1])


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
    table = evaluate_saes(model, [perfect, mean], blocks)
    np.testing.assert_allclose(table.ce_recovered, [1, 0], atol=1e-3)
    np.testing.assert_allclose(table.explained_variance, [1, 0], atol=1e-4)
    np.testing.assert_allclose(table.l0, [d_model, 0])
    np.testing.assert_allclose(table.dead, [0, 1])
    assert mean.info.metrics["dead"] == 1


@pytest.mark.parametrize("role", ["pythia", "mamba", "rwkv"])
def test_losses_are_those_of_whole_passes(role, smoke, blocks, monkeypatch):
    """The blocks before the SAE's layer are not computed again, nor all logits at once, nor the mean's row by row."""
    model = model_store.load(getattr(smoke, role), smoke)
    sae = SparseAutoencoder(model.cfg.d_model, 64, SaeInfo(layer=1)).requires_grad_(False)
    where = models.resid_post(1)
    mask, read = blocks.mask.copy(), blocks.tokens.copy()
    read[0, 5], mask[0, 5], mask[1, 9:] = 0, False, False  # a special token within the text, and a shorter row
    tokens, counts = torch.from_numpy(read).long(), torch.from_numpy(mask)
    with torch.no_grad():
        mean = model.run_with_cache(tokens, names_filter=where)[1][where][counts].mean(0)

    def splice(replace):
        def hook(x, hook):
            x = x.clone()
            x[counts] = replace(x[counts])
            return x

        return [(where, hook)]

    def losses():
        return evaluate_saes(model, [sae], Blocks(read, mask, blocks.document)).iloc[0]

    fast = losses()
    monkeypatch.setattr(evaluation, "fast_products", lambda device: nullcontext())
    exact, both = losses(), counts[:, :-1] & counts[:, 1:]
    hooks = {"ce": [], "ce_sae": splice(sae), "ce_mean": splice(lambda x: mean.expand_as(x))}
    for column, fwd_hooks in hooks.items():
        with torch.no_grad():
            logits = model.run_with_hooks(tokens, fwd_hooks=fwd_hooks)[:, :-1][both]
        loss = float(torch.nn.functional.cross_entropy(logits, tokens[:, 1:][both]))
        assert exact[column] == pytest.approx(loss, abs=1e-5) and fast[column] == pytest.approx(loss, abs=0.01)


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
    again = load(path)
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
        (
            lambda p: rewrite_cfg(p, architecture="temporal"),
            ValueError,
            "'temporal' is no SAE type .* gated, batchtopk",
        ),
        (lambda p: rewrite_cfg(p, architecture="gated"), ValueError, "holds W_dec, W_enc, b_dec, b_enc, not"),
        (lambda p: rewrite_cfg(p, architecture="topk"), ValueError, "says nothing of 'k'"),
        (lambda p: rewrite_cfg(p, architecture="topk", k=D_SAE + 1), ValueError, "must lie between 1 and d_sae=256"),
        (lambda p: rewrite_cfg(p, architecture="topk", k="x"), ValueError, "cannot be read"),
        (lambda p: rewrite_cfg(p, architecture="jumprelu"), ValueError, "holds W_dec, W_enc, b_dec, b_enc, not"),
        (lambda p: rewrite_cfg(p, metadata={"layer": "x"}), ValueError, "cfg.json: layer 'x': Input should be"),
        (lambda p: save_file({"W_enc": torch.zeros(2)}, p / WEIGHTS), ValueError, "W_enc has shape"),
        (lambda p: spoil(p, "W_dec", lambda x: x.T.contiguous()), ValueError, "W_dec has shape"),
        (lambda p: spoil(p, "b_enc", lambda x: x.fill_(torch.nan)), ValueError, "b_enc holds NaN"),
        (lambda p: rewrite_cfg(p, d_sae=10**12), ValueError, "d_sae 1000000000000: Input should be less"),
        (lambda p: (p / WEIGHTS).write_bytes((p / WEIGHTS).read_bytes()[:-4]), ValueError, "is damaged"),
    ],
)
def test_wrong_files_are_said_in_one_sentence(folder, damage, error, words):
    path, _ = folder
    damage(path)
    with pytest.raises(error, match=words) as caught:
        load(path)
    assert str(caught.value).startswith(str(path)) or str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------- types


def away_from_start(sae):
    """Biases and thresholds that are not all the same."""
    with torch.no_grad():
        sae.W_dec *= 0.5 + torch.rand(D_SAE, 1)
        sae.b_enc.uniform_(-1, 1)
        sae.b_dec.uniform_(-1, 1)
        if sae.architecture == "jumprelu":
            sae.threshold.uniform_(0, 0.5)
    return sae


def of_type(architecture, **settings):
    settings = {"target_l0": 12, "tokens": 40_960, "batch_size": 128} | settings
    config = SAEConfig(architecture=architecture, expansion=D_SAE // D_MODEL, **settings)
    return sae_type(architecture).from_config(D_MODEL, config, SaeInfo()), config


def test_topk_is_its_definition():
    sae, x = away_from_start(of_type("topk")[0]), torch.randn(50, D_MODEL)
    with torch.no_grad():
        pre = (x @ sae.W_enc + sae.b_enc).numpy()
        f = sae.encode(x).numpy()
    for row, expected in zip(f, pre, strict=True):
        kept = np.argsort(expected)[-12:]
        np.testing.assert_allclose(row[kept], np.maximum(expected[kept], 0))
        assert np.count_nonzero(row) <= 12 and np.count_nonzero(np.delete(row, kept)) == 0


def test_dead_features_of_topk_learn_what_the_others_leave(monkeypatch):
    sae, x = away_from_start(of_type("topk")[0]), torch.randn(50, D_MODEL)
    few = D_MODEL // 2
    with torch.no_grad():
        sae.W_enc[:, :100] = 0
        sae.b_enc[:100] = torch.linspace(0.001, 0.01, 100)  # positive, but never among the twelve largest
    loss, stats = sae.loss(x, 0.0)
    loss.backward()
    assert loss == stats.mse and not sae.W_dec.grad[:100].any() and (sae.silent[:100] == 50).all()
    monkeypatch.setattr("lib.sae.topk.DEAD_AFTER", 60)
    sae.silent[100:] = 0
    loss, _ = sae.loss(x, 0.0)
    loss.backward()
    with torch.no_grad():
        residual = x - sae(x) - sae.b_enc[100 - few : 100] @ sae.W_dec[100 - few : 100]
    torch.testing.assert_close(loss.detach(), stats.mse + residual.square().sum(1).mean() / 32)
    assert sae.W_dec.grad[100 - few : 100].all() and not sae.W_dec.grad[: 100 - few].any()
    assert (sae.silent[:100] == 100).all() and not sae.silent[100:].all()


@pytest.mark.parametrize("target", [None, 12])
def test_thresholds_of_jumprelu_are_moved_by_what_lies_near_them(target):
    """The estimate of the derivative, against its terms written out."""
    sae, l1 = away_from_start(of_type("jumprelu", target_l0=target)[0]).double(), 0.7
    x = torch.randn(400, D_MODEL).double()
    loss, stats = sae.loss(x, l1)
    loss.backward()
    with torch.no_grad():
        z, f = x @ sae.W_enc + sae.b_enc, sae.encode(x)
        torch.testing.assert_close(f, torch.where(z > sae.threshold, z, 0))
        d_f = 2 * (sae.decode(f) - x) @ sae.W_dec.T
        near = ((z - sae.threshold).abs() < BANDWIDTH / 2) / BANDWIDTH
        l0 = (f > 0).sum(1).double().mean()
        sparsity, d_l0 = ((l0 - target) ** 2 / target, 2 * (l0 - target) / target) if target else (l0, 1)
        expected = -(near * (sae.threshold * d_f + l1 * d_l0)).mean(0)
    torch.testing.assert_close(sae.threshold.grad, expected)
    torch.testing.assert_close(loss.detach(), stats.mse + l1 * sparsity)
    torch.testing.assert_close(stats.l0, l0)


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_other_types_learn_at_the_l0_that_is_asked_for(architecture):
    sae, config = of_type(architecture, target_l0=12, learning_rate=3e-3)
    t, steps = _Trainee(sae, config), 1600
    t.measure(sparse_data(2048))
    stats = [t.train_on(t.scale * sparse_data(256, seed=step), step, steps, None) for step in range(steps)]
    assert 10 < float(stats[-1].l0) < 14
    assert t.record(steps, stats[-1])["explained_variance"] > 0.8


@register("absolute")
class Absolute(SAE):
    """A type of this test alone: features are absolute values, times a setting and a parameter of its own."""

    settings = ("gain",)
    constants = {"of_absolute": 1.0}

    def __init__(self, d_model, d_sae, info=None, *, gain=0.5):
        super().__init__(d_model, d_sae, info)
        self.gain, self.stretch = gain, torch.nn.Parameter(torch.ones(d_sae))

    def encode(self, x):
        return self.gain * (x @ self.W_enc + self.b_enc).abs() * self.stretch

    def loss(self, x, l1):
        f = self.encode(x)
        mse, sparsity = (self.decode(f) - x).square().sum(1).mean(), f.abs().sum(1).mean()
        return mse + l1 * sparsity, StepStats(mse.detach(), sparsity.detach(), torch.count_nonzero(f) / len(x))


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "absolute"])
def test_every_type_is_trained_resumed_saved_and_loaded(architecture, model, blocks, small, tmp_path, monkeypatch):
    config = small.model_copy(update=dict(architecture=architecture))
    (expected,), history = train_saes(model, blocks, config, layers=[1], progress=False)
    assert history.loss.notna().all() and not torch.equal(expected.W_enc, expected.W_dec.T)
    monkeypatch.setattr(sae_training, "CHECKPOINT_SECONDS", -1)
    save = sae_training._Run.save

    def save_and_stop(run, path):
        save(run, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sae_training._Run, "save", save_and_stop)
        train_saes(model, blocks, config, layers=[1], checkpoint_dir=tmp_path, progress=False)
    (resumed,), _ = train_saes(model, blocks, config, layers=[1], checkpoint_dir=tmp_path, progress=False)
    torch.testing.assert_close(resumed.state_dict(), expected.state_dict(), rtol=1e-5, atol=1e-6)
    evaluate_saes(model, [expected], blocks)
    expected.save(tmp_path / "sae")
    again, x = load(tmp_path / "sae"), torch.randn(20, model.cfg.d_model)
    assert type(again) is type(expected) and again.info == expected.info
    assert torch.equal(again.encode(x), expected.encode(x)) and torch.equal(again(x), expected(x))
    assert again.loss(x, 1.0)[0] > 0
    assert set(sae_type(architecture).constants) <= set(sae_training.constants(config))


def test_an_unknown_type_is_said_with_those_there_are(model, blocks, small):
    sizes = dict(expansion=4, tokens=1_000, batch_size=128)
    assert SAEConfig(architecture="absolute", **sizes).architecture == "absolute"
    for asked, words in (
        ("absolut", "'absolut' is no SAE type"),
        ("batchtopk", "'batchtopk' SAEs are read, not trained"),
    ):
        with pytest.raises(ValueError, match=f"{words}.*; the types that can be trained are standard, topk, jumprelu"):
            SAEConfig(architecture=asked, **sizes)
        with pytest.raises(ProfileError, match=f"^bad value for sae_type in profile 'mini': {words}[^\n]*\\.$"):
            get_profile("mini", sae_type=asked)
    with pytest.raises(ValueError, match="needs target_l0"):
        train_saes(model, blocks, small.model_copy(update=dict(architecture="topk", target_l0=None)))
    with pytest.raises(ValueError, match="at least four batches"):
        SAEConfig(expansion=4, tokens=1_000, batch_size=128, buffer_tokens=500)
