"""MPPC and the SAE step on a GPU: `python -m tests.benchmarks.gpu`. Not measured yet; what is expected of one H100:

MPPC, the whole job (1M tokens, 12 × 24 layers of 24,576 features, L0 64): 30 to 45 s, by this reckoning.
- 1.2e12 multiply-adds, each an atomic add of 64 bits that stays in the L2 cache: the sums of a tile, 130 features of
  A by 24,576 of B, take half of its 50 MB. At one add per clock in each of about 100 slices, 1.7e11/s: 7 s. Twice that
  if 64 bits count double, and more where many tokens add to one sum, as those of two frequent features do.
- 6 bytes of B are read per multiply-add (16-bit index, float32), in runs of some 64 entries in no order, from memory:
  7e12 bytes at 2 to 2.5 TB/s, 3 s, beside the adds. 24 bytes per entry of A, 1.8e10 entries over all pairs: 0.2 s.
- The sweep over 1.7e11 sums reads 16 bytes and writes 8 each, in L2 at 5 TB/s: 1 s.
- 110,000 kernel launches of about 20 µs of Python: 2 s, mostly behind the GPU's work.
- On the CPU: 0.7 s to make a layer ready and 0.7 s to turn it round (measured on one core of a server CPU, at a tenth
  of the size): 17 s for all of A before the GPU has work, then 17 s for B, a layer ahead of the GPU. Copies: 3 s.

SAE step, 768 → 24,576, batch 4,096 (`lib.sae.dense_step.step_by_hand`): 2.5 ms. Five products take 1.3 at 600
TFLOP/s, 2.4 GB of passes over arrays of batch × d_sae 0.8 ms at 3 TB/s, Adam on 38M weights 0.35 ms. Share of the
roofline: the time that the products alone would take at the tensor cores' nominal 989 TFLOP/s, over the step's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import pandas as pd
import torch

from lib.mppc.features import SparseFeatures
from lib.mppc.gpu import best_matches, place
from lib.mppc.sparse_pearson import varying_features
from lib.sae import SparseAutoencoder
from lib.sae.dense_step import dense_step, step_by_hand
from lib.sae.training import new_adam
from tests.benchmarks.mppc import multiply_adds, power_law_features

LAYER_PAIRS = 12 * 24
JOB = LAYER_PAIRS * 1_000_000 * 64 * 64  # multiply-adds
PEAK = 989e12  # an H100's nominal dense bfloat16 products, FLOP/s


def gpu_seconds(work: Callable, repeats: int = 5) -> float:
    """The best of some runs, after one that compiles; waits for the GPU to finish."""
    spent = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        spent.append(time.perf_counter() - began)
    return min(spent[1:])


def mppc_rows(tokens: int, d_sae: int, l0: float) -> list[tuple[str, float, str]]:
    """One pair of layers, and the whole job by its multiply-adds."""
    matrices = [power_law_features(tokens, d_sae, l0, seed) for seed in (0, 1)]
    layers = [varying_features(SparseFeatures.from_scipy(matrix)) for matrix in matrices]
    a, b = (place(layer, "cuda", by_feature) for layer, by_feature in zip(layers, (True, False)))
    spent, work = gpu_seconds(lambda: best_matches(a, b)), multiply_adds(*matrices)
    return [
        (f"MPPC, {tokens:,} tokens, kernels", spent, "s for a pair of layers"),
        ("MPPC, kernels", work / spent / 1e9, "1e9 multiply-adds/s"),
        ("MPPC, kernels, whole job", JOB / work * spent, "s, scaled"),
    ]


def step_rows(d_model: int, d_sae: int, batch: int) -> list[tuple[str, float, str]]:
    """Our step, and autograd in float32 and with TF32 products."""
    x, rows = torch.randn(batch, d_model, device="cuda"), []
    for name, step in (("ours", step_by_hand), ("autograd float32", dense_step), ("autograd TF32", dense_step)):
        torch.backends.cuda.matmul.allow_tf32 = name.endswith("TF32")
        sae = SparseAutoencoder(d_model, d_sae).to(x.device)
        adam = new_adam(sae)
        rows.append((f"SAE step, {name}", 1e3 * gpu_seconds(lambda: step(sae, adam, x, 2.0)), "ms"))
    torch.backends.cuda.matmul.allow_tf32 = False
    products = 5 * 2 * batch * d_model * d_sae / PEAK
    return [*rows, ("SAE step, ours, share of the roofline", 1e3 * products / rows[0][1], "")]


def measure(tokens: int = 200_000, d_sae: int = 24_576, l0: float = 64, batch: int = 4096) -> pd.DataFrame:
    """Both, on the GPU; no rows where there is none."""
    if not torch.cuda.is_available():
        return pd.DataFrame(columns=["benchmark", "case", "value", "unit"])
    rows = mppc_rows(tokens, d_sae, l0) + step_rows(768, d_sae, batch)
    frame = pd.DataFrame(rows, columns=["case", "value", "unit"])
    frame.insert(0, "benchmark", torch.cuda.get_device_name())
    return frame


def main() -> None:
    parser = argparse.ArgumentParser(description="MPPC and the SAE step on a GPU.")
    parser.add_argument("--tokens", type=int, default=200_000)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use.")
    print(measure(options.tokens).to_string(index=False))


if __name__ == "__main__":
    main()
