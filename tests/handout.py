"""``python -m tests.handout``: the predictions of the two-hour plan on a page, to be printed for a course."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat

from lib.workbook.notebooks import FOLDER, find_notebooks, title_of
from tests.course import blocks, end_of

PAGE = FOLDER / "handout.md"
HEAD = """# Predictions

For each question, write your guess down before the figure is shown. You may also type it into the notebook, into the \
cell that stands below the question.
"""


def predictions(notebook: Path, sections: Sequence[str] = ()) -> Iterator[tuple[str, str, list[str]]]:
    """Heading, question and what is to be guessed, of each prediction up to the end of the last section that is named.

    Without sections, of each prediction of the notebook.
    """
    heading = question = ""
    cells = nbformat.read(notebook, as_version=4).cells
    for cell in cells[: end_of(cells, list(sections))]:
        if cell.cell_type == "markdown":
            heading = ([heading] + re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE))[-1]
            question = cell.source.partition("**Predict.**")[2].strip() or question
        elif guesses := re.findall(r"^guess\w* = None  # your guess: (.+)$", cell.source, re.MULTILINE):
            yield heading, re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", question), guesses


def page(plan: Sequence[tuple[str, Sequence[str]]] | None = None, folder: Path = FOLDER) -> str:
    """The handout in Markdown, each prediction with a line to write on; `plan` has notebooks and their sections."""
    parts = [HEAD]
    for number, sections in [(number, sections) for _, number, sections, _ in blocks()] if plan is None else plan:
        [notebook] = find_notebooks(folder, [number])
        if asked := list(predictions(notebook, sections)):
            parts.append(f"\n## {number} {title_of(notebook)}\n\n")
        for heading, question, guesses in asked:
            stop = "" if heading.endswith("?") else "."
            parts.append(f"- **{heading}**{stop} {' '.join(question.split())}\n")
            parts += [f"  - {guess}: `{'_' * 12}`\n" for guess in guesses]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Wrote {PAGE}.")
