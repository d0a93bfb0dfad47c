"""The CPU kernels against float64 loops written from the equations, and against the Hugging Face forward."""

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, RwkvConfig, RwkvForCausalLM
from transformers.models.mamba import modeling_mamba
from transformers.models.rwkv import modeling_rwkv

from lib.models import scans


def reference_scan(u, dt, A, B, C):
    h, ys = torch.zeros(len(u), u.shape[2], A.shape[1], dtype=u.dtype), []
    for t in range(u.shape[1]):
        step = dt[:, t, :, None]
        h = torch.exp(step * A) * h + step * B[:, t, None] * u[:, t, :, None]
        ys.append((h * C[:, t, None]).sum(-1))
    return torch.stack(ys, 1)


def reference_wkv(time_decay, time_first, k, v):
    w, out = -time_decay.exp(), []
    for t in range(k.shape[1]):
        ages = torch.arange(t - 1, -1, -1.0, dtype=k.dtype)
        past = torch.exp(k[:, :t] + ages[None, :, None] * w)
        now = torch.exp(k[:, t] + time_first)
        out.append(((past * v[:, :t]).sum(1) + now * v[:, t]) / (past.sum(1) + now))
    return torch.stack(out, 1)


def reference_conv(x, weight, bias):
    padded = torch.nn.functional.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
    return torch.nn.functional.conv1d(padded, weight[:, None], bias, groups=len(weight)).transpose(1, 2)


def scan_inputs():
    u, B, C = torch.randn(3, 37, 64), torch.randn(3, 37, 16), torch.randn(3, 37, 16)
    return u, torch.rand(3, 37, 64), -torch.rand(64, 16) * 16, B, C


def wkv_inputs():
    return torch.randn(24), torch.randn(24), 6 * torch.randn(3, 37, 24), torch.randn(3, 37, 24)


def conv_inputs():
    return torch.randn(3, 37, 24), torch.randn(24, 4), torch.randn(24)


CASES = {
    "selective scan": (scans.selective_scan, reference_scan, scan_inputs),
    "wkv": (scans.wkv, reference_wkv, wkv_inputs),
    "wkv by doubling": (lambda *inputs: scans.wkv_by_doubling(*inputs)[0], reference_wkv, wkv_inputs),
    "conv": (scans.causal_conv, reference_conv, conv_inputs),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_agree_with_float64(name):
    kernel, reference, inputs = CASES[name]
    torch.manual_seed(1)
    ours = [x.requires_grad_() for x in inputs()]
    theirs = [x.detach().double().requires_grad_() for x in ours]
    y, expected = kernel(*ours), reference(*theirs)
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad.double())
    torch.testing.assert_close(y.double(), expected, atol=2e-5, rtol=2e-5)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.grad - b.grad).abs().max() < 3e-6 * b.grad.abs().max()


@pytest.mark.parametrize("final_state", [scans.final_state, scans.final_state_in_closed_form])
def test_final_state_is_the_loop_s(final_state):
    torch.manual_seed(0)
    u, dt, A, B, _ = scan_inputs()
    h = torch.zeros(3, 64, 16, dtype=torch.float64)
    for t in range(u.shape[1]):
        step = dt[:, t, :, None].double()
        h = torch.exp(step * A) * h + step * B[:, t, None] * u[:, t, :, None]
    torch.testing.assert_close(final_state(u, dt, A, B).double(), h, atol=1e-4, rtol=1e-4)


def test_exponential_is_accurate_and_vanishes_for_large_negative_numbers():
    A = torch.linspace(-100, 0, 64)[:, None]
    one = torch.ones(1, 2, 64)
    impulse = one.clone()
    impulse[0, 1] = 0
    y = scans.selective_scan(impulse, one, A, torch.ones(1, 2, 1), torch.ones(1, 2, 1))
    torch.testing.assert_close(y[0, 1].double(), A[:, 0].double().exp(), atol=1e-37, rtol=1e-6)


WKV = [scans.wkv, lambda *inputs: scans.wkv_by_doubling(*inputs)[0]]


@pytest.mark.parametrize("wkv", WKV)
def test_wkv_survives_huge_keys(wkv):
    y = wkv(torch.zeros(8), torch.zeros(8), torch.full((1, 20, 8), 300.0), torch.ones(1, 20, 8))
    torch.testing.assert_close(y, torch.ones(1, 20, 8))


def walk_in_float64(time_decay, time_first, k, v):
    """The definition as in transformers, with the greatest exponent taken out, for keys whose exp is no float64."""
    w, num, den, top, out = -time_decay.exp(), 0, 0, torch.full_like(k[:, 0], -1e38), []
    for key, value in zip(k.unbind(1), v.unbind(1), strict=True):
        m = torch.maximum(top, key + time_first)
        old, new = torch.exp(top - m), torch.exp(key + time_first - m)
        out.append((old * num + new * value) / (old * den + new))
        m = torch.maximum(top + w, key)
        old, new = torch.exp(top + w - m), torch.exp(key - m)
        num, den, top = old * num + new * value, old * den + new, m
    return torch.stack(out, 1)


def long_wkv_inputs(decay, size, time=1_024):
    generator = torch.Generator().manual_seed(2)
    k, v = torch.randn(2, 2, time, 16, generator=generator)
    return torch.full((16,), decay), torch.randn(16, generator=generator), size * k, v


@pytest.mark.parametrize("decay, size, time", [
    (-20.0, 1.0, 1_024), (-6.0, 30.0, 1_023), (0.0, 1.0, 1_024), (0.0, 1_000.0, 1_024), (-6.0, 1_000.0, 1_024),
    (20.0, 30.0, 1_025), (-20.0, 30.0, 2), (5.0, 1_000.0, 3),
])  # fmt: skip
def test_wkv_of_long_texts_and_extreme_keys(decay, size, time):
    """From no forgetting at all to nothing but forgetting; float32 rounds exponents in proportion to their size."""
    ours = [x.requires_grad_() for x in long_wkv_inputs(decay, size, time)]
    theirs = [x.detach().double().requires_grad_() for x in ours]
    expected = walk_in_float64(*theirs)
    walked, doubled = (wkv(*ours) for wkv in WKV)
    assert (walked - expected).abs().max() < 1e-4
    assert (doubled - expected).abs().max() < 1e-6 * max(10, size)
    doubled.square().sum().backward()
    expected.square().sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert (a.grad - b.grad).abs().max() < 1e-6 * max(10, size) * max(0.1, b.grad.abs().max())


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_state_goes_on_as_transformers_does(size):
    decay, first, k, v = long_wkv_inputs(-3.0, size, 50)
    theirs, their_state = modeling_rwkv.rwkv_linear_attention_cpu(decay, first, k, v, return_state=True)
    y, state = scans._rwkv_linear_attention(decay, first, k[:, :30], v[:, :30], return_state=True)
    rest, state = scans._rwkv_linear_attention(decay, first, k[:, 30:], v[:, 30:], state)
    torch.testing.assert_close(torch.cat([y, rest], 1), theirs, atol=1e-5, rtol=1e-5)
    for ours, expected in zip(state, their_state, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_a_model_on_a_gpu_takes_the_doubling_and_no_walk_over_time(monkeypatch):
    """The device `meta` has shapes and no values; as on a GPU, a walk over time would call for each token."""
    calls = []
    doubling = scans.wkv_by_doubling
    monkeypatch.setattr(scans, "wkv_by_doubling", lambda *inputs: calls.append(inputs[2].shape) or doubling(*inputs))
    scans.install()
    model = rwkv().to("meta")
    with torch.profiler.profile() as profile:
        logits = model(torch.zeros(2, 1_024, dtype=torch.long, device="meta")).logits
    assert logits.shape == (2, 1_024, 99) and logits.device.type == "meta"
    assert calls == [(2, 1_024, 32)] * 3
    assert sum(event.count for event in profile.key_averages()) < 10_000  # the walk: more than 400,000


def test_a_width_that_the_scan_cannot_take_is_named():
    u = torch.zeros(1, 2, 33)
    with pytest.raises(ValueError, match="multiple of 32"):
        scans.selective_scan(u, u, torch.zeros(33, 4), torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))


def mamba():
    return MambaForCausalLM(MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=3, use_cache=False))


def rwkv():
    config = RwkvConfig(vocab_size=99, hidden_size=32, num_hidden_layers=3, rescale_every=0, use_cache=False)
    return RwkvForCausalLM(config)


@pytest.mark.parametrize("build", [mamba, rwkv])
def test_hugging_face_models_give_the_same_logits_and_gradients_with_the_kernels(build, monkeypatch):
    torch.manual_seed(0)
    model = build().train()
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    tokens, weight = torch.randint(0, 99, (2, 23)), torch.randn(2, 23, 99)
    results = []
    for installed in (False, True):
        for module, name, ours in (
            (modeling_mamba, "mamba_selective_scan", scans._mamba_selective_scan),
            (modeling_mamba, "causal_conv1d_fn", scans._causal_conv1d_fn),
            (modeling_rwkv, "rwkv_linear_attention", scans._rwkv_linear_attention),
        ):
            theirs = {"mamba_selective_scan": scans._hf_scan, "causal_conv1d_fn": scans._hf_conv}
            walk = modeling_rwkv.rwkv_linear_attention_cpu
            monkeypatch.setattr(module, name, ours if installed else theirs.get(name, walk))
        model.zero_grad()
        logits = model(tokens).logits
        (logits * weight).sum().backward()
        results.append([logits.detach()] + [p.grad.clone() for p in model.parameters()])
    for theirs, ours in zip(*results, strict=True):
        assert (ours - theirs).abs().max() < 1e-5 * max(1.0, theirs.abs().max())


def test_install_puts_the_kernels_in_place():
    scans.install()
    assert modeling_mamba.mamba_selective_scan is scans._mamba_selective_scan
    assert modeling_mamba.causal_conv1d_fn is scans._causal_conv1d_fn
    assert modeling_rwkv.rwkv_linear_attention is scans._rwkv_linear_attention
