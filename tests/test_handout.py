"""The notebooks' predictions: each is asked, compared with the truth later on, and printed on the handout."""

import re

import nbformat
import pytest

from tests import handout
from lib.workbook.notebooks import FOLDER, find_notebooks


@pytest.mark.parametrize("notebook", find_notebooks(FOLDER), ids=lambda path: path.stem[:2])
def test_every_guess_is_compared_with_the_truth_further_down(notebook):
    source = "\n".join(c.source for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code")
    for guess in re.finditer(r"^(guess\w*) = None  # your guess: .+$", source, re.MULTILINE):
        assert f"exercises.compare({guess[1]}," in source[guess.end() :], guess[0]
    asked = re.findall(r"^(guess\w*) = ", source, re.MULTILINE)
    assert len(asked) == len(set(asked))
    assert len(asked) == sum(len(guesses) for *_, guesses in handout.predictions(notebook))


def test_the_handout_is_made_from_the_notebooks():
    assert handout.PAGE.read_text(encoding="utf-8") == handout.page()


def test_a_question_stands_below_its_heading_and_is_short_enough_to_print(tmp_path):
    cells = [
        nbformat.v4.new_markdown_cell("# Title"),
        nbformat.v4.new_markdown_cell(
            "## Heading\n\nText.\n\n**Predict.** How *high* is\nthe [mean](glossary.md#mean)?"
        ),
        nbformat.v4.new_code_cell("guess_a = None  # your guess: a mean\nguess_b = None  # your guess: True or False"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "03_x.ipynb")
    asked = "- **Heading**. How *high* is the mean?\n  - a mean: `____________`\n  - True or False: `____________`\n"
    assert handout.page([("03", [])], tmp_path) == f"{handout.HEAD}\n## 03 Title\n\n{asked}"
    assert handout.page([("03", ["Title"])], tmp_path) == handout.HEAD  # no question stands in that section
