"""A picture of the idea for the head of a notebook: drawn by code, with made-up numbers, and without a result."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.plots.style import PALETTE, WIDTH

PYTHIA, MAMBA, RWKV = (PALETTE[name] for name in ("pythia", "mamba", "rwkv"))
Point = tuple[float, float]


def question() -> Figure:
    """Notebook 00: two models read one text, SAEs take their activations apart, and features are compared."""
    axes = _canvas(3.4)
    _box(axes, (1.1, 1.7), "the same\ntext")
    for y, name, colour in ((2.7, "Transformer", PYTHIA), (0.7, "Mamba", MAMBA)):
        _arrow(axes, (1.8, 1.7), (2.5, y))
        _box(axes, (3.3, y), name, colour)
        _arrow(axes, (4.2, y), (4.9, y), "activations")
        _box(axes, (5.5, y), "SAE", colour)
        _arrow(axes, (6.1, y), (6.8, y), "features")
        noise = np.random.default_rng(int(y * 10)).random((3, 14))
        for k, heights in enumerate(np.random.default_rng(3).random((3, 14)) ** 4 * (0.5 + noise)):
            _bars(axes, heights, (7.0 + k, y - 0.25), 0.85, 0.6, colour)
    _arrow(axes, (8.4, 2.2), (8.4, 1.25), both=True)
    axes.text(8.55, 1.72, "which two rise and\nfall together?", va="center", fontsize=9)
    return _finished(axes.figure)


def three_blocks() -> Figure:
    """Notebook 01: how the last token learns of earlier ones in each of the three architectures."""
    figure, grid = plt.subplots(1, 3, figsize=(WIDTH, 2.3), layout="constrained")
    titles = ("Transformer: looks at\nevery earlier token", "Mamba: carries a state\nfrom token to token",
              "RWKV: keeps an average\nin which old tokens fade")  # fmt: skip
    for k, (axes, title, colour) in enumerate(zip(grid, titles, (PYTHIA, MAMBA, RWKV), strict=True)):
        axes.set(xlim=(-0.6, 4.6), ylim=(-0.7, 2.2))
        axes.axis("off")
        axes.set_title(title, fontsize=9, color=colour)
        for t in range(5):
            _box(axes, (t, 0), f"$t_{t + 1}$")
            if k == 0 and t < 4:
                arrow = {"arrowstyle": "->", "color": colour, "connectionstyle": "arc3,rad=-0.35"}
                axes.annotate("", (4, 0.3), (t, 0.3), arrowprops=arrow)
            if k:
                faded = 1 if k == 1 else 0.25 + 0.15 * (t + 1)
                axes.scatter(t, 1.2, s=180, color=colour, alpha=faded, linewidth=0)
                _arrow(axes, (t, 0.3), (t, 0.9), colour=colour)
            if k and t < 4:
                _arrow(axes, (t + 0.28, 1.2), (t + 0.72, 1.2), colour=colour)
    return _finished(figure)


def sparse_autoencoder() -> Figure:
    """Notebook 02: a dense activation becomes few active features out of many, and these become it again."""
    axes, rng = _canvas(3.0), np.random.default_rng(5)
    x = rng.normal(size=12)
    f = np.zeros(60)
    f[[7, 23, 24, 48]] = 0.9, 0.5, 0.3, 0.7
    _bars(axes, x / 4, (0.3, 1.5), 1.7, 1.2, "0.35")
    _bars(axes, f, (3.3, 1.2), 3.4, 1.0, PYTHIA)
    _bars(axes, (x + rng.normal(0, 0.2, 12)) / 4, (8.0, 1.5), 1.7, 1.2, "0.35")
    _arrow(axes, (2.2, 1.5), (3.1, 1.5), "encoder")
    _arrow(axes, (6.9, 1.5), (7.8, 1.5), "decoder")
    words = {1.15: "activation $x$\n12 numbers, none of them 0", 5.0: "features $f(x)$\n60 numbers, 4 of them not 0",
             8.85: "reconstruction $\\hat{x}$\nshould be equal to $x$"}  # fmt: skip
    for place, text in words.items():
        axes.text(place, 0.35, text, ha="center", va="center", fontsize=9)
    axes.text(5.0, 2.75, "loss = error of $\\hat{x}$ + λ · (sum of all $f_i$)", ha="center", fontsize=10)
    return _finished(axes.figure)


def twins() -> Figure:
    """Notebook 03: one feature's activations along the text, and the candidates of the other model beside it."""
    figure, grid = plt.subplots(4, 1, figsize=(WIDTH, 3.0), sharex=True, layout="constrained")
    rng = np.random.default_rng(2)
    own = np.maximum(rng.normal(size=80) - 1, 0)
    others = [np.maximum(rng.normal(size=80) - 1, 0), own * (0.4 + rng.random(80)), np.roll(own, 3)]
    rows = [("feature $i$ of A", own, PYTHIA), *(("a feature of B", v, MAMBA) for v in others)]
    for axes, (label, values, colour) in zip(grid, rows, strict=True):
        axes.bar(range(80), values, color=colour, width=0.9)
        axes.set(xticks=[], yticks=[], xlim=(-1, 81))
        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
        if colour is MAMBA:
            axes.text(82, 0.3, f"ρ = {np.corrcoef(own, values)[0, 1]:.2f}".replace("-", "−"), fontsize=9)
    grid[-1].set_xlabel("tokens of the text →")
    return _finished(figure)


def bounds() -> Figure:
    """Notebook 04: a correlation means something between what chance gives and what the same recipe gives twice."""
    axes = _canvas(2.6)
    _arrow(axes, (0.5, 1.2), (9.7, 1.2))
    for x, label in ((0.7, "0"), (9.3, "1")):
        axes.text(x, 0.85, label, ha="center", va="top", fontsize=9)
    for x, width, text, colour in ((1.2, 1.6, "chance:\nunrelated features", "0.7"),
                                   (7.0, 1.8, "skyline: the same\nrecipe, run twice", PALETTE["seed"])):  # fmt: skip
        axes.add_patch(plt.Rectangle((x, 1.0), width, 0.4, color=colour, alpha=0.5, linewidth=0))
        axes.text(x + width / 2, 1.6, text, ha="center", va="bottom", fontsize=9)
    axes.text(4.9, 1.45, "?", ha="center", fontsize=16, color=MAMBA)
    axes.text(4.9, 0.95, "two architectures", ha="center", va="top", fontsize=9, color=MAMBA)
    axes.text(5.0, 0.2, "mean correlation of a feature and its best match (MPPC)", ha="center", fontsize=9)
    return _finished(axes.figure)


def depths() -> Figure:
    """Notebook 05: if features are ordered alike, matches lie at the same relative depth of two towers of layers."""
    axes = _canvas(4.6)
    for x, n, name, colour in ((2.2, 4, "Transformer", PYTHIA), (7.8, 8, "Mamba", MAMBA)):
        for layer in range(n):
            _box(axes, (x, 0.4 + (layer + 0.5) * 3.5 / n), f"layer {layer}", colour, width=1.6, height=2.6 / n)
        axes.text(x, 4.2, name, ha="center", fontsize=10, color=colour)
    for layer in range(4):
        _arrow(axes, (3.1, 0.4 + (layer + 0.5) * 3.5 / 4), (6.9, 0.4 + (2 * layer + 1.5) * 3.5 / 8), colour="0.4")
    axes.text(5.0, 0.15, "is layer $l$ of 4 matched by layer $2l + 1$ of 8?", ha="center", fontsize=9)
    return _finished(axes.figure)


def simple_to_complex() -> Figure:
    """Notebook 06: three features, from one token to a theme, each with three places where it fires."""
    axes = _canvas(3.6)
    features = {
        "one token": (
            ("the mean of an ", "array", " of"),
            ("returns the ", "array", " as"),
            ("an empty ", "array", ""),
        ),
        "a place in a structure": (("dtype ", ":", " float"), ("axis ", ":", " int"), ("name ", ":", " str")),
        "a theme": (("failed to ", "converge", ""), ("the server is ", "down", ""), ("an ", "invalid", " value")),
    }
    for column, (title, snippets) in enumerate(features.items()):
        middle = 1.75 + 3.25 * column
        axes.text(middle, 3.25, title, ha="center", fontsize=10, fontweight="bold")
        for row, (before, token, after) in enumerate(snippets):
            y, look = 2.6 - 0.5 * row, dict(fontsize=8, family="monospace", va="center")
            box = dict(facecolor="#fde3b0", edgecolor="#b36b00", linewidth=0.5, boxstyle="square,pad=0.15")
            shown = axes.text(middle, y, token, ha="center", bbox=box, **look)
            half = 0.097 * len(shown.get_text()) / 2 + 0.05
            axes.text(middle - half, y, before, ha="right", **look)
            axes.text(middle + half, y, after, ha="left", **look)
    _arrow(axes, (0.6, 0.9), (9.4, 0.9), "more complex")
    axes.text(5.0, 0.35, "does the other model have the same feature less and less often?", ha="center", fontsize=9)
    return _finished(axes.figure)


def arrangement() -> Figure:
    """Notebook 10: the same points in two spaces that are turned against each other, linked by the matching."""
    figure, axes = plt.subplots(figsize=(WIDTH, 2.8), layout="constrained")
    points = np.array([[0, 0], [0.5, 0.15], [0.2, 0.6], [1.6, 1.2], [1.9, 0.8], [1.3, 1.5], [1.9, -0.3]]) - (0.9, 0.5)
    angle = np.deg2rad(115)
    turned = points @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) + (5, 0)
    for a, b in zip(points, turned, strict=True):
        axes.plot(*zip(a, b, strict=True), color="0.75", linewidth=0.8, zorder=0)
    for space, colour, name in ((points, PYTHIA, "directions in model A"), (turned, MAMBA, "directions in model B")):
        axes.scatter(*space.T, s=60, color=colour)
        axes.plot(*space[[0, 3]].T, color=colour, linestyle=":")
        axes.text(space[:, 0].mean(), 1.45, name, ha="center", color=colour, fontsize=10)
    axes.text(2.5, -1.6, "No direction is the same, but every distance is.", ha="center", fontsize=9)
    axes.set(xlim=(-1.6, 6.6), ylim=(-1.8, 1.7), aspect="equal")
    axes.axis("off")
    return _finished(figure)


def two_tokenizers() -> Figure:
    """Notebook 11: one text, cut in two ways; at the marked places both models have read the same."""
    axes, step, left = _canvas(2.7), 0.5, 1.9
    cuts = {"model A": (("a", " non", "-", "zero", " sum"), PYTHIA),
            "model B": (("a", " no", "n-zero", " su", "m"), MAMBA)}  # fmt: skip
    ends = [np.cumsum([len(token) for token in tokens]) for tokens, _ in cuts.values()]
    for end in np.intersect1d(*ends):
        axes.plot([left + step * end] * 2, [0.55, 2.35], color="0.3", linestyle=":", linewidth=1.2)
    for (name, (tokens, colour)), last, y in zip(cuts.items(), ends, (1.9, 1.1), strict=True):
        axes.text(left - 0.25, y, name, ha="right", va="center", color=colour, fontsize=10)
        for token, end in zip(tokens, last, strict=True):
            width = step * len(token)
            _box(axes, (left + step * end - width / 2, y), token.replace(" ", "·"), colour, width - 0.06, 0.5)
    axes.text(left + 3.5, 0.25, "dotted: both have read the same, and are compared", ha="center", fontsize=9)
    return _finished(axes.figure)


# ------------------------------------------------------------------------------------------- parts


def _canvas(height: float) -> Axes:
    """Empty axes of a page's width, 10 units wide."""
    figure, axes = plt.subplots(figsize=(WIDTH, WIDTH / 10 * height), layout="constrained")
    axes.set(xlim=(0, 10), ylim=(0, height))
    axes.axis("off")
    return axes


def _finished(figure: Figure) -> Figure:
    plt.close(figure)  # a notebook shows what is returned; what stays open, it shows a second time
    return figure


def _box(
    axes: Axes, at: Point, text: str, colour: object = "0.4", width: float | None = None, height: float | None = None
) -> None:
    """A word in a rounded box around it, or in a rectangle of a given size."""
    box = dict(facecolor="w", edgecolor=colour, boxstyle="round,pad=0.35")
    if width and height:
        corner = at[0] - width / 2, at[1] - height / 2
        axes.add_patch(plt.Rectangle(corner, width, height, facecolor="w", edgecolor=colour))
        box = {"visible": False}
    axes.text(*at, text, ha="center", va="center", fontsize=9, bbox=box)


def _arrow(axes: Axes, start: Point, end: Point, text: str = "", colour: object = "0.3", both: bool = False) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "<->" if both else "->", "color": colour})
    axes.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.12, text, ha="center", fontsize=8, color="0.3")


def _bars(axes: Axes, heights: np.ndarray, corner: Point, width: float, height: float, colour: object) -> None:
    """Small bars in a row; a height of 1 is `height` units."""
    step = width / len(heights)
    x = corner[0] + step * (np.arange(len(heights)) + 0.5)
    axes.bar(x, np.asarray(heights) * height, step * 0.8, bottom=corner[1], color=colour, linewidth=0)
    axes.plot([corner[0], corner[0] + width], [corner[1]] * 2, color="0.6", linewidth=0.6)
