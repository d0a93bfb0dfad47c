"""Speed of one SAE training step beside SAELens and sparsify: `python -m tests.benchmarks.sae_libraries`.

The same sizes, activations from memory, Adam, the step alone. The libraries run in an environment of their own, made on
the first call under data/cache from the pinned `sae_libraries.txt`. All take turns, so that whatever else the machine
does meets them alike, and each shows its best time. The libraries' type is that of autocast.

The work is not quite the same: sparsify's SAEs are top-k, which saves them the L1 term; SAELens computes statistics
of dead features and clips gradients. Ours is the same against either type: its result is float32's, and bfloat16 only
finds the candidates, where the processor has it; "ours without bfloat16" does without.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numba
import pandas as pd
import torch

from lib.sae.sparse_step import SparseStep
from lib.workbook.profiles import HOME
from tests.benchmarks.sae_step import trainee

HERE = Path(__file__).parent
ENVIRONMENT = HOME / "data/cache/benchmarks/sae_libraries"
LIBRARIES = ("sae_lens", "sparsify")


def python_of(environment: Path) -> Path:
    """The interpreter of an environment that holds the libraries; made if it is not there."""
    python = environment / "bin/python"
    done = environment / "installed.txt"
    wanted = (HERE / "sae_libraries.txt").read_text()
    if not done.exists() or done.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", HERE / "sae_libraries.txt"], check=True)
        done.write_text(wanted)
    return python


class Spent(NamedTuple):
    """Seconds of one step, on the clock and of all threads' processor time, which other programs hardly lengthen."""

    clock: float
    processor: float


class Library:
    """Another library in a process of its own, which makes a step when it is called."""

    def __init__(self, python: Path, name: str, sizes: dict[str, int], bf16: bool) -> None:
        options = [f"--{key.replace('_', '-')}={value}" for key, value in sizes.items()] + ["--bf16"] * bf16
        command = [python, HERE / "sae_library_step.py", name, *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self) -> Spent:
        """What one step takes, as measured there. Raises RuntimeError where the library fails."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("SECONDS"):
                return Spent(*map(float, line.split()[1:]))
        raise RuntimeError(f"{' '.join(map(str, self.process.args))} failed with {self.process.wait()}.")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def our_step(sizes: dict[str, int], bf16: bool | None) -> Callable[[], Spent]:
    """The sparse step of `lib.sae.sparse_step`, as a function that makes one and returns what it took."""
    d_model, d_sae, batch, l0, _ = sizes.values()
    x = torch.randn(batch, d_model)
    t, step = trainee(d_model, d_sae, x, l0), SparseStep(batch, d_model, d_sae, bf16)

    def timed() -> Spent:
        began = time.perf_counter(), time.process_time()
        stats = step(t.sae, t.adam, x, 2.0)
        spent = Spent(time.perf_counter() - began[0], time.process_time() - began[1])
        assert abs(stats.l0 / l0 - 1) < 0.2, f"{stats.l0} features are active, not {l0}"
        return spent

    return timed


def measure(
    d_model: int = 768, d_sae: int = 24_576, batch: int = 4096, l0: int = 64, rounds: int = 3,
    environment: Path = ENVIRONMENT,
) -> pd.DataFrame:  # fmt: skip
    """Seconds per step of each, in float32 and bfloat16, and how many times as fast ours is as the faster library.

    Columns benchmark, case, value, unit. Where the machine is busy, the processor's seconds tell more than the clock's.
    """
    sizes = dict(d_model=d_model, d_sae=d_sae, batch=batch, l0=l0, threads=numba.get_num_threads())
    torch.set_num_threads(sizes["threads"])
    python, rows = python_of(environment), []
    for bf16 in (False, True):
        with ExitStack() as stack:
            takers = {"ours": our_step(sizes, None)}
            if not bf16:
                takers["ours without bfloat16"] = our_step(sizes, False)
            for name in LIBRARIES:
                takers[name] = Library(python, name, sizes, bf16)
                stack.callback(takers[name].close)
            for step in takers.values():
                step()  # the first one compiles and allocates
            seconds = {name: [] for name in takers}
            for _ in range(rounds):
                for name, step in takers.items():
                    seconds[name].append(step())
        kind = "bfloat16" if bf16 else "float32"
        for measured in Spent._fields:
            best = {name: min(getattr(spent, measured) for spent in turns) for name, turns in seconds.items()}
            rows += [(f"{name}, {kind}, {measured}", spent, "s per step") for name, spent in best.items()]
            faster = min(best[name] for name in LIBRARIES)
            rows.append((f"faster library / ours, {kind}, {measured}", faster / best["ours"], "times"))
    frame = pd.DataFrame(rows, columns=["case", "value", "unit"])
    frame.insert(0, "benchmark", f"SAE step {d_model} → {d_sae:,}, batch {batch:,}, L0 {l0}")
    return frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("d-model", 768), ("d-sae", 24_576), ("batch", 4096), ("l0", 64), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="where the libraries are, or will be")
    print(measure(**vars(parser.parse_args())).to_string(index=False))


if __name__ == "__main__":
    main()
