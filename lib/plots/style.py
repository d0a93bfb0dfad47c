"""One look for all figures, and the figures of models, SAEs and similarity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from lib.sae import SAE

PALETTE = dict(zip(("pythia", "mamba", "rwkv", "seed"), sns.color_palette("colorblind", 4), strict=True))
WIDTH = 7.0  # inches; a page's text width


def use_theme() -> None:
    """Set the workbook's look; colours are told apart without colour vision, and lines differ in dashes too."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.9)
    plt.rcParams.update({"figure.dpi": 100, "savefig.dpi": 150, "axes.spines.top": False, "axes.spines.right": False})
    pd.set_option("styler.format.escape", "html")  # text of a table is no markup, wherever it comes from


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, and the minus of print, as on the axes."""
    return f"{value:+.{digits}f}".replace("-", "−")


ABILITIES = {
    "bits_per_byte": "bits per byte of text",
    "repeats_8": "repeats of 8 tokens",
    "repeats_64": "repeats of 64 tokens",
    "association_8": "association, gap 8",
    "ioi": "IOI",
    "cost_of_a_8": "cost of A / cost of B",
}
CHANCE = {"association_8": 0.5, "ioi": 0.5}


def fig_abilities(training: pd.DataFrame) -> Figure:
    """What models can do against the tokens that they have seen: a panel for each of `ABILITIES`.

    Columns model, tokens, and the abilities. A dotted line is what a guess gets.
    """
    figure, grid = plt.subplots(2, 3, figsize=(1.2 * WIDTH, 4.8), sharex=True, layout="constrained")
    for axes, (column, label) in zip(grid.flat, ABILITIES.items(), strict=True):
        for k, (name, rows) in enumerate(training.groupby("model", sort=False)):
            look = dict(color=model_colour(name), linestyle=DASHES[k % len(DASHES)])
            axes.plot(rows["tokens"], rows[column], label=name, **look)
        if column in CHANCE:
            axes.axhline(CHANCE[column], color="0.6", linewidth=0.8, linestyle=":", zorder=0)
        if column != "bits_per_byte":
            axes.set_ylim(min(-0.05, training[column].min()), max(1.05, training[column].max()))
        axes.set_title(label, fontsize=9)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:.0f}M")
    for axes in grid[-1]:
        axes.set_xlabel("tokens seen in training")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def model_colour(name: str) -> tuple:
    """The colour of a model in every figure, by its name; another seed of the Transformer has one of its own."""
    family = next((key for key in ("seed", "mamba", "rwkv") if key in name.lower()), "pythia")
    return PALETTE[family]


def fig_sae_quality(quality: pd.DataFrame) -> Figure:
    """Four panels against relative depth: L0, explained variance, cross-entropy recovered, dead share.

    A model's first SAE seed is drawn with large hollow marks, so that the second can be seen inside them.
    """
    panels = {
        "l0": "L0 (active features)",
        "explained_variance": "explained variance",
        "ce_recovered": "cross-entropy recovered",
        "dead": "dead share",
    }
    depth = quality.groupby("model")["layer"].transform(lambda layer: (layer + 1) / (layer.max() + 1))
    looks = (dict(marker="o", markersize=9, markerfacecolor="none", linewidth=3, alpha=0.6),
             dict(marker="x", markersize=5, linewidth=1, linestyle="--"))  # fmt: skip
    figure, grid = plt.subplots(2, 2, figsize=(WIDTH, 4.8), sharex=True, layout="constrained")
    for axes, (column, label) in zip(grid.flat, panels.items(), strict=True):
        for (model, seed), rows in quality.assign(depth=depth).groupby(["model", "seed"], sort=False):
            look = looks[min(list(quality["seed"].unique()).index(seed), 1)]
            axes.plot(rows["depth"], rows[column], color=model_colour(model), label=f"{model}, SAE seed {seed}", **look)
        axes.set(ylabel=label, ylim=(0, 1.1 * quality[column].max() or 1))
    for axes in grid[-1]:
        axes.set_xlabel("relative depth")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False,
                  fontsize=8)  # fmt: skip
    return figure


SETTINGS = {
    "sae_tokens": "tokens of text",
    "expansion": "dictionary size\n(times the width)",
    "target_l0": "target of L0",
    "sae_batch_size": "tokens per batch",
    "sae_learning_rate": "learning rate",
    "model_tokens": "tokens that the\nmodel read",
}


def fig_sae_trade_off(by_setting: pd.DataFrame) -> Figure:
    """What each setting does to the agreement of two SAE seeds, explained variance, L0 and dead features.

    Columns setting, value, and measures. What stands under several settings, the profile's own, has a hollow mark.
    """
    measures = {
        "mppc": "mean MPPC\nof two seeds",
        "explained_variance": "explained\nvariance",
        "l0": "L0",
        "dead": "dead share",
    }
    settings, own = list(dict.fromkeys(by_setting["setting"])), by_setting.duplicated(list(measures), keep=False)
    size = {"figsize": (1.2 * WIDTH, 6), "sharey": "row", "sharex": "col", "squeeze": False, "layout": "constrained"}
    figure, grid = plt.subplots(len(measures), len(settings), **size)
    for column, setting in enumerate(settings):
        data = by_setting.assign(own=own)[by_setting["setting"] == setting].sort_values("value")
        for row, (measure, label) in enumerate(measures.items()):
            axes = grid[row, column]
            axes.plot(data["value"], data[measure], color=PALETTE["pythia"])
            faces = np.where(data["own"], "w", "C0")
            look = {"color": faces, "edgecolors": [PALETTE["pythia"]], "zorder": 3, "clip_on": False}
            axes.scatter(data["value"], data[measure], **look)
            axes.set(ylabel=label if column == 0 else None)
        _values_of(grid[-1, column], setting, data["value"])
    for axes in grid[1:, 0]:
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    return figure


def fig_retraining(by_setting: pd.DataFrame) -> Figure:
    """Mean MPPC against each setting of the training, a panel each and a line per comparison, on one scale.

    Columns setting, value, comparison, mppc.
    """
    settings, names = (list(dict.fromkeys(by_setting[column])) for column in ("setting", "comparison"))
    figure, grid = plt.subplots(2, -(-len(settings) // 2), figsize=(1.3 * WIDTH, 5), sharey=True, layout="constrained")
    for axes, setting in zip(grid.flat, settings):
        rows = by_setting[by_setting["setting"] == setting].sort_values("value")
        for k, name in enumerate(names):
            of = rows[rows["comparison"] == name]
            axes.plot(of["value"], of["mppc"], marker="o", markersize=4, **_look(name, k))
        _values_of(axes, setting, rows["value"].unique())
    for axes in grid.flat[len(settings) :]:
        axes.set_axis_off()
    _name_ends(grid[0, -1], names, 0.09)
    for axes in grid[:, 0]:
        axes.set_ylabel("mean MPPC")
    return figure


def _values_of(axes: Axes, setting: str, values: Sequence[float]) -> None:
    """A logarithmic axis with the values that were tried, under the setting's words."""
    axes.set_xscale("log")
    axes.set_xticks(values, [_short(value) for value in values], minor=False)
    axes.minorticks_off()
    axes.tick_params(axis="x", labelsize=6)
    axes.set_xlabel(SETTINGS.get(setting, setting), fontsize=9)


def _short(value: float) -> str:
    """A number for a narrow axis: 250k for 250,000."""
    if value >= 1e6:
        return f"{value / 1e6:,.3g}M"
    return f"{value / 1e3:,.3g}k" if value >= 10_000 else f"{value:g}"


def fig_sae_training(history: pd.DataFrame) -> Figure:
    """L0 and the share of the variance that is not explained, during training, both on a logarithmic axis.

    Columns model, layer, tokens, l0, explained_variance; nothing of what was recorded is cut off.
    """
    rows = history.assign(unexplained=(1 - history["explained_variance"]).clip(lower=1e-4))
    panels = {"l0": "L0 (active features)", "unexplained": "unexplained variance"}
    size = {"figsize": (WIDTH, 4.6), "sharex": True, "sharey": "row", "squeeze": False, "layout": "constrained"}
    figure, grid = plt.subplots(2, history["model"].nunique(), **size)
    for column, (model, data) in enumerate(rows.groupby("model", sort=False)):
        for axes, (measure, label) in zip(grid[:, column], panels.items(), strict=True):
            full = measure == "l0" and "full"
            sns.lineplot(data, x="tokens", y=measure, hue="layer", palette="crest", linewidth=1, ax=axes, legend=full)
            axes.set(xlabel="tokens read", ylabel=label, yscale="log")
            axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M")
            axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        grid[0, column].set_title(model, color=model_colour(model))
        grid[0, column].legend(title="layer", frameon=False, fontsize=7, ncol=2)
    grid[1, 0].axhline(1, color="0.6", linewidth=0.8, linestyle=":")
    return figure


def fig_one_token(sae: SAE, x: Float[Tensor, "tokens d_model"], price: float, most: int = 200) -> Figure:
    """The `most` highest activations of the first token, and what the SAE makes of all tokens of `x`."""
    with torch.no_grad():
        f, x_hat = sae.encode(x), sae(x)
    explained = 1 - float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())
    figure, axes = plt.subplots(figsize=(WIDTH, 2.4), layout="constrained")
    highest = f[0].sort(descending=True).values[:most].cpu().numpy()
    axes.bar(range(len(highest)), highest, width=1, color=PALETTE["pythia"])
    axes.set(xlabel="features of the first token, the most active first", ylabel="activation", xlim=(-1, most))
    l0 = float((f > 0).sum(1).float().mean())
    axes.set_title(f"λ = {price:g}: {l0:.0f} of {f.shape[1]} features active, {explained:.0%} explained", fontsize=10)
    return figure


# ------------------------------------------------------------------------------------------- similarity

Interval = tuple[float, float]
DASHES = ("-", "--", "-.", ":", (0, (1, 1)), (0, (5, 1)))
LOOKS = {  # a comparison looks the same in every figure: number of its colour, number of its dashes
    "Pythia → Mamba": (1, 0),  # colours are those of the model that Pythia is compared with, as in `PALETTE`
    "Mamba → Pythia": (1, 1),
    "model seed": (3, 1),
    "model seed, reverse": (3, 3),
    "SAE seed": (0, 2),
    "Pythia → RWKV": (2, 0),
    "neurons, Pythia → Mamba": (7, 3),
    "neurons, Pythia → RWKV": (7, 3),
}
BINS = np.linspace(-0.05, 1, 43)  # of MPPC


def _look(label: str, k: int) -> dict:
    """Colour and dashes of a comparison, or where it has none of its own, those of the number `k`."""
    colours = sns.color_palette("colorblind" if label in LOOKS else None)
    colour, style = LOOKS.get(label, (k, k))
    return {"color": colours[colour % len(colours)], "linestyle": DASHES[style % len(DASHES)]}


def _densities(
    axes: Axes, values: Mapping[str, Sequence[float]], intervals: Mapping[str, Interval] | None = None, small: int = 8
) -> None:
    """A step histogram per label, one above the other on one scale, each under its own words; NaN are left out."""
    kept = {label: np.asarray(mppc, float)[~np.isnan(np.asarray(mppc, float))] for label, mppc in values.items()}
    heights = {label: np.histogram(mppc, BINS, density=True)[0] for label, mppc in kept.items()}
    top = max(height.max() for height in heights.values())
    for k, (label, mppc) in enumerate(kept.items()):
        base, colour = (len(kept) - 1 - k) * 1.5 * top, _look(label, k)["color"]
        axes.stairs(base + heights[label], BINS, baseline=base, fill=True, alpha=0.25, color=colour)
        axes.stairs(base + heights[label], BINS, baseline=base, color=colour)
        axes.vlines(mppc.mean(), base, base + top, color=colour, linewidth=1)
        words = f"{label}: mean {mppc.mean():.3f}{_about((intervals or {}).get(label))}, n = {len(mppc):,}"
        axes.text(-0.04, base + 1.08 * top, words, fontsize=small)
    axes.set(xlabel="max pairwise Pearson correlation (MPPC)", xlim=(-0.05, 1), ylim=(0, len(kept) * 1.5 * top))
    axes.set(yticks=[], ylabel="density, on one scale")
    if intervals:
        look = dict(loc="left", fontsize=small, color="0.35")
        axes.set_title("vertical line: mean [95 % interval]", **look)


def _about(interval: Interval | None) -> str:
    return f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""


def fig_mppc_density(values: Mapping[str, Sequence[float]], intervals: Mapping[str, Interval] | None = None) -> Figure:
    """Densities of MPPC, one per comparison, with their means and the means' intervals (W, Fig. 3a)."""
    figure, axes = plt.subplots(figsize=(WIDTH, 0.8 + 0.85 * len(values)))
    _densities(axes, values, intervals)
    return figure


def fig_share_above(values: Mapping[str, Sequence[float]]) -> Figure:
    """Share of features whose MPPC lies above each value, one line per label; nulls begin with "null: "."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    for k, (label, mppc) in enumerate(values.items()):
        look = _look(label.removeprefix("null: "), k)
        if label.startswith("null: "):
            look["linestyle"] = DASHES[3]
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
            words, look = f"{label}\nn = {pd.Series(mppc).count():,}", dict(color=colour, fontsize=8)
            axes.text(0.99, 0.97 - 0.16 * k, words, transform=axes.transAxes, ha="right", va="top", **look)
        axes.set_title(f"{title}\n{effects[title]}", fontsize=8, loc="left")
        axes.set(xlabel="MPPC", ylabel="share of features above", xlim=(-0.05, 1))
    return figure


def _difference(axes: Axes, differences: pd.Series, colour: tuple = PALETTE["mamba"]) -> None:
    low, high = differences.quantile([0.05, 0.95])
    axes.hist(differences, bins=np.linspace(-1, 1, 81), density=True, histtype="stepfilled", color=colour,
              alpha=0.6)  # fmt: skip
    axes.axvspan(low, high, color="0.5", alpha=0.15, label=f"90 % of features: [{signed(low)}, {signed(high)}]")
    about = f"mean {signed(differences.mean(), 3)}, n = {len(differences):,}"
    axes.axvline(differences.mean(), color="k", linewidth=0.8, label=about)
    axes.set(xlabel="difference of MPPC", ylabel="density", xlim=(-1, 1))
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)  # off the band


def fig_mppc_difference(differences: pd.Series, what: str = "difference of MPPC") -> Figure:
    """Per feature, MPPC in one comparison minus MPPC in another, with the middle 90 % (W, Fig. 3b)."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.2))
    _difference(axes, differences)
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
        error = np.clip([rows["mean"] - rows["low"], rows["high"] - rows["mean"]], 0, None)
        look = dict(fmt="osD^v"[k % 5], markersize=5, capsize=2, color=sns.color_palette("viridis", len(measures))[k])
        axes.errorbar(rows["mean"], y, xerr=error, label=measure, **look)
        for at, value in zip(y, rows["mean"], strict=True):
            axes.annotate(f"{value:.3f}", (value, at), (7, -2.5), textcoords="offset points", fontsize=7)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="mean MPPC", ylim=(len(names) - 0.5, -0.5))
    axes.grid(axis="x", color="0.9")
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def fig_sae_seeds(table: pd.DataFrame) -> Figure:
    """What two SAE seeds have in common, by firing rate; columns firing_rate, n, cosine, mppc, found."""
    labels = {"mppc": "mean MPPC", "cosine": "mean cosine (PW-MCC)", "found": "share found by both"}
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    for k, (column, label) in enumerate(labels.items()):
        axes.plot(table["firing_rate"], table[column], "osD"[k] + "-", color=sns.color_palette("viridis", 3)[k])
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="firing rate (share of tokens; each point a group of features)")
    axes.set(ylabel=f"of about {table['n'].iloc[0]:,} features each")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    _name_ends(axes, list(labels.values()))
    return figure


def _name_ends(axes: Axes, labels: Sequence[str], apart: float = 0.05) -> None:
    """Write each line's label at its right end, in its colour, moved up where two would lie on each other."""
    lines = axes.lines[: len(labels)]
    low, high = axes.get_ylim()
    reached = -np.inf
    for line, label in sorted(zip(lines, labels, strict=True), key=lambda pair: pair[0].get_ydata()[-1]):
        x, y = line.get_xdata()[-1], line.get_ydata()[-1]
        reached = max(y, reached + apart * (high - low))
        place = dict(xytext=(7, 0), textcoords="offset points", va="center", fontsize=8, annotation_clip=False)
        axes.annotate(label, (x, reached), color=line.get_color(), **place)


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
            rows, look = data[data["comparison"] == name], _look(name, k)
            axes.plot(rows["layer"], rows["mean"], marker="o", markersize=4, **look)
            axes.fill_between(rows["layer"], rows["low"], rows["high"], alpha=0.25, color=look["color"], linewidth=0)
        _name_ends(axes, names, 0.06 if axes is grid[0] else 0.09)
    grid[0].set(ylabel="mean MPPC")
    grid[1].set(ylabel="gap to SAE seed", xlabel="layer of Pythia", xticks=sorted(table["layer"].unique()))
    grid[1].set_ylim(bottom=min(0, grid[1].get_ylim()[0]))
    return figure


def _map(axes: Axes, shares: np.ndarray, own: str, other: str, of: str, bar: bool = True) -> None:
    """Heatmap of shares [layers of own, layers of other], own layers along x; values in the cells of a small one."""
    look = dict(cmap="viridis", vmin=0, annot=shares.size <= 100, fmt=".2f", annot_kws={"fontsize": 7})
    look |= dict(cbar=bar, cbar_kws={"label": "share of the layer's features"} if bar else None)
    sns.heatmap(shares.T, ax=axes, **look)
    axes.invert_yaxis()
    axes.set(xlabel=f"layer of {own}", ylabel=f"{of} {other}")
    axes.tick_params(axis="y", rotation=0)


def _depth_map(axes: Axes, shares: np.ndarray, own: str, other: str, of: str = "layer of the best match in") -> None:
    """Heatmap of `comparisons.depth_map`; a frame marks the layer of the same relative depth, or else the next one."""
    _map(axes, shares, own, other, of)
    n, m = shares.shape
    for layer in range(n):
        for width, colour in ((3.5, "k"), (2, "w")):  # seen on dark cells and on bright ones
            same = (layer, -(-(layer + 1) * m // n) - 1)
            axes.add_patch(plt.Rectangle(same, 1, 1, fill=False, edgecolor=colour, linewidth=width))
    rounded = ", or the next layer" if n > m else ""
    axes.set_title(f"framed: the same relative depth{rounded}", fontsize=8, loc="left", color="0.35")


def fig_layer_map(shares: pd.DataFrame, own: str, other: str) -> Figure:
    """For some layers (rows), the share of features whose best match lies in each of the other's (columns)."""
    figure, axes = plt.subplots(figsize=(0.7 * WIDTH, 3.8), layout="constrained")
    _map(axes, shares, own, other, "layer of the best match in")
    return figure


def fig_depth_map(shares: np.ndarray, own: str, other: str) -> Figure:
    """In which layer of the other model each layer's features find their best match (W, Figs. 3c and 10)."""
    figure, axes = plt.subplots(figsize=(0.7 * WIDTH, 4.2))
    _depth_map(axes, shares, own, other)
    return figure


def fig_depth_starts(best: np.ndarray, start: np.ndarray, own: str, other: str) -> Figure:
    """Two depth maps side by side: where the best match lies, and where a match that is nearly as good first stands."""
    figure, grid = plt.subplots(1, 2, figsize=(1.3 * WIDTH, 4), layout="constrained")
    _depth_map(grid[0], best, own, other)
    _depth_map(grid[1], start, own, other, "first layer with a match as good, in")
    return figure


def fig_density_by_layer(frame: pd.DataFrame, n_groups: int = 4) -> Figure:
    """Densities of MPPC by groups of layers, from early to late (W, Fig. 8); columns layer, mppc."""
    groups = np.array_split(np.sort(frame["layer"].unique()), min(n_groups, frame["layer"].nunique()))
    figure, axes = plt.subplots(figsize=(WIDTH, 0.8 + 0.85 * len(groups)))
    names = [f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]}–{layers[-1]}" for layers in groups]
    with sns.color_palette("viridis", len(groups)):
        _densities(axes, {n: frame.loc[frame["layer"].isin(g), "mppc"] for n, g in zip(names, groups, strict=True)})
    return figure


def fig_forward_and_reverse(panels: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """A panel per pair of models, with MPPC in both directions (W, Fig. 9)."""
    figure, grid = plt.subplots(1, len(panels), figsize=(WIDTH, 2.8), squeeze=False, layout="constrained")
    for axes, (title, values) in zip(grid[0], panels.items(), strict=True):
        _densities(axes, values, small=7)
        axes.set(title=title, xlabel="MPPC")
        axes.label_outer()
    return figure


def fig_three_panels(
    values: Mapping[str, Sequence[float]], differences: pd.Series | None, shares: np.ndarray, own: str, other: str
) -> Figure:
    """Density, difference and depth map side by side: Fig. 3 for another model (W, Fig. 11); None leaves (b) empty."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(1.7 * WIDTH, 3.8), layout="constrained")
    _densities(left, values, small=7)
    left.set_xlabel("MPPC")
    if differences is None:
        middle.set_axis_off()
    else:
        _difference(middle, differences, PALETTE.get(other.lower(), PALETTE["mamba"]))
    _depth_map(right, shares, own, other)
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

    Columns comparison, value, mppc.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.4), sharey=True, layout="constrained")
    kinds = list(dict.fromkeys(by_dead["value"]))
    for k, name in enumerate(dict.fromkeys(by_tokens["comparison"])):
        look, rows = _look(name, k), by_tokens[by_tokens["comparison"] == name]
        left.plot(rows["value"], rows["mppc"], marker="o", label=name, **look)
        heights = by_dead[by_dead["comparison"] == name].set_index("value")["mppc"]
        at = [kinds.index(kind) + 0.3 * (k - 0.5) for kind in heights.index]
        right.bar_label(right.bar(at, heights, width=0.28, color=look["color"]), fmt="%.3f", fontsize=7)
    tokens = sorted(set(by_tokens["value"]))
    left.set(xscale="log", xlabel="tokens correlated over", ylabel="mean MPPC", ylim=(0, 1))
    left.set_xticks(tokens, [_short(v) for v in tokens])
    left.minorticks_off()
    right.set(xlabel="dead features")
    right.set_xticks(range(len(kinds)), kinds)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8)
    return figure
