"""One training step of a standard SAE on the CPU, on its active features only.

Of a step's work only the encoder product needs every feature. The rest (exact pre-activations, decoding, error,
gradients, Adam) touches the `l0` features that fire on a token, a few dozen of thousands. Three sweeps:

1. `_forward`, parallel over tokens: candidates from the dense product, then everything a token decides.
2. `_by_feature`: the list of (token, feature) pairs turned from token order to feature order.
3. `_update`, parallel over features: each feature gathers its gradient and takes its Adam step at once, so that no
   gradient is ever stored. Features that did not fire get their step too: the result is that of dense Adam.

The product runs in bfloat16 where the processor has the instructions. It decides only which features are looked at:
every active pre-activation is computed again in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float
from numba import get_num_threads, njit, prange
from numba.core.registry import CPUDispatcher
from torch import Tensor, nn

from lib.models import fast_dtype
from lib.models.prefetch import prefetch
from lib.sae.autoencoder import StepStats
from lib.sae.config import BETA1, BETA2, EPS

# Rounding to bfloat16 moves a pre-activation by up to about 2^-8 of its terms: features this far below zero are still
# looked at, and dropped if the float32 value is not positive.
_MARGIN = 2**-6
_AHEAD = 2  # rows of weights that are on their way from memory
_CHUNK = 2048  # tokens per dense product: its result fits the cache, and threads seldom wait for each other
# A division by zero is infinite: this lets divisions become vector instructions.
_FLAGS = dict(error_model="numpy", cache=True)
_SUMS = {"reassoc", "contract", "nsz"}  # lets sums become vector instructions; NaN and infinity keep their meaning


class _Kernel(NamedTuple):
    """A compiled sweep: one that takes all threads, and one for callers that are threads themselves."""

    parallel: CPUDispatcher
    serial: CPUDispatcher


def _kernel(function: FunctionType, **flags: Any) -> _Kernel:
    # numba's cache on the disk knows kernels by name and line, not by options: each of the two needs a name.
    alone = FunctionType(function.__code__, function.__globals__)
    alone.__qualname__ = f"{function.__qualname__}_serial"
    return _Kernel(njit(parallel=True, **_FLAGS, **flags)(function), njit(nogil=True, **_FLAGS, **flags)(alone))


@partial(_kernel, fastmath=_SUMS)
def _forward(pre, words, signs, x, W_enc, b_enc, W_dec, b_dec, norms, l1, scale, index, f, g, n_active, residual):
    """Tokens of one chunk: active features, their activations `f`, d loss / d pre-activation `g`, and x̂ − x.

    `pre` holds the dense product's bits as integers, whose sign is the number's, and `words` the same several at a
    time: most words have nothing but negative numbers, whose signs are `signs`. `scale` is 1 / batch size.
    """
    n_tokens, d_model = x.shape
    n_words, lanes = words.shape[1], pre.shape[1] // words.shape[1]
    for t in prange(n_tokens):
        row, word, found = pre[t], words[t], index[t]
        chosen, k_words, k = np.empty(n_words, np.int32), 0, 0
        for w in range(n_words):  # no branch, here and below: the position advances only past what is wanted
            chosen[k_words] = w
            k_words += (word[w] & signs) != signs
        for c in range(k_words):
            first = chosen[c] * lanes
            for i in range(first, first + lanes):
                found[k] = i
                k += row[i] > 0
        n = 0
        for c in range(k):
            i = found[c]
            for d in range(0, d_model, 16):
                prefetch(W_enc, np.intp(found[min(c + _AHEAD, k - 1)] * d_model + d))
            value = np.float32(0)
            for d in range(d_model):
                value += x[t, d] * W_enc[i, d]
            value += b_enc[i]
            if value > 0:
                found[n] = i
                f[t, n] = value
                n += 1
        n_active[t] = n
        for d in range(d_model):
            residual[t, d] = b_dec[d] - x[t, d]
        for c in range(n):
            i = found[c]
            for d in range(0, d_model, 16):
                prefetch(W_dec, np.intp(found[min(c + _AHEAD, n - 1)] * d_model + d))
            value = f[t, c]
            for d in range(d_model):
                residual[t, d] += value * W_dec[i, d]
        for c in range(n):
            i = found[c]
            value = np.float32(0)
            for d in range(d_model):
                value += residual[t, d] * W_dec[i, d]
            g[t, c] = (2 * value + l1 * norms[i]) * scale


@_kernel
def _by_feature(index, n_active, d_sae, n_parts):
    """Counting sort of the active pairs by feature: `start[i]:start[i + 1]` are feature i's slots in `token`, `slot`.

    Parallel over `n_parts` groups of tokens; within a feature the tokens stay in order, so sums are reproducible.
    """
    n_tokens = index.shape[0]
    count = np.zeros((n_parts + 1, d_sae), np.int64)
    for p in prange(n_parts):
        for t in range(p * n_tokens // n_parts, (p + 1) * n_tokens // n_parts):
            for c in range(n_active[t]):
                count[p + 1, index[t, c]] += 1
    start = np.zeros(d_sae + 1, np.int64)
    for i in range(d_sae):
        for p in range(n_parts):
            count[p + 1, i] += count[p, i]
        start[i + 1] = start[i] + count[n_parts, i]
    token = np.empty(start[d_sae], np.int32)
    slot = np.empty(start[d_sae], np.int32)
    for p in prange(n_parts):
        place = start[:d_sae] + count[p]
        for t in range(p * n_tokens // n_parts, (p + 1) * n_tokens // n_parts):
            for c in range(n_active[t]):
                i = index[t, c]
                token[place[i]] = t
                slot[place[i]] = c
                place[i] += 1
    return start, token, slot


@njit(inline="always", **_FLAGS)
def _adam(parameter, m, v, gradient, rate, correction):
    """Adam's step for one row, in place; `rate` = lr / (1 − β1^t), `correction` = 1 / sqrt(1 − β2^t)."""
    for d in range(parameter.shape[0]):
        m[d] += np.float32(1 - BETA1) * (gradient[d] - m[d])
        v[d] = np.float32(BETA2) * v[d] + np.float32(1 - BETA2) * gradient[d] * gradient[d]
        parameter[d] -= rate * m[d] / (np.sqrt(v[d]) * correction + np.float32(EPS))


@partial(_kernel, fastmath=_SUMS)
def _update(
    start, token, slot, x, residual, f, g, norms, l1, scale, rate, correction, W_enc, b_enc, W_dec, m, v, f_sum, low
):  # fmt: skip
    """Gradient and Adam step of every feature's encoder row, bias and decoder row. `m`, `v`: (W_enc, b_enc, W_dec).

    While a feature's rows are in the cache, what the next step wants of them is made: `norms`, and W_enc's bits in
    bfloat16, `low`, which is empty where the product takes W_enc itself.
    """
    d_sae, d_model = W_enc.shape
    m_enc, m_b, m_dec = m
    v_enc, v_b, v_dec = v
    for i in prange(d_sae):
        grad_enc = np.zeros(d_model, np.float32)
        grad_dec = np.zeros(d_model, np.float32)
        grad_b = np.zeros(1, np.float32)
        f_sum[i] = 0
        for k in range(start[i], start[i + 1]):
            t = token[k]
            f_k = f[t, slot[k]]
            g_k = g[t, slot[k]]
            f_sum[i] += f_k
            grad_b[0] += g_k
            f_k *= 2 * scale
            for d in range(d_model):
                grad_enc[d] += g_k * x[t, d]
                grad_dec[d] += f_k * residual[t, d]
        pull = l1 * scale * f_sum[i] / max(norms[i], np.float32(1e-12))
        for d in range(d_model):
            grad_dec[d] += pull * W_dec[i, d]
        _adam(W_enc[i], m_enc[i], v_enc[i], grad_enc, rate, correction)
        _adam(W_dec[i], m_dec[i], v_dec[i], grad_dec, rate, correction)
        _adam(b_enc[i : i + 1], m_b[i : i + 1], v_b[i : i + 1], grad_b, rate, correction)
        square = np.float32(0)
        for d in range(d_model):
            square += W_dec[i, d] * W_dec[i, d]
        norms[i] = np.sqrt(square)
        if low.shape[0]:
            bits = W_enc[i].view(np.uint32)
            for d in range(d_model):  # to the nearest, ties to even
                low[i, d] = (bits[d] + np.uint32(0x7FFF) + ((bits[d] >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)


class SparseStep:
    """The same step as `lib.sae.dense_step.dense_step`, for standard float32 SAEs on the CPU; holds the scratch memory.

    Scratch: batch_size · d_sae · 12 bytes of address space, of which only what active features need is ever touched.
    One instance serves any number of SAEs of one size, one after the other. Instances that are not `parallel` take one
    thread each and may run at the same time: the better way where there are as many SAEs as threads.
    """

    def __init__(
        self, batch_size: int, d_model: int, d_sae: int, bf16: bool | None = None, parallel: bool = True
    ) -> None:
        self.n_parts = get_num_threads() if parallel else 1
        self.forward, self.by_feature, self.update = (
            kernel.parallel if parallel else kernel.serial for kernel in (_forward, _by_feature, _update)
        )
        self.dtype = fast_dtype("cpu") if bf16 is None else (torch.bfloat16 if bf16 else torch.float32)
        self.pre = torch.empty(min(_CHUNK, batch_size), d_sae, dtype=self.dtype)
        self.index = np.empty((batch_size, d_sae), np.int32)
        self.f = np.empty((batch_size, d_sae), np.float32)
        self.g = np.empty((batch_size, d_sae), np.float32)
        self.n_active = np.empty(batch_size, np.int32)
        self.residual = np.empty((batch_size, d_model), np.float32)
        self.left: WeakKeyDictionary[nn.Module, tuple[float, np.ndarray, Tensor | None]] = WeakKeyDictionary()

    def __call__(
        self, sae: nn.Module, adam: torch.optim.Adam, x: Float[Tensor, "batch d_model"], l1: float
    ) -> StepStats:
        """One Adam step on ‖x − x̂‖² + l1 · Σ f·‖W_dec‖ (mean over tokens), in place."""
        names = [sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec]
        m, v = ([_rows(adam.state[p][moment]) for p in names] for moment in ("exp_avg", "exp_avg_sq"))
        norms, low = self._of_last_step(sae, adam)
        rate, correction = _count_step(adam, names)
        W_enc, b_enc, W_dec, b_dec = (_rows(p) for p in names)
        l1, scale, n = np.float32(l1), np.float32(1 / len(x)), len(x)
        x_rows, f, g = x.numpy(), self.f[:n], self.g[:n]
        index, n_active, residual = self.index[:n], self.n_active[:n], self.residual[:n]
        for first, bits, words in self._candidates(sae, low, x):
            part, signs = slice(first, first + len(bits)), np.full(4, np.iinfo(bits.dtype).min, bits.dtype)
            self.forward(
                bits, words, signs.view(words.dtype)[0], x_rows[part], W_enc, b_enc, W_dec, b_dec, norms, l1, scale,
                index[part], f[part], g[part], n_active[part], residual[part],
            )  # fmt: skip
        pairs = self.by_feature(index, n_active, len(W_dec), self.n_parts)
        f_sum, old_norms = np.empty_like(b_enc), norms.copy()
        self.update(
            *pairs, x_rows, residual, f, g, norms, l1, scale, rate, correction,
            W_enc, b_enc, W_dec, tuple(m[:3]), tuple(v[:3]), f_sum,
            np.empty((0, 0), np.uint16) if low is None else low.view(torch.uint16).numpy(),
        )  # fmt: skip
        _adam(b_dec, m[3], v[3], 2 * scale * residual.sum(0), rate, correction)
        return StepStats(float(np.vdot(residual, residual)) / n, float(f_sum @ old_norms) / n, float(n_active.mean()))

    def _of_last_step(self, sae: nn.Module, adam: torch.optim.Adam) -> tuple[np.ndarray, Tensor | None]:
        """Decoder norms and W_encᵀ in bfloat16, as the last step left them; made anew if another kind of step ran."""
        done = float(adam.state[sae.b_dec]["step"])
        known, norms, low = self.left.get(sae, (None, None, None))
        if known != done:
            norms = sae.W_dec.detach().norm(dim=1).numpy()
            low = sae.W_enc.detach().T.bfloat16() if self.dtype is torch.bfloat16 else None
        self.left[sae] = done + 1, norms, low
        return norms, low

    def _candidates(
        self, sae: nn.Module, low: Tensor | None, x: Tensor
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """The dense encoder product chunk by chunk, as integers with the same signs; and as words, where they fit."""
        W_enc, x = sae.W_enc.detach() if low is None else low.T, x.to(self.dtype)
        b_enc = (sae.b_enc.detach() + (0 if low is None else _MARGIN)).to(self.dtype)
        bits = torch.int32 if low is None else torch.int16
        for first in range(0, len(x), _CHUNK):
            pre = self.pre[: len(x) - first]
            torch.addmm(b_enc, x[first : first + _CHUNK], W_enc, out=pre)
            pre = pre.view(bits).numpy()
            yield first, pre, pre if pre.strides[0] % 8 else pre.view(np.int64)


def _rows(tensor: Tensor) -> np.ndarray:
    """A view with one feature per row; W_enc is kept transposed in memory for this."""
    array = tensor.detach().numpy()
    return array if array.flags.c_contiguous else array.T


def _count_step(adam: torch.optim.Adam, parameters: list[nn.Parameter]) -> tuple[np.float32, np.float32]:
    """Advance Adam's step count; return lr / (1 − β1^t) and 1 / sqrt(1 − β2^t)."""
    for parameter in parameters:
        adam.state[parameter]["step"] += 1
    t = float(adam.state[parameters[0]]["step"])
    return np.float32(adam.param_groups[0]["lr"] / (1 - BETA1**t)), np.float32(1 / math.sqrt(1 - BETA2**t))
