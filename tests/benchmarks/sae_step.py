"""Speed of one SAE training step on the CPU, dense autograd against active features: `python -m tests.benchmarks.sae_step`.

Both steps get the same SAE, whose bias is set so that about `--l0` features are active. They take turns, and each
shows its best time: other programs may be busy.
"""

from __future__ import annotations

import argparse
import time

import torch

from lib.profiles import get_profile
from lib.sae import SaeInfo
from lib.sae_kernels import SparseStep
from lib.sae_training import _Trainee, dense_step


def trainee(d_model: int, d_sae: int, x: torch.Tensor, l0: float) -> _Trainee:
    """An SAE on which about `l0` features are active; its rate is zero, so that it stays so."""
    torch.manual_seed(0)
    t = _Trainee(SaeInfo(), d_model, get_profile("mini", expansion=d_sae // d_model), torch.device("cpu"))
    pre = (x[:256] @ t.sae.W_enc.detach()).flatten()
    with torch.no_grad():
        t.sae.b_enc -= pre.kthvalue(int(len(pre) * (1 - l0 / d_sae))).values
    t.adam.param_groups[0]["lr"] = 0.0
    return t


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--l0", type=float, nargs="+", default=[25, 50, 100, 300, 1000])
    parser.add_argument("--repeats", type=int, default=8)
    a = parser.parse_args()
    x = torch.randn(a.batch, a.d_model)
    sparse = SparseStep(a.batch, a.d_model, a.d_sae)
    print(f"{a.d_model} → {a.d_sae}, batch {a.batch}, encoder product in {sparse.dtype}, {torch.get_num_threads()} threads")
    for l0 in a.l0:
        t = trainee(a.d_model, a.d_sae, x, l0)
        seconds = {"dense": [], "sparse": []}
        for _ in range(a.repeats + 1):
            for name, step in (("dense", dense_step), ("sparse", sparse)):
                began = time.perf_counter()
                stats = step(t.sae, t.adam, x, 2.0)
                seconds[name].append(time.perf_counter() - began)
        dense, ours = (min(s[1:]) * 1e3 for s in seconds.values())  # the first turn compiles
        print(f"L0 {float(stats.l0):6.1f}: dense {dense:6.1f} ms, sparse {ours:6.1f} ms, ratio {dense / ours:4.1f}")


if __name__ == "__main__":
    main()
