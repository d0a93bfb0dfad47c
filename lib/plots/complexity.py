"""Figures of §5: pairs of features with their snippets, and MPPC by score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from lib.interpret.judges import Example
from lib.plots.style import PALETTE, WIDTH, look_of

FONT, CHARACTER = 7.2, 0.602 * 7.2  # points; a monospaced character is 0.602 of its size wide
SIDE = 30  # characters shown before and after the active token


ASPECTS = {"complexity": "complexity (5: the hardest to tell)", "monosemanticity": "consistency (5: always one reason)"}


@dataclass(frozen=True)
class Pair:
    """A feature and its match, with the places where each fires most."""

    title: str
    left: Sequence[Example]
    right: Sequence[Example]


def fig_feature_pairs(pairs: Sequence[Pair], left: str, right: str, n: int = 4, note: str = "") -> Figure:
    """Pairs of features side by side, one row each, with `n` snippets; the active token is boxed (W, Figs. 4, 12)."""
    figure, grid = plt.subplots(
        len(pairs), 2, figsize=(1.25 * WIDTH, 0.35 + (0.25 + 0.2 * n) * len(pairs)), squeeze=False, layout="constrained"
    )
    for row, pair in zip(grid, pairs, strict=True):
        for axes, examples in zip(row, (pair.left, pair.right), strict=True):
            _snippets(axes, examples[:n], n)
        row[0].set_title(pair.title, loc="left", fontsize=8)
    for axes, name in zip(grid[0], (left, right), strict=True):
        axes.set_title(f"{name}\n", loc="center", fontsize=9, fontweight="bold")
    if note:
        figure.supxlabel(note, fontsize=7)
    return figure


def _snippets(axes: Axes, examples: Sequence[Example], n: int) -> None:
    axes.set(xlim=(0, 1), ylim=(n, 0))
    axes.axis("off")
    for line, example in enumerate(examples):
        before = shown("".join(example.tokens[: example.centre]))[-SIDE:].rjust(SIDE)
        after = shown("".join(example.tokens[example.centre + 1 :]))[:SIDE]
        token = shown(example.tokens[example.centre])
        _text(axes, line, 0, before)
        _text(axes, line, len(before), token, facecolor="#fde3b0", edgecolor="#b36b00", boxstyle="square,pad=0.1")
        _text(axes, line, len(before) + len(token), after)


def shown(text: str) -> str:
    """Text as the figure's font can draw it: ↵ for the end of a line, ▯ for a part of a character or a missing one."""
    known = get_font(findfont("DejaVu Sans Mono"))
    one_line = text.replace("\n", "↵").replace("\t", " ")
    return "".join(c if c != "\ufffd" and known.get_char_index(ord(c)) else "▯" for c in one_line)


def _text(axes: Axes, line: int, column: int, text: str, **box) -> None:
    axes.annotate(
        text, (0, line + 0.5), (column * CHARACTER, 0), textcoords="offset points", family="monospace", fontsize=FONT,
        va="center", parse_math=False, bbox=box | {"linewidth": 0.5} if box else None,
    )  # fmt: skip


def fig_complexity(scores: pd.DataFrame, variants: Sequence[str], at_least: int = 10) -> Figure:
    """MPPC by complexity for each variant, and by monosemanticity for the cross-architecture one (W, Fig. 5).

    `variants` are the columns of `scores` that hold MPPC, the cross-architecture one last. A score that fewer than
    `at_least` features have is drawn as points and not as a box. The judge's name stands in the title.
    """
    size = {"figsize": (1.3 * WIDTH, 3.8), "sharey": True, "width_ratios": (3, 2), "layout": "constrained"}
    figure, (left, right) = plt.subplots(1, 2, **size)
    long = scores.melt(["complexity", "monosemanticity"], list(variants), "variant", "MPPC")
    palette = {variant: look_of(variant, k)["color"] for k, variant in enumerate(variants)}
    _boxes(left, long, "complexity", palette, at_least)
    swatches = [plt.Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor="k") for colour in palette.values()]
    place = dict(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    left.legend(swatches, list(palette), frameon=False, fontsize=8, **place)
    _boxes(right, long[long["variant"] == variants[-1]], "monosemanticity", palette, at_least)
    right.axhline(0.2, color="0.4", linestyle=":", linewidth=1)
    right.set_title("dotted: 0.2, the paper's boundary", loc="right", fontsize=8, color="0.35")
    for axes, letter in ((left, "a"), (right, "b")):
        axes.set_title(f"({letter})", loc="left", fontsize=10)
    figure.suptitle(f"scored by: {scores['judge'].iloc[0]}", fontsize=9)
    return figure


def _boxes(axes: Axes, long: pd.DataFrame, aspect: str, palette: Mapping[str, tuple], at_least: int) -> None:
    data = long.dropna(subset=[aspect]).astype({aspect: int})
    names = list(dict.fromkeys(data["variant"]))
    n = data[data["variant"] == names[-1]].groupby(aspect)["MPPC"].count() if names else pd.Series(dtype=int)
    more = dict(x=aspect, y="MPPC", order=list(n.index), hue="variant", hue_order=names, palette=palette, ax=axes,
                legend=False)  # fmt: skip
    enough = data[aspect].map(n) >= at_least
    if enough.any():
        sns.boxplot(data[enough], fliersize=1, linewidth=0.8, saturation=1, **more)
    if (~enough).any():
        sns.stripplot(data[~enough], dodge=len(names) > 1, jitter=False, size=4, **more)
    axes.set_xticks(range(len(n)), [f"{score}\nn = {count}" for score, count in n.items()], fontsize=8)
    axes.set(xlabel=ASPECTS[aspect], ylim=(0, 1.02))


SIDES = {"own": ("Pythia's feature", PALETTE["pythia"], "o"), "match": ("its match in Mamba", PALETTE["mamba"], "s"),
         "both": ("both of the pair", (0.3, 0.3, 0.3), "D")}  # fmt: skip


def fig_unreadable(shares: pd.DataFrame, note: str = "") -> Figure:
    """Share of features without a pattern, by fifths of MPPC, with 95 % intervals (`complexity.unreadable`)."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4), layout="constrained")
    places = list(dict.fromkeys(shares["MPPC"]))
    for k, (side, rows) in enumerate(shares.groupby("side", sort=False)):
        label, colour, marker = SIDES[side]
        x = rows["MPPC"].map(places.index) + 0.15 * (k - 1)
        error = rows["share"] - rows["low"], rows["high"] - rows["share"]
        axes.errorbar(x, rows["share"], error, color=colour, marker=marker, linestyle="", capsize=3, label=label)
    n = shares.groupby("MPPC", sort=False)["n"].max()
    axes.set_xticks(range(len(places)), [f"{place}\nn = {n[place]}" for place in places])
    axes.set(xlabel="MPPC, Pythia → Mamba", ylabel="share without a pattern\n(bar: 95 % interval)")
    axes.set(ylim=(-0.02, 1.02), xlim=(-0.5, len(places) - 0.5))
    axes.legend(frameon=False, fontsize=8, title=note, title_fontsize=8)
    return figure
