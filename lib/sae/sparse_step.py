"""One training step of a standard SAE on the CPU, on its active features only.

Of a step's work only the encoder product needs every feature. The rest (exact pre-activations, decoding, error,
gradients, Adam) touches the `l0` features that fire on a token, a few dozen of thousands. Two sweeps over the features:

1. `_forward`: where the dense product says that a feature may fire, its exact activation, and its part of x̂ − x.
2. `_update`: every feature gathers its gradient and takes its Adam step at once, so that no gradient is ever stored.
   Features that did not fire get their step too: the result is that of dense Adam.

The product runs in bfloat16 where the processor has the instructions. It decides only which features are looked at:
every active pre-activation is computed again in float32.
"""

from __future__ import annotations

import math
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numba import get_num_threads, njit, prange
from numba.core.registry import CPUDispatcher
from torch import Tensor, nn

from lib.models import fast_dtype
from lib.sae.autoencoder import StepStats
from lib.sae.config import BETA1, BETA2, EPS

# Rounding to bfloat16 moves a pre-activation by up to about 2^-8 of its terms: features this far below zero are still
# looked at, and dropped if the float32 value is not positive.
_MARGIN = 2**-6
_TILE = 2**21  # numbers in one dense product: its result fits the cache
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
def _forward(pre, shift, margin, first, x, weights, token, f, place, start, residual):
    """Features of one tile, from `first` on: on which tokens each is active, its activations, its part of x̂ − x.

    `pre` [features, tokens] holds the dense product's bits as integers, which `shift` makes those of a float32. Feature
    i's pairs are written to `token` and `f` at `start[i, 0]` up to `start[i, 1]`. Each part of the features has places
    of its own there, of which `place` is the next, and a `residual` of its own, so that parts can run at once.
    """
    n_parts, n_tokens, d_model = residual.shape
    room = len(f) // n_parts
    W_enc, b_enc, W_dec, b_dec = weights
    for p in prange(n_parts):
        bits = np.empty(n_tokens, np.uint32)
        value = bits.view(np.float32)
        may_fire = np.zeros(-(-n_tokens // 8) * 8, np.uint8)
        eight = may_fire.view(np.uint64)
        if first == 0:
            place[p] = p * room
            for t in range(n_tokens):
                for d in range(d_model):
                    residual[p, t, d] = b_dec[d] - x[t, d] if p == 0 else 0
        at = place[p]
        for i in range(first + p * len(pre) // n_parts, first + (p + 1) * len(pre) // n_parts):
            row, threshold = pre[i - first], -(b_enc[i] + margin)
            for t in range(n_tokens):
                bits[t] = np.uint32(row[t]) << shift
            for t in range(n_tokens):
                may_fire[t] = value[t] > threshold
            start[i, 0] = at
            for w in range(len(eight)):
                if not eight[w]:  # most words
                    continue
                for t in range(8 * w, 8 * w + 8):
                    if not may_fire[t]:
                        continue
                    exact = b_enc[i]
                    for d in range(d_model):
                        exact += x[t, d] * W_enc[i, d]
                    if exact > 0:
                        token[at], f[at] = t, exact
                        at += 1
                        for d in range(d_model):
                            residual[p, t, d] += exact * W_dec[i, d]
            start[i, 1] = at
        place[p] = at


@njit(inline="always", **_FLAGS)
def _adam(parameter, m, v, gradient, rate, correction):
    """Adam's step for one row, in place; `rate` = lr / (1 − β1^t), `correction` = 1 / sqrt(1 − β2^t)."""
    for d in range(parameter.shape[0]):
        m[d] += np.float32(1 - BETA1) * (gradient[d] - m[d])
        v[d] = np.float32(BETA2) * v[d] + np.float32(1 - BETA2) * gradient[d] * gradient[d]
        parameter[d] -= rate * m[d] / (np.sqrt(v[d]) * correction + np.float32(EPS))


@partial(_kernel, fastmath=_SUMS)
def _update(start, token, f, x, residual, norms, l1, rate, correction, weights, m, v, low, sums):
    """Gradient and Adam step of every feature's rows, and of b_dec. `m`, `v`: of (W_enc, b_enc, W_dec, b_dec).

    While a feature's rows are in the cache, what the next step wants of them is made: `norms`, and W_enc's bits in
    bfloat16, `low`, which is empty where the product takes W_enc itself. Each part of the features leaves its share of
    ‖x̂ − x‖², Σ f·‖W_dec‖ and the number of active features, means over tokens, in a row of `sums`.
    """
    W_enc, b_enc, W_dec, b_dec = weights
    d_sae, d_model = W_enc.shape
    n_parts, n_tokens, scale = len(sums), len(x), np.float32(1 / len(x))
    m_enc, m_b, m_dec, m_last = m
    v_enc, v_b, v_dec, v_last = v
    for p in prange(n_parts):
        error, sparsity, active = 0.0, 0.0, 0
        grad_enc, grad_dec = np.zeros(d_model, np.float32), np.zeros(d_model, np.float32)
        grad_b = np.zeros(1, np.float32)
        if p == 0:
            for t in range(n_tokens):
                square = np.float32(0)
                for d in range(d_model):
                    grad_dec[d] += 2 * scale * residual[t, d]
                    square += residual[t, d] * residual[t, d]
                error += square
            _adam(b_dec, m_last, v_last, grad_dec, rate, correction)
        for i in range(p * d_sae // n_parts, (p + 1) * d_sae // n_parts):
            grad_enc[:] = 0
            grad_dec[:] = 0
            grad_b[0] = 0
            f_sum = np.float32(0)
            for k in range(start[i, 0], start[i, 1]):
                t = token[k]
                g = np.float32(0)  # d loss / d pre-activation
                for d in range(d_model):
                    g += residual[t, d] * W_dec[i, d]
                g = (2 * g + l1 * norms[i]) * scale
                f_sum += f[k]
                grad_b[0] += g
                f_k = 2 * scale * f[k]
                for d in range(d_model):
                    grad_enc[d] += g * x[t, d]
                    grad_dec[d] += f_k * residual[t, d]
            pull = l1 * scale * f_sum / max(norms[i], np.float32(1e-12))
            for d in range(d_model):
                grad_dec[d] += pull * W_dec[i, d]
            sparsity += f_sum * norms[i]
            active += start[i, 1] - start[i, 0]
            _adam(W_enc[i], m_enc[i], v_enc[i], grad_enc, rate, correction)
            _adam(W_dec[i], m_dec[i], v_dec[i], grad_dec, rate, correction)
            _adam(b_enc[i : i + 1], m_b[i : i + 1], v_b[i : i + 1], grad_b, rate, correction)
            square = np.float32(0)
            for d in range(d_model):
                square += W_dec[i, d] * W_dec[i, d]
            norms[i] = np.sqrt(square)
            if low.shape[0]:
                bits, half = W_enc[i].view(np.uint32), np.uint32(16)
                for d in range(d_model):  # to the nearest, ties to even
                    low[i, d] = (bits[d] + np.uint32(0x7FFF) + ((bits[d] >> half) & np.uint32(1))) >> half
        sums[p, 0], sums[p, 1], sums[p, 2] = error / n_tokens, sparsity / n_tokens, active / n_tokens


class _Rows:
    """Views of an SAE and its optimiser, one feature per row, and what the last step left for the next."""

    def __init__(self, sae: nn.Module, adam: torch.optim.Adam, pre: Tensor) -> None:
        parameters = [sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec]
        states = [adam.state[p] for p in parameters]
        self.adam = adam
        self.weights = tuple(map(_rows, parameters))
        self.m, self.v = (tuple(_rows(state[moment]) for state in states) for moment in ("exp_avg", "exp_avg_sq"))
        self.counts = [state["step"].numpy() for state in states]
        self.done = float(self.counts[0])
        W_enc, _, W_dec, _ = self.weights
        self.norms = np.linalg.norm(W_dec, axis=1)
        encoder = torch.from_numpy(W_enc).to(pre.dtype)  # what the product takes
        as_bits, self.low = torch.uint32, np.empty((0, 0), np.uint16)
        if pre.dtype is torch.bfloat16:
            as_bits = torch.uint16
            self.low = encoder.view(as_bits).numpy()
        self.tiles = []  # of features: what they start with, weights, room for the product, the product's bits
        for first in range(0, len(encoder), len(pre)):
            weights = encoder[first : first + len(pre)]
            product = pre[: len(weights)]
            self.tiles.append((first, weights, product, product.view(as_bits).numpy()))

    def count_step(self) -> tuple[np.float32, np.float32]:
        """Advance Adam's step count; return lr / (1 − β1^t) and 1 / sqrt(1 − β2^t)."""
        self.done += 1
        for count in self.counts:
            count[...] = self.done
        rate = self.adam.param_groups[0]["lr"] / (1 - BETA1**self.done)
        return np.float32(rate), np.float32(1 / math.sqrt(1 - BETA2**self.done))


class SparseStep:
    """The same step as `lib.sae.dense_step.dense_step`, for standard float32 SAEs on the CPU; holds the scratch memory.

    Scratch: a tile of the product and, for each thread, x̂ − x; and batch_size · d_sae · 8 bytes of address space,
    of which only what active features need is ever touched.
    One instance serves any number of SAEs of one size, one after the other, on batches of one size. Instances that are
    not `parallel` take one thread each and may run at the same time: the better way where there are as many SAEs as
    threads.
    """

    def __init__(
        self, batch_size: int, d_model: int, d_sae: int, bf16: bool | None = None, parallel: bool = True
    ) -> None:
        self.forward, self.update = (k.parallel if parallel else k.serial for k in (_forward, _update))
        dtype = fast_dtype("cpu") if bf16 is None else (torch.bfloat16 if bf16 else torch.float32)
        self.shift, self.margin = np.uint32(0), np.float32(0)
        if dtype is torch.bfloat16:
            self.shift, self.margin = np.uint32(16), np.float32(_MARGIN)
        n_parts = get_num_threads() if parallel else 1
        tile = min(d_sae, max(n_parts, _TILE // batch_size))
        room = (-(-d_sae // n_parts) + -(-d_sae // tile)) * batch_size  # pairs of a part, at most
        self.place = np.empty(n_parts, np.int64)
        self.token = np.empty(n_parts * room, np.int32)
        self.f = np.empty(n_parts * room, np.float32)
        self.start = np.empty((d_sae, 2), np.int64)
        self.sums = np.empty((n_parts, 3))
        self.known: dict[nn.Module, _Rows] = {}
        self.pre = torch.empty(tile, batch_size, dtype=dtype)  # the product of a tile
        self.residual = np.empty((n_parts, batch_size, d_model), np.float32)  # each part's share of x̂ − x

    def __call__(
        self, sae: nn.Module, adam: torch.optim.Adam, x: Float[Tensor, "batch d_model"], l1: float
    ) -> StepStats:
        """One Adam step on ‖x − x̂‖² + l1 · Σ f·‖W_dec‖ (mean over tokens), in place."""
        rows = self.known.get(sae)
        if rows is None or rows.adam is not adam or rows.done != rows.counts[0]:  # another kind of step ran since
            rows = self.known[sae] = _Rows(sae, adam, self.pre)
        x_rows, columns = x.numpy(), x.to(self.pre.dtype).T
        for first, encoder, pre, bits in rows.tiles:
            torch.mm(encoder, columns, out=pre)
            self.forward(
                bits, self.shift, self.margin, first, x_rows, rows.weights, self.token, self.f, self.place,
                self.start, self.residual,
            )  # fmt: skip
        residual = self.residual[0] if len(self.place) == 1 else torch.from_numpy(self.residual).sum(0).numpy()
        self.update(
            self.start, self.token, self.f, x_rows, residual, rows.norms, np.float32(l1), *rows.count_step(),
            rows.weights, rows.m, rows.v, rows.low, self.sums,
        )  # fmt: skip
        return StepStats(*self.sums.sum(0).tolist())


def _rows(tensor: Tensor) -> np.ndarray:
    """A view with one feature per row; W_enc is kept transposed in memory for this."""
    array = tensor.detach().numpy()
    return array if array.flags.c_contiguous else array.T
