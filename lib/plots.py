"""One look for all figures, and one way to save them: PNG and PDF, with the drawn numbers beside them as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lib.profiles import Profile

PALETTE = dict(zip(("pythia", "mamba", "rwkv", "seed"), sns.color_palette("colorblind", 4), strict=True))
WIDTH = 7.0  # inches; a page's text width


def use_theme() -> None:
    """Set the workbook's look; colours are told apart without colour vision, and lines differ in dashes too."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.9)
    plt.rcParams.update({"figure.dpi": 100, "savefig.dpi": 150, "axes.spines.top": False, "axes.spines.right": False})


def save_figure(figure: Figure, name: str, profile: Profile) -> Figure:
    """Write figures/<profile>/<name>.png and .pdf, the same bytes for the same figure; returns the figure.

    Figures of models with random weights say so across the picture.
    """
    if not profile.meaningful:
        figure.text(0.5, 0.5, "random weights", fontsize=40, color="0.6", alpha=0.4, ha="center", va="center", rotation=20)
    profile.figures_dir.mkdir(parents=True, exist_ok=True)
    figure.savefig(profile.figures_dir / f"{name}.png", bbox_inches="tight", metadata={"Software": None})
    figure.savefig(profile.figures_dir / f"{name}.pdf", bbox_inches="tight", metadata={"CreationDate": None})
    plt.close(figure)
    return figure


def save_table(table: pd.DataFrame, name: str, profile: Profile) -> pd.DataFrame:
    """Write figures/<profile>/<name>.csv with 6 digits; returns the table."""
    profile.figures_dir.mkdir(parents=True, exist_ok=True)
    table.to_csv(profile.figures_dir / f"{name}.csv", index=False, float_format="%.6g")
    return table


def fig_training_losses(losses: pd.DataFrame) -> Figure:
    """Training loss against tokens; columns model, tokens, loss."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.2))
    sns.lineplot(losses, x="tokens", y="loss", hue="model", style="model", ax=axes)
    axes.set(xlabel="tokens seen", ylabel="training loss (nats per token)")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:.0f}M")
    axes.legend(title=None, frameon=False)
    return figure


def fig_sae_quality(quality: pd.DataFrame) -> Figure:
    """Four panels against relative depth: L0, explained variance, cross-entropy recovered, dead share."""
    panels = {
        "l0": "L0 (active features)",
        "explained_variance": "explained variance",
        "ce_recovered": "cross-entropy recovered",
        "dead": "dead share",
    }
    depth = quality.groupby("model")["layer"].transform(lambda layer: (layer + 1) / (layer.max() + 1))
    figure, grid = plt.subplots(2, 2, figsize=(WIDTH, 4.6), sharex=True, layout="constrained")
    for axes, (column, label) in zip(grid.flat, panels.items(), strict=True):
        data = quality.assign(depth=depth, SAE=quality["model"] + ", seed " + quality["seed"].astype(str))
        sns.lineplot(data, x="depth", y=column, hue="SAE", style="SAE", markers=True, ax=axes, legend=axes is grid[0, 0])
        axes.set(ylabel=label, xlabel="relative depth", ylim=(0, None))
    grid[0, 0].legend(title=None, frameon=False, fontsize=7)
    return figure


def fig_sae_trade_off(sweep: pd.DataFrame) -> Figure:
    """What each choice does to reproducibility, explained variance, L0 and time; columns choice, value, measures."""
    measures = {
        "reproducibility": "mean MPPC\nof two seeds",
        "explained_variance": "explained\nvariance",
        "l0": "L0",
        "seconds": "training\n(seconds)",
    }
    choices = list(dict.fromkeys(sweep["choice"]))
    figure, grid = plt.subplots(len(measures), len(choices), figsize=(WIDTH, 6.4), sharey="row", sharex="col", layout="constrained")
    for column, choice in enumerate(choices):
        data = sweep[sweep["choice"] == choice].sort_values("value")
        for row, (measure, label) in enumerate(measures.items()):
            axes = grid[row, column]
            axes.plot(data["value"], data[measure], marker="o")
            axes.set(xscale="log", ylabel=label if column == 0 else None, ylim=(0, None) if row else None)
            axes.set_xticks(data["value"], [_short(v) for v in data["value"]], minor=False)
            axes.minorticks_off()
        grid[-1, column].set_xlabel(choice)
    return figure


def _short(value: float) -> str:
    """A number for a narrow axis: 250k for 250,000."""
    return f"{value / 1e3:,.3g}k" if value >= 10_000 else f"{value:g}"


def fig_mppc_density(values: Mapping[str, Sequence[float]], title: str = "") -> Figure:
    """Densities of MPPC, one per comparison, with their means (W, Fig. 3a). NaN (dead features) are left out."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    for (label, mppc), dashes in zip(values.items(), ("-", "--", "-.", ":"), strict=False):
        mppc = np.asarray(mppc)[~np.isnan(mppc)]
        heights, edges = np.histogram(mppc, bins=80, range=(0, 1), density=True)
        centres = (edges[1:] + edges[:-1]) / 2
        (line,) = axes.plot(centres, heights, dashes, label=f"{label}: mean {mppc.mean():.2f}")
        axes.fill_between(centres, heights, color=line.get_color(), alpha=0.12)
        axes.axvline(mppc.mean(), color=line.get_color(), linestyle=dashes, linewidth=0.8)
    axes.set(xlabel="max pairwise Pearson correlation (MPPC)", ylabel="density", xlim=(0, 1), ylim=(0, None), title=title)
    axes.legend(frameon=False)
    return figure


def fig_sae_training(history: pd.DataFrame) -> Figure:
    """L0 and explained variance during training; columns model, layer, tokens, l0, explained_variance."""
    figure, grid = plt.subplots(2, history["model"].nunique(), figsize=(WIDTH, 4.4), sharex=True, squeeze=False, layout="constrained")
    for column, (model, rows) in enumerate(history.groupby("model", sort=False)):
        for axes, measure in zip(grid[:, column], ("l0", "explained_variance"), strict=True):
            sns.lineplot(rows, x="tokens", y=measure, hue="layer", palette="viridis", ax=axes, legend=measure == "l0")
            axes.set(xlabel="tokens", ylabel=measure.replace("_", " ").replace("l0", "L0"))
            axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M")
        grid[0, column].set(title=model, yscale="log")
        grid[0, column].legend(title="layer", frameon=False, fontsize=7, ncol=2)
    return figure
