"""Figures of the models' abilities, and of SAEs: their quality, training and settings."""

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

from lib.plots.style import DASHES, PALETTE, WIDTH, ink, look_of, model_colour, name_ends, short
from lib.sae import SAE

ABILITIES = {
    "bits_per_byte": "bits per byte of text",
    "repeats_8": "repeats of 8 tokens: share right",
    "repeats_64": "repeats of 64 tokens: share right",
    "association_8": "association, gap 8: share right",
    "ioi": "two names (IOI): share right",
    "cost_of_a_8": "cost of A, as a share of B's",
}
CHANCE = {"association_8": 0.5, "ioi": 0.5}


def fig_abilities(training: pd.DataFrame) -> Figure:
    """What models can do against the tokens that they have seen: a panel for each of `ABILITIES`.

    Columns model, tokens, and the abilities. Models of one colour have thinner lines after the first. A dotted line is
    what a guess gets.
    """
    colours = {name: model_colour(name) for name in training["model"].unique()}
    looks, seen = {}, list(dict.fromkeys(colours.values()))
    for name, colour in colours.items():
        width = 0.8 if colour in [look["color"] for look in looks.values()] else 1.8
        looks[name] = dict(color=colour, linestyle=DASHES[seen.index(colour) % len(DASHES)], linewidth=width)
    figure, grid = plt.subplots(2, 3, figsize=(1.2 * WIDTH, 4.8), sharex=True, layout="constrained")
    for axes, (column, label) in zip(grid.flat, ABILITIES.items(), strict=True):
        for name, rows in training.groupby("model", sort=False):
            axes.plot(rows["tokens"], rows[column], label=name, **looks[name])
        if column in CHANCE:
            axes.axhline(CHANCE[column], color="0.6", linewidth=0.8, linestyle=":", zorder=0)
            place = dict(transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=7, color="0.5")
            axes.text(0.99, CHANCE[column], "a guess", **place)
        if column != "bits_per_byte":
            axes.set_ylim(min(-0.05, training[column].min()), max(1.05, training[column].max()))
        axes.set_title(label, fontsize=9)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:.0f}M")
    for axes in grid[-1]:
        axes.set_xlabel("tokens seen in training")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


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
    looks = (dict(marker="o", markersize=9, markerfacecolor="none", linewidth=3, alpha=0.6, clip_on=False),
             dict(marker="x", markersize=5, linewidth=1, linestyle="--", clip_on=False))  # fmt: skip
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
    figure.suptitle("hollow: the profile's own settings, on an eighth of its text", fontsize=8)
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


def fig_retraining(by_setting: pd.DataFrame, deviations: Mapping[str, float]) -> Figure:
    """Mean MPPC against each setting of the training, a panel each and a line per comparison, on one scale.

    Columns setting, value, comparison, mppc. `deviations` are the means' standard deviations over SAE seeds, by
    comparison; the bars are twice as long to each side.
    """
    settings, names = (list(dict.fromkeys(by_setting[column])) for column in ("setting", "comparison"))
    figure, grid = plt.subplots(2, -(-len(settings) // 2), figsize=(1.3 * WIDTH, 5), sharey=True, layout="constrained")
    for axes, setting in zip(grid.flat, settings):
        rows = by_setting[by_setting["setting"] == setting].sort_values("value")
        for k, name in enumerate(names):
            of = rows[rows["comparison"] == name]
            axes.errorbar(of["value"], of["mppc"], 2 * deviations[name], marker="o", markersize=4, **look_of(name, k))
        _values_of(axes, setting, rows["value"].unique())
    for axes in grid.flat[len(settings) :]:
        axes.set_axis_off()
    name_ends(grid[0, -1], names, 0.09)
    for axes in grid[:, 0]:
        axes.set_ylabel("mean MPPC")
    return figure


def _values_of(axes: Axes, setting: str, values: Sequence[float]) -> None:
    """A logarithmic axis with the values that were tried, under the setting's words."""
    axes.set_xscale("log")
    axes.set_xticks(values, [short(value) for value in values], minor=False)
    axes.minorticks_off()
    axes.tick_params(axis="x", labelsize=7.5, rotation=60)
    axes.set_xlabel(SETTINGS.get(setting, setting), fontsize=9)


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
        grid[0, column].set_title(model, color=ink(model_colour(model)))
        grid[0, column].legend(title="layer", frameon=False, fontsize=7, ncol=2)
    for axes in grid[1]:
        axes.axhline(1, color="0.6", linewidth=0.8, linestyle=":")
    return figure


def fig_one_token(sae: SAE, x: Float[Tensor, "tokens d_model"], price: float, most: int = 200) -> Figure:
    """The `most` highest activations of the first token, and what the SAE makes of all tokens of `x`."""
    with torch.no_grad():
        f, x_hat = sae.encode(x), sae(x)
    explained = 1 - float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())
    figure, axes = plt.subplots(figsize=(WIDTH, 2.4), layout="constrained")
    highest = f[0].sort(descending=True).values[:most].cpu().numpy()
    axes.bar(range(len(highest)), highest, width=1, linewidth=0, color=PALETTE["pythia"])
    axes.set(xlabel="features of the first token, the most active first", ylabel="activation", xlim=(-1, most))
    l0 = float((f > 0).sum(1).float().mean())
    axes.set_title(
        f"λ = {price:g}: {l0:.0f} of {f.shape[1]} features active, {100 * explained:.1f} % explained", fontsize=10
    )
    return figure
