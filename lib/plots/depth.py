"""Figures of depth (W, §4.5): lines over layers, and maps of the layers in which matches lie."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.plots.style import WIDTH, heatmap, look_of, name_ends


def fig_depth_lines(table: pd.DataFrame, gap: pd.DataFrame) -> Figure:
    """Mean MPPC by layer for each comparison, and below it the gap to the skyline.

    `table` has the columns comparison, layer, mean, low, high; `gap` the same for what is missing to the skyline.
    """
    figure, grid = plt.subplots(
        2, 1, figsize=(0.85 * WIDTH, 4.8), sharex=True, height_ratios=(3, 2), layout="constrained"
    )
    for axes, data in zip(grid, (table, gap), strict=True):
        names = list(dict.fromkeys(data["comparison"]))
        for k, name in enumerate(names):
            rows, look = data[data["comparison"] == name], look_of(name, k)
            axes.plot(rows["layer"], rows["mean"], marker="o", markersize=4, **look)
            axes.fill_between(rows["layer"], rows["low"], rows["high"], alpha=0.25, color=look["color"], linewidth=0)
        name_ends(axes, names, 0.06 if axes is grid[0] else 0.09)
    grid[0].set(ylabel="mean MPPC\n(band: 95 % interval)")
    grid[1].set(ylabel="gap to SAE seed", xlabel="layer of Pythia", xticks=sorted(table["layer"].unique()))
    grid[1].set_ylim(bottom=min(0, grid[1].get_ylim()[0]))
    return figure


def draw_map(
    axes: Axes, shares: np.ndarray, own: str, other: str, of: str, bar: bool = True, top: float | None = None
) -> None:
    """Heatmap of shares [layers of own, layers of other], own layers along x; values in the cells of a small one."""
    words = np.vectorize("{:.2f}".format)(shares.T) if shares.size <= 100 else None
    label = "share of the layer's features" if bar else None
    heatmap(axes, shares.T, words, label, cmap="viridis", vmin=0, vmax=top)
    axes.set(xlabel=f"layer of {own}", ylabel=f"{of} {other}")


def draw_depth_map(
    axes: Axes, shares: np.ndarray, own: str, other: str, of: str = "layer of the best match in", **look
) -> None:
    """Heatmap of a `depth_map` of `lib.mppc.depth`; a frame marks the same relative depth, or else the next layer."""
    draw_map(axes, shares, own, other, of, **look)
    n, m = shares.shape
    for width, colour in ((3.5, "k"), (2, "w")):  # seen on dark cells and on bright ones
        for layer in range(n):
            same = (layer, -(-(layer + 1) * m // n) - 1)
            axes.add_patch(plt.Rectangle(same, 1, 1, fill=False, edgecolor=colour, linewidth=width))
    rounded = ", or the next layer" if n > m else ""
    axes.set_title(f"framed: the same relative depth{rounded}", fontsize=8, loc="left", color="0.35")


def fig_layer_map(shares: pd.DataFrame, own: str, other: str) -> Figure:
    """For some layers (rows), the share of features whose best match lies in each of the other's (columns)."""
    figure, axes = plt.subplots(figsize=(0.7 * WIDTH, 3.8), layout="constrained")
    draw_map(axes, shares, own, other, "layer of the best match in")
    return figure


def fig_depth_map(shares: np.ndarray, own: str, other: str) -> Figure:
    """In which layer of the other model each layer's features find their best match (W, Figs. 3c and 10)."""
    figure, axes = plt.subplots(figsize=(0.7 * WIDTH, 4.2))
    draw_depth_map(axes, shares, own, other)
    return figure


def fig_depth_starts(best: np.ndarray, start: np.ndarray, own: str, other: str) -> Figure:
    """Two depth maps side by side: where the best match lies, and where a match that is nearly as good first stands."""
    figure, grid = plt.subplots(1, 2, figsize=(1.3 * WIDTH, 4), layout="constrained")
    top = max(best.max(), start.max())
    draw_depth_map(grid[0], best, own, other, bar=False, top=top)
    draw_depth_map(grid[1], start, own, other, "first layer with a match as good, in", top=top)
    return figure
