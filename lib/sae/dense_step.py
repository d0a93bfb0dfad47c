"""One training step of an SAE by dense products: by autograd for every type, by hand and faster for standard ones.

On a CPU the step by hand is the fastest while many features are active, at the start of a training; after that the
step on active features is (`lib.sae.sparse_step`). On a GPU it is always this one. At the paper's size (768 → 24,576,
batch 4,096, 64 features active) one product is 155 GFLOP: 0.25 ms at 600 TFLOP/s, which is about what an H100's tensor
cores reach. A step on active features saves four products of five, 1 ms, but reads a row of 768 floats for every active
pair, five times: 5 · 262,144 · 3 KiB = 4 GB, 1.3 ms at 3 TB/s; and it has to find the active pairs first.

What can be saved is memory traffic. Autograd keeps and reads some ten arrays of batch × d_sae; here it is two, in
bfloat16, changed in place: the sparsity term needs Σ_t f only, and ReLU's mask is f itself. None of this has been
timed on a GPU.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lib.models import fast_dtype
from lib.sae.autoencoder import SAE, StepStats


def dense_step(sae: SAE, adam: torch.optim.Adam, x: Float[Tensor, "batch d_model"], l1: float) -> StepStats:
    """One Adam step by autograd on `sae.loss`, for SAEs of any type."""
    loss, stats = sae.loss(x, l1)
    adam.zero_grad()
    loss.backward()
    adam.step()
    return stats


@torch.no_grad()
def step_by_hand(
    sae: SAE, adam: torch.optim.Adam, x: Float[Tensor, "batch d_model"], l1: float, dtype: torch.dtype | None = None
) -> StepStats:
    """`dense_step` of a standard SAE with products of `dtype`, summed in float32; the rest stays float32.

    `dtype` is `fast_dtype` unless given. On a GPU nothing waits for it: the result stays on the device. Memory beside
    the SAE: 2 · batch · d_sae numbers of `dtype`, the weights once more in `dtype`, and their gradients.
    """
    dtype = dtype or fast_dtype(x.device.type)
    x_low, W_enc, b_enc, W_dec = (value.to(dtype) for value in (x, sae.W_enc, sae.b_enc, sae.W_dec))
    f = torch.addmm(b_enc, x_low, W_enc).relu_()
    residual = (f @ W_dec).to(x.dtype) + sae.b_dec - x
    norms, share = sae.W_dec.norm(dim=1), 1 / len(x)
    f_sum = f.sum(0, dtype=x.dtype)

    pull = (l1 * share * f_sum / norms.clamp_min(1e-12))[:, None]
    sae.W_dec.grad = torch.addcmul((f.T @ (2 * share * residual).to(dtype)).to(x.dtype), pull, sae.W_dec)
    sae.b_dec.grad = 2 * share * residual.sum(0)
    g = torch.addmm((l1 * share * norms).to(dtype), (2 * share * residual).to(dtype), W_dec.T)
    g = torch.ops.aten.threshold_backward(g, f, 0)  # ReLU's mask in one pass
    sae.W_enc.grad = (g.T @ x_low).to(x.dtype).T  # transposed in memory, as the weights are
    sae.b_enc.grad = g.sum(0, dtype=x.dtype)
    adam.step()
    adam.zero_grad()  # other SAEs need the memory

    sparsity = share * (f_sum @ norms)
    return StepStats(share * residual.square().sum(), sparsity, share * f.sign().sum(dtype=x.dtype))
