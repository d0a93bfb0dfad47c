"""``python -m pytest -p tests.annotations.enforced``: whatever science's functions take and give is held to their annotations.

Functions that Numba or Triton compile stay as they are: a check around them cannot be compiled.
"""

import ast

import pytest
from jaxtyping import _import_hook, install_import_hook

SCIENCE = [f"lib.{part}" for part in ("corpus", "models", "sae", "mppc", "circuits", "interpret", "spaces")]
COMPILES = {"njit", "jit", "_kernel", "no_type_check"}


def is_left_alone(decorator: ast.expr) -> bool:
    """Whether a function with this decorator stays without the check; in the place of jaxtyping's own question."""
    names = {getattr(part, "id", getattr(part, "attr", "")) for part in ast.walk(decorator)}
    return not names.isdisjoint(COMPILES)


_import_hook._is_no_type_check = is_left_alone
install_import_hook(SCIENCE, "beartype.beartype")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Leave out tests that give a function what its annotation forbids, to read the function's own error."""
    items[:] = [item for item in items if not item.get_closest_marker("ill_typed")]
