"""The report: a page with the scorecard and every figure and table of a run, and its notebooks as pages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from lib.workbook import rendering, scorecard
from lib.workbook.notebooks import FOLDER, executed_copy, find_notebooks, left_out_places, title_of
from lib.workbook.outputs import Entry, Place, register
from lib.workbook.pages import templates
from lib.workbook.profiles import Profile
from lib.workbook.store import atomic_write

TOP = ("fig_03a_mppc_density", "fig_05_complexity", "fig_03c_depth_map", "fig_taken_in")
ROWS = 12  # of a table that are shown; all are in its file


@dataclass(frozen=True)
class Output:
    """A figure, table or page that a notebook wrote."""

    entry: Entry
    file: str
    table: Markup | None = None
    rows: int = 0


@dataclass(frozen=True)
class Page:
    """A notebook in the report; `body` is None where it has not been run."""

    name: str
    title: str
    body: Markup | None
    headings: list[tuple[str, str]]
    outputs: list[Output]


def build(profile: Profile, folder: Path = FOLDER) -> Path:
    """Write figures/<profile>/index.html and a page per executed notebook beside it; returns the former.

    What has not been run is said to be missing. `folder` holds the workbook's notebooks.
    """
    outputs = _outputs(profile)
    pages = _pages(profile, folder, outputs)
    card = scorecard.card(profile)
    common = {"profile": profile, "pages": pages, "rows": list(card.itertuples()), "marks": scorecard.MARKS}
    for number, page in enumerate(pages):
        if page.body is not None:
            text = templates().get_template("report_notebook.html").render(common, page=page, number=number)
            atomic_write(profile.figures_dir / "notebooks" / f"{page.name}.html", text)
    overview = _overview(profile, card, pages, outputs, folder)
    index = templates().get_template("report_index.html").render(common, **overview)
    target = profile.figures_dir / "index.html"
    atomic_write(target, index)
    return target


def _overview(
    profile: Profile, card: pd.DataFrame, pages: list[Page], outputs: list[Output], folder: Path
) -> dict[str, Any]:
    """What the index shows beside the pages."""
    there = {page.name for page in pages if page.body is not None}
    placed = {page.name for page in pages}
    finding = card["kind"] == scorecard.FINDING

    def address(place: Place) -> str:
        return f"notebooks/{place.notebook}.html#{place.anchor}" if place.notebook in there else ""

    return {
        "top": [output for name in TOP for output in outputs if output.entry.name == name],
        "findings": Markup(scorecard.as_html(card[finding], address)),
        "others_on_card": Markup(scorecard.as_html(card[~finding], address)),
        "headlines": {paper: scorecard.headline(card, paper) for paper in ("both", "W", "L")},
        "without": profile.left_out() if profile.without else "",
        "left_out": [(place, address(place)) for place in left_out_places(profile, folder)],
        "models": [name for name in (profile.pythia, profile.mamba, profile.rwkv) if name],
        "most_rows": ROWS,
        "others": [output for output in outputs if output.entry.place.notebook not in placed],
    }


def _pages(profile: Profile, folder: Path, outputs: list[Output]) -> list[Page]:
    notebooks = find_notebooks(folder)
    copies = {path.stem: executed_copy(path.stem, profile, folder) for path in notebooks}
    there = {name for name, copy in copies.items() if copy}
    pages = []
    for path in notebooks:
        body, found = None, []
        if copy := copies[path.stem]:
            text, found = rendering.rendered(copy, folder, profile.figures_dir / "notebooks", there)
            body = Markup(text)
        own = [output for output in outputs if output.entry.place.notebook == path.stem]
        pages.append(Page(path.stem, title_of(path), body, found, own))
    return pages


def _outputs(profile: Profile) -> list[Output]:
    """Everything in the profile's folder, in the register's order; what does not stand there comes last."""
    files = [*profile.figures_dir.glob("*fig_*.png"), *profile.figures_dir.glob("table_*.csv")]
    files += [path for path in profile.figures_dir.glob("*.html") if path.stem in register()]
    order = {name: number for number, name in enumerate(register())}
    return [_output(path) for path in sorted(files, key=lambda path: (order.get(path.stem, len(order)), path.name))]


def _output(path: Path) -> Output:
    entry = register().get(path.stem) or Entry(path.stem, Place("", ""), "", path.stem)
    if path.suffix != ".csv":
        return Output(entry, path.name)
    table = pd.read_csv(path)
    look = dict(index=False, border=0, na_rep="", float_format=lambda x: f"{x:.4g}", justify="left")
    return Output(entry, path.name, Markup(table.head(ROWS).to_html(**look)), len(table))  # pandas escapes all text
