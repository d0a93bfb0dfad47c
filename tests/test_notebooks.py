"""The form of the committed notebooks: short cells, enough words, run from top to bottom, no trace of a machine."""

import ast
import re
import subprocess
import sys
from statistics import median

import nbformat
import pytest

from lib.workbook.notebooks import WIDGET
from lib.workbook.profiles import HOME

NOTEBOOKS = sorted((HOME / "notebooks").glob("*.ipynb"))
ROOTS = "/(?:home|Users|root|tmp|private|mnt|opt|srv|usr|var|workspace)"
MACHINE = re.compile(rf"(?<![\w.:/<>])(?:(?:{ROOTS}|{re.escape(HOME.as_posix())})/|[A-Z]:\\\w)")

SET_UP = [cell for cell in nbformat.read(NOTEBOOKS[0], as_version=4).cells if cell.cell_type == "code"][1].source

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem, indirect=True)


@pytest.fixture
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def lines(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


def python(cell):
    """Syntax tree of a cell, whose IPython lines (%magic, !shell) are no Python."""
    return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", cell.source, flags=re.MULTILINE))


def shown(output):
    """All text that a reader of an output can see or copy, without the bytes of pictures."""
    data = {kind: text for kind, text in output.get("data", {}).items() if kind not in ("image/png", "image/jpeg")}
    return "".join([output.get("text", ""), *map(str, data.values())])


def test_there_are_notebooks_and_they_are_numbered():
    assert NOTEBOOKS, "notebooks/ is empty"
    assert [path.name for path in NOTEBOOKS if not re.fullmatch(r"\d\d_[a-z_]+\.ipynb", path.name)] == []


@each_notebook
def test_valid_with_a_kernel_and_a_title(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3" and notebook.metadata.language_info.name == "python"
    assert notebook.cells[0].cell_type == "markdown"
    assert re.match(r"# \S", notebook.cells[0].source)


@each_notebook
def test_one_parameters_cell(notebook):
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1 and tagged[0].cell_type == "code"
    assigned = {target.id: node.value for node in python(tagged[0]).body for target in node.targets}
    assert ast.literal_eval(assigned["profile"]) == "mini" and ast.literal_eval(assigned["overrides"]) == {}
    assert not [cell for cell in notebook.cells if "injected-parameters" in cell.metadata.get("tags", [])]


@each_notebook
def test_set_up_is_three_short_lines_that_find_the_workbook(notebook):
    assert code(notebook)[1].source == SET_UP and len(SET_UP.splitlines()) == 3


@pytest.mark.parametrize("folder", [HOME, HOME / "notebooks"], ids=["checkout", "notebooks"])
def test_the_workbook_is_found_from(folder):
    found = subprocess.run(
        [sys.executable, "-c", f"{SET_UP}\nimport lib.workbook"], cwd=folder, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr


def test_elsewhere_one_sentence_says_what_to_do(tmp_path):
    lost = subprocess.run([sys.executable, "-c", SET_UP], cwd=tmp_path, capture_output=True, text=True)
    assert lost.stderr.splitlines()[-1].startswith(
        "AssertionError: Start in the workbook's folder, or give papermill --cwd"
    )


@each_notebook
def test_cells_are_short(notebook):
    lengths = [len(lines(cell)) for cell in code(notebook)]
    assert max(lengths) <= 25 and min(lengths) >= 1
    assert median(lengths) <= 8


@each_notebook
def test_functions_live_in_lib(notebook):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defined = [node for cell in code(notebook) for node in ast.walk(python(cell)) if isinstance(node, kinds)]
    assert [node.name for node in defined if node.end_lineno - node.lineno + 1 > 10] == []


@each_notebook
def test_at_least_as_much_text_as_code(notebook):
    words = [cell for cell in notebook.cells if cell.cell_type == "markdown" and cell.source.strip()]
    assert len(words) >= len(code(notebook))


@each_notebook
def test_every_import_is_used(notebook):
    nodes = [node for cell in code(notebook) for node in ast.walk(python(cell))]
    imports = [alias for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    assert [a.name for a in imports if (a.asname or a.name).partition(".")[0] not in used] == []


@each_notebook
def test_executed_in_order_without_errors(notebook):
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert [output.ename for output in outputs if output.output_type == "error"] == []
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []


@each_notebook
def test_no_widget_is_committed_as_a_forge_cannot_show_one(notebook):
    assert "widgets" not in notebook.metadata
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert [output for output in outputs if WIDGET in output.get("data", {})] == []


@each_notebook
def test_checked_cells_exist_and_have_something_to_check(notebook):
    checked = [cell for cell in code(notebook) if re.search(r"^\s*#\s*NBVAL_CHECK_OUTPUT\s*$", cell.source, re.M)]
    assert checked
    assert [cell.source for cell in checked if not any(shown(output).strip() for output in cell.outputs)] == []


@each_notebook
def test_no_path_of_a_machine(notebook):
    texts = [cell.source for cell in notebook.cells]
    texts += [shown(output) for cell in code(notebook) for output in cell.outputs]
    assert [text for text in texts if MACHINE.search(text)] == []


@pytest.mark.parametrize(
    "text", [f"{HOME}/lib/sae.py:3", "saved to /home/ada/x.png", "'/tmp/x'", r"C:\Users\ada", "(/usr/lib/python3)"]
)
def test_paths_of_a_machine_are_recognised(text):
    assert MACHINE.search(text)


@pytest.mark.parametrize("text", ["https://example.org/home/x", "figures/tmp/x.png", "</var>", "a/var/b"])
def test_other_slashes_are_not_paths(text):
    assert not MACHINE.search(text)
