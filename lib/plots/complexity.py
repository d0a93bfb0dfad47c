"""Figures of §5: pairs of features with their snippets, and MPPC by score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.interpret.judges import Example
from lib.plots.style import LOOKS, WIDTH

FONT, CHARACTER = 7.2, 0.602 * 7.2  # points; a monospaced character is 0.602 of its size wide
SIDE = 30  # characters shown before and after the active token


@dataclass(frozen=True)
class Pair:
    """A feature and its match, with the places where each fires most."""

    title: str
    left: Sequence[Example]
    right: Sequence[Example]


def fig_feature_pairs(pairs: Sequence[Pair], left: str, right: str, n: int = 4, note: str = "") -> Figure:
    """Pairs of features side by side, one row each, with `n` snippets; the active token is boxed (W, Figs. 4, 12)."""
    figure, grid = plt.subplots(
        len(pairs), 2, figsize=(1.25 * WIDTH, 0.35 + 1.05 * len(pairs)), squeeze=False, layout="constrained"
    )
    for row, pair in zip(grid, pairs, strict=True):
        for axes, examples in zip(row, (pair.left, pair.right), strict=True):
            _snippets(axes, examples[:n], n)
        row[0].set_title(pair.title, loc="left", fontsize=8)
    for axes, name in zip(grid[0], (left, right), strict=True):
        axes.set_title(name, loc="right", fontsize=9, fontweight="bold")
    if note:
        figure.supxlabel(note, fontsize=7)
    return figure


def _snippets(axes: Axes, examples: Sequence[Example], n: int) -> None:
    axes.set(xlim=(0, 1), ylim=(n, 0))
    axes.axis("off")
    for line, example in enumerate(examples):
        before = "".join(example.tokens[: example.centre]).replace("\n", "↵")[-SIDE:].rjust(SIDE)
        after = "".join(example.tokens[example.centre + 1 :]).replace("\n", "↵")[:SIDE]
        token = example.tokens[example.centre].replace("\n", "↵")
        _text(axes, line, 0, before)
        _text(axes, line, len(before), token, facecolor="#fde3b0", edgecolor="#b36b00", boxstyle="square,pad=0.1")
        _text(axes, line, len(before) + len(token), after)


def _text(axes: Axes, line: int, column: int, text: str, **box) -> None:
    axes.annotate(
        text, (0, line + 0.5), (column * CHARACTER, 0), textcoords="offset points", family="monospace", fontsize=FONT,
        va="center", parse_math=False, bbox=box | {"linewidth": 0.5} if box else None,
    )  # fmt: skip


def fig_complexity(scores: pd.DataFrame, variants: Sequence[str], at_least: int = 10) -> Figure:
    """MPPC by complexity for each variant, and by monosemanticity for the cross-architecture one (W, Fig. 5).

    `variants` are the columns of `scores` that hold MPPC, the cross-architecture one last; scores that fewer than
    `at_least` features have are left out. The judge's name stands in the title.
    """
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(1.3 * WIDTH, 3.6), sharey=True, width_ratios=(2, 1), layout="constrained"
    )
    long = scores.melt(["complexity", "monosemanticity"], list(variants), "variant", "MPPC")
    _boxes(
        left,
        _frequent(long, "complexity", at_least * len(variants)),
        "complexity",
        hue="variant",
        palette={v: _colour(v) for v in variants},
    )
    left.legend(title=None, frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=3)
    across = long[long["variant"] == variants[-1]]
    _boxes(right, _frequent(across, "monosemanticity", at_least), "monosemanticity", color=_colour(variants[-1]))
    right.axhline(0.2, color="0.4", linestyle=":", linewidth=1)
    for axes, letter in ((left, "a"), (right, "b")):
        axes.set_title(f"({letter})", loc="left", fontsize=10)
    figure.suptitle(f"scored by: {scores['judge'].iloc[0]}", fontsize=9)
    return figure


def _colour(variant: str) -> tuple:
    return sns.color_palette()[LOOKS[variant][0]]


def _frequent(long: pd.DataFrame, aspect: str, at_least: int) -> pd.DataFrame:
    counts = long[aspect].value_counts()
    return long[long[aspect].isin(counts[counts >= at_least].index)].astype({aspect: int})


def _boxes(axes: Axes, data: pd.DataFrame, aspect: str, **more) -> None:
    if len(data):
        sns.boxplot(data, x=aspect, y="MPPC", ax=axes, fliersize=1, linewidth=0.8, saturation=1, **more)
        n = data.groupby(aspect)["MPPC"].count() // (data["variant"].nunique() or 1)
        axes.set_xticks(range(len(n)), [f"{score}\nn = {count}" for score, count in n.items()])
    axes.set(xlabel=f"{aspect} score", ylim=(0, 1.02))
