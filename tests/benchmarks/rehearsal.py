"""Every stage at the paper's shapes with random weights: `python -m tests.benchmarks.rehearsal`.

The four real configurations, all their layers, d_sae 24,576, through the same library calls as the notebooks make, on
few tokens. Each stage runs in a process of its own, whose time and largest memory go into `table_rehearsal.csv`; stages
that the table has are not run again, so that a rehearsal that was cut off goes on. It needs 15 GB of disk.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import re
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import torch

from lib.mppc import directions
from lib.workbook import artifacts, comparisons, induction, model_store
from lib.workbook.profiles import HOME, Profile, get_profile
from lib.workbook.store import atomic_write

# Few steps at a high rate and a large λ: enough for most features to fall silent, as those of a trained SAE are.
FEW = dict(
    sae_tokens=64, sae_batch_size=32, sae_learning_rate=2e-3, l1_coefficient=30.0, target_l0=None, sae_warmup=0,
    sae_decay=0, buffer_tokens=512, batch_blocks=2, context_length=64, sae_group_layers=4, eval_tokens=60,
    mppc_tokens=512, shard_tokens=256, neuron_tokens=128, circuit_samples=2, circuit_distances=(8,),
)  # fmt: skip
TARGET = HOME / "figures" / "rehearsal"


def hardware() -> str:
    """The processor, its cores and memory, as the machine itself says."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError):
        cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].strip()
    amx = "AMX" if torch.cpu._is_amx_tile_supported() else "no AMX"
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count()
    return f"{cores} cores {cpu}, {amx}, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def stages(p: Profile) -> dict[str, Callable[[], object]]:
    """What is run, in order; each finds what it needs in the cache."""
    names = {"pythia": p.pythia, "pythia-seed1": p.pythia_seed, "mamba": p.mamba, "rwkv": p.rwkv}
    found = {
        f"{short}: checkpoint built": lambda name=name: model_store.folder_of(name, p) for short, name in names.items()
    }
    for short, name in names.items():
        found[f"{short}: SAEs trained and evaluated"] = lambda name=name: artifacts.trained_saes(
            name, p, p.sae_seeds[0]
        )
        for seed in artifacts.seeds_of(name, p):
            found[f"{short}: features captured, SAE seed {seed}"] = lambda name=name, seed=seed: artifacts.features(
                name, p, seed
            )
    known = comparisons.comparisons(p).values()
    for c in (c for c in known if not c.neurons):
        found[f"{c.label}: MPPC, both directions"] = lambda c=c: artifacts.mppc(c.a, c.b, p, c.seed_b)
        found[f"{c.label}: null"] = lambda c=c: artifacts.mppc(c.a, c.b, p, c.seed_b, null=True)
        found[f"{c.label}: bootstrap and summary"] = lambda c=c: [
            *map(directions.summarise, comparisons.compare(c, p))
        ]
    for short in ("pythia", "mamba", "rwkv"):
        found[f"{short}: circuits"] = lambda name=names[short]: induction.path_effects(name, p)
    for c in (c for c in known if c.neurons):
        found[f"{c.label}: MPPC, null, bootstrap"] = lambda c=c: artifacts.neuron_mppc(c.a, c.b, p)
    return found


def measured(run: Callable[[], object]) -> dict[str, float]:
    """Run in a forked process; wall-clock and processor seconds, and the largest resident memory."""
    receive, send = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        began = time.perf_counter()
        run()
        spent = time.perf_counter() - began
        used = resource.getrusage(resource.RUSAGE_SELF)
        send.send({"seconds": spent, "processor_seconds": time.process_time(), "peak_gib": used.ru_maxrss / 2**20})

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"the stage ended with exit code {process.exitcode}; what was finished is in the table.")
    return receive.recv()


def describe(p: Profile, table: pd.DataFrame, n_stages: int) -> str:
    """The text beside the table."""
    settings = ", ".join(f"{name}={getattr(p, name)}" for name in FEW)
    hours = table["seconds"].sum() / 3600
    return (
        "# Rehearsal at the paper's size\n\n"
        "Random weights: the table says which stages have run at these shapes, and what they took, nothing else.\n\n"
        f"- hardware: {hardware()}; {os.environ.get('OMP_NUM_THREADS', 'all')} thread(s), "
        f"{os.getloadavg()[1]:.0f} threads wanting to run on average (processor_seconds are this program's own)\n"
        f"- profile `{p.name}`, models={p.models}, d_sae {p.expansion * 768:,}; {settings}\n"
        f"- {len(table)} of {n_stages} stages done, {hours:.2f} hours, "
        f"largest process {table['peak_gib'].max():.1f} GiB\n\n"
        f"```\n{table.round(2).to_string(index=False)}\n```\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", action="append", default=[], help="a profile's field=value; repeatable")
    parser.add_argument("--target", type=Path, default=TARGET, help="folder of the table")
    options = parser.parse_args()
    asked = dict(pair.split("=", 1) for pair in options.set)
    p = get_profile("paper", {"models": "random", **FEW, **asked})
    file = options.target / "table_rehearsal.csv"
    rows = pd.read_csv(file).to_dict("records") if file.exists() else []
    wanted = stages(p)
    for name, run in wanted.items():
        if name not in [row["stage"] for row in rows]:
            rows.append({"stage": name} | measured(run))
            print(f"{name}: {rows[-1]['seconds']:.1f} s, {rows[-1]['peak_gib']:.2f} GiB", flush=True)
            table = pd.DataFrame(rows).round(2)
            atomic_write(file, table.to_csv(index=False))
            atomic_write(options.target / "README.md", describe(p, table, len(wanted)))


if __name__ == "__main__":
    main()
