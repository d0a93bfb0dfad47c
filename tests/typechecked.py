"""``python -m pytest -p tests.typechecked``: every shape and type that lib's functions are annotated with is checked.

Numba and Triton compile the functions that they are given, so they get them without the check around them.
"""

import inspect

import numba
import triton
from jaxtyping import install_import_hook


def of_the_function_itself(decorator):
    """The decorator, used on what lies within the check."""

    def used(function=None, **options):
        if function is None:
            return lambda later: decorator(**options)(inspect.unwrap(later))
        return decorator(inspect.unwrap(function), **options)

    return used


numba.njit = of_the_function_itself(numba.njit)
triton.jit = of_the_function_itself(triton.jit)
install_import_hook("lib", "beartype.beartype")
