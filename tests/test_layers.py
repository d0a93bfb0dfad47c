"""Who imports whom: science knows no workbook, and a package brings few lines with it."""

import subprocess
import sys
from pathlib import Path

import pytest

from lib.workbook.profiles import HOME
from tests.imported_lines import IMPORTS, imported_lines


def lint(folder: Path) -> subprocess.CompletedProcess:
    options = "config_filename='.importlinter', no_cache=True"
    code = f"import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports({options}))"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


def test_packages_import_only_from_those_below_them():
    run = lint(HOME)
    assert run.returncode == 0 and "1 kept, 0 broken" in run.stdout, run.stdout


def test_an_import_of_the_workbook_by_science_is_noticed(tmp_path):
    for layer in ("workbook", "mppc"):
        (tmp_path / "lib" / layer).mkdir(parents=True)
        (tmp_path / "lib" / layer / "__init__.py").write_text("")
    (tmp_path / "lib" / "__init__.py").write_text("")
    (tmp_path / "lib" / "mppc" / "new.py").write_text("import lib.workbook\n")
    layers = "[importlinter]\nroot_package = lib\n[importlinter:contract:layers]\nname = layers\ntype = layers\n"
    (tmp_path / ".importlinter").write_text(f"{layers}containers = lib\nlayers =\n    workbook\n    mppc\n")
    assert "0 kept, 1 broken" in lint(tmp_path).stdout


@pytest.mark.parametrize(("package", "most"), [("lib.mppc", 1_300), ("lib.sae", 1_800)])
def test_a_package_brings_few_lines(package, most):
    assert 100 < imported_lines(IMPORTS[package]) <= most


def test_who_loads_no_model_imports_nothing_that_loads_one():
    names = "artifacts, comparisons, controls, explorer, judged_features, origins, scorecard, spaces, texts, trials"
    code = f"import sys; from lib import exercises; from lib.workbook import {names}; exercises.known()"
    heavy = "{'transformers', 'transformer_lens', 'datasets'} & sys.modules.keys()"
    run = subprocess.run([sys.executable, "-c", f"{code}; print({heavy})"], cwd=HOME, capture_output=True, text=True)
    assert run.stdout == "set()\n", run.stdout + run.stderr
