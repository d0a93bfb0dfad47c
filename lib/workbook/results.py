"""What a run wrote and what the papers print, read by table, row and column: the values behind the scorecard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from lib.workbook import reference
from lib.workbook.profiles import Profile


class Missing(LookupError):
    """A value that no run has written yet, in one sentence."""


def table(name: str, profile: Profile) -> pd.DataFrame:
    """`table_…` of figures/<profile>, `paper_…` of data/reference, or the run's settings, `profile`.

    Raises `Missing` for a table that has not been written.
    """
    if name == "profile":
        return pd.DataFrame([profile.settings()])
    folder = profile.figures_dir if name.startswith("table_") else reference.REFERENCE
    path = folder / f"{name}.csv"
    if not path.exists():
        raise Missing(f"{path.name} has not been written.")
    return pd.read_csv(path)


def rows(name: str, where: str, profile: Profile) -> pd.DataFrame:
    """Rows of a table for which every `column=value` of `where` (joined by " & ") is true; never none.

    Raises `Missing`, also where the table lacks a column.
    """
    found = table(name, profile)
    for condition in filter(None, where.split(" & ")):
        column, _, wanted = condition.partition("=")
        if column not in found:
            raise Missing(f"{name} has no column {column!r}.")
        number = pd.api.types.is_numeric_dtype(found[column])
        found = found[found[column] == (float(wanted) if number else wanted)]
    if found.empty:
        raise Missing(f"{name} has nothing with {where}.")
    return found


def value(found: pd.DataFrame, column: str, how: str = "") -> Any:
    """The value of a column in the only row; of several rows what `how`, a key of `READINGS`, makes of them."""
    if how:
        return READINGS[how](found, column)
    if len(found) > 1:
        raise ValueError(f"{len(found)} rows where one was asked for")
    return found[column].iloc[0]


def _by_place(found: pd.DataFrame, column: str, *place: str) -> pd.Series:
    """Mean effect of each layer, or of each head, over all distances."""
    return found.groupby(list(place))[column].mean()


def _depth(layer: int, layers: pd.Series) -> float:
    return (layer + 1) / (layers.max() + 1)


READINGS: dict[str, Callable[[pd.DataFrame, str], Any]] = {
    "mean": lambda found, column: found[column].mean(),
    "first": lambda found, column: found[column].iloc[0],
    "of the strongest layer": lambda found, column: _by_place(found, column, "layer").min(),
    "of the strongest head": lambda found, column: _by_place(found, column, "layer", "head").min(),
    "depth of the strongest": lambda found, column: _depth(
        _by_place(found, "mean_logit_diff", column).idxmin(), found[column]
    ),
    "depth of the best": lambda found, column: _depth(
        found.groupby("layer_a")[column].mean().idxmax(), found["layer_a"]
    ),
    "share near the ridge": lambda found, _: (found["ridge within one layer of it"] >= 0.95).mean(),
}
