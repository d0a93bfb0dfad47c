"""Figures of the circuits: what path patching is, the circuits as measured, two names, and maps."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.circuits.prompts import ROLES
from lib.plots.style import PALETTE, WIDTH, signed

GREY, RED, YELLOW, GREEN = "0.75", "#cc3311", "#ddaa33", "#228833"
MOST_NUMBERS = 60  # cells of a heatmap in which their values are written
TOKENS = ("A1", "B1", "B1+1", "B1+2", "B1+3", "…", "A2")


def _node(axes: Axes, x: float, y: float, text: str, colour: str = "white", size: float = 9) -> None:
    axes.text(x, y, text, ha="center", va="center", fontsize=size, zorder=3,
              bbox=dict(boxstyle="round,pad=0.35", facecolor=colour, edgecolor="0.3", linewidth=0.8))  # fmt: skip


def _arrow(
    axes: Axes, start: tuple, end: tuple, colour: str, width: float, bend: float = 0, label: str = "", at: float = 0.5,
    aside: float = 0,
) -> None:  # fmt: skip
    """An arrow with its label on it, `at` of the way, moved `aside`."""
    style = dict(
        arrowstyle="-|>", color=colour, linewidth=width, shrinkA=11, shrinkB=11, connectionstyle=f"arc3,rad={bend}"
    )
    axes.annotate("", end, start, arrowprops=style, zorder=2)
    if label:
        x, y = (a + at * (b - a) for a, b in zip(start, end))
        axes.text(x + aside, y, label, fontsize=7.5, ha="center", va="center", color=colour, zorder=4,
                  bbox=dict(boxstyle="square,pad=0.1", facecolor="white", edgecolor="none"))  # fmt: skip


def fig_path_patching() -> Figure:
    """What is patched, what is frozen and what is computed again (W, Fig. 6)."""
    figure, grid = plt.subplots(1, 3, figsize=(1.2 * WIDTH, 3.2), layout="constrained")
    sender, nodes = (1, 1), [(x, y) for y in range(3) for x in range(3)]
    for axes, title in zip(grid, ("clean run", "corrupted run", "third run: one path patched"), strict=True):
        last = title.startswith("third")
        for x, y in nodes:
            if x < 2:
                _arrow(axes, (x, y), (x + 1, y), GREEN if last and (x, y) != sender else GREY, 1.2)
            if y < 2:
                onward = last and (x, y) == (2, 1)
                _arrow(axes, (x, y), (x, y + 1), YELLOW if onward else GREY, 2.5 if onward else 1.2)
        if last:
            _arrow(axes, sender, (2, 1), RED, 2.5)
        for x, y in nodes:
            changed = title.startswith("corrupted") and x > 0 and (x, y) != (2, 0)
            fill = (
                "#f4cfc4"
                if changed or (last and (x, y) == sender)
                else "#fff3cc"
                if last and x == 2 and y > 0
                else "white"
            )
            token = "[B′]" if changed else ("[A]", "[B]", "[A]")[x]
            _node(axes, x, y, token if y == 0 else "logit" if (x, y) == (2, 2) else "h", fill)
        axes.set(title=title, xlim=(-0.5, 2.5), ylim=(-0.5, 2.5))
        axes.axis("off")
    for colour, text in (
        (RED, "sender's path, from the corrupted run"),
        (GREEN, "frozen to the clean run"),
        (YELLOW, "computed again"),
    ):
        grid[2].plot([], [], color=colour, label=text)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _base(title: str, height: float) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(1.25 * WIDTH, height))
    for x, token in enumerate(TOKENS):
        _node(axes, x, 0, token, "#eeeeee")
    axes.set(xlim=(-0.6, len(TOKENS) - 0.1), title=title)
    axes.axis("off")
    return figure, axes


def _width(effect: float, strongest: float) -> float:
    return 0.4 + 5 * abs(effect) / max(abs(strongest), 1e-9)


def fig_mamba_circuit(
    inputs: Mapping[str, float],
    local_b: Mapping[str, float],
    local_a: Mapping[str, float],
    position: str,
    layer: int,
    state: float,
) -> Figure:
    """The circuit in a recurrent model, arrows as wide as the measured effects (W, Fig. 7a).

    `inputs`: effect on the logit of B of corrupting B at each SSM input; `local_b`, `local_a`: of corrupting B or A at
    each convolution input, through the SSM input at `position`; `state`: of the whole final state of `layer`.
    """
    figure, axes = _base(f"key layer {layer}: mean change of the logit of B when a path is patched", 4.2)
    column, last = {role: x for x, role in enumerate(ROLES)}, len(TOKENS) - 1
    for role in ROLES:
        _node(axes, column[role], 1.5, "c")
    _node(axes, last, 3, f"state h, layer {layer}", "#cfe2f3")
    _node(axes, last, 4.3, "logit of B", "#fff3cc")
    for local, colour, bend, aside in (
        (local_b, PALETTE["pythia"], 0.0, 0.42),
        (local_a, PALETTE["mamba"], -0.3, -0.42),
    ):
        for role, effect in local.items():
            if abs(effect) >= 0.05 * abs(state):
                ends = (column[role], 0.1), (column[position], 1.4)
                _arrow(axes, *ends, colour, _width(effect, state), bend, signed(effect), 0.5, aside)
    for role, effect in inputs.items():
        label = signed(effect) if abs(effect) >= 0.02 * abs(state) else ""
        _arrow(axes, (column[role], 1.6), (last, 2.9), PALETTE["pythia"], _width(effect, state), 0, label, 0.35)
    _arrow(axes, (last, 3.1), (last, 4.25), PALETTE["pythia"], _width(state, state), 0, signed(state), 0.5, 0.35)
    for colour, text in ((PALETTE["pythia"], "B corrupted"), (PALETTE["mamba"], "A corrupted")):
        axes.plot([], [], color=colour, linewidth=3, label=text)
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    axes.set_ylim(-0.4, 4.7)
    return figure


def fig_transformer_circuit(previous: pd.DataFrame, induction: pd.DataFrame) -> Figure:
    """The circuit in a Transformer, arrows as wide as the measured effects (W, Fig. 7b).

    Columns of both: layer, head, mean_logit_diff, attention (of B1 on A1, and of the second A on B1).
    """
    figure, axes = _base("heads with at least a tenth of the strongest head's effect", 4.2)
    last = len(TOKENS) - 1
    _node(axes, 1, 1.6, "B1 knows A1")
    _node(axes, last, 3, "B is next", "#cfe2f3")
    _node(axes, last, 4, "logit of B", "#fff3cc")
    for heads, start, end, place, colour, what in (
        (previous, (0, 0.1), (1, 1.5), (1.15, 0.9), PALETTE["mamba"], "previous-token head"),
        (induction, (1, 1.7), (last, 2.9), (2.2, 3.0), PALETTE["pythia"], "induction head"),
    ):
        strongest = heads["mean_logit_diff"].min()
        for k, head in enumerate(
            heads[heads["mean_logit_diff"] <= 0.1 * strongest].sort_values("mean_logit_diff").itertuples()
        ):
            text = f"{what} L{head.layer}H{head.head}: {signed(head.mean_logit_diff)}, attention {head.attention:.2f}"
            _arrow(axes, start, end, colour, _width(head.mean_logit_diff, strongest), 0.12 * k)
            axes.text(place[0], place[1] - 0.28 * k, text, fontsize=8, color=colour)
    _arrow(axes, (1, 0.1), (1, 1.5), GREY, 1.2)
    _arrow(axes, (last, 0.1), (last, 2.9), GREY, 1.2)
    _arrow(axes, (last, 3.1), (last, 3.9), PALETTE["pythia"], 3)
    axes.set_ylim(-0.4, 4.4)
    return figure


def fig_head_effects(panels: Mapping[str, pd.DataFrame]) -> Figure:
    """A heatmap of layers × heads per experiment; columns layer, head, mean_logit_diff."""
    figure, grid = plt.subplots(1, len(panels), figsize=(1.2 * WIDTH, 3.2), squeeze=False, layout="constrained")
    for axes, (title, rows) in zip(grid[0], panels.items(), strict=True):
        table = rows.pivot(index="layer", columns="head", values="mean_logit_diff")
        _heatmap(axes, table, "change of the logit of B")
        axes.set(title=title, xlabel="head", ylabel="layer")
    return figure


def _heatmap(axes: Axes, table: pd.DataFrame, label: str, **more) -> None:
    """Layers upwards; blue is down, red is up, white is nothing."""
    cells = np.asarray(table, float)
    limit = max(np.nanmax(np.abs(cells)), 1e-9)
    if cells.size <= MOST_NUMBERS:
        words = np.vectorize(lambda value: signed(value, 1) if abs(value) >= 0.05 else "0")(cells)
        more |= {"annot": words, "fmt": "", "annot_kws": {"fontsize": 8}}
    sns.heatmap(table, ax=axes, cmap="RdBu_r", vmin=-limit, vmax=limit, cbar_kws={"label": label}, **more)
    axes.invert_yaxis()


def fig_state_by_distance(table: pd.DataFrame) -> Figure:
    """Table 1 as a picture: layers × distances; columns distance, layer, mean_logit_diff."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4), layout="constrained")
    _heatmap(axes, table.pivot(index="layer", columns="distance", values="mean_logit_diff"), "change of the logit of B")
    axes.set(xlabel="distance between the two A", ylabel="layer")
    return figure


def fig_names(table: pd.DataFrame) -> Figure:
    """Layer × position, each cell split: left the logit of IO, right that of S (W, Fig. 13); `ioi.effects_table`."""
    words = table.drop_duplicates("position").sort_values("position")["token"]
    cells = table.pivot(index="layer", columns=["position", "name"], values="mean_logit_diff")
    cells = cells[[(position, name) for position in range(len(words)) for name in ("IO", "S")]]
    figure, axes = plt.subplots(figsize=(1.4 * WIDTH, 4), layout="constrained")
    _heatmap(axes, cells.to_numpy(), "change of the logit")
    for position in range(1, len(words)):
        axes.axvline(2 * position, color="0.4", linewidth=0.8)
    axes.set_xticks(
        2 * np.arange(len(words)) + 1, [word.replace("\n", "\\n") for word in words], rotation=45, ha="right"
    )
    axes.set(xlabel="token; in each cell IO on the left, S on the right", ylabel="layer")
    return figure


def fig_circuit_maps(maps: Mapping[str, np.ndarray]) -> Figure:
    """`circuit_maps.circuit_map` of several models, as shares of each one's strongest cell."""
    figure, grid = plt.subplots(
        2, len(maps), figsize=(1.5 * WIDTH, 5), sharex=True, squeeze=False, layout="constrained"
    )
    for column, (model, circuit) in enumerate(maps.items()):
        for axes, part, corrupt in zip(grid[:, column], circuit / np.abs(circuit).max(), ("B′", "A′"), strict=True):
            bar = dict(cbar=column == len(maps) - 1, cbar_kws={"label": "share of strongest"})
            sns.heatmap(part, ax=axes, cmap="RdBu_r", vmin=-1, vmax=1, xticklabels=ROLES, **bar)
            axes.invert_yaxis()
            axes.set(
                title=f"{model}, {corrupt}", ylabel=f"depth ({len(part)} parts of the model)" if column == 0 else None
            )
            axes.tick_params(axis="x", rotation=45)
    return figure
