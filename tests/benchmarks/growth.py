"""How the cost of MPPC grows with tokens, d_sae, L0 and cores: `python -m tests.benchmarks.growth`.

One pair of layers of made-up features (`tests.benchmarks.mppc`); one quantity is changed at a time, the cores at the
paper's sizes, as a smaller pair has nothing to share out. Four figures go to figures/benchmarks. Beside the times lies
what is expected: as tokens, as L0², and as one over the cores. What grows with d_sae is the sweep over all pairs of
features, d_sae², so that its figure is flat first and steep later.

On one core the processor's time is shown, which other programs hardly lengthen; for the cores it has to be the clock's.
"""

from __future__ import annotations

import argparse
import os
import time

import matplotlib.pyplot as plt
import numba
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from lib.mppc.correlation import max_pairwise_correlations
from lib.mppc.features import SparseFeatures
from lib.plots.style import PALETTE, use_theme
from lib.workbook.outputs import save_figure
from lib.workbook.profiles import get_profile
from tests.benchmarks.mppc import power_law_features

CENTRE = {"tokens": 40_000, "d_sae": 8192, "l0": 32, "cores": 1}
PAPER = {"tokens": 400_000, "d_sae": 24_576, "l0": 64, "cores": 1}
LABELS = {"tokens": "tokens", "d_sae": "features per layer", "l0": "L0 (active features per token)", "cores": "cores"}
POWERS = {"tokens": 1, "l0": 2, "cores": -1}  # the cost expected; d_sae's depends on the rest
FACTORS = {"tokens": (0.25, 0.5, 1, 2, 4), "d_sae": (0.25, 0.5, 1, 2, 4), "l0": (0.25, 0.5, 1, 2, 4)}


def pair_seconds(changed: str, tokens: int, d_sae: int, l0: float, cores: int) -> float:
    """MPPC both ways of one pair of layers, everything that it takes included; the better of three."""
    a, b = (SparseFeatures.from_scipy(power_law_features(tokens, d_sae, l0, seed)) for seed in (0, 1))
    clock, spent = time.perf_counter if changed == "cores" else time.process_time, []
    for _ in range(3):
        began = clock()
        max_pairwise_correlations([a], [b], threads=cores)
        spent.append(clock() - began)
    return min(spent)


def sizes() -> list[tuple[str, dict[str, int]]]:
    """What is changed, and all quantities, of each measurement."""
    found = [
        (name, CENTRE | {name: int(factor * CENTRE[name])}) for name, factors in FACTORS.items() for factor in factors
    ]
    most = min(numba.config.NUMBA_NUM_THREADS, os.cpu_count() or 1)
    return found + [("cores", PAPER | {"cores": cores}) for cores in range(1, most + 1)]


def measure() -> pd.DataFrame:
    """Seconds of each measurement; draws the figures too."""
    pair_seconds("tokens", 64, 64, 4, 1)  # compiles
    rows = [(f"{name} {size[name]:,}", pair_seconds(name, **size), "s", name, size[name]) for name, size in sizes()]
    frame = pd.DataFrame(rows, columns=["case", "value", "unit", "changed", "size"])
    use_theme()
    profile = get_profile("mini").model_copy(update={"name": "benchmarks"})
    for name in LABELS:
        save_figure(fig_growth(frame[frame["changed"] == name], name), f"fig_growth_{name}", profile)
    frame.insert(0, "benchmark", [f"growth of MPPC from {_around(name)}" for name in frame["changed"]])
    return frame[["benchmark", "case", "value", "unit"]]


def centre_of(name: str) -> dict[str, int]:
    """All quantities where one of them is changed."""
    return PAPER if name == "cores" else CENTRE


def _around(name: str) -> str:
    return ", ".join(f"{LABELS[key]} {value:,}" for key, value in centre_of(name).items())


def fig_growth(data: pd.DataFrame, name: str) -> Figure:
    """Seconds against one quantity, and the expected power of it through the first point."""
    figure, axes = plt.subplots(figsize=(3.5, 2.8), layout="constrained")
    x, y = data["size"].to_numpy(float), data["value"].to_numpy()
    axes.loglog(x, y, marker="o", color=PALETTE["pythia"], label="measured")
    if name in POWERS:
        expected = y[-1] * (x / x[-1]) ** POWERS[name] if POWERS[name] > 0 else y[0] * (x / x[0]) ** POWERS[name]
        power = {1: "proportional", 2: "its square", -1: "one over it"}[POWERS[name]]
        axes.loglog(x, expected, linestyle="--", color="0.5", label=power)
    axes.set_xticks(x, [f"{value:,.0f}" for value in x])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))  # less than a factor of ten needs labels, too
    axes.yaxis.set_major_formatter("{x:g}")
    others = [f"{LABELS[key]}: {value:,}" for key, value in centre_of(name).items() if key != name]
    axes.set(xlabel=LABELS[name], ylabel="seconds for a pair of layers")
    axes.set_title("\n".join(others), fontsize=7)
    axes.set_ylim(bottom=10 ** np.floor(np.log10(min(axes.get_ylim()))))
    axes.legend(frameon=False)
    return figure


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print(measure().to_string(index=False))


if __name__ == "__main__":
    main()
