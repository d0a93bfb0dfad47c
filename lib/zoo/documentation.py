"""How the shipped text was made: the docstrings of thirteen Python packages, for those who maintain the mini zoo.

Users read the file (`lib.workbook.texts.documents`); this module is what ``python -m lib.zoo text`` runs.
"""

from __future__ import annotations

import ast
import inspect
import json
import lzma
import warnings
from collections.abc import Iterable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from lib.workbook.texts import DOCUMENTATION, documents

PACKAGES = {  # distribution → import name, in the order in which they were read
    "transformers": "transformers",
    "scipy": "scipy",
    "sympy": "sympy",
    "pandas": "pandas",
    "networkx": "networkx",
    "numpy": "numpy",
    "matplotlib": "matplotlib",
    "scikit-learn": "sklearn",
    "huggingface_hub": "huggingface_hub",
    "datasets": "datasets",
    "numba": "numba",
    "seaborn": "seaborn",
    "transformer-lens": "transformer_lens",
}
MIN_CHARACTERS = 200


def docstrings_of_file(path: Path) -> list[str]:
    """Docstrings of a Python file's module, classes and functions, in their order; none where it cannot be parsed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    texts = [ast.get_docstring(node, clean=False) for node in nodes]
    return [inspect.cleandoc(text).strip() for text in texts if text]


def docstrings(packages: Iterable[str] = tuple(PACKAGES)) -> dict[str, str]:
    """Docstrings of at least `MIN_CHARACTERS` in the installed packages, and the package each was first found in.

    There are no duplicates, and the order is always the same. Raises `FileNotFoundError` where a package is missing.
    """
    found: dict[str, str] = {}
    for package in packages:
        spec = find_spec(PACKAGES[package])
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(f"the text is made of {package}, too: run pip install {package}.")
        root = Path(spec.submodule_search_locations[0])
        paths = [path for path in root.rglob("*.py") if "tests" not in path.parts]  # slow to parse, little text
        paths.sort(key=lambda path: path.relative_to(root).as_posix())
        for path in tqdm(paths, f"reading {package}", unit="file", mininterval=5):
            for text in docstrings_of_file(path):
                if len(text) >= MIN_CHARACTERS:
                    found.setdefault(text, package)
    return found


def write(texts: dict[str, str], path: Path = DOCUMENTATION) -> None:
    """Write the documents as one JSON object a line (package, text), compressed by xz."""
    lines = (json.dumps({"package": package, "text": text}, ensure_ascii=False) for text, package in texts.items())
    path.write_bytes(lzma.compress("".join(f"{line}\n" for line in lines).encode(), preset=9 | lzma.PRESET_EXTREME))


def remake(into: Path | None = None) -> str:
    """Read the installed packages' docstrings again, write them into a file if one is named, and say what was found."""
    texts = docstrings()
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in PACKAGES)
    same = list(texts) == documents()
    if into is not None:
        write(texts, into)
    return (
        f"Docstrings of modules, classes and functions, at least {MIN_CHARACTERS} characters long, tests left out, "
        f"each text once: {len(texts):,} documents of {sum(map(len, texts)):,} characters, from {versions}. "
        f"{'These are the documents' if same else 'They are not the documents'} that {DOCUMENTATION.name} holds."
    )
