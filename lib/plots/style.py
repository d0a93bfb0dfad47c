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


def fig_training_losses(losses: pd.DataFrame) -> Figure:
    """Training loss against tokens; columns model, tokens, loss."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.2))
    sns.lineplot(losses, x="tokens", y="loss", hue="model", style="model", ax=axes)
    axes.set(xlabel="tokens seen", ylabel="training loss (nats per token)")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:.0f}M")
    axes.legend(title=None, frameon=False)
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


CHOICES = {
    "expansion": "dictionary size\n(times the width)",
    "sae_tokens": "tokens of text",
    "sae_batch_size": "tokens per batch",
    "target_l0": "target of L0",
}


def fig_sae_trade_off(sweep: pd.DataFrame) -> Figure:
    """What each choice does to reproducibility, explained variance, L0, dead features and time.

    Columns choice, value, and measures. The setting that stands in every choice, the profile's own, has a hollow mark.
    """
    measures = {
        "reproducibility": "mean MPPC\nof two seeds",
        "explained_variance": "explained\nvariance",
        "l0": "L0",
        "dead": "dead share",
        "seconds": "training\n(seconds)",
    }
    choices, own = list(dict.fromkeys(sweep["choice"])), sweep.duplicated(list(measures), keep=False)
    size = {"figsize": (WIDTH, 7.2), "sharey": "row", "sharex": "col", "layout": "constrained"}
    figure, grid = plt.subplots(len(measures), len(choices), **size)
    for column, choice in enumerate(choices):
        data = sweep.assign(own=own)[sweep["choice"] == choice].sort_values("value")
        for row, (measure, label) in enumerate(measures.items()):
            axes = grid[row, column]
            axes.plot(data["value"], data[measure], color=PALETTE["pythia"])
            faces = np.where(data["own"], "w", "C0")
            look = {"color": faces, "edgecolors": [PALETTE["pythia"]], "zorder": 3, "clip_on": False}
            axes.scatter(data["value"], data[measure], **look)
            axes.set(xscale="log", ylabel=label if column == 0 else None)
            axes.set_xticks(data["value"], [_short(v) for v in data["value"]], minor=False)
            axes.minorticks_off()
            axes.tick_params(axis="x", labelsize=7)
        grid[-1, column].set_xlabel(CHOICES.get(choice, choice), fontsize=9)
    for axes in grid[1:, 0]:
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    return figure


def _short(value: float) -> str:
    """A number for a narrow axis: 250k for 250,000."""
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
    "Pythia → Mamba": (0, 0),
    "Mamba → Pythia": (0, 1),
    "model seed": (2, 1),
    "model seed, reverse": (2, 3),
    "SAE seed": (1, 2),
    "Pythia → RWKV": (4, 0),
    "neurons, Pythia → Mamba": (7, 3),
    "neurons, Pythia → RWKV": (7, 3),
}


def _densities(
    axes: Axes, values: Mapping[str, Sequence[float]], intervals: Mapping[str, Interval] | None = None, small: int = 8
) -> None:
    """A density per label, in the label's own colour and dashes if it has some, else in order."""
    colours = sns.color_palette()
    room = 1.05 + 0.085 * (len(values) + bool(intervals))  # the legend lies above what is drawn
    for k, (label, mppc) in enumerate(values.items()):
        colour, style = LOOKS.get(label, (k, k))
        look = {"color": colours[colour % len(colours)], "linestyle": DASHES[style]}
        _density(axes, mppc, label, look, (intervals or {}).get(label), 1 / room)
    axes.set(xlabel="max pairwise Pearson correlation (MPPC)", ylabel="density", xlim=(-0.05, 1))
    axes.set_ylim(0, room * max(np.max(line.get_ydata()) for line in axes.lines))
    title = "mean [95 % interval, documents resampled]" if intervals else None
    look = dict(frameon=False, fontsize=small, title_fontsize=small, alignment="left")
    axes.legend(**look, loc="upper left", borderaxespad=0, title=title)


def _density(
    axes: Axes, mppc: Sequence[float], label: str, look: dict, interval: Interval | None, height: float
) -> None:
    """Histogram of MPPC as a line, with its mean up to a part of the height; NaN (dead features) are left out."""
    mppc = np.asarray(mppc, float)
    mppc = mppc[~np.isnan(mppc)]
    heights, edges = np.histogram(mppc, bins=60, range=(-0.05, 1), density=True)
    centres = (edges[1:] + edges[:-1]) / 2
    about = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    axes.plot(centres, heights, **look, label=f"{label}: mean {mppc.mean():.3f}{about}, n = {len(mppc):,}")
    axes.fill_between(centres, heights, color=look["color"], alpha=0.1)
    axes.axvline(mppc.mean(), ymax=height, **look, linewidth=0.8)


def fig_mppc_density(
    values: Mapping[str, Sequence[float]], intervals: Mapping[str, Interval] | None = None, title: str = ""
) -> Figure:
    """Densities of MPPC, one per comparison, with their means and the means' intervals (W, Fig. 3a)."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.8))
    _densities(axes, values, intervals)
    axes.set_title(title)
    return figure


def fig_share_above(values: Mapping[str, Sequence[float]]) -> Figure:
    """Share of features whose MPPC lies above each value, one line per label: densities too unlike for one axis."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    for k, (label, mppc) in enumerate(values.items()):
        colour, style = LOOKS.get(label.removeprefix("null: "), (k, k))
        style = 3 if label.startswith("null: ") else style
        sns.ecdfplot(x=mppc, complementary=True, ax=axes, color=sns.color_palette()[colour], linestyle=DASHES[style],
                     label=f"{label}, n = {pd.Series(mppc).count():,}")  # fmt: skip
    axes.set(xlabel="max pairwise Pearson correlation (MPPC)", ylabel="share of features above", xlim=(-0.05, 1))
    axes.legend(frameon=False, fontsize=8)
    return figure


def _difference(axes: Axes, differences: pd.Series) -> None:
    low, high = differences.quantile([0.05, 0.95])
    axes.hist(differences, bins=np.linspace(-1, 1, 81), density=True, color=PALETTE["mamba"], alpha=0.6)
    axes.axvspan(low, high, color="0.5", alpha=0.15, label=f"90 % of features: [{signed(low)}, {signed(high)}]")
    about = f"mean {signed(differences.mean(), 3)}, n = {len(differences):,}"
    axes.axvline(differences.mean(), color="k", linewidth=0.8, label=about)
    axes.set(xlabel="difference of MPPC", ylabel="density", xlim=(-1, 1))
    axes.set_ylim(top=1.25 * axes.get_ylim()[1])  # room for the legend above what is drawn
    axes.legend(frameon=False, fontsize=8, loc="upper left", borderaxespad=0)


def fig_mppc_difference(differences: pd.Series, title: str = "") -> Figure:
    """Per feature, MPPC in one comparison minus MPPC in another, with the middle 90 % (W, Fig. 3b)."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.2))
    _difference(axes, differences)
    axes.set_title(title)
    return figure


def _depth_map(axes: Axes, shares: np.ndarray, own: str, other: str) -> None:
    """Heatmap of `comparisons.depth_map`, and the line of equal relative depth."""
    sns.heatmap(shares.T, ax=axes, cmap="viridis", vmin=0, cbar_kws={"label": "share of the layer's features"})
    n, m = shares.shape
    layers = np.arange(n)
    axes.plot(layers + 0.5, (layers + 1) / n * m - 0.5, "w--", linewidth=1.5, label="same relative depth")
    axes.invert_yaxis()
    place = dict(loc="lower left", bbox_to_anchor=(0, 1.01), borderaxespad=0)  # above the map, not on it
    axes.legend(**place, fontsize=8, labelcolor="w", facecolor="0.35", edgecolor="none")
    axes.set(xlabel=f"layer of {own}", ylabel=f"layer of the best match in {other}")


def fig_layer_map(shares: pd.DataFrame, own: str, other: str) -> Figure:
    """For some layers (rows), the share of features whose best match lies in each of the other's (columns)."""
    figure, axes = plt.subplots(figsize=(0.7 * WIDTH, 3.8), layout="constrained")
    look = dict(cmap="viridis", vmin=0, annot=shares.size <= 100, fmt=".2f", annot_kws={"fontsize": 8})
    sns.heatmap(shares.T, ax=axes, cbar_kws={"label": "share of the layer's features"}, **look)
    axes.invert_yaxis()
    axes.set(xlabel=f"layer of {own}", ylabel=f"layer of the best match in {other}")
    return figure


def fig_depth_map(shares: np.ndarray, own: str, other: str) -> Figure:
    """In which layer of the other model each layer's features find their best match (W, Figs. 3c and 10)."""
    figure, axes = plt.subplots(figsize=(0.7 * WIDTH, 4.2))
    _depth_map(axes, shares, own, other)
    return figure


def fig_density_by_layer(frame: pd.DataFrame, n_groups: int = 4) -> Figure:
    """Densities of MPPC by groups of layers, from early to late (W, Fig. 8); columns layer, mppc."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.6))
    groups = np.array_split(np.sort(frame["layer"].unique()), min(n_groups, frame["layer"].nunique()))
    names = [f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]}–{layers[-1]}" for layers in groups]
    with sns.color_palette("viridis", len(groups)):
        _densities(axes, {n: frame.loc[frame["layer"].isin(g), "mppc"] for n, g in zip(names, groups, strict=True)})
    return figure


def fig_forward_and_reverse(panels: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """A panel per pair of models, with MPPC in both directions (W, Fig. 9)."""
    figure, grid = plt.subplots(1, len(panels), figsize=(WIDTH, 3.6), sharey=True, squeeze=False, layout="constrained")
    for axes, (title, values) in zip(grid[0], panels.items(), strict=True):
        _densities(axes, values, small=7)
        axes.set(title=title, xlabel="MPPC")
        axes.label_outer()
    grid[0, 0].set_ylim(0, max(np.max(line.get_ydata()) for axes in grid[0] for line in axes.lines) * 1.2)
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
        _difference(middle, differences)
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


def fig_sensitivity(by_tokens: pd.DataFrame, by_l0: pd.DataFrame, by_dead: pd.DataFrame) -> Figure:
    """Mean MPPC against three choices: tokens used, L0, dead features left out or counted as 0.

    Columns comparison, value, mppc (by_l0: also l0, the L0 that was reached).
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(1.4 * WIDTH, 3.4), sharey=True, layout="constrained")
    sns.lineplot(by_tokens, x="value", y="mppc", hue="comparison", style="comparison", markers=True, ax=left)
    left.set(xscale="log", xlabel="tokens correlated over", ylabel="mean MPPC", ylim=(0, 1))
    tokens = sorted(set(by_tokens["value"]))
    left.set_xticks(tokens, [_short(v) for v in tokens])
    left.minorticks_off()
    sns.lineplot(by_l0, x="l0", y="mppc", hue="comparison", style="comparison", markers=True, ax=middle)
    middle.set(xlabel="L0 of the SAEs")
    sns.barplot(by_dead, x="value", y="mppc", hue="comparison", ax=right, saturation=1, legend=False)
    right.set(xlabel="dead features")
    middle.get_legend().remove()
    left.legend(title=None, frameon=False, fontsize=8)
    return figure
