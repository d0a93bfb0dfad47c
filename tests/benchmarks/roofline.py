"""Where the time of exact MPPC goes, beside the machine's limit: `python -m tests.benchmarks roofline`.

The limit is a scatter-add whose indices are in the cache, which reads two bytes and adds one number. A multiply-add of
the kernel reads six bytes of a row of B, converts and multiplies, and adds in double precision. Its parts are found by
taking them away: rows of B that lie in the innermost caches, because only the first tokens are asked for; the sweep
that makes correlations of the sums, alone; and everything, from two matrices to both directions' matches.
"""

from __future__ import annotations

import dataclasses

import matplotlib.pyplot as plt
import numba
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lib.mppc.correlation import max_pairwise_correlations
from lib.mppc.features import SparseFeatures
from lib.mppc.sparse_pearson import TILE, VaryingFeatures, _keep_best, best_matches, transpose, varying_features
from lib.plots.style import WIDTH, use_theme
from lib.workbook.outputs import save_figure
from lib.workbook.profiles import get_profile
from tests.benchmarks.mppc import power_law_features, scatter_limit, seconds

IN_CACHE = 1_000  # tokens whose rows of B fit into a core's own caches
PARTS = {
    "the limit: as many scatter-adds": "adds",
    "products, conversions, double precision": "rows in the caches",
    "rows of the other layer from memory": "kernel's sums",
    "correlations, and the best of them": "kernel",
    "both layers made ready (once for each layer)": "all of it",
}


def sweep_seconds(a: VaryingFeatures, b: VaryingFeatures, threads: int) -> float:
    """What the sums take to become correlations, for all features of `a`, if the threads share them evenly."""
    n = len(b.kept)
    sums, corr = np.zeros(n), np.empty((TILE, n), np.float32)
    best, best_i = np.full(n, np.inf, np.float32), np.zeros(n, np.int32)

    def one_tile() -> None:
        for row in corr:
            _keep_best(0, 1.0, 1.0, b.scale, b.offset, sums, row, best, best_i)
        corr.argmax(1)

    one_tile()  # compiles
    return seconds(lambda: [one_tile() for _ in range(20)]) / 20 / TILE * len(a.kept) / threads


def measure(tokens: int = 400_000, features: int = 24_576, l0: float = 64, threads: int | None = None) -> pd.DataFrame:
    """Columns benchmark, case, value, unit: cumulative seconds of a pair of layers, part by part; draws the figure."""
    threads = threads or numba.get_num_threads()
    x, y = (SparseFeatures.from_scipy(power_law_features(tokens, features, l0, seed)) for seed in (0, 1))
    a, b = transpose(varying_features(x)), varying_features(y)
    near = dataclasses.replace(a, indices=a.indices % min(IN_CACHE, tokens))
    adds, adds_near = (int(np.diff(b.indptr)[side.indices].sum()) for side in (a, near))
    best_matches(near, b, threads)  # compiles
    limit, sweep = scatter_limit(features, threads), sweep_seconds(a, b, threads)
    whole = seconds(best_matches, a, b, threads)
    spent = {
        "adds": adds / limit,
        "rows in the caches": (seconds(best_matches, near, b, threads) - sweep) * adds / adds_near,
        "kernel's sums": whole - sweep,
        "kernel": whole,
        "all of it": seconds(lambda: max_pairwise_correlations([x], [y], threads=threads)),
    }
    use_theme()
    profile = get_profile("mini").model_copy(update={"name": "benchmarks"})
    save_figure(fig_parts(spent, adds, threads), "fig_mppc_parts", profile)
    rows = [(case, value, "s for a pair of layers, so far") for case, value in spent.items()]
    rows += [(case, 100 * spent["adds"] / value, "% of the limit") for case, value in spent.items()]
    table = pd.DataFrame(rows, columns=["case", "value", "unit"])
    table.insert(0, "benchmark", f"parts of MPPC, {features} features, L0 {l0:g}, {tokens} tokens, {threads} threads")
    return table


def fig_parts(spent: dict[str, float], adds: int, threads: int) -> Figure:
    """A bar in pieces: what each part adds to the time of a pair of layers."""
    figure, axes = plt.subplots(figsize=(1.3 * WIDTH, 2.6), layout="constrained")
    start, colours = 0.0, sns.color_palette("Greys", len(PARTS) + 2)[2:]
    for row, (case, colour) in enumerate(zip(PARTS.values(), colours, strict=True)):
        so_far = spent[case]
        axes.barh(row, so_far - start, left=start, color=colour)
        words = f" {so_far:.2f} s, {spent['adds'] / so_far:.0%} of the limit" if row else f" {so_far:.2f} s"
        axes.text(so_far, row, words, va="center", fontsize=8)
        start = so_far
    axes.set(xlabel=f"seconds so far ({adds / 1e9:.2f} billion multiply-adds, {threads} threads)")
    axes.set(xlim=(0, 1.35 * start), yticks=range(len(PARTS)), yticklabels=PARTS)
    axes.invert_yaxis()
    return figure
