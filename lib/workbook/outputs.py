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
from IPython.display import Image
from matplotlib.figure import Figure

from lib.workbook.profiles import Profile
from lib.workbook.reference import REFERENCE

DPI = 150  # of pictures in files

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


def save_figure(figure: Figure, name: str, profile: Profile) -> Image:
    """Write figures/<profile>/<name>.png and .pdf, the same bytes for the same figure; returns a picture to show.

    Figures of models with random weights say so across the picture. Its alternative text is its caption in the register
    and, at mini, what the committed picture shows.
    """
    entry = register().get(name)
    seen = f" At mini: {entry.finding}" if entry and entry.finding and profile.name == "mini" else ""
    if not profile.meaningful:
        look = dict(fontsize=40, color="0.6", alpha=0.4, ha="center", va="center", rotation=20)
        figure.text(0.5, 0.5, "random weights", **look)
    return write_figure(figure, profile.figures_dir / name, f"{entry.caption}{seen}" if entry else name)


def write_figure(figure: Figure, path: Path, alternative: str = "") -> Image:
    """Write a figure as `path`.png and .pdf, the same bytes for the same figure, and close it; returns the picture.

    Saving alone would lay the figure out and measure it anew for each file, and a notebook once more to show it: seven
    drawings. Here it is laid out and measured once, drawn for each file, and shown as it was written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    shown_at = figure.dpi
    figure.set_dpi(DPI)
    figure.draw_without_rendering()
    figure.set_layout_engine(None)  # the layout stands
    frame = figure.get_tightbbox().padded(plt.rcParams["savefig.pad_inches"])
    figure.savefig(f"{path}.png", dpi=DPI, bbox_inches=frame, metadata={"Software": None})
    figure.savefig(f"{path}.pdf", dpi=DPI, bbox_inches=frame, metadata={"CreationDate": None})
    plt.close(figure)
    return Image(f"{path}.png", width=round(frame.width * shown_at), alt=alternative)


def save_table(table: pd.DataFrame, name: str, profile: Profile) -> pd.DataFrame:
    """Write figures/<profile>/<name>.csv with 6 digits; returns the table."""
    profile.figures_dir.mkdir(parents=True, exist_ok=True)
    table.to_csv(profile.figures_dir / f"{name}.csv", index=False, float_format="%.6g")
    return table
