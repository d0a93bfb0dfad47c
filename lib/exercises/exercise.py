"""What an exercise is: a right answer, and the mistakes that people make on the way to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lib.workbook.profiles import Profile


@dataclass(frozen=True)
class Exercise:
    """One exercise of a notebook."""

    asks: str
    """The form of the answer, to follow "put …"."""
    right: Callable[..., Any]
    """The right answer for a profile."""
    mistakes: Mapping[str, Mapping[str, Any] | Callable[[Profile], Any]]
    """What a wrong answer is, in a sentence → other arguments of `right` that give it, or a function that gives it."""
    needs: str = ""
    """Models without which there is no answer, as for `Profile.lacking`."""

    def wrong(self, why: str, profile: Profile) -> Any:
        """The answer that one of the mistakes gives."""
        mistake = self.mistakes[why]
        return mistake(profile) if callable(mistake) else self.right(profile, **mistake)
