"""``python -m lib.workbook.handout``: the notebooks' predictions on one page, to be printed for a course."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat

from lib.workbook.notebooks import FOLDER, find_notebooks, title_of

PAGE = FOLDER / "handout.md"
TWO_HOURS = ("02", "03", "04", "07", "08")  # the notebooks of the short plan
HEAD = """# Predictions

For each question, write your guess down before the figure is shown. You may also type it into the notebook, into the \
cell that stands below the question.
"""


def predictions(notebook: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Heading, question and what is to be guessed, of each prediction of a notebook."""
    heading = question = ""
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "markdown":
            heading = ([heading] + re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE))[-1]
            question = cell.source.partition("**Predict.**")[2].strip() or question
        elif guesses := re.findall(r"^guess\w* = None  # your guess: (.+)$", cell.source, re.MULTILINE):
            yield heading, re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", question), guesses


def page(names: Sequence[str] = TWO_HOURS, folder: Path = FOLDER) -> str:
    """The handout in Markdown: the predictions of some notebooks, each with a line to write on."""
    parts = [HEAD]
    for notebook in find_notebooks(folder, names):
        parts.append(f"\n## {notebook.stem[:2]} {title_of(notebook)}\n\n")
        for heading, question, guesses in predictions(notebook):
            parts.append(f"- **{heading}**. {' '.join(question.split())}\n")
            parts += [f"  - {guess}: `{'_' * 12}`\n" for guess in guesses]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Wrote {PAGE}.")
