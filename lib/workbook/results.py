"""What a run wrote and what the papers print, found by name: the values behind the scorecard.

A source is `table_…` (figures/<profile>), `paper_…` and `released_…` (data/reference), `profile` (its settings) or
`derived:…` (computed here from the others).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from lib.circuits import effect_tables
from lib.workbook import reference
from lib.workbook.claims import Missing
from lib.workbook.profiles import Profile


def frame(source: str, profile: Profile) -> pd.DataFrame:
    """The rows of a source. Raises `Missing` where it has not been written."""
    kind, _, name = source.partition(":")
    if kind == "profile":
        return pd.DataFrame([profile.settings()])
    if kind == "derived":
        return pd.DataFrame([DERIVED[name](profile)])
    folder = profile.figures_dir if source.startswith("table_") else reference.REFERENCE
    path = folder / f"{source}.csv"
    if not path.exists():
        raise Missing(f"{path.name} has not been written.")
    return pd.read_csv(path)


def rows(source: str, where: str, profile: Profile) -> pd.DataFrame:
    """Rows of a source for which every `column=value` of `where` (joined by " & ") is true; never none.

    Braces in `where` name fields of the profile, as in ``model={mamba}``. Raises `Missing`.
    """
    table = frame(source, profile)
    for condition in filter(None, where.split(" & ")):
        column, _, wanted = condition.partition("=")
        wanted = wanted.format_map(profile.settings()) if wanted.startswith("{") else wanted
        number = pd.api.types.is_numeric_dtype(table[column])
        table = table[table[column] == (float(wanted) if number else wanted)]
    if table.empty:
        raise Missing(f"{source.rpartition(':')[2]} has nothing with {where}.")
    return table


def reduced(values: pd.Series, how: str) -> Any:
    """One value of several: their mean, min, max, the first, all (if they are equal), or the last step (`rise`)."""
    if how in ("mean", "min", "max"):
        return float(getattr(values, how)())
    if how == "rise":
        return float(values.iloc[-1] - values.iloc[-2])
    if how == "all":
        return values.iloc[0] if values.nunique() == 1 else "not all"
    if how != "first" and len(values) > 1:
        raise ValueError(f"{len(values)} rows where one was asked for")
    return values.iloc[0]


# ------------------------------------------------------------------------------------------- derived


def _ridge(profile: Profile) -> dict[str, float]:
    table = frame("table_depth_ridge", profile)
    return {"share": ((table["ridge"] - table["same depth"]).abs() <= 1).mean()}


def _seed_gap(profile: Profile) -> dict[str, float]:
    back, forth = (
        rows("table_mppc_summary", f"comparison=model seed & direction={way}", profile)["mean"].iloc[0]
        for way in ("reverse", "forward")
    )
    return {"gap": back - forth}


def _key_layer(table: pd.DataFrame) -> dict[str, float]:
    """Of the layer with the most negative mean effect: relative depth, the effect, its range over distances."""
    layer = effect_tables.strongest(table, "layer")
    effects = table.loc[table["layer"] == layer, "mean_logit_diff"]
    depth = (layer + 1) / (table["layer"].max() + 1)
    return {"depth": depth, "effect": effects.mean(), "low": effects.min(), "high": effects.max()}


def _released_key_layer(_: Profile) -> dict[str, float]:
    table = reference.released("mamba130m").query("experiment == 'final_state_by_layer'")
    return _key_layer(table.rename(columns={"index": "layer"}).astype({"layer": int}))


def _heads(profile: Profile) -> dict[str, float]:
    table = frame("table_heads", profile)
    receiver = effect_tables.induction_head(table)
    return _gap(effect_tables.strongest_head(table, "induction head", "A′"), receiver)


def _released_heads(_: Profile) -> dict[str, float]:
    table = reference.released("pythia160m")
    to_logits = table["experiment"] == "head_to_logit"
    best = [t.loc[t["mean_logit_diff"].idxmin(), ["layer", "head"]] for t in (table[~to_logits], table[to_logits])]
    return _gap(*(tuple(map(int, head)) for head in best))


def _gap(previous: tuple[int, int], receiver: tuple[int, int]) -> dict[str, Any]:
    text = "L{}H{} → L{}H{}".format(*previous, *receiver)
    return {"gap": receiver[0] - previous[0], "shown": text}


def _best_space_layer(profile: Profile) -> dict[str, float]:
    """Relative depth of the Transformer's layer whose matched features are arranged most alike, over all models."""
    table = rows("table_lan_layers", "measure=RSA", profile)
    means = table.groupby("layer_a")["score"].mean()
    return {"depth": (means.idxmax() + 1) / len(means)}


DERIVED: dict[str, Callable[[Profile], dict[str, Any]]] = {
    "ridge": _ridge,
    "seed_gap": _seed_gap,
    "key_layer": lambda profile: _key_layer(frame("table_1_ssm_state", profile)),
    "published_key_layer": lambda _: _key_layer(reference.published_table(1)),
    "released_key_layer": _released_key_layer,
    "heads": _heads,
    "released_heads": _released_heads,
    "best_space_layer": _best_space_layer,
}
