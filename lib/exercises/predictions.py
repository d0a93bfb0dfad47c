"""A reader's prediction beside what was found."""

from __future__ import annotations

from typing import Any


def compare(guess: Any, truth: Any, what: str, unit: str = "") -> None:
    """Print `what` was asked and what is true, and beside it the reader's guess where there is one.

    `guess` is a number, a word or a yes or no (bool), as `truth` is; None where the reader left the cell as it was.
    """
    found = f"{what}: {_in_words(truth)}{unit}"
    print(f"{found}." if guess is None else f"{found}; your guess was {_in_words(guess)}{unit}.")


def _in_words(value: Any) -> str:
    if isinstance(value, str | bool):
        return {True: "yes", False: "no"}.get(value, value)
    return f"{value:.3g}"
