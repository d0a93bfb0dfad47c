"""Mamba's selective scan on the CPU and RWKV's WKV on the CPU and on GPUs, with gradients.

The Hugging Face fallbacks walk over time in Python, one small tensor after the other: fine for a
demonstration, hours for training. On the CPU the walk is a numba kernel, parallel over the batch and vectorised
over channels (token-major layout, so channels lie side by side in memory). On a GPU WKV is a scan of log2(time)
steps over whole tensors; Mamba keeps Hugging Face's path there, which is mamba-ssm's kernel where that is installed.
`install` puts all this behind the Hugging Face classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numba import njit, prange
from torch import Tensor
from torch.nn import functional as F
from transformers.models.falcon_mamba import modeling_falcon_mamba
from transformers.models.mamba import modeling_mamba
from transformers.models.rwkv import modeling_rwkv

_CHUNK = 32  # channels whose states for all times lie in the cache together during the backward walk
_FLAGS = dict(fastmath=True, parallel=True, cache=True, error_model="numpy")
Inner, OfState = Float[Tensor, "batch time d_inner"], Float[Tensor, "batch time d_state"]  # Mamba's
Series, PerChannel = Float[Tensor, "batch time d"], Float[Tensor, " d"]  # RWKV's
LOG2E, LN2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)


@njit(fastmath=True, inline="always", error_model="numpy")
def _exp(x):
    """exp for x ≤ 88 as 2**k times a polynomial: the compiler can vectorise it (relative error 3e-7)."""
    x = max(x, np.float32(-87.0))
    k = np.floor(x * LOG2E + np.float32(0.5))
    r = x - k * LN2
    p = np.float32(1 / 720)
    p = p * r + np.float32(1 / 120)
    p = p * r + np.float32(1 / 24)
    p = p * r + np.float32(1 / 6)
    p = p * r + np.float32(0.5)
    p = p * r + np.float32(1.0)
    p = p * r + np.float32(1.0)
    return p * np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)


# ---------------------------------------------------------------- Mamba: h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t


@njit(**_FLAGS)
def _scan_forward(u, dt, A, B, C, y, last):
    """y[b, t, d] = Σ_n C[b, t, n] h[b, t, d, n]; A is [d_state, d_inner]; `last` takes h after the last token."""
    batch, time, d_inner = u.shape
    d_state = A.shape[0]
    for b in prange(batch):
        h = np.zeros((d_state, d_inner), np.float32)
        write = np.empty(d_inner, np.float32)
        for t in range(time):
            for d in range(d_inner):
                write[d] = dt[b, t, d] * u[b, t, d]
                y[b, t, d] = 0
            for n in range(d_state):
                b_n, c_n = B[b, t, n], C[b, t, n]
                for d in range(d_inner):
                    h[n, d] = _exp(dt[b, t, d] * A[n, d]) * h[n, d] + b_n * write[d]
                    y[b, t, d] += c_n * h[n, d]
        last[b] = h


@njit(fastmath=True, inline="always", error_model="numpy")
def _softplus(x):
    """log(1 + exp(x)) by the series of artanh, whose error is below 1e-7; the compiler can vectorise it."""
    e = _exp(-abs(x))
    r = e / (np.float32(2) + e)
    s = r * r
    p = np.float32(1 / 13)
    p = p * s + np.float32(1 / 11)
    p = p * s + np.float32(1 / 9)
    p = p * s + np.float32(1 / 7)
    p = p * s + np.float32(1 / 5)
    p = p * s + np.float32(1 / 3)
    p = p * s + np.float32(1)
    return max(x, np.float32(0)) + np.float32(2) * r * p


@njit(fastmath=True, inline="always", error_model="numpy")
def _silu(x):
    return x / (np.float32(1) + _exp(-x))


@njit(**_FLAGS)
def _gated_scan(u, low, bias, A, B, C, D, z, y):
    """What a mixer does between its projections, in one sweep without gradients: Δ, `_scan_forward`, D, the gate."""
    batch, time, d_inner = u.shape
    d_state = A.shape[0]
    for b in prange(batch):
        h = np.zeros((d_state, d_inner), np.float32)
        dt, write, out = np.empty((3, d_inner), np.float32)
        for t in range(time):
            for d in range(d_inner):
                dt[d] = _softplus(low[b, t, d] + bias[d])
                write[d] = dt[d] * u[b, t, d]
                out[d] = D[d] * u[b, t, d]
            for n in range(d_state):
                b_n, c_n = B[b, t, n], C[b, t, n]
                for d in range(d_inner):
                    h[n, d] = _exp(dt[d] * A[n, d]) * h[n, d] + b_n * write[d]
                    out[d] += c_n * h[n, d]
            for d in range(d_inner):
                y[b, t, d] = out[d] * _silu(z[b, t, d])


@njit(fastmath=True, cache=True, error_model="numpy")
def _scan_backward_chunk(dt, write, gy, A, B, C, h, decay, gA, gB, gC, s_write, s_decay):
    """Backward walk of one batch entry over `_CHUNK` channels; all arrays contiguous and chunk-sized."""
    time, d_state = B.shape
    h[0] = 0
    for t in range(time):
        for n in range(d_state):
            b_n = B[t, n]
            for i in range(_CHUNK):
                decay[t, n, i] = _exp(dt[t, i] * A[n, i])
                h[t + 1, n, i] = decay[t, n, i] * h[t, n, i] + b_n * write[t, i]
    gh = np.zeros((d_state, _CHUNK), np.float32)
    for t in range(time - 1, -1, -1):
        s_write[t] = 0
        s_decay[t] = 0
        for n in range(d_state):
            b_n, c_n = B[t, n], C[t, n]
            g_b, g_c = np.float32(0), np.float32(0)
            for i in range(_CHUNK):
                g = gh[n, i] + c_n * gy[t, i]
                g_c += gy[t, i] * h[t + 1, n, i]
                g_b += g * write[t, i]
                s_write[t, i] += g * b_n
                g_h = g * decay[t, n, i]
                s_decay[t, i] += g_h * h[t, n, i] * A[n, i]
                gA[n, i] += g_h * h[t, n, i] * dt[t, i]
                gh[n, i] = g_h
            gB[t, n] += g_b
            gC[t, n] += g_c


@njit(**_FLAGS)
def _scan_backward(u, dt, A, B, C, gy, gu, gdt, gA, gB, gC):
    """Gradients of `_scan_forward`; states are recomputed, so nothing is kept between the passes.

    gA is [batch, d_state, d_inner]: one slice per batch entry, summed by the caller.
    """
    batch, time, d_inner = u.shape
    d_state = A.shape[0]
    for b in prange(batch):
        h = np.empty((time + 1, d_state, _CHUNK), np.float32)
        decay = np.empty((time, d_state, _CHUNK), np.float32)
        s_write = np.empty((time, _CHUNK), np.float32)
        s_decay = np.empty((time, _CHUNK), np.float32)
        for first in range(0, d_inner, _CHUNK):
            part = slice(first, first + _CHUNK)
            dt_c, u_c, gy_c = dt[b, :, part].copy(), u[b, :, part].copy(), gy[b, :, part].copy()
            gA_c = np.zeros((d_state, _CHUNK), np.float32)
            A_c = A[:, part].copy()
            _scan_backward_chunk(
                dt_c, dt_c * u_c, gy_c, A_c, B[b], C[b], h, decay, gA_c, gB[b], gC[b], s_write, s_decay
            )
            gA[b, :, part] = gA_c
            gu[b, :, part] = s_write * dt_c
            gdt[b, :, part] = s_write * u_c + s_decay


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, dt, A, B, C):
        u, dt, A, B, C = (x.detach().float().contiguous() for x in (u, dt, A.T, B, C))
        y, last = torch.empty_like(u), torch.empty(len(u), *A.shape)
        _scan_forward(*(x.numpy() for x in (u, dt, A, B, C, y, last)))
        ctx.save_for_backward(u, dt, A, B, C)
        return y

    @staticmethod
    def backward(ctx, gy):
        u, dt, A, B, C = ctx.saved_tensors
        gu, gdt, gB, gC = (torch.zeros_like(x) for x in (u, dt, B, C))
        gA = torch.zeros(len(u), *A.shape)
        arrays = (u, dt, A, B, C, gy.float().contiguous(), gu, gdt, gA, gB, gC)
        _scan_backward(*(x.numpy() for x in arrays))
        return gu, gdt, gA.sum(0).T, gB, gC


def selective_scan(u: Inner, dt: Inner, A: Float[Tensor, "d_inner d_state"], B: OfState, C: OfState) -> Inner:
    """Mamba's recurrence h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t, read out as y_t = C_t h_t (W, eq. 7).

    CPU tensors of any float type; computed in float32; d_inner must be a multiple of 32. Differentiable.
    """
    if u.shape[-1] % _CHUNK:
        raise ValueError(f"d_inner must be a multiple of {_CHUNK} for the CPU scan, not {u.shape[-1]}.")
    return _SelectiveScan.apply(u, dt, A, B, C)


@torch.no_grad()
def final_state(
    u: Inner, dt: Inner, A: Float[Tensor, "d_inner d_state"], B: OfState
) -> Float[Tensor, "batch d_inner d_state"]:
    """State of `selective_scan` after the last token; on a GPU in closed form."""
    if u.device.type != "cpu":
        return final_state_in_closed_form(u, dt, A, B)
    u, dt, A, B = (x.detach().float().contiguous() for x in (u, dt, A.T, B))
    last = torch.empty(len(u), *A.shape)
    _scan_forward(*(x.numpy() for x in (u, dt, A, B, B, torch.empty_like(u), last)))
    return last.transpose(1, 2)


def final_state_in_closed_form(u: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """h_T = Σ_s exp(A Σ_{u>s} Δ_u) Δ_s B_s u_s; shapes as in `final_state`."""
    later = dt.sum(1, keepdim=True) - dt.cumsum(1)  # Σ of Δ over the tokens after each token
    states = [torch.einsum("btd,btd,bt->bd", torch.exp(later * A[:, n]), dt * u, B[..., n]) for n in range(A.shape[1])]
    return torch.stack(states, dim=-1)


@njit(**_FLAGS)
def _conv_forward(x, weight, bias, y):
    """y[b, t] = bias + Σ_k weight[k] x[b, t - taps + 1 + k]; weight is [taps, d_inner]."""
    batch, time, d_inner = x.shape
    taps = weight.shape[0]
    for b in prange(batch):
        for t in range(time):
            for d in range(d_inner):
                y[b, t, d] = bias[d]
            for k in range(max(0, taps - 1 - t), taps):
                for d in range(d_inner):
                    y[b, t, d] += weight[k, d] * x[b, t - taps + 1 + k, d]


@njit(**_FLAGS)
def _conv_backward(x, weight, gy, gx, gweight):
    """Gradients of `_conv_forward`; gweight is [batch, taps, d_inner], summed by the caller."""
    batch, time, d_inner = x.shape
    taps = weight.shape[0]
    for b in prange(batch):
        for t in range(time):
            for k in range(max(0, taps - 1 - t), taps):
                for d in range(d_inner):
                    gx[b, t - taps + 1 + k, d] += weight[k, d] * gy[b, t, d]
                    gweight[b, k, d] += gy[b, t, d] * x[b, t - taps + 1 + k, d]


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        x, weight, bias = (v.detach().float().contiguous() for v in (x, weight.T, bias))
        y = torch.empty_like(x)
        _conv_forward(*(v.numpy() for v in (x, weight, bias, y)))
        ctx.save_for_backward(x, weight)
        return y

    @staticmethod
    def backward(ctx, gy):
        x, weight = ctx.saved_tensors
        gy, gx, gweight = gy.float().contiguous(), torch.zeros_like(x), torch.zeros(len(x), *weight.shape)
        _conv_backward(*(v.numpy() for v in (x, weight, gy, gx, gweight)))
        return gx, gweight.sum(0).T, gy.sum((0, 1))


def causal_conv(x: Inner, weight: Float[Tensor, "d_inner taps"], bias: Float[Tensor, " d_inner"] | None) -> Inner:
    """Depthwise causal convolution, tap 0 being the oldest token (W, eq. 6). CPU; float32; differentiable."""
    return _CausalConv.apply(x, weight, weight.new_zeros(len(weight)) if bias is None else bias)


# ------------------------------------------------------------------------------------------------- RWKV-4: WKV


@njit(**_FLAGS)
def _wkv_forward(w, first, k, v, y):
    """w: log decay per channel (negative); first: bonus of the current token; all [batch, time, d]."""
    batch, time, width = k.shape
    for b in prange(batch):
        num, den = np.zeros(width, np.float32), np.zeros(width, np.float32)
        top = np.full(width, np.float32(-1e30))
        for t in range(time):
            for d in range(width):
                key = k[b, t, d]
                m = max(top[d], key + first[d])
                e1, e2 = _exp(top[d] - m), _exp(key + first[d] - m)
                y[b, t, d] = (e1 * num[d] + e2 * v[b, t, d]) / (e1 * den[d] + e2)
                m = max(top[d] + w[d], key)
                e1, e2 = _exp(top[d] + w[d] - m), _exp(key - m)
                num[d] = e1 * num[d] + e2 * v[b, t, d]
                den[d] = e1 * den[d] + e2
                top[d] = m


@njit(**_FLAGS)
def _wkv_backward(w, first, k, v, y, gy, gw, gfirst, gk, gv):
    """Gradients of `_wkv_forward`; gw, gfirst are [batch, d], summed by the caller.

    A first walk keeps what the output at t saw: its denominator's logarithm z, and how numerator and
    denominator change with w (pn, pd). The walk back carries Σ over later outputs that still see token t.
    """
    batch, time, width = k.shape
    for b in prange(batch):
        num, den = np.zeros(width, np.float32), np.zeros(width, np.float32)
        pn, pd = np.zeros(width, np.float32), np.zeros(width, np.float32)
        top = np.full(width, np.float32(-1e30))
        q = np.empty((time, width), np.float32)
        z = np.empty((time, width), np.float32)
        for t in range(time):
            for d in range(width):
                key, value = k[b, t, d], v[b, t, d]
                m = max(top[d], key + first[d])
                e1, e2 = _exp(top[d] - m), _exp(key + first[d] - m)
                q[t, d] = gy[b, t, d] / (e1 * den[d] + e2)
                z[t, d] = m
                gw[b, d] += q[t, d] * e1 * (pn[d] - y[b, t, d] * pd[d])
                now = q[t, d] * e2 * (value - y[b, t, d])
                gfirst[b, d] += now
                gk[b, t, d] = now
                gv[b, t, d] = q[t, d] * e2
                m = max(top[d] + w[d], key)
                e1, e2 = _exp(top[d] + w[d] - m), _exp(key - m)
                pn[d] = e1 * (pn[d] + num[d])
                pd[d] = e1 * (pd[d] + den[d])
                num[d] = e1 * num[d] + e2 * value
                den[d] = e1 * den[d] + e2
                top[d] = m
        later, later_y = np.zeros(width, np.float32), np.zeros(width, np.float32)
        scale = np.full(width, np.float32(-1e30))
        for t in range(time - 1, -1, -1):
            for d in range(width):
                key = k[b, t, d]
                e = _exp(min(key + scale[d], np.float32(80.0)))
                gk[b, t, d] += e * (later[d] * v[b, t, d] - later_y[d])
                gv[b, t, d] += e * later[d]
                m = max(scale[d] + w[d], -z[t, d])
                e1, e2 = _exp(scale[d] + w[d] - m), _exp(-z[t, d] - m)
                later[d] = e1 * later[d] + e2 * q[t, d]
                later_y[d] = e1 * later_y[d] + e2 * q[t, d] * y[b, t, d]
                scale[d] = m


class _WKV(torch.autograd.Function):
    @staticmethod
    def forward(ctx, time_decay, time_first, k, v):
        w = -torch.exp(time_decay.detach().float())
        first, k, v = (x.detach().float().contiguous() for x in (time_first, k, v))
        y = torch.empty_like(k)
        _wkv_forward(*(x.numpy() for x in (w, first, k, v, y)))
        ctx.save_for_backward(w, first, k, v, y)
        return y

    @staticmethod
    def backward(ctx, gy):
        w, first, k, v, y = ctx.saved_tensors
        gw, gfirst = torch.zeros(len(k), len(w)), torch.zeros(len(k), len(w))
        gk, gv = torch.empty_like(k), torch.empty_like(v)
        arrays = (w, first, k, v, y, gy.float().contiguous(), gw, gfirst, gk, gv)
        _wkv_backward(*(x.numpy() for x in arrays))
        return gw.sum(0) * w, gfirst.sum(0), gk, gv  # w = -exp(decay), so d w / d decay = w


def wkv(time_decay: PerChannel, time_first: PerChannel, key: Series, value: Series) -> Series:
    """RWKV-4's attention: an average of values weighted by exp(key), decaying by exp(-exp(time_decay)) a token.

    CPU tensors of any float type; computed in float32. Differentiable.
    """
    return _WKV.apply(time_decay, time_first, key, value)


WKVState = list[Float[Tensor, "batch d"]]
"""Σ exp(k) v and Σ exp(k) over the tokens read, decayed and divided by exp(m), and their m (transformers' order)."""


def wkv_by_doubling(
    time_decay: PerChannel, time_first: PerChannel, key: Series, value: Series, state: WKVState | None = None
) -> tuple[Series, WKVState]:
    """`wkv` on any device, and the state after the last token, in log2(time) steps instead of a walk over time.

    Each place starts as the sums of its own token. A step adds the sums that end `reach` places earlier, decayed by
    so many tokens, and doubles the reach, until all places hold the sums of all tokens before them. The sums are
    divided by exp of their greatest exponent, as in the walk, so that no key is too large. `state` is what an earlier
    text left behind. Computed in float32; differentiable. Memory: some ten times that of `key`, and as much again for
    every step where gradients are kept.
    """
    w = -torch.exp(time_decay.float())
    first, k, v = (x.float() for x in (time_first, key, value))
    nothing = torch.zeros_like(k[:, :1])
    start = (nothing, nothing, nothing - 1e38) if state is None else (x[:, None].float() for x in state)
    own = (torch.exp(k - k.detach()) * v, torch.exp(k - k.detach()), k.detach())
    num, den, top = (torch.cat(pair, dim=1) for pair in zip(start, own))
    reach = 1
    while reach < num.shape[1]:
        added = _add_sums(
            (num[:, :-reach], den[:, :-reach], top[:, :-reach] + reach * w),
            (num[:, reach:], den[:, reach:], top[:, reach:]),
        )
        num, den, top = (torch.cat([old[:, :reach], new], dim=1) for old, new in zip((num, den, top), added))
        reach *= 2
    own = (v, torch.ones_like(v), k + first)
    numerator, denominator, _ = _add_sums((num[:, :-1], den[:, :-1], top[:, :-1]), own)
    return numerator / denominator, [x[:, -1] for x in (num, den, top)]


def _add_sums(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Two pairs of sums, each divided by exp of its third entry, added; the result is divided by exp of the larger.

    What they are divided by cancels in the end, so no gradient needs to go through its maximum.
    """
    (num_a, den_a, top_a), (num_b, den_b, top_b) = a, b
    top = torch.maximum(top_a, top_b).detach()
    scale_a, scale_b = torch.exp(top_a - top), torch.exp(top_b - top)
    return scale_a * num_a + scale_b * num_b, scale_a * den_a + scale_b * den_b, top


# --------------------------------------------------------------------------- behind the Hugging Face classes


_hf_scan = modeling_mamba.mamba_selective_scan
_hf_conv = modeling_mamba.causal_conv1d_fn


def _mamba_selective_scan(u, dt, A, B, C, *, D, z, delta_bias, **kwargs):
    """Of its options the mixers set `delta_softplus` always."""
    if u.device.type != "cpu" or kwargs.get("return_last_state") or u.shape[1] % _CHUNK:
        return _hf_scan(u, dt, A, B, C, D=D, z=z, delta_bias=delta_bias, **kwargs)
    if not torch.is_grad_enabled():
        u, low, B, C, z = (x.transpose(1, 2).float() for x in (u, dt, B, C, z))
        y = torch.empty_like(u, memory_format=torch.contiguous_format)
        arrays = (u.contiguous(), low.contiguous(), delta_bias, A.T.contiguous(), B, C, D, z, y)
        _gated_scan(*(x.detach().numpy() for x in arrays))
        return y.transpose(1, 2)
    step = F.softplus(dt.transpose(1, 2).float() + delta_bias)
    u = u.transpose(1, 2)
    y = selective_scan(u, step, A, B.transpose(1, 2), C.transpose(1, 2)) + u * D
    return (y * F.silu(z.transpose(1, 2))).transpose(1, 2)


def _causal_conv1d_fn(x, weight, bias=None, activation=None, **kwargs):
    if x.device.type != "cpu":
        return _hf_conv(x, weight, bias, activation=activation, **kwargs)
    out = causal_conv(x.transpose(1, 2), weight, bias)
    out = out if activation is None else modeling_mamba.ACT2FN[activation](out)
    return out.transpose(1, 2).to(x.dtype)


def _rwkv_linear_attention(time_decay, time_first, key, value, state=None, return_state=False):
    if key.device.type == "cpu" and state is None and not return_state:
        return wkv(time_decay, time_first, key, value), None
    y, last = wkv_by_doubling(time_decay, time_first, key, value, state)
    return y.to(key.dtype), last if return_state or state is not None else None


def install() -> None:
    """Let Mamba, Falcon Mamba and RWKV of transformers use what is here. Calling it again changes nothing."""
    for modeling in (modeling_mamba, modeling_falcon_mamba):
        modeling.mamba_selective_scan = _mamba_selective_scan
        modeling.causal_conv1d_fn = _causal_conv1d_fn
    modeling_rwkv.rwkv_linear_attention = _rwkv_linear_attention
