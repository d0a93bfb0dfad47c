"""Figures of the feature spaces (Lan et al.): heatmaps over layers, subspaces, maps, geometry against activation."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from scipy.spatial.distance import pdist
from scipy.stats import rankdata

from lib.plots.style import DASHES, WIDTH, heatmap, ink, model_colour

THEMES = [colour for k, colour in enumerate(sns.color_palette("colorblind")) if k > 3 and k != 7]  # no model's, no grey
DARK = [(0.1, 0.1, 0.1), (0.45, 0.0, 0.1), (0.15, 0.35, 0.5)]


def fig_heatmaps(scores: Mapping[str, pd.DataFrame], measure: str) -> Figure:
    """Layer × layer, a panel per pair of models: the score, and in brackets the mean of the null.

    Columns as in `layer_scores`. Above each panel: how many scores lie above 95 % of their shuffles, and the largest p.
    """
    tables = {label: table[table["measure"] == measure] for label, table in scores.items()}
    top = max([table["score"].max() for table in tables.values()] + [0.1])
    low = min([table["null_mean"].min() for table in tables.values()] + [top - 0.1])  # what chance gives is dark
    size = {"figsize": (1.5 * WIDTH, 4.2), "squeeze": False, "layout": "constrained"}
    figure, grid = plt.subplots(1, len(tables), **size)
    for axes, (label, table) in zip(grid[0], tables.items(), strict=True):
        cells = {value: table.pivot(index="layer_b", columns="layer_a", values=value).sort_index().round(2) + 0.0
                 for value in ("score", "null_mean")}  # fmt: skip
        words = cells["score"].map("{:.2f}".format) + cells["null_mean"].map(" ({:.2f})".format)
        bar = f"{measure} (darkest: chance)" if axes is grid[0, -1] else None
        few = words if words.size <= 100 else None
        heatmap(axes, cells["score"], few, bar, cmap="viridis", vmin=low, vmax=top)
        above, known = (table["score"] > table["null_95"]).sum(), table["score"].notna().sum()
        axes.set_title(f"{label}: {above} of {known} above 95 % of\nshuffles, largest p {table['p'].max():.3f}",
                       fontsize=9, color=ink(model_colour(label)))  # fmt: skip
        axes.set(xlabel="layer of Pythia", ylabel=f"layer of {label}")
    figure.suptitle(f"{measure} of matched features (mean of shuffled pairs)", fontsize=10)
    return figure


def fig_distances(x: np.ndarray, y: np.ndarray, names: tuple[str, str], score: float) -> Figure:
    """RSA as a picture: for every two features, the rank of their distance in one space against that in the other."""
    ranks = [rankdata(pdist(rows, "correlation")) for rows in (x, y)]
    figure, axes = plt.subplots(figsize=(0.6 * WIDTH, 3.6), layout="constrained")
    drawn = axes.hexbin(*(r / len(r) for r in ranks), gridsize=30, cmap="Greys", mincnt=1, bins="log")
    figure.colorbar(drawn, label="pairs of features")
    axes.set(xlabel=f"rank in {names[0]}", ylabel=f"rank in {names[1]}", aspect="equal")
    axes.set_title(f"distances of {len(x)} matched features by rank,\nRSA {score:.2f}", fontsize=10)
    return figure


def fig_subspaces(scores: pd.DataFrame, measure: str) -> Figure:
    """Each concept's scores in all layers and models with enough pairs, and the null's 95th percentile beside each.

    Columns comparison, concept, measure, score, null_95, p_corrected; filled where p_corrected < 0.05.
    """
    rows = scores[(scores["measure"] == measure) & scores["score"].notna()]
    names, comparisons = sorted(rows["concept"].unique()), list(dict.fromkeys(scores["comparison"]))
    figure, axes = plt.subplots(figsize=(WIDTH, 3.8), layout="constrained")
    for k, comparison in enumerate(comparisons):
        own = rows[rows["comparison"] == comparison]
        x = np.array([names.index(name) for name in own["concept"]], float) + 0.22 * (k - (len(comparisons) - 1) / 2)
        layers = own.groupby("concept")["concept"]
        x = x + 0.05 * (layers.cumcount() - (layers.transform("size") - 1) / 2).to_numpy()  # side by side
        colour, sure = model_colour(comparison), own["p_corrected"] < 0.05
        axes.vlines(x, own["null_95"], own["score"], color=colour, linewidth=0.6, alpha=0.5)
        chance = dict(marker="_", color="0.35", s=30, linewidth=1, zorder=4)
        axes.scatter(x, own["null_95"], label=None if k else "95 % of shuffles", **chance)
        filled = [colour if yes else (1, 1, 1) for yes in sure]
        axes.scatter(x, own["score"], color=filled, edgecolors=[colour], marker="osD^"[k % 4], s=22, label=comparison)
    tests = rows.groupby("concept").size()
    axes.set_xticks(range(len(names)), [f"{name}\nn = {tests[name]}" for name in names], fontsize=8)
    axes.set(ylabel=measure, title="filled: significant after correction (5 %); n: tested layers and models")
    axes.title.set_fontsize(9)
    axes.axhline(0, color="0.7", linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def fig_umap(pairs: pd.DataFrame, left: str, right: str, n_links: int = 40, seed: int = 0) -> Figure:
    """Both decoder spaces as maps, matched features linked; columns ax, ay, bx, by, concept."""
    figure, grid = plt.subplots(1, 2, figsize=(1.4 * WIDTH, 4.6), layout="constrained")
    named = sorted(name for name in pairs["concept"].unique() if name)
    colours = {name: (THEMES + DARK)[k % len(THEMES + DARK)] for k, name in enumerate(named)}
    for axes, (x, y), title in zip(grid, (("ax", "ay"), ("bx", "by")), (left, right), strict=True):
        rest = pairs[pairs["concept"] == ""]
        axes.scatter(rest[x], rest[y], s=5, color="0.82", linewidth=0, rasterized=True)
        for k, name in enumerate(named):
            rows = pairs[pairs["concept"] == name]
            axes.scatter(rows[x], rows[y], s=26, color=colours[name], marker="osD^vPX*"[k % 8], edgecolors="k",
                         linewidth=0.4, label=f"{name}, n = {len(rows)}", zorder=3)  # fmt: skip
        axes.set(title=title, xticks=[], yticks=[])
        sns.despine(ax=axes, left=True, bottom=True)
    chosen = pairs[pairs["concept"] != ""]
    drawn = f"a line joins a feature and its match (at most {n_links} are drawn); grey: features without a theme"
    figure.suptitle(f"UMAP of the features' directions: {drawn}", fontsize=9)
    for row in chosen.sample(min(n_links, len(chosen)), random_state=seed).itertuples():
        line = dict(
            coordsA=grid[0].transData, coordsB=grid[1].transData, linewidth=0.6, alpha=0.6, color=colours[row.concept]
        )
        figure.add_artist(plt.matplotlib.patches.ConnectionPatch((row.ax, row.ay), (row.bx, row.by), **line))
    if named:
        figure.legend(
            *grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8
        )
    return figure


def fig_geometry(tables: Mapping[str, pd.DataFrame], chance: float, n_bins: int = 8) -> Figure:
    """Share of neighbours on which both decoder spaces agree, by the activations' correlation; columns rho, overlap.

    `chance` is the share on which two arrangements at random would agree.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4), layout="constrained")
    for k, (label, table) in enumerate(tables.items()):
        edges = np.unique(np.quantile(table["rho"], np.linspace(0, 1, n_bins + 1)))
        groups = table.groupby(pd.cut(table["rho"], edges, include_lowest=True), observed=True)
        mean, error = groups["overlap"].mean(), 1.96 * groups["overlap"].sem()
        look = dict(marker="osD^"[k % 4], linestyle=DASHES[k % len(DASHES)], capsize=2, color=model_colour(label))
        axes.errorbar(groups["rho"].mean(), mean, error, label=f"{label}, n = {len(table):,} pairs", **look)
    axes.axhline(chance, color="0.5", linestyle=":", linewidth=1, label=f"chance: {chance:.3f}")
    axes.set(
        xlabel="correlation of the pair's activations",
        ylabel="share of neighbours in both\n(mean and 95 % interval)",
        ylim=(0, None),
    )
    axes.legend(frameon=False, fontsize=8)
    return figure
