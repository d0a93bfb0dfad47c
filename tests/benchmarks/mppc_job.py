"""The paper's Pythia × Mamba job, or a tenth of it, from disk: `python -m tests.benchmarks.mppc_job --layers-b 3`.

Twelve layers of 24,576 features with L0 64 over a million tokens against some of Mamba's 24, both directions from one
pass. Features fire at random, the k-th most frequent at a rate ∝ 1/k; what a pair of layers costs depends on how many
fire, not on which, so the 24 layers' time is the measured layers' time scaled. Peak memory needs no scaling: all of A
and one layer of B are in memory, however many there are.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numba
import numpy as np
import pandas as pd

from lib.mppc.correlation import max_pairwise_correlations
from lib.mppc.features import SparseFeatures
from lib.mppc.files import layer_file, open_features, save_features
from tests.benchmarks.mppc import power_law_features, scatter_limit

PAPER_LAYERS_B = 24


def write_layers(folder: Path, n_layers: int, n_tokens: int, d_sae: int, l0: float, seed: int) -> None:
    """Synthetic features of `n_layers` layers, on disk as a capture writes them."""
    for layer in range(n_layers):
        features = SparseFeatures.from_scipy(power_law_features(n_tokens, d_sae, l0, seed + layer))
        save_features(features, layer_file(folder, layer))


def own_memory() -> int:
    """Bytes that this process holds and no file backs: mapped feature files can be dropped and read again."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024


def run(folder: Path) -> None:
    """The job itself, in a process of its own: prints seconds and the most memory that it held."""
    a, b = (open_features(folder / side) for side in "ab")
    done, held = threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.2):
            held.append(own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    max_pairwise_correlations(a, b, progress=True)
    spent = time.perf_counter() - began
    done.set()
    watcher.join()
    print(spent, max(held))


def measure(
    tokens: int = 1_000_000, features: int = 24_576, l0: float = 64, layers_a: int = 12, layers_b: int = 3
) -> pd.DataFrame:
    """Columns benchmark, case, value, unit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side, n_layers, seed in (("a", layers_a, 0), ("b", layers_b, 1000)):
            write_layers(folder / side, n_layers, tokens, features, l0, seed)
        call = [sys.executable, "-m", "tests.benchmarks.mppc_job", "--run", name]
        spent, memory = map(float, subprocess.run(call, check=True, stdout=subprocess.PIPE).stdout.split())
        per_token = [np.stack([np.diff(x.indptr) for x in open_features(folder / side)]).sum(0) for side in "ab"]
    limit = scatter_limit(features, numba.get_num_threads())
    work = float(per_token[0].astype(np.int64) @ per_token[1])
    rows = [
        ("this part", spent, "s"),
        ("this part", work, "multiply-adds"),
        ("this part", work / spent, "multiply-adds/s"),
        ("this part", 100 * layers_b / PAPER_LAYERS_B, "% of the job"),
        ("scatter-add limit", limit, "adds/s"),
        ("share of the limit", 100 * work / spent / limit, "%"),
        (f"{layers_a} × {PAPER_LAYERS_B} layers, scaled", spent * PAPER_LAYERS_B / layers_b / 60, "min"),
        ("memory, mapped files apart", memory / 2**30, "GiB"),
    ]
    table = pd.DataFrame(rows, columns=["case", "value", "unit"])
    table.insert(0, "benchmark", f"MPPC job, {layers_a} × {layers_b} layers of {features}, L0 {l0:g}, {tokens} tokens")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=24_576)
    parser.add_argument("--l0", type=float, default=64)
    parser.add_argument("--layers-a", type=int, default=12)
    parser.add_argument("--layers-b", type=int, default=3)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    folder = options.pop("run")
    if folder:
        run(folder)
    else:
        print(measure(**options).to_string(index=False))


if __name__ == "__main__":
    main()
