"""The two-hour plan of notebooks/README.md as a class goes through it, with its exercises, on the clock.

    python -m tests.course                  # at mini, whose artifacts should be there: the plan asks for a night before
    python -m tests.course --profile smoke

Each notebook is run in a kernel of its own. Where the plan has exercises, all cells above them are run, and then their
solutions in the place of answers; else the cells to the end of the last section that the plan names. Prints the seconds
that the computer takes, by block.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path

import nbformat
import pandas as pd
import papermill
from nbformat import NotebookNode

from lib.workbook.kernels import ThisPython
from lib.workbook.notebooks import FOLDER, find_notebooks

PLAN = re.compile(r"^## Two hours\n(.*?)^## ", re.S | re.M)
SECTION = re.compile(r"^#{1,2} (.+)$", re.M)
EXERCISE = re.compile(r"^### Exercise (\d\d\.\d) ", re.M)
SOLUTION = re.compile(r"<summary>Solution</summary>\n\n```python\n(.*?)\n```", re.S)


def blocks() -> list[tuple[str, str, list[str], list[str]]]:
    """Of each block that has a notebook: its words, the notebook's number, sections that are named, exercises."""
    plan = PLAN.search((FOLDER / "README.md").read_text(encoding="utf-8"))[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in plan.splitlines() if line.startswith("| ")]
    found = []
    for _, block, where, _, exercises in rows[1:]:
        if number := re.match(r"\[(\d\d)\]", where):
            found.append((block, number[1], re.findall(r"\*(.+?)\*", where), re.findall(r"\d\d\.\d", exercises)))
    return found


def end_of(cells: list[NotebookNode], sections: list[str]) -> int:
    """The number of the first cell after the last section that is named; of all cells where none is.

    Raises `ValueError` for a section that is not there.
    """
    seen = set()
    for k, cell in enumerate(cells):
        headings = SECTION.findall(cell.source) if cell.cell_type == "markdown" else []
        if headings and sections and set(sections) <= seen:
            return k
        seen |= set(headings)
    if missing := set(sections) - seen:
        raise ValueError(f"the notebook has no {missing.pop()}")
    return len(cells)


def cells_of(notebook: NotebookNode, sections: list[str], exercises: list[str]) -> list[NotebookNode]:
    """The code cells of a block, as this file's head says.

    Raises `ValueError` for a section or an exercise that the notebook does not have.
    """
    kept, solutions, exercise, end = [], {}, None, end_of(notebook.cells, sections)
    for k, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            if named := EXERCISE.search(cell.source):
                exercise = named[1]
                solutions[exercise] = SOLUTION.search(cell.source)[1]
        elif "answer = None" in cell.source:
            cell.source = cell.source.replace("answer = None", solutions[exercise])
            solutions[exercise] = cell
        elif exercises or k < end:
            kept.append(cell)
    if missing := set(exercises) - set(solutions):
        raise ValueError(f"the notebook has no {missing.pop()}")
    return kept + [solutions[name] for name in exercises]


def walk(number: str, sections: list[str], exercises: list[str], profile: str) -> float:
    """Seconds that a block's cells take, with the start of a kernel. Raises `AssertionError` for a wrong solution."""
    path = find_notebooks(FOLDER, [number])[0]
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = cells_of(notebook, sections, exercises)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, path.name), Path(folder, "run.ipynb")
        nbformat.write(notebook, source)
        began = time.monotonic()
        papermill.execute_notebook(
            source, target, {"profile": profile}, progress_bar=False, cwd=FOLDER, kernel_name="python3",
            language="python", kernel_manager_class=ThisPython,
        )  # fmt: skip
        seconds = time.monotonic() - began
        said = "".join(
            o.text for cell in nbformat.read(target, 4).cells for o in cell.get("outputs", []) if "text" in o
        )
    wrong = [name for name in exercises if f"Exercise {name}: right." not in said]
    assert not wrong, f"the solution of {wrong[0]} is not right after the cells of its block"
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="mini")
    profile = parser.parse_args().profile
    rows = []
    for block, number, sections, exercises in blocks():
        print(f"{number} {block} …", flush=True)
        rows.append((block, number, ", ".join(exercises), walk(number, sections, exercises, profile)))
    table = pd.DataFrame(rows, columns=["block", "notebook", "exercises", "seconds"]).round(0)
    print(table.to_string(index=False), f"\nall: {table.seconds.sum():.0f} s")


if __name__ == "__main__":
    main()
