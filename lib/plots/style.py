"""One look for all figures: colours, dashes, and how things are named in a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

PALETTE = dict(zip(("pythia", "mamba", "rwkv", "seed"), sns.color_palette("colorblind", 4), strict=True))
WIDTH = 7.0  # inches; a page's text width
Interval = tuple[float, float]
DASHES = ("-", "--", "-.", ":", (0, (1, 1)), (0, (5, 1)))
FAMILIES = ("mamba", "rwkv", "seed", "pythia")  # as they stand in a model's name
LOOKS = {  # a comparison looks the same in every figure: number of its colour, number of its dashes
    "Pythia → Mamba": (1, 0),  # colours are those of the model that Pythia is compared with, as in `PALETTE`
    "Mamba → Pythia": (1, 1),
    "model seed": (3, 1),
    "model seed, reverse": (3, 3),
    "SAE seed": (0, 2),
    "Pythia → RWKV": (2, 5),
    "neurons, Pythia → Mamba": (7, 3),
    "neurons, Pythia → RWKV": (7, 3),
}


def use_theme() -> None:
    """Set the workbook's look; colours are told apart without colour vision, and lines differ in dashes too."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.9)
    plt.rcParams.update({"figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False})
    pd.set_option("styler.format.escape", "html")  # text of a table is no markup, wherever it comes from


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, and the minus of print, as on the axes."""
    return f"{value:+.{digits}f}".replace("-", "−")


def model_colour(name: str) -> tuple:
    """The colour of a model in every figure, by its name; another seed of the Transformer has one of its own."""
    return PALETTE[_family(name) or "pythia"]


def _family(name: str) -> str | None:
    return next((key for key in FAMILIES if key in name.lower()), None)


def look_of(label: str, k: int) -> dict:
    """Colour and dashes of a comparison, or where it has none of its own, those of the number `k`.

    `A → B` of two models by their names has the colour of the one that is no Pythia, and solid lines where that is B.
    Where neither is of a family that has a colour, the colour is one that no family has.
    """
    colours = sns.color_palette("colorblind")
    if look := LOOKS.get(label) or LOOKS.get(label.split(",")[0]):
        return {"color": colours[look[0]], "linestyle": DASHES[look[1]]}
    ends = [_family(name) for name in label.split(" → ")]
    if len(ends) == 2 and any(ends):
        family = min(filter(None, reversed(ends)), key=lambda family: family == "pythia")
        return {"color": PALETTE[family], "linestyle": DASHES[0 if family == ends[1] else 1]}
    return {"color": colours[len(PALETTE) + k % (len(colours) - len(PALETTE))], "linestyle": DASHES[k % len(DASHES)]}


def ink(colour: Sequence[float]) -> tuple[float, ...]:
    """A line's colour for words of that colour: darker, so that small letters can be read on white."""
    return tuple(0.65 * part for part in to_rgb(colour))


def short(value: float) -> str:
    """A number for a narrow axis: 250k for 250,000."""
    if value >= 1e6:
        return f"{value / 1e6:,.3g}M"
    return f"{value / 1e3:,.3g}k" if value >= 10_000 else f"{value:g}"


def heatmap(
    axes: Axes, cells: pd.DataFrame | np.ndarray, words: np.ndarray | None = None, bar: str | None = None,
    **colours: Any,
) -> None:  # fmt: skip
    """Cells in colours, the first row below, with words in them, and a colour bar with the label `bar`.

    Ticks are named by a frame's index and columns. seaborn's heatmap draws the whole figure for every panel, to see
    whether names overlap, which takes seconds for a grid of them; here every second layer is named of more than 16.
    """
    frame = pd.DataFrame(cells)
    mesh = axes.pcolormesh(frame.to_numpy(float), **colours)
    for axis, names in ((axes.xaxis, frame.columns), (axes.yaxis, frame.index)):
        named = slice(None, None, 1 if len(names) <= 16 else 2)
        axis.set_ticks(np.arange(len(names))[named] + 0.5, names[named], rotation=0)
    for (y, x), word in np.ndenumerate(np.empty((0, 0)) if words is None else np.asarray(words)):
        if pd.notna(frame.iat[y, x]):
            shade = "0.15" if sns.utils.relative_luminance(mesh.to_rgba(frame.iat[y, x])) > 0.4 else "white"
            axes.text(x + 0.5, y + 0.5, word, ha="center", va="center", fontsize=7, color=shade)
    sns.despine(ax=axes, left=True, bottom=True)
    if bar is not None:
        axes.figure.colorbar(mesh, ax=axes, label=bar).outline.set_linewidth(0)


def name_ends(axes: Axes, labels: Sequence[str], apart: float = 0.05) -> None:
    """Write each line's label at its right end, in its colour, moved up where two would lie on each other."""
    lines = axes.lines[: len(labels)]
    low, high = axes.get_ylim()
    reached = -np.inf
    for line, label in sorted(zip(lines, labels, strict=True), key=lambda pair: pair[0].get_ydata()[-1]):
        x, y = line.get_xdata()[-1], line.get_ydata()[-1]
        reached = max(y, reached + apart * (high - low))
        place = dict(xytext=(7, 0), textcoords="offset points", va="center", fontsize=8, annotation_clip=False)
        axes.annotate(label, (x, reached), color=ink(line.get_color()), **place)
