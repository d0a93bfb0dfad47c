"""Figures and tables are the same bytes every time they are saved."""

import pandas as pd
import pytest

from lib import plots
from lib.workbook import outputs
from lib.workbook.profiles import get_profile


def figure():
    return plots.fig_mppc_density({"SAE seed": [0.2, 0.8]})


@pytest.fixture
def here(tmp_path):
    """A profile whose figures go to a temporary folder."""
    return get_profile("smoke", figures=tmp_path)


def test_saved_twice_gives_the_same_bytes(here):
    saved = []
    for _ in range(2):
        outputs.save_figure(figure(), "fig", here)
        saved.append([(here.figures_dir / f"fig.{kind}").read_bytes() for kind in ("png", "pdf")])
    assert saved[0] == saved[1] and all(len(data) > 1000 for data in saved[0])


def test_random_weights_are_written_across_the_picture(here):
    words = lambda profile: [text.get_text() for text in outputs.save_figure(figure(), "fig", profile).texts]  # noqa: E731
    assert words(here) == ["random weights"]
    assert words(here.model_copy(update={"meaningful": True})) == []


def test_tables_keep_six_digits(here):
    outputs.save_table(pd.DataFrame({"a": [1 / 3], "b": ["x"]}), "table", here)
    assert (here.figures_dir / "table.csv").read_text() == "a,b\n0.333333,x\n"
