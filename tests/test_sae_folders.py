"""SAEs that others trained: every type, option and layout of SAELens' folders against its formula, or one sentence."""

import json
import logging
import math

import pytest
import torch
from conftest import fill_hub_cache
from hub_server import OTHER, Repository, serving
from safetensors.torch import save_file

from lib.models import ModelNotFound, hub
from lib.sae import check_fits, load
from lib.sae.autoencoder import CFG, WEIGHTS

D_MODEL, D_SAE, K, SCALE = 16, 64, 6, 0.37
TYPES = ("standard", "topk", "jumprelu", "gated", "batchtopk")
X = 3 * torch.randn(40, D_MODEL, generator=torch.Generator().manual_seed(1)) + 0.5


def weights_of(architecture):
    """Random tensors, by the names that SAELens has for them."""
    random = torch.Generator().manual_seed(0)
    vectors = {"gated": ["b_gate", "b_mag", "r_mag"], "jumprelu": ["b_enc", "threshold"]}.get(architecture, ["b_enc"])
    w = {"W_enc": torch.randn(D_MODEL, D_SAE, generator=random) / 4, "b_dec": torch.randn(D_MODEL, generator=random)}
    w["W_dec"] = torch.randn(D_SAE, D_MODEL, generator=random) / 8
    w |= {name: 0.3 * torch.randn(D_SAE, generator=random) for name in vectors}
    if architecture == "jumprelu":
        w["threshold"] = w["threshold"].abs() * 5
    return w | ({"topk_threshold": torch.tensor(1.0, dtype=torch.double)} if architecture == "batchtopk" else {})


def cfg_of(architecture, old=False, **options):
    """cfg.json as SAELens 6 has it, or as version 3 to 5 had it."""
    belongs = {"model_name": "pythia-160m", "hook_name": "blocks.3.hook_resid_post", "prepend_bos": True}
    sizes = {"d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float32", "device": "cpu"}
    if not old:
        k = {"k": K} if "topk" in architecture else {}
        cfg = {"architecture": architecture, **sizes, **k, "reshape_activations": "none"}
        return cfg | options | {"metadata": {"sae_lens_version": "6.5.0", **belongs}}
    as_function = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}} if architecture == "topk" else {}
    cfg = {"architecture": "standard" if architecture == "topk" else architecture, "activation_fn_str": "relu"}
    more = {"hook_layer": 3, "hook_head_index": None, "finetuning_scaling_factor": False, "context_size": 128}
    return cfg | sizes | belongs | more | as_function | options


def write(folder, cfg, weights):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CFG).write_text(json.dumps(cfg))
    save_file(weights, folder / WEIGHTS)
    return folder


def formula(architecture, x, w, centred, relu=True, rescaled=False):
    """Features and reconstruction of normalised activations, in float64."""
    w, x = {name: value.double() for name, value in w.items()}, x.double()
    z = (x - w["b_dec"] * centred) @ w["W_enc"]
    norms = w["W_dec"].norm(dim=1) if rescaled else torch.ones(D_SAE).double()
    if architecture == "gated":
        f = torch.relu(z * w["r_mag"].exp() + w["b_mag"]) * (z + w["b_gate"] > 0)
    else:
        pre = (z + w["b_enc"]) * norms
        least = {"standard": 0, "jumprelu": w.get("threshold"), "batchtopk": w.get("topk_threshold")}.get(architecture)
        f = pre * (pre >= pre.topk(K).values[:, -1:]) if architecture == "topk" else pre * (pre > least)
        f = f.relu() if relu else f
    return f, (f / norms) @ w["W_dec"] + w["b_dec"]


def is_read_as(sae, f, x_hat):
    with torch.no_grad():
        found = sae.encode(X)
        assert 0 < found.count_nonzero() < found.numel()
        torch.testing.assert_close(found, f.float(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sae.decode(found, X), x_hat.float(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sae(X), x_hat.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("normalised", ["none", "constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize("architecture", TYPES)
def test_every_type_and_option_is_its_formula(architecture, normalised, centred, old, tmp_path):
    options = {"apply_b_dec_to_input": centred, "normalize_activations": normalised}
    w = weights_of(architecture)
    write(tmp_path / "theirs", cfg_of(architecture, old, **options), w)
    shift, spread = torch.zeros(()), torch.ones(())
    if normalised == "constant_norm_rescale":
        spread = X.square().sum(1, keepdim=True).sqrt() / math.sqrt(D_MODEL)
    elif normalised == "layer_norm":
        shift = X.mean(1, keepdim=True)
        spread = ((X - shift).square().sum(1, keepdim=True) / (D_MODEL - 1)).sqrt()
    f, x_hat = formula(architecture, (X - shift) / (spread + 1e-5 * (normalised == "layer_norm")), w, centred)
    sae = load(tmp_path / "theirs")
    is_read_as(sae, f, x_hat * spread + shift)
    assert (sae.info.model_name, sae.info.layer) == ("pythia-160m", 3)
    assert sae.info.hook_name == "blocks.3.hook_resid_post"
    sae.save(tmp_path / "ours")
    is_read_as(load(tmp_path / "ours"), f, x_hat * spread + shift)
    if normalised != "none":
        with pytest.raises(ValueError, match=r"normalises its input.*decode\(f, x\)"):
            sae.decode(sae.encode(X))


@pytest.mark.parametrize("given", ["argument", CFG, "activation_scaler.json"])
@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("architecture", TYPES)
def test_scaled_activations_and_decoder_norms_count(architecture, rescaled, given, tmp_path):
    """In training s·x was read. Then, as SAELens has it, the norms are those of decoder rows that give x, not s·x."""
    options = {"normalize_activations": "expected_average_only_in", "rescale_acts_by_decoder_norm": rescaled}
    cfg, w = cfg_of(architecture, apply_b_dec_to_input=True, **options), weights_of(architecture)
    write(tmp_path, cfg | ({"norm_scaling_factor": SCALE} if given == CFG else {}), w)
    if given == "activation_scaler.json":
        (tmp_path / given).write_text(json.dumps({"scaling_factor": SCALE}))
    factor = SCALE if given == "argument" else None
    if rescaled and architecture not in ("topk", "batchtopk"):
        with pytest.raises(
            ValueError, match=f"it has rescale_acts_by_decoder_norm, which is not heeded for {architecture}"
        ):
            load(tmp_path, norm_scaling_factor=factor)
        return
    f, x_hat = formula(architecture, SCALE * X, w, True, rescaled=rescaled)
    is_read_as(load(tmp_path, norm_scaling_factor=factor), f / SCALE if rescaled else f, x_hat / SCALE)


def test_a_scale_that_is_nowhere_given_is_asked_for(tmp_path):
    write(tmp_path, cfg_of("standard", normalize_activations="expected_average_only_in"), weights_of("standard"))
    with pytest.raises(ValueError, match=r"\(expected_average_only_in\).*give norm_scaling_factor"):
        load(tmp_path)
    write(tmp_path, cfg_of("standard", old=True, normalize_activations=True), weights_of("standard"))
    with pytest.raises(ValueError, match="expected_average_only_in"):
        load(tmp_path)
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": null}')
    with pytest.raises(ValueError, match="give norm_scaling_factor"):
        load(tmp_path)


@pytest.mark.parametrize("after", ["ReLU()", "Identity()"])
def test_topk_may_keep_negative_features(after, tmp_path):
    w = weights_of("topk")
    w["b_enc"] -= 4.5  # some of the six largest are negative
    cfg = cfg_of("topk", old=True, activation_fn_kwargs={"k": K, "postact_fn": after})
    sae = load(write(tmp_path / "theirs", cfg, w))
    relu = after == "ReLU()"
    assert relu != bool((sae.encode(X) < 0).any())
    is_read_as(sae, *formula("topk", X, w, True, relu))
    sae.save(tmp_path / "ours")
    is_read_as(load(tmp_path / "ours"), *formula("topk", X, w, True, relu))


def test_half_precision_and_idle_scaling_factors_are_read(tmp_path):
    w = {name: value.half() for name, value in weights_of("standard").items()}
    sae = load(write(tmp_path, cfg_of("standard"), w | {"scaling_factor": torch.ones(D_SAE)}))
    assert sae.W_enc.dtype == torch.float32
    is_read_as(sae, *formula("standard", X, w, True))


@pytest.mark.parametrize(
    ("hook", "layer"),
    [("blocks.7.hook_resid_post", 7), ("blocks.7.hook_out", 7), ("blocks.8.hook_resid_pre", 7)],
)
@pytest.mark.parametrize("old", [False, True])
def test_hooks_of_the_residual_stream_are_known(hook, layer, old, tmp_path):
    cfg = cfg_of("standard", old)
    (cfg if old else cfg["metadata"]).update({"hook_point" if old else "hook_name": hook})
    if old:
        del cfg["hook_name"]
    assert load(write(tmp_path, cfg, weights_of("standard"))).info.layer == layer


def with_hook(name):
    return lambda cfg, w: cfg["metadata"].update(hook_name=name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_hook("blocks.0.hook_resid_pre"), "it reads blocks.0.hook_resid_pre, which is not the residual"),
        (with_hook("blocks.3.hook_mlp_out"), "reads blocks.3.hook_mlp_out, which is not"),
        (with_hook("blocks.3.attn.hook_z"), "reads blocks.3.attn.hook_z, which is not"),
        (with_hook(""), "reads a hook that is not named"),
        (lambda cfg, w: cfg["metadata"].update(hook_head_index=3), "hook_head_index 3: "),
        (lambda cfg, w: cfg["metadata"].update(hook_name_out="blocks.4.hook_mlp_out"), "hook_name_out 'blocks.4"),
        (lambda cfg, w: cfg.update(reshape_activations="hook_z"), "reshape_activations 'hook_z': "),
        (lambda cfg, w: cfg.update(normalize_activations="covariance_whitening"), "'covariance_whitening': "),
        (lambda cfg, w: cfg.update(activation_fn_str="tanh-relu"), "activation_fn 'tanh-relu': "),
        (lambda cfg, w: cfg.update(activation_fn_str="topk", activation_fn_kwargs={"k": 2, "postact_fn": "gelu"}),
         "it has the postact_fn gelu, and relu and identity are"),
        (lambda cfg, w: cfg["metadata"].update(model_from_pretrained_kwargs={"center_writing_weights": True}),
         "with center_writing_weights, whose residual stream is another"),
        (lambda cfg, w: cfg.update(architecture="transcoder"),
         "'transcoder' is no SAE type of this workbook; these are standard, topk, jumprelu, gated, batchtopk"),
        (lambda cfg, w: w.update(scaling_factor=torch.full((D_SAE,), 2.0)), "finetuning_scaling_factor"),
        (lambda cfg, w: w.update(W_dec=w["W_dec"][:, :8].contiguous()), r"W_dec has shape \[64, 8\], not \[64, 16\]"),
        (lambda cfg, w: w.pop("b_dec"), "holds W_dec, W_enc, b_enc, not W_dec, W_enc, b_dec, b_enc"),
        (lambda cfg, w: cfg.pop("d_in"), "d_in: Field required"),
        (lambda cfg, w: cfg.update(d_sae="many"), "d_sae 'many': "),
        (lambda cfg, w: cfg.update(metadata=[1]), "cannot be read"),
        (lambda cfg, w: cfg.update(activation_fn_str="topk"), "cfg.json says nothing of 'k'"),
    ],
)  # fmt: skip
def test_what_is_not_heeded_is_refused_by_name(change, words, tmp_path):
    cfg, w = cfg_of("standard"), weights_of("standard")
    load(write(tmp_path, cfg, w))
    change(cfg, w)
    with pytest.raises(ValueError, match=words) as caught:
        load(write(tmp_path, cfg, w))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_sae_of_another_model_is_said(tmp_path):
    sae = load(write(tmp_path, cfg_of("standard"), weights_of("standard")))
    check_fits(sae, "mine", D_MODEL, 4)
    about = "the SAE for blocks.3.hook_resid_post of pythia-160m does not fit mine: it reads"
    with pytest.raises(ValueError, match=f"^{about} activations of width 16, and the model's d_model is 32\\.$"):
        check_fits(sae, "mine", 32, 4)
    with pytest.raises(ValueError, match=f"^{about} layer 3, and the model's layers are 0 to 2\\.$"):
        check_fits(sae, "mine", D_MODEL, 3)


# ------------------------------------------------------------------------------------------------- hub


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "CACHE", tmp_path / "hub")
    return tmp_path / "hub"


def test_saes_of_the_hub_are_found_in_its_cache(empty_cache, tmp_path, monkeypatch):
    folder = write(tmp_path / "made", cfg_of("topk"), weights_of("topk"))
    expected = load(folder)
    files = [(f"layers/3/{path.name}", path) for path in sorted(folder.iterdir())]
    fill_hub_cache(empty_cache, "org/saes", files)
    monkeypatch.setattr(hub, "HfApi", None)  # nobody is asked
    assert torch.equal(load("org/saes:layers/3").encode(X), expected.encode(X))


def test_of_the_hub_only_the_sae_s_two_files_are_fetched(empty_cache, tmp_path, monkeypatch, caplog):
    folder = write(tmp_path / "made", cfg_of("gated"), weights_of("gated"))
    two = {f"layers/3/{path.name}": path.read_bytes() for path in folder.iterdir()}
    others = {"layers/4/cfg.json": b"{}", "layers/4/sae_weights.pt": b"pickle", "layers/3/sparsity.safetensors": b""}
    with serving({"org/saes": Repository({OTHER: two | others}, OTHER)}) as (env, asked):
        monkeypatch.setattr(hub.constants, "ENDPOINT", env["HF_ENDPOINT"])
        template = env["HF_ENDPOINT"] + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        with caplog.at_level(logging.WARNING):
            sae = load("org/saes:layers/3/")
        assert "Downloading org/saes" in caplog.text
        assert torch.equal(sae.encode(X), load(folder).encode(X))
        assert {path.name for path in empty_cache.rglob("layers/*/*")} == {CFG, WEIGHTS}
        assert hub.cached_model("org/saes", (f"layers/3/{CFG}",)).name == OTHER
        n = len(asked)
        load("org/saes:layers/3")
        assert len(asked) == n
        with pytest.raises(ModelNotFound, match="^cannot load org/saes: it has no layers/4/sae_weights.safetensors on"):
            load("org/saes:layers/4")
        with pytest.raises(ModelNotFound, match=f"has no revision {'c' * 40}"):
            load("org/saes:layers/3", revision="c" * 40)
        with pytest.raises(ModelNotFound, match="^cannot load org/none: ") as caught:
            load("org/none:a b")
    said = str(caught.value)
    assert f"run `hf download org/none 'a b/{CFG}' 'a b/{WEIGHTS}'`" in said and "\n" not in said


@pytest.mark.parametrize("source", ["nowhere", "org/saes"])
def test_what_is_no_folder_says_how_the_hub_is_written(source, empty_cache):
    with pytest.raises(FileNotFoundError, match="cfg.json is missing .*org/repo:path/in/repo"):
        load(source)
    with pytest.raises(ValueError, match="leads out of the repository"):
        load("org/saes:../../elsewhere")


def test_our_fixtures_are_what_they_say():
    """The formula's options change its result, so that the comparisons above can fail."""
    w = weights_of("topk")
    plain = formula("topk", X, w, False)
    for other in (formula("topk", X, w, True), formula("topk", X, w, False, rescaled=True)):
        assert not torch.allclose(plain[0], other[0]) and not torch.allclose(plain[1], other[1])
