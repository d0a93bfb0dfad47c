"""Figures of the feature spaces (Lan et al.): heatmaps over layers, subspaces, maps, geometry against activation."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lib.plots.style import DASHES, WIDTH

ROWS = {"score": ("viridis", 0, 1), "null_mean": ("viridis", 0, 1), "p": ("magma_r", 0, 0.1)}


def fig_heatmaps(scores: Mapping[str, pd.DataFrame], measure: str) -> Figure:
    """Layer × layer, a column per pair of models: score, mean of the null, p (the columns of `layer_scores`)."""
    figure, grid = plt.subplots(3, len(scores), figsize=(1.5 * WIDTH, 7.5), squeeze=False, layout="constrained")
    for column, (label, table) in enumerate(scores.items()):
        table = table[table["measure"] == measure]
        for axes, (value, (colours, low, high)) in zip(grid[:, column], ROWS.items(), strict=True):
            cells = table.pivot(index="layer_b", columns="layer_a", values=value).sort_index()
            cells = cells.round(2) + 0.0  # no −0.00
            style = dict(
                cmap=colours, vmin=low, vmax=high, annot=cells.size <= 100, fmt=".2f", annot_kws={"fontsize": 7}
            )
            sns.heatmap(cells, ax=axes, cbar=column == len(scores) - 1, **style)
            axes.invert_yaxis()
            axes.set(
                xlabel="layer of Pythia", ylabel=f"layer of {label}", title=f"{measure}: {value.replace('_', ' ')}"
            )
    return figure


def fig_subspaces(scores: pd.DataFrame, measure: str) -> Figure:
    """Each concept's scores in all layers and models with enough pairs, and the null's 95th percentile beside each.

    Columns comparison, concept, measure, score, null_95, p_corrected; filled where p_corrected < 0.05.
    """
    rows = scores[(scores["measure"] == measure) & scores["score"].notna()]
    names, comparisons = sorted(rows["concept"].unique()), list(dict.fromkeys(scores["comparison"]))
    figure, axes = plt.subplots(figsize=(1.2 * WIDTH, 3.8), layout="constrained")
    for k, comparison in enumerate(comparisons):
        own = rows[rows["comparison"] == comparison]
        x = np.array([names.index(name) for name in own["concept"]], float) + 0.22 * (k - (len(comparisons) - 1) / 2)
        colour, sure = sns.color_palette()[k], own["p_corrected"] < 0.05
        axes.scatter(x, own["null_95"], marker="_", color="0.5", s=60, label=None if k else "null, 95th percentile")
        filled = [colour if yes else (1, 1, 1) for yes in sure]
        axes.scatter(x, own["score"], color=filled, edgecolors=[colour], marker="osD^"[k % 4], s=28, label=comparison)
    axes.set_xticks(range(len(names)), names, rotation=25, ha="right")
    axes.set(ylabel=measure, title="filled: significant after correction (5 %)")
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def fig_umap(pairs: pd.DataFrame, left: str, right: str, n_links: int = 40, seed: int = 0) -> Figure:
    """Both decoder spaces as maps, matched features linked; columns ax, ay, bx, by, concept."""
    figure, grid = plt.subplots(1, 2, figsize=(1.4 * WIDTH, 4.4), layout="constrained")
    named = sorted(name for name in pairs["concept"].unique() if name)
    colours = dict(zip(named, sns.color_palette("colorblind", len(named)), strict=True))
    for axes, (x, y), title in zip(grid, (("ax", "ay"), ("bx", "by")), (left, right), strict=True):
        axes.scatter(pairs[x], pairs[y], s=3, color="0.8", rasterized=True)
        for k, name in enumerate(named):
            rows = pairs[pairs["concept"] == name]
            axes.scatter(rows[x], rows[y], s=16, color=colours[name], marker="osD^vPX*"[k % 8], label=name)
        axes.set(title=title, xticks=[], yticks=[])
    chosen = pairs[pairs["concept"] != ""]
    for row in chosen.sample(min(n_links, len(chosen)), random_state=seed).itertuples():
        line = dict(
            coordsA=grid[0].transData, coordsB=grid[1].transData, linewidth=0.5, alpha=0.5, color=colours[row.concept]
        )
        figure.add_artist(plt.matplotlib.patches.ConnectionPatch((row.ax, row.ay), (row.bx, row.by), **line))
    if named:
        figure.legend(
            *grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8
        )
    return figure


def fig_geometry(tables: Mapping[str, pd.DataFrame], n_bins: int = 8) -> Figure:
    """Share of neighbours on which both decoder spaces agree, by the activations' correlation; columns rho, overlap."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4), layout="constrained")
    for k, (label, table) in enumerate(tables.items()):
        edges = np.unique(np.quantile(table["rho"], np.linspace(0, 1, n_bins + 1)))
        groups = table.groupby(pd.cut(table["rho"], edges, include_lowest=True), observed=True)
        mean, error = groups["overlap"].mean(), 1.96 * groups["overlap"].sem()
        look = dict(marker="osD^"[k % 4], linestyle=DASHES[k % len(DASHES)], capsize=2)
        axes.errorbar(groups["rho"].mean(), mean, error, label=f"{label}, n = {len(table):,}", **look)
    axes.set(
        xlabel="correlation of the pair's activations",
        ylabel="share of neighbours in both\n(mean and 95 % interval)",
        ylim=(0, None),
    )
    axes.legend(frameon=False, fontsize=8)
    return figure
