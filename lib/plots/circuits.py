"""Figures of the circuits: ideas, what path patching is, the circuits as measured, two names, maps, and the state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from lib.circuits.prompts import ROLES
from lib.plots.style import PALETTE, WIDTH, heatmap, ink, signed

COLOURS = {"Transformer": PALETTE["pythia"], "Mamba": PALETTE["mamba"], "RWKV": PALETTE["rwkv"]}
TOKEN_COLOURS = {"A": "0.45", "B": "#882255"}  # of what is done to a token; no model has them
GREY, RED, YELLOW, GREEN = "0.7", "#cc3311", "#ddaa33", "#228833"
MOST_NUMBERS = 60  # cells of a heatmap in which all values are written; of more cells, the large ones only
SMALL = 0.05  # of the largest value: what is smaller is not worth a number or an arrow
TOKENS = ("A1", "B1", "B1+1", "B1+2", "B1+3", "…", "A2")


# ------------------------------------------------------------------------------------------- drawing


def _node(axes: Axes, x: float, y: float, text: str, colour: str = "white", size: float = 9) -> Text:
    box = dict(boxstyle="round,pad=0.35", facecolor=colour, edgecolor="0.3", linewidth=0.8)
    return axes.text(x, y, text, ha="center", va="center", fontsize=size, zorder=3, bbox=box)


def _arrow(
    axes: Axes, start: Text | tuple, end: Text | tuple, colour: str = GREY, width: float = 1.2, bend: float = 0
) -> None:
    """An arrow from a node or point to another; at a node it ends on the node's border."""
    ends = {"patchA": start, "patchB": end}
    look = {name: node.get_bbox_patch() for name, node in ends.items() if isinstance(node, Text)}
    look |= dict(arrowstyle="-|>", color=colour, linewidth=width, mutation_scale=8 + 2 * width)
    place = [node.get_position() if isinstance(node, Text) else node for node in (end, start)]
    axes.annotate(
        "", *place, arrowprops=look | dict(shrinkA=2, shrinkB=2, connectionstyle=f"arc3,rad={bend}"), zorder=2
    )


def _label(axes: Axes, x: float, y: float, text: str, colour: str, ha: str = "left", size: float = 8) -> None:
    axes.text(x, y, text, fontsize=size, ha=ha, va="center", color=colour, zorder=4)


def _tokens(axes: Axes, words: Sequence[str]) -> list[Text]:
    return [_node(axes, x, 0, word, "#eeeeee") for x, word in enumerate(words)]


def _bare(axes: Axes, n: int, low: float, high: float, title: str = "") -> None:
    axes.set(xlim=(-0.7, n - 0.3), ylim=(low, high))
    axes.set_title(title, fontsize=10)
    axes.axis("off")


# ------------------------------------------------------------------------------------------- ideas


def fig_idea_induction() -> Figure:
    """What induction asks for: two pairs, and the answer that only the first of them gives."""
    figure, axes = plt.subplots(figsize=(WIDTH, 2.3), layout="constrained")
    colours = dict(zip(("A", "B", "C", "D"), ("#d9d9d9", "#e3bfd0", "#ffffff", "#ffffff")))
    words = ("A", "B", "…", "C", "D", "…", "A", "?")
    nodes = [_node(axes, x, 0, word, colours.get(word, "#ffffff"), 11) for x, word in enumerate(words)]
    _arrow(axes, nodes[6], nodes[0], TOKEN_COLOURS["A"], 1.6, 0.32)
    _label(axes, 3, 1.75, "1  Where did this token stand before?", TOKEN_COLOURS["A"], "center", 9)
    _arrow(axes, nodes[1], nodes[7], TOKEN_COLOURS["B"], 1.6, 0.28)
    _label(axes, 4, -1.7, "2  What came after it? That is the answer: B, not D.", TOKEN_COLOURS["B"], "center", 9)
    _bare(axes, len(words), -2, 2)
    return figure


def fig_idea_off_by_one() -> Figure:
    """Where A and B come together: at B itself in a Transformer, one token later in Mamba."""
    figure, grid = plt.subplots(1, 2, figsize=(1.1 * WIDTH, 2.3), layout="constrained")
    for axes, (name, place) in zip(grid, {"Transformer": 1, "Mamba": 2}.items(), strict=True):
        nodes = _tokens(axes, ("A", "B", "next", "…", "A"))
        memory = _node(axes, place, 1.2, "A and B\nare stored", "#f2e6ec")
        for node, token in zip(nodes, "AB"):
            _arrow(axes, node, memory, TOKEN_COLOURS[token], 2)
        _arrow(axes, memory, (4, 1.2), COLOURS[name], 2)
        _arrow(axes, nodes[4], (4, 1.1))
        _label(axes, 4, 1.45, "read", COLOURS[name], "center")
        _bare(axes, 5, -0.4, 1.8, f"{name}: at {'B' if place == 1 else 'the token after B'}")
    return figure


def fig_idea_looking_back() -> Figure:
    """How much of each earlier token the last one reads: what decides it in each architecture (a sketch)."""
    figure, grid = plt.subplots(1, 3, figsize=(1.2 * WIDTH, 2.2), sharey=True, layout="constrained")
    age = np.arange(11, -1, -1)
    weights = {
        "Transformer": np.where(age == 8, 0.8, 0.02), "Mamba": np.where(age == 7, 0.55, 0.12 * 0.93**age),
        "RWKV": 0.72**age,
    }  # fmt: skip
    said = {
        "Transformer": "the present token chooses\nwhere to look",
        "Mamba": "each token decides what is\nkept and what is forgotten",
        "RWKV": "each channel forgets at a fixed rate;\nthe token's key says how loud it is",
    }
    for axes, (name, weight) in zip(grid, weights.items(), strict=True):
        axes.bar(-age, weight, color=COLOURS[name], width=0.8)
        axes.set(ylim=(0, 1.25), xlabel="tokens back", yticks=[])
        axes.set_xticks([-10, -5, 0], ["10", "5", "0"])
        axes.set_title(name, fontsize=10)
        axes.text(0.02, 0.98, said[name], transform=axes.transAxes, va="top", fontsize=8)
    grid[0].set_ylabel("weight")
    return figure


# ------------------------------------------------------------------------------------------- path patching


def fig_path_patching() -> Figure:
    """What is patched, what is frozen and what is computed again (W, Fig. 6)."""
    figure, grid = plt.subplots(1, 3, figsize=(1.3 * WIDTH, 3.2), layout="constrained")
    for axes, title in zip(grid, ("clean run", "corrupted run", "third run: one path patched"), strict=True):
        run, last = title.split()[0], title.startswith("third")
        nodes = {(x, y): _run_node(axes, x, y, run) for y in range(3) for x in range(3)}
        for (x, y), node in nodes.items():
            if x < 2:
                sent = last and (x, y) == (1, 1)
                _arrow(axes, node, nodes[x + 1, y], RED if sent else GREEN if last else GREY, 2.5 if sent else 1.2)
            if y < 2:
                onward = last and (x, y) == (2, 1)
                _arrow(axes, node, nodes[x, y + 1], YELLOW if onward else GREY, 2.5 if onward else 1.2)
        _bare(axes, 3, -0.4, 2.4, title)
    _label(grid[2], 1.5, 1.22, "sender", RED, "center")
    _label(grid[2], 0.5, 0.22, "frozen", GREEN, "center")
    _label(grid[2], 2.08, 1.5, "computed\nagain", "#997700")
    return figure


def _run_node(axes: Axes, x: int, y: int, run: str) -> Text:
    """A token (lowest row), a state, or the logit, coloured where it is not what it is in the clean run."""
    changed = run == "corrupted" and x > 0 and (x, y) != (2, 0)
    sender, again = run == "third" and (x, y) == (1, 1), run == "third" and x == 2 and y > 0
    fill = "#f4cfc4" if changed or sender else "#fff3cc" if again else "white"
    token = "B′" if changed else ("A", "B", "A")[x]
    return _node(axes, x, y, token if y == 0 else "logit" if (x, y) == (2, 2) else "h", fill)


# ------------------------------------------------------------------------------------------- circuits as measured


def _width(effect: float, strongest: float) -> float:
    return 0.5 + 5.5 * abs(effect) / max(strongest, 1e-9)


def _width_scale(axes: Axes, strongest: float, names: Mapping[str, str]) -> None:
    """What a width means, and what a colour means, above the figure."""
    for share in (0.25, 1):
        axes.plot([], [], color=GREY, linewidth=_width(share, 1), label=f"{share * strongest:.1f} logits")
    for name, colour in names.items():
        axes.plot([], [], color=colour, linewidth=3, label=name)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=8, handlelength=2)


def fig_mamba_circuit(
    inputs: Mapping[str, float], local_b: Mapping[str, float], local_a: Mapping[str, float], position: str,
    layer: int, state: float,
) -> Figure:  # fmt: skip
    """The circuit in a recurrent model, arrows as wide as the measured effects (W, Fig. 7a).

    `inputs`: effect on the logit of B of corrupting B at each SSM input; `local_b`, `local_a`: of corrupting B or A at
    each convolution input, through the SSM input at `position`; `state`: of the whole final state of `layer`.
    """
    figure, axes = plt.subplots(figsize=(1.2 * WIDTH, 4.2), layout="constrained")
    last, strongest = len(TOKENS) - 1, max(map(abs, (state, *inputs.values(), *local_b.values(), *local_a.values())))
    tokens = dict(zip(TOKENS, _tokens(axes, TOKENS), strict=True))
    enters = {role: _node(axes, x, 1.4, "c") for x, role in enumerate(ROLES)}
    axes.add_patch(plt.Rectangle((-0.45, 2.5), last + 0.9, 0.45, facecolor="#e4edf5", edgecolor="0.3", linewidth=0.8))
    _label(axes, last / 2, 2.72, f"state of layer {layer}", "0.2", "center", 9)
    for token, local, side in (("B", local_b, 1), ("A", local_a, -1)):
        for role, effect in local.items():
            if abs(effect) >= 2 * SMALL * strongest:
                _arrow(axes, tokens[role], enters[position], TOKEN_COLOURS[token], _width(effect, strongest))
                (x, y), (u, v) = tokens[role].get_position(), enters[position].get_position()
                place = x + 0.42 * (u - x) + 0.14 * side, y + 0.42 * (v - y) - 0.12 * side
                _label(axes, *place, signed(effect), TOKEN_COLOURS[token], "left" if side > 0 else "right")
    for role, effect in inputs.items():
        strong = abs(effect) >= SMALL * strongest
        x, colour = enters[role].get_position()[0], TOKEN_COLOURS["B"] if strong else GREY
        _arrow(axes, enters[role], (x, 2.5), colour, _width(effect, strongest))
        words = signed(effect) if abs(effect) >= 0.005 else "0"
        _label(axes, x + 0.12, 2.05, words, colour if strong else "0.45")
    _node(axes, last, 3.8, "logit of B", "#fff3cc")
    _arrow(axes, (last, 2.95), (last, 3.62), TOKEN_COLOURS["B"], _width(state, strongest))
    _label(axes, last - 0.15, 3.3, signed(state), TOKEN_COLOURS["B"], "right")
    _arrow(axes, tokens["A2"], (last, 2.5))
    _label(axes, last - 0.1, 1.4, "asks", "0.4", "right")
    _label(axes, -0.45, 0.7, "convolution", "0.4", "left")
    _label(axes, 4.22, 1.4, "c: what enters the state", "0.4", "left")
    _width_scale(axes, strongest, {"B replaced": TOKEN_COLOURS["B"], "A replaced": TOKEN_COLOURS["A"]})
    _bare(axes, len(TOKENS), -0.4, 4.1)
    return figure


def fig_transformer_circuit(previous: pd.DataFrame, induction: pd.DataFrame) -> Figure:
    """The circuit in a Transformer, arrows as wide as the measured effects (W, Fig. 7b).

    Columns of both: layer, head, mean_logit_diff, attention (of B1 on A1, and of the second A on B1). Heads with a
    tenth of the strongest head's effect, and more, are drawn, at the height of their layer.
    """
    figure, axes = plt.subplots(figsize=(1.2 * WIDTH, 4.4), layout="constrained")
    last, roles = len(TOKENS) - 1, {"previous-token head": previous, "induction head": induction}
    strong = {what: heads[heads["mean_logit_diff"] <= 0.1 * heads["mean_logit_diff"].min()]
              for what, heads in roles.items()}  # fmt: skip
    highest = induction["layer"].max()
    stacked = (strong["induction head"]["layer"] == highest).sum()  # heads of one layer, each above the other
    tokens, top = _tokens(axes, TOKENS), highest + max(2, 1.2 + 0.42 * stacked)
    strongest = max(heads["mean_logit_diff"].abs().max() for heads in roles.values())
    answer = _node(axes, last, top, "logit of B", "#fff3cc")
    for place in (0, 1):
        _arrow(axes, tokens[place], (place, top - 0.4))
    _arrow(axes, tokens[last], answer)
    for (what, heads), colour, ends in zip(strong.items(), TOKEN_COLOURS.values(), ((0, 1), (1, last)), strict=True):
        for layer, rows in heads.sort_values("mean_logit_diff").groupby("layer"):
            for k, head in enumerate(rows.itertuples()):
                y = layer + 0.85 + 0.42 * k
                look = colour, _width(head.mean_logit_diff, strongest)
                _arrow(axes, (ends[0], y), (ends[1], y), *look)
                text = (
                    f"{what} L{head.layer}H{head.head}: {signed(head.mean_logit_diff)}, attention {head.attention:.2f}"
                )
                _label(axes, ends[1] + 0.1 if ends[1] == 1 else 2, y + 0.2, text, colour)
    for layer in range(highest + 1):
        _label(axes, -0.65, layer + 1, f"layer {layer}", "0.4")
    names = {"A is noted beside B": TOKEN_COLOURS["A"], "B is copied": TOKEN_COLOURS["B"]}
    _width_scale(axes, strongest, names)
    _bare(axes, len(TOKENS), -0.4, top + 0.4)
    return figure


# ------------------------------------------------------------------------------------------- heat maps


def _heatmap(
    axes: Axes, table: pd.DataFrame | np.ndarray, label: str | None, limits: tuple[float, float] | None = None
) -> None:
    """Layers upwards; strong falls are dark. Blue is down and red is up where both occur, else there is one colour."""
    cells = np.asarray(table, float)
    low, high = limits or _limits(cells)
    size = max(-low, high)
    large = np.abs(cells) >= (0 if cells.size <= MOST_NUMBERS else SMALL * size)
    words = [["" if not show else signed(x, 1) if abs(x) >= 0.05 else "0" for x, show in zip(*row)]
             for row in zip(cells, large)]  # fmt: skip
    heatmap(axes, table, words, label, cmap="RdBu_r" if low < 0 < high else "Blues_r", vmin=low, vmax=high)


def _limits(cells: np.ndarray) -> tuple[float, float]:
    """Of the colours: from the strongest fall to zero, or as far up as down where something rises by a fifth of it."""
    low, high = float(np.nanmin(cells)), float(np.nanmax(cells))
    size = max(-low, high, 1e-9)
    return (-size, size) if high > 0.2 * size else (-size, 0)


def fig_state_by_distance(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Table 1 as a picture, a panel for each model: layers × distances; columns distance, layer, mean_logit_diff."""
    figure, grid = plt.subplots(
        1, len(tables), figsize=(1.3 * WIDTH, 4.4), squeeze=False, layout="constrained", gridspec_kw={"wspace": 0.08}
    )
    for axes, (title, rows) in zip(grid[0], tables.items(), strict=True):
        _heatmap(
            axes, rows.pivot(index="layer", columns="distance", values="mean_logit_diff"), "change of the logit of B"
        )
        axes.set(xlabel="tokens between the two A", ylabel="layer")
        axes.set_title(title, fontsize=10)
    return figure


def fig_head_effects(panels: Mapping[str, pd.DataFrame], label: str = "change of the logit of B") -> Figure:
    """A heatmap of layers × heads per experiment, all on one scale; columns layer, head, mean_logit_diff."""
    n_layers = max(rows["layer"].nunique() for rows in panels.values())
    height = max(3, 0.16 * n_layers)
    size = dict(figsize=((0.7 + 0.3 * len(panels)) * WIDTH, height), squeeze=False, layout="constrained")
    figure, grid = plt.subplots(1, len(panels), **size)
    limits = _limits(np.concatenate([rows["mean_logit_diff"] for rows in panels.values()]))
    for axes, (title, rows) in zip(grid[0], panels.items(), strict=True):
        table = rows.pivot(index="layer", columns="head", values="mean_logit_diff")
        _heatmap(axes, table, label if axes is grid[0, -1] else None, limits)
        axes.set(xlabel="head", ylabel="layer" if axes is grid[0, 0] else None, ylim=(0, n_layers))
        axes.set_title(title, fontsize=10)
        if (missing := n_layers - len(table)) > 0:
            place = table.shape[1] / 2, len(table) + missing / 2
            axes.text(*place, "no path from here", ha="center", va="center", fontsize=8, color="0.45")
    return figure


def fig_attention(pattern: Sequence, circled: Sequence[tuple[int, int]], name: str) -> Figure:
    """Where a head looks, [queries, keys]; places (query, key) that matter are `circled`."""
    figure, axes = plt.subplots(figsize=(0.65 * WIDTH, 0.55 * WIDTH), layout="constrained")
    picture = axes.imshow(np.asarray(pattern), cmap="Blues", vmin=0, vmax=1)
    queries, keys = zip(*circled, strict=True)
    axes.scatter(keys, queries, s=110, facecolor="none", edgecolor=RED, linewidth=1.5)
    axes.set(xlabel="attends to (position in the prompt)", ylabel="from position")
    axes.set_title(name, fontsize=10)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(picture, ax=axes, label="attention")
    return figure


def fig_names(table: pd.DataFrame) -> Figure:
    """Layer × position, each cell split: left the logit of IO, right that of S (W, Fig. 13); `ioi.effects_table`."""
    words = table.drop_duplicates("position").sort_values("position")["token"]
    cells = table.pivot(index="layer", columns=["position", "name"], values="mean_logit_diff")
    cells = cells[[(position, name) for position in range(len(words)) for name in ("IO", "S")]]
    figure, axes = plt.subplots(figsize=(1.4 * WIDTH, 4), layout="constrained")
    _heatmap(axes, pd.DataFrame(cells.to_numpy(), cells.index), "change of the logit")
    for position in range(1, len(words)):
        axes.axvline(2 * position, color="0.4", linewidth=0.8)
    shown = [word.replace("\n", "\\n") for word in words]
    axes.set_xticks(2 * np.arange(len(words)) + 1, shown, rotation=45, ha="right")
    words = "token; in each cell on the left the logit of the first name (IO), on the right of the second (S)"
    axes.set(xlabel=words, ylabel="layer")
    return figure


def fig_circuit_maps(maps: Mapping[str, np.ndarray]) -> Figure:
    """`circuit_maps.circuit_map` of several models, in logits, all on one scale."""
    limits = _limits(np.concatenate([circuit.ravel() for circuit in maps.values()]))
    size = dict(figsize=(1.1 * WIDTH, 1.55 * len(maps) + 0.7))
    figure, grid = plt.subplots(len(maps), 2, **size, sharex=True, squeeze=False, layout="constrained")
    for line, (model, circuit) in zip(grid, maps.items(), strict=True):
        for axes, part, what in zip(line, circuit, ("B replaced", "A replaced"), strict=True):
            _heatmap(axes, pd.DataFrame(part, columns=ROLES), None, limits)
            axes.set_title(f"{model}, {what}", fontsize=10)
            axes.set(ylabel="part of\nthe model" if axes is line[0] else None)
            axes.tick_params(length=0)
    colours = plt.cm.ScalarMappable(plt.Normalize(*limits), "RdBu_r" if limits[1] > 0 else "Blues_r")
    figure.colorbar(colours, ax=grid, label="change of the logit of B", shrink=0.6)
    return figure


# ------------------------------------------------------------------------------------------- comparisons


def fig_similarities(pairs: pd.DataFrame, bar: float) -> Figure:
    """Every pair of models (`maps.pair_similarities`) as a dot, by kind; the line is what the control must reach."""
    rows = list(dict.fromkeys(zip(pairs["kind"], pairs["reading"])))
    figure, grid = plt.subplots(1, 2, figsize=(1.3 * WIDTH, 0.9 + 0.36 * len(rows)), sharey=True, layout="constrained")
    for axes, value in zip(grid, ("roles", "roles_and_depth"), strict=True):
        for y, (kind, reading) in enumerate(rows):
            found = pairs[(pairs["kind"] == kind) & (pairs["reading"] == reading)]
            colour = COLOURS[kind.split(",")[0]] if found["same"].all() else "0.3"
            look = dict(color=colour, alpha=0.6, markeredgewidth=0, zorder=3)
            axes.plot(found[value], [y] * len(found), "o" if "earlier" not in reading else "D", **look)
        axes.axvline(bar, color="0.5", linewidth=0.8, linestyle=":")
        axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
        axes.text(bar - 0.02, -0.62, f"mark: {bar:g}", fontsize=7, ha="right", va="center", color="0.4")
        axes.set(xlim=(-0.6, 1.05), xlabel="correlation of the maps")
        axes.set_title({"roles": "positions only", "roles_and_depth": "positions and depth"}[value], fontsize=10)
    n = pairs.groupby(["kind", "reading"]).size()
    labels = [f"{kind}{'' if reading == 'as it is' else f',{chr(10)}{reading}'} (n = {n[kind, reading]})"
              for kind, reading in rows]  # fmt: skip
    grid[0].set_yticks(range(len(rows)), labels, fontsize=8)
    grid[0].set_ylim(len(rows) - 0.5, -0.9)
    return figure


def fig_taken_in(frames: Mapping[str, pd.DataFrame], last: int = 8) -> Figure:
    """How much of A and of B the key layer holds after each token, of all that it holds in the end.

    `frames`: architecture → `induction.taken_in_frame`; the first `last` positions after BOS are drawn.
    """
    figure, grid = plt.subplots(1, 2, figsize=(1.3 * WIDTH, 2.9), sharey=True, layout="constrained")
    names = [*TOKENS[:2], *(f"B1+{k}" for k in range(1, last - 1))]
    for axes, (token, corrupt) in zip(grid, {"A": "A′", "B": "B′"}.items(), strict=True):
        for k, (name, frame) in enumerate(frames.items()):
            shares = held_shares(frame, corrupt)[1 : last + 1]
            look = dict(color=COLOURS[name], linestyle=("-", "--", ":")[k % 3], marker="os^"[k % 3], markersize=5)
            axes.plot(range(len(shares)), shares, **look)
            axes.annotate(name, (len(shares) - 1, shares[-1]), (4, (6, -2, -10)[k % 3]), textcoords="offset points",
                          color=ink(COLOURS[name]), fontsize=8)  # fmt: skip
        axes.set_xticks(range(last), names, rotation=45, ha="right")
        axes.set(xlabel="after this token", xlim=(-0.4, last + 0.9))
        axes.set_title(f"how much of {token} the key layer holds", fontsize=10)
        axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    grid[0].set(ylabel="share of its effect in the end", ylim=(-0.08, 1.15))
    return figure


def held_shares(frame: pd.DataFrame, corrupt: str) -> np.ndarray:
    """Effects after each position (from BOS on) over that of the whole, in `induction.taken_in_frame`."""
    effects = frame[frame["corrupt"] == corrupt].sort_values("position")["mean_logit_diff"].to_numpy()
    return effects / effects[-1] if effects[-1] else np.zeros_like(effects)


def fig_shifts(frame: pd.DataFrame) -> Figure:
    """Where B enters an RWKV's key layer under other token shifts, and what B and A cost; `induction.shift_frame`."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(1.3 * WIDTH, 2.9), layout="constrained")
    shifts = list(dict.fromkeys(frame["shift"]))
    enters = frame[(frame["measure"] == "input") & (frame["corrupt"] == "B′")]
    enters = enters.pivot_table(index="shift", columns="position", values="mean_logit_diff")
    _heatmap(left, enters.loc[shifts, list(ROLES)], None)
    left.invert_yaxis()
    left.set(xlabel="where B is replaced in keys and values", ylabel=None)
    left.set_title("change of the logit of B", fontsize=10)
    costs = frame[frame["measure"] == "logit"].groupby(["shift", "corrupt"])["mean_logit_diff"].mean().unstack()
    for k, token in enumerate("BA"):
        values = -costs.loc[shifts, f"{token}′"]
        right.barh(
            np.arange(len(shifts)) + 0.38 * k - 0.19, values, 0.36, color=TOKEN_COLOURS[token], label=f"another {token}"
        )
    right.set_yticks(range(len(shifts)), [])
    right.invert_yaxis()
    right.axvline(0, color="0.3", linewidth=0.8)
    right.set(xlabel="fall of the logit of B, replaced in the whole run")
    right.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)
    return figure


def fig_time_mixing(half_lives: Mapping[int, np.ndarray], shift: Mapping[int, np.ndarray]) -> Figure:
    """An RWKV's channels by layer: after how many tokens half is forgotten, and the share of the token before."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(1.3 * WIDTH, 2.9), layout="constrained")
    for axes, values in ((left, half_lives), (right, shift)):
        colours = sns.color_palette("crest", len(values))
        for (layer, x), colour in zip(values.items(), colours, strict=True):
            sns.ecdfplot(x=x, ax=axes, color=colour, label=f"layer {layer}")
        axes.set(ylabel="share of channels")
    left.set(xscale="log", xlabel="tokens until half is forgotten")
    left.xaxis.set_major_formatter("{x:g}")
    right.set(xlabel="share of the token before in key and value", ylabel=None)
    n = len(next(iter(half_lives.values())))
    right.legend(frameon=False, fontsize=8, title=f"{n} channels a layer", title_fontsize=8)
    return figure
