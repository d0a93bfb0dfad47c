"""What several test files run: all notebooks, in this process, and the training of a second tokenizer."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from lib import corpus
from lib.spaces import semantic
from lib.workbook import left_out, texts
from lib.workbook.notebooks import FOLDER, cells_with_places, find_notebooks
from lib.workbook.outputs import Place
from lib.workbook.profiles import get_profile


@functools.cache
def another_tokenizer() -> Path:
    """A folder with a tokenizer of the shipped one's kind, trained on a part of its text."""
    folder = Path(tempfile.mkdtemp())
    corpus.train_tokenizer([text for text in texts.documents()[:500] if text.isascii()], folder)
    return folder


def execute_all(overrides: dict[str, Any]) -> dict[Place, None]:
    """Run all notebooks under `smoke`; they write figures, tables and executed copies to the profile's folder.

    Returns, in order, where a cell said that it is left out. Maps of features are drawn without UMAP.
    """
    found, copies = {}, get_profile("smoke", overrides).figures_dir / "notebooks"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(semantic, "umap", lambda rows, seed: rows[:, :2])
        for path in find_notebooks(FOLDER):
            found |= execute(path, overrides, copies / path.name, patch)
            plt.close("all")
    return found


def execute(notebook: Path, overrides: dict[str, Any], target: Path, patch: pytest.MonkeyPatch) -> dict[Place, None]:
    """Run the cells of one notebook; raises `AssertionError` at the first that fails."""
    shell, found = InteractiveShell(user_ns={}), []
    patch.setattr(left_out, "get_ipython", lambda: shell)
    node, headings = nbformat.read(notebook, as_version=4), iter(cells_with_places()[notebook.stem])
    for number, cell in enumerate((c for c in node.cells if c.cell_type == "code"), start=1):
        _, place = next(headings)
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = f'profile = "smoke"\noverrides = {overrides!r}'
        with capture_output() as captured:
            result = shell.run_cell(cell.source)
        assert result.success, f"{notebook.name}, {place.heading}: {result.error_in_exec or result.error_before_exec!r}"
        cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", text=captured.stdout)], number
        found += [place] * captured.stdout.startswith("Left out: this run was made without ")
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(node, target)
    return dict.fromkeys(found)
