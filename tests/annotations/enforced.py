"""``python -m pytest -p tests.annotations.enforced``: what science's functions take and give fits their annotations.

Functions that Numba or Triton compile stay as they are: a check around them cannot be compiled. What modules import
for annotations only is imported here.
"""

import ast
from collections.abc import Callable
from typing import Self

import pytest
from beartype import beartype
from jaxtyping import _import_hook, install_import_hook

SCIENCE = [f"lib.{part}" for part in ("corpus", "pairing", "models", "sae", "mppc", "circuits", "interpret", "spaces")]
COMPILES = {"njit", "jit", "_kernel", "no_type_check"}


def is_left_alone(decorator: ast.expr) -> bool:
    """Whether a function with this decorator stays without the check; in the place of jaxtyping's own question."""
    names = {getattr(part, "id", getattr(part, "attr", "")) for part in ast.walk(decorator)}
    return not names.isdisjoint(COMPILES)


def import_for_annotations(transformer: ast.NodeVisitor, node: ast.If) -> None:
    """Let `if TYPE_CHECKING:` hold, so that there is what annotations name."""
    if getattr(node.test, "id", "") == "TYPE_CHECKING":
        node.test = ast.copy_location(ast.Constant(True), node.test)
    transformer.generic_visit(node)


def checked(function: Callable) -> Callable:
    """beartype's check of a function; of `Self` it knows only in classes that it is given whole."""
    hints = function.__annotations__.items()
    function.__annotations__ = {name: hint for name, hint in hints if hint not in ("Self", Self)}
    return beartype(function)


_import_hook._is_no_type_check = is_left_alone
_import_hook.JaxtypingTransformer.visit_If = import_for_annotations
install_import_hook(SCIENCE, "tests.annotations.enforced.checked")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Leave out tests that give a function what its annotation forbids, to read the function's own error."""
    items[:] = [item for item in items if not item.get_closest_marker("ill_typed")]
