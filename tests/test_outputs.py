"""Figures and tables are the same bytes every time they are saved."""

import base64

import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib import rcParams
from matplotlib.image import imread

from lib import plots
from lib.workbook import outputs
from lib.workbook.profiles import HOME, get_profile


def figure():
    return plots.fig_mppc_density({"SAE seed": [0.2, 0.8]})


def test_the_page_of_figures_says_to_which_part_each_belongs():
    page = (HOME / "figures" / "README.md").read_text(encoding="utf-8")
    assert [name for name in outputs.register() if "idea" not in name and f"`{name}" not in page] == []


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
    def words(profile):
        outputs.save_figure(drawn := figure(), "fig", profile)
        return [text.get_text() for text in drawn.texts]

    assert words(here) == ["random weights"]
    assert words(here.model_copy(update={"meaningful": True})) == []


@pytest.mark.parametrize("name, alternative", [
    ("fig_mppc_null", outputs.register()["fig_mppc_null"].caption), ("fig_new", "fig_new"),
])  # fmt: skip
def test_a_notebook_shows_the_file_with_its_caption_as_alternative_text(here, name, alternative):
    data, about = DisplayFormatter().format(outputs.save_figure(figure(), name, here), include=["image/png"])
    assert base64.b64decode(data["image/png"]) == (here.figures_dir / f"{name}.png").read_bytes()
    assert about["image/png"]["alt"] == alternative


def test_a_picture_is_shown_at_the_figure_s_size_and_holds_more_pixels(here):
    shown = outputs.save_figure(drawn := figure(), "fig", here)
    pixels = imread(here.figures_dir / "fig.png").shape[1]
    assert abs(pixels / shown.width - outputs.DPI / rcParams["figure.dpi"]) < 0.01
    assert shown.width < 1.1 * drawn.get_figwidth() * rcParams["figure.dpi"]


def test_at_mini_the_alternative_text_says_what_is_seen(here):
    entry = outputs.register()["fig_mppc_null"]
    for name, seen in (("mini", f"{entry.caption} At mini: {entry.finding}"), ("laptop", entry.caption)):
        shown = outputs.save_figure(figure(), "fig_mppc_null", here.model_copy(update={"name": name}))
        assert shown.alt == seen


def test_every_figure_with_data_says_what_is_seen():
    figures = {name: entry for name, entry in outputs.register().items() if "fig_" in name}
    drawn = {name for name in figures if "fig_idea" in name or name == "fig_06_path_patching"}
    assert {name for name, entry in figures.items() if not entry.finding} == drawn


def test_tables_keep_six_digits(here):
    outputs.save_table(pd.DataFrame({"a": [1 / 3], "b": ["x"]}), "table", here)
    assert (here.figures_dir / "table.csv").read_text() == "a,b\n0.333333,x\n"
