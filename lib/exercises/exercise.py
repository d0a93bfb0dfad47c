"""What an exercise is: a right answer, and the mistakes that people make on the way to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lib.workbook.profiles import Profile

Answer = Callable[[Profile], Any]


@dataclass(frozen=True)
class Exercise:
    """One exercise of a notebook."""

    asks: str
    """The form of the answer, to follow "put …"."""
    right: Answer
    mistakes: Mapping[str, Answer]
    """What a wrong answer is, in a sentence → the function that gives it."""
    needs: str = ""
    """Models without which there is no answer, as for `Profile.lacking`."""
