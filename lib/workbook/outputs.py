"""What notebooks write into figures/<profile>, and where each of it stands in the workbook.

`data/reference/outputs.csv` is the register: for every figure, table and page its notebook, the heading above the cell
that writes it, the paper's name of it, a caption, and what the figure shows at mini. What is written without standing
there is kept all the same; the report shows it last, under its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import quote

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from lib.workbook.profiles import Profile
from lib.workbook.reference import REFERENCE


@dataclass(frozen=True)
class Place:
    """Where in the workbook something is made: a notebook's name and the heading above the cell."""

    notebook: str
    heading: str

    @property
    def anchor(self) -> str:
        """The heading's anchor, as JupyterLab and nbconvert make it, in the form for a link."""
        return quote(re.sub(r"[`*]", "", self.heading).replace(" ", "-"), safe="?/:@!$&'()*+,;=")

    def in_notebook(self) -> str:
        """Link from a notebook in the same folder; "" for no place."""
        return f"{self.notebook}.ipynb#{self.anchor}" if self.notebook else ""


@dataclass(frozen=True)
class Entry:
    """A row of the register."""

    name: str
    place: Place
    paper: str
    caption: str
    finding: str = ""
    """What the picture of `mini` shows, for those who cannot see it."""


@cache
def register() -> dict[str, Entry]:
    """All entries by their names, in the order in which the report shows them."""
    table = pd.read_csv(REFERENCE / "outputs.csv", dtype=str, keep_default_na=False)
    return {
        row.name: Entry(row.name, Place(row.notebook, row.heading), row.paper, row.caption, row.finding)
        for row in table.itertuples(index=False)
    }


def save_figure(figure: Figure, name: str, profile: Profile) -> Figure:
    """Write figures/<profile>/<name>.png and .pdf, the same bytes for the same figure; returns the figure.

    Figures of models with random weights say so across the picture. A notebook that shows the figure keeps its caption
    in the register as alternative text and, at mini, what the committed picture shows.
    """
    entry = register().get(name)
    seen = f" At mini: {entry.finding}" if entry and entry.finding and profile.name == "mini" else ""
    alternative = {"image/png": {"alt": f"{entry.caption}{seen}" if entry else name}}
    figure._repr_mimebundle_ = lambda **_: ({}, alternative)
    if not profile.meaningful:
        look = dict(fontsize=40, color="0.6", alpha=0.4, ha="center", va="center", rotation=20)
        figure.text(0.5, 0.5, "random weights", **look)
    return write_figure(figure, profile.figures_dir / name)


def write_figure(figure: Figure, path: Path) -> Figure:
    """Write a figure as `path`.png and .pdf, the same bytes for the same figure; returns and closes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout stands; else it is made anew for every file, twice
    figure.savefig(f"{path}.png", bbox_inches="tight", metadata={"Software": None})
    figure.savefig(f"{path}.pdf", bbox_inches="tight", metadata={"CreationDate": None})
    plt.close(figure)
    return figure


def save_table(table: pd.DataFrame, name: str, profile: Profile) -> pd.DataFrame:
    """Write figures/<profile>/<name>.csv with 6 digits; returns the table."""
    profile.figures_dir.mkdir(parents=True, exist_ok=True)
    table.to_csv(profile.figures_dir / f"{name}.csv", index=False, float_format="%.6g")
    return table
