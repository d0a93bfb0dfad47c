"""Figures of feature similarity (W, §4): densities of MPPC, differences, nulls, controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from lib.plots.depth import draw_depth_map
from lib.plots.style import PALETTE, WIDTH, Interval, heatmap, ink, look_of, model_colour, name_ends, short, signed

BINS = np.linspace(-0.05, 1, 43)  # of MPPC


def _heights(mppc: Sequence[float]) -> np.ndarray:
    """Of a histogram; NaN are left out."""
    return np.histogram(pd.Series(mppc).dropna(), BINS, density=True)[0]


def _densities(
    axes: Axes, values: Mapping[str, Sequence[float]], intervals: Mapping[str, Interval] | None = None, small: int = 8,
    top: float | None = None, colours: Sequence | None = None,
) -> None:  # fmt: skip
    """A step histogram per label, one above the other, each under its own words, the highest as high as `top`."""
    kept = {label: pd.Series(mppc).dropna() for label, mppc in values.items()}
    heights = {label: _heights(mppc) for label, mppc in kept.items()}
    top = top or max(height.max() for height in heights.values())
    for k, (label, mppc) in enumerate(kept.items()):
        base, colour = (len(kept) - 1 - k) * 1.5 * top, colours[k] if colours else look_of(label, k)["color"]
        axes.stairs(base + heights[label], BINS, baseline=base, fill=True, alpha=0.25, color=colour)
        axes.stairs(base + heights[label], BINS, baseline=base, color=colour)
        axes.vlines(mppc.mean(), base, base + top, color=colour, linewidth=1)
        low_high = " [{:.3f}, {:.3f}]".format(*intervals[label]) if label in (intervals or {}) else ""
        words = f"{label}: mean {mppc.mean():.3f}{low_high}, n = {len(mppc):,}"
        axes.text(-0.04, base + 1.08 * top, words, fontsize=small)
    axes.set(xlabel="max pairwise Pearson correlation (MPPC)", xlim=(-0.05, 1), ylim=(0, len(kept) * 1.5 * top))
    axes.set(yticks=[], ylabel="density, on one scale")
    look = dict(loc="left", fontsize=small, color="0.35")
    axes.set_title("vertical line: mean [95 % interval]" if intervals else "vertical line: mean", **look)


def fig_mppc_density(values: Mapping[str, Sequence[float]], intervals: Mapping[str, Interval] | None = None) -> Figure:
    """Densities of MPPC, one per comparison, with their means and the means' intervals (W, Fig. 3a)."""
    figure, axes = plt.subplots(figsize=(WIDTH, 0.8 + 0.85 * len(values)))
    _densities(axes, values, intervals)
    return figure


def fig_share_above(values: Mapping[str, Sequence[float]]) -> Figure:
    """Share of features whose MPPC lies above each value, one line per label; nulls begin with "null: "."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    names = list(dict.fromkeys(label.removeprefix("null: ") for label in values))
    nulls = [label for label in values if label.startswith("null: ")]
    for label, mppc in values.items():
        look = look_of(label.removeprefix("null: "), names.index(label.removeprefix("null: ")))
        if label in nulls:
            look["linestyle"] = (0, (1, 1 + 2 * nulls.index(label)))  # they lie on each other
        sns.ecdfplot(x=mppc, complementary=True, ax=axes, label=f"{label}, n = {pd.Series(mppc).count():,}", **look)
    axes.set(xlabel="max pairwise Pearson correlation (MPPC)", ylabel="share of features above", xlim=(-0.05, 1))
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    return figure


def fig_nulls(panels: Mapping[str, Mapping[str, Sequence[float]]], effects: Mapping[str, str]) -> Figure:
    """A panel per null, with the share of features above each MPPC in the comparison and in its null.

    In each panel the comparison comes first and its null second; `effects` says what stands above each panel.
    """
    figure, grid = plt.subplots(
        1, len(panels), figsize=(1.3 * WIDTH, 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (title, panel) in zip(grid[0], panels.items(), strict=True):
        for k, ((label, mppc), colour) in enumerate(zip(panel.items(), (PALETTE["mamba"], "0.35"), strict=True)):
            sns.ecdfplot(x=mppc, complementary=True, ax=axes, color=colour)
            words, look = f"{label}\nn = {pd.Series(mppc).count():,}", dict(color=ink(colour), fontsize=8)
            axes.text(0.99, 0.97 - 0.16 * k, words, transform=axes.transAxes, ha="right", va="top", **look)
        axes.set_title(f"{title}\n{effects[title]}", fontsize=8, loc="left")
        axes.set(xlabel="MPPC", ylabel="share of features above", xlim=(-0.05, 1))
    return figure


def _difference(
    axes: Axes, differences: pd.Series, interval: Interval | None = None, colour: tuple = PALETTE["mamba"]
) -> None:
    low, high = differences.quantile([0.05, 0.95])
    axes.hist(differences, bins=np.linspace(-1, 1, 81), density=True, histtype="stepfilled", color=colour,
              alpha=0.6)  # fmt: skip
    axes.axvspan(low, high, color="0.5", alpha=0.15, label=f"90 % of features: [{signed(low)}, {signed(high)}]")
    span = f" [{signed(interval[0], 3)}, {signed(interval[1], 3)}]" if interval else ""
    about = f"mean {signed(differences.mean(), 3)}{span}, n = {len(differences):,}"
    axes.axvline(differences.mean(), color="k", linewidth=0.8, label=about)
    axes.set(xlabel="difference of MPPC", ylabel="density", xlim=(-1, 1))
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)  # off the band


def fig_mppc_difference(
    differences: pd.Series, what: str = "difference of MPPC", interval: Interval | None = None
) -> Figure:
    """Per feature, MPPC in one comparison minus MPPC in another, with the middle 90 % (W, Fig. 3b).

    `interval` is the mean's.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 3.2))
    _difference(axes, differences, interval)
    axes.set_xlabel(what)
    return figure


def fig_controls(table: pd.DataFrame) -> Figure:
    """Mean MPPC of every comparison as the paper takes it and as controls have it; a row per comparison.

    Columns comparison, measure, mean, low, high; measures are drawn in the order in which they come.
    """
    names, measures = (list(dict.fromkeys(table[column])) for column in ("comparison", "measure"))
    figure, axes = plt.subplots(figsize=(WIDTH, 1 + 0.75 * len(names)), layout="constrained")
    for k, measure in enumerate(measures):
        rows = table[table["measure"] == measure]
        y = [names.index(name) + 0.17 * (k - (len(measures) - 1) / 2) for name in rows["comparison"]]
        look = dict(fmt="osD^v"[k % 5], markersize=5, capsize=2, color=sns.color_palette("viridis", len(measures))[k])
        axes.errorbar(rows["mean"], y, xerr=_error(rows, "mean"), label=measure, **look)
        for at, value in zip(y, rows["mean"], strict=True):
            axes.annotate(f"{value:.3f}", (value, at), (7, -2.5), textcoords="offset points", fontsize=7)
    axes.set_yticks(range(len(names)), names)
    axes.set(ylim=(len(names) - 0.5, -0.5), xlabel="mean MPPC")
    axes.grid(axis="x", color="0.9")
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def fig_sae_seeds(table: pd.DataFrame) -> Figure:
    """What two SAE seeds have in common, by firing rate: the columns of `lib.mppc.controls.by_firing_rate`."""
    labels = {"mppc": "mean MPPC", "cosine": "mean cosine (PW-MCC)", "found": "share found by both"}
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    for k, (column, label) in enumerate(labels.items()):
        look = dict(fmt="osD"[k] + "-", color=sns.color_palette("viridis", 3)[k])
        axes.errorbar(table["firing_rate"], table[column], 1.96 * table[f"{column}_error"], **look)
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="firing rate (share of tokens; each point a group of features)")
    axes.set(ylabel=f"mean, or share, over a group of about\n{table['n'].iloc[0]:,} features, and 95 % interval")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    name_ends(axes, list(labels.values()))
    return figure


def fig_density_by_layer(
    values: Mapping[str, Sequence[float]], intervals: Mapping[str, Interval], what: str
) -> Figure:
    """Densities of MPPC by groups of layers, from early to late (W, Fig. 8), with their means' intervals."""
    figure, axes = plt.subplots(figsize=(WIDTH, 0.8 + 0.85 * len(values)))
    _densities(axes, values, intervals, colours=sns.color_palette("viridis", len(values)))
    axes.set_xlabel(f"MPPC, {what}")
    return figure


def fig_forward_and_reverse(
    panels: Mapping[str, Mapping[str, Sequence[float]]], intervals: Mapping[str, Interval]
) -> Figure:
    """A panel per pair of models, with MPPC in both directions (W, Fig. 9) and the means' intervals by their labels."""
    figure, grid = plt.subplots(1, len(panels), figsize=(WIDTH, 2.8), squeeze=False, layout="constrained")
    top = max(_heights(mppc).max() for values in panels.values() for mppc in values.values())
    for axes, (title, values) in zip(grid[0], panels.items(), strict=True):
        _densities(axes, values, intervals, small=7, top=top)
        axes.set_title("", loc="left")
        axes.set_title(title)
        axes.set_xlabel("MPPC")
        axes.label_outer()
    return figure


def fig_three_panels(
    values: Mapping[str, Sequence[float]], intervals: Mapping[str, Interval],
    difference: tuple[pd.Series, Interval] | None, shares: np.ndarray, own: str, other: str,
) -> Figure:  # fmt: skip
    """Density, difference and depth map side by side: Fig. 3 for another model (W, Fig. 11).

    `difference` is what `directions.difference` gives; None leaves (b) empty.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(1.7 * WIDTH, 3.8), layout="constrained")
    _densities(left, values, intervals, small=7)
    left.set_xlabel("MPPC")
    if difference is None:
        middle.set_axis_off()
    else:
        _difference(middle, *difference, PALETTE.get(other.lower(), PALETTE["mamba"]))
        middle.set_xlabel(f"MPPC with {other} − MPPC with the other seed")
    draw_depth_map(right, shares, own, other)
    for letter, axes in zip("abc", (left, middle, right), strict=True):
        axes.set_title(f"({letter})", loc="left" if axes is not right else "right", fontsize=10)
    return figure


def fig_hierarchy(means: Mapping[str, float]) -> Figure:
    """What differs between two SAEs, as nested circles with the measured mean MPPC (W, Fig. 2); outermost first."""
    figure, axes = plt.subplots(figsize=(5, 5))
    radii = np.linspace(1, 0.4, len(means))
    for (label, mean), radius, colour in zip(means.items(), radii, sns.color_palette("Blues", len(means)), strict=True):
        axes.add_patch(plt.Circle((0, radius - 1), radius, facecolor=colour, edgecolor="k", linewidth=0.8))
        dark = sum(colour[:3]) < 1.5
        place = dict(ha="center", va="center", fontsize=9, color="w" if dark else "k")
        axes.text(0, 2 * radius - 1.27, f"{label}\nmean MPPC {mean:.2f}", **place)
    axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
    axes.axis("off")
    return figure


def fig_sensitivity(by_tokens: pd.DataFrame, by_dead: pd.DataFrame) -> Figure:
    """Mean MPPC against two choices: tokens used, dead features left out or counted as 0.

    Columns comparison, value, mppc, low, high.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.4), sharey=True, layout="constrained")
    kinds = list(dict.fromkeys(by_dead["value"]))
    for k, name in enumerate(dict.fromkeys(by_tokens["comparison"])):
        look, rows = look_of(name, k), by_tokens[by_tokens["comparison"] == name]
        left.errorbar(rows["value"], rows["mppc"], _error(rows), marker="o", capsize=2, label=name, **look)
        bars = by_dead[by_dead["comparison"] == name]
        at = [kinds.index(kind) + 0.3 * (k - 0.5) for kind in bars["value"]]
        drawn = right.bar(at, bars["mppc"], width=0.28, color=look["color"], yerr=_error(bars), capsize=2)
        right.bar_label(drawn, bars["mppc"].map("{:.3f}".format), fontsize=7, padding=2)
    tokens = sorted(set(by_tokens["value"]))
    left.set(xscale="log", xlabel="tokens correlated over", ylabel="mean MPPC and 95 % interval", ylim=(0, 1))
    left.set_xticks(tokens, [short(v) for v in tokens])
    left.minorticks_off()
    right.set(xlabel="dead features")
    right.set_xticks(range(len(kinds)), kinds)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8)
    return figure


def _error(rows: pd.DataFrame, mean: str = "mppc") -> np.ndarray:
    """How far an interval reaches below and above its mean, of columns low and high."""
    return np.clip([rows[mean] - rows["low"], rows["high"] - rows[mean]], 0, None)


def fig_between_models(means: pd.DataFrame, deviations: pd.DataFrame) -> Figure:
    """Mean MPPC of each model's features (rows) with each other model's (columns); on the diagonal, two SAE seeds.

    `deviations` are the means' standard deviations over pairs of SAE seeds.
    """
    names = [name.removeprefix("mini-") for name in means.index]
    figure, axes = plt.subplots(figsize=(0.95 * WIDTH, 0.5 + 0.55 * len(names)), layout="constrained")
    words = means.map("{:.2f}".format) + deviations.map("\n±{:.3f}".format)
    heatmap(axes, means.set_axis(names), words, "mean MPPC", cmap="viridis")
    axes.invert_yaxis()
    axes.set(xlabel="… find their best matches in", ylabel="features of …")
    about = "diagonal: two SAE seeds of one model; ±: standard deviation between pairs of SAE seeds"
    axes.set_title(about, fontsize=8, loc="left", color="0.35")
    axes.set_xticks(axes.get_xticks(), names, rotation=25, ha="right", rotation_mode="anchor")
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        for tick, name in zip(ticks, means.index, strict=True):
            tick.set_color(ink(model_colour(name)))
    return figure
