"""Path patching at mamba-130m's size, fast against plain: `python -m tests.benchmarks.circuits --distance 64`.

Table 1 for one distance with random weights. The plain way gets a few samples and one layer; its time is scaled to all.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time

import pandas as pd

from lib import circuits, models
from lib.circuits import plain_patching
from lib.circuits.prompts import induction_prompts
from lib.workbook import model_store
from lib.workbook.profiles import get_profile


def measure(distance: int = 64, samples: int = 128, plain_samples: int = 4) -> pd.DataFrame:
    """Seconds of the fast way and, scaled up, of the plain one; the process's greatest memory after the fast one."""
    with tempfile.TemporaryDirectory() as folder:
        laptop = get_profile("laptop", models="random", cache_dir=folder)
        model = model_store.load(laptop.mamba, laptop)
    p = induction_prompts(distance, 50_280, seed=0, n_samples=samples)
    warm_up = induction_prompts(8, 50_280, seed=0, n_samples=1)
    circuits.final_state_effects(model, warm_up.clean, warm_up.corrupt_b, warm_up.target)

    began = time.perf_counter()
    circuits.final_state_effects(model, p.clean, p.corrupt_b, p.target)
    fast = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    few = plain_samples
    began = time.perf_counter()
    plain_patching.final_state_logits(model, p.clean[:few], p.corrupt_b[:few], 0)
    plain = (time.perf_counter() - began) * samples / few * models.n_layers(model)

    rows = [("fast", fast, "s"), ("memory", memory, "GiB"), ("plain, scaled up", plain, "s")]
    rows.append(("ratio", plain / fast, "times"))
    frame = pd.DataFrame(rows, columns=["case", "value", "unit"])
    work = f"{samples} samples × {models.n_layers(model)} layers × {p.clean.shape[1]} tokens"
    frame.insert(0, "benchmark", f"path patching, mamba-130m, {work}")
    return frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--distance", type=int, default=64)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--plain-samples", type=int, default=4)
    print(measure(**vars(parser.parse_args())).to_string(index=False))


if __name__ == "__main__":
    main()
