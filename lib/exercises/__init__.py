"""Checkers of the notebooks' exercises: they compute the right answer, and say what is wrong with another one.

Right answers and known mistakes are functions of the profile: nothing is typed in, so they hold at every size. They are
computed when an answer is given, the mistakes only when it is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from lib.exercises.answers import EXACT, NO_NOISE, NOISE, TOLERANCE, fault, plain, same
from lib.workbook.profiles import LeftOut, Profile

__all__ = ["Exercise", "check", "compare", "known", "verdict"]
RIGHT = "right."


@dataclass(frozen=True)
class Exercise:
    """One exercise of a notebook."""

    asks: str
    """The form of the answer, to follow "put …"."""
    right: Callable[..., Any]
    """The right answer for a profile."""
    mistakes: Mapping[str, Mapping[str, Any] | Callable[[Profile], Any]]
    """What a wrong answer is, in a sentence → other arguments of `right` that give it, or a function that does."""
    needs: str = ""
    """Models without which there is no answer, as for `Profile.lacking`."""

    def wrong(self, why: str, profile: Profile) -> Any:
        """The answer that one of the mistakes gives."""
        mistake = self.mistakes[why]
        return mistake(profile) if callable(mistake) else self.right(profile, **mistake)


@cache
def known() -> dict[str, Exercise]:
    """All exercises by their names. Their files are imported when one is asked for: they need most of the library."""
    from lib.exercises import circuits, foundations, matching, meaning

    return foundations.EXERCISES | matching.EXERCISES | meaning.EXERCISES | circuits.EXERCISES


def check(name: str, answer: Any, profile: Profile) -> None:
    """Print what is right or wrong with an answer to the exercise `name`, such as "03.1"."""
    print(f"Exercise {name}: {verdict(name, answer, profile)}")


def verdict(name: str, answer: Any, profile: Profile) -> str:
    """What `check` says of it: `RIGHT`, or what is missing. Raises `ValueError` for an exercise that does not exist."""
    if name not in known():
        raise ValueError(f"there is no exercise {name!r}; the exercises are {', '.join(known())}.")
    exercise = known()[name]
    if lacking := profile.lacking(exercise.needs):
        return f"{profile.left_out(lacking)}."
    if answer is None or answer is ...:
        return f"put {exercise.asks} in the place of None and run this cell again."
    given, expected = plain(answer), plain(exercise.right(profile))
    if same(given, expected, EXACT):
        return RIGHT
    mistakes = {}
    for why in exercise.mistakes:
        with suppress(LeftOut):  # a mistake that this run has no model for
            mistakes[why] = plain(exercise.wrong(why, profile))
    recognised = _equal_to(given, mistakes, EXACT)
    if not recognised and same(given, expected, noise=NO_NOISE if profile.meaningful else NOISE):
        return RIGHT
    recognised = recognised or _equal_to(given, mistakes, TOLERANCE)  # one may have another form than the right answer
    said = "; or ".join(recognised) or fault(given, expected)
    return f"not yet. {said[0].upper()}{said[1:]}."


def _equal_to(given: Any, mistakes: dict[str, Any], tolerance: float) -> list[str]:
    return [why for why, value in mistakes.items() if same(given, value, tolerance)]


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
