"""What a notebook claims, recorded where it is measured, under the id by which the scorecard asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
from pandas.io.formats.style import Styler

from lib.workbook.outputs import save_table
from lib.workbook.profiles import Profile

CHECKS = "table_checks"
HOLDS, FAILS, LEFT_OUT = "holds", "does not hold", "left out"
INCONCLUSIVE = "inconclusive"

Claim = tuple[str, str, bool | None | str, str]
"""Id, words, whether it holds (None: it is left out; `INCONCLUSIVE`: its control fails), and the effect or why none."""


def claim(id: str, words: str, needs: str, measure: Callable[[], tuple[bool | str, str]], profile: Profile) -> Claim:
    """A claim for which models are needed (as for `Profile.lacking`).

    `measure()` gives whether it holds, and the effect in words; it is not called where a needed model is none.
    """
    lacking = profile.lacking(needs)
    return (id, words, None, profile.left_out(lacking)) if lacking else (id, words, *measure())


def unless(reason: str, holds: bool, effect: str) -> tuple[bool | str, str]:
    """Whether a claim holds, and its effect; inconclusive where there is a reason why its measure says nothing."""
    return (INCONCLUSIVE, f"{reason}; {effect}") if reason else (holds, effect)


def record(claims: Sequence[Claim], name: str, profile: Profile) -> pd.DataFrame:
    """Write claims with ids and verdicts to the table `name`: id, claim, verdict, effect. Returns it, for showing.

    An id is that of the claim's row on the scorecard.
    """
    words = {True: HOLDS, False: FAILS, None: LEFT_OUT, INCONCLUSIVE: INCONCLUSIVE}
    rows = [(id, claim, words[holds], effect) for id, claim, holds, effect in claims]
    return save_table(pd.DataFrame(rows, columns=["id", "claim", "verdict", "effect"]), name, profile)


def linked(claims: pd.DataFrame) -> Styler:
    """The table of `record` for reading, each id a link to the scorecard."""
    return claims.style.hide(axis="index").format({"id": '<a href="99_scorecard.ipynb#The-card">{}</a>'.format})


def check(id: str, words: str, holds: bool, profile: Profile) -> None:
    """Print whether what a notebook checks of its own method holds, and record it under its id in `CHECKS`."""
    print(f"{words}: {bool(holds)}")
    path = profile.figures_dir / f"{CHECKS}.csv"
    others = pd.read_csv(path).query("id != @id") if path.exists() else None
    row = pd.DataFrame([{"id": id, "check": words, "verdict": HOLDS if holds else FAILS}])
    save_table(pd.concat([others, row]).sort_values("id"), CHECKS, profile)
