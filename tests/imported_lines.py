"""``python -m tests.imported_lines``: how many lines of the library an import brings.

That is how much of it a reader may have to read.
"""

import subprocess
import sys

import nbformat

from lib.workbook.profiles import HOME

COUNT = """
import sys
from pathlib import Path
files = {Path(m.__file__) for name, m in sys.modules.items() if name.split(".")[0] == "lib" and m.__file__}
print(sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files))
"""
IMPORTS = {
    name: f"from {name} import *" for name in ("lib.mppc", "lib.sae", "lib.circuits", "lib.interpret", "lib.spaces")
}


def imports_of(notebook: str) -> str:
    """The import statements of a notebook's code cells."""
    cells = nbformat.read(HOME / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    lines = [line for cell in cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    return "\n".join(line for line in lines if line.startswith(("import ", "from ")))


def imported_lines(code: str) -> int:
    """Lines of all files of `lib` that a fresh interpreter has imported after this code."""
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{COUNT}"], cwd=HOME, capture_output=True, text=True, check=True
    )
    return int(run.stdout)


if __name__ == "__main__":
    for name, code in IMPORTS.items():
        print(f"{name}: {imported_lines(code):,}")
    print(f"notebook 03: {imported_lines(imports_of('03_feature_similarity')):,}")
