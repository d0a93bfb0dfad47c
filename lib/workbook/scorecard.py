"""The scorecard: what the papers say, what a run measured, and a verdict, for every figure, table and number.

`data/reference/scorecard.csv` lists the items: where the paper says it, where the run's value lies, and the test.
`data/reference/scale_limits.csv` lists measurable limits of a run that can excuse an item that fails. Values are
looked up when the card is made (`lib.workbook.results`); none is typed. A claim is found by its item's id among those
that a notebook recorded (`lib.workbook.claims`).

The rule (`verdict`): an item is *reproduced* if its test holds. One that fails is *not at this scale* only if its row
names a limit and that limit is found in the run's own tables; otherwise it *differs*. Settings that are not the
paper's are *not at this scale*: they are the scale. What the paper gives no value or claim for is *not stated in the
paper*, whatever we find. A claim whose control fails is *inconclusive*. What needs a model that the run is made without
is *left out*.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lib.workbook import claims, reference, results
from lib.workbook.claims import Missing
from lib.workbook.outputs import Place, register
from lib.workbook.profiles import Profile

REPRODUCED, SCALE, DIFFERS = "reproduced", "not at this scale", "differs"
INCONCLUSIVE = claims.INCONCLUSIVE
UNSTATED, LEFT_OUT, NOT_RUN, RANDOM = "not stated in the paper", "left out", "not run", "random weights"
MARKS = {
    REPRODUCED: "✔",
    SCALE: "◐",
    DIFFERS: "✘",
    INCONCLUSIVE: "≈",
    UNSTATED: "–",
    LEFT_OUT: "○",
    NOT_RUN: "…",
    RANDOM: "?",
}
ITEMS = reference.REFERENCE / "scorecard.csv"
LIMITS = reference.REFERENCE / "scale_limits.csv"
COLUMNS = ("id", "part", "item", "paper", "ours", "interval", "tolerance", "verdict", "why", "source", "figure",
           "notebook", "heading")  # fmt: skip

TESTS: dict[str, Callable[[Any, Any, float], bool]] = {
    "within": lambda ours, paper, tolerance: bool(abs(ours - paper) <= tolerance + 1e-9),
    "above": lambda ours, paper, _: bool(ours > paper),
    "below": lambda ours, paper, _: bool(ours < paper),
    "setting": lambda ours, paper, _: bool(ours == paper),
    "equals": lambda ours, paper, _: str(ours) == str(paper),
    "claim": lambda ours, *_: ours == claims.HOLDS,
    "check": lambda ours, *_: ours == claims.HOLDS,
    "none": lambda *_: False,
}


@dataclass(frozen=True)
class Item:
    """A row of `scorecard.csv`; all fields are text, empty where they say nothing."""

    id: str
    part: str
    item: str
    says: str
    paper_table: str
    paper_where: str
    paper_column: str
    test: str
    value: str
    tolerance: str
    table: str
    where: str
    column: str
    reduce: str
    interval: str
    figure: str
    place: str
    limit: str
    needs: str
    """Models without which it is left out, as for `Profile.lacking`."""


def items() -> list[Item]:
    """All items, in the order of the papers."""
    return [Item(*row) for row in pd.read_csv(ITEMS, dtype=str, keep_default_na=False).itertuples(index=False)]


def card(profile: Profile, chosen: Sequence[Item] | None = None) -> pd.DataFrame:
    """One row per item, of all or of those chosen; all columns are text (`COLUMNS`)."""
    return pd.DataFrame([_row(item, profile) for item in (items() if chosen is None else chosen)], columns=COLUMNS)


def _row(item: Item, profile: Profile) -> tuple[str, ...]:
    paper, said = _paper(item, profile)
    place = place_of(item)
    ours, interval, why = "", "", ""
    if lacking := profile.lacking(item.needs):
        mark, why = LEFT_OUT, profile.left_out(lacking).removeprefix("left out: ")
    else:
        try:
            found = _found(item, profile)
            value = results.reduced(found[item.column], item.reduce)
            ours, interval = _shown(item, found, value), _interval(item, found)
            mark, why = verdict(item, value, paper, profile)
        except Missing as error:
            mark, why = NOT_RUN, f"{error} Run `python -m lib.reproduce --only {place.notebook[:2]}`."
    return (
        item.id, item.part, item.item, said, ours, interval, _tolerance(item, paper), mark, why,
        item.table, item.figure, place.notebook, place.heading,
    )  # fmt: skip


def place_of(item: Item) -> Place:
    """Where the workbook measures an item: where its figure stands, else the place of its row, `notebook#heading`."""
    return register()[item.figure].place if item.figure else Place(*item.place.split("#", 1))


def _found(item: Item, profile: Profile) -> pd.DataFrame:
    if item.table.startswith("table_claims_") or item.table == claims.CHECKS:
        return claims.recorded(item.id, item.table, profile)
    return results.rows(item.table, item.where, profile)


def verdict(item: Item, value: Any, paper: Any, profile: Profile) -> tuple[str, str]:
    """The verdict on a measured value, and why, where the test fails. The rule stands at the top of this module."""
    if not profile.meaningful and item.test not in ("setting", "check"):
        return RANDOM, ""
    if item.test == "none":
        return UNSTATED, ""
    if value == INCONCLUSIVE:
        return INCONCLUSIVE, ""
    if TESTS[item.test](value, paper, float(item.tolerance or 0)):
        return REPRODUCED, ""
    limit = _limit(item.limit, profile) if item.limit else None
    if item.test == "setting":
        return SCALE, limit or "a setting of the profile"
    return (SCALE, limit) if limit else (DIFFERS, "")


def _limit(name: str, profile: Profile) -> str | None:
    """The limit of this run, with its measure, if it is one; None if it is not or cannot be told."""
    table = pd.read_csv(LIMITS, dtype=str, keep_default_na=False).set_index("id")
    limit = table.loc[name].to_dict()
    try:
        found = results.rows(limit["table"], limit["where"], profile)[limit["column"]]
    except Missing:
        return None
    measured = results.reduced(found, limit["reduce"])
    bound = limit["value"] if limit["test"] == "equals" else float(limit["value"])
    return f"{limit['because']}: {_number(measured)}" if TESTS[limit["test"]](measured, bound, 0) else None


def _paper(item: Item, profile: Profile) -> tuple[Any, str]:
    """What ours is held against, and what the card says that the paper says; both may be empty."""
    bound: Any = item.value
    if item.value and item.test != "equals":
        bound = float(item.value)
    if not item.paper_table:
        return bound, item.says or ("" if bound == "" else _number(bound))
    found = results.rows(item.paper_table, item.paper_where, profile)
    value = results.reduced(found[item.paper_column], "mean")
    return (value if bound == "" else bound), item.says or _shown(item, found, value)


# ------------------------------------------------------------------------------------------- in print


def _number(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (int, np.integer)) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) < 0.01 else f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def _shown(item: Item, found: pd.DataFrame, value: Any) -> str:
    if "shown" in found:
        return f"{found['shown'].iloc[0]} ({_number(value)})"
    if "effect" in found and item.column == "verdict":
        return f"{value.removesuffix(' at this scale')}: {found['effect'].iloc[0]}"
    return _number(value)


def _interval(item: Item, found: pd.DataFrame) -> str:
    if item.interval == "range":
        low, high = found[item.column].min(), found[item.column].max()
        return f"{_number(low)} to {_number(high)} (range)"
    if item.interval:
        low, high = (found[column].iloc[0] for column in item.interval.split())
        return f"{_number(low)} to {_number(high)}"
    return ""


def _tolerance(item: Item, paper: Any) -> str:
    if item.test in ("within", "above", "below"):
        bounds = {"within": f"± {item.tolerance}", "above": f"> {_number(paper)}", "below": f"< {_number(paper)}"}
        return bounds[item.test]
    return {"setting": "the same", "equals": "the same", "claim": "as worded", "check": item.where, "none": ""}[
        item.test
    ]


def _source(name: str) -> str:
    """What was read, for a reader: a file, or what it was taken from."""
    kind, _, rest = name.partition(":")
    kinds = {"profile": "setting", "derived": f"computed: {rest.replace('_', ' ')}"}
    return kinds.get(kind, f"{name}.csv")


def counts(table: pd.DataFrame) -> pd.Series:
    """How many items have each verdict, in a fixed order, without those that none has."""
    found = table["verdict"].value_counts()
    return found.reindex([verdict for verdict in MARKS if verdict in found])


def stated(table: pd.DataFrame) -> int:
    """How many items the papers state that this run asks about: what the headline counts."""
    tests = {item.id: item.test for item in items()}
    return int(((table["verdict"] != LEFT_OUT) & (table["id"].map(tests) != "none")).sum())


def as_html(card: pd.DataFrame, address: Callable[[Place], str] = Place.in_notebook) -> str:
    """The card as one HTML table with a heading row per part of the papers; all text escaped.

    `address` gives the link to a place in the workbook, "" for none.
    """
    names = ("item", "paper", "ours", "interval", "tolerance", "verdict", "notebook")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    body, part = [], None
    for row in card.itertuples():
        if row.part != part:
            part = row.part
            body.append(f'<tr class="part"><th scope="rowgroup" colspan="{len(names)}">{html.escape(part)}</th></tr>')
        body.append(_html_row(row, names, address(Place(row.notebook, row.heading))))
    return f'<table class="scorecard"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def _html_row(row: Any, names: tuple[str, ...], address: str) -> str:
    texts = {name: html.escape(str(getattr(row, name))) for name in names}
    texts["verdict"] = f'<strong class="{row.verdict.replace(" ", "-")}">{MARKS[row.verdict]} {row.verdict}</strong>'
    texts["verdict"] += f"<br><small>{html.escape(row.why)}</small>" if row.why else ""
    place = html.escape(f"{row.notebook[:2]} {row.heading}")
    texts["notebook"] = f'<a href="{html.escape(address)}">{place}</a>' if address else place
    texts["notebook"] += f"<br><small>{html.escape(_source(row.source)).replace('_', '_<wbr>')}</small>"
    empty = {name: "" if text else " class=empty" for name, text in texts.items()}
    cells = "".join(f'<td data-label="{name}"{empty[name]}>{text}</td>' for name, text in texts.items())
    return f'<tr id="{html.escape(row.id)}">{cells}</tr>'


# ------------------------------------------------------------------------------------------- Tables 1 to 4


OUR_TABLES = {
    1: "table_1_ssm_state",
    2: "table_2_ssm_input",
    3: "table_3_conv_input_corrupt_b",
    4: "table_4_conv_input_corrupt_a",
}


def cells(profile: Profile) -> pd.DataFrame:
    """App. G's four tables cell by cell: table, distance, place, paper, ours, low, high (95 %).

    Layers of Table 1 stand side by side only where both models have as many; else ours is empty.
    Raises `Missing` where a table has not been written.
    """
    parts = []
    for number, name in OUR_TABLES.items():
        place = "layer" if number == 1 else "position"
        ours, paper = results.frame(name, profile), reference.published_table(number)
        same = number > 1 or ours["layer"].max() == paper["layer"].max()
        both = paper.merge(ours if same else ours.head(0), on=["distance", place], how="left", suffixes=("_paper", ""))
        error = 1.96 * both["standard_error"]
        parts.append(pd.DataFrame({
            "table": number, "distance": both["distance"], "place": both[place].astype(str),
            "paper": both["mean_logit_diff_paper"], "ours": both["mean_logit_diff"],
            "low": both["mean_logit_diff"] - error, "high": both["mean_logit_diff"] + error,
        }))  # fmt: skip
    return pd.concat(parts, ignore_index=True)
