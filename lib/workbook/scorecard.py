"""The scorecard: what the papers say, what a run measured, and a verdict, for every figure, table and number.

`data/reference/scorecard.csv` lists the items: where the paper says it, in which table, row and column the run's value
lies, and the test. Values are looked up when the card is made (`lib.workbook.results`); none is typed. A claim is found
by its item's id among those that a notebook recorded (`lib.workbook.claims`).

An item is of one kind. A *finding* is a claim of a paper, counted once; the headline counts findings only. All others
are beside them: a *setting*, a *self-check* of the workbook's own method, an item that *repeats* a finding in another
measure, and an *addition*, for which the papers give no value.

A finding is *reproduced* if its test holds, else it *differs*. It is *not at this scale* only where its row names a
limit, an experiment of `data/reference/scale_limits.csv`, and what the experiment gave did not refute the limit. A
finding that rests on a judge of features (App. E) is *by rules*, whether its test holds or not, where the judge is a
set of rules or agrees too little with the reference labels. One whose control fails is *inconclusive*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lib.circuits.effect_tables import beside_paper
from lib.interpret.judges import RuleJudge
from lib.workbook import claims, pages, reference, results
from lib.workbook.outputs import Place, register
from lib.workbook.profiles import Profile
from lib.workbook.results import Missing

REPRODUCED, SCALE, DIFFERS, BY_RULES = "reproduced", "not at this scale", "differs", "by rules"
INCONCLUSIVE, OTHER_SETTING, UNSTATED = claims.INCONCLUSIVE, "another setting", "not stated in the paper"
LEFT_OUT, NOT_RUN, RANDOM = "left out", "not run", "random weights"
DECIDED = (REPRODUCED, SCALE, DIFFERS)
MARKS = {REPRODUCED: "✔", SCALE: "◐", DIFFERS: "✘", BY_RULES: "◇", INCONCLUSIVE: "≈", OTHER_SETTING: "≠",
         UNSTATED: "–", LEFT_OUT: "○", NOT_RUN: "…", RANDOM: "?"}  # fmt: skip
FINDING, SETTING, SELF_CHECK, ADDITION, REPEATS = "finding", "setting", "self-check", "addition", "repeats"
KINDS = {SETTING: "Settings", SELF_CHECK: "Self-checks", REPEATS: "The same finding in another measure",
         ADDITION: "Measured here, not stated in the papers"}  # fmt: skip
KAPPA = 0.6
"""Weighted kappa with the reference labels from which on a judge's scores carry a verdict: the lower end of what Landis
and Koch (1977) call substantial agreement."""
ITEMS = reference.REFERENCE / "scorecard.csv"
LIMITS = reference.REFERENCE / "scale_limits.csv"
COLUMNS = ("id", "kind", "part", "item", "paper", "ours", "interval", "tolerance", "holds", "verdict", "why", "source",
           "figure", "notebook", "heading")  # fmt: skip

TESTS: dict[str, Callable[[Any, Any, float], bool]] = {
    "within": lambda ours, paper, tolerance: bool(abs(ours - paper) <= tolerance + 1e-9),
    "above": lambda ours, paper, _: bool(ours > paper),
    "below": lambda ours, paper, _: bool(ours < paper),
    "equals": lambda ours, paper, _: bool(ours == paper),
    "claim": lambda ours, *_: ours == claims.HOLDS,
    "": lambda *_: False,
}


Item = Any
"""A row of `scorecard.csv` by the names of its columns; all of them are text, empty where they say nothing.

`kind` is finding, setting, self-check, addition, or "repeats" with the id of the finding that it repeats. `limit` names
the row of `scale_limits.csv` that can account for a test that fails, `judge` the score on which the item rests, if it
rests on a judge (complexity or monosemanticity), and `needs` the models without which it is left out, as for
`Profile.lacking`.
"""


def items() -> list[Item]:
    """All items, in the order of the papers."""
    return list(pd.read_csv(ITEMS, dtype=str, keep_default_na=False).itertuples(index=False, name="Item"))


def card(profile: Profile, chosen: Sequence[Item] | None = None) -> pd.DataFrame:
    """One row per item, of all or of those chosen; all columns are text (`COLUMNS`)."""
    return pd.DataFrame([_row(item, profile) for item in (items() if chosen is None else chosen)], columns=COLUMNS)


def _row(item: Item, profile: Profile) -> tuple[str, ...]:
    paper, said = _paper(item, profile)
    place = place_of(item)
    ours, interval, holds, why = "", "", "", ""
    if lacking := profile.lacking(item.needs):
        mark, why = LEFT_OUT, profile.left_out(lacking).removeprefix("left out: ")
    else:
        try:
            if paper is None:
                raise Missing(f"{item.paper_table} has nothing with {item.paper_where}.")
            recorded = item.table.startswith("table_claims_") or item.table == claims.CHECKS
            found = results.rows(item.table, f"id={item.id}" if recorded else item.where, profile)
            value = results.value(found, item.column, item.reduce)
            ours, interval = _shown(item, found, value), _interval(item, found)
            passed = TESTS[item.test](value, paper, float(item.tolerance or 0))
            holds = ("yes" if passed else "no") if item.test else ""
            mark, why = verdict(item, value, passed, profile)
        except Missing as error:
            mark, why = NOT_RUN, f"{error} Run `python -m lib.reproduce --only {place.notebook[:2]}`."
    return (
        item.id, item.kind, item.part, item.item, said, ours, interval, _tolerance(item, paper), holds, mark, why,
        item.table, item.figure, place.notebook, place.heading,
    )  # fmt: skip


def place_of(item: Item) -> Place:
    """Where the workbook measures an item: where its figure stands, else the place of its row, `notebook#heading`."""
    return register()[item.figure].place if item.figure else Place(*item.place.split("#", 1))


def verdict(item: Item, value: Any, passed: bool, profile: Profile) -> tuple[str, str]:
    """The verdict on a measured value whose test passed or did not, and why, by the rule at the top of this module."""
    if not profile.meaningful and item.kind not in (SETTING, SELF_CHECK):
        return RANDOM, ""
    if item.kind == ADDITION:
        return UNSTATED, ""
    if value == INCONCLUSIVE:
        return INCONCLUSIVE, "its control fails"
    if item.judge and (weakness := weakness_of_judge(item.judge, profile)):
        return BY_RULES, f"its test {'holds' if passed else 'does not hold'}, but {weakness}"
    if passed:
        return REPRODUCED, ""
    if item.kind == SETTING:
        return OTHER_SETTING, ""
    return limited(item.limit, profile) if item.limit else (DIFFERS, "")


def weakness_of_judge(aspect: str, profile: Profile) -> str:
    """Why the run's judge cannot carry a verdict on what rests on `aspect` of its scores; "" where it can."""
    judge = results.value(results.table("table_complexity_scores", profile), "judge", "first")
    if judge == RuleJudge.name:
        return "the judge is a set of rules, where the paper asked a language model"
    try:
        where = f"aspect={aspect} & judge={judge} & labels=all"
        kappa = results.value(results.rows("table_judge_agreement", where, profile), "weighted_kappa")
    except Missing:
        return f"the agreement of {judge} with the reference labels has not been measured"
    weak = f"the judge agrees with the reference labels at a kappa of {kappa:.2f}, below {KAPPA}"
    return "" if kappa >= KAPPA else weak


def limited(name: str, profile: Profile) -> tuple[str, str]:
    """The verdict on a test that failed, by the experiment of a limit: what it gave, and what would have refuted it."""
    limit = pd.read_csv(LIMITS, keep_default_na=False).set_index("id").loc[name]
    try:
        measured = results.value(results.rows(limit["table"], limit["where"], profile), limit["column"])
    except Missing as error:
        return DIFFERS, f"The limit that could account for it has not been measured: {error}"
    found, bound = f"{limit['experiment']}: {_number(measured)}.", _number(limit["refuted_from"])
    if measured < limit["refuted_from"]:
        return SCALE, f"{found} It would have had to be {bound} or more to refute this limit."
    return DIFFERS, f"{found} It is {bound} or more, which refutes this limit."


def _paper(item: Item, profile: Profile) -> tuple[Any, str]:
    """What ours is held against, None if it has not been written, and what the card says that the paper says."""
    bound: Any = item.value
    if item.value and item.value.lstrip("-")[0].isdigit():
        bound = float(item.value)
    if not item.paper_table:
        return bound, item.says or ("" if bound == "" else _number(bound))
    how = item.reduce if item.paper_column == item.column else ""  # the same column is read in the same way
    try:
        value = results.value(results.rows(item.paper_table, item.paper_where, profile), item.paper_column, how)
    except Missing:  # a row of this run, such as the other direction of a comparison
        return None, item.says
    return (value if bound == "" else bound), item.says or _number(value)


# ------------------------------------------------------------------------------------------- counts


def tally(card: pd.DataFrame) -> pd.DataFrame:
    """How many findings have each verdict, in a fixed order: a column for both papers, for W and for L."""
    found = card[card["kind"] == FINDING]
    paper = found["id"].str.split("-").str[0].str.upper()
    counts = pd.crosstab(found["verdict"], paper).reindex(columns=["W", "L"], fill_value=0)
    counts.insert(0, "both", counts.sum(axis=1))
    return counts.reindex([verdict for verdict in MARKS if verdict in counts.index]).rename_axis(columns=None)


def headline(card: pd.DataFrame, paper: str = "both") -> str:
    """How many of the findings (of "both" papers, of "W" or of "L") are reproduced, and what became of the others.

    Those by rules, those that are inconclusive, and those that were left out or not run are not among the first number.
    """
    counts = tally(card)[paper]
    decided = [int(counts.get(verdict, 0)) for verdict in DECIDED]
    are = ["is" if count == 1 else "are" for count in decided]
    text = f"{decided[0]} of {sum(decided)} findings {are[0]} reproduced, {decided[1]} {are[1]} not at this scale"
    text += f", and {decided[2]} {'differs' if decided[2] == 1 else 'differ'}"
    ruled = card[(card["kind"] == FINDING) & (card["verdict"] == BY_RULES)]
    if paper != "both":
        ruled = ruled[ruled["id"].str.startswith(f"{paper.lower()}-")]
    if len(ruled):
        text += f"; {len(ruled)} more rest on a judge made of rules, by which {(ruled['holds'] == 'yes').sum()} hold"
    others = counts.drop([*DECIDED, BY_RULES], errors="ignore")
    return text + "".join(f"; {count} more: {verdict}" for verdict, count in others.items() if count)


# ------------------------------------------------------------------------------------------- in print


def _number(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (int, np.integer)) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) < 0.01 else f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def _shown(item: Item, found: pd.DataFrame, value: Any) -> str:
    if "effect" in found and item.column == "verdict":
        return f"{value}: {found['effect'].iloc[0]}"
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
    if item.kind == SELF_CHECK:
        return item.where
    if item.test in ("above", "below"):
        return f"{'>' if item.test == 'above' else '<'} {_number(paper)}"
    return {"within": f"± {item.tolerance}", "equals": "the same", "claim": "as worded", "": ""}[item.test]


def as_html(card: pd.DataFrame, address: Callable[[Place], str] = Place.in_notebook) -> str:
    """The card as one HTML table, findings under the parts of the papers and all else under its kind.

    `address` gives the link to a place in the workbook, "" for none. All text is escaped.
    """
    heading = card["part"].where(card["kind"] == FINDING, card["kind"].str.split().str[0].map(KINDS))
    groups = [(name, list(rows.itertuples())) for name, rows in card.groupby(heading, sort=False)]
    places = {row.id: address(Place(row.notebook, row.heading)) for row in card.itertuples()}
    return pages.templates().get_template("scorecard.html").render(groups=groups, places=places, marks=MARKS)


# ------------------------------------------------------------------------------------------- Tables 1 to 4


OUR_TABLES = {
    1: "table_1_ssm_state",
    2: "table_2_ssm_input",
    3: "table_3_conv_input_corrupt_b",
    4: "table_4_conv_input_corrupt_a",
}


def cells(profile: Profile) -> pd.DataFrame:
    """App. G's four tables cell by cell (`effect_tables.beside_paper`); ours is empty where it has not been written."""
    parts = []
    for number, name in OUR_TABLES.items():
        try:
            ours = results.table(name, profile)
        except Missing:
            ours = None
        parts.append(beside_paper(number, reference.published_table(number), ours))
    return pd.concat(parts, ignore_index=True)
