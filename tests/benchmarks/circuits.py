"""Path patching at mamba-130m's size, fast against plain: `python -m tests.benchmarks.circuits --distance 64`.

Table 1 for one distance with random weights. The plain way gets a few samples and one layer; its time is scaled to all.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time

from lib import circuits, models, plain_patching
from lib.profiles import get_profile
from lib.prompts import induction_prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--distance", type=int, default=64)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--plain-samples", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        laptop = get_profile("laptop", models="random", cache_dir=folder)
        model = models.load(laptop.mamba, laptop)
    p = induction_prompts(options.distance, 50_280, seed=0, n_samples=options.samples)
    warm_up = induction_prompts(8, 50_280, seed=0, n_samples=1)
    circuits.final_state_effects(model, warm_up.clean, warm_up.corrupt_b, warm_up.target)

    began = time.perf_counter()
    circuits.final_state_effects(model, p.clean, p.corrupt_b, p.target)
    fast = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    few = options.plain_samples
    began = time.perf_counter()
    plain_patching.final_state_logits(model, p.clean[:few], p.corrupt_b[:few], 0)
    plain = (time.perf_counter() - began) * options.samples / few * models.n_layers(model)

    work = f"{options.samples} samples × {models.n_layers(model)} layers × {p.clean.shape[1]} tokens"
    print(f"{work}: fast {fast:.1f} s, at most {memory:.1f} GiB; plain {plain:.0f} s; ratio {plain / fast:.0f}")


if __name__ == "__main__":
    main()
