"""``python -m tests.benchmarks.sae_step``: one SAE training step on the CPU, dense autograd against active features.

Both steps get the same SAE, whose bias is set so that about `--l0` features are active. They take turns, and each
shows its best time: other programs may be busy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import pandas as pd
import torch

from lib.sae import SAEConfig, SparseAutoencoder
from lib.sae.dense_step import dense_step
from lib.sae.sparse_step import SparseStep
from lib.sae.training import _Trainee


def trainee(d_model: int, d_sae: int, x: torch.Tensor, l0: float) -> _Trainee:
    """An SAE on which about `l0` features are active; its rate is zero, so that it stays so."""
    torch.manual_seed(0)
    t = _Trainee(SparseAutoencoder(d_model, d_sae), SAEConfig(expansion=d_sae // d_model, tokens=len(x)))
    pre = (x[:256] @ t.sae.W_enc.detach()).flatten()
    with torch.no_grad():
        t.sae.b_enc -= pre.kthvalue(int(len(pre) * (1 - l0 / d_sae))).values
    t.adam.param_groups[0]["lr"] = 0.0
    return t


def measure(
    d_model: int = 128, d_sae: int = 4096, batch: int = 4096, l0: Sequence[float] = (25, 50, 100, 300, 1000),
    repeats: int = 8,
) -> pd.DataFrame:  # fmt: skip
    """Milliseconds of either step, and their ratio, for each L0."""
    x, rows = torch.randn(batch, d_model), []
    sparse = SparseStep(batch, d_model, d_sae)
    for wanted in l0:
        t = trainee(d_model, d_sae, x, wanted)
        seconds = {"dense": [], "sparse": []}
        for _ in range(repeats + 1):
            for name, step in (("dense", dense_step), ("sparse", sparse)):
                began = time.perf_counter()
                stats = step(t.sae, t.adam, x, 2.0)
                seconds[name].append(time.perf_counter() - began)
        dense, ours = (min(spent[1:]) * 1e3 for spent in seconds.values())  # the first turn compiles
        values = {"dense": (dense, "ms"), "sparse": (ours, "ms"), "ratio": (dense / ours, "times")}
        rows += [(f"L0 {float(stats.l0):.0f}, {name}", *value) for name, value in values.items()]
    frame = pd.DataFrame(rows, columns=["case", "value", "unit"])
    frame.insert(0, "benchmark", f"SAE step {d_model} → {d_sae:,}, batch {batch:,}, encoder in {sparse.pre.dtype}")
    return frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--l0", type=float, nargs="+", default=[25, 50, 100, 300, 1000])
    parser.add_argument("--repeats", type=int, default=8)
    print(measure(**vars(parser.parse_args())).to_string(index=False))


if __name__ == "__main__":
    main()
