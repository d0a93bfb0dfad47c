"""One training step of another library's SAE for every line read: runs in that library's environment, not in ours.

Started by `tests.benchmarks.sae_libraries`, which takes turns with it. Each line that begins with SECONDS answers one:
on the clock, and of all threads.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch


def sae_lens_step(a: argparse.Namespace) -> Callable[[torch.Tensor], None]:
    """SAELens' own trainer, with the standard architecture of the paper."""
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=a.d_model, d_sae=a.d_sae))
    config = SAETrainerConfig(
        total_training_samples=1_000 * a.batch, train_batch_size_samples=a.batch, lr_end=3e-5, autocast=a.bf16
    )
    return SAETrainer(config, sae, iter(())).step


def sparsify_step(a: argparse.Namespace) -> Callable[[torch.Tensor], None]:
    """What sparsify's trainer does with a batch, in its order, with Adam; its SAEs are top-k."""
    from sparsify import SparseCoder, SparseCoderConfig

    sae = SparseCoder(a.d_model, SparseCoderConfig(num_latents=a.d_sae, k=a.l0))
    adam = torch.optim.Adam(sae.parameters(), lr=3e-4)
    fired = torch.zeros(a.d_sae, dtype=torch.bool)

    def step(x: torch.Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        with torch.autocast("cpu", torch.bfloat16, enabled=a.bf16):
            out = sae(x, x, total_variance=(x - x.mean(0)).pow(2).sum())
        fired[out.latent_indices.flatten()] = True
        (out.fvu + out.auxk_loss + out.multi_topk_fvu / 8).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()

    return step


STEPS = {"sae_lens": sae_lens_step, "sparsify": sparsify_step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=STEPS)
    for name in ("d-model", "d-sae", "batch", "l0", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    step, x = STEPS[options.library](options), torch.randn(options.batch, options.d_model)
    for _ in sys.stdin:
        began = time.perf_counter(), time.process_time()
        step(x)
        print("SECONDS", time.perf_counter() - began[0], time.process_time() - began[1], flush=True)


if __name__ == "__main__":
    main()
