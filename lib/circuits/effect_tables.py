"""Effects of the induction experiments read as the paper's tables (W, App. G): pandas only, so that it loads at once.

Frames are those of `lib.circuits.induction`: a row per measurement, with its mean over prompts and standard error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

VALUE = ["mean_logit_diff", "standard_error", "n"]


def select(frame: pd.DataFrame, measure: str, corrupt: str = "B′", layer: int | None = None) -> pd.DataFrame:
    """One experiment's rows; of one layer if it is given."""
    rows = frame[(frame["measure"] == measure) & (frame["corrupt"] == corrupt)]
    return rows if layer is None else rows[rows["layer"] == layer]


def key_layer(frame: pd.DataFrame) -> int:
    """The layer whose state matters most: the most negative mean of Table 1 over all distances."""
    return int(strongest(select(frame, "state"), "layer"))


def key_position(frame: pd.DataFrame) -> str:
    """Where B enters the key layer: the most negative mean of Table 2 over all distances."""
    return strongest(select(frame, "input", layer=key_layer(frame)), "position")


def strongest(table: pd.DataFrame, place: str) -> Any:
    """The layer or position (column `place`) with the most negative mean effect over all distances."""
    return table.groupby(place)["mean_logit_diff"].mean().idxmin()


def paper_table(number: int, frame: pd.DataFrame) -> pd.DataFrame:
    """Table 1, 2, 3 or 4 of App. G, from `path_frame`: distance, layer or position, mean, standard error, n."""
    layer = key_layer(frame)
    rows = {
        1: select(frame, "state"),
        2: select(frame, "input", layer=layer),
        3: select(frame, "local"),
        4: select(frame, "local", "A′"),
    }[number]
    place = "layer" if number == 1 else "position"
    return rows[["distance", place, *VALUE]].astype({"layer": int} if number == 1 else {}).reset_index(drop=True)


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """A table of App. G as the paper prints it: a row per distance, a column per layer or position."""
    place = "position" if "position" in table and table["position"].notna().all() else "layer"
    columns = list(dict.fromkeys(table[place]))
    return table.pivot(index="distance", columns=place, values="mean_logit_diff")[columns]


def by_position(table: pd.DataFrame) -> dict[str, float]:
    """Mean effect of each position over all distances."""
    return table.groupby("position", sort=False)["mean_logit_diff"].mean().to_dict()


def share_at(table: pd.DataFrame, position: str) -> pd.Series:
    """By distance: how much of all positions' effects, by size, is this position's."""
    size = wide(table).abs()
    return size[position] / size.sum(axis=1)


def mean_heads(frame: pd.DataFrame, measure: str, corrupt: str) -> pd.DataFrame:
    """Mean effect of each head over all distances; columns layer, head, mean_logit_diff."""
    rows = select(frame, measure, corrupt)
    return rows.groupby(["layer", "head"], as_index=False)["mean_logit_diff"].mean().astype({"layer": int, "head": int})


def named_heads(heads: pd.DataFrame, n: int = 2) -> str:
    """The `n` heads with the most negative effects in words, such as "L3H1 (-3.72)"; columns as of `mean_heads`."""
    found = heads.nsmallest(n, "mean_logit_diff").itertuples()
    return ", ".join(f"L{row.layer:.0f}H{row.head:.0f} ({row.mean_logit_diff:+.2f})" for row in found)


def agreement(ours: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    """How well two versions of one table agree, cell by cell: Spearman's and Pearson's r, mean difference, n."""
    keys = [column for column in ("distance", "layer", "position") if column in ours and column in other]
    both = ours.merge(other, on=keys, suffixes=("", "_other"))
    a, b = both["mean_logit_diff"], both["mean_logit_diff_other"]
    return {
        "spearman": a.corr(b, method="spearman"), "pearson": a.corr(b),
        "mean_absolute_difference": (a - b).abs().mean(), "n": len(both),
    }  # fmt: skip


def induction_head(frame: pd.DataFrame, corrupt: str = "B′") -> tuple[int, int]:
    """The strongest head to the logits; not one of layer 0, which has no head before it to tell it what preceded B."""
    return strongest_head(frame[frame["layer"] > 0], "logits", corrupt)


def strongest_head(frame: pd.DataFrame, measure: str, corrupt: str) -> tuple[int, int]:
    """(layer, head) with the most negative mean effect over all distances."""
    heads = mean_heads(frame, measure, corrupt)
    return tuple(map(int, heads.loc[heads["mean_logit_diff"].idxmin(), ["layer", "head"]]))


def beside_paper(number: int, paper: pd.DataFrame, ours: pd.DataFrame | None) -> pd.DataFrame:
    """One of App. G's tables cell by cell: table, distance, place, paper, ours, low, high (95 %).

    Layers of Table 1 stand side by side only where both models have as many; else ours is empty, as it is where there
    is no table of ours.
    """
    place = "layer" if number == 1 else "position"
    if ours is None:
        ours = paper.head(0).assign(standard_error=[])
    same = number > 1 or ours["layer"].max() == paper["layer"].max()
    both = paper.merge(ours if same else ours.head(0), on=["distance", place], how="left", suffixes=("_paper", ""))
    error = 1.96 * both["standard_error"]
    return pd.DataFrame({
        "table": number, "distance": both["distance"], "place": both[place].astype(str),
        "paper": both["mean_logit_diff_paper"], "ours": both["mean_logit_diff"],
        "low": both["mean_logit_diff"] - error, "high": both["mean_logit_diff"] + error,
    })  # fmt: skip


def side_by_side(cells: pd.DataFrame) -> pd.DataFrame:
    """Tables 2 to 4 as the paper prints them, to two decimals, with ours on their right; empty where there is none."""
    wide = cells[cells["table"] > 1].pivot(index=["table", "distance"], columns="place", values=["paper", "ours"])
    return wide.map(lambda value: "" if np.isnan(value) else f"{value:.2f}")
