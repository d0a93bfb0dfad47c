"""The whole workbook at the smallest size: its cells in this process, and slowly as a user runs it."""

import json
import re
import subprocess
import sys

import nbformat
import pytest

from lib.workbook.notebooks import find_notebooks
from lib.workbook.profiles import HOME

NOTEBOOKS = find_notebooks(HOME / "notebooks", [], None)
OUT = HOME / "figures" / "smoke"

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def outputs_of(path):
    """Names of the files that a notebook's code says it saves."""
    code = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
    names = [f"{name}.{kind}" for name in re.findall(r'"((?:lan_)?fig_\w+)"', code) for kind in ("png", "pdf")]
    names += [f"{name}.csv" for name in re.findall(r'"(table_\w+)"', code)]
    return [
        name for name in names if not name.startswith("fig_model_training")
    ]  # random weights have no training to show


@each_notebook
def test_every_notebook_runs_and_saves_its_figures_and_tables(executed, path):
    cells = [cell for cell in nbformat.read(executed / "notebooks" / path.name, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [name for name in outputs_of(path) if not (executed / name).stat().st_size] == []


BY_COMMAND = [path for path in NOTEBOOKS if path.name[:2] in ("00", "03", "99")]  # `.ci/run` runs all of them at mini


@pytest.fixture(scope="module")
def run(smoke, tmp_path_factory):
    command = [sys.executable, "-m", "lib.reproduce", "--profile", "smoke", "--set", f"cache_dir={smoke.cache_dir}"]
    command += [word for path in BY_COMMAND for word in ("--only", path.name[:2])]
    clock = tmp_path_factory.mktemp("clock") / "began"
    began = clock.write_text("") or clock.stat().st_mtime
    return subprocess.run(command, cwd=HOME, capture_output=True, text=True), began


@pytest.mark.slow
def test_the_command_runs_notebooks_in_kernels_of_their_own(run):
    finished, began = run
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    for path in BY_COMMAND:
        executed = OUT / "notebooks" / path.name
        assert executed.stat().st_mtime >= began
        parameters = json.loads(executed.read_text(encoding="utf-8"))["metadata"]["papermill"]["parameters"]
        assert parameters["profile"] == "smoke"


@pytest.mark.slow
@pytest.mark.parametrize("path", BY_COMMAND, ids=lambda path: path.stem)
def test_the_command_saves_every_figure_and_table(run, path):
    _, began = run
    for name in outputs_of(path):
        assert (OUT / name).stat().st_size > 0 and (OUT / name).stat().st_mtime >= began, name
